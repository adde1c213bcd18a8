"""A clock that stands still until it is told to go on.

Rules of this file:

* bookings are called inside `ManualClock.advance`, on the thread that calls it, in the order of
  their times (those for the same time in the order of booking);
* while a booking is called the clock shows the time it was booked for;
* two threads do not advance at once: the second one waits for the first.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

from tq_broker.exceptions import InvalidArgument

_DIGITS = 9
"""Times are compared in nanoseconds: ten advances of 0.1 s are one of 1 s."""


class ManualTimer:
    """A call that has been booked."""

    __slots__ = ("callback", "is_cancelled")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualClock:
    """A `tq_broker.clock.Clock` for tests and simulations."""

    def __init__(self, *, monotonic: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._now = monotonic
        self._wall_at_zero = wall - monotonic
        self._heap: list[tuple[float, int, ManualTimer]] = []
        self._count = itertools.count()
        self._guard = threading.Lock()
        self._advancing = threading.RLock()

    def monotonic(self) -> float:
        return self._now

    def wall(self) -> float:
        return round(self._wall_at_zero + self._now, 6)

    def sleep(self, seconds: float) -> None:
        """Advance: whoever sleeps is the one who lets time pass."""
        self.advance(max(0.0, seconds))

    def call_at(self, deadline: float, callback: Callable[[], None]) -> ManualTimer:
        """Book ``callback``. What is booked for a time that is over is called by the next
        `advance`, never at once.
        """
        timer = ManualTimer(callback)
        with self._guard:
            heapq.heappush(self._heap, (deadline, next(self._count), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, and call what was booked for them.

        Bookings may book and may advance themselves.

        Raises:
            InvalidArgument: ``seconds`` is negative.
        """
        if seconds < 0:
            raise InvalidArgument(f"seconds must not be negative, not {seconds}")
        with self._advancing:
            end = round(self._now + seconds, _DIGITS)
            while (timer := self._next_until(end)) is not None:
                timer.callback()
            with self._guard:
                self._now = max(self._now, end)

    @property
    def next_booking(self) -> float | None:
        """The monotonic time of the earliest booking; ``None`` if there is none."""
        with self._guard:
            self._drop_cancelled()
            return self._heap[0][0] if self._heap else None

    def _next_until(self, end: float) -> ManualTimer | None:
        with self._guard:
            self._drop_cancelled()
            if not self._heap or round(self._heap[0][0], _DIGITS) > end:
                return None
            deadline, _, timer = heapq.heappop(self._heap)
            self._now = max(self._now, deadline)
            return timer

    def _drop_cancelled(self) -> None:
        while self._heap and self._heap[0][2].is_cancelled:
            heapq.heappop(self._heap)
