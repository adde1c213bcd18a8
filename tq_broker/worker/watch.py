"""Which running attempts are overdue: a pure look at their deadlines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

from tq_broker.exceptions import TimeoutType


class Timed(Protocol):
    """What has deadlines, in monotonic seconds; ``None`` means no such deadline."""

    @property
    def close_at(self) -> float | None: ...
    @property
    def close_type(self) -> TimeoutType: ...
    @property
    def heartbeat_at(self) -> float | None: ...


T = TypeVar("T", bound=Timed)


def overdue(attempts: Iterable[T], now: float) -> list[tuple[T, TimeoutType]]:
    """The attempts with a deadline at or before ``now``, and which timeout that is."""
    found: list[tuple[T, TimeoutType]] = []
    for attempt in attempts:
        if attempt.close_at is not None and attempt.close_at <= now:
            found.append((attempt, attempt.close_type))
        elif attempt.heartbeat_at is not None and attempt.heartbeat_at <= now:
            found.append((attempt, TimeoutType.HEARTBEAT))
    return found
