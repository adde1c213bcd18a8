"""Time as a workflow sees it: that of its current workflow task. It stands still in between."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from tq_broker.workflow.runtime import current

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def now() -> datetime:
    """The time, aware and in UTC."""
    return _EPOCH + timedelta(milliseconds=current().now_ms)


def time() -> float:
    """The same in seconds since the epoch."""
    return current().now_ms / 1000


def time_ns() -> int:
    """The same in nanoseconds since the epoch."""
    return current().now_ms * 1_000_000
