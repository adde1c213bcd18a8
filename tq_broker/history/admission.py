"""Whether a start begins a new run: the id's current run against the policies for its reuse."""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from tq_broker.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.history import closing, cron, externals, updates, workflow_task
from tq_broker.history.effects import Effect, Reply, ReplyTo, ToShard
from tq_broker.history.plan import DURATION_MAX_MS, check_bounds, check_id, check_policy
from tq_broker.history.state import Execution
from tq_broker.history.step import Step
from tq_broker.history.turn import Turn
from tq_broker.model.deployments import AUTO_UPGRADE, NO_DEPLOYMENTS, Deployments
from tq_broker.model.names import check_task_queue
from tq_broker.model.requests import (
    ChildRefused,
    ChildStarted,
    Refused,
    SignalWorkflow,
    Started,
    StartWorkflow,
    Status,
    Terminate,
    UpdateWorkflow,
)
from tq_broker.model.rule_table import NO_RULES, RuleTable
from tq_broker.model.tasks import load_requires
from tq_broker.queues import routing


class Admission(msgspec.Struct, frozen=True):
    """What becomes of a start.

    Attributes:
        begin: A new run has to be started (`tq_broker.history.machine.start`).
        step: What it does to the current run (ends it, signals it) and what is answered already;
            to be stored with that run, if ``step.changed``.
    """

    begin: bool
    step: Step


Capabilities = Callable[[str], Collection[str]]
"""What the workers of a task queue have, or had once."""

_REUSE_POLICIES = frozenset(WorkflowIDReusePolicy)
_CONFLICT_POLICIES = frozenset(WorkflowIDConflictPolicy)

BEGIN = Admission(begin=True, step=Step())


def admit(
    current: Execution | None,
    request: StartWorkflow,
    now_ms: int,
    sender: ReplyTo | None,
    deployments: Deployments = NO_DEPLOYMENTS,
    rules: RuleTable = NO_RULES,
    capabilities: Capabilities | None = None,
) -> Admission:
    """Judge ``request`` by the current run of its workflow id, which may be closed.

    ``current`` is changed if it has to be terminated, or is signalled instead of a new start.
    """
    try:
        check(request)
        _check_override(request, deployments)
        if capabilities is not None and request.requires is not None:
            _check_requires(request, capabilities)
    except (InvalidArgument, Malformed, OverflowError) as error:
        return _refuse(request, sender, "invalid_argument", str(error), "")
    if current is None:
        return BEGIN
    if not current.is_open:
        return _after(current, request, sender)
    if request.parent is not None and request.parent == current.started.parent:
        return _answer([ToShard(request.parent.workflow_id, _child_started(current, request))])
    match _conflict_policy(request):
        case WorkflowIDConflictPolicy.USE_EXISTING:
            if why := _too_many(current, request, sender):
                return _refuse(request, sender, "limit", why, current.run_id)
            step = _use(current, request, sender, Turn(current, now_ms, deployments, rules))
            return Admission(begin=False, step=step)
        case WorkflowIDConflictPolicy.TERMINATE_EXISTING:
            turn = Turn(current, now_ms, deployments)
            reason = "replaced by a new start with its id"
            closing.terminate(turn, Terminate(workflow_id=current.workflow_id, reason=reason))
            return Admission(begin=True, step=workflow_task.finish(turn))
        case _:
            return _already(current, request, sender, "is running")


def check(request: StartWorkflow) -> None:
    """Raises `InvalidArgument`: nobody can start this."""
    check_id("workflow_id", request.workflow_id)
    check_id("workflow_type", request.workflow_type)
    check_task_queue(request.task_queue)
    for name in ("execution_timeout_ms", "run_timeout_ms", "task_timeout_ms", "start_delay_ms"):
        if not 0 <= getattr(request, name) <= DURATION_MAX_MS:
            raise InvalidArgument(f"{name} must be from 0 to ten years")
    if request.id_reuse_policy not in _REUSE_POLICIES:
        raise InvalidArgument(f"id_reuse_policy is {request.id_reuse_policy}")
    if request.id_conflict_policy not in _CONFLICT_POLICIES:
        raise InvalidArgument(f"id_conflict_policy is {request.id_conflict_policy}")
    check_policy(request.retry_policy)
    check_bounds(request)
    if request.cron_schedule:
        cron.read(request.cron_schedule)
        if request.start_delay_ms:
            raise InvalidArgument("cron_schedule and start_delay exclude each other")
    if request.update is not None and not (request.update.update_id and request.update.name):
        raise InvalidArgument("an update needs an id and a name")


