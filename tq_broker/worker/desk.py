"""The worker's control desk: answers requests that come through the control exchange."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from tq_broker.exceptions import Malformed, TqBrokerError
from tq_broker.model import control
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names, QueueName
from tq_broker.queues import topology
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Sender
from tq_broker.queues.topology import BindQueue, DeleteQueue, Plan
from tq_broker.worker.attempt import Place

log = logging.getLogger(__name__)

PREFETCH = 100
ANSWER_WITHIN_S = 10.0

Handler = Callable[[control.Request], control.Reply | None]


def private_queues(names: Names, place: Place, task_queues: Iterable[str]) -> list[QueueName]:
    """The host and process queues that a worker at ``place`` may be asked to serve."""
    return [
        queue
        for task_queue in task_queues
        for queue in (
            names.queue(Kind.HOST, place.host, task_queue),
            names.queue(Kind.PROCESS, place.worker_id, task_queue),
        )
    ]


class Desk:
    """Receives requests for one worker and sends its answers.

    Its queue is exclusive: the bindings under which others look for this worker vanish with
    its connection.
    """

    def __init__(
        self,
        broker: Broker,
        sender: Sender,
        names: Names,
        place: Place,
        queues: Iterable[QueueName],
        handler: Handler,
        keys: Iterable[str] = (),
    ) -> None:
        """``queues``: those of this worker's own that it may be asked to serve; ``keys``: further
        control keys that it answers to."""
        self._broker = broker
        self._sender = sender
        self._names = names
        self._place = place
        self._handler = handler
        self._queue = names.queue(Kind.CONTROL, place.worker_id)
        self._keys = (
            control.EVERY_WORKER,
            control.worker_key(place.worker_id),
            *(queue.key for queue in queues),
            *keys,
        )
        self._subscription: Subscription | None = None

    def open(self) -> Subscription:
        """Begin to receive; returns at once."""
        plan = topology.namespace(self._names) + topology.control_queue(
            self._names, self._queue, self._keys
        )
        self._subscription = self._broker.subscribe(
            str(self._queue), self._on_deliveries, SubscribeOptions(prefetch=PREFETCH, plan=plan)
        )
        return self._subscription

    def ready(self, queue: QueueName, deadline: float) -> None:
        """Let it be known that this worker serves the private queue ``queue``; blocks."""
        exchange = self._names.exchange(Exchange.CONTROL)
        key = control.ready_key(queue.key)
        self._broker.apply(Plan((BindQueue(str(self._queue), exchange, key),)), deadline)

    def close(self, deadline: float) -> None:
        """Receive no more, and let that be known; blocks."""
        if self._subscription is None:
            return
        self._subscription.cancel_nowait()
        self._subscription = None
        try:
            self._broker.apply(Plan((DeleteQueue(str(self._queue)),)), deadline)
        except TqBrokerError as error:
            log.debug("control queue left to the end of its connection: %s", error)

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            try:
                reply = self._handler(control.read_request(delivery.message))
            except Malformed as error:
                log.warning("control request dropped: %s", error)
            else:
                if reply is not None:
                    self._answer(delivery.message, reply)
            delivery.ack()

    def _answer(self, request: Message, reply: control.Reply) -> None:
        to = request.reply_to
        if to is None or not self._names.owns(to, Kind.REPLY):
            log.warning("control request without a reply queue of this namespace not answered")
            return
        message = control.message(
            reply, self._sender.ids.next(), correlation_id=request.correlation_id
        )
        publication = Publication(self._names.exchange(Exchange.REPLIES), to, message)
        deadline = self._place.clock.monotonic() + ANSWER_WITHIN_S
        # Whoever asked may have left: then nobody misses the answer.
        self._sender.send(publication, (), deadline, lambda error: None)
