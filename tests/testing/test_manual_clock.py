"""A clock that is told the time."""

from __future__ import annotations

import threading

import pytest

from tq_broker.clock import Clock, epoch_ms, remaining
from tq_broker.exceptions import InvalidArgument
from tq_broker.testing.manual_clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(monotonic=0.0, wall=500.0)


def test_it_is_a_clock(clock: ManualClock) -> None:
    as_port: Clock = clock
    assert (as_port.monotonic(), as_port.wall()) == (0.0, 500.0)
    assert remaining(as_port, 2.5) == 2.5


def test_it_stands_still_until_it_is_advanced(clock: ManualClock) -> None:
    clock.advance(1.5)
    assert (clock.monotonic(), clock.wall()) == (1.5, 501.5)
    clock.advance(0)
    assert clock.monotonic() == 1.5


def test_sleeping_lets_time_pass(clock: ManualClock) -> None:
    clock.sleep(3)
    clock.sleep(-1)
    assert clock.monotonic() == 3.0


def test_it_never_goes_back(clock: ManualClock) -> None:
    with pytest.raises(InvalidArgument, match="seconds"):
        clock.advance(-0.1)


def test_bookings_are_called_in_the_order_of_their_times(clock: ManualClock) -> None:
    called: list[tuple[str, float]] = []
    for name, at in (("late", 3.0), ("first", 1.0), ("second", 1.0), ("never", 9.0)):
        clock.call_at(at, lambda name=name: called.append((name, clock.monotonic())))  # type: ignore[misc]
    clock.advance(5)
    assert called == [("first", 1.0), ("second", 1.0), ("late", 3.0)]
    assert clock.monotonic() == 5.0


def test_bookings_are_called_on_the_thread_that_advances(clock: ManualClock) -> None:
    threads: list[int] = []
    clock.call_at(1.0, lambda: threads.append(threading.get_ident()))
    clock.advance(1)
    assert threads == [threading.get_ident()]


def test_a_cancelled_booking_is_not_called(clock: ManualClock) -> None:
    called: list[str] = []
    timer = clock.call_at(1.0, lambda: called.append("cancelled"))
    assert clock.next_booking == 1.0
    timer.cancel()
    assert clock.next_booking is None
    clock.advance(2)
    assert called == []


def test_cancelling_what_was_called_already_is_harmless(clock: ManualClock) -> None:
    timer = clock.call_at(1.0, lambda: None)
    clock.advance(1)
    timer.cancel()


def test_a_booking_for_the_past_is_called_by_the_next_advance(clock: ManualClock) -> None:
    clock.advance(5)
    called: list[float] = []
    clock.call_at(1.0, lambda: called.append(clock.monotonic()))
    assert called == []
    clock.advance(0)
    assert called == [5.0]


def test_a_booking_may_book_for_the_time_that_is_passing(clock: ManualClock) -> None:
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(clock.monotonic())
        clock.call_at(clock.monotonic() + 1, tick)

    clock.call_at(1.0, tick)
    clock.advance(3)
    assert ticks == [1.0, 2.0, 3.0]


def test_a_booking_may_let_time_pass_itself(clock: ManualClock) -> None:
    called: list[float] = []
    clock.call_at(1.0, lambda: clock.sleep(5))
    clock.call_at(4.0, lambda: called.append(clock.monotonic()))
    clock.advance(2)
    assert called == [4.0]
    assert clock.monotonic() == 6.0


def test_many_small_steps_are_one_large_step(clock: ManualClock) -> None:
    called: list[bool] = []
    clock.call_at(0.1 + 0.2, lambda: called.append(True))
    clock.call_at(1.0, lambda: called.append(True))
    for _ in range(3):
        clock.advance(0.1)
    assert called == [True]
    for _ in range(7):
        clock.advance(0.1)
    assert called == [True, True]


def test_a_booking_sees_a_clock_that_is_not_before_its_time(clock: ManualClock) -> None:
    due = 0.1 + 0.2
    seen: list[bool] = []
    clock.call_at(due, lambda: seen.append(clock.monotonic() >= due))
    clock.advance(0.3)
    assert seen == [True]


def test_another_thread_may_book_while_bookings_are_called(clock: ManualClock) -> None:
    called: list[str] = []

    def meanwhile() -> None:
        other = threading.Thread(target=lambda: clock.call_at(2.0, lambda: called.append("x")))
        other.start()
        other.join(20)
        assert not other.is_alive()

    clock.call_at(1.0, meanwhile)
    clock.advance(3)
    assert called == ["x"]


def test_what_two_threads_sleep_adds_up(clock: ManualClock) -> None:
    threads = [threading.Thread(target=clock.sleep, args=(1.0,)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert clock.monotonic() == 10.0


def test_whole_milliseconds_come_out_whole() -> None:
    clock = ManualClock(wall=1_700_000_000.0)
    clock.advance(0.25)
    assert epoch_ms(clock) == 1_700_000_000_250
