"""The pace of one worker: a bucket of starts, filled at a rate. Pure; not thread-safe."""

from __future__ import annotations


class Pace:
    """At most ``rate * window + burst`` starts in any window of time.

    Args:
        rate: Starts per second.
        burst: Places in the bucket, which is full at first.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self._level = float(burst)
        self._at: float | None = None

    def available(self, now: float) -> int:
        """How many may be taken now."""
        if self._at is not None:
            passed = max(0.0, now - self._at)
            self._level = min(float(self.burst), self._level + passed * self.rate)
        self._at = now if self._at is None else max(now, self._at)
        # A sum of many small steps must not fall short of a whole by its rounding.
        return max(0, int(self._level + 1e-9))

    def take(self, count: int = 1) -> None:
        """``count`` of those available are used."""
        self._level -= count

    def give_back(self, count: int = 1) -> None:
        """``count`` of those taken were not used."""
        self._level = min(float(self.burst), self._level + count)

    def next_at(self, now: float) -> float:
        """When one is available."""
        if self.available(now):
            return now
        return now + (1.0 - self._level) / self.rate
