from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model.lanes import FACTOR, NEAR, Lanes

LAST = 5


@given(st.floats(0, 1e9), st.floats(0, 1e6))
def test_a_lane_comes_back_before_the_turn_of_what_is_in_it(distance: float, turn: float) -> None:
    lanes = Lanes(LAST + 1)
    number = lanes.place(3, distance, turn)
    if number:
        assert distance >= NEAR * FACTOR ** (number - 1)
        assert lanes.due(lambda p: turn + distance, is_short=False) == [number]
    if number < LAST:
        assert distance < NEAR * FACTOR**number
    assert lanes.due(lambda p: turn, is_short=False) == []


def test_turns_of_other_priorities_do_not_count() -> None:
    lanes = Lanes(2)
    lanes.place(5, 1e6, 0.0)
    assert lanes.due(lambda p: 1e9 if p == 1 else 0.0, is_short=False) == []
    assert lanes.due(lambda p: 1e9 if p == 5 else 0.0, is_short=False) == [1]


def test_when_nothing_is_near_all_lanes_come_back_nearest_first() -> None:
    lanes = Lanes(4)
    lanes.place(3, 1e6, 0.0)
    lanes.place(3, NEAR * FACTOR - 1, 0.0)
    assert lanes.due(lambda p: 0.0, is_short=False) == []
    assert lanes.due(lambda p: 0.0, is_short=True) == [1, 3]


def test_what_was_inherited_is_due_and_what_comes_back_is_due_again_later() -> None:
    lanes = Lanes(3)
    lanes.inherit(2)
    assert lanes.due(lambda p: 0.0, is_short=False) == [2]
    lanes.take(2, lambda p: 0.0)
    assert lanes.due(lambda p: 0.0, is_short=False) == []
    assert lanes.due(lambda p: 1e6, is_short=False) == [2]
    assert not lanes.are_empty()
    assert [lanes.is_empty(number) for number in range(3)] == [True, True, False]
    lanes.empty(2)
    assert lanes.are_empty()


def test_the_least_of_all_turns_decides() -> None:
    lanes = Lanes(2)
    lanes.place(3, 1000.0, 50.0)
    lanes.place(3, 1000.0, 0.0)
    lanes.place(3, 1000.0, 90.0)
    assert lanes.due(lambda p: 999.0, is_short=False) == []
    assert lanes.due(lambda p: 1000.0, is_short=False) == [1]
