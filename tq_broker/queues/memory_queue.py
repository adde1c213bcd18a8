"""A queue of the in-memory vhost: ready messages, consumers with credit, or a stream's log.

Rules of this file:

* pure: ``now`` (monotonic seconds) comes in as a value; what must be dead-lettered goes out;
* a message keeps its ``position`` for life, so that it goes back to its old place;
* only the head expires, and only when somebody looks: at a publish, a give-back, or the time
  that `ReadyQueue.next_due` names;
* a consumer is given no more than its prefetch allows, in turn with the others.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from tq_broker.exceptions import AccessRefused, InvalidArgument
from tq_broker.model.message import Message

QUEUE_TYPES = ("classic", "quorum", "stream")
PRIORITY_MAX = 255
_ONLY_FOR = {
    "x-delivery-limit": {"quorum"},
    "x-dead-letter-strategy": {"quorum"},
    "x-max-priority": {"classic"},
    "x-max-age": {"stream"},
    "x-stream-max-segment-size-bytes": {"stream"},
    "x-dead-letter-exchange": {"classic", "quorum"},
    "x-dead-letter-routing-key": {"classic", "quorum"},
    "x-expires": {"classic", "quorum"},
    "x-max-length": {"classic", "quorum"},
    "x-message-ttl": {"classic", "quorum"},
    "x-overflow": {"classic", "quorum"},
}
"""Known arguments that not every type of queue has; another type refuses them."""
_DELIVERY_COUNT = "x-delivery-count"
_STREAM_OFFSET = "x-stream-offset"
_CONSUMER_PRIORITY = "x-priority"


class Stored(msgspec.Struct):
    """A message in one queue.

    ``expires_at`` is monotonic seconds, ``None`` for never; ``returns`` counts how often it was
    given back.
    """

    message: Message
    exchange: str
    routing_key: str
    position: int = 0
    expires_at: float | None = None
    redelivered: bool = False
    returns: int = 0


class Recipient(Protocol):
    """The connection's side of a consumer; called with the vhost's lock held, so it only notes."""

    def deliver(self, tag: int, stored: Stored, queue: str) -> None:
        """``stored`` is now unacknowledged under ``tag``."""

    def cancelled(self) -> None:
        """The queue went away and the consumer with it."""


class Consumer:
    """A consumer and its credit. ``offset`` is the next one to read, on streams only; ``once``:
    its credit never comes back.
    """

    __slots__ = (
        "connection",
        "exclusive",
        "offset",
        "once",
        "prefetch",
        "priority",
        "queue",
        "recipient",
        "taken",
        "unacked",
    )

    def __init__(
        self,
        recipient: Recipient,
        *,
        connection: object,
        prefetch: int,
        exclusive: bool = False,
        once: bool = False,
    ) -> None:
        self.recipient = recipient
        self.connection = connection
        self.prefetch = prefetch
        self.exclusive = exclusive
        self.once = once
        self.priority = 0
        self.queue: Queue | None = None
        self.unacked = 0
        self.taken = 0
        self.offset = 0

    @property
    def has_credit(self) -> bool:
        used = self.taken if self.once else self.unacked
        return self.prefetch == 0 or used < self.prefetch


class QueueArguments(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of a queue, checked. Times in seconds; ``None`` where nothing was given."""

    queue_type: str = "classic"
    ttl_s: float | None = None
    expires_s: float | None = None
    length_max: int | None = None
    bytes_max: int | None = None
    rejects_publish: bool = False
    dead_letter_exchange: str | None = None
    dead_letter_key: str | None = None
    keeps_dead_letters: bool = False
    """At least once: a dead letter waits in its queue until it can be routed."""
    delivery_limit: int | None = None
    single_active: bool = False
    priority_max: int = 0

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> QueueArguments:
        """Read AMQP arguments; unknown ones are ignored, as RabbitMQ does.

        Raises:
            InvalidArgument: a value that RabbitMQ refuses.
        """
        queue_type = arguments.get("x-queue-type", "classic")
        if queue_type not in QUEUE_TYPES:
            raise InvalidArgument(f"x-queue-type must be one of {QUEUE_TYPES}, not {queue_type!r}")
        for name, types in _ONLY_FOR.items():
            if name in arguments and queue_type not in types:
                raise InvalidArgument(f"invalid arg {name!r} for a queue of type {queue_type}")
        is_quorum = queue_type == "quorum"
        priority_max = _whole(arguments, "x-max-priority", 1) or 0
        if priority_max > PRIORITY_MAX:
            raise InvalidArgument(f"x-max-priority must be 1 to {PRIORITY_MAX}")
        ttl_ms = _whole(arguments, "x-message-ttl", 0)
        expires_ms = _whole(arguments, "x-expires", 1)
        rejects_publish = arguments.get("x-overflow") == "reject-publish"
        return cls(
            queue_type=queue_type,
            ttl_s=None if ttl_ms is None else ttl_ms / 1000,
            expires_s=None if expires_ms is None else expires_ms / 1000,
            length_max=_whole(arguments, "x-max-length", 0),
            bytes_max=_whole(arguments, "x-max-length-bytes", 0),
            rejects_publish=rejects_publish,
            dead_letter_exchange=arguments.get("x-dead-letter-exchange"),
            dead_letter_key=arguments.get("x-dead-letter-routing-key"),
            # RabbitMQ falls back to at most once, silently, when one of these is missing.
            keeps_dead_letters=is_quorum
            and rejects_publish
            and arguments.get("x-dead-letter-strategy") == "at-least-once",
            delivery_limit=_whole(arguments, "x-delivery-limit", 0) if is_quorum else None,
            single_active=bool(arguments.get("x-single-active-consumer", False)),
            priority_max=priority_max,
        )


