from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.limits import (
    BURST_MAX,
    CONCURRENCY_MAX,
    RATE_MAX,
    RATE_MIN,
    Limits,
    check_limits,
    default_burst,
)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"rate": 0}, "rate is 0; it must be from 0.001 to 10000 tasks per second; to stop"),
        ({"rate": -1}, "rate is -1; it must be from"),
        ({"rate": math.nan}, "rate is nan; it must be from"),
        ({"rate": math.inf}, "rate is inf"),
        ({"rate": 1e9}, "rate is 1e+09"),
        ({"rate": "fast"}, "rate is 'fast'"),
        ({"rate": True}, "rate is True"),
        ({"rate": 1, "burst": 0}, "burst is 0; it must be from 1 to 20000"),
        ({"rate": 1, "burst": 1.5}, "burst is 1.5"),
        ({"burst": 3}, "burst is given without a rate"),
        ({"concurrency": 0}, "concurrency is 0; it must be from 1 to 10000; to stop"),
        ({"concurrency": CONCURRENCY_MAX + 1}, "concurrency is 10001"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_the_bound(
    limits: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words.replace("+", r"\+")):
        check_limits(Limits(**limits))


@given(st.floats(RATE_MIN, RATE_MAX))
def test_every_rate_has_a_burst_that_is_allowed(rate: float) -> None:
    assert 1 <= default_burst(rate) <= BURST_MAX
    assert check_limits(Limits(rate=rate)).burst_size == default_burst(rate)


def test_the_default_burst_is_one_for_a_slow_rate_and_a_second_and_one_else() -> None:
    assert [default_burst(rate) for rate in (0.2, 0.5, 1, 10, 1000)] == [1, 1, 2, 11, 1001]
    assert Limits(rate=10, burst=3).burst_size == 3
    assert Limits().burst_size == 0


def test_only_no_limit_at_all_is_unlimited() -> None:
    assert Limits().is_unlimited
    assert not Limits(rate=1).is_unlimited
    assert not Limits(concurrency=1).is_unlimited
