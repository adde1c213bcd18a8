"""The reserve: the permits of one limit that rest in the bank, and when which one may go out.

Rules of this file:

* pure: ``now`` (seconds, on whatever clock) comes in as a value;
* ``total`` permits were made; those that do not rest here are *out*: somebody has them, or may take
  them. None goes out while ``size`` are out. A limit that shrinks leaves more out than that, and
  they come back one by one;
* of a concurrency what may go out goes at once;
* of a rate the permits are a bucket with ``size`` places: one goes out each ``1/rate`` seconds, on
  a grid and not after the one before, so that a late one delays no other. Those that are out have
  not been used. When ``size`` are out the bucket is full and its time stands still: the next one
  goes out ``1/rate`` seconds after the first was used;
* what is out and what is overdue are together never more than ``size``, also when nobody has looked
  here for long: each use that comes back forgets what had become overdue beyond that.

Hence no window of time sees more than ``rate * window + size`` uses, and a backlog is served at
exactly the rate as long as the reserve is not empty: as long as a use comes back within the time in
which the other permits go out.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Reserve(Generic[T]):
    """Permits at rest, by rank; ``T`` is whatever stands for one.

    Args:
        size: How many may be out: the burst of a rate, or a concurrency.
        total: How many were made.
        rate: Per second; ``None`` for a concurrency.
        due: None goes out before.
    """

    def __init__(self, size: int, total: int, rate: float | None, due: float) -> None:
        self.size = size
        self.total = total
        self.rate = rate
        self.due = due
        self._ranks: list[int] = []
        self._resting: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._resting)

    def __contains__(self, rank: int) -> bool:
        return rank in self._resting

    @property
    def interval(self) -> float:
        """Seconds from one permit to the next."""
        return 0.0 if self.rate is None else 1.0 / self.rate

    def resize(self, size: int, rate: float | None, now: float) -> None:
        """The limit is another one from now on."""
        self.size, self.rate = size, rate
        # Nobody waits for a permit of the slower rate before; and a grid that began long ago must
        # not let the new one catch up on it.
        self.due = min(max(self.due, now), now + self.interval)

    def put(self, rank: int, permit: T, now: float, *, was_here: bool = False) -> None:
        """A permit has come back.

        Args:
            was_here: It rested in the bank before, and nobody has used it.
        """
        if not was_here:
            self._forget_overdue(now)
        heapq.heappush(self._ranks, rank)
        self._resting[rank] = permit

    def refund(self, share: float, now: float) -> None:
        """Of a permit that has come back as used, ``share`` was not."""
        self.due -= share * self.interval
        self._forget_overdue(now)

    def _forget_overdue(self, now: float) -> None:
        """No more is overdue than there are places in the bucket."""
        room = max(0, self.size - self.out)
        self.due = max(self.due, now + self.interval * (1 - room))

    @property
    def out(self) -> int:
        """How many do not rest here."""
        return self.total - len(self._resting)

    @property
    def ready(self) -> int:
        """How many may go out as soon as it is time."""
        return max(0, min(self.size - self.out, len(self._resting)))

    def take(self, now: float, until: float | None = None) -> list[T]:
        """The permits that go out now.

        Args:
            until: No further than that `due` is this afterwards; ``None`` sets no such bound.
        """
        gone = []
        latest = float("inf") if until is None else until - self.interval * (1 - 1e-6)
        while self.ready and (self.rate is None or (now >= self.due and self.due <= latest)):
            gone.append(self._resting.pop(heapq.heappop(self._ranks)))
            self.due += self.interval
        return gone

    def count_due(self, now: float) -> int:
        """How many `take` would let out now."""
        if self.rate is None:
            return self.ready
        if now < self.due:
            return 0
        return min(self.ready, 1 + int((now - self.due) * self.rate))

    def empty(self) -> list[T]:
        """All that rest here; none does afterwards."""
        gone = list(self._resting.values())
        self._resting.clear()
        self._ranks.clear()
        return gone

    def next_due(self) -> float | None:
        """When the next one goes out; ``None``: when one comes back."""
        return self.due if self.ready else None
