"""Time: the only module that tells it.

Everything that decides takes ``now`` as a value; everything that acts is handed a `Clock`.
Deadlines are seconds on the *monotonic* clock of this process and never leave it; what
travels between machines is wall-clock milliseconds since the epoch.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that has been booked."""

    def cancel(self) -> None:
        """Do not make the call. Harmless when it was made already."""


class Clock(Protocol):
    """What the acting modules may ask about time."""

    def monotonic(self) -> float:
        """Seconds that only grow; the zero is arbitrary."""

    def wall(self) -> float:
        """Seconds since the epoch, as this machine believes."""

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Book ``callback`` for the monotonic time ``deadline``.

        It is called on the clock's own thread: it must be short and must not raise.
        """


class _Booking:
    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class SystemClock:
    """The machine's clock.

    Bookings are made by one daemon thread, ``tq-clock``, which starts with the first booking
    and ends with the process; a process without bookings has no such thread.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Booking]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        booking = _Booking(callback)
        with self._changed:
            heapq.heappush(self._heap, (deadline, next(self._count), booking))
            # A thread does not survive a fork, so "started once" is not "alive now".
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="tq-clock", daemon=True)
                self._thread.start()
            if self._heap[0][2] is booking:  # else the thread wakes early enough by itself
                self._changed.notify()
        return booking

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._heap:
                    self._changed.wait()
                due, _, booking = self._heap[0]
                wait_s = due - time.monotonic()
                if wait_s > 0 and not booking.cancelled:
                    self._changed.wait(wait_s)
                    continue
                heapq.heappop(self._heap)
            if not booking.cancelled:
                booking.callback()


def remaining(clock: Clock, deadline: float) -> float:
    """Seconds left until ``deadline``, never negative."""
    return max(0.0, deadline - clock.monotonic())


def epoch_ms(clock: Clock) -> int:
    """Wall-clock milliseconds since the epoch, the unit of every time on the wire."""
    return round(clock.wall() * 1000)
