"""Whether the commands of a workflow task can be carried out, all of them, before any of them is.

Rules of this file: nothing is changed here. A command that cannot be carried out fails the workflow
task, with a message that names the command; the history never has half of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from tq_broker.common import (
    DURATION_MAX,
    ParentClosePolicy,
    TargetKind,
    WorkflowIDReusePolicy,
    to_ms,
)
from tq_broker.exceptions import InvalidArgument, Malformed, Rejected
from tq_broker.history import cron
from tq_broker.history.state import Execution
from tq_broker.model import commands, payload
from tq_broker.model.affinity import load_affinity
from tq_broker.model.commands import Command
from tq_broker.model.events import (
    ActivityTaskCanceled,
    ActivityTaskCompleted,
    ActivityTaskFailed,
    ActivityTaskTimedOut,
    TimerFired,
)
from tq_broker.model.names import check_storable, check_task_queue
from tq_broker.model.requests import StartWorkflow
from tq_broker.model.tasks import WireRetryPolicy, load_requires, load_route, retry_policy

PENDING_MAX = 2_000
"""Of each kind: activities, timers, children, signals and cancellations under way."""

BONDS_MAX = 1_000
"""Affinity groups of one run, from its start: where each of them ran is part of its state."""

ID_BYTES_MAX = 1_000
"""Of an id or a type: what a database's index can hold has a bound in bytes."""

DURATION_MAX_MS = to_ms(DURATION_MAX)


class Wrong(Exception):
    """Says what is wrong with a command."""


class Plan:
    """What the run will have when the commands so far are carried out."""

    def __init__(self, run: Execution) -> None:
        self.run = run
        self.children = len(run.children)
        self.externals = len(run.externals)
        self.accepted = {
            update_id for update_id, update in run.updates.items() if update.accepted_event_id
        }
        self.admitted = set(run.updates) - self.accepted

    @cached_property
    def activity_ids(self) -> set[str]:
        return {activity.activity_id for activity in self.run.activities.values()}

    @cached_property
    def bonds(self) -> set[str]:
        return set(self.run.bonds)

    @cached_property
    def timer_ids(self) -> set[str]:
        return set(self.run.timers)


def problem(run: Execution, wanted: Sequence[Command]) -> str | None:
    """What is wrong with the first command that cannot be carried out; ``None`` if all can."""
    plan = Plan(run)
    last = len(wanted) - 1
    for index, command in enumerate(wanted):
        try:
            if isinstance(command, commands.CLOSING) and index != last:
                raise Wrong("a command follows that ends the run")
            _CHECKS[type(command)](plan, command)
            commands.check_payloads(command, run.workflow_id)
        except (Wrong, Rejected, Malformed, OverflowError) as error:
            return f"command {index + 1} of {last + 1}, {type(command).__name__}: {error}"
    return None


# --- parts ----------------------------------------------------------------------------------------


def _need(command: Any, *names: str) -> None:
    for name in names:
        check_id(name, getattr(command, name))


