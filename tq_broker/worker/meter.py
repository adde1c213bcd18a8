"""A meter: how often something happened lately, per second. Pure; not thread-safe.

The field's figures of a task queue are averages over half a minute, so that is what a meter keeps:
a count for each of the last seconds, however much happens.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW_S = 30


class Meter:
    """Counts, and forgets what is older than `WINDOW_S`.

    Args:
        now: When it begins to count, in monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._since = now
        self._seconds: deque[list[int]] = deque()
        """Pairs of a second and its count, oldest first."""
        self.total = 0

    def count(self, now: float) -> None:
        """It has happened."""
        self.total += 1
        second = math.floor(now)
        if self._seconds and self._seconds[-1][0] >= second:
            self._seconds[-1][1] += 1
        else:
            self._seconds.append([second, 1])
            self._forget(second)

    def per_second(self, now: float) -> float:
        """The average over the last `WINDOW_S`, or since the meter was made if that is less; what
        happened within the first second counts as if it had lasted so long."""
        second = math.floor(now)
        self._forget(second)
        begin = max(self._since, float(second - WINDOW_S + 1))
        return sum(count for _, count in self._seconds) / max(1.0, now - begin)

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - WINDOW_S:
            self._seconds.popleft()
