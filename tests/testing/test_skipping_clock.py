"""A clock that can be put forward."""

from __future__ import annotations

import threading

import pytest

from tq_broker.clock import Clock, SystemClock
from tq_broker.exceptions import InvalidArgument
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.testing.skipping_clock import SkippingClock

MONTH_S = 30 * 86400.0


@pytest.fixture
def real() -> ManualClock:
    return ManualClock(monotonic=0.0, wall=500.0)


@pytest.fixture
def clock(real: ManualClock) -> SkippingClock:
    return SkippingClock(real)


def test_it_is_a_clock_that_goes_with_the_real_one(real: ManualClock, clock: SkippingClock) -> None:
    as_port: Clock = clock
    real.advance(2)
    assert (as_port.monotonic(), as_port.wall()) == (2.0, 502.0)


def test_a_skip_is_added_for_good(real: ManualClock, clock: SkippingClock) -> None:
    clock.skip(MONTH_S)
    real.advance(1)
    assert (clock.monotonic(), clock.wall()) == (MONTH_S + 1, MONTH_S + 501)


def test_it_never_goes_back(clock: SkippingClock) -> None:
    with pytest.raises(InvalidArgument, match="seconds"):
        clock.skip(-1)


def test_what_was_booked_comes_earlier_by_what_is_skipped(
    real: ManualClock, clock: SkippingClock
) -> None:
    called: list[float] = []
    clock.call_at(10.0, lambda: called.append(clock.monotonic()))
    clock.skip(7)
    real.advance(2.5)
    assert called == []
    real.advance(0.5)
    assert called == [10.0]
    real.advance(100)
    assert len(called) == 1


def test_what_was_skipped_is_called_in_order_and_sees_the_time_after_it(
    real: ManualClock, clock: SkippingClock
) -> None:
    called: list[tuple[str, float]] = []
    for name, at in (("late", 3.0), ("first", 1.0), ("never", 9.0)):
        clock.call_at(at, lambda name=name: called.append((name, clock.monotonic())))  # type: ignore[misc]
    clock.skip(5)
    real.advance(0)
    assert called == [("first", 5.0), ("late", 5.0)]


def test_what_books_itself_again_is_called_once_for_a_skip(
    real: ManualClock, clock: SkippingClock
) -> None:
    calls: list[float] = []

    def beat() -> None:
        calls.append(clock.monotonic())
        clock.call_at(clock.monotonic() + 1, beat)

    beat()
    clock.skip(MONTH_S)
    real.advance(0)
    assert calls == [0.0, MONTH_S]


def test_a_cancelled_booking_is_not_called(real: ManualClock, clock: SkippingClock) -> None:
    called: list[str] = []
    timer = clock.call_at(1.0, lambda: called.append("cancelled"))
    timer.cancel()
    timer.cancel()
    clock.skip(5)
    real.advance(5)
    assert called == []
    assert real.next_booking is None


def test_a_skip_ends_who_sleeps() -> None:
    clock = SkippingClock(SystemClock())
    sleeper = threading.Thread(target=clock.sleep, args=(MONTH_S,))
    sleeper.start()
    while sleeper.is_alive():
        clock.skip(MONTH_S)  # not before it has begun
        sleeper.join(0.001)
    assert not sleeper.is_alive()
