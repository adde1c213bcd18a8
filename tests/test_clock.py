"""The machine's clock: bookings are called, once, in their order, unless they are cancelled."""

from __future__ import annotations

import os
import threading
import weakref
from queue import Queue

import pytest

from tq_broker.clock import SWEEP_FROM, SystemClock, epoch_ms, remaining
from tq_broker.testing.manual_clock import ManualClock

SOON_S = 20.0


def test_bookings_are_called_in_the_order_of_their_times() -> None:
    clock, called = SystemClock(), Queue[str]()
    now = clock.monotonic()
    clock.call_at(now + 0.04, lambda: called.put("late"))
    clock.call_at(now + 0.02, lambda: called.put("early"))
    clock.call_at(now - 5, lambda: called.put("over already"))
    assert [called.get(timeout=SOON_S) for _ in range(3)] == ["over already", "early", "late"]


def test_bookings_for_the_same_time_are_called_in_the_order_of_booking() -> None:
    clock, called = SystemClock(), Queue[int]()
    due = clock.monotonic() + 0.02
    for number in range(20):
        clock.call_at(due, lambda number=number: called.put(number))
    assert [called.get(timeout=SOON_S) for _ in range(20)] == list(range(20))


def test_a_cancelled_booking_is_not_called() -> None:
    clock, called = SystemClock(), Queue[str]()
    now = clock.monotonic()
    clock.call_at(now + 0.01, lambda: called.put("cancelled")).cancel()
    timer = clock.call_at(now + 0.02, lambda: called.put("kept"))
    assert called.get(timeout=SOON_S) == "kept"
    timer.cancel()
    assert called.empty()


def test_an_earlier_booking_overtakes_the_one_that_is_waited_for() -> None:
    clock, called = SystemClock(), Queue[str]()
    far = clock.call_at(clock.monotonic() + 3600, lambda: called.put("far"))
    clock.call_at(clock.monotonic(), lambda: called.put("near"))
    assert called.get(timeout=SOON_S) == "near"
    far.cancel()


def test_a_booking_may_book() -> None:
    clock, called = SystemClock(), Queue[str]()
    clock.call_at(0, lambda: clock.call_at(0, lambda: called.put("second")) and None)
    assert called.get(timeout=SOON_S) == "second"


def test_all_is_called_on_one_daemon_thread_that_starts_with_the_first_booking() -> None:
    clock, threads = SystemClock(), Queue[threading.Thread]()
    assert clock._thread is None
    for _ in range(2):
        clock.call_at(0, lambda: threads.put(threading.current_thread()))
    first, second = threads.get(timeout=SOON_S), threads.get(timeout=SOON_S)
    assert first is second
    assert first.daemon
    assert first.name == "tq-clock"


def test_time_only_grows_and_sleep_takes_no_negative() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    clock.sleep(-1)
    assert clock.monotonic() >= before
    assert clock.wall() > 1_600_000_000


def test_what_remains_is_never_negative() -> None:
    clock = ManualClock(monotonic=100)
    assert remaining(clock, 103.5) == 3.5
    assert remaining(clock, 90) == 0


def test_epoch_is_told_in_whole_milliseconds() -> None:
    assert epoch_ms(ManualClock(wall=1_700_000_000.125)) == 1_700_000_000_125


class Ballast:
    """What a booking holds."""

    def take(self) -> None: ...


def test_a_cancelled_booking_holds_nothing() -> None:
    clock, ballast = SystemClock(), Ballast()
    held = weakref.ref(ballast)
    timer = clock.call_at(clock.monotonic() + 3600, ballast.take)
    del ballast
    assert held() is not None
    timer.cancel()
    assert held() is None


def test_cancelled_bookings_of_far_times_do_not_add_up() -> None:
    clock, called = SystemClock(), Queue[str]()
    far = clock.monotonic() + 3600
    kept = [clock.call_at(far, lambda: None) for _ in range(600)]
    for _ in range(5 * SWEEP_FROM):
        clock.call_at(far, lambda: None).cancel()
    assert len(clock._heap) <= 2 * SWEEP_FROM
    assert {booking for _, _, booking in clock._heap} >= set(kept)
    clock.call_at(clock.monotonic(), lambda: called.put("near"))
    assert called.get(timeout=SOON_S) == "near"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_begins_without_the_bookings_of_its_parent() -> None:
    clock, called = SystemClock(), Queue[str]()
    clock.call_at(clock.monotonic() + 3600, lambda: None)
    reading, writing = os.pipe()
    with clock._changed:  # as if the clock's thread were at work in the instant of the fork
        child = os.fork()
        if not child:
            try:
                clock.call_at(clock.monotonic() + 0.01, lambda: called.put("called"))
                os.write(writing, f"{called.get(timeout=SOON_S)}, {len(clock._heap)} left".encode())
            finally:
                os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() == "called, 0 left"
    os.waitpid(child, 0)
