"""How a run ends: completed, failed, cancelled, continued, terminated or timed out.

What is pending then is let go: activities are told, children treated by their policies, whoever
waits is answered. If the chain goes on (a retry, a schedule, a continuation), the next run begins
in the same step, and a parent is told nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from tq_broker import retry
from tq_broker.exceptions import RetryState, TimeoutType
from tq_broker.history import (
    activities,
    bonds,
    children,
    cron,
    opening,
    updates,
    versions,
    workflow_task,
)
from tq_broker.history.effects import ReplyTo
from tq_broker.history.state import Execution
from tq_broker.history.step import NextRun
from tq_broker.history.turn import Turn
from tq_broker.model.commands import (
    CancelWorkflow,
    CompleteWorkflow,
    ContinueAsNew,
    FailWorkflow,
)
from tq_broker.model.events import (
    WorkflowExecutionCanceled,
    WorkflowExecutionCompleted,
    WorkflowExecutionContinuedAsNew,
    WorkflowExecutionFailed,
    WorkflowExecutionStarted,
    WorkflowExecutionTerminated,
    WorkflowExecutionTimedOut,
)
from tq_broker.model.failure import TARGET_GONE, Failure, FailureKind, application
from tq_broker.model.requests import ChildClosed, Closed, Status, Terminate
from tq_broker.model.tasks import retry_policy
from tq_broker.model.workflow_tasks import QueryAnswer, TargetMissing

WAITERS_MAX = 1_000
"""So many may wait for the result of one run."""

# --- by the workflow itself -----------------------------------------------------------------------


def complete(turn: Turn, command: CompleteWorkflow, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    following = _by_schedule(turn, result=command.result)
    turn.write(
        WorkflowExecutionCompleted,
        result=command.result,
        workflow_task_completed_event_id=completed_event_id,
        new_run_id=_id_of(following),
    )
    _close(turn, Status.COMPLETED, following, result=command.result)


def fail(turn: Turn, command: FailWorkflow, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    _fail(turn, command.failure, completed_event_id)


def _fail(turn: Turn, failure: Failure, completed_event_id: int = 0) -> None:
    following, state = _by_retry(turn, failure)
    if following is None:
        following = _by_schedule(turn, failure=failure)
    turn.write(
        WorkflowExecutionFailed,
        failure=failure,
        retry_state=state,
        workflow_task_completed_event_id=completed_event_id,
        new_run_id=_id_of(following),
    )
    _close(turn, Status.FAILED, following, failure=failure, retry_state=state)


def cancel(turn: Turn, command: CancelWorkflow, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    turn.write(
        WorkflowExecutionCanceled,
        details=command.details,
        workflow_task_completed_event_id=completed_event_id,
    )
    _close(turn, Status.CANCELED, None, details=command.details)


def continue_as_new(turn: Turn, command: ContinueAsNew, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    before = turn.run.started
    policy = before.retry_policy if command.retry_policy is None else command.retry_policy
    task_queue = command.task_queue or before.task_queue
    following = _following(
        turn,
        "continue_as_new",
        command.backoff_ms,
        workflow_type=command.workflow_type or before.workflow_type,
        task_queue=task_queue,
        input=command.input,
        run_timeout_ms=command.run_timeout_ms or before.run_timeout_ms,
        task_timeout_ms=command.task_timeout_ms or before.task_timeout_ms,
        retry_policy=policy,
        memo=turn.run.memo if command.memo is None else command.memo,
        attempt=1,
        inherited_version=versions.continued(
            turn.run, task_queue, command.initial_versioning_behavior, turn.deployments
        ),
        # The hosts of another task queue are others.
        **(bonds.handed_on(turn.run, before.affinity) if task_queue == before.task_queue else {}),
    )
    turn.write(
        WorkflowExecutionContinuedAsNew,
        new_run_id=following.run_id,
        workflow_type=following.workflow_type,
        task_queue=following.task_queue,
        input=following.input,
        workflow_task_completed_event_id=completed_event_id,
    )
    _close(turn, Status.CONTINUED_AS_NEW, following)


# --- from outside ---------------------------------------------------------------------------------


def terminate(turn: Turn, message: Terminate) -> None:
    """End the run without asking the workflow."""
    _interrupt(turn)
    turn.write(
        WorkflowExecutionTerminated,
        reason=message.reason,
        details=message.details,
        identity=message.identity,
    )
    _close(turn, Status.TERMINATED, None, details=message.details, reason=message.reason)


def strand(turn: Turn, message: TargetMissing) -> None:
    """Nobody lives who may have a workflow task, or queries, of the run, and it says to fail."""
    if workflow_task.falls_back(turn, message):
        return
    failure = application(message.why, TARGET_GONE, non_retryable=True)
    for query in message.task.queries:
        sender = ReplyTo(query.reply_to, query.correlation_id)
        turn.reply(sender, QueryAnswer(error="failed", failure=failure))
    if workflow_task.is_out(turn.run, message.task):
        _interrupt(turn)
        _fail(turn, failure)


def time_out(turn: Turn) -> None:
    """The run's time is over, or that of the whole chain."""
    _interrupt(turn)
    following = None
    state = int(RetryState.TIMEOUT)
    deadline_ms = turn.run.started.execution_deadline_ms
    if not deadline_ms or turn.now_ms < deadline_ms:
        failure = Failure(
            kind=FailureKind.TIMEOUT,
            message="workflow run timeout",
            timeout_type=int(TimeoutType.START_TO_CLOSE),
        )
        following, state = _by_retry(turn, failure)
        if following is None:
            following = _by_schedule(turn, failure=failure)
    turn.write(WorkflowExecutionTimedOut, retry_state=state, new_run_id=_id_of(following))
    _close(turn, Status.TIMED_OUT, following, retry_state=state)


