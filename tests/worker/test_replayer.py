"""Replaying stored histories with code that fits them, and with code that does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tq_broker import activity, workflow
from tq_broker.converter import DataConverter
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.events import WorkflowTaskScheduled as TaskScheduled
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.testing import WorkflowEnvironment
from tq_broker.worker import Replayer, Worker
from tq_broker.workflow import NondeterminismError

SOON = timedelta(seconds=10)


@activity.defn
async def double(number: int) -> int:
    return 2 * number


@workflow.defn(name="Sum")
class Written:
    @workflow.run
    async def run(self, number: int) -> int:
        doubled = await workflow.execute_activity(double, number, start_to_close_timeout=SOON)
        await workflow.sleep(timedelta(days=1))
        return doubled + 1


@workflow.defn(name="Sum")
class Reordered:
    @workflow.run
    async def run(self, number: int) -> int:
        await workflow.sleep(timedelta(days=1))
        doubled = await workflow.execute_activity(double, number, start_to_close_timeout=SOON)
        return doubled + 1


@workflow.defn(name="Sum")
class Broken:
    @workflow.run
    async def run(self, number: int) -> int:
        raise ValueError("nothing works")


@pytest.fixture(scope="module")
def history() -> WorkflowHistory:
    """What a worker has written."""

    async def journey() -> WorkflowHistory:
        async with (
            await WorkflowEnvironment.start_time_skipping() as env,
            Worker(env.client, task_queue="t", workflows=[Written], activities=[double]),
        ):
            handle = await env.client.start_workflow(Written.run, 3, id="w", task_queue="t")
            assert await handle.result() == 7
            return await handle.fetch_history()

    return asyncio.run(asyncio.wait_for(journey(), 60))


def replay(code: type, history: WorkflowHistory, **options: Any) -> Any:
    replayer = Replayer(workflows=[code])
    return asyncio.run(replayer.replay_workflow(history, **options))


def test_code_that_has_written_a_history_fits_it(history: WorkflowHistory) -> None:
    result = replay(Written, history)
    assert result.history is history
    assert result.replay_failure is None


def test_a_history_may_come_from_a_file(history: WorkflowHistory) -> None:
    read = WorkflowHistory.from_json("w", history.to_json())
    assert replay(Written, read).replay_failure is None


def test_a_history_may_be_that_of_an_open_run(history: WorkflowHistory) -> None:
    waiting = [n for n, event in enumerate(history.events) if isinstance(event, TaskScheduled)]
    assert len(waiting) == 3
    for index in waiting:
        part = WorkflowHistory("w", history.events[: index + 1])
        assert replay(Written, part).replay_failure is None


def test_code_that_asks_for_something_else_is_named(history: WorkflowHistory) -> None:
    with pytest.raises(NondeterminismError, match="ActivityTaskScheduled"):
        replay(Reordered, history)


def test_code_that_raises_is_a_failure_of_the_replay(history: WorkflowHistory) -> None:
    with pytest.raises(ValueError, match="nothing works"):
        replay(Broken, history)


@pytest.mark.parametrize("code", [Reordered, Broken])
def test_an_exception_that_fails_the_workflow_does_not_make_the_code_fit(
    code: type, history: WorkflowHistory
) -> None:
    replayer = Replayer(workflows=[code], workflow_failure_exception_types=[Exception])
    with pytest.raises(NondeterminismError):
        asyncio.run(replayer.replay_workflow(history))


def test_a_failure_can_be_collected(history: WorkflowHistory) -> None:
    failure = replay(Reordered, history, raise_on_replay_failure=False).replay_failure
    assert isinstance(failure, NondeterminismError)


def test_several_are_replayed_in_turn(history: WorkflowHistory) -> None:
    foreign = WorkflowHistory("none", [])

    async def both() -> AsyncIterator[WorkflowHistory]:
        yield history
        yield foreign

    replayer = Replayer(workflows=[Reordered])
    for histories in ([history, foreign], both()):
        results = asyncio.run(replayer.replay_workflows(histories, raise_on_replay_failure=False))
        assert list(results.replay_failures) == [history.run_id, ""]
    with pytest.raises(NondeterminismError):
        asyncio.run(replayer.replay_workflows([history]))


def test_what_cannot_be_replayed_is_said(history: WorkflowHistory) -> None:
    @workflow.defn
    class Other:
        @workflow.run
        async def run(self) -> None: ...

    with pytest.raises(InvalidArgument, match="no workflow 'Sum' here; there are: Other"):
        replay(Other, history)
    with pytest.raises(InvalidArgument, match="first event"):
        replay(Written, WorkflowHistory("w", history.events[1:]))
    with pytest.raises(InvalidArgument, match="At least one workflow"):
        Replayer(workflows=[])
    with pytest.raises(InvalidArgument, match="More than one workflow named Sum"):
        Replayer(workflows=[Written, Broken])


def test_it_has_the_converter_of_the_worker(history: WorkflowHistory) -> None:
    replayer = Replayer(workflows=[Written], data_converter=DataConverter(), namespace="n")
    assert asyncio.run(replayer.replay_workflow(history)).replay_failure is None
