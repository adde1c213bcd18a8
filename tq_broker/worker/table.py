"""The attempts in this worker's hands, and those that ended here lately. Thread-safe."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

from tq_broker.model.tasks import ActivityTask
from tq_broker.queues.broker import Delivery
from tq_broker.worker.attempt import Attempt, State
from tq_broker.worker.intake import Known
from tq_broker.worker.passage import Passage
from tq_broker.worker.poller import Source

ENDED_MAX = 10_000
"""Ended attempts remembered, to recognise what comes again after a broken connection."""

Key = tuple[str, str, int, str]


def key_of(task: ActivityTask) -> Key:
    """What tells one attempt from all others, also from those of another start of the same id."""
    return (task.task_queue, task.activity_id, task.attempt, task.start_token)


class Held(NamedTuple):
    """A delivery in hand, and the prefetch window that counts it, if one does."""

    delivery: Delivery
    window: Source | None

    def let_go(self) -> None:
        """Acknowledge it."""
        self.delivery.ack()
        if self.window is not None:
            self.window.released()


class Table:
    """Attempts that are open, whose code runs, or whose delivery is still held.

    These three end separately and in any order but one: a delivery is released after the
    attempt has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Attempt, None] = {}
        self._running: set[Attempt] = set()
        self._held: dict[Key, Attempt] = {}
        self._ended: OrderedDict[Key, None] = OrderedDict()

    def known(self, task: ActivityTask) -> Known:
        """Whether the attempt that ``task`` is has been here."""
        key = key_of(task)
        if key in self._held:
            return Known.OPEN
        return Known.ENDED if key in self._ended else Known.NO

    def with_id(self, activity_id: str) -> list[Attempt]:
        """Open attempts of the activity, on whatever task queue."""
        return [a for a in self.open() if a.task.activity_id == activity_id]

    def add(self, attempt: Attempt) -> None:
        """``attempt`` begins: it is open, its code runs, and its delivery is held."""
        with self._lock:
            self._open[attempt] = None
            self._running.add(attempt)
            self._held[key_of(attempt.task)] = attempt

    def end(self, attempt: Attempt) -> bool:
        """``attempt`` ends now; False if it had ended before. Its delivery stays held."""
        with self._lock:
            if not attempt.move(State.ENDED):
                return False
            self._open.pop(attempt, None)
        return True

    def limit(self, attempt: Attempt, passage: Passage) -> bool:
        """``attempt`` goes by ``passage`` from now on, and by what it had; False if it has ended:
        then its delivery may be let go in this very moment, without asking ``passage``."""
        with self._lock:
            if attempt.state is State.ENDED:
                return False
            attempt.passage = passage.within(attempt.passage)
        return True

    # --- deliveries ---------------------------------------------------------------------------

    def release(self, attempt: Attempt) -> Held:
        """The end of ``attempt`` is told: returns what is to be let go."""
        key = key_of(attempt.task)
        with self._lock:
            if self._held.get(key) is attempt:
                del self._held[key]
            self._note_ended(key)
            return _swap(attempt, attempt.delivery, None)

    def exchange(
        self, task: ActivityTask, delivery: Delivery, window: Source | None, now: float
    ) -> Held | None:
        """Hold ``delivery`` for the attempt that ``task`` is, in place of the one before.

        Returns the one before, to be let go; or ``None`` if that attempt is not held any more:
        then the newcomer is to be let go.
        """
        with self._lock:
            attempt = self._held.get(key_of(task))
            if attempt is None:
                return None
            attempt.held_since = now
            attempt.leasing = False
            return _swap(attempt, delivery, window)

    def note_ended(self, task: ActivityTask) -> None:
        """The attempt that ``task`` is has ended here without having run."""
        with self._lock:
            self._note_ended(key_of(task))

    def _note_ended(self, key: Key) -> None:
        self._ended[key] = None
        if len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)

    # ------------------------------------------------------------------------------------------

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
            return list(self._open)

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


def _swap(attempt: Attempt, delivery: Delivery, window: Source | None) -> Held:
    before = Held(attempt.delivery, None if attempt.windowless else attempt.window)
    attempt.delivery = delivery
    attempt.windowless = window is None
    if window is not None:
        attempt.window = window
    return before
