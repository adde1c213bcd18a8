"""Limits of a task queue: how fast, and how many at once, its tasks are begun.

Rules of this file:

* a limit is a rate with its burst, or a concurrency; what is ``None`` has no bound;
* the burst is how many may be begun at once after a quiet time. The stock of permits is exactly
  the burst, so no window of time sees more than ``rate * window + burst``;
* a zero is refused: it looks like a slip of the pen and stops everything. To stop a task queue one
  pauses it.
"""

from __future__ import annotations

import enum
import math

import msgspec

from tq_broker.exceptions import InvalidArgument

RATE_MIN = 0.001
"""Tasks per second: one in about a quarter of an hour."""
RATE_MAX = 10_000.0
BURST_MAX = 20_000
"""Each is a message that RabbitMQ keeps."""
CONCURRENCY_MAX = 10_000
SETTLE_S = 1.5
"""So long nothing begins when a concurrency is limited that was not before: then all workers know
of it, and what runs already is counted."""


class Side(enum.Enum):
    """Which of the two sides of a task queue is meant. The value is the word in names."""

    ACTIVITY = "activity"
    WORKFLOW = "workflow"


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is in force for one side of a task queue.

    Attributes:
        rate: Tasks per second, of all workers together.
        burst: ``None`` means `default_burst`.
        concurrency: Tasks that run at a time, of all workers together.
    """

    rate: float | None = None
    burst: int | None = None
    concurrency: int | None = None

    @property
    def is_unlimited(self) -> bool:
        """Whether nothing has a bound."""
        return self.rate is None and self.concurrency is None

    @property
    def burst_size(self) -> int:
        """The burst in force; 0 without a rate."""
        if self.rate is None:
            return 0
        return default_burst(self.rate) if self.burst is None else self.burst


UNLIMITED = Limits()


def default_burst(rate: float) -> int:
    """What comes in a second, and one.

    The one is spare: the next permit is there before the last one was used, so that what a start
    takes on the wire costs no rate. Where a permit comes every two seconds or less often that is
    nothing, and two tasks at once would be much.
    """
    return 1 if rate <= 0.5 else 1 + math.ceil(rate)


def check_rate(value: object, name: str = "rate") -> float:
    """Return ``value`` if it can be a rate, else raise `InvalidArgument` for ``name``."""
    bounds = f"it must be from {RATE_MIN:g} to {RATE_MAX:g} tasks per second"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(f"{name} is {value!r}; {bounds}")
    if value == 0:
        raise InvalidArgument(f"{name} is 0; {bounds}; to stop a task queue, pause it")
    # Also says no to NaN, which compares with nothing.
    if not RATE_MIN <= value <= RATE_MAX:
        raise InvalidArgument(f"{name} is {value:g}; {bounds}")
    return float(value)


def check_burst(value: object) -> int:
    """Return ``value`` if it can be a burst, else raise `InvalidArgument`."""
    return _whole("burst", value, BURST_MAX)


def check_concurrency(value: object) -> int:
    """Return ``value`` if it can be a concurrency, else raise `InvalidArgument`."""
    return _whole("concurrency", value, CONCURRENCY_MAX)


def check_limits(limits: Limits) -> Limits:
    """Return ``limits`` if they can be in force, else raise `InvalidArgument`."""
    if not isinstance(limits, Limits):
        raise InvalidArgument(f"the new limits are {limits!r}; they must be Limits(...)")
    if limits.rate is not None:
        check_rate(limits.rate)
    elif limits.burst is not None:
        raise InvalidArgument("burst is given without a rate that it could belong to")
    if limits.burst is not None:
        check_burst(limits.burst)
    if limits.concurrency is not None:
        check_concurrency(limits.concurrency)
    return limits


def _whole(name: str, value: object, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        hint = "; to stop a task queue, pause it" if value == 0 else ""
        raise InvalidArgument(f"{name} is {value!r}; it must be from 1 to {most}{hint}")
    return value
