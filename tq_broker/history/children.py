"""Children of a run, each the first of a chain of runs under its own workflow id: initiated, then
refused, or started and ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tq_broker.common import ParentClosePolicy
from tq_broker.history import bonds, versions
from tq_broker.history.state import Child
from tq_broker.history.turn import JUST_BEFORE, Turn
from tq_broker.model import failure
from tq_broker.model.commands import StartChildWorkflow
from tq_broker.model.events import (
    ChildWorkflowExecutionCanceled,
    ChildWorkflowExecutionCompleted,
    ChildWorkflowExecutionFailed,
    ChildWorkflowExecutionStarted,
    ChildWorkflowExecutionTerminated,
    ChildWorkflowExecutionTimedOut,
    ParentInfo,
    StartChildWorkflowExecutionFailed,
    StartChildWorkflowExecutionInitiated,
)
from tq_broker.model.requests import (
    ChildClosed,
    ChildRefused,
    ChildStarted,
    RequestCancel,
    StartWorkflow,
    Status,
    Terminate,
)

BY_POLICY = "by parent close policy"


def initiate(turn: Turn, command: StartChildWorkflow, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    fields = msgspec.structs.asdict(command) | bonds.handed_on(turn.run, command.affinity)
    event_id = turn.write(
        StartChildWorkflowExecutionInitiated,
        workflow_task_completed_event_id=completed_event_id,
        **fields,
    )
    policy = fields.pop("parent_close_policy")
    run = turn.run
    run.children[event_id] = Child(
        workflow_id=command.workflow_id,
        workflow_type=command.workflow_type,
        parent_close_policy=policy,
    )
    me = ParentInfo(workflow_id=run.workflow_id, run_id=run.run_id, initiated_event_id=event_id)
    version = versions.inherited(run, command.task_queue, turn.deployments)
    turn.to_shard(
        command.workflow_id, StartWorkflow(parent=me, inherited_version=version, **fields)
    )


def started(turn: Turn, message: ChildStarted) -> None:
    """The child's shard has started it."""
    child = turn.run.children.get(message.parent.initiated_event_id)
    if child is None or child.run_id:
        return
    child.run_id = message.run_id
    turn.learn(
        ChildWorkflowExecutionStarted,
        initiated_event_id=message.parent.initiated_event_id,
        workflow_id=message.workflow_id,
        run_id=message.run_id,
        workflow_type=message.workflow_type,
    )


def refused(turn: Turn, message: ChildRefused) -> None:
    """The child's shard has not started it."""
    initiated_event_id = message.parent.initiated_event_id
    child = turn.run.children.get(initiated_event_id)
    if child is None or child.run_id:
        return
    del turn.run.children[initiated_event_id]
    turn.learn(
        StartChildWorkflowExecutionFailed,
        initiated_event_id=initiated_event_id,
        workflow_id=message.workflow_id,
        workflow_type=message.workflow_type,
        cause=message.cause,
        message=message.message,
    )


_ENDS: dict[Status, tuple[Any, Callable[[ChildClosed], dict[str, Any]]]] = {
    Status.COMPLETED: (ChildWorkflowExecutionCompleted, lambda told: {"result": told.result}),
    Status.FAILED: (
        ChildWorkflowExecutionFailed,
        lambda told: {
            "failure": told.failure or failure.application("not said", "ChildFailed"),
            "retry_state": told.retry_state,
        },
    ),
    Status.CANCELED: (ChildWorkflowExecutionCanceled, lambda told: {"details": told.details}),
    Status.TIMED_OUT: (
        ChildWorkflowExecutionTimedOut,
        lambda told: {"retry_state": told.retry_state},
    ),
    Status.TERMINATED: (ChildWorkflowExecutionTerminated, lambda _: {}),
}


def closed(turn: Turn, message: ChildClosed) -> None:
    """The last run of the child's chain has ended."""
    initiated_event_id = message.parent.initiated_event_id
    children = turn.run.children
    if initiated_event_id not in children or message.status not in _ENDS:
        return
    # Its start may come later, or never.
    started(
        turn,
        ChildStarted(
            parent=message.parent,
            workflow_id=message.workflow_id,
            run_id=message.run_id,
            workflow_type=message.workflow_type,
        ),
    )
    child = children.pop(initiated_event_id)
    kind, fields = _ENDS[message.status]
    turn.learn(
        kind,
        initiated_event_id=initiated_event_id,
        started_event_id=child.started_event_id or JUST_BEFORE,
        workflow_id=message.workflow_id,
        run_id=message.run_id,
        workflow_type=message.workflow_type,
        **fields(message),
    )


def release(turn: Turn) -> None:
    """This run has ended: do with its children what their policies say."""
    run = turn.run
    for event_id, child in run.children.items():
        me = ParentInfo(workflow_id=run.workflow_id, run_id=run.run_id, initiated_event_id=event_id)
        if child.parent_close_policy == ParentClosePolicy.TERMINATE:
            turn.to_shard(
                child.workflow_id,
                Terminate(workflow_id=child.workflow_id, reason=BY_POLICY, parent=me),
            )
        elif child.parent_close_policy == ParentClosePolicy.REQUEST_CANCEL:
            turn.to_shard(
                child.workflow_id,
                RequestCancel(
                    workflow_id=child.workflow_id, reason=BY_POLICY, external=me, child_only=True
                ),
            )
    run.children = {}
