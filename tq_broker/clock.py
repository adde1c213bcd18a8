"""Time: the only module that tells it.

Everything that decides takes ``now`` as a value; everything that acts is handed a `Clock`.
Deadlines are seconds on the *monotonic* clock of this process and never leave it; what
travels between machines is wall-clock milliseconds since the epoch.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

SWEEP_FROM = 1000
"""So many bookings of a `SystemClock` are looked through for those that were cancelled."""


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
        self.callback = _nothing  # It may be long until nobody knows of this booking any more.


def _nothing() -> None:
    """What is left of a booking that was cancelled."""


class SystemClock:
    """The machine's clock.

    Bookings are made by one daemon thread, ``tq-clock``, which starts with the first booking
    and ends with the process; a process without bookings has no such thread. A forked child begins
    without those of its parent.
    """

    def __init__(self) -> None:
        self._count = itertools.count()
        self._clear()
        _clocks.add(self)

    def _clear(self) -> None:
        """Forget all bookings, of which the thread that would call them is gone."""
        self._heap: list[tuple[float, int, _Booking]] = []
        self._sweep_at = SWEEP_FROM
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
            if len(self._heap) >= self._sweep_at:
                self._sweep()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="tq-clock", daemon=True)
                self._thread.start()
            if self._heap[0][2] is booking:  # else the thread wakes early enough by itself
                self._changed.notify()
        return booking

    def _sweep(self) -> None:
        """Let go of what was cancelled: it would stay until its time, which may be days away."""
        self._heap = [one for one in self._heap if not one[2].cancelled]
        heapq.heapify(self._heap)
        self._sweep_at = max(SWEEP_FROM, 2 * len(self._heap))

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


_clocks: weakref.WeakSet[SystemClock] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for clock in list(_clocks):
        clock._clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def remaining(clock: Clock, deadline: float) -> float:
    """Seconds left until ``deadline``, never negative."""
    return max(0.0, deadline - clock.monotonic())


def epoch_ms(clock: Clock) -> int:
    """Wall-clock milliseconds since the epoch, the unit of every time on the wire."""
    return round(clock.wall() * 1000)
