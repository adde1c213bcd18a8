"""The execution state machine: a run's state and a message in, events and effects out.

Pure: it knows no store, no queue and no clock; the time comes in. The functions here change the
`Execution` that they are given, in place. When storing that fails the caller throws the object away
and loads it again; nothing of a step that was not stored has left the process.

A message that is late, a duplicate, or about something that is over changes nothing
(`Step.changed` is False) and is only answered if somebody waits for an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Union

from tq_broker.history import (
    activities,
    children,
    closing,
    completion,
    cron,
    describe,
    externals,
    opening,
    queries,
    timers,
    updates,
    workflow_task,
)
from tq_broker.history.effects import Effect, Reply, ReplyTo, ToShard
from tq_broker.history.state import Execution
from tq_broker.history.step import Step
from tq_broker.history.turn import Turn
from tq_broker.model import requests, workflow_tasks
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.requests import (
    ChildStarted,
    Done,
    ExternalDone,
    Outcome,
    Refused,
    Request,
    SignalWorkflow,
    Started,
    StartWorkflow,
    Terminate,
)
from tq_broker.model.rule_table import NO_RULES, RuleTable
from tq_broker.model.workflow_tasks import StartGranted, TargetMissing, WorkflowTask

Message = Union[Request, Outcome, WorkflowTask, TargetMissing]  # noqa: UP007 - like the other unions of values
"""What `handle` takes. A `WorkflowTask` is one that was given back by a sticky queue, or by that of
workers that are gone. Requests that are not about one run (`ListWorkflows`, `CountWorkflows`,
`ShardStatus`, `Echo`) and those that only read its events (`FetchEvents`, `FetchHistory`) are the
caller's own business."""

EVENTS_MAX = 51_200
BYTES_MAX = 50 * 1024 * 1024
"""A run whose history is longer is terminated."""

WARN_EVENTS = 10_240
WARN_BYTES = 10 * 1024 * 1024
"""Who operates the service is warned of a run whose history gets so long."""

PATIENCE_MS = 10_000
"""So much later a timeout is looked at again, unless what came before it has been read sooner."""


# --- start ----------------------------------------------------------------------------------------


def start(
    request: StartWorkflow,
    *,
    run_id: str,
    now_ms: int,
    sender: ReplyTo | None = None,
    deployments: Deployments = NO_DEPLOYMENTS,
) -> tuple[Execution, Step]:
    """Begin a new run, after `tq_broker.history.admission.admit` has said so.

    The step has the answer to ``request`` among its effects; also that to a child's parent.
    """
    turn = opening.begin(_started(request, run_id, now_ms), deployments)
    run = turn.run
    if request.parent is not None:
        told = ChildStarted(
            parent=request.parent,
            workflow_id=request.workflow_id,
            run_id=run_id,
            workflow_type=request.workflow_type,
        )
        turn.to_shard(request.parent.workflow_id, told)
    turn.reply(sender, Started(run_id=run_id, first_run_id=run_id))
    if request.signal is not None:
        externals.receive(turn, _signal(request))
    if request.update is not None:
        updates.admit(turn, request.update, request.update_wait, sender)
    if request.want_result and sender is not None:
        run.waiters.append(sender)
    if run.task is not None:
        turn.wants_task = False  # what comes with the start does not end its delay
    return run, workflow_task.finish(turn)


