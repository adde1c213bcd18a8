from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.worker.pid import Pid


def test_below_its_target_there_is_room_and_above_there_is_none() -> None:
    assert Pid(0.8).output(0.5) == pytest.approx(1.5)
    assert Pid(0.8).output(0.8) == 0.0
    assert Pid(0.8).output(0.9) == pytest.approx(-0.5)


def test_fast_growth_is_stopped_before_the_target_is_reached() -> None:
    pid = Pid(0.8)
    pid.output(0.2)
    assert pid.output(0.75) < 0
    assert pid.output(0.75) > 0, "it has stopped growing"


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=50), target=st.floats(0.1, 1))
def test_the_past_does_not_pile_up(values: list[float], target: float) -> None:
    pid = Pid(target)
    for value in values:
        pid.output(value)
    assert pid.output(values[-1]) == pytest.approx(5 * (target - values[-1]))
