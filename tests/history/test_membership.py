from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.history.membership import (
    DEAD_AFTER_S,
    FORGET_AFTER_S,
    Membership,
    places,
)
from tq_broker.model.requests import SHARDS
from tq_broker.stores.store import Member

ALL = set(range(SHARDS))
IDS = st.sets(st.text("abcdef0123456789", min_size=1, max_size=8), min_size=1, max_size=20)


def member(member_id: str, seen_ms: int = 0, shards: tuple[int, ...] = ()) -> Member:
    return Member(member_id, member_id, 0, seen_ms, shards)


@given(IDS)
def test_shares_differ_by_one_at_most(ids: set[str]) -> None:
    held = Counter(at.first for at in places(ids))
    shares = [held[one] for one in ids]
    assert max(shares) - min(shares) <= 1


@given(IDS)
def test_the_second_is_another_and_first_when_the_first_is_gone(ids: set[str]) -> None:
    for shard, at in enumerate(places(ids)):
        if len(ids) == 1:
            assert at.second is None
        else:
            assert at.second != at.first
            assert places(ids - {at.first})[shard].first == at.second


@given(IDS, st.text("xyz", min_size=1, max_size=4))
def test_a_join_moves_little(ids: set[str], joining: str) -> None:
    before, after = places(ids), places(ids | {joining})
    moved = sum(a.first != b.first for a, b in zip(before, after, strict=True))
    assert moved <= 2 * (SHARDS // (len(ids) + 1) + 1) + len(ids)


def test_everybody_makes_the_same_plan() -> None:
    assert places(["a", "b", "c"]) == places(["c", "a", "b"])
    assert places([]) == ()


def test_a_lone_member_takes_everything() -> None:
    mine = Membership("a")
    living = mine.observe([member("a")], 0.0, 0)
    wishes = mine.wishes(living, (), 0.0)
    assert wishes.serve == wishes.take == ALL
    assert not wishes.release


def test_what_another_who_lives_owns_is_waited_for_and_released_by_that() -> None:
    new, old = Membership("new"), Membership("old")
    rows = [member("old", shards=tuple(ALL)), member("new")]
    old.wishes(old.observe(rows[:1], -1.0, -1), ALL, -1.0)
    waits = new.wishes(new.observe(rows, 0.0, 0), (), 0.0)
    assert not waits.take
    assert waits.serve == ALL  # first of some, second of the others
    gives = old.wishes(old.observe(rows, 0.0, 0), ALL, 0.0)
    assert len(gives.release) == SHARDS // 2
    rows[0] = member("old", 1, tuple(ALL - gives.release))
    assert new.wishes(new.observe(rows, 1.0, 1), (), 1.0).take == gives.release


def test_what_came_to_us_is_not_given_to_who_may_be_dead() -> None:
    mine = Membership("a")
    rows = [member("a"), member("b", shards=tuple(ALL))]
    mine.wishes(mine.observe(rows, 0.0, 0), (), 0.0)
    # RabbitMQ has made us the active consumer of all, as if nobody else were there.
    for second in range(1, int(DEAD_AFTER_S)):
        assert not mine.wishes(mine.observe(rows, second, second), ALL, second).release
    rows[1] = member("b", 1)
    given = mine.wishes(mine.observe(rows, DEAD_AFTER_S, 0), ALL, DEAD_AFTER_S).release
    assert len(given) == SHARDS // 2


def test_who_is_silent_for_too_long_is_dead() -> None:
    mine = Membership("a")
    both = [member("a"), member("b", 1000)]
    assert set(mine.observe(both, 0.0, 1000)) == {"a", "b"}
    assert set(mine.observe(both, DEAD_AFTER_S - 0.1, 5000)) == {"a", "b"}
    assert set(mine.observe(both, DEAD_AFTER_S, 5000)) == {"a"}
    both[1] = member("b", 1001)
    assert set(mine.observe(both, DEAD_AFTER_S + 1, 6000)) == {"a", "b"}


def test_who_was_dead_before_we_came_is_known_by_its_time() -> None:
    mine = Membership("a")
    long_ago = [member("a", 100_000), member("b", 1000)]
    assert set(mine.observe(long_ago, 0.0, 100_000)) == {"a"}


def test_a_clock_that_is_wrong_does_not_kill_for_long() -> None:
    mine = Membership("a")
    mine.observe([member("b", 10**9)], 0.0, 0)
    assert "b" in mine.observe([member("b", 10**9 + 1000)], 1.0, 1000)


def test_the_dead_are_forgotten_in_the_end() -> None:
    mine = Membership("a")
    rows = [member("a"), member("b")]
    mine.observe(rows, 0.0, 0)
    assert mine.forgotten(FORGET_AFTER_S - 1) == []
    assert mine.forgotten(FORGET_AFTER_S) == ["b"]
    mine.observe(rows[:1], FORGET_AFTER_S, 0)
    assert mine.forgotten(FORGET_AFTER_S) == []
