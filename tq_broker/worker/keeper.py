"""Keeping hold of long attempts: exchanging their delivery for a fresh one, the *lease*.

A lease is a copy of the task on this worker's own lease queue, held unacknowledged instead of the
original. It is made

* before RabbitMQ's acknowledgement timeout would end the channel of a long attempt;
* when an attempt is to be completed asynchronously, so that its queue's window is free again;
* when an attempt has reported heartbeat details, which the copy then carries: the next attempt
  gets them also when this worker is killed (but for a workflow's, whose history is told of them).

When this worker dies its leases come back to their queue, are dead-lettered at once, and reach
another worker as lost attempts.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

import msgspec

from tq_broker.exceptions import Malformed, PayloadTooLarge, TqBrokerError
from tq_broker.model import envelope
from tq_broker.model.message import Publication
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.model.tasks import TaskBody
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Done, Sender
from tq_broker.worker.attempt import Attempt, Place, State
from tq_broker.worker.table import Held, Key, Table, key_of
from tq_broker.worker.throttle import Throttle

log = logging.getLogger(__name__)

SEND_WITHIN_S = 20.0


class Keeper:
    """The leases of a worker. Thread-safe."""

    def __init__(
        self,
        broker: Broker,
        sender: Sender,
        names: Names,
        place: Place,
        table: Table,
        throttle: Throttle,
        lease_after_s: float,
    ) -> None:
        self._broker = broker
        self._sender = sender
        self._place = place
        self._table = table
        self._throttle = throttle
        self._lease_after_s = lease_after_s
        self._queue = names.queue(Kind.LEASE, place.worker_id)
        self._exchange = names.exchange(Exchange.TASKS)
        self._lock = threading.Lock()
        self._subscription: Subscription | None = None
        self._under_way: set[Key] = set()
        self._is_open = False
        self._closed = False
        self.on_exchanged: Callable[[], None] | None = None
        """Called when a lease has taken the place of a delivery, before that is acknowledged and
        makes room for another."""

    @property
    def under_way(self) -> int:
        """Leases sent that have not come yet. What is left behind would count as lost."""
        return len(self._under_way)

    def beat(self, attempt: Attempt) -> None:
        """``attempt`` has reported details: keep them now if none were kept lately."""
        if self._worth_saving(attempt, self._place.clock.monotonic()):
            self.keep(attempt)

    def tick(self, attempts: Iterable[Attempt], now: float) -> None:
        """Renew what has been held for long, and keep details that had to wait."""
        for attempt in attempts:
            old = now - attempt.held_since >= self._lease_after_s
            if old or self._worth_saving(attempt, now):
                self.keep(attempt)

    def _worth_saving(self, attempt: Attempt, now: float) -> bool:
        if not attempt.details or attempt.task.workflow is not None:
            return False
        return self._throttle.is_due(attempt, now)

    def keep(self, attempt: Attempt) -> None:
        """Exchange the delivery of ``attempt`` for a lease; returns at once."""
        with self._lock:
            if attempt.leasing or attempt.state is State.ENDED or self._closed:
                return
            attempt.leasing = True
            subscription = self._subscribe()
            self._under_way.add(key_of(attempt.task))
        details = attempt.details
        body = attempt.body
        if details is not None:
            body = TaskBody(args=body.args, heartbeat=details, failure=body.failure)
        saved_before = attempt.saved
        if attempt.task.workflow is None:
            attempt.saved, attempt.saved_at = details, self._place.clock.monotonic()
        converter = self._place.converter
        try:
            sealed = envelope.task_body(body, converter)
        except PayloadTooLarge as error:
            log.warning("heartbeat details of %s not kept: %s", attempt.task.activity_id, error)
            sealed = attempt.task.body
        task = msgspec.structs.replace(
            attempt.task,
            body=sealed,
            codecs=converter.codec_names,
            lease=self._place.worker_id,
        )
        # The task queue travels in the key of neither a lease nor its dead letter.
        message = envelope.forwarded(
            envelope.task_message(task), headers={"tq-task-queue": task.task_queue}
        )

        def sent(error: TqBrokerError | None) -> None:
            if error is not None:
                self._under_way.discard(key_of(task))
                # Details that were not kept are tried again, no sooner than others would be.
                attempt.leasing = False
                if attempt.task.workflow is None:
                    attempt.saved = saved_before
                log.warning("lease of %s not made: %s", task.activity_id, error)

        deadline = self._place.clock.monotonic() + SEND_WITHIN_S
        publication = Publication(self._exchange, self._queue.key, message)

        def send() -> None:
            self._sender.send(publication, (self._queue,), deadline, sent)

        if self._is_open:
            send()
        else:
            self._sender.in_background(lambda: self._open(subscription, deadline, send, sent))

    def _open(
        self, subscription: Subscription, deadline: float, go_on: Callable[[], None], failed: Done
    ) -> None:
        """Send only when somebody takes: a lease that waits counts as lost after a second."""
        try:
            self._sender.ensure((self._queue,), deadline)
            self._broker.wait_subscribed([subscription], deadline)
        except TqBrokerError as error:
            failed(error)
        else:
            self._is_open = True
            go_on()

    def _subscribe(self) -> Subscription:
        if self._subscription is None:
            self._subscription = self._broker.subscribe(
                str(self._queue),
                self._on_deliveries,
                SubscribeOptions(prefetch=0, plan=self._sender.plan(self._queue)),
            )
        return self._subscription

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            before = self._swap(delivery)
            if before is None:
                delivery.ack()  # it ended while its lease was on the way
                continue
            if self.on_exchanged is not None:
                self.on_exchanged()
            before.let_go()

    def _swap(self, delivery: Delivery) -> Held | None:
        task_queue = delivery.message.headers.get("tq-task-queue", "")
        try:
            task = envelope.read_task(delivery.message, str(task_queue))
        except Malformed as error:
            log.warning("foreign message in the lease queue dropped: %s", error)
            return None
        self._under_way.discard(key_of(task))
        return self._table.exchange(task, delivery, None, self._place.clock.monotonic())

    def close(self) -> None:
        """Take no more leases."""
        with self._lock:
            self._closed = True
            if self._subscription is not None:
                self._subscription.cancel_nowait()
                self._subscription = None
