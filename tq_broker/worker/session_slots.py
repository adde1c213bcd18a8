"""The executor of sessions: there is no code to run, only a slot to be held."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tq_broker.exceptions import CancelledError
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.executors import Owner
from tq_broker.worker.keeper import Keeper


class SessionSlots:
    """An `Executor`: a session ends when it is cancelled, or with its worker. Thread-safe."""

    def __init__(self, owner: Owner, keeper: Keeper) -> None:
        self._owner = owner
        self._keeper = keeper
        self._lock = threading.Lock()
        self._held: set[Attempt] = set()

    def start(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            with self._lock:
                self._held.add(attempt)
            # A lease from the beginning: when this worker dies any other one of the namespace
            # gets it, and tells history; not only one that has session slots.
            self._keeper.keep(attempt)
            if attempt.cancel_requested:
                self.cancel(attempt)

    def cancel(self, attempt: Attempt) -> None:
        with self._lock:
            if attempt not in self._held:
                return
            self._held.remove(attempt)
        self._owner.raised(attempt, CancelledError("the session was closed"))

    def abandon(self, attempt: Attempt) -> None:
        self.cancel(attempt)

    def close(self, deadline: float) -> None:
        """Nothing: there is nothing to wait for."""