def _started(request: StartWorkflow, run_id: str, now_ms: int) -> WorkflowExecutionStarted:
    backoff_ms = request.start_delay_ms
    if request.cron_schedule:
        backoff_ms = cron.backoff_ms(request.cron_schedule, now_ms, now_ms)
    timeout_ms = request.execution_timeout_ms
    return WorkflowExecutionStarted(
        event_id=1,
        time_ms=now_ms,
        workflow_type=request.workflow_type,
        task_queue=request.task_queue,
        workflow_id=request.workflow_id,
        run_id=run_id,
        first_run_id=run_id,
        initiator="start" if request.parent is None else "child",
        input=request.input,
        execution_timeout_ms=timeout_ms,
        execution_deadline_ms=now_ms + backoff_ms + timeout_ms if timeout_ms else 0,
        run_timeout_ms=request.run_timeout_ms,
        task_timeout_ms=request.task_timeout_ms or 10_000,
        parent=request.parent,
        retry_policy=request.retry_policy,
        cron_schedule=request.cron_schedule,
        memo=request.memo,
        headers=request.headers,
        priority=request.priority,
        fairness_key=request.fairness_key,
        fairness_weight=request.fairness_weight,
        identity=request.identity,
        first_task_backoff_ms=backoff_ms,
        static_summary=request.static_summary,
        static_details=request.static_details,
        versioning_override=request.versioning_override,
        inherited_version=request.inherited_version,
        route=request.route,
        requires=request.requires,
        affinity=request.affinity,
        affinity_target=request.affinity_target,
        affinity_firm=request.affinity_firm,
    )


def _signal(request: StartWorkflow) -> SignalWorkflow:
    signal = request.signal
    assert signal is not None
    return SignalWorkflow(
        workflow_id=request.workflow_id,
        signal_name=signal.signal_name,
        input=signal.input,
        headers=signal.headers,
        identity=request.identity,
    )


# --- messages -------------------------------------------------------------------------------------


def handle(
    run: Execution,
    message: Message,
    now_ms: int,
    sender: ReplyTo | None = None,
    deployments: Deployments = NO_DEPLOYMENTS,
    rules: RuleTable = NO_RULES,
) -> Step:
    """Take in a message about ``run``, be it open or closed.

    Args:
        sender: Who asked, if an answer is wanted.
        deployments: Which versions there are now.
        rules: The traffic rules in force.
    """
    turn = Turn(run, now_ms, deployments, rules)
    _HANDLERS[type(message)](turn, message, sender)
    return _finish(turn)


def _finish(turn: Turn) -> Step:
    run = turn.run
    if run.is_open and (run.history_length > EVENTS_MAX or run.history_bytes > BYTES_MAX):
        reason = (
            f"its history has {run.history_length} events and {run.history_bytes} bytes;"
            f" the bounds are {EVENTS_MAX} and {BYTES_MAX}"
        )
        closing.terminate(turn, Terminate(workflow_id=run.workflow_id, reason=reason))
    return workflow_task.finish(turn)


def _terminate(turn: Turn, message: Terminate, sender: ReplyTo | None) -> None:
    run = turn.run
    if message.parent is not None:
        if run.is_open and externals.is_child_of(run, message.parent):
            closing.terminate(turn, message)
        return
    if not run.is_open:
        turn.reply(sender, externals.closed(run))
    elif message.first_run_id not in (None, run.started.first_run_id):
        turn.reply(sender, _not_found(message))
    else:
        closing.terminate(turn, message)
        turn.reply(sender, Done(run_id=run.run_id))


def _await_result(turn: Turn, _message: requests.AwaitResult, sender: ReplyTo | None) -> None:
    run = turn.run
    if sender is None:
        return
    if run.closed is not None:
        turn.reply(sender, run.closed)
    elif why := closing.too_many(run, sender):
        refused = Refused(
            reason="limit", message=why, workflow_id=run.workflow_id, run_id=run.run_id
        )
        turn.reply(sender, refused)
    else:
        closing.await_end(turn, sender)


def _describe(turn: Turn, _message: requests.Describe, sender: ReplyTo | None) -> None:
    turn.reply(sender, describe.description(turn.run))


def _reset_sticky(turn: Turn, _message: requests.ResetSticky, sender: ReplyTo | None) -> None:
    workflow_task.forget(turn.run)
    turn.changed = True
    turn.reply(sender, Done(run_id=turn.run.run_id))


Handler = Callable[[Turn, Any, Union[ReplyTo, None]], None]  # noqa: UP007 - evaluated on 3.10


def _unasked(take: Callable[[Turn, Any], None]) -> Handler:
    """A handler of messages that nobody waits for an answer to."""
    return lambda turn, message, _sender: take(turn, message)


