from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import cast

from tq_broker.clock import epoch_ms
from tq_broker.history import retention
from tq_broker.history.retention import Retention
from tq_broker.stores.store import Store
from tq_broker.testing.manual_clock import ManualClock

KEPT = timedelta(hours=1)
FEW = 41
"""Rows, which a step deletes though there are more: it counts events, of which a row may have
many."""


class Cellar:
    """A store that has so many steps of old rows for each shard."""

    def __init__(self, clock: ManualClock, steps: dict[int, int], takes_s: float = 0.0) -> None:
        self._clock = clock
        self._takes_s = takes_s
        self.steps = Counter(steps)
        self.asked: list[tuple[int, int, int, int]] = []

    def prune(self, shard: int, closed_before_ms: int, inbox_before_ms: int, limit: int) -> int:
        self.asked.append((shard, closed_before_ms, inbox_before_ms, limit))
        self._clock.advance(self._takes_s)
        if not self.steps[shard]:
            return 0
        self.steps[shard] -= 1
        return FEW


class Cleaner:
    """Retention that a test lets work, beat by beat."""

    def __init__(self, steps: dict[int, int], takes_s: float = 0.0) -> None:
        self.clock = ManualClock()
        self.store = Cellar(self.clock, steps, takes_s)
        self.is_over = False
        self.paused_s = 0.0
        self.retention = Retention(cast("Store", self.store), KEPT, self.clock, self._wait)

    def _wait(self, seconds: float) -> bool:
        self.clock.advance(seconds)
        self.paused_s += seconds
        return not self.is_over

    def beat(self, *held: int) -> list[int]:
        """The shards that were asked about."""
        del self.store.asked[:]
        self.retention.prune(held)
        return [shard for shard, *_ in self.store.asked]


def test_a_beat_deletes_what_there_is_though_each_step_is_small() -> None:
    cleaner = Cleaner({3: 5, 4: 2})
    assert cleaner.beat(3, 4) == [3] * 6
    assert cleaner.beat(3, 4) == [4] * 3
    assert not cleaner.store.steps.total()


def test_others_can_write_between_steps() -> None:
    cleaner = Cleaner({3: 5})
    cleaner.beat(3)
    assert cleaner.paused_s >= 5 * retention.PAUSE_S


def test_what_is_too_much_for_a_beat_goes_on_and_keeps_no_shard_waiting() -> None:
    cleaner = Cleaner({3: 1_000, 4: 1}, takes_s=0.1)
    began = cleaner.clock.monotonic()
    assert set(cleaner.beat(3, 4)) == {3}
    assert cleaner.clock.monotonic() - began < retention.WITHIN_S + 0.2
    assert cleaner.beat(3, 4) == [4, 4]
    assert set(cleaner.beat(3, 4)) == {3}


def test_where_nothing_is_old_one_question_is_asked() -> None:
    cleaner = Cleaner({})
    assert [cleaner.beat(3, 4, 5) for _ in range(4)] == [[3], [4], [5], [3]]
    assert not cleaner.paused_s


def test_who_has_no_shards_deletes_nothing() -> None:
    assert Cleaner({3: 1}).beat() == []


def test_who_is_stopped_ends_with_the_step_he_is_in() -> None:
    cleaner = Cleaner({3: 5})
    cleaner.is_over = True
    assert cleaner.beat(3) == [3]


def test_how_old_is_old() -> None:
    cleaner = Cleaner({})
    cleaner.beat(3)
    now_ms = epoch_ms(cleaner.clock)
    closed_ms, inbox_ms = now_ms - 3_600_000, now_ms - retention.INBOX_KEPT_MS
    assert cleaner.store.asked == [(3, closed_ms, inbox_ms, retention.ROWS)]
