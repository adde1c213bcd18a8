"""The bucket of one part: its bound holds in every window of every schedule; none is wasted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model.limits import UNLIMITED, Limits
from tq_broker.worker.bucket import Bucket

EPS = 1e-6

steps = st.lists(
    st.tuples(st.floats(0.0, 0.7), st.sampled_from(["take", "begin", "unused"])), max_size=120
)


@given(st.floats(0.2, 20.0), st.integers(1, 5), steps)
def test_no_window_sees_more_begins_than_rate_and_burst_however_late_they_are(
    rate: float, burst: int, schedule: list[tuple[float, str]]
) -> None:
    bucket = Bucket(Limits(rate=rate, burst=burst), 0.0, 0.0)
    now, out, begins = 0.0, 0, []
    for pause, what in schedule:
        now += pause
        if what == "take":
            while bucket.has_room(now):
                bucket.take()
                out += 1
        elif out and what == "begin":
            bucket.begun(now)
            begins.append(now)
            out -= 1
        elif out:
            bucket.unused()
            out -= 1
        assert bucket.out == out
        assert bucket.left + out <= burst
    for first, start in enumerate(begins):
        for last in range(first, len(begins)):
            assert last - first + 1 <= rate * (begins[last] - start) + burst + EPS


@given(st.floats(0.2, 50.0), st.integers(1, 5), st.floats(1.0, 60.0))
def test_a_backlog_is_served_at_exactly_the_rate(rate: float, burst: int, seconds: float) -> None:
    bucket = Bucket(Limits(rate=rate, burst=burst), 0.0, 0.0)
    now, begun = 0.0, 0
    while (at := bucket.next_at(now)) is not None and at <= seconds:
        now = max(now, at)
        assert bucket.has_room(now)
        bucket.take()
        bucket.begun(now)
        bucket.ended()
        begun += 1
    assert rate * seconds - 1 - EPS <= begun <= rate * seconds + EPS


def test_leave_that_was_not_used_is_not_lost() -> None:
    bucket = Bucket(Limits(rate=0.1, burst=1), 0.0, 10.0)
    assert bucket.has_room(10.0)
    bucket.take()
    assert not bucket.has_room(30.0)
    assert bucket.next_at(30.0) is None, "the time of a full bucket stands still"
    bucket.unused()
    assert bucket.has_room(30.0)


def test_a_concurrency_counts_until_the_end() -> None:
    bucket = Bucket(Limits(concurrency=1), 0.0, 0.0)
    bucket.take()
    bucket.begun(1.0)
    assert not bucket.has_room(9.0)
    assert bucket.next_at(9.0) is None
    bucket.ended()
    assert bucket.has_room(9.0)


def test_what_another_usher_let_in_counts() -> None:
    bucket = Bucket(Limits(rate=1.0, burst=1, concurrency=1), 0.0, 0.0)
    bucket.restore()
    assert not bucket.has_room(5.0)
    bucket.begun(5.0)
    bucket.ended()
    assert not bucket.has_room(5.9)
    assert bucket.has_room(6.0)


def test_a_bucket_may_be_held_whatever_is_in_it() -> None:
    bucket = Bucket(UNLIMITED, 0.0, 0.0)
    bucket.held_until = 5.0
    assert not bucket.has_room(4.9)
    assert bucket.next_at(4.9) == 5.0
    assert not bucket.is_fresh(4.9)
    assert bucket.has_room(5.0)
    assert bucket.is_fresh(5.0)


def test_other_limits_begin_with_nothing_saved_up() -> None:
    bucket = Bucket(Limits(rate=1.0, burst=5), 0.0, 5.0)
    bucket.change(Limits(rate=2.0, burst=5), 5.0)
    assert not bucket.has_room(5.4)
    assert bucket.has_room(5.5)


@given(st.floats(0.2, 20.0), st.integers(1, 5), st.floats(0.0, 30.0))
def test_a_fresh_bucket_is_what_a_new_one_would_be(rate: float, burst: int, now: float) -> None:
    limits = Limits(rate=rate, burst=burst)
    bucket = Bucket(limits, 0.0, 0.0)
    if bucket.is_fresh(now):
        assert Bucket(limits, 0.0, now).left == bucket.left == burst
