"""Tasks that lost their queue: every worker of a namespace helps to route them anew.

They come through the unrouted queue: what a timer released for a queue that was reclaimed, what
waited for too long in a host's or process's queue, and the leases of dead workers.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model import envelope
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues import topology
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions, Subscription
from tq_broker.queues.delay import destination_key
from tq_broker.worker.attempt import Place
from tq_broker.worker.intake import lost
from tq_broker.worker.reporter import Reporter

PREFETCH = 50


class Fate(enum.Enum):
    """What becomes of a stray task."""

    DISPATCH = "dispatch"
    LOST = "lost"
    """Its worker is gone, or may be: the attempt has failed."""


def fate(kind: Kind, task: ActivityTask) -> Fate:
    """What becomes of a task that strayed from a queue of ``kind``. Pure.

    From a lease queue it had begun for sure. From a host's or process's queue it may have: it is
    routed again, unless it must not run more than once.
    """
    if kind is Kind.LEASE:
        return Fate.LOST
    private = kind in (Kind.HOST, Kind.PROCESS)
    if private and task.retry_policy.maximum_attempts == 1 and task.route is not None:
        return Fate.LOST
    return Fate.DISPATCH


class Rerouter:
    """Consumes the unrouted queue of a namespace."""

    def __init__(self, broker: Broker, names: Names, place: Place, reporter: Reporter) -> None:
        self._broker = broker
        self._names = names
        self._place = place
        self._reporter = reporter
        self._queue = str(names.queue(Kind.UNROUTED))
        self._subscription: Subscription | None = None

    def open(self) -> Subscription:
        """Begin; returns at once."""
        self._subscription = self._broker.subscribe(
            self._queue,
            self._on_deliveries,
            SubscribeOptions(prefetch=PREFETCH, plan=topology.namespace(self._names)),
        )
        return self._subscription

    def close(self) -> None:
        """Take no more."""
        if self._subscription is not None:
            self._subscription.cancel_nowait()
            self._subscription = None

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            try:
                self._reroute(delivery)
            except (Malformed, InvalidArgument) as error:
                self._reporter.park(delivery.message, self._queue, str(error), delivery.ack)

    def _reroute(self, delivery: Delivery) -> None:
        key = destination_key(delivery.routing_key)
        queue = QueueName.from_key(self._names.namespace, key)
        task_queue = queue.task_queue or str(delivery.message.headers.get("tq-task-queue", ""))
        if not task_queue:
            raise Malformed(f"strayed from {key!r:.80}, which is no task queue")
        task = envelope.read_task(delivery.message, task_queue)
        now_ms = epoch_ms(self._place.clock)
        if fate(queue.kind, task) is Fate.LOST:
            body = envelope.read_task_body(task, self._place.converter)
            self._reporter.failed(task, body, lost(), now_ms, delivery.ack)
        else:
            message = envelope.forwarded(delivery.message)
            self._reporter.dispatch(task, message, now_ms, delivery.ack)