def _whole(arguments: Mapping[str, Any], name: str, lowest: int) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise InvalidArgument(f"{name} must be a whole number of at least {lowest}, not {value!r}")
    return value


class Queue:
    """What all kinds of queues share: name, owner, consumers and when it was last used.

    ``owner`` is the connection of an exclusive queue, else ``None``. ``wake_at`` is when the
    vhost has booked to look at it again.
    """

    def __init__(
        self, name: str, raw: Mapping[str, Any], *, owner: object | None, now: float
    ) -> None:
        self.name = name
        self.raw_arguments = dict(raw)
        self.arguments = QueueArguments.parse(raw)
        self.owner = owner
        self.used_at = now
        self.wake_at: float | None = None
        self.consumers: deque[Consumer] = deque()
        self._positions = 0

    @property
    def ready(self) -> int:
        """How many messages a passive declare would tell of."""
        raise NotImplementedError

    def push(self, stored: Stored, now: float) -> None:
        """Take in a message that was published or dead-lettered to here."""
        raise NotImplementedError

    def hand_out(self, hand: Callable[[Consumer, Stored], None]) -> None:
        """Give what is ready to the consumers with credit, through ``hand``."""
        raise NotImplementedError

    def attach(self, consumer: Consumer, arguments: Mapping[str, Any]) -> None:
        """Add a consumer.

        Raises:
            AccessRefused: an exclusive consumer is in the way, or wants to be alone and is not.
            InvalidArgument: a consumer argument that the queue refuses.
        """
        consumer.queue = self
        self.consumers.append(consumer)

    def detach(self, consumer: Consumer, now: float) -> None:
        """Remove a consumer; what it holds stays unacknowledged."""
        if consumer in self.consumers:
            self.consumers.remove(consumer)
            self.used_at = now

    def renew(self, now: float) -> None:
        """A declare came by: it renews the expiry, but for quorum queues."""
        if self.arguments.queue_type == "classic":
            self.used_at = now

    def is_expired(self, now: float) -> bool:
        """Whether nobody has used it for its ``x-expires``."""
        idle_due = self._idle_due()
        return idle_due is not None and idle_due <= now

    def next_due(self) -> float | None:
        """When time will next do something here; ``None`` if never."""
        return self._idle_due()

    def _idle_due(self) -> float | None:
        expires_s = self.arguments.expires_s
        if expires_s is None or self.consumers:
            return None
        return self.used_at + expires_s

    def _next_position(self) -> int:
        self._positions += 1
        return self._positions