def _interrupt(turn: Turn) -> None:
    """What came during the workflow task that is out is written down before the end."""
    turn.run.task = None
    turn.flush()


# --- who waits for it -----------------------------------------------------------------------------


def too_many(run: Execution, waiter: ReplyTo) -> str:
    """Why ``waiter`` cannot wait for the end of ``run``; "" if it can, or does already."""
    if waiter in run.waiters or len(run.waiters) < WAITERS_MAX:
        return ""
    return f"{WAITERS_MAX} wait for the result already"


def await_end(turn: Turn, waiter: ReplyTo) -> None:
    """Have ``waiter``, which is not one `too_many`, told of the end."""
    if waiter not in turn.run.waiters:
        turn.run.waiters.append(waiter)
        turn.changed = True


# --- the chain ------------------------------------------------------------------------------------


def _by_retry(turn: Turn, failure: Failure) -> tuple[WorkflowExecutionStarted | None, int]:
    """The next attempt of the workflow by its retry policy, or why there is none."""
    started = turn.run.started
    if started.retry_policy is None:
        return None, int(RetryState.RETRY_POLICY_NOT_SET)
    left = None
    if started.execution_deadline_ms:
        left = timedelta(milliseconds=started.execution_deadline_ms - turn.now_ms)
    decision = retry.decide(
        retry_policy(started.retry_policy), failure.attempt(started.attempt), left
    )
    if isinstance(decision, retry.GiveUp):
        return None, int(decision.state)
    following = _following(
        turn,
        "retry",
        round(decision.delay / timedelta(milliseconds=1)),
        attempt=started.attempt + 1,
        last_failure=failure,
    )
    return following, int(RetryState.IN_PROGRESS)


def _by_schedule(turn: Turn, **outcome: Any) -> WorkflowExecutionStarted | None:
    """The next run by the cron schedule, if there is one and its time is within bounds."""
    run = turn.run
    started = run.started
    if not started.cron_schedule:
        return None
    begun_ms = run.start_ms + started.first_task_backoff_ms
    pause_ms = cron.backoff_ms(started.cron_schedule, begun_ms, turn.now_ms)
    deadline_ms = started.execution_deadline_ms
    if deadline_ms and turn.now_ms + pause_ms >= deadline_ms:
        return None
    result = outcome.get("result", started.last_completion_result)
    return _following(
        turn,
        "cron",
        pause_ms,
        attempt=1,
        inherited_version="",
        last_completion_result=result,
        last_failure=outcome.get("failure"),
    )


def _following(
    turn: Turn, initiator: str, pause_ms: int, **changes: Any
) -> WorkflowExecutionStarted:
    started = turn.run.started
    fields: dict[str, Any] = {
        "memo": turn.run.memo,
        "last_failure": None,
        "affinity_target": "",  # a new attempt, and the next by a schedule, begin anew
        "affinity_firm": False,
    } | changes
    return msgspec.structs.replace(
        started,
        event_id=1,
        time_ms=turn.now_ms,
        run_id=opening.next_run_id(started.run_id),
        continued_run_id=started.run_id,
        initiator=initiator,
        first_task_backoff_ms=pause_ms,
        **fields,
    )


def _id_of(following: WorkflowExecutionStarted | None) -> str | None:
    return None if following is None else following.run_id


# --- the end --------------------------------------------------------------------------------------


def _close(
    turn: Turn,
    status: Status,
    following: WorkflowExecutionStarted | None,
    *,
    reason: str = "",
    **outcome: Any,
) -> None:
    """The closing event is written: let go of everything."""
    run = turn.run
    run.status = status
    run.close_ms = turn.now_ms
    run.closed = Closed(
        run_id=run.run_id, status=status, next_run_id=_id_of(following) or "", **outcome
    )
    if status is Status.TERMINATED and reason:
        failed = Failure(kind=FailureKind.TERMINATED, message=reason)
        run.closed = msgspec.structs.replace(run.closed, failure=failed)
    for waiter in run.waiters:
        turn.reply(waiter, run.closed)
    _let_go(turn)
    if following is None:
        _tell_parent(turn, run, run.closed)
    else:
        opened = opening.begin(following, turn.deployments)
        turn.next_run = NextRun(opened.run, workflow_task.finish(opened))


def _let_go(turn: Turn) -> None:
    run = turn.run
    for event_id, activity in run.activities.items():
        activities.abandon(turn, event_id, activity)
    children.release(turn)
    updates.release(turn)
    workflow_task.forget(run)
    run.activities, run.timers, run.externals = {}, {}, {}
    run.buffered, run.buffered_bytes, run.waiters = [], 0, []
    run.task, run.patient_ms = None, 0
    turn.wants_task = turn.publishes = False


def _tell_parent(turn: Turn, run: Execution, closed: Closed) -> None:
    parent = run.started.parent
    if parent is None:
        return
    told = ChildClosed(
        parent=parent,
        workflow_id=run.workflow_id,
        run_id=run.run_id,
        workflow_type=run.started.workflow_type,
        status=closed.status,
        result=closed.result,
        failure=closed.failure,
        details=closed.details,
        retry_state=closed.retry_state,
    )
    turn.to_shard(parent.workflow_id, told)
