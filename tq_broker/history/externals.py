"""Signals and cancellations between runs: what this one asks of others, and what others, or
clients, ask of it."""

from __future__ import annotations

from typing import Any

from tq_broker.history import workflow_task
from tq_broker.history.effects import ReplyTo
from tq_broker.history.state import Execution, External
from tq_broker.history.turn import Turn
from tq_broker.model.commands import RequestCancelExternalWorkflow, SignalExternalWorkflow
from tq_broker.model.events import (
    ExternalWorkflowExecutionCancelRequested,
    ExternalWorkflowExecutionSignaled,
    ParentInfo,
    RequestCancelExternalWorkflowExecutionFailed,
    RequestCancelExternalWorkflowExecutionInitiated,
    SignalExternalWorkflowExecutionFailed,
    SignalExternalWorkflowExecutionInitiated,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionSignaled,
)
from tq_broker.model.requests import (
    Done,
    ExternalDone,
    Refused,
    RequestCancel,
    SignalWorkflow,
)

SIGNALS_MAX = 10_000
"""That one run can receive."""


# --- to others ------------------------------------------------------------------------------------


def signal(turn: Turn, command: SignalExternalWorkflow, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    event_id = turn.write(
        SignalExternalWorkflowExecutionInitiated,
        workflow_id=command.workflow_id,
        signal_name=command.signal_name,
        run_id=command.run_id,
        input=command.input,
        headers=command.headers,
        child_only=command.child_only,
        workflow_task_completed_event_id=completed_event_id,
    )
    turn.run.externals[event_id] = External(workflow_id=command.workflow_id, run_id=command.run_id)
    request = SignalWorkflow(
        workflow_id=command.workflow_id,
        signal_name=command.signal_name,
        run_id=command.run_id,
        input=command.input,
        headers=command.headers,
        external=_me(turn, event_id),
        child_only=command.child_only,
    )
    turn.to_shard(command.workflow_id, request)


def cancel(turn: Turn, command: RequestCancelExternalWorkflow, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    event_id = turn.write(
        RequestCancelExternalWorkflowExecutionInitiated,
        workflow_id=command.workflow_id,
        run_id=command.run_id,
        child_only=command.child_only,
        reason=command.reason,
        workflow_task_completed_event_id=completed_event_id,
    )
    turn.run.externals[event_id] = External(
        workflow_id=command.workflow_id, run_id=command.run_id, cancel=True
    )
    request = RequestCancel(
        workflow_id=command.workflow_id,
        run_id=command.run_id,
        reason=command.reason,
        external=_me(turn, event_id),
        child_only=command.child_only,
    )
    turn.to_shard(command.workflow_id, request)


def _me(turn: Turn, initiated_event_id: int) -> ParentInfo:
    run = turn.run
    return ParentInfo(
        workflow_id=run.workflow_id, run_id=run.run_id, initiated_event_id=initiated_event_id
    )


_ANSWERS: dict[tuple[bool, bool], Any] = {
    # is it a cancellation, was it done
    (False, True): ExternalWorkflowExecutionSignaled,
    (False, False): SignalExternalWorkflowExecutionFailed,
    (True, True): ExternalWorkflowExecutionCancelRequested,
    (True, False): RequestCancelExternalWorkflowExecutionFailed,
}


def done(turn: Turn, message: ExternalDone) -> None:
    """Another run's shard has answered."""
    initiated_event_id = message.origin.initiated_event_id
    external = turn.run.externals.pop(initiated_event_id, None)
    if external is None:
        return
    fields: dict[str, Any] = {"cause": message.cause} if message.cause else {}
    turn.learn(
        _ANSWERS[external.cancel, not message.cause],
        initiated_event_id=initiated_event_id,
        workflow_id=external.workflow_id,
        run_id=external.run_id,
        **fields,
    )


# --- from others and from clients -----------------------------------------------------------------


def signaled(turn: Turn, message: SignalWorkflow, sender: ReplyTo | None) -> None:
    """Take in a signal."""
    run = turn.run
    refusal = _refusal(run, message)
    if refusal is None and (why := too_many(run)):
        refusal = _refused(run, "limit", why)
    answer(turn, message.external, sender, refusal)
    if refusal is None:
        receive(turn, message)


def too_many(run: Execution) -> str:
    """Why ``run`` gets no more signals; "" if it does."""
    return f"the run has received {SIGNALS_MAX} signals" if run.signals >= SIGNALS_MAX else ""


def receive(turn: Turn, message: SignalWorkflow) -> None:
    """Write down a signal."""
    turn.run.signals += 1
    turn.learn(
        WorkflowExecutionSignaled,
        signal_name=message.signal_name,
        input=message.input,
        identity=message.identity,
        headers=message.headers,
        external=message.external,
    )


def cancel_requested(turn: Turn, message: RequestCancel, sender: ReplyTo | None) -> None:
    """Somebody asks the workflow to end. Asked again, it is told once."""
    run = turn.run
    refusal = _refusal(run, message)
    if refusal is None and not _is_of_chain(run, message.first_run_id):
        refusal = _refused(run, "not_found", "the workflow id belongs to another chain of runs")
    answer(turn, message.external, sender, refusal)
    if refusal is not None or run.cancel_requested:
        return
    run.cancel_requested = True
    turn.learn(
        WorkflowExecutionCancelRequested,
        reason=message.reason,
        identity=message.identity,
        external=message.external,
    )
    # What waits for its time to begin would be cancelled only then.
    workflow_task.hurry(turn)


def answer(
    turn: Turn, external: ParentInfo | None, sender: ReplyTo | None, refusal: Refused | None
) -> None:
    """Tell whoever asked, a run or a client."""
    if external is None:
        turn.reply(sender, refusal or Done(run_id=turn.run.run_id))
        return
    cause = "" if refusal is None else _CAUSES.get(refusal.reason, refusal.reason)
    turn.to_shard(external.workflow_id, ExternalDone(origin=external, cause=cause))


_CAUSES = {"closed": "not_found"}


def _refusal(run: Execution, message: SignalWorkflow | RequestCancel) -> Refused | None:
    if not run.is_open:
        return closed(run)
    if message.child_only and not is_child_of(run, message.external):
        return _refused(run, "not_found", "it is not a child of the run that asks")
    return None


def is_child_of(run: Execution, other: ParentInfo | None) -> bool:
    """Whether ``other`` has started this chain of runs as its child."""
    parent = run.started.parent
    return (
        parent is not None
        and other is not None
        and (parent.workflow_id, parent.run_id) == (other.workflow_id, other.run_id)
    )


def _is_of_chain(run: Execution, first_run_id: str | None) -> bool:
    return first_run_id is None or first_run_id == run.started.first_run_id


def closed(run: Execution) -> Refused:
    """The answer to what an ended run cannot do any more."""
    return _refused(run, "closed", f"workflow {run.workflow_id!r} has ended: {run.status.value}")


def _refused(run: Execution, reason: str, message: str) -> Refused:
    return Refused(reason=reason, message=message, workflow_id=run.workflow_id, run_id=run.run_id)
