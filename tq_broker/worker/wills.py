"""The wills of a worker: who empties the queues that are its own when it is gone.

For each host's, process's and sticky queue that it serves, a worker holds a message unacknowledged,
on a queue of its own whose messages live for a second only. When the worker dies RabbitMQ gives the
message back, finds it expired, and dead-letters it: within milliseconds another worker of the
namespace has it (`tq_broker.worker.rerouting`), and sees to the tasks that were left.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from tq_broker.exceptions import Malformed, TqBrokerError
from tq_broker.model import envelope
from tq_broker.model.message import Publication
from tq_broker.model.names import Exchange, Kind
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Sender
from tq_broker.worker.attempt import Place

log = logging.getLogger(__name__)

SEND_WITHIN_S = 20.0


class Wills:
    """The wills of one worker. Thread-safe."""

    def __init__(self, sender: Sender, place: Place, on_made: Callable[[str], None]) -> None:
        """``on_made`` is called with the queue whenever a will for it is in place, on the
        broker's reading thread."""
        self._on_made = on_made
        self._sender = sender
        self._place = place
        self._queue = sender.names.queue(Kind.WILL, place.worker_id)
        self._lock = threading.Lock()
        self._subscription: Subscription | None = None
        self._held: dict[str, Delivery] = {}

    def make(self, queue: str) -> None:
        """Make a will for the queue ``queue``, in place of an earlier one.

        Made again whenever somebody asks for the queue to be served, and when a broken connection
        is restored: a will that was executed although this worker lives is replaced in that way.
        """
        with self._lock:
            self._subscribe()
        message = envelope.will_message(queue, self._sender.ids.next())
        exchange = self._sender.names.exchange(Exchange.TASKS)
        publication = Publication(exchange, self._queue.key, message)
        deadline = self._place.clock.monotonic() + SEND_WITHIN_S
        self._sender.send(publication, (self._queue,), deadline, _sent)

    def _subscribe(self) -> None:
        if self._subscription is None:
            self._subscription = self._sender.broker.subscribe(
                str(self._queue),
                self._on_deliveries,
                SubscribeOptions(
                    prefetch=0,
                    plan=self._sender.plan(self._queue),
                    on_accepted=self._on_accepted,
                ),
            )

    def _on_accepted(self) -> None:
        """What was held before, if anything was, has gone back with its connection."""
        for queue in list(self._held):
            self.make(queue)

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            try:
                queue = envelope.read_will(delivery.message)
            except Malformed as error:
                log.warning("foreign message in the will queue dropped: %s", error)
                delivery.ack()
                continue
            before = self._held.get(queue)
            self._held[queue] = delivery
            if before is not None:
                before.ack()
            self._on_made(queue)

    def revoke(self, queue: str) -> None:
        """There is nothing to be done about ``queue`` any more."""
        held = self._held.pop(queue, None)
        if held is not None:
            held.ack()

    def close(self) -> None:
        """Have the wills executed now: what still waits for this worker is routed anew."""
        with self._lock:
            if self._subscription is None:
                return
            self._subscription.cancel_nowait()
            self._subscription = None
        for delivery in list(self._held.values()):
            delivery.reject(requeue=False)


def _sent(error: TqBrokerError | None) -> None:
    if error is not None:
        log.warning("will not made: %s", error)
