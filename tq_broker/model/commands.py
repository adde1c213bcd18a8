"""What a workflow asks for: the commands that a worker answers a workflow task with.

Rules of this file: as for `tq_broker.model.events`. Fields that a command shares with the event
that it becomes have the same names; a command never carries an event id of the future.
"""

from __future__ import annotations

from typing import Union, get_args

import msgspec

from tq_broker.model.events import NO_ARGS
from tq_broker.model.failure import Failure
from tq_broker.model.payload import NULL, Payload, check_size
from tq_broker.model.tasks import WireRetryPolicy


class Base(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A command."""


class ScheduleActivity(Base, frozen=True, tag="ScheduleActivity"):
    """See `tq_broker.model.events.ActivityTaskScheduled`."""

    activity_id: str
    activity_type: str
    task_queue: str
    input: Payload
    schedule_to_close_ms: int = 0
    schedule_to_start_ms: int = 0
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0
    retry_policy: WireRetryPolicy | None = None
    priority: int | None = None
    fairness_key: str = ""
    fairness_weight: float | None = None
    route: str | None = None
    requires: str | None = None
    headers: dict[str, str] = {}
    summary: str = ""
    rate_limit_key: str = ""
    affinity: str | None = None
    announce_start: bool = False
    auto_upgrade: bool = False


class RequestCancelActivity(Base, frozen=True, tag="RequestCancelActivity"):
    """The activity is not wanted any more."""

    scheduled_event_id: int
    wait: bool = False
    """False (TRY_CANCEL): the activity is closed as canceled at once; True: when it has ended."""


class StartTimer(Base, frozen=True, tag="StartTimer"):
    timer_id: str
    start_to_fire_ms: int
    summary: str = ""


class CancelTimer(Base, frozen=True, tag="CancelTimer"):
    timer_id: str


class RecordMarker(Base, frozen=True, tag="RecordMarker"):
    marker_name: str
    details: dict[str, Payload] = {}
    failure: Failure | None = None


class StartChildWorkflow(Base, frozen=True, tag="StartChildWorkflow"):
    """See `tq_broker.model.events.StartChildWorkflowExecutionInitiated`."""

    workflow_id: str
    workflow_type: str
    task_queue: str
    input: Payload = NO_ARGS
    execution_timeout_ms: int = 0
    run_timeout_ms: int = 0
    task_timeout_ms: int = 10_000
    parent_close_policy: int = 1
    id_reuse_policy: int = 1
    retry_policy: WireRetryPolicy | None = None
    cron_schedule: str = ""
    memo: dict[str, Payload] = {}
    headers: dict[str, str] = {}
    priority: int | None = None
    fairness_key: str = ""
    fairness_weight: float | None = None
    versioning_override: str = ""
    static_summary: str = ""
    static_details: str = ""
    route: str | None = None
    requires: str | None = None
    affinity: str | None = None


class SignalExternalWorkflow(Base, frozen=True, tag="SignalExternalWorkflow"):
    workflow_id: str
    signal_name: str
    run_id: str | None = None
    input: Payload = NO_ARGS
    headers: dict[str, str] = {}
    child_only: bool = False


class RequestCancelExternalWorkflow(Base, frozen=True, tag="RequestCancelExternalWorkflow"):
    workflow_id: str
    run_id: str | None = None
    child_only: bool = False
    reason: str = ""


class ModifyProperties(Base, frozen=True, tag="ModifyProperties"):
    """Change the memo; ``None`` removes a key."""

    upserted_memo: dict[str, Payload | None]


class AcceptUpdate(Base, frozen=True, tag="AcceptUpdate"):
    """The update, which came with this task or was admitted before it, passed its validator."""

    update_id: str


class RejectUpdate(Base, frozen=True, tag="RejectUpdate"):
    """It did not. Leaves no event."""

    update_id: str
    failure: Failure


class CompleteUpdate(Base, frozen=True, tag="CompleteUpdate"):
    """The handler of an accepted update has ended."""

    update_id: str
    result: Payload = NULL
    failure: Failure | None = None


class CompleteWorkflow(Base, frozen=True, tag="CompleteWorkflow"):
    result: Payload = NULL


class FailWorkflow(Base, frozen=True, tag="FailWorkflow"):
    failure: Failure


class CancelWorkflow(Base, frozen=True, tag="CancelWorkflow"):
    """The workflow honours a cancellation."""

    details: Payload = NO_ARGS


class ContinueAsNew(Base, frozen=True, tag="ContinueAsNew"):
    """0, ``None`` and empty mean "as this run has it"."""

    workflow_type: str = ""
    task_queue: str = ""
    input: Payload = NO_ARGS
    run_timeout_ms: int = 0
    task_timeout_ms: int = 0
    backoff_ms: int = 0
    retry_policy: WireRetryPolicy | None = None
    memo: dict[str, Payload] | None = None
    initial_versioning_behavior: int = 0


Command = Union[  # noqa: UP007 - msgspec takes the union apart once
    ScheduleActivity,
    RequestCancelActivity,
    StartTimer,
    CancelTimer,
    RecordMarker,
    StartChildWorkflow,
    SignalExternalWorkflow,
    RequestCancelExternalWorkflow,
    ModifyProperties,
    AcceptUpdate,
    RejectUpdate,
    CompleteUpdate,
    CompleteWorkflow,
    FailWorkflow,
    CancelWorkflow,
    ContinueAsNew,
]

CLOSING = (CompleteWorkflow, FailWorkflow, CancelWorkflow, ContinueAsNew)
"""The commands that end the run; at most one, and nothing after it."""


def check_payloads(command: Command, workflow_id: str) -> None:
    """Raises `PayloadTooLarge`: a payload of ``command`` is larger than a history may keep."""
    for name in _MAY_BE_LARGE[type(command)]:
        value = getattr(command, name)
        for one in value.values() if isinstance(value, dict) else (value,):
            if isinstance(one, bytes):
                check_size(one, f"{name} of {type(command).__name__} of workflow {workflow_id!r}")


_MAY_BE_LARGE = {
    kind: tuple(
        field.name for field in msgspec.structs.fields(kind) if bytes.__name__ in str(field.type)
    )
    for kind in get_args(Command)
}
"""The fields that hold payloads, or dicts of them."""
