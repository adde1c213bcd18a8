"""Who puts a clock forward, while somebody wants that and nothing is under way.

Rules of this file: it never goes past what comes next, nor past the time that a sleeper waits for;
it looks again and again instead of being told, because nobody else should know of it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator

from tq_broker.testing.skipping_clock import SkippingClock

LOOK_S = 0.001

NextDue = Callable[[], float | None]
"""The monotonic time of what comes next, infinity if nothing will; ``None`` while something is
under way."""


class TimeSkipper:
    """Works on a thread of its own, ``tq-time-skipper``, from `start` to `close`. Thread-safe."""

    def __init__(self, clock: SkippingClock, next_due: NextDue) -> None:
        self._clock = clock
        self._next_due = next_due
        self._changed = threading.Condition()
        self._waiting = 0
        self._disabled = 0
        self._sleepers: list[float] = []
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="tq-time-skipper", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Skip nothing any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def begin_wait(self) -> None:
        """Somebody waits for what only comes with time; `end_wait` must follow."""
        with self._changed:
            self._waiting += 1
            self._changed.notify()

    def end_wait(self) -> None:
        """Somebody waits no more."""
        with self._changed:
            self._waiting -= 1

    @contextlib.contextmanager
    def sleeping(self, until: float) -> Iterator[None]:
        """A block in which somebody waits for a time, also while skipping is `disabled`."""
        with self._changed:
            self._sleepers.append(until)
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._sleepers.remove(until)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """A block in which no time is skipped for those who wait."""
        with self._changed:
            self._disabled += 1
        try:
            yield
        finally:
            with self._changed:
                self._disabled -= 1
                self._changed.notify()

    def step(self) -> None:
        """Go to what comes next, if that is wanted and nothing is under way."""
        due = self._next_due()
        with self._changed:
            if due is None or not self._is_wanted():
                return
            until = min([due, *self._sleepers])
        if not math.isinf(until):
            self._clock.skip(max(0.0, until - self._clock.monotonic()))

    def _is_wanted(self) -> bool:
        return bool(self._sleepers) or (self._waiting > 0 and not self._disabled)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._is_wanted())
                if self._is_closed:
                    return
            self.step()
            with self._changed:
                self._changed.wait(LOOK_S)
