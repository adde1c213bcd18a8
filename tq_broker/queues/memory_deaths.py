"""Dead letters of the in-memory vhost: what RabbitMQ writes on a message that leaves a queue.

Rules of this file:

* pure: messages in, messages out;
* the header ``x-death`` is a list with the latest death first, one entry per (queue, reason);
  the others follow in order (3.10 mixes them up);
* a message that comes back to a queue by itself, without a rejection on the way, goes round in
  a cycle and is dropped (all versions; 3.10 also believes the ``x-death`` of a client).
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from tq_broker.model.message import Message

X_DEATH = "x-death"


class Reason(enum.Enum):
    """Why a message was dead-lettered. The value is RabbitMQ's word."""

    EXPIRED = "expired"
    REJECTED = "rejected"
    MAXLEN = "maxlen"
    DELIVERY_LIMIT = "delivery_limit"


class Death(msgspec.Struct, frozen=True):
    """One leaving of a queue: from where, why, and how the message had come there."""

    queue: str
    reason: Reason
    exchange: str
    routing_key: str
    time_s: int
    """Seconds since the epoch."""


def with_death(message: Message, death: Death) -> Message:
    """``message`` as it is dead-lettered: one more entry in ``x-death``, or one counted up."""
    count = 1
    others = []
    for entry in deaths_of(message):
        if entry.get("queue") == death.queue and entry.get("reason") == death.reason.value:
            told = entry.get("count")
            count += told if isinstance(told, int) else 0
        else:
            others.append(entry)
    latest: dict[str, Any] = {
        "count": count,
        "reason": death.reason.value,
        "queue": death.queue,
        "time": death.time_s,
        "exchange": death.exchange,
        "routing-keys": [death.routing_key],
    }
    headers = dict(message.headers)
    headers[X_DEATH] = [latest, *others]
    headers.setdefault("x-first-death-queue", death.queue)
    headers.setdefault("x-first-death-reason", death.reason.value)
    headers.setdefault("x-first-death-exchange", death.exchange)
    return msgspec.structs.replace(message, headers=headers)


def is_cycle(message: Message, queue: str) -> bool:
    """Whether ``message`` has been in ``queue`` before and came back without a rejection."""
    for entry in deaths_of(message):
        if entry.get("reason") == Reason.REJECTED.value:
            return False
        if entry.get("queue") == queue:
            return True
    return False


def deaths_of(message: Message) -> list[dict[str, Any]]:
    """The entries of ``x-death``, latest first; what is not a table is left out."""
    value = message.headers.get(X_DEATH)
    if not isinstance(value, list):
        return []
    return [entry for entry in value if isinstance(entry, dict)]
