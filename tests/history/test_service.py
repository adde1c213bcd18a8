"""The service as a whole, on a broker and a store in memory: what its users are promised."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.history.worlds import World
from tq_broker.model.commands import CompleteWorkflow, ScheduleActivity
from tq_broker.model.requests import AwaitResult, Closed, Started, Status

ACTIVITY = ScheduleActivity(
    activity_id="1",
    activity_type="act",
    task_queue="q",
    input=b'{"args":[]}',
    start_to_close_ms=60_000,
)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_workflow_with_one_activity(world: World) -> None:
    world.service()
    started = world.start()
    assert isinstance(started, Started)
    task = world.workflow_task()
    assert [type(event).__name__ for event in task.events] == [
        "WorkflowExecutionStarted",
        "WorkflowTaskScheduled",
    ]
    world.complete(task, ACTIVITY, sticky="w1")
    activity = world.activity_task()
    world.report(activity, result=b"7")
    task = world.workflow_task()
    world.complete(task, CompleteWorkflow(result=b"8"))
    closed = world.ask(AwaitResult(workflow_id="w"))
    assert isinstance(closed, Closed)
    assert (closed.status, closed.result) == (Status.COMPLETED, b"8")
