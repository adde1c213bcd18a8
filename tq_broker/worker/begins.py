"""What one worker has begun, by task queue: what its answers to a ping tell of.

Thread-safe: tasks begin on many threads, and the desk asks on another.
"""

from __future__ import annotations

import threading
from collections import Counter

from tq_broker.clock import Clock, epoch_ms
from tq_broker.model.composition import Way
from tq_broker.model.control import Begins
from tq_broker.model.limits import Side
from tq_broker.worker.busiest import Busiest
from tq_broker.worker.meter import Meter

PARTS_MAX = 1_000
"""Parts of task queues that are told apart: the names are those of others."""
KEYS_MAX = 64
"""Keys of one task queue that are counted at a time."""
KEYED_MAX = 50
"""Task queues whose keys are counted."""
KEYS_TOLD = 20
"""Keys of a task queue that are told of, at the most: those with the highest rate."""

Place = tuple[str, Side]
Part = tuple[str, Side, int | None]
"""A task queue, its side, and a priority; ``None`` means all of them together."""


class BeginCounts:
    """Counts what begins."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._lock = threading.Lock()
        self._parts: dict[Part, _Counted] = {}
        self._keys: dict[Place, Busiest[_Counted]] = {}

    def begun(
        self,
        task_queue: str,
        side: Side,
        *,
        since_ms: int = 0,
        way: Way | None = Way.SHARED,
        priority: int | None = None,
        key: str = "",
    ) -> None:
        """A task has begun.

        Args:
            since_ms: When it was put on its queue (epoch ms); 0 if it does not tell.
            way: How it came; ``None``: through a queue that is not one of its task queue's.
            priority: Its own; ``None`` if it has none.
            key: Its ``rate_limit_key``; empty if it has none.
        """
        now = self._clock.monotonic()
        waited_ms = max(0, epoch_ms(self._clock) - since_ms) if since_ms else None
        parts: list[Part] = [(task_queue, side, None)]
        if priority is not None:
            parts.append((task_queue, side, priority))
        with self._lock:
            for part in parts:
                counted = self._parts.get(part)
                if counted is None:
                    if len(self._parts) >= PARTS_MAX:
                        continue
                    counted = self._parts[part] = _Counted(self._since)
                counted.begun(now, waited_ms, way)
            if key and (keys := self._keys_of((task_queue, side), now)) is not None:
                keys.came(key, now).begun(now, waited_ms, way)

    def _keys_of(self, place: Place, now: float) -> Busiest[_Counted] | None:
        found = self._keys.get(place)
        if found is None and len(self._keys) < KEYED_MAX:
            found = self._keys[place] = Busiest(KEYS_MAX, lambda: _Counted(self._since), now)
        return found

    def told(self) -> list[Begins]:
        """What was counted so far."""
        now = self._clock.monotonic()
        with self._lock:
            return [
                *(
                    counted.told(now, task_queue, side, priority=priority)
                    for (task_queue, side, priority), counted in self._parts.items()
                ),
                *(
                    counted.told(now, *place, key=key)
                    for place, keys in self._keys.items()
                    for key, counted in _quickest(keys, now)
                ),
            ]


def _quickest(keys: Busiest[_Counted], now: float) -> list[tuple[str, _Counted]]:
    """Those that have begun lately, most often first."""
    rated = [(counted.meter.per_second(now), key, counted) for key, counted in keys]
    rated.sort(key=lambda one: (-one[0], one[1]))
    return [(key, counted) for rate, key, counted in rated[:KEYS_TOLD] if rate]


class _Counted:
    """The begins of one part."""

    __slots__ = ("meter", "waited_ms", "ways")

    def __init__(self, since: float) -> None:
        self.meter = Meter(since)
        self.ways: Counter[Way] = Counter()
        self.waited_ms: int | None = None

    def begun(self, now: float, waited_ms: int | None, way: Way | None) -> None:
        self.meter.count(now)
        if way is not None:
            self.ways[way] += 1
        self.waited_ms = waited_ms

    def told(
        self,
        now: float,
        task_queue: str,
        side: Side,
        *,
        priority: int | None = None,
        key: str | None = None,
    ) -> Begins:
        return Begins(
            task_queue=task_queue,
            side=side,
            priority=priority,
            key=key,
            total=self.meter.total,
            shared=self.ways[Way.SHARED],
            ways={way.value: count for way, count in self.ways.items()},
            per_second=round(self.meter.per_second(now), 3),
            waited_ms=self.waited_ms,
        )
