"""Updates of a run: admitted, then rejected, or accepted and completed.

::

    admitted ── accepted ──> accepted ── completed ──> completed
        └── rejected ──> (forgotten)

The same id joins the first. An update that is only admitted leaves no event; the answer of a
completed one stands in its event.
"""

from __future__ import annotations

from tq_broker.history.effects import ReplyFromEvent, ReplyTo
from tq_broker.history.state import Execution, Update, UpdateWaiter
from tq_broker.history.turn import Turn
from tq_broker.model import failure
from tq_broker.model.commands import AcceptUpdate, CompleteUpdate, RejectUpdate
from tq_broker.model.events import (
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
)
from tq_broker.model.requests import AwaitUpdate, Refused, UpdateState, UpdateWorkflow
from tq_broker.model.workflow_tasks import UpdateRequest

IN_FLIGHT_MAX = 10
TOTAL_MAX = 2_000

ADMITTED, ACCEPTED, COMPLETED = 1, 2, 3


# --- from clients ---------------------------------------------------------------------------------


def requested(turn: Turn, message: UpdateWorkflow, sender: ReplyTo | None) -> None:
    """Take in an update, or join the one that has its id."""
    run = turn.run
    first_run_id = message.first_run_id
    if first_run_id is not None and first_run_id != run.started.first_run_id:
        turn.reply(sender, _refused(run, "not_found", "the id belongs to another chain of runs"))
        return
    request = message.update
    if not join(turn, request.update_id, message.wait, sender):
        refusal = _refusal(run, request)
        if refusal is not None:
            turn.reply(sender, refusal)
            return
        admit(turn, request, message.wait, sender)


def _refusal(run: Execution, request: UpdateRequest) -> Refused | None:
    if not run.is_open:
        return _ended(run)
    if not request.update_id or not request.name:
        return _refused(run, "invalid_argument", "an update needs an id and a name")
    if len(run.updates) >= IN_FLIGHT_MAX:
        return _refused(run, "limit", f"{IN_FLIGHT_MAX} updates are in flight")
    if len(run.updates) + len(run.completed) >= TOTAL_MAX:
        return _refused(run, "limit", f"the run has had {TOTAL_MAX} updates")
    return None


def admit(turn: Turn, request: UpdateRequest, stage: int, sender: ReplyTo | None) -> None:
    """Keep an update for the next workflow task."""
    update = Update(request=request)
    turn.run.updates[request.update_id] = update
    turn.changed = turn.wants_task = True
    _wait(turn, request.update_id, update, stage, sender)


def join(turn: Turn, update_id: str, stage: int, sender: ReplyTo | None) -> bool:
    """Let ``sender`` wait for an update that is known; False if it is not."""
    run = turn.run
    event_id = run.completed.get(update_id)
    if event_id is not None:
        if sender is not None:
            turn.effects.append(ReplyFromEvent(sender, event_id))
        return True
    update = run.updates.get(update_id)
    if update is None:
        return False
    _wait(turn, update_id, update, stage, sender)
    return True


def awaited(turn: Turn, message: AwaitUpdate, sender: ReplyTo | None) -> None:
    """Let somebody wait for the end of an update."""
    if not join(turn, message.update_id, COMPLETED, sender):
        why = f"it has no update {message.update_id!r}"
        turn.reply(sender, _refused(turn.run, "not_found", why))


def _wait(turn: Turn, update_id: str, update: Update, stage: int, sender: ReplyTo | None) -> None:
    has = ACCEPTED if update.accepted_event_id else ADMITTED
    if sender is None:
        return
    if stage <= has:
        turn.reply(sender, _state(turn, update_id, has))
        return
    waiter = UpdateWaiter(to=sender, stage=stage)
    if waiter not in update.waiters:
        update.waiters.append(waiter)
        turn.changed = True


def _state(turn: Turn, update_id: str, stage: int) -> UpdateState:
    return UpdateState(update_id=update_id, run_id=turn.run.run_id, stage=stage)


# --- from the workflow ----------------------------------------------------------------------------


def accept(turn: Turn, command: AcceptUpdate, _completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    run = turn.run
    update = run.updates[command.update_id]
    request = update.request
    assert request is not None
    assert run.task is not None
    update.accepted_event_id = turn.write(
        WorkflowExecutionUpdateAccepted,
        update_id=request.update_id,
        update_name=request.name,
        input=request.input,
        headers=request.headers,
        identity=request.identity,
        sequencing_event_id=run.task.scheduled_event_id,
    )
    update.request = None
    state = _state(turn, command.update_id, ACCEPTED)
    for waiter in update.waiters:
        if waiter.stage <= ACCEPTED:
            turn.reply(waiter.to, state)
    update.waiters = [waiter for waiter in update.waiters if waiter.stage > ACCEPTED]


def reject(turn: Turn, command: RejectUpdate, _completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    state = UpdateState(
        update_id=command.update_id,
        run_id=turn.run.run_id,
        stage=COMPLETED,
        failure=command.failure,
    )
    _tell_all(turn, turn.run.updates.pop(command.update_id), state)
    turn.changed = True


def complete(turn: Turn, command: CompleteUpdate, _completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    run = turn.run
    update = run.updates.pop(command.update_id)
    run.completed[command.update_id] = turn.write(
        WorkflowExecutionUpdateCompleted,
        update_id=command.update_id,
        accepted_event_id=update.accepted_event_id,
        result=command.result,
        failure=command.failure,
    )
    state = UpdateState(
        update_id=command.update_id,
        run_id=run.run_id,
        stage=COMPLETED,
        result=command.result,
        failure=command.failure,
    )
    _tell_all(turn, update, state)


def _tell_all(turn: Turn, update: Update, answer: UpdateState | Refused) -> None:
    for waiter in update.waiters:
        turn.reply(waiter.to, answer)


# --- otherwise ------------------------------------------------------------------------------------


def are_unseen(run: Execution) -> bool:
    """Whether an update waits that no workflow task has carried yet."""
    return any(not update.sent for update in run.updates.values())


def release(turn: Turn) -> None:
    """The run has ended: answer all who wait."""
    run = turn.run
    for update_id, update in run.updates.items():
        if not update.accepted_event_id:
            _tell_all(turn, update, _ended(run))
            continue
        failed = failure.application(
            "the workflow ended before the update was completed",
            "AcceptedUpdateCompletedWorkflow",
            non_retryable=True,
        )
        state = UpdateState(update_id=update_id, run_id=run.run_id, stage=COMPLETED, failure=failed)
        _tell_all(turn, update, state)
    run.updates = {}


def outcome(run_id: str, event: WorkflowExecutionUpdateCompleted) -> UpdateState:
    """The answer that stands in ``event``."""
    return UpdateState(
        update_id=event.update_id,
        run_id=run_id,
        stage=COMPLETED,
        result=event.result,
        failure=event.failure,
    )


def _ended(run: Execution) -> Refused:
    return _refused(run, "closed", f"workflow {run.workflow_id!r} has ended")


def _refused(run: Execution, reason: str, message: str) -> Refused:
    return Refused(reason=reason, message=message, workflow_id=run.workflow_id, run_id=run.run_id)
