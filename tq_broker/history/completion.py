"""What a workflow has answered to its task: commands, which become events and effects.

The order in the history is that of the replay: the task's end, the events of the commands, then
what came meanwhile. A workflow that wants to end while something has come that it has not seen is
asked again, as in Temporal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tq_broker.history import (
    activities,
    children,
    closing,
    externals,
    plan,
    timers,
    updates,
    workflow_task,
)
from tq_broker.history.state import Task
from tq_broker.history.turn import Turn
from tq_broker.model import commands, failure
from tq_broker.model.events import MarkerRecorded, WorkflowPropertiesModified
from tq_broker.model.workflow_tasks import TaskFailedCause, WorkflowTaskCompleted


def completed(turn: Turn, answer: WorkflowTaskCompleted) -> None:
    """Take in the answer of a worker."""
    run = turn.run
    task = workflow_task.answered(run, answer)
    if task is None:
        return
    wrong = plan.problem(run, answer.commands)
    if wrong is not None:
        told = failure.application(wrong, "BadCommand")
        cause = TaskFailedCause.BAD_COMMAND.value
        workflow_task.fail(turn, answer, cause, told, answer.started_ms)
    elif _ends(answer) and (run.buffered or updates.are_unseen(run)):
        cause = TaskFailedCause.UNHANDLED_COMMAND.value
        workflow_task.fail(turn, answer, cause, None, answer.started_ms)
    else:
        _carry_out(turn, task, answer)


def _ends(answer: WorkflowTaskCompleted) -> bool:
    return bool(answer.commands) and isinstance(answer.commands[-1], commands.CLOSING)


def _carry_out(turn: Turn, task: Task, answer: WorkflowTaskCompleted) -> None:
    run = turn.run
    event_id = workflow_task.complete(turn, task, answer, answer.started_ms)
    run.current_details = answer.current_details
    for command in answer.commands:
        _DO[type(command)](turn, command, event_id)
    if not run.is_open:
        return
    if answer.sticky and answer.worker_id:
        run.sticky_worker = answer.worker_id
        run.sticky_timeout_ms = answer.sticky_timeout_ms
        run.seen_event_id = task.scheduled_event_id
    else:
        workflow_task.forget(run)
    run.task = None
    turn.flush()
    if updates.are_unseen(run):
        turn.wants_task = True


def _mark(turn: Turn, command: commands.RecordMarker, completed_event_id: int) -> None:
    turn.write(
        MarkerRecorded,
        marker_name=command.marker_name,
        details=command.details,
        failure=command.failure,
        workflow_task_completed_event_id=completed_event_id,
    )


def _modify(turn: Turn, command: commands.ModifyProperties, completed_event_id: int) -> None:
    turn.write(
        WorkflowPropertiesModified,
        upserted_memo=command.upserted_memo,
        workflow_task_completed_event_id=completed_event_id,
    )
    memo = {**turn.run.memo, **command.upserted_memo}
    turn.run.memo = {name: value for name, value in memo.items() if value is not None}


_DO: dict[type, Callable[[Turn, Any, int], None]] = {
    commands.ScheduleActivity: activities.schedule,
    commands.RequestCancelActivity: activities.request_cancel,
    commands.StartTimer: timers.start,
    commands.CancelTimer: timers.cancel,
    commands.RecordMarker: _mark,
    commands.StartChildWorkflow: children.initiate,
    commands.SignalExternalWorkflow: externals.signal,
    commands.RequestCancelExternalWorkflow: externals.cancel,
    commands.ModifyProperties: _modify,
    commands.AcceptUpdate: updates.accept,
    commands.RejectUpdate: updates.reject,
    commands.CompleteUpdate: updates.complete,
    commands.CompleteWorkflow: closing.complete,
    commands.FailWorkflow: closing.fail,
    commands.CancelWorkflow: closing.cancel,
    commands.ContinueAsNew: closing.continue_as_new,
}
