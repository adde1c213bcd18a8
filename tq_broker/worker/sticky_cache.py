"""Runs that a worker keeps between their workflow tasks: which are there, and who has to go.

Rules of this file: pure, and not thread-safe: it has one owner. A run that is *in use* never goes.
Of the others closed runs go first (only queries can still want them), then those that were not
used for longest.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class StickyCache(Generic[V]):
    """Values by run id, at most ``capacity`` of them.

    Attributes:
        hits: How often a run that was expected to be here was.
        misses: How often it was not.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.hits = 0
        self.misses = 0
        self._in_use: dict[str, V] = {}
        self._idle: OrderedDict[str, V] = OrderedDict()
        self._closed: OrderedDict[str, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._in_use) + len(self._idle) + len(self._closed)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._in_use or run_id in self._idle or run_id in self._closed

    @property
    def is_full(self) -> bool:
        """For a run to be kept here another one has to go."""
        return len(self) >= self.capacity

    def take(self, run_id: str, *, expected: bool) -> V | None:
        """The run, which is in use from here on; ``None`` if it is not here.

        Args:
            expected: Whoever sent the task believes that it is here.
        """
        assert run_id not in self._in_use, "one task of a run at a time"
        value = self._idle.pop(run_id, None)
        if value is None:
            value = self._closed.pop(run_id, None)
        if value is not None:
            self._in_use[run_id] = value
        if expected:
            self.hits += value is not None
            self.misses += value is None
        return value

    def admit(self, run_id: str, value: V) -> list[V] | None:
        """Keep a run that is not here, in use at first; returns those that had to go for it.

        ``None`` if there is no room, because all are in use: try again when one is not any more.
        """
        assert run_id not in self, "it is here"
        if len(self._in_use) >= self.capacity:
            return None
        gone: list[V] = []
        while len(self) >= self.capacity:
            _, victim = (self._closed or self._idle).popitem(last=False)
            gone.append(victim)
        self._in_use[run_id] = value
        return gone

    def put_back(self, run_id: str, *, closed: bool = False) -> None:
        """The run is not in use any more. Harmless if it was removed meanwhile."""
        value = self._in_use.pop(run_id, None)
        if value is not None:
            (self._closed if closed else self._idle)[run_id] = value

    def remove(self, run_id: str) -> V | None:
        """Keep the run no longer; returns it if it was here."""
        for kept in (self._in_use, self._idle, self._closed):
            value = kept.pop(run_id, None)
            if value is not None:
                return value
        return None

    def clear(self) -> list[V]:
        """Keep nothing; returns what was here and not in use."""
        gone = [*self._closed.values(), *self._idle.values()]
        self._closed.clear()
        self._idle.clear()
        self._in_use.clear()
        return gone
