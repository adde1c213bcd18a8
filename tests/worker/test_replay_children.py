"""Child workflows of a run."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.replays import Run, types
from tq_broker import workflow
from tq_broker.common import (
    ParentClosePolicy,
    Requires,
    RetryPolicy,
    Route,
    WorkflowIDReusePolicy,
)
from tq_broker.exceptions import ChildWorkflowError, WorkflowAlreadyStartedError
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev
from tq_broker.model.failure import application
from tq_broker.model.tasks import WireRetryPolicy, dump_requires, dump_route
from tq_broker.workflow import ChildWorkflowCancellationType


@workflow.defn
class Child:
    @workflow.run
    async def run(self, number: int) -> int: ...

    @workflow.signal
    def poke(self, how: str) -> None: ...


@workflow.defn
class Mother:
    @workflow.run
    async def run(self, kind: str = "WAIT_CANCELLATION_COMPLETED") -> list[Any]:
        try:
            handle = await workflow.start_child_workflow(
                Child.run, 5, id="kid", cancellation_type=ChildWorkflowCancellationType[kind]
            )
            self.handle = handle
            return ["result", await handle, handle.id, handle.first_execution_run_id]
        except WorkflowAlreadyStartedError as error:
            return ["taken", error.workflow_id]
        except ChildWorkflowError as error:
            return [type(error.cause).__name__, error.workflow_id, error.run_id]

    @workflow.signal
    async def poke(self) -> None:
        await self.handle.signal(Child.poke, "softly")


def started(run: Run) -> dict[str, Any]:
    """The child runs; returns what its further events have in common."""
    initiated = run.find(ev.StartChildWorkflowExecutionInitiated)
    common = {
        "initiated_event_id": initiated.event_id,
        "workflow_id": initiated.workflow_id,
        "run_id": "kid-run",
        "workflow_type": "Child",
    }
    event = run.add(ev.ChildWorkflowExecutionStarted, **common)
    return {**common, "started_event_id": event.event_id}


def test_a_child_is_started_and_awaited() -> None:
    run = Run(Mother, priority=2)
    assert run.task().commands == [
        cmd.StartChildWorkflow(
            workflow_id="kid", workflow_type="Child", task_queue="tq", input=b"[5]", priority=2
        )
    ]
    common = started(run)
    assert types(run.task()) == []
    run.add(ev.ChildWorkflowExecutionCompleted, result=b"10", **common)
    run.task()
    assert run.result() == ["result", 10, "kid", "kid-run"]


def test_all_options_arrive() -> None:
    @workflow.defn
    class Particular:
        @workflow.run
        async def run(self) -> None:
            await workflow.execute_child_workflow(
                "Child",
                args=[1, 2],
                task_queue="other",
                parent_close_policy=ParentClosePolicy.ABANDON,
                execution_timeout=timedelta(seconds=1),
                run_timeout=timedelta(seconds=2),
                task_timeout=timedelta(seconds=3),
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                retry_policy=RetryPolicy(maximum_attempts=2),
                cron_schedule="* * * * *",
                memo={"a": 1},
                priority=1,
                static_summary="s",
                static_details="d",
            )

    (command,) = Run(Particular).task().commands
    assert isinstance(command, cmd.StartChildWorkflow)
    assert len(command.workflow_id) == 36
    assert command == cmd.StartChildWorkflow(
        workflow_id=command.workflow_id,
        workflow_type="Child",
        task_queue="other",
        input=b"[1,2]",
        parent_close_policy=2,
        execution_timeout_ms=1000,
        run_timeout_ms=2000,
        task_timeout_ms=3000,
        id_reuse_policy=3,
        retry_policy=WireRetryPolicy(attempts=2),
        cron_schedule="* * * * *",
        memo={"a": b"1"},
        priority=1,
        static_summary="s",
        static_details="d",
    )


def test_an_id_that_is_taken() -> None:
    run = Run(Mother)
    run.task()
    run.add(
        ev.StartChildWorkflowExecutionFailed,
        initiated_event_id=run.find(ev.StartChildWorkflowExecutionInitiated).event_id,
        workflow_id="kid",
        workflow_type="Child",
        cause="already_exists",
    )
    run.task()
    assert run.result() == ["taken", "kid"]


@pytest.mark.parametrize(
    ("event_class", "more", "cause"),
    [
        (
            ev.ChildWorkflowExecutionFailed,
            {"failure": application("no", "Bad")},
            "ApplicationError",
        ),
        (ev.ChildWorkflowExecutionCanceled, {}, "CancelledError"),
        (ev.ChildWorkflowExecutionTimedOut, {}, "TimeoutError"),
        (ev.ChildWorkflowExecutionTerminated, {}, "TerminatedError"),
    ],
)
def test_a_child_that_ends_badly(event_class: type, more: dict[str, Any], cause: str) -> None:
    run = Run(Mother)
    run.task()
    common = started(run)
    run.add(event_class, **common, **more)
    run.task()
    assert run.result() == [cause, "kid", "kid-run"]


def test_a_child_is_signalled() -> None:
    run = Run(Mother)
    run.task()
    started(run)
    run.task()
    run.signal("poke")
    assert run.task().commands == [
        cmd.SignalExternalWorkflow(
            workflow_id="kid", signal_name="poke", input=b'["softly"]', child_only=True
        )
    ]


REQUEST = [cmd.RequestCancelExternalWorkflow(workflow_id="kid", child_only=True)]


@pytest.mark.parametrize("kind", ["TRY_CANCEL", "ABANDON"])
def test_a_cancellation_that_does_not_wait(kind: str) -> None:
    run = Run(Mother, kind)
    run.task()
    common = started(run)
    run.task()
    run.cancel()
    turn = run.task()
    assert turn.commands[:-1] == (REQUEST if kind == "TRY_CANCEL" else [])
    assert run.result()[0] == "CancelledError"
    assert common


def test_a_cancellation_that_waits_for_the_childs_end() -> None:
    run = Run(Mother)
    run.task()
    common = started(run)
    run.task()
    run.cancel()
    assert run.task().commands == REQUEST
    requested = run.find(ev.RequestCancelExternalWorkflowExecutionInitiated)
    run.add(
        ev.ExternalWorkflowExecutionCancelRequested,
        initiated_event_id=requested.event_id,
        workflow_id="kid",
    )
    assert types(run.task()) == []
    run.add(ev.ChildWorkflowExecutionCanceled, **common)
    run.task()
    assert run.result()[0] == "CancelledError"


def test_a_cancellation_that_waits_for_the_request_to_arrive() -> None:
    run = Run(Mother, "WAIT_CANCELLATION_REQUESTED")
    run.task()
    run.cancel()
    assert run.task().commands == REQUEST
    requested = run.find(ev.RequestCancelExternalWorkflowExecutionInitiated)
    run.add(
        ev.ExternalWorkflowExecutionCancelRequested,
        initiated_event_id=requested.event_id,
        workflow_id="kid",
    )
    run.task()
    assert run.result()[0] == "CancelledError"


def test_a_child_that_was_cancelled_before_it_was_asked_for() -> None:
    run = Run(Mother)
    run.cancel()
    assert types(run.task()) == ["CompleteWorkflow"]
    assert run.result()[0] == "CancelledError"


def test_a_child_that_nobody_started_is_no_history_of_this_code() -> None:
    run = Run(Mother)
    run.task()
    run.add(
        ev.ChildWorkflowExecutionStarted,
        initiated_event_id=2,
        workflow_id="x",
        run_id="x",
        workflow_type="X",
    )
    turn = run.task()
    assert turn.failure is not None
    assert "of event 2" in turn.failure.failure.message


def test_one_that_is_refused_says_why() -> None:
    run = Run(Mother)
    run.task()
    run.add(
        ev.StartChildWorkflowExecutionFailed,
        initiated_event_id=run.find(ev.StartChildWorkflowExecutionInitiated).event_id,
        workflow_id="kid",
        workflow_type="Child",
        cause="invalid_argument",
        message="version 'shop.9' is not known",
    )
    run.task()
    assert run.result() == ["ApplicationError", "kid", ""]


@workflow.defn(
    task_queue="kids", priority=1, version="shop.1", requires={"gpu"}, route=Route.host("h")
)
class Decorated:
    @workflow.run
    async def run(self) -> None: ...


@workflow.defn
class Chooser:
    @workflow.run
    async def run(self) -> None:
        await asyncio.gather(
            workflow.execute_child_workflow(Decorated.run, id="decorator"),
            workflow.execute_child_workflow("Other", id="inherited"),
            workflow.execute_child_workflow(
                Decorated.run,
                id="call",
                task_queue="x",
                priority=4,
                version="auto_upgrade",
                requires=(),
                route=Route.process("p"),
            ),
        )


def test_the_call_wins_over_the_decorator_and_that_over_the_workflow() -> None:
    commands = Run(Chooser, priority=2).task().commands
    assert [
        (one.workflow_id, one.task_queue, one.priority, one.versioning_override) for one in commands
    ] == [
        ("decorator", "kids", 1, "shop.1"), ("inherited", "tq", 2, ""),
        ("call", "x", 4, "auto_upgrade"),
    ]  # fmt: skip
    assert [(one.route, one.requires) for one in commands] == [
        (dump_route(Route.host("h")), dump_requires(Requires({"gpu"}))), (None, None),
        (dump_route(Route.process("p")), None),
    ]  # fmt: skip


@workflow.defn(affinity="process", affinity_group="g")
class Bonded:
    @workflow.run
    async def run(self) -> None: ...


@workflow.defn
class Family:
    @workflow.run
    async def run(self) -> None:
        calls: list[tuple[Any, dict[str, Any]]] = [
            ("Child", {}), ("Child", {"task_queue": "else"}), ("Child", {"on_lost": "fail"}),
            ("Child", {"affinity": "host"}), (Bonded.run, {}), (Bonded.run, {"on_lost": "wait"}),
            ("Child", {"route": Route.host("h")}), ("Child", {"affinity": "ship"}),
        ]  # fmt: skip
        starts = [workflow.start_child_workflow(child, **options) for child, options in calls]
        await asyncio.gather(*starts, return_exceptions=True)


def test_children_have_the_affinity_of_the_call_the_decorator_or_the_run() -> None:
    own = '{"kind":"host","group":"h","on-lost":"wait"}'
    commands = Run(Family, affinity=own).task().commands
    assert [one.affinity for one in commands if isinstance(one, cmd.StartChildWorkflow)] == [
        own,
        None,
        '{"kind":"host","group":"h"}',
        '{"kind":"host"}',
        '{"kind":"process","group":"g"}',
        '{"kind":"process","group":"g","on-lost":"wait"}',
        own,  # a child's route is about its own tasks
    ], "what cannot be an affinity is refused"
