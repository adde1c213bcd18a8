"""Activities that note when they begin and how many run, for tests of limits."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from typing import Any

from tests.worker.worlds import SOON_S, World
from tq_broker import activity


class Notes:
    """``hit`` notes when it began; ``stay`` stays until it is let go. Both by who calls."""

    def __init__(self, world: World) -> None:
        self.begins: list[tuple[str, float]] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.leave: queue.Queue[None] = queue.Queue()

        @activity.defn(name="hit")
        async def hit(who: str = "") -> None:
            self.begins.append((who, world.clock.monotonic()))

        @activity.defn(name="stay")
        def stay(who: str = "") -> None:
            with self.lock:
                self.running[who] += 1
                self.most[who] = max(self.most[who], self.running[who])
            self.leave.get(timeout=SOON_S)
            with self.lock:
                self.running[who] -= 1

        self.activities: tuple[Any, ...] = (hit, stay)

    def let_go(self, count: int = 1) -> None:
        for _ in range(count):
            self.leave.put(None)

    def times(self, who: str = "") -> list[float]:
        return [at for name, at in self.begins if name == who]


def settled(world: World) -> None:
    """The workers have done all that they will do now."""
    for _ in range(5):
        world.broker.wait_quiet(world.soon())
        threading.Event().wait(0.03)
