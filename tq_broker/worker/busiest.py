"""The busiest: what is known of the keys that come most often, however many there are. Pure.

A *space-saving* sketch: so many keys are remembered, each with a weight, and a newcomer takes the
place, and the weight, of the one with the least. So whichever key has more than its share of all
that comes, one in as many as are remembered, is among them. Weights are halved from time to time,
so that it is the share of late that counts. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

HALVED_EVERY_S = 30.0

T = TypeVar("T")


class Busiest(Generic[T]):
    """See the module; ``T`` is what is known of a key while it is remembered.

    Args:
        most: Keys remembered.
        make: Makes what is known of a newcomer.
        now: Monotonic seconds.
    """

    def __init__(self, most: int, make: Callable[[], T], now: float) -> None:
        self._most = most
        self._make = make
        self._halved_at = now
        self._known: dict[str, T] = {}
        self._weights: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return iter(self._known.items())

    def came(self, key: str, now: float) -> T:
        """``key`` has come once more; returns what is known of it."""
        self._age(now)
        weights = self._weights
        if key not in weights:
            weights[key] = self._make_room()
            self._known[key] = self._make()
        weights[key] += 1.0
        return self._known[key]

    def _make_room(self) -> float:
        """The weight of a newcomer."""
        weights = self._weights
        if len(weights) < self._most:
            return 0.0
        least = min(weights, key=weights.__getitem__)
        del self._known[least]
        return weights.pop(least)

    def _age(self, now: float) -> None:
        halvings = int((now - self._halved_at) // HALVED_EVERY_S)
        if halvings > 0:
            self._halved_at += halvings * HALVED_EVERY_S
            factor = 0.5 ** min(halvings, 100)
            self._weights = {key: weight * factor for key, weight in self._weights.items()}
