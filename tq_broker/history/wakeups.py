"""When runs want to be woken: a heap of the near future.

Only runs that want to be woken before the *horizon* are in it; the store knows the others, and is
asked for them when the horizon comes near. So memory is bounded by what happens soon, not by how
many runs are open.

A run that wants to be woken later than before keeps its place in the heap, and gets its new one
when the old one comes up: nearly every message moves a timeout into the future, and few timeouts
ever come up.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable


class Wakeups:
    """The wishes of the runs of all shards that are owned. Not thread-safe."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []
        self._wanted: dict[tuple[int, str], int] = {}
        self._placed: dict[tuple[int, str], int] = {}
        self._horizon_ms = 0

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def horizon_ms(self) -> int:
        """Everything that is wanted before this time is known."""
        return self._horizon_ms

    def load(self, horizon_ms: int, due: Iterable[tuple[int, int, str]]) -> None:
        """Know everything up to ``horizon_ms`` from now on; ``due`` is what the store knew.

        What was `set` here is newer than what the store says.
        """
        self._horizon_ms = horizon_ms
        for next_ms, shard, run_id in due:
            if (shard, run_id) not in self._wanted:
                self._put((shard, run_id), next_ms)

    def set(self, shard: int, run_id: str, next_ms: int | None) -> None:
        """The run wants to be woken at ``next_ms``, or not at all."""
        key = (shard, run_id)
        if next_ms is None or next_ms > self._horizon_ms:
            self._wanted.pop(key, None)
        else:
            self._put(key, next_ms)

    def _put(self, key: tuple[int, str], next_ms: int) -> None:
        self._wanted[key] = next_ms
        placed = self._placed.get(key)
        if placed is None or next_ms < placed:
            self._placed[key] = next_ms
            heapq.heappush(self._heap, (next_ms, *key))

    def next_ms(self) -> int | None:
        """No run wants to be woken earlier than this; ``None`` if none wants to."""
        while self._heap:
            at, shard, run_id = self._heap[0]
            wanted = self._settle(at, (shard, run_id))
            if wanted == at:
                return at
        return None

    def due(self, now_ms: int, limit: int) -> list[tuple[int, str]]:
        """Take at most ``limit`` runs that want to be woken by now, soonest first.

        They are forgotten here until they are `set` again.
        """
        found: list[tuple[int, str]] = []
        while len(found) < limit:
            at = self.next_ms()
            if at is None or at > now_ms:
                break
            _, shard, run_id = heapq.heappop(self._heap)
            del self._wanted[shard, run_id], self._placed[shard, run_id]
            found.append((shard, run_id))
        return found

    def _settle(self, at: int, key: tuple[int, str]) -> int | None:
        """Drop the first entry of the heap if it is stale, and place its run anew."""
        if self._placed.get(key) != at:
            heapq.heappop(self._heap)  # it was placed earlier since
            return None
        wanted = self._wanted.get(key)
        if wanted == at:
            return at
        heapq.heappop(self._heap)
        del self._placed[key]
        if wanted is not None:
            self._put(key, wanted)
        return None

    def drop(self, shards: Collection[int]) -> None:
        """Forget the runs of ``shards``, which are another's now."""
        gone = [key for key in self._wanted.keys() | self._placed.keys() if key[0] in shards]
        for key in gone:
            self._wanted.pop(key, None)
            self._placed.pop(key, None)
        self._heap = [entry for entry in self._heap if entry[1] not in shards]
        heapq.heapify(self._heap)
