"""Signals to, and cancellations of, other workflows."""

from __future__ import annotations

import asyncio

from tests.worker.replays import Run, types
from tq_broker import workflow
from tq_broker.exceptions import ApplicationError
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev


@workflow.defn
class Calling:
    @workflow.run
    async def run(self) -> str:
        other = workflow.get_external_workflow_handle("other", run_id="r")
        try:
            await other.signal("poke", args=[1, 2])
            await other.cancel(reason="enough")
        except ApplicationError as error:
            return error.type or ""
        return "done"


def test_signal_then_cancel() -> None:
    run = Run(Calling)
    assert run.task().commands == [
        cmd.SignalExternalWorkflow(
            workflow_id="other", run_id="r", signal_name="poke", input=b"[1,2]"
        )
    ]
    asked = run.find(ev.SignalExternalWorkflowExecutionInitiated).event_id
    run.add(ev.ExternalWorkflowExecutionSignaled, initiated_event_id=asked, workflow_id="other")
    assert run.task().commands == [
        cmd.RequestCancelExternalWorkflow(workflow_id="other", run_id="r", reason="enough")
    ]
    asked = run.find(ev.RequestCancelExternalWorkflowExecutionInitiated).event_id
    run.add(
        ev.ExternalWorkflowExecutionCancelRequested, initiated_event_id=asked, workflow_id="other"
    )
    run.task()
    assert run.result() == "done"


def test_a_workflow_that_is_not_there() -> None:
    run = Run(Calling)
    run.task()
    asked = run.find(ev.SignalExternalWorkflowExecutionInitiated).event_id
    run.add(ev.SignalExternalWorkflowExecutionFailed, initiated_event_id=asked, workflow_id="other")
    run.task()
    assert run.result() == "ExternalWorkflowExecutionNotFound"


def test_what_was_not_sent_can_be_taken_back() -> None:
    @workflow.defn
    class Hasty:
        @workflow.run
        async def run(self) -> None:
            other = workflow.get_external_workflow_handle("other")
            task = asyncio.create_task(other.signal("poke"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    assert types(Run(Hasty).task()) == ["CompleteWorkflow"]


def test_what_was_sent_is_waited_for_no_longer() -> None:
    run = Run(Calling)
    run.task()
    run.cancel()
    assert types(run.task()) == ["CancelWorkflow"]


def test_an_answer_to_no_request() -> None:
    run = Run(Calling)
    run.task()
    run.add(ev.ExternalWorkflowExecutionSignaled, initiated_event_id=2, workflow_id="other")
    turn = run.task()
    assert turn.failure is not None
    assert "of event 2" in turn.failure.failure.message
