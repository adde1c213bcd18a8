"""Questions to history shards, and their answers: each is asked until it is answered.

The answers come on a reply queue of the worker's own. A repetition has the message id of the first,
so history answers it as it answered that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from tq_broker.exceptions import Malformed, TqBrokerError
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.model.requests import Reply, Request, read_reply, request_message
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Sender
from tq_broker.worker.attempt import Place

log = logging.getLogger(__name__)

PREFETCH = 100
SEND_WITHIN_S = 10.0
AGAIN_AFTER_S = 5.0
"""How long an answer is waited for before the question is asked again."""

OnReply = Callable[[Reply | Malformed], None]
"""Gets the answer, or what is wrong with it: asked again, it would be the same."""


class Inquiries:
    """The open questions of a worker. Thread-safe."""

    def __init__(self, sender: Sender, place: Place) -> None:
        self._sender = sender
        self._names: Names = sender.names
        self._clock = place.clock
        self._queue = self._names.queue(Kind.REPLY, f"{place.worker_id}-inquiries")
        self._lock = threading.Lock()
        self._open: dict[str, OnReply] = {}
        self._subscription: Subscription | None = None
        self._is_open = False
        self._closed = False

    def ask(self, shard: int, request: Request, on_reply: OnReply) -> None:
        """Ask shard ``shard``; returns at once.

        ``on_reply`` is called once, on the broker's reading thread, unless `close` comes first.
        """
        message_id = self._sender.ids.next()
        message = request_message(
            request, message_id, reply_to=str(self._queue), correlation_id=message_id
        )
        with self._lock:
            if self._closed:
                return
            self._open[message_id] = on_reply
            if self._subscription is None:
                self._subscription = self._subscribe()
            subscription = self._subscription
        if self._is_open:
            self._send(shard, message)
        else:
            self._sender.in_background(lambda: self._send_first(subscription, shard, message))

    def _send_first(self, subscription: Subscription, shard: int, message: Message) -> None:
        """Send when answers can come: one without a queue would be lost; blocks."""
        deadline = self._clock.monotonic() + SEND_WITHIN_S
        try:
            self._sender.broker.wait_subscribed([subscription], deadline)
            self._is_open = True
        except TqBrokerError as error:
            log.warning("no answer of history can come yet: %s", error)
        self._send(shard, message)

    def _subscribe(self) -> Subscription:
        return self._sender.broker.subscribe(
            str(self._queue),
            self._on_deliveries,
            SubscribeOptions(
                prefetch=PREFETCH,
                plan=topology.namespace(self._names)
                + topology.reply_queue(self._names, self._queue),
            ),
        )

    def _send(self, shard: int, message: Message) -> None:
        if message.message_id not in self._open:
            return
        queue = self._names.history(shard)
        publication = Publication(self._names.exchange(Exchange.HISTORY), queue.key, message)
        now = self._clock.monotonic()
        self._sender.send(publication, (queue,), now + SEND_WITHIN_S, _sent)
        # The first answer may be lost, for instance because its queue was not there yet.
        self._clock.call_at(now + AGAIN_AFTER_S, lambda: self._send(shard, message))

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            on_reply = self._open.pop(delivery.message.correlation_id or "", None)
            if on_reply is not None:
                on_reply(_read(delivery.message))
            delivery.ack()

    def close(self) -> None:
        """Wait for no answer any more."""
        with self._lock:
            self._closed = True
            self._open.clear()
            if self._subscription is not None:
                self._subscription.cancel_nowait()
                self._subscription = None


def _read(message: Message) -> Reply | Malformed:
    try:
        return read_reply(message)
    except Malformed as error:
        log.warning("answer of history not understood: %s", error)
        return error


def _sent(error: TqBrokerError | None) -> None:
    if error is not None:
        log.warning("question to history not sent, trying again: %s", error)
