"""The anteroom: tasks that wait for the limits of their part, and which of them go in now.

Rules of this file:

* pure: ``now`` (seconds, on whatever clock) comes in as a value;
* tasks of one type, key and priority (and of one fairness key) stand in one *line*, in order of
  arrival. A line waits at one bucket at a time, the first that has no room for it; of the lines at
  one bucket those of the best priority go first, and take turns;
* whoever is let in takes from all its buckets at once, or from none;
* a bucket that says no more than a new one would is forgotten, so memory does not grow with the
  keys seen: a new bucket is one that nothing was taken from since the room was opened, or since
  limits were changed.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tq_broker.model.parts import EACH_KEY, Part, PartKind, PartTable
from tq_broker.worker.bucket import Bucket

T = TypeVar("T")


@dataclass(slots=True)
class _Line(Generic[T]):
    """Tasks of one type, key and priority."""

    name: tuple[str, str, int]
    share: str
    parts: tuple[Part, ...]
    waiting: deque[T] = field(default_factory=deque)

    def first(self) -> list[T]:
        """The first that waits, if any does."""
        try:
            return [self.waiting[0]]
        except IndexError:  # it has gone in this very moment
            return []


_Turns = list[tuple[int, int, _Line[T]]]
"""A heap: lines by their priority, and then by who waits longest for a turn."""


@dataclass(slots=True)
class _Out:
    """Leave that was given."""

    parts: tuple[Part, ...]
    begun: bool = False


@dataclass(frozen=True, slots=True)
class Admission(Generic[T]):
    """One that goes in, with leave of these parts."""

    item: T
    parts: tuple[Part, ...]


class Anteroom(Generic[T]):
    """See the module; ``T`` is whatever stands for a task.

    Args:
        since: When nothing was saved up.
    """

    def __init__(self, table: PartTable, since: float) -> None:
        self._table = table
        self._since = since
        self._holds: Mapping[str, float] = {}
        self._settled_at: Mapping[Part, float] = {}
        self._lines: dict[tuple[tuple[str, str, int], str], _Line[T]] = {}
        self._ready: _Turns[T] = []
        self._buckets: dict[Part, Bucket] = {}
        self._at: dict[Part, _Turns[T]] = {}
        """The lines that wait at a bucket."""
        self._alarms: list[tuple[float, int, Part]] = []
        self._alarm_at: dict[Part, float] = {}
        self._order = itertools.count()
        self._out: dict[str, _Out] = {}
        self._count = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._count

    @property
    def buckets(self) -> int:
        """How many parts it knows something of."""
        return len(self._buckets)

    @property
    def out(self) -> int:
        """How many have leave and have not ended."""
        return len(self._out)

    def all(self) -> list[T]:
        """All that wait; on any thread: it sees each line as it is in some moment."""
        return [item for line in list(self._lines.values()) for item in line.waiting.copy()]

    def longest(self, most: int) -> list[tuple[tuple[str, str, int], int, T]]:
        """The longest lines: type, key and priority of each, how many stand there, and the first of
        them. On any thread: it sees each line as it is in some moment."""
        lines = list(self._lines.values())
        found = [(one.name, len(one.waiting), first) for one in lines for first in one.first()]
        return heapq.nlargest(most, found, key=lambda line: line[1])

    # --- what happens ---------------------------------------------------------------------------

    def arrive(
        self, item: T, activity_type: str, key: str, priority: int = 0, share: str = ""
    ) -> None:
        """A task comes; ``key`` may be empty, and so may its fairness key, ``share``. The least
        ``priority`` is the best."""
        name = activity_type, key, priority
        line = self._lines.get((name, share))
        if line is None:
            parts = self._table.parts(activity_type, key)
            line = self._lines[name, share] = _Line(name, share, parts)
            self._queue_up(self._ready, line)
        line.waiting.append(item)
        self._count += 1

    def admit(self, now: float) -> list[Admission[T]]:
        """Those that go in now; each is to be booked, or to be told of as unused."""
        while self._alarms and self._alarms[0][0] <= now:
            at, _, part = heapq.heappop(self._alarms)
            if self._alarm_at.get(part) == at:
                del self._alarm_at[part]
                self._look(part, now)
        admitted = []
        while self._ready:
            _, _, line = heapq.heappop(self._ready)
            admission = self._try(line, now)
            if admission is not None:
                admitted.append(admission)
        return admitted

    def book(self, pass_id: str, parts: tuple[Part, ...]) -> None:
        """What was let in goes by this id from now on."""
        self._out[pass_id] = _Out(parts)

    def restore(self, pass_id: str, parts: tuple[Part, ...], now: float) -> None:
        """Somebody else has let it in, and it has not begun."""
        self.book(pass_id, parts)
        for part in parts:
            self._bucket(part, now).restore()

    def knows(self, pass_id: str) -> bool:
        """Whether it was let in and has not ended."""
        return pass_id in self._out

    def begun(self, pass_id: str, now: float) -> None:
        """It has begun; harmless if that is known."""
        out = self._out.get(pass_id)
        if out is None or out.begun:
            return
        out.begun = True
        for part in out.parts:
            self._bucket(part, now).begun(now)
            self._look(part, now)

    def ended(self, pass_id: str, now: float) -> None:
        """It has ended, and so it had begun; harmless if that is known."""
        self.begun(pass_id, now)
        out = self._out.pop(pass_id, None)
        for part in () if out is None else out.parts:
            self._bucket(part, now).ended()
            self._look(part, now)

    def unused(self, pass_id: str, now: float) -> None:
        """It does not begin with this leave; harmless if that is known."""
        out = self._out.get(pass_id)
        if out is not None and out.begun:
            self.ended(pass_id, now)
            return
        self._out.pop(pass_id, None)
        for part in () if out is None else out.parts:
            self._bucket(part, now).unused()
            self._look(part, now)

    def change(
        self,
        table: PartTable,
        holds: Mapping[str, float],
        now: float,
        settled_at: Mapping[Part, float] | None = None,
    ) -> None:
        """Limits are others from now on, or which keys are held until when.

        Args:
            settled_at: When it is known of these what ran before they were limited.
        """
        settled_at = settled_at or {}
        if table is not self._table and table != self._table:
            self._table, self._since = table, now
            for part, bucket in self._buckets.items():
                bucket.change(table.of(part), now)
        elif holds == self._holds and settled_at == self._settled_at:
            return
        self._holds, self._settled_at = holds, settled_at
        for part, bucket in self._buckets.items():
            bucket.held_until = self._held_until(part)
        self._at.clear()
        self._alarms.clear()
        self._alarm_at.clear()
        self._ready.clear()
        for line in self._lines.values():
            self._queue_up(self._ready, line)

    # --- what is done ---------------------------------------------------------------------------

    def next_at(self) -> float | None:
        """When to `admit` again if nothing happens; ``None``: not before something does."""
        return self._alarms[0][0] if self._alarms else None

    def tidy(self, now: float) -> None:
        """Forget what need not be known."""
        used = {part for line in self._lines.values() for part in line.parts}
        for part, bucket in list(self._buckets.items()):
            if part not in used and bucket.is_fresh(now):
                del self._buckets[part]

    def spill(self, count: int) -> list[T]:
        """Up to so many of the last ones in the longest line; they wait here no more."""
        if not self._lines:
            return []
        line = max(self._lines.values(), key=lambda one: len(one.waiting))
        spilled = [line.waiting.pop() for _ in range(min(count, len(line.waiting) - 1))]
        self._count -= len(spilled)
        return spilled[::-1]

    def clear(self) -> list[T]:
        """All that wait; nobody does afterwards."""
        waiting = [item for line in self._lines.values() for item in line.waiting]
        self._lines.clear()
        self._ready.clear()
        self._at.clear()
        self._count = 0
        return waiting

    # --------------------------------------------------------------------------------------------

    def _queue_up(self, turns: _Turns[T], line: _Line[T]) -> None:
        heapq.heappush(turns, (line.name[-1], next(self._order), line))

    def _held_until(self, part: Part) -> float:
        settled_at = self._settled_at.get(part, float("-inf"))
        if part.kind is not PartKind.KEY:
            return settled_at
        if part not in self._table.limits:
            settled_at = max(settled_at, self._settled_at.get(EACH_KEY, float("-inf")))
        return max(settled_at, self._holds.get(part.name, float("-inf")))

    def _bucket(self, part: Part, now: float) -> Bucket:
        bucket = self._buckets.get(part)
        if bucket is None:
            bucket = self._buckets[part] = Bucket(self._table.of(part), self._since, now)
            bucket.held_until = self._held_until(part)
        return bucket

    def _try(self, line: _Line[T], now: float) -> Admission[T] | None:
        buckets = [self._bucket(part, now) for part in line.parts]
        full = next(
            (p for p, b in zip(line.parts, buckets, strict=True) if not b.has_room(now)), None
        )
        admission = None
        if full is not None:
            self._queue_up(self._at.setdefault(full, []), line)
            self._set_alarm(full, now)
        else:
            for bucket in buckets:
                bucket.take()
            admission = Admission(line.waiting.popleft(), line.parts)
            self._count -= 1
            if line.waiting:
                self._queue_up(self._ready, line)
            else:
                del self._lines[line.name, line.share]
        # What this line leaves is for the next one.
        self._look_at(line.parts, now)
        return admission

    def _look_at(self, parts: Iterable[Part], now: float) -> None:
        for part in parts:
            if part in self._at:
                self._look(part, now)

    def _look(self, part: Part, now: float) -> None:
        """Let the next line at this bucket try, if there is room."""
        lines = self._at.get(part)
        if lines is None:
            return
        if self._bucket(part, now).has_room(now):
            heapq.heappush(self._ready, heapq.heappop(lines))
            if not lines:
                del self._at[part]
        else:
            self._set_alarm(part, now)

    def _set_alarm(self, part: Part, now: float) -> None:
        at = self._bucket(part, now).next_at(now)
        before = self._alarm_at.get(part)
        if at is not None and (before is None or at < before):
            self._alarm_at[part] = at
            heapq.heappush(self._alarms, (at, next(self._order), part))