def _durations(command: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(command, name) <= DURATION_MAX_MS:
            raise Wrong(f"{name} is {getattr(command, name)}; it must be from 0 to ten years")


def _room(kind: str, count: int) -> None:
    if count >= PENDING_MAX:
        raise Wrong(f"{PENDING_MAX} {kind} are pending")


def check_id(name: str, value: str) -> None:
    """Raises `InvalidArgument`: it cannot be an id or a type."""
    if not value:
        raise InvalidArgument(f"{name} is empty")
    size = len(check_storable(name, value).encode())
    if size > ID_BYTES_MAX:
        raise InvalidArgument(f"{name} has {size} bytes; the bound is {ID_BYTES_MAX}")


def check_policy(policy: WireRetryPolicy | None) -> None:
    """Raises `InvalidArgument`, `OverflowError`."""
    if policy is not None:
        retry_policy(policy)


def check_bounds(said: commands.StartChildWorkflow | StartWorkflow) -> None:
    """Who may have the run's tasks can be found out, and whom its activities follow. Raises
    `InvalidArgument`, `Malformed`."""
    if said.affinity is not None:
        load_affinity(said.affinity)
    if said.requires is not None:
        load_requires(said.requires)
    if said.route is not None and load_route(said.route).kind is TargetKind.VERSION:
        raise InvalidArgument("a workflow is bound to a version by version=, not by its route")


# --- commands -------------------------------------------------------------------------------------


def _schedule_activity(plan: Plan, command: commands.ScheduleActivity) -> None:
    _need(command, "activity_id", "activity_type")
    check_task_queue(command.task_queue)
    _durations(
        command, "schedule_to_close_ms", "schedule_to_start_ms", "start_to_close_ms", "heartbeat_ms"
    )
    if not command.start_to_close_ms and not command.schedule_to_close_ms:
        raise Wrong("start_to_close_ms or schedule_to_close_ms must be set")
    if command.activity_id in plan.activity_ids:
        raise Wrong(f"an activity with the id {command.activity_id!r} is pending")
    _room("activities", len(plan.activity_ids))
    policy = command.retry_policy
    check_policy(policy)
    payload.split(command.input)
    if command.route is not None:
        load_route(command.route)
    if command.affinity is not None:
        _check_affinity(plan, command)
    if command.announce_start and (policy is None or policy.attempts != 1):
        raise Wrong("announce_start needs a retry policy with one attempt, which claims its start")
    if command.requires is not None:
        load_requires(command.requires)
    plan.activity_ids.add(command.activity_id)


def _check_affinity(plan: Plan, command: commands.ScheduleActivity) -> None:
    assert command.affinity is not None, "the caller has looked"
    if command.route is not None:
        raise Wrong("it has a route and an affinity; one of them has to go")
    plan.bonds.add(load_affinity(command.affinity).key)
    if len(plan.bonds) > BONDS_MAX:
        raise Wrong(f"the run has more than {BONDS_MAX} affinity groups")


_ENDS = (
    ActivityTaskCompleted,
    ActivityTaskFailed,
    ActivityTaskTimedOut,
    ActivityTaskCanceled,
)


def _request_cancel_activity(plan: Plan, command: commands.RequestCancelActivity) -> None:
    event_id = command.scheduled_event_id
    if event_id in plan.run.activities:
        return
    # The workflow does not know yet that it has ended.
    if not any(
        isinstance(event, _ENDS) and event.scheduled_event_id == event_id
        for event in plan.run.buffered
    ):
        raise Wrong(f"no activity with the scheduled event {event_id} is pending")


def _start_timer(plan: Plan, command: commands.StartTimer) -> None:
    _need(command, "timer_id")
    _durations(command, "start_to_fire_ms")
    if command.timer_id in plan.timer_ids:
        raise Wrong(f"a timer with the id {command.timer_id!r} is running")
    _room("timers", len(plan.timer_ids))
    plan.timer_ids.add(command.timer_id)


def _cancel_timer(plan: Plan, command: commands.CancelTimer) -> None:
    timer_id = command.timer_id
    if timer_id in plan.timer_ids:
        plan.timer_ids.remove(timer_id)
    elif not any(
        isinstance(event, TimerFired) and event.timer_id == timer_id for event in plan.run.buffered
    ):
        raise Wrong(f"no timer with the id {timer_id!r} is running")


def _record_marker(_plan: Plan, command: commands.RecordMarker) -> None:
    _need(command, "marker_name")


def _start_child(plan: Plan, command: commands.StartChildWorkflow) -> None:
    _need(command, "workflow_id", "workflow_type")
    check_task_queue(command.task_queue)
    _durations(command, "execution_timeout_ms", "run_timeout_ms", "task_timeout_ms")
    if command.parent_close_policy not in list(ParentClosePolicy):
        raise Wrong(f"parent_close_policy is {command.parent_close_policy}")
    if command.id_reuse_policy not in list(WorkflowIDReusePolicy):
        raise Wrong(f"id_reuse_policy is {command.id_reuse_policy}")
    check_policy(command.retry_policy)
    check_bounds(command)
    if command.cron_schedule:
        cron.read(command.cron_schedule)
    _room("children", plan.children)
    plan.children += 1


def _signal_external(plan: Plan, command: commands.SignalExternalWorkflow) -> None:
    _need(command, "workflow_id", "signal_name")
    _room("signals and cancellations", plan.externals)
    plan.externals += 1


def _cancel_external(plan: Plan, command: commands.RequestCancelExternalWorkflow) -> None:
    _need(command, "workflow_id")
    _room("signals and cancellations", plan.externals)
    plan.externals += 1


def _modify_properties(_plan: Plan, _command: commands.ModifyProperties) -> None:
    """Any memo will do."""


def _accept_update(plan: Plan, command: commands.AcceptUpdate) -> None:
    _decide_update(plan, command.update_id)
    plan.accepted.add(command.update_id)


def _reject_update(plan: Plan, command: commands.RejectUpdate) -> None:
    _decide_update(plan, command.update_id)


def _decide_update(plan: Plan, update_id: str) -> None:
    if update_id not in plan.admitted:
        raise Wrong(f"no update with the id {update_id!r} waits to be accepted")
    plan.admitted.remove(update_id)


def _complete_update(plan: Plan, command: commands.CompleteUpdate) -> None:
    if command.update_id not in plan.accepted:
        raise Wrong(f"no update with the id {command.update_id!r} is accepted and not completed")
    plan.accepted.remove(command.update_id)


def _end(_plan: Plan, _command: Any) -> None:
    """Whatever a workflow ends with will do."""


def _continue_as_new(_plan: Plan, command: commands.ContinueAsNew) -> None:
    if command.task_queue:
        check_task_queue(command.task_queue)
    if command.workflow_type:
        check_id("workflow_type", command.workflow_type)
    _durations(command, "run_timeout_ms", "task_timeout_ms", "backoff_ms")
    check_policy(command.retry_policy)


_CHECKS: dict[type, Callable[[Plan, Any], None]] = {
    commands.ScheduleActivity: _schedule_activity,
    commands.RequestCancelActivity: _request_cancel_activity,
    commands.StartTimer: _start_timer,
    commands.CancelTimer: _cancel_timer,
    commands.RecordMarker: _record_marker,
    commands.StartChildWorkflow: _start_child,
    commands.SignalExternalWorkflow: _signal_external,
    commands.RequestCancelExternalWorkflow: _cancel_external,
    commands.ModifyProperties: _modify_properties,
    commands.AcceptUpdate: _accept_update,
    commands.RejectUpdate: _reject_update,
    commands.CompleteUpdate: _complete_update,
    commands.CompleteWorkflow: _end,
    commands.FailWorkflow: _end,
    commands.CancelWorkflow: _end,
    commands.ContinueAsNew: _continue_as_new,
}
