"""Feeds: one epoch of one channel on which deliveries come, and the deliveries on it.

RabbitMQ numbers the deliveries of each channel from 1 and takes back, when the channel goes, what
was not acknowledged. So a delivery belongs to its feed for good: what is done with it after the
feed was lost is dropped there, and can never be taken for something else.

Rules of this file: ``settle`` and the methods of deliveries may be called from any thread; all
else belongs to the reader's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from tq_broker.exceptions import Malformed
from tq_broker.model.message import Message
from tq_broker.queues.acks import PENDING_MAX, AckLedger
from tq_broker.queues.frames import decode_message, decode_routing_key

UNREADABLE = "tq-unreadable"
"""Header of what had properties that cannot be read, in their place."""
UNREADABLE_CHARS = 200


class Feed:
    """The deliveries of one channel.

    Args:
        channel: Where they come from; its number must not change.
        queue: The queue of all of them, or "" when they come from several.
        touch: Called, from any thread, when something is done with after a quiet time.
        owner: The subscription; ``None`` for the channel of ``get``.
    """

    __slots__ = (
        "_touch",
        "acked",
        "channel",
        "inbox",
        "ledger",
        "live",
        "number",
        "owner",
        "paused",
        "queue",
        "rejected",
        "told_at",
        "touched",
    )

    def __init__(
        self, channel: Any, queue: str, touch: Callable[[Feed], None], owner: Any = None
    ) -> None:
        self._touch = touch
        self.channel = channel
        self.number: int = channel.channel_id
        self.queue = queue
        self.owner = owner
        self.ledger = AckLedger(self.number)
        self.acked: deque[int] = deque()
        self.rejected: deque[tuple[int, bool]] = deque()
        self.inbox: list[AmqpDelivery] = []
        self.touched = False
        self.told_at = float("-inf")
        """When RabbitMQ was last told what is done with."""
        self.live = True
        self.paused = False
        """What is done with is not told for now, so that nothing new comes."""

    def settle(self, tag: int, requeue: bool | None) -> None:
        """From any thread: ``tag`` is done with; ``requeue`` is None for an ack."""
        if requeue is None:
            self.acked.append(tag)
        else:
            self.rejected.append((tag, requeue))
        # The flag is set after the append and cleared before the read: nothing is overlooked.
        if not self.touched:
            self.touched = True
            self._touch(self)

    def take_settled(self) -> bytes:
        """The frames that tell RabbitMQ what is done with; none when it has forgotten us."""
        if self.paused and self.live:
            return b""
        self.touched = False
        acked, rejected = self.acked, self.rejected
        # Their lengths are read once: other threads go on appending.
        rejects = [rejected.popleft() for _ in range(len(rejected))]
        acks = [acked.popleft() for _ in range(len(acked))]
        if not self.live:
            return b""
        first = self.ledger.rejected(rejects) if rejects else b""
        return first + self.ledger.acked(acks) if acks else first

    def is_certain(self, now: float, after_s: float) -> bool:
        """Whether all that was told is kept though the channel be closed.

        Args:
            after_s: A quorum queue has written it by then.
        """
        return self.ledger.frames <= PENDING_MAX or now >= self.told_at + after_s

    def lose(self) -> None:
        """RabbitMQ has taken everything back; what nobody has seen is forgotten."""
        self.live = False
        self.inbox.clear()


class AmqpDelivery:
    """One message that is ours. See `tq_broker.queues.broker.Delivery`.

    Properties and headers are decoded when they are looked at first.
    """

    __slots__ = (
        "_body",
        "_feed",
        "_header",
        "_message",
        "_method",
        "_settled",
        "_tag",
        "redelivered",
    )

    def __init__(
        self,
        feed: Feed,
        tag: int,
        redelivered: bool,
        method: bytes | str,
        header: bytes,
        body: bytes,
    ) -> None:
        self._feed = feed
        self._tag = tag
        self.redelivered = redelivered
        self._method = method
        self._header = header
        self._body = body
        self._message: Message | None = None
        self._settled = False

    def __repr__(self) -> str:
        return f"<AmqpDelivery {self._tag} of {self.queue}>"

    @property
    def message(self) -> Message:
        message = self._message
        if message is None:
            message = self._message = self._decode()
        return message

    def _decode(self) -> Message:
        """What cannot be read is a message of no kind, so that whoever consumes here parks it: who
        parks has to look at it as well, so it must not raise."""
        try:
            return decode_message(self._header, self._body)
        except Malformed as error:
            why = error.reason[:UNREADABLE_CHARS]
            return Message(body=self._body, message_id="", headers={UNREADABLE: why})

    @property
    def queue(self) -> str:
        return self._feed.queue

    @property
    def routing_key(self) -> str:
        method = self._method
        return method if isinstance(method, str) else decode_routing_key(method)

    def ack(self) -> None:
        if not self._settled:
            self._settled = True
            self._feed.settle(self._tag, None)

    def reject(self, *, requeue: bool) -> None:
        if not self._settled:
            self._settled = True
            self._feed.settle(self._tag, requeue)


class GotDelivery(AmqpDelivery):
    """One that was fetched with ``get``: they share a feed, but not a queue."""

    __slots__ = ("_queue",)

    def __init__(self, feed: Feed, queue: str, content: Any) -> None:
        info = content.delivery_info
        super().__init__(
            feed,
            info["delivery_tag"],
            info["redelivered"],
            info["routing_key"],
            content.header,
            content.body,
        )
        self._queue = queue

    @property
    def queue(self) -> str:
        return self._queue
