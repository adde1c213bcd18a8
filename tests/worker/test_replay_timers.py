"""Timers of a run."""

from __future__ import annotations

import asyncio
import sys

import pytest

from tests.worker.replays import Run, types
from tq_broker import workflow
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev


@workflow.defn
class Racing:
    @workflow.run
    async def run(self) -> str:
        self.event = asyncio.Event()
        try:
            await asyncio.wait_for(self.event.wait(), 10)
        except asyncio.TimeoutError:
            return "late"
        await asyncio.sleep(1)
        return "in time"

    @workflow.signal
    def hurry(self) -> None:
        self.event.set()


def test_a_timer_fires() -> None:
    run = Run(Racing)
    assert run.task().commands == [cmd.StartTimer(timer_id="1", start_to_fire_ms=10_000)]
    run.fire("1")
    run.task()
    assert run.result() == "late"


def test_a_timer_that_is_not_needed_any_more_is_cancelled() -> None:
    run = Run(Racing)
    run.task()
    run.signal("hurry")
    assert run.task().commands == [
        cmd.CancelTimer(timer_id="1"),
        cmd.StartTimer(timer_id="2", start_to_fire_ms=1000),
    ]


def test_firing_may_cross_with_the_cancellation() -> None:
    run = Run(Racing)
    run.task()
    run.signal("hurry")
    run.task()
    run.add(ev.TimerFired, timer_id="1", started_event_id=5)
    assert types(run.task()) == []


def test_signal_and_timer_in_the_same_task() -> None:
    run = Run(Racing)
    run.task()
    run.signal("hurry")
    run.fire("1")
    # The signal was first, so the wait is over before its timeout is; the timer has fired.
    assert "CancelTimer" not in types(run.task())


@pytest.mark.parametrize(
    ("delay", "commands"),
    [
        (0, []),
        (-1, []),
        (0.0001, [cmd.StartTimer(timer_id="1", start_to_fire_ms=1)]),
        (0.1, [cmd.StartTimer(timer_id="1", start_to_fire_ms=100)]),
    ],
)
def test_delays_are_whole_milliseconds(delay: float, commands: list[cmd.Command]) -> None:
    @workflow.defn
    class Sleeping:
        @workflow.run
        async def run(self, delay: float) -> None:
            await asyncio.sleep(delay)
            await workflow.sleep(0)
            await asyncio.Event().wait()

    assert Run(Sleeping, delay).task().commands == commands


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has it from Python 3.11 on")
def test_timeouts_and_task_groups() -> None:
    @workflow.defn
    class Modern:
        @workflow.run
        async def run(self) -> str:
            try:
                async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(100))
                    group.create_task(asyncio.sleep(1))
            except TimeoutError:
                return "late"
            return "done"

    run = Run(Modern)
    assert types(run.task()) == ["StartTimer"] * 3
    run.fire("3")
    assert types(run.task()) == []
    run.fire("1")
    assert types(run.task()) == ["CancelTimer", "CompleteWorkflow"]
    assert run.result() == "late"


def test_a_condition_that_raises_does_so_where_it_is_awaited() -> None:
    @workflow.defn
    class Raising:
        broken = False

        @workflow.run
        async def run(self) -> str:
            try:
                await workflow.wait_condition(self.condition)
            except KeyError:
                return "caught"
            return ""

        def condition(self) -> bool:
            if self.broken:
                raise KeyError
            return False

        @workflow.signal
        def break_it(self) -> None:
            self.broken = True

    run = Run(Raising)
    run.task()
    run.signal("break_it")
    run.task()
    assert run.result() == "caught"
