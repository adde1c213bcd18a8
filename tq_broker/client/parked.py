"""Parked messages as values: what an operator sees of one, and where it came from. Pure.

A worker that parks a message says so in headers (``tq-parked-reason``, ``-from``, ``-ms``,
``-by``). When RabbitMQ parks one itself, because it was handed out too often, ``x-death`` tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tq_broker.common import TIME_MS_MAX
from tq_broker.exceptions import InvalidArgument
from tq_broker.model import envelope
from tq_broker.model.message import Message
from tq_broker.model.names import QueueName
from tq_broker.queues.delay import destination_key

REASON, FROM, SINCE, BY = "tq-parked-reason", "tq-parked-from", "tq-parked-ms", "tq-parked-by"
TASK_QUEUE = "tq-task-queue"
DELIVERY_COUNT = "x-delivery-count"
"""How often a quorum queue has got a message back; not there for the first time."""
KEY_HEX = 12

_REASONS = {
    "delivery_limit": "handed out too often without an end (x-delivery-limit)",
    "rejected": "rejected by a consumer",
    "expired": "waited for too long",
    "maxlen": "the queue was full",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedMessage:
    """A message that waits for an operator.

    Attributes:
        key: What operators name it by: short, and the same each time one looks.
        task_queue: Where a replay puts it; ``None`` when that cannot be told any more.
        parked_ms: Wall-clock milliseconds since the epoch; 0 if unknown.
        origin: The queue it was in, empty if unknown.
    """

    key: str
    message_id: str
    type: str
    attempt: int
    task_queue: str | None
    reason: str
    parked_ms: int
    parked_by: str
    origin: str
    message: Message


def read_parked(message: Message, namespace: str, routing_key: str) -> ParkedMessage:
    """What ``message``, found in the parked queue under ``routing_key``, is."""
    headers = message.headers
    death = _last_death(headers)
    said_ms = _int(headers.get(SINCE)) or _int(death.get("time")) * 1000
    parked_ms = min(max(0, said_ms), TIME_MS_MAX)
    origin = _str(headers.get(FROM)) or _str(death.get("queue"))
    reason = _str(headers.get(REASON))
    if not reason:
        cause = _str(death.get("reason"))
        reason = _REASONS.get(cause, cause) or "unknown"
    return ParkedMessage(
        key=_key(message, parked_ms, origin),
        message_id=message.message_id,
        type=_str(headers.get("tq-activity-type")) or message.kind,
        attempt=_int(headers.get("tq-attempt")) or 1,
        task_queue=_task_queue(message, namespace, origin, routing_key),
        reason=reason,
        parked_ms=parked_ms,
        parked_by=_str(headers.get(BY)) or ("RabbitMQ" if death else ""),
        origin=origin,
        message=message,
    )


def fresh(message: Message) -> Message:
    """``message`` as it was before it was parked, to be sent again."""
    return envelope.without_route(_without(message, REASON, FROM, SINCE, BY, DELIVERY_COUNT))


def renewed(parked: ParkedMessage) -> Message:
    """A copy to be parked anew: RabbitMQ's own marks become ours, and its counts begin again."""
    marks: dict[str, Any] = {REASON: parked.reason, SINCE: parked.parked_ms}
    if parked.origin:
        marks[FROM] = parked.origin
    if parked.parked_by:
        marks[BY] = parked.parked_by
    if parked.task_queue:
        # The routing key told it, which the copy will not have.
        marks[TASK_QUEUE] = parked.task_queue
    copy = _without(parked.message, DELIVERY_COUNT)
    return msgspec.structs.replace(copy, headers={**copy.headers, **marks})


def _without(message: Message, *names: str) -> Message:
    copy = envelope.forwarded(message)
    headers = {name: value for name, value in copy.headers.items() if name not in names}
    return msgspec.structs.replace(copy, headers=headers)


def _key(message: Message, parked_ms: int, origin: str) -> str:
    about = f"{message.message_id}\0{parked_ms}\0{origin}\0".encode("utf-8", "replace")
    return hashlib.blake2b(about + message.body, digest_size=KEY_HEX // 2).hexdigest()


def _task_queue(message: Message, namespace: str, origin: str, routing_key: str) -> str | None:
    """The first clue that names a task queue of this namespace."""
    if envelope.RULE in message.headers:  # a traffic rule had brought it to where it was parked
        return _str(message.headers.get(TASK_QUEUE)) or None
    death = _last_death(message.headers)
    keys = death.get("routing-keys")
    first = _str(keys[0]) if isinstance(keys, list) and keys else ""

    def from_key(key: str) -> QueueName:
        return QueueName.from_key(namespace, key)

    for queue in (
        _queue(origin, QueueName.parse),
        _queue(destination_key(first), from_key),
        _queue(destination_key(routing_key), from_key),
    ):
        if queue and queue.namespace == namespace and queue.task_queue is not None:
            return queue.task_queue
    return _str(message.headers.get(TASK_QUEUE)) or None


def _queue(text: str, read: Callable[[str], QueueName]) -> QueueName | None:
    try:
        return read(text)
    except InvalidArgument:
        return None


def _last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    deaths = headers.get("x-death")
    newest = deaths[0] if isinstance(deaths, list) and deaths else None
    return newest if isinstance(newest, Mapping) else {}


def _str(value: object) -> str:
    return value if isinstance(value, str) else ""


def _int(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
