"""A worker inside somebody else's Kombu program: its consumers, on the program's connection.

The program's loop delivers on its own thread. Acknowledgements are written from the worker's
threads as attempts end: py-amqp serialises writes (since 5.4.2), and an acknowledgement reads
nothing. The windows are fixed: the slots, shared evenly among the task queues; what comes beyond
the free slots is given back. Only the program could close its consumers: while a task queue is
paused what comes from it goes round by the delay ladder.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kombu import messaging

from tq_broker.exceptions import TqBrokerError
from tq_broker.model import envelope
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, QueueName
from tq_broker.queues.broker import Delivery
from tq_broker.queues.delay import delayed
from tq_broker.queues.kombu_queue import kombu_queue
from tq_broker.queues.sender import LADDER, Sender
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.poller import Source

log = logging.getLogger(__name__)

DECLARE_WITHIN_S = 30.0
PUT_OFF_MS = 1000


class HostedSource:
    """A task queue that the host program consumes for us."""

    __slots__ = ("name", "queue", "task_queue")

    def __init__(self, queue: QueueName) -> None:
        assert queue.task_queue is not None, "only queues of task queues are hosted"
        self.queue = queue
        self.task_queue = queue.task_queue
        self.name = str(queue)

    def released(self) -> None:
        """Nothing: the windows are fixed."""

    waits = False

    def admit(self, resume: Callable[[Passage], None] | None = None) -> Passage | None:
        """Always: the host program's consumers know no limits."""
        return FREE


class HostedDelivery:
    """A Kombu message as a `Delivery`."""

    __slots__ = ("_kombu", "_lock", "message", "queue", "redelivered", "routing_key")

    def __init__(self, kombu_message: Any, queue: str, lock: threading.Lock) -> None:
        self._kombu = kombu_message
        self._lock = lock
        self.queue = queue
        info = kombu_message.delivery_info
        self.redelivered = bool(info.get("redelivered"))
        self.routing_key = str(info.get("routing_key", ""))
        self.message = _message(kombu_message)

    def ack(self) -> None:
        self._write(lambda channel, tag: channel.basic_ack(tag))

    def reject(self, *, requeue: bool) -> None:
        self._write(lambda channel, tag: channel.basic_reject(tag, requeue=requeue))

    def _write(self, write: Callable[[Any, int], None]) -> None:
        channel = self._kombu.channel
        try:
            with self._lock:
                write(channel, self._kombu.delivery_tag)
        except (*channel.connection.client.connection_errors, AttributeError) as error:
            # The connection it came on is gone, and the broker has given it back already.
            log.debug("acknowledgement not written: %s", error)


def _message(kombu_message: Any) -> Message:
    properties = kombu_message.properties
    body = kombu_message.body
    return Message(
        body=body.encode() if isinstance(body, str) else bytes(body),
        message_id=properties.get("message_id", ""),
        kind=properties.get("type", ""),
        headers=kombu_message.headers or {},
        correlation_id=properties.get("correlation_id"),
        reply_to=properties.get("reply_to"),
        content_type=kombu_message.content_type,
        content_encoding=kombu_message.content_encoding,
        priority=properties.get("priority"),
    )


def hosted_consumers(
    channel: Any,
    queues: Sequence[QueueName],
    sender: Sender,
    slots: int,
    on_deliveries: Callable[[Source, Sequence[Delivery]], None],
    is_paused: Callable[[QueueName], object],
) -> list[messaging.Consumer]:
    """One Kombu consumer per queue, each on a channel of its own beside ``channel``."""
    deadline = sender.clock.monotonic() + DECLARE_WITHIN_S
    for queue in queues:
        # Kombu asks again after it has lost its connection, and the queues may be gone, too.
        sender.forget(queue)
    sender.ensure(queues, deadline)
    prefetch = max(1, slots // len(queues))
    return [
        _consumer(
            channel.connection.client.channel(),
            HostedSource(queue),
            sender,
            prefetch,
            on_deliveries,
            is_paused,
        )
        for queue in queues
    ]


def _consumer(
    channel: Any,
    source: HostedSource,
    sender: Sender,
    prefetch: int,
    on_deliveries: Callable[[Source, Sequence[Delivery]], None],
    is_paused: Callable[[QueueName], object],
) -> messaging.Consumer:
    lock = threading.Lock()

    def on_message(message: Any) -> None:
        delivery = HostedDelivery(message, source.name, lock)
        # What may have begun elsewhere is not sent anew: its attempt is lost, paused or not.
        if is_paused(source.queue) and not delivery.redelivered:
            put_off(delivery, source.queue, sender)
        else:
            on_deliveries(source, [delivery])

    queue = kombu_queue(
        source.task_queue, namespace=sender.names.namespace, queue_type=sender.queue_type.value
    )
    return messaging.Consumer(
        channel,
        # Declared before, under its lock: Kombu must not do it again without.
        queues=[queue.bind(channel)],
        on_message=on_message,
        prefetch_count=prefetch,
        auto_declare=False,
        # The handler judges content types itself, and parks what it does not know.
        accept=None,
    )


def put_off(delivery: HostedDelivery, queue: QueueName, sender: Sender) -> None:
    """Put a fresh copy of it on its queue a moment later."""
    names = sender.names
    message = envelope.forwarded(delivery.message)
    publication = Publication(names.exchange(Exchange.TASKS), queue.key, message)

    def ended(error: TqBrokerError | None) -> None:
        if error is None:
            delivery.ack()
        else:
            log.warning("a task of a paused task queue not put off: %s", error)
            delivery.reject(requeue=True)

    sender.send(
        delayed(publication, names, PUT_OFF_MS),
        (queue, LADDER),
        sender.clock.monotonic() + DECLARE_WITHIN_S,
        ended,
    )
