"""Retention: runs that ended long ago, and old messages of the inboxes, are deleted.

Rules of this file: it shares its database with those who write, so it goes in small steps, with
pauses, and for no longer than a part of a beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from tq_broker.clock import Clock, epoch_ms
from tq_broker.common import to_ms
from tq_broker.stores.store import Store

INBOX_KEPT_MS = 24 * 3600 * 1000
"""So long a message may come a second time and is known."""
ROWS = 500
"""In one step, at most about: it must not hold up what is being written."""
PAUSE_S = 0.02
"""After each step that may not be the last, for those who want to write."""
WITHIN_S = 0.5
"""So long steps follow each other; then the process has to say that it lives."""


class Retention:
    """Belongs to one thread.

    Args:
        kept: How long a run that has ended is kept.
        wait: Lets so many seconds pass, and tells whether to go on.
    """

    def __init__(
        self, store: Store, kept: timedelta, clock: Clock, wait: Callable[[float], bool]
    ) -> None:
        self._store = store
        self._kept_ms = to_ms(kept)
        self._clock = clock
        self._wait = wait
        self._turns = 0

    def prune(self, held: Sequence[int]) -> None:
        """Delete what is old of one of the shards ``held``, each in its turn: all of it, or as
        much as can be done within `WITHIN_S`.

        Raises what `Store.prune` does; the next call is for another shard all the same.
        """
        if not held:
            return
        shard = held[self._turns % len(held)]
        self._turns += 1
        until = self._clock.monotonic() + WITHIN_S
        # A step counts events, of which a row holds many: it may be full with few rows deleted.
        while self._step(shard) and self._wait(PAUSE_S) and self._clock.monotonic() < until:
            continue

    def _step(self, shard: int) -> int:
        now_ms = epoch_ms(self._clock)
        return self._store.prune(shard, now_ms - self._kept_ms, now_ms - INBOX_KEPT_MS, ROWS)
