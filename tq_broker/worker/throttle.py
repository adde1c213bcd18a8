"""How often heartbeat details of an attempt are passed on: a pure look at what was and what is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

THROTTLE_SHARE = 0.8
"""Of the heartbeat timeout: details are passed on at least this often."""


class Beating(Protocol):
    """An attempt: its last details, and those passed on, at ``saved_at`` (monotonic seconds)."""

    @property
    def heartbeat_ms(self) -> int: ...
    @property
    def details(self) -> Sequence[Any] | None: ...
    @property
    def saved(self) -> Sequence[Any] | None: ...
    @property
    def saved_at(self) -> float: ...


class Throttle:
    """See the module.

    Args:
        default: The interval for attempts without a heartbeat timeout.
        longest: The bound of every interval.
    """

    def __init__(self, default: timedelta, longest: timedelta) -> None:
        self._default_s = default.total_seconds()
        self._longest_s = longest.total_seconds()

    def is_due(self, attempt: Beating, now: float) -> bool:
        """Whether there is something new, and the last was passed on long enough ago."""
        if attempt.details is attempt.saved:
            return False
        heartbeat_ms = attempt.heartbeat_ms
        interval_s = THROTTLE_SHARE * heartbeat_ms / 1000 if heartbeat_ms else self._default_s
        return now - attempt.saved_at >= min(interval_s, self._longest_s)
