"""Waiting for some of many, in the order that was given."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.replays import Run, types
from tq_broker import workflow


@workflow.defn
class Some:
    @workflow.run
    async def run(self) -> list[Any]:
        async def give(number: int) -> int:
            await asyncio.sleep(number)
            return number

        done, pending = await workflow.wait(
            [give(3), give(0), give(2)], return_when=asyncio.FIRST_COMPLETED
        )
        order = [await each for each in workflow.as_completed(pending)]
        return [[task.result() for task in done], len(pending), order]


def test_lists_in_the_order_that_was_given() -> None:
    run = Run(Some)
    run.task()
    run.fire("2")
    run.fire("1")
    run.task()
    assert run.result() == [[0], 2, [2, 3]]


@workflow.defn
class Wrong:
    @workflow.run
    async def run(self) -> None:
        await workflow.sleep(timedelta(seconds=-1))


def test_a_negative_sleep_is_refused() -> None:
    turn = Run(Wrong).task()
    assert turn.failure is not None
    assert "duration" in turn.failure.failure.message


@workflow.defn
class Patient:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: True, timeout=5)
        with pytest.raises(asyncio.TimeoutError):
            await workflow.wait_condition(lambda: False, timeout=0)
        await workflow.wait_condition(
            lambda: False, timeout=timedelta(minutes=1), timeout_summary="a minute"
        )


def test_timeouts_of_conditions() -> None:
    run = Run(Patient)
    (command,) = run.task().commands
    assert types(run.task()) == []
    assert getattr(command, "summary", None) == "a minute"
