"""A clock that goes with the machine's, and can be put forward.

Rules of this file: what was booked for the time that is skipped is called at once, in the order of
its times, on the real clock's thread, and sees the time after the skip, as if this machine had been
asleep. So a task that books itself again every second is called once, not once for each second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tq_broker.clock import Clock, SystemClock, Timer
from tq_broker.exceptions import InvalidArgument


class _Booking:
    __slots__ = ("callback", "clock", "deadline", "timer")

    def __init__(self, clock: SkippingClock, deadline: float, callback: Callable[[], None]) -> None:
        self.clock = clock
        self.deadline = deadline
        self.callback = callback
        self.timer: Timer | None = None

    def cancel(self) -> None:
        self.clock.take(self)

    def fire(self) -> None:
        if self.clock.take(self):
            self.callback()


class SkippingClock:
    """A `tq_broker.clock.Clock`. Thread-safe.

    Args:
        real: The clock that it goes with; ``None`` is the machine's.
    """

    def __init__(self, real: Clock | None = None) -> None:
        self._real = real or SystemClock()
        self._skipped_s = 0.0
        self._lock = threading.Lock()
        self._bookings: set[_Booking] = set()

    def monotonic(self) -> float:
        return self._real.monotonic() + self._skipped_s

    def wall(self) -> float:
        return self._real.wall() + self._skipped_s

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass; a skip shortens it."""
        over = threading.Event()
        self.call_at(self.monotonic() + seconds, over.set)
        over.wait()

    def call_at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        booking = _Booking(self, deadline, callback)
        with self._lock:
            self._bookings.add(booking)
            self._book_locked(booking)
        return booking

    def skip(self, seconds: float) -> None:
        """Be ``seconds`` later from now on.

        Raises:
            InvalidArgument: ``seconds`` is negative.
        """
        if seconds < 0:
            raise InvalidArgument(f"seconds must not be negative, not {seconds}")
        with self._lock:
            self._skipped_s += seconds
            for booking in sorted(self._bookings, key=lambda booking: booking.deadline):
                assert booking.timer is not None, "it was booked when it was added"
                booking.timer.cancel()
                self._book_locked(booking)

    def take(self, booking: _Booking) -> bool:
        """Strike a booking off; False if it was called or cancelled already."""
        with self._lock:
            if booking not in self._bookings:
                return False
            self._bookings.remove(booking)
            assert booking.timer is not None, "it was booked when it was added"
            booking.timer.cancel()
            return True

    def _book_locked(self, booking: _Booking) -> None:
        # A skip may come while the real clock is calling: then `take` lets only one of both calls.
        booking.timer = self._real.call_at(booking.deadline - self._skipped_s, booking.fire)
