from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.worker.pace import Pace


def test_it_begins_full_and_is_filled_at_its_rate() -> None:
    pace = Pace(10.0, 2)
    assert pace.available(0.0) == 2
    pace.take(2)
    assert pace.available(0.05) == 0
    assert pace.next_at(0.05) == pytest.approx(0.1)
    assert pace.available(0.1) == 1
    assert pace.next_at(0.1) == 0.1
    assert pace.available(99.0) == 2
    pace.take()
    pace.give_back(5)
    assert pace.available(99.0) == 2


@given(st.floats(0.1, 100), st.integers(1, 5), st.lists(st.floats(0, 0.5), min_size=1, max_size=60))
def test_no_window_sees_more_than_rate_and_burst(
    rate: float, burst: int, pauses: list[float]
) -> None:
    pace, now, taken = Pace(rate, burst), 0.0, []
    for pause in pauses:
        now += pause
        count = pace.available(now)
        pace.take(count)
        taken += [now] * count
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= rate * (taken[last] - start) + burst + 1e-6