class _Lane:
    """Ready messages of one priority, by position.

    Fresh ones come in order and sit in a deque; the few that are given back sit in a heap.
    """

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Stored] = deque()
        self.returned: list[tuple[int, Stored]] = []

    def __len__(self) -> int:
        return len(self.fresh) + len(self.returned)

    def head(self) -> Stored | None:
        fresh, returned = self.fresh, self.returned
        if returned and (not fresh or returned[0][0] < fresh[0].position):
            return returned[0][1]
        return fresh[0] if fresh else None

    def pop(self) -> Stored:
        fresh, returned = self.fresh, self.returned
        if returned and (not fresh or returned[0][0] < fresh[0].position):
            return heapq.heappop(returned)[1]
        return fresh.popleft()

    def put_back(self, stored: Stored) -> None:
        heapq.heappush(self.returned, (stored.position, stored))

    def clear(self) -> list[Stored]:
        gone = [*(stored for _, stored in self.returned), *self.fresh]
        self.fresh.clear()
        self.returned.clear()
        return gone


class ReadyQueue(Queue):
    """A classic or quorum queue."""

    def __init__(
        self, name: str, raw: Mapping[str, Any], *, owner: object | None, now: float
    ) -> None:
        super().__init__(name, raw, owner=owner, now=now)
        if self.arguments.queue_type == "quorum" and owner is not None:
            raise InvalidArgument(f"the quorum queue {name!r} cannot be exclusive")
        # Highest priority first: the order in which they are handed out.
        self._lanes = [_Lane() for _ in range(self.arguments.priority_max + 1)]
        self._ready = 0
        self._bytes = 0

    @property
    def ready(self) -> int:
        return self._ready

    @property
    def is_full(self) -> bool:
        """Whether a publish is refused rather than the head dropped."""
        return self.arguments.rejects_publish and self._is_over(extra=1)

    def push(self, stored: Stored, now: float) -> None:
        stored.position = self._next_position()
        ttl_s = self.arguments.ttl_s
        stored.expires_at = None if ttl_s is None else now + ttl_s
        self._lane_of(stored).fresh.append(stored)
        self._ready += 1
        self._bytes += len(stored.message.body)

    def pop(self) -> Stored | None:
        """Take the head."""
        for lane in self._lanes:
            if lane:
                return self._pop(lane)
        return None

    def give_back(self, stored: Stored) -> bool:
        """Take back a message that was handed out, at its old place.

        Returns False if that was once too often: then it is the caller's to dead-letter.
        """
        stored.redelivered = True
        stored.returns += 1
        limit = self.arguments.delivery_limit
        if limit is not None and stored.returns > limit:
            return False
        if self.arguments.queue_type == "quorum":
            headers = {**stored.message.headers, _DELIVERY_COUNT: stored.returns}
            stored.message = msgspec.structs.replace(stored.message, headers=headers)
        self._lane_of(stored).put_back(stored)
        self._ready += 1
        self._bytes += len(stored.message.body)
        return True

    def hand_out(self, hand: Callable[[Consumer, Stored], None]) -> None:
        while self._ready:
            consumer = self._next_consumer()
            if consumer is None:
                return
            stored = self.pop()
            assert stored is not None, "a queue with ready messages has a head"
            hand(consumer, stored)

    def take_expired(self, now: float) -> list[Stored]:
        """Remove the expired messages at the head."""
        if self.arguments.ttl_s is None:
            return []
        gone = []
        for lane in self._lanes:
            while (head := lane.head()) is not None:
                if head.expires_at is None or head.expires_at > now:
                    break
                gone.append(self._pop(lane))
        return gone

    def take_overflow(self) -> list[Stored]:
        """Remove what is over the length limit, from the head."""
        gone: list[Stored] = []
        while self._ready and self._is_over(extra=0):
            stored = self.pop()
            assert stored is not None, "a queue with ready messages has a head"
            gone.append(stored)
        return gone

    def purge(self) -> list[Stored]:
        """Remove all ready messages."""
        self._ready = self._bytes = 0
        return [stored for lane in self._lanes for stored in lane.clear()]

    def attach(self, consumer: Consumer, arguments: Mapping[str, Any]) -> None:
        # Quorum queues accept "exclusive" and do not enforce it.
        if self.arguments.queue_type == "classic" and (
            (consumer.exclusive and self.consumers)
            or any(other.exclusive for other in self.consumers)
        ):
            raise AccessRefused(f"ACCESS_REFUSED - queue '{self.name}' in exclusive use")
        priority = arguments.get(_CONSUMER_PRIORITY, 0)
        if not isinstance(priority, int):
            raise InvalidArgument(f"{_CONSUMER_PRIORITY} is {priority!r}; it must be a number")
        consumer.priority = priority
        super().attach(consumer, arguments)

    def next_due(self) -> float | None:
        dues = [due for due in (self._idle_due(), self.message_due()) if due is not None]
        return min(dues, default=None)

    def message_due(self) -> float | None:
        """When the next message here expires; ``None`` if none will."""
        if self.arguments.ttl_s is None or not self._ready:
            return None
        heads = [lane.head() for lane in self._lanes]
        return min((head.expires_at for head in heads if head and head.expires_at), default=None)

    def _next_consumer(self) -> Consumer | None:
        consumers = self.consumers
        if self.arguments.single_active:
            # The one that came first is active; the next one takes over when it leaves.
            return consumers[0] if consumers and consumers[0].has_credit else None
        found = max(
            (one for one in consumers if one.has_credit), key=lambda one: one.priority, default=None
        )
        if found is not None:
            # Those of one priority take turns.
            consumers.remove(found)
            consumers.append(found)
        return found

    def _pop(self, lane: _Lane) -> Stored:
        stored = lane.pop()
        self._ready -= 1
        self._bytes -= len(stored.message.body)
        return stored

    def _is_over(self, *, extra: int) -> bool:
        length_max, bytes_max = self.arguments.length_max, self.arguments.bytes_max
        return (length_max is not None and self._ready + extra > length_max) or (
            bytes_max is not None and self._bytes + extra > bytes_max
        )

    def _lane_of(self, stored: Stored) -> _Lane:
        if len(self._lanes) == 1:
            return self._lanes[0]
        priority = min(stored.message.priority or 0, self.arguments.priority_max)
        return self._lanes[self.arguments.priority_max - priority]


