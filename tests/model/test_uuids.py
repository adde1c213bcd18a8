"""UUIDs of version 7."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model.uuids import RANDOM_BITS, version_7

times = st.integers(0, (1 << 48) - 1)
bits = st.integers(0, (1 << RANDOM_BITS) - 1)


@given(times, bits)
def test_they_are_of_version_7_and_hold_the_time(at_ms: int, random: int) -> None:
    made = version_7(at_ms, random)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == at_ms


@given(times, bits, times, bits)
def test_they_differ_and_sort_by_time(a_ms: int, a: int, b_ms: int, b: int) -> None:
    one, other = version_7(a_ms, a), version_7(b_ms, b)
    assert (one == other) == ((a_ms, a) == (b_ms, b))
    if a_ms < b_ms:
        assert str(one) < str(other)
