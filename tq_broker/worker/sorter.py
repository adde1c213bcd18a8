"""Task queues with priorities: who brings their tasks into order.

Once the settings log says that a task queue has a priority queue, its tasks wait there, and nothing
is begun from the plain queue any more. What is in that one still, and what those put there who have
not read the log, or know nothing of it, is moved over as it comes: a fresh copy is confirmed in the
priority queue before the original is acknowledged. Where keys have fair shares it is moved to wait
for its share (`tq_broker.worker.dealer`).

Rules of this file:

* moving needs no slot: a task of priority 1 must not wait in the plain queue for a worker that is
  busy with others;
* what was handed out before stays marked so, because somebody may have begun with it;
* `HELD_MAX` tasks are in hand at most: as many attempts may count as lost when the process is
  killed in that moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

from tq_broker.model import envelope
from tq_broker.model.names import QueueName
from tq_broker.model.workflow_tasks import WORKFLOW_TASK
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker.poller import OnDeliveries, Poller, Source
from tq_broker.worker.reporter import Reporter

HELD_MAX = 100


class Sorter:
    """See the module. Thread-safe.

    Args:
        plain: The plain queue of a task queue, on the side that it works for.
        take: Takes what is in order.
    """

    def __init__(
        self,
        sender: Sender,
        reporter: Reporter,
        settings: SettingsLog,
        plain: Callable[[str], QueueName],
        take: OnDeliveries,
    ) -> None:
        self._sender = sender
        self._broker = sender.broker
        self._names = sender.names
        self._reporter = reporter
        self._settings = settings
        self._plain = plain
        self._take = take
        self._lock = threading.Lock()
        self._subscriptions: dict[QueueName, Subscription] = {}
        self._under_way = 0
        self._closed = False

    @property
    def under_way(self) -> int:
        """Tasks whose copy is not confirmed yet."""
        return self._under_way

    def queue_of(self, task_queue: str) -> QueueName:
        """The queue from which tasks of the task queue are begun now."""
        plain = self._plain(task_queue)
        return self._names.priority(plain) if self.is_superseded(plain) else plain

    def is_superseded(self, queue: QueueName) -> bool:
        """Whether ``queue`` is a plain queue whose tasks wait in the priority queue now."""
        prioritized = self._settings.prioritized
        return bool(prioritized) and (queue.kind.value, queue.parts[0]) in prioritized

    def on_deliveries(self, source: Source, deliveries: Sequence[Delivery]) -> None:
        """Deliveries of a task queue have come: take them, or move them to where they belong."""
        if not self.is_superseded(source.queue):
            self._take(source, deliveries)
            return
        for delivery in deliveries:
            self._move(source.queue, delivery, source.released)

    def tick(self, task_queues: Sequence[str], poller: Poller) -> None:
        """Do what the settings log says of ``task_queues`` now; done often."""
        if not (self._settings.prioritized or self._subscriptions):
            return
        with self._lock:
            for plain in map(self._plain, task_queues):
                if self.is_superseded(plain):
                    poller.serve(self._names.priority(plain))
                    self._open(plain)
                elif plain in self._subscriptions:
                    self._subscriptions.pop(plain).cancel_nowait()

    def _open(self, plain: QueueName) -> None:
        if plain in self._subscriptions or self._closed:
            return
        options = SubscribeOptions(prefetch=HELD_MAX, plan=self._sender.plan(plain))
        self._subscriptions[plain] = self._broker.subscribe(
            str(plain), partial(self._move_all, plain), options
        )

    def _move_all(self, plain: QueueName, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._move(plain, delivery, _nothing)

    def _move(self, plain: QueueName, delivery: Delivery, released: Callable[[], None]) -> None:
        # Of a workflow task history knows by itself whether somebody has done it.
        begun = delivery.redelivered and delivery.message.kind != WORKFLOW_TASK
        fresh = envelope.handed_on(delivery.message, may_have_begun=begun)

        def done() -> None:
            delivery.ack()
            released()
            with self._lock:
                self._under_way -= 1

        with self._lock:
            self._under_way += 1
        if (plain.kind.value, plain.parts[0]) in self._settings.fair:
            self._reporter.give_back(fresh, self._names.fair(plain), done)
        else:
            self._reporter.give_back(envelope.ranked(fresh), self._names.priority(plain), done)

    def close_intake(self, deadline: float) -> None:
        """Move nothing more; what is in hand still is.

        Raises:
            DeadlineExceeded: the broker did not confirm in time.
        """
        with self._lock:
            self._closed = True
            subscriptions = list(self._subscriptions.values())
            self._subscriptions.clear()
        for subscription in subscriptions:
            subscription.cancel_nowait()  # also those behind one that is not answered
        for subscription in subscriptions:
            subscription.cancel(deadline)


def _nothing() -> None:
    """No window counts what the sorter consumes itself."""
