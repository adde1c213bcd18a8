"""Which runs a worker keeps, and which have to go."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tq_broker.worker.sticky_cache import StickyCache


def filled(*run_ids: str, capacity: int = 3) -> StickyCache[str]:
    cache: StickyCache[str] = StickyCache(capacity)
    for run_id in run_ids:
        assert cache.admit(run_id, run_id) == []
        cache.put_back(run_id)
    return cache


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = filled("a", "b", "c")
    assert cache.take("a", expected=True) == "a"
    cache.put_back("a")
    assert cache.admit("d", "d") == ["b"]


def test_closed_runs_go_before_all_others() -> None:
    cache = filled("a", "b", "c")
    cache.take("c", expected=True)
    cache.put_back("c", closed=True)
    assert cache.admit("d", "d") == ["c"]


def test_a_closed_run_is_found_as_long_as_there_is_room() -> None:
    cache = filled("a")
    cache.take("a", expected=True)
    cache.put_back("a", closed=True)
    assert cache.take("a", expected=True) == "a"


def test_what_is_in_use_never_goes() -> None:
    cache = filled("a", "b", capacity=2)
    cache.take("a", expected=True)
    assert cache.admit("c", "c") == ["b"]
    assert cache.admit("d", "d") is None, "there is no room until one is put back"
    cache.put_back("a")
    assert cache.admit("d", "d") == ["a"]


def test_only_tasks_that_expect_their_run_count_as_hits_and_misses() -> None:
    cache = filled("a")
    cache.take("a", expected=False)
    cache.put_back("a")
    cache.take("x", expected=False)
    assert (cache.hits, cache.misses) == (0, 0)
    cache.take("a", expected=True)
    cache.take("x", expected=True)
    assert (cache.hits, cache.misses) == (1, 1)


def test_what_is_removed_while_it_is_in_use_is_not_put_back() -> None:
    cache = filled("a")
    cache.take("a", expected=True)
    assert cache.remove("a") == "a"
    cache.put_back("a")
    assert "a" not in cache
    assert cache.remove("a") is None


def test_clearing_gives_what_is_not_in_use() -> None:
    cache = filled("a", "b", "c")
    cache.take("a", expected=True)
    assert sorted(cache.clear()) == ["b", "c"]
    assert len(cache) == 0


RUNS = st.sampled_from("abcdefgh")


class AnyUse(RuleBasedStateMachine):
    """Whatever its owner does, the cache keeps its bound and loses nothing unsaid."""

    @initialize(capacity=st.integers(1, 4))
    def make(self, capacity: int) -> None:
        self.cache: StickyCache[str] = StickyCache(capacity)
        self.in_use: set[str] = set()
        self.idle: list[str] = []
        self.closed: list[str] = []

    @rule(run=RUNS)
    def use(self, run: str) -> None:
        if run in self.in_use:
            return
        here = run in self.idle + self.closed
        assert (self.cache.take(run, expected=True) == run) is here
        if here:
            self._forget(run)
            self.in_use.add(run)
            return
        gone = self.cache.admit(run, run)
        if gone is None:
            assert len(self.in_use) == self.cache.capacity
            return
        expected = (self.closed + self.idle)[: len(gone)]
        assert gone == expected
        for victim in gone:
            self._forget(victim)
        self.in_use.add(run)

    @precondition(lambda self: self.in_use)
    @rule(data=st.data(), closed=st.booleans())
    def put_back(self, data: st.DataObject, closed: bool) -> None:
        run = data.draw(st.sampled_from(sorted(self.in_use)))
        self.in_use.discard(run)
        self.cache.put_back(run, closed=closed)
        (self.closed if closed else self.idle).append(run)

    @rule(run=RUNS)
    def remove(self, run: str) -> None:
        here = run in self.in_use or run in self.idle + self.closed
        assert (self.cache.remove(run) == run) is here
        self.in_use.discard(run)
        self._forget(run)

    def _forget(self, run: str) -> None:
        for kept in (self.idle, self.closed):
            if run in kept:
                kept.remove(run)

    @invariant()
    def it_keeps_its_bound(self) -> None:
        if hasattr(self, "cache"):
            assert len(self.cache) == len(self.in_use) + len(self.idle) + len(self.closed)
            assert len(self.cache) <= self.cache.capacity


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=50, stateful_step_count=30)
