"""Threads for workflow code: one is enough, until one is stuck."""

from __future__ import annotations

import asyncio
import gc
import queue
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from tests.worker.worlds import SOON_S
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.workflow_runner import LONG_S, Abandoned, Seat, WorkflowRunner

LIMIT_S = 2.0


class Bench:
    def __init__(self, threads_max: int = 3) -> None:
        self.clock = ManualClock()
        self.runner = WorkflowRunner(self.clock, threads_max)
        self.done: queue.Queue[tuple[str, int]] = queue.Queue()
        self.stacks: list[str] = []
        self.opened: list[threading.Event] = []

    def do(self, name: str) -> None:
        self.runner.submit(lambda seat: self.done.put((name, seat.number)))

    def block(self, *, watched: bool = True) -> threading.Event:
        """Work that blocks until the returned event is set."""
        begun, gate = threading.Event(), threading.Event()
        self.opened.append(gate)

        def work(seat: Seat) -> None:
            with seat.watched(LIMIT_S if watched else None, self.stacks.append):
                begun.set()
                assert gate.wait(SOON_S)
            self.done.put(("came back", seat.number))

        self.runner.submit(work)
        assert begun.wait(SOON_S)
        return gate

    def next(self) -> tuple[str, int]:
        return self.done.get(timeout=SOON_S)

    def tick(self) -> None:
        self.runner.tick(self.clock.monotonic())


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for gate in bench.opened:
        gate.set()
    bench.runner.close()


def test_one_thread_does_all_in_order(bench: Bench) -> None:
    for number in range(10):
        bench.do(str(number))
    assert [bench.next() for _ in range(10)] == [(str(number), 1) for number in range(10)]


def test_what_waits_behind_long_work_gets_a_thread_of_its_own(bench: Bench) -> None:
    gate = bench.block()
    bench.do("a")
    bench.tick()
    assert bench.done.empty(), "it may be quick"
    bench.clock.advance(2 * LONG_S)
    bench.tick()
    assert bench.next() == ("a", 2)
    gate.set()
    assert bench.next() == ("came back", 1)


def test_threads_have_a_bound() -> None:
    bench = Bench(threads_max=1)
    gate = bench.block()
    bench.do("a")
    bench.clock.advance(2 * LONG_S)
    bench.tick()
    gate.set()
    assert [bench.next(), bench.next()] == [("came back", 1), ("a", 1)]
    bench.runner.close()


def test_stuck_code_is_given_up_with_its_stack_and_another_thread_goes_on(bench: Bench) -> None:
    gate = bench.block()
    bench.do("after")
    bench.clock.advance(LIMIT_S)
    bench.tick()
    assert "gate.wait" in bench.stacks[0]
    name, number = bench.next()
    assert (name, number) == ("after", 2)
    gate.set()
    bench.do("more")
    assert bench.next() == ("more", 2), "what came back has no say any more"


@pytest.mark.parametrize("collects", [True, False])
def test_nothing_is_collected_while_stacks_are_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, collects: bool
) -> None:
    frames, seen = sys._current_frames, []

    def look() -> dict[int, FrameType]:
        seen.append(gc.isenabled())
        return frames()

    monkeypatch.setattr(sys, "_current_frames", look)
    bench.block()
    bench.clock.advance(LIMIT_S)
    if not collects:
        gc.disable()
    try:
        bench.tick()
        assert (seen, gc.isenabled()) == ([False], collects)
    finally:
        gc.enable()


def test_code_that_only_keeps_the_interpreter_busy_is_ended(bench: Bench) -> None:
    begun, ended = threading.Event(), threading.Event()

    def spin(seat: Seat) -> None:
        try:
            with seat.watched(LIMIT_S, bench.stacks.append):
                while True:
                    begun.set()
        finally:
            ended.set()

    bench.runner.submit(spin)
    assert begun.wait(SOON_S)
    bench.clock.advance(LIMIT_S)
    bench.tick()
    assert ended.wait(SOON_S)


def test_code_that_is_quick_enough_is_left_alone(bench: Bench) -> None:
    gate = bench.block()
    bench.clock.advance(LIMIT_S - 0.01)
    bench.tick()
    gate.set()
    assert bench.next() == ("came back", 1)
    assert bench.stacks == []


def test_without_a_limit_nobody_watches(bench: Bench) -> None:
    gate = bench.block(watched=False)
    bench.clock.advance(1000)
    bench.tick()
    gate.set()
    assert bench.next() == ("came back", 1)


def test_who_was_given_up_learns_it_when_it_comes_back() -> None:
    clock = ManualClock()
    seat = Seat(clock, 1)
    told: list[str] = []

    def too_slow() -> None:
        with seat.watched(LIMIT_S, told.append):
            clock.advance(LIMIT_S)
            on_stuck = seat.give_up(clock.monotonic())
            assert on_stuck is not None

    with pytest.raises(Abandoned):
        too_slow()


@pytest.mark.parametrize("defect", [ZeroDivisionError, asyncio.CancelledError, SystemExit])
def test_a_defect_ends_no_thread(
    bench: Bench, caplog: pytest.LogCaptureFixture, defect: type[BaseException]
) -> None:
    def broken(seat: Seat) -> None:
        raise defect

    bench.runner.submit(broken)
    bench.do("a")
    assert bench.next() == ("a", 1)
    assert defect.__name__ in caplog.text


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_the_first_thread_comes_when_the_system_has_one_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        bench.do("a")
        bench.tick()
    assert caplog.text.count("can't start new thread") == 1
    bench.tick()
    assert bench.next() == ("a", 1)


def test_the_threads_that_there_are_do_it_all_where_there_are_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = bench.block()
    bench.do("a")
    bench.clock.advance(2 * LONG_S)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        bench.tick()
    gate.set()
    assert [bench.next(), bench.next()] == [("came back", 1), ("a", 1)]


def test_stuck_code_is_given_up_also_where_no_other_thread_can_go_on_yet(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.block()
    bench.do("after")
    bench.clock.advance(LIMIT_S)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        bench.tick()
    assert "gate.wait" in bench.stacks[0]
    bench.tick()
    assert bench.next() == ("after", 2)


def test_what_was_submitted_before_the_end_is_done(bench: Bench) -> None:
    gate = bench.block()
    bench.do("a")
    bench.runner.close()
    gate.set()
    assert bench.next()[0] == "came back"
    assert bench.next() == ("a", 1)
