"""The attempts in this worker's hands, and those that ended here lately. Thread-safe."""

from __future__ import annotations

import threading
from collections import OrderedDict

from tq_broker.model.tasks import ActivityTask
from tq_broker.worker.attempt import Attempt, State
from tq_broker.worker.intake import Known

ENDED_MAX = 10_000
"""Ended attempts remembered, to recognise what comes again after a broken connection."""


class Table:
    """Open attempts by (task queue, activity id), and those whose code still runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], Attempt] = {}
        self._running: set[Attempt] = set()
        self._ended: OrderedDict[tuple[str, str, int], None] = OrderedDict()

    def known(self, task: ActivityTask) -> Known:
        """Whether the attempt that ``task`` is has been here."""
        attempt = self._open.get((task.task_queue, task.activity_id))
        if attempt is not None and attempt.task.attempt == task.attempt:
            return Known.OPEN
        ended = (task.task_queue, task.activity_id, task.attempt) in self._ended
        return Known.ENDED if ended else Known.NO

    def find(self, task_queue: str, activity_id: str, attempt: int) -> Attempt | None:
        """The open attempt with these marks."""
        found = self._open.get((task_queue, activity_id))
        return found if found is not None and found.task.attempt == attempt else None

    def with_id(self, activity_id: str) -> list[Attempt]:
        """Open attempts of the activity, on whatever task queue."""
        with self._lock:
            return [a for a in self._open.values() if a.task.activity_id == activity_id]

    def add(self, attempt: Attempt) -> None:
        """``attempt`` begins: it is open, and its code runs."""
        with self._lock:
            self._open[attempt.key] = attempt
            self._running.add(attempt)

    def end(self, attempt: Attempt) -> bool:
        """``attempt`` ends now; False if it had ended before."""
        task = attempt.task
        with self._lock:
            if not attempt.move(State.ENDED):
                return False
            if self._open.get(attempt.key) is attempt:
                del self._open[attempt.key]
            self._ended[(task.task_queue, task.activity_id, task.attempt)] = None
            if len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)
        return True

    def awaits(self, attempt: Attempt) -> bool:
        """Its code has returned, and somebody else will complete it; False if it has ended."""
        with self._lock:
            return attempt.move(State.AWAITED)

    def stopped(self, attempt: Attempt) -> None:
        """The code of ``attempt`` runs no more."""
        with self._lock:
            attempt.code_running = False
            self._running.discard(attempt)

    def running(self) -> int:
        """How many slots are in use."""
        return len(self._running)

    def open(self) -> list[Attempt]:
        """All open attempts."""
        with self._lock:
            return list(self._open.values())

    def occupied(self) -> int:
        """Slots in use by code whose delivery no prefetch window counts any more."""
        with self._lock:
            return sum(attempt.windowless for attempt in self._running)

    def in_hand(self) -> dict[str, int]:
        """How many are open, by task queue."""
        counts: dict[str, int] = {}
        for attempt in self.open():
            task_queue = attempt.task.task_queue
            counts[task_queue] = counts.get(task_queue, 0) + 1
        return counts
