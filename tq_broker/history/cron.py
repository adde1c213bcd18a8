"""Cron schedules: when is the next time? In UTC.

Five fields (minute, hour, day of month, month, day of week with 0 and 7 for Sunday), each a ``*``,
a number, a name (``jan``, ``mon``), a range ``a-b``, any of them with a step ``/n``, or several
with commas; ``@hourly``, ``@daily``, ``@midnight``, ``@weekly``, ``@monthly``, ``@yearly``,
``@annually``; or ``@every 90s``, ``@every 1h30m``. If day of month and day of week are both
restricted, either will do, as in every cron.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from functools import lru_cache

import msgspec

from tq_broker.exceptions import InvalidArgument

_NAMED = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_EVERY = re.compile(r"@every\s+(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?")
_HORIZON = timedelta(days=9 * 366)
"""From one 29th of February to the next are at most eight years."""


class Field(msgspec.Struct, frozen=True):
    """One of the five."""

    name: str
    first: int
    last: int
    names: tuple[str, ...] = ()
    names_from: int = 0


_FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12, tuple(_MONTHS), 1),
    Field("day of week", 0, 7, tuple(_DAYS), 0),
)


class Schedule(msgspec.Struct, frozen=True):
    """A schedule, read. With ``every_ms`` it is counted from the start before; then nothing else
    counts. ``any_day``: a day of month or of week is enough."""

    minutes: frozenset[int] = frozenset()
    hours: frozenset[int] = frozenset()
    days: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()
    any_day: bool = False
    every_ms: int = 0


@lru_cache(maxsize=1024)
def read(text: str) -> Schedule:
    """Read a schedule. Raises `InvalidArgument`: it is none, or its time never comes."""
    every = _EVERY.fullmatch(text.strip())
    if every is not None:
        h, m, s = (int(part or 0) for part in every.groups())
        every_ms = ((h * 60 + m) * 60 + s) * 1000
        if not every_ms:
            raise InvalidArgument(f"cron_schedule {text!r}: the interval must be at least 1s")
        return Schedule(every_ms=every_ms)
    parts = _NAMED.get(text.strip(), text).split()
    if len(parts) != len(_FIELDS):
        raise InvalidArgument(f"cron_schedule {text!r} must have five fields, or be an @every")
    sets = [_read_field(part.lower(), field) for part, field in zip(parts, _FIELDS, strict=True)]
    minutes, hours, days, months, weekdays = sets
    schedule = Schedule(
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        any_day=not parts[2].startswith("*") and not parts[4].startswith("*"),
    )
    if _following(schedule, 0) is None:
        raise InvalidArgument(f"cron_schedule {text!r} never comes")
    return schedule


def _read_field(text: str, field: Field) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        if slash and not (step.isdecimal() and 0 < int(step[:9]) <= field.last):
            raise InvalidArgument(f"cron_schedule: {part!r} is not a {field.name}")
        first, last = _span(span, bool(slash), field)
        found.update(range(first, last + 1, int(step or 1)))
    return frozenset(found)


def _span(text: str, has_step: bool, field: Field) -> tuple[int, int]:
    if text == "*":
        return field.first, field.last
    low, dash, high = text.partition("-")
    first = _number(low, field)
    last = _number(high, field) if dash else (field.last if has_step else first)
    if first > last:
        raise InvalidArgument(f"cron_schedule: {text!r} is not a range of {field.name}")
    return first, last


def _number(text: str, field: Field) -> int:
    if text in field.names:
        return field.names.index(text) + field.names_from
    if text.isascii() and text.isdecimal() and len(text) <= 2:
        number = int(text)
        if field.first <= number <= field.last:
            return number
    raise InvalidArgument(f"cron_schedule: {text!r} is not a {field.name}")


def backoff_ms(text: str, started_ms: int, now_ms: int) -> int:
    """How long from ``now_ms`` to the next time, more than 0.

    Args:
        started_ms: When the run before began. Intervals are counted from there, and the time that
            it began at does not come again if the clock was set back since.

    Raises:
        InvalidArgument: see `read`.
    """
    schedule = read(text)
    if schedule.every_ms:
        return schedule.every_ms - max(0, now_ms - started_ms) % schedule.every_ms
    following = _following(schedule, max(now_ms, started_ms))
    assert following is not None, "a schedule that was read has a next time"
    return following - now_ms


def _following(schedule: Schedule, now_ms: int) -> int | None:
    """The first whole minute after ``now_ms`` that the schedule names."""
    now = datetime.fromtimestamp(now_ms // 1000, timezone.utc)
    at = now.replace(second=0, microsecond=0) + timedelta(minutes=1)
    end = at + _HORIZON
    while at < end:
        if at.month not in schedule.months:
            at = (at.replace(day=1, hour=0, minute=0) + timedelta(days=32)).replace(day=1)
        elif not _is_day(schedule, at):
            at = at.replace(hour=0, minute=0) + timedelta(days=1)
        elif at.hour not in schedule.hours:
            at = at.replace(minute=0) + timedelta(hours=1)
        elif at.minute not in schedule.minutes:
            at += timedelta(minutes=1)
        else:
            return int(at.timestamp()) * 1000
    return None


def _is_day(schedule: Schedule, at: datetime) -> bool:
    day = at.day in schedule.days
    weekday = at.isoweekday() % 7 in schedule.weekdays
    return day or weekday if schedule.any_day else day and weekday