def _check_override(request: StartWorkflow, deployments: Deployments) -> None:
    override = request.versioning_override
    if override in ("", AUTO_UPGRADE) or deployments.knows(override):
        return
    raise InvalidArgument(
        f"version {override!r}, which the run is to be pinned to, is not known; start a worker of"
        " it first"
    )


def _check_requires(request: StartWorkflow, capabilities: Capabilities) -> None:
    assert request.requires is not None, "the caller has looked"
    requires, task_queue = load_requires(request.requires), request.task_queue
    if why := routing.refused_unknown(task_queue, requires, capabilities(task_queue)):
        raise InvalidArgument(why)


def _conflict_policy(request: StartWorkflow) -> WorkflowIDConflictPolicy:
    if request.id_reuse_policy == WorkflowIDReusePolicy.TERMINATE_IF_RUNNING:
        return WorkflowIDConflictPolicy.TERMINATE_EXISTING
    policy = WorkflowIDConflictPolicy(request.id_conflict_policy)
    if policy is not WorkflowIDConflictPolicy.UNSPECIFIED:
        return policy
    if request.signal is not None or request.update is not None:
        return WorkflowIDConflictPolicy.USE_EXISTING
    return WorkflowIDConflictPolicy.FAIL


def _after(current: Execution, request: StartWorkflow, sender: ReplyTo | None) -> Admission:
    """The last run of the id has ended."""
    match WorkflowIDReusePolicy(request.id_reuse_policy):
        case WorkflowIDReusePolicy.REJECT_DUPLICATE:
            return _already(current, request, sender, "has ended")
        case WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY:
            if current.status is Status.COMPLETED:
                return _already(current, request, sender, "has completed")
            return BEGIN
        case _:
            return BEGIN


def _too_many(current: Execution, request: StartWorkflow, sender: ReplyTo | None) -> str:
    """Why the running one cannot be used; "" if it can. All or nothing is done of a start."""
    why = externals.too_many(current) if request.signal is not None else ""
    if not why and request.want_result and sender is not None:
        why = closing.too_many(current, sender)
    return why


def _use(current: Execution, request: StartWorkflow, sender: ReplyTo | None, turn: Turn) -> Step:
    """The running one is what was asked for."""
    if request.signal is not None:
        signal = request.signal
        externals.signaled(
            turn,
            SignalWorkflow(
                workflow_id=request.workflow_id,
                signal_name=signal.signal_name,
                input=signal.input,
                headers=signal.headers,
                identity=request.identity,
            ),
            None,
        )
    if request.parent is not None:
        turn.to_shard(request.parent.workflow_id, _child_started(current, request))
    turn.reply(
        sender,
        Started(run_id=current.run_id, first_run_id=current.started.first_run_id, is_new=False),
    )
    if request.update is not None:
        wanted = UpdateWorkflow(
            workflow_id=request.workflow_id, update=request.update, wait=request.update_wait
        )
        updates.requested(turn, wanted, sender)
    if request.want_result and sender is not None:
        closing.await_end(turn, sender)
    return workflow_task.finish(turn)


def _already(
    current: Execution, request: StartWorkflow, sender: ReplyTo | None, how: str
) -> Admission:
    message = f"workflow {request.workflow_id!r} {how}"
    return _refuse(request, sender, "already_started", message, current.run_id)


def _refuse(
    request: StartWorkflow, sender: ReplyTo | None, reason: str, message: str, run_id: str
) -> Admission:
    if request.parent is not None:
        told = ChildRefused(
            parent=request.parent,
            workflow_id=request.workflow_id,
            workflow_type=request.workflow_type,
            cause="already_exists" if reason == "already_started" else reason,
            message="" if reason == "already_started" else message,
        )
        return _answer([ToShard(request.parent.workflow_id, told)])
    refused = Refused(
        reason=reason, message=message, workflow_id=request.workflow_id, run_id=run_id
    )
    return _answer([Reply(sender, refused)] if sender is not None else [])


def _answer(effects: list[Effect]) -> Admission:
    return Admission(begin=False, step=Step(effects=effects))


def _child_started(current: Execution, request: StartWorkflow) -> ChildStarted:
    assert request.parent is not None
    return ChildStarted(
        parent=request.parent,
        workflow_id=current.workflow_id,
        run_id=current.started.first_run_id,
        workflow_type=current.started.workflow_type,
    )
