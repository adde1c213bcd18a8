"""The machine's clock: bookings are called, once, in their order, unless they are cancelled."""

from __future__ import annotations

import threading
from queue import Queue

from tq_broker.clock import SystemClock, epoch_ms, remaining
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
