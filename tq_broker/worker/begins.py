"""What one worker has begun, by task queue: what its answers to a ping tell of.

Thread-safe: tasks begin on many threads, and the desk asks on another.
"""

from __future__ import annotations

import threading

from tq_broker.clock import Clock, epoch_ms
from tq_broker.model.control import Begins
from tq_broker.model.limits import Side
from tq_broker.worker.meter import Meter

PARTS_MAX = 1_000
"""Parts of task queues that are told apart: the names are those of others."""

Part = tuple[str, Side, int | None]
"""A task queue, its side, and a priority; ``None`` means all of them together."""


class BeginCounts:
    """Counts what begins."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._lock = threading.Lock()
        self._parts: dict[Part, _Counted] = {}

    def begun(
        self,
        task_queue: str,
        side: Side,
        *,
        since_ms: int = 0,
        shared: bool = True,
        priority: int | None = None,
    ) -> None:
        """A task has begun.

        Args:
            since_ms: When it was put on its queue (epoch ms); 0 if it does not tell.
            shared: It came through the queue that all workers share.
            priority: Its own; ``None`` if it has none.
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
                counted.begun(now, waited_ms, shared)

    def told(self) -> list[Begins]:
        """What was counted so far."""
        now = self._clock.monotonic()
        with self._lock:
            return [
                Begins(
                    task_queue=task_queue,
                    side=side,
                    priority=priority,
                    total=counted.meter.total,
                    shared=counted.shared,
                    per_second=round(counted.meter.per_second(now), 3),
                    waited_ms=counted.waited_ms,
                )
                for (task_queue, side, priority), counted in self._parts.items()
            ]


class _Counted:
    """The begins of one part."""

    __slots__ = ("meter", "shared", "waited_ms")

    def __init__(self, since: float) -> None:
        self.meter = Meter(since)
        self.shared = 0
        self.waited_ms: int | None = None

    def begun(self, now: float, waited_ms: int | None, shared: bool) -> None:
        self.meter.count(now)
        self.shared += shared
        self.waited_ms = waited_ms
