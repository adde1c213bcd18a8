"""Shares: which of the tasks that wait is next, so that each key gets its fair share.

Rules of this file:

* pure, and no clock: time is *turns*. A key's turn says when it is next; a task that is dealt puts
  it off by one over the task's weight, and the least turn is next. So of two keys that have tasks
  waiting, one of twice the weight gets twice as many;
* priorities are strict, and each has turns of its own;
* who comes, or comes again, takes a turn now, or when it would have been its turn anyway: nobody
  saves up for later, and nobody gets more by coming and going;
* keys without a task are forgotten when their turn has passed, and the one whose turn is next is
  forgotten first when there are more than `KEYS_MAX`: memory does not grow with the keys seen.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

KEYS_MAX = 10_000
"""Keys of one priority that are remembered although none of their tasks waits here."""


@dataclass(frozen=True, slots=True)
class Far(Generic[T]):
    """A task whose turn is far away: so many turns of its priority from now."""

    item: T
    priority: int
    distance: float


@dataclass(slots=True)
class _Line(Generic[T]):
    """The tasks of one key, each with its weight, the turn of the first of them, and about how many
    turns they take together."""

    key: str
    turn: float
    waiting: deque[tuple[T, float]] = field(default_factory=deque)
    length: float = 0.0

    def turns(self) -> Iterator[float]:
        """The turns of all of them, if no other tasks come."""
        turn = self.turn
        for _, weight in self.waiting:
            yield turn
            turn += 1 / weight


class Shares(Generic[T]):
    """The tasks in hand; ``T`` is whatever stands for one."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._levels: dict[int, _Level[T]] = {}

    def __len__(self) -> int:
        """How many wait in hand."""
        return sum(len(level) for level in self._levels.values())

    @property
    def keys(self) -> int:
        """Keys that something is known of."""
        return sum(level.keys for level in self._levels.values())

    @property
    def best(self) -> int | None:
        """The best priority that has a task in hand; the least number is the best."""
        return min((p for p, level in self._levels.items() if len(level)), default=None)

    def turn(self, priority: int) -> float:
        """The turn that was dealt last at this priority."""
        level = self._levels.get(priority)
        return 0.0 if level is None else level.now

    def arrive(
        self, item: T, key: str, weight: float, priority: int, *, is_back: bool = False
    ) -> Far[T] | None:
        """A task comes. If others of its key were given away before it, it has to follow them:
        then it is returned.

        Args:
            weight: More than 0.
            is_back: It was given away, and comes back.
        """
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level(self._keys_max)
        distance = level.arrive(item, key, weight, is_back)
        return None if distance is None else Far(item, priority, distance)

    def deal(self) -> T | None:
        """The next one, which waits no more; ``None`` if none waits."""
        best = self.best
        return None if best is None else self._levels[best].deal()

    def spill(self, keep: int) -> list[Far[T]]:
        """All but the next ``keep`` tasks, those of one key in their order; they are given away."""
        spilled: list[Far[T]] = []
        for priority, level in sorted(self._levels.items()):
            if len(level) > keep:
                spilled += [Far(item, priority, far) for item, far in level.spill(keep)]
            keep = max(0, keep - len(level))
        return spilled

    def lane_returns(self) -> None:
        """What comes back from now on comes in the order in which it was given away."""
        for level in self._levels.values():
            level.again.clear()

    def all_are_back(self) -> None:
        """Nothing that was given away is away any more."""
        for level in self._levels.values():
            level.away.clear()

    def clear(self) -> list[T]:
        """All that wait; nobody does afterwards, and nothing is remembered."""
        waiting = [item for level in self._levels.values() for item in level.items()]
        self._levels.clear()
        return waiting


class _Level(Generic[T]):
    """One priority."""

    def __init__(self, keys_max: int) -> None:
        self.now = 0.0
        self.away: dict[str, float] = {}
        """How many turns the tasks take together that a key has given away,"""
        self.again: dict[str, float] = {}
        """and those of them that were given away since a lane returns: what comes back after them
        follows them."""
        self._keys_max = keys_max
        self._lines: dict[str, _Line[T]] = {}
        self._order: list[tuple[float, int, _Line[T]]] = []
        """A heap; a line whose tasks were all given away is still in it."""
        self._numbers = itertools.count()
        self._later: dict[str, float] = {}
        """The turns of keys that have no line."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> int:
        return len(self._lines) + len(self._later) + len(self.away)

    def items(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item, _ in line.waiting)

    def arrive(self, item: T, key: str, weight: float, is_back: bool) -> float | None:
        line = self._lines.get(key)
        before = (self.again if is_back else self.away).get(key)
        if before is not None:
            ahead = 0.0 if line is None else line.turn - self.now + line.length
            self._follow(key, 1 / weight, is_back)
            return ahead + before
        if is_back and key in self.away:
            left = self.away.pop(key) - 1 / weight
            if left > 1 / weight / 2:  # sums of fractions
                self.away[key] = left
        if line is None:
            turn = max(self.now, self._later.pop(key, self.now))
            line = self._lines[key] = _Line(key, turn)
            self._queue_up(line)
        line.waiting.append((item, weight))
        line.length += 1 / weight
        self._count += 1
        return None

    def _follow(self, key: str, length: float, is_back: bool) -> None:
        """One more goes away, behind those that have gone."""
        if is_back:
            self.again[key] += length
        else:
            self.away[key] += length

    def deal(self) -> T:
        line = heapq.heappop(self._order)[2]
        while not line.waiting:
            line = heapq.heappop(self._order)[2]
        item, weight = line.waiting.popleft()
        self._count -= 1
        self.now = max(self.now, line.turn)
        line.turn += 1 / weight
        line.length -= 1 / weight
        if line.waiting:
            self._queue_up(line)
        else:
            self._forget(line)
        return item

    def spill(self, keep: int) -> list[tuple[T, float]]:
        turns = sorted(turn for line in self._lines.values() for turn in line.turns())
        edge = turns[keep]
        at_edge = keep - sum(1 for turn in turns[:keep] if turn < edge)
        spilled: list[tuple[T, float]] = []
        for line in list(self._lines.values()):
            of_line = list(line.turns())
            stay = sum(1 for turn in of_line if turn < edge)
            if at_edge and stay < len(of_line) and of_line[stay] == edge:
                stay += 1
                at_edge -= 1
            gone = [line.waiting.pop() for _ in of_line[stay:]][::-1]
            far = zip(gone, of_line[stay:], strict=True)
            spilled += [(item, turn - self.now) for (item, _), turn in far]
            self._give_away(line, [weight for _, weight in gone])
        self._count -= len(spilled)
        self._order = [one for one in self._order if one[2].waiting]
        heapq.heapify(self._order)
        return spilled

    def _give_away(self, line: _Line[T], weights: list[float]) -> None:
        length = sum(1 / weight for weight in weights)
        line.length -= length
        for known in (self.away, self.again) if weights else ():
            if line.key in known or len(known) < self._keys_max:
                known[line.key] = known.get(line.key, 0.0) + length
        if not line.waiting:
            self._forget(line)

    def _queue_up(self, line: _Line[T]) -> None:
        heapq.heappush(self._order, (line.turn, next(self._numbers), line))

    def _forget(self, line: _Line[T]) -> None:
        del self._lines[line.key]
        if line.turn <= self.now:
            return
        self._later[line.key] = line.turn
        if len(self._later) > self._keys_max:
            # A quarter at a time, because all are looked at.
            turns = sorted(self._later.values())
            edge = max(self.now, turns[len(turns) // 4])
            self._later = {key: turn for key, turn in self._later.items() if turn > edge}
