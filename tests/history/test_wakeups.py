from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.history.wakeups import Wakeups

FAR = 10_000


def wakeups() -> Wakeups:
    made = Wakeups()
    made.load(FAR, [])
    return made


def test_runs_come_soonest_first_and_once() -> None:
    ours = wakeups()
    ours.set(0, "b", 20)
    ours.set(1, "a", 10)
    assert ours.next_ms() == 10
    assert ours.due(20, 10) == [(1, "a"), (0, "b")]
    assert ours.due(FAR, 10) == []
    assert ours.next_ms() is None


def test_no_more_are_taken_than_wanted() -> None:
    ours = wakeups()
    for number in range(5):
        ours.set(0, str(number), number)
    assert ours.due(FAR, 2) == [(0, "0"), (0, "1")]
    assert len(ours) == 3


def test_a_wish_may_move_either_way_or_go() -> None:
    ours = wakeups()
    ours.set(0, "later", 10)
    ours.set(0, "later", 30)
    ours.set(0, "earlier", 30)
    ours.set(0, "earlier", 20)
    ours.set(0, "gone", 5)
    ours.set(0, "gone", None)
    assert ours.next_ms() == 20
    assert ours.due(29, 10) == [(0, "earlier")]
    assert ours.due(30, 10) == [(0, "later")]


def test_what_is_behind_the_horizon_is_left_to_the_store() -> None:
    ours = wakeups()
    ours.set(0, "a", FAR + 1)
    assert ours.next_ms() is None
    ours.load(2 * FAR, [(FAR + 1, 0, "a")])
    assert ours.due(FAR + 1, 1) == [(0, "a")]


def test_what_was_set_here_counts_more_than_what_the_store_says() -> None:
    ours = wakeups()
    ours.set(0, "a", 50)
    ours.load(FAR, [(10, 0, "a"), (20, 0, "b")])
    assert ours.due(49, 10) == [(0, "b")]


def test_a_shard_that_is_lost_takes_its_runs_along() -> None:
    ours = wakeups()
    ours.set(0, "a", 10)
    ours.set(1, "b", 20)
    ours.set(1, "b", 30)
    ours.drop([0])
    assert ours.next_ms() == 30
    ours.set(0, "a", 15)
    assert ours.due(FAR, 10) == [(0, "a"), (1, "b")]


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.none() | st.integers(0, 50)),
        max_size=60,
    ),
    st.integers(0, 50),
)
def test_it_says_what_a_plain_dict_would(
    steps: list[tuple[int, str, int | None]], now_ms: int
) -> None:
    ours, model = wakeups(), dict[tuple[int, str], int]()
    for shard, run_id, next_ms in steps:
        ours.set(shard, run_id, next_ms)
        if next_ms is None:
            model.pop((shard, run_id), None)
        else:
            model[shard, run_id] = next_ms
    assert ours.next_ms() == min(model.values(), default=None)
    due = {key for key, next_ms in model.items() if next_ms <= now_ms}
    assert set(ours.due(now_ms, 100)) == due
    assert len(ours) == len(model) - len(due)