class StreamQueue(Queue):
    """A stream: a log that is read and never emptied, but for its length limit."""

    def __init__(
        self, name: str, raw: Mapping[str, Any], *, owner: object | None, now: float
    ) -> None:
        super().__init__(name, raw, owner=owner, now=now)
        if owner is not None:
            raise InvalidArgument(f"the stream {name!r} cannot be exclusive")
        self._log: deque[Stored] = deque()
        self._first = 0
        self._bytes = 0

    @property
    def ready(self) -> int:
        return len(self._log)

    def push(self, stored: Stored, now: float) -> None:
        offset = self._first + len(self._log)
        headers = {**stored.message.headers, _STREAM_OFFSET: offset}
        stored.message = msgspec.structs.replace(stored.message, headers=headers)
        stored.position = offset
        self._log.append(stored)
        self._bytes += len(stored.message.body)
        bytes_max = self.arguments.bytes_max
        while bytes_max is not None and self._bytes > bytes_max and len(self._log) > 1:
            self._bytes -= len(self._log.popleft().message.body)
            self._first += 1

    def hand_out(self, hand: Callable[[Consumer, Stored], None]) -> None:
        end = self._first + len(self._log)
        for consumer in self.consumers:
            consumer.offset = max(consumer.offset, self._first)
            while consumer.offset < end and consumer.has_credit:
                stored = self._log[consumer.offset - self._first]
                consumer.offset += 1
                hand(consumer, stored)

    def attach(self, consumer: Consumer, arguments: Mapping[str, Any]) -> None:
        if consumer.prefetch == 0:
            raise InvalidArgument(
                f"PRECONDITION_FAILED - consumer prefetch count is not set for '{self.name}'"
            )
        consumer.offset = self._offset(arguments.get(_STREAM_OFFSET, "next"))
        super().attach(consumer, arguments)

    def _offset(self, wanted: object) -> int:
        end = self._first + len(self._log)
        match wanted:
            case "first":
                return self._first
            case "last":
                # RabbitMQ begins at the last chunk; here each message is a chunk of its own.
                return max(self._first, end - 1)
            case "next":
                return end
            case int() if not isinstance(wanted, bool) and wanted >= 0:
                return wanted
        raise InvalidArgument(
            f"{_STREAM_OFFSET} must be 'first', 'last', 'next' or an offset, not {wanted!r}"
        )


def make_queue(
    name: str, arguments: Mapping[str, Any], *, owner: object | None, now: float
) -> Queue:
    """A new, empty queue of the kind that ``arguments`` ask for."""
    is_stream = arguments.get("x-queue-type") == "stream"
    return (StreamQueue if is_stream else ReadyQueue)(name, arguments, owner=owner, now=now)