_HANDLERS: dict[type, Handler] = {
    requests.SignalWorkflow: externals.signaled,
    requests.RequestCancel: externals.cancel_requested,
    requests.Terminate: _terminate,
    requests.QueryWorkflow: queries.asked,
    requests.UpdateWorkflow: updates.requested,
    requests.AwaitUpdate: updates.awaited,
    requests.AwaitResult: _await_result,
    requests.Describe: _describe,
    requests.ResetSticky: _reset_sticky,
    requests.ChildStarted: _unasked(children.started),
    requests.ChildRefused: _unasked(children.refused),
    requests.ChildClosed: _unasked(children.closed),
    requests.ExternalDone: _unasked(externals.done),
    requests.Outcome: _unasked(activities.told),
    workflow_tasks.WorkflowTaskCompleted: _unasked(completion.completed),
    workflow_tasks.WorkflowTaskFailed: _unasked(workflow_task.failed),
    workflow_tasks.WorkflowTaskProgress: _unasked(workflow_task.progress),
    workflow_tasks.StickyEvicted: _unasked(workflow_task.left),
    workflow_tasks.StickyGone: _unasked(workflow_task.left),
    workflow_tasks.WorkflowTask: _unasked(workflow_task.abandoned),
    TargetMissing: _unasked(closing.strand),
    workflow_tasks.ClaimStart: activities.claim,
}


def has_grown_long(run: Execution, step: Step) -> bool:
    """Whether ``step`` is the one that made the history so long that it should be told."""
    length, size = run.history_length, run.history_bytes
    return (
        length - len(step.events) < WARN_EVENTS <= length
        or size - len(step.data) < WARN_BYTES <= size
    )


# --- time -----------------------------------------------------------------------------------------


def tick(
    run: Execution,
    now_ms: int,
    deployments: Deployments = NO_DEPLOYMENTS,
    rules: RuleTable = NO_RULES,
    heard_ms: int | None = None,
) -> Step:
    """Do all that is due by now: see `Execution.next_ms`.

    Timers, backoffs and delays end in any case. Timeouts are acted on up to ``heard_ms``; while
    later ones are over the run waits for them (`Execution.patient_ms`).

    Args:
        heard_ms: All that was sent to the run before this time has been taken in; ``None``: now.
    """
    turn = Turn(run, now_ms, deployments, rules)
    if heard_ms is not None:
        turn.heard_ms = heard_ms
    if not run.is_open:
        return turn.step(b"")
    ends_ms = run.run_deadline_ms, run.started.execution_deadline_ms
    if any(turn.is_over(end_ms) for end_ms in ends_ms):
        closing.time_out(turn)
    else:
        timers.tick(turn)
        activities.tick(turn)
        workflow_task.tick(turn)
    _wait_for_timeouts(turn)
    return _finish(turn)


def _wait_for_timeouts(turn: Turn) -> None:
    run = turn.run
    patient_ms = turn.now_ms + PATIENCE_MS if turn.is_patient and run.is_open else 0
    if run.patient_ms != patient_ms:
        run.patient_ms = patient_ms
        turn.changed = True


# --- no such run ----------------------------------------------------------------------------------


def missing(message: Message, sender: ReplyTo | None) -> list[Effect]:
    """The answer to a message about a run that does not exist (any more)."""
    external = getattr(message, "external", None)
    if external is not None:
        return [ToShard(external.workflow_id, ExternalDone(origin=external, cause="not_found"))]
    if sender is None:
        return []
    if isinstance(message, workflow_tasks.ClaimStart):
        return [Reply(sender, StartGranted(granted=False, why="no such run"))]
    return [Reply(sender, _not_found(message))]


def _not_found(message: Any) -> Refused:
    workflow_id = getattr(message, "workflow_id", "")
    run_id = getattr(message, "run_id", None) or getattr(message, "first_run_id", None) or ""
    return Refused(reason="not_found", message="", workflow_id=workflow_id, run_id=run_id)
