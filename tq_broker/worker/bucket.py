"""A bucket: what the limits of one part of a task queue allow now.

Rules of this file, which are those of `tq_broker.worker.reserve` for permits that nobody keeps:

* pure: ``now`` (seconds, on whatever clock) comes in as a value;
* leave that was taken is *out* until its task begins. What is out and what is left are together
  never more than the burst; when they are the burst, the time of the bucket stands still. Hence
  no window of time sees more than ``rate * window + burst`` begins, however long a task is on its
  way to them;
* of a concurrency leave is in use until its task has ended.
"""

from __future__ import annotations

from tq_broker.model.limits import Limits


class Bucket:
    """The state of the limits of one part.

    Args:
        since: When nothing was saved up and nothing out; what has come in since is in it.
    """

    def __init__(self, limits: Limits, since: float, now: float) -> None:
        self.limits = limits
        self.held_until = float("-inf")
        """Nothing may be taken before, whatever is in it."""
        self.left = 0
        self.out = 0
        self.running = 0
        self.due = since
        self._begin(since)
        self._fill(now)

    def _begin(self, now: float) -> None:
        self.due = now + (0.0 if self.limits.rate is None else 1.0 / self.limits.rate)

    def change(self, limits: Limits, now: float) -> None:
        """Other limits are in force from now on; they begin with nothing saved up."""
        if limits != self.limits:
            self.limits, self.left = limits, 0
            self._begin(now)

    def _fill(self, now: float) -> None:
        rate = self.limits.rate
        room = self.limits.burst_size - self.out - self.left
        if rate is None or room <= 0 or now < self.due:
            return
        # Not less than one: a rounding must not make what is due wait.
        count = min(room, 1 + int((now - self.due) * rate))
        self.left += count
        self.due += count / rate

    def has_room(self, now: float) -> bool:
        """Whether one may be taken now."""
        self._fill(now)
        concurrency = self.limits.concurrency
        return (
            now >= self.held_until
            and (self.limits.rate is None or self.left > 0)
            and (concurrency is None or self.running < concurrency)
        )

    def next_at(self, now: float) -> float | None:
        """When that may change by time alone; ``None``: only by a begin or an end."""
        if now < self.held_until:
            return self.held_until
        self._fill(now)
        is_waiting = self.limits.rate is not None and not self.left
        return self.due if is_waiting and self.out < self.limits.burst_size else None

    def take(self) -> None:
        """Leave is given; only if there `has_room`."""
        if self.limits.rate is not None:
            self.left -= 1
        self.out += 1
        self.running += 1

    def restore(self) -> None:
        """Leave was given by somebody else, before this began."""
        self.out += 1
        self.running += 1

    def begun(self, now: float) -> None:
        """A task has begun with its leave."""
        self._fill(now)
        if self.limits.rate is not None and self.out + self.left >= self.limits.burst_size:
            self.due = max(self.due, now + 1.0 / self.limits.rate)
        self.out -= 1

    def unused(self) -> None:
        """Leave comes back as it was."""
        self.out -= 1
        self.running -= 1
        if self.out + self.left < self.limits.burst_size:
            self.left += 1

    def ended(self) -> None:
        """A task that had begun has ended."""
        self.running -= 1

    def is_fresh(self, now: float) -> bool:
        """Whether it says no more than a new one would."""
        self._fill(now)
        is_full = self.left >= self.limits.burst_size
        return not self.out and not self.running and is_full and now >= self.held_until
