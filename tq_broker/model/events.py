"""What a workflow's history is made of: one frozen class per event, with Temporal's names.

Rules of this file: an event is a fact and never changes; a field may be added with a default, never
removed or given another meaning, because histories outlive releases. Event ids count from 1 without
gaps. Times are wall-clock milliseconds since the epoch, durations are milliseconds, 0 or ``None``
means "not set". ``*_event_id`` fields refer to earlier events of the same history.
"""

from __future__ import annotations

from typing import Union

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model.failure import Failure
from tq_broker.model.payload import NULL, Payload
from tq_broker.model.tasks import WireRetryPolicy

NO_ARGS: Payload = b"[]"


class Base(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every event has."""

    event_id: int
    time_ms: int


class ParentInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The run that started this one as its child."""

    workflow_id: str
    run_id: str
    initiated_event_id: int


# --- the run ------------------------------------------------------------------------------------


class WorkflowExecutionStarted(Base, frozen=True, tag="WorkflowExecutionStarted"):
    """Always the first event.

    ``execution_deadline_ms`` is the epoch time of the execution timeout, which spans all runs of a
    chain; ``initiator`` says why this run was started: ``start``, ``child``, ``continue_as_new``,
    ``retry`` or ``cron``; ``first_task_backoff_ms`` delays the first workflow task.
    ``versioning_override`` is a deployment version, or ``auto_upgrade``; ``inherited_version`` that
    of the pinned run that has started this one. ``route`` and ``requires`` as in
    `ActivityTaskScheduled`: who may have its workflow tasks. ``affinity``, too: it is that of its
    activities and children that do not say where they run. ``affinity_target`` is where those of
    the parent, or of the run before, have run, and with ``affinity_firm`` one has completed there.
    """

    workflow_type: str
    task_queue: str
    workflow_id: str
    run_id: str
    first_run_id: str
    continued_run_id: str | None = None
    initiator: str = "start"
    input: Payload = NO_ARGS
    execution_timeout_ms: int = 0
    execution_deadline_ms: int = 0
    run_timeout_ms: int = 0
    task_timeout_ms: int = 10_000
    attempt: int = 1
    parent: ParentInfo | None = None
    retry_policy: WireRetryPolicy | None = None
    cron_schedule: str = ""
    memo: dict[str, Payload] = {}
    headers: dict[str, str] = {}
    priority: int | None = None
    fairness_key: str = ""
    fairness_weight: float | None = None
    identity: str = ""
    last_completion_result: Payload | None = None
    last_failure: Failure | None = None
    first_task_backoff_ms: int = 0
    static_summary: str = ""
    static_details: str = ""
    versioning_override: str = ""
    inherited_version: str = ""
    route: str | None = None
    requires: str | None = None
    affinity: str | None = None
    affinity_target: str = ""
    affinity_firm: bool = False

    @property
    def is_bound(self) -> bool:
        """Whether not every worker of its task queue may have its workflow tasks."""
        return self.route is not None or self.requires is not None


class WorkflowExecutionCompleted(Base, frozen=True, tag="WorkflowExecutionCompleted"):
    result: Payload = NULL
    workflow_task_completed_event_id: int = 0
    new_run_id: str | None = None
    """The next run of a cron schedule."""


class WorkflowExecutionFailed(Base, frozen=True, tag="WorkflowExecutionFailed"):
    failure: Failure
    retry_state: int = 0
    workflow_task_completed_event_id: int = 0
    new_run_id: str | None = None
    """The next run of a retry policy or cron schedule."""


class WorkflowExecutionCanceled(Base, frozen=True, tag="WorkflowExecutionCanceled"):
    details: Payload = NO_ARGS
    workflow_task_completed_event_id: int = 0


class WorkflowExecutionTerminated(Base, frozen=True, tag="WorkflowExecutionTerminated"):
    reason: str = ""
    details: Payload = NO_ARGS
    identity: str = ""


class WorkflowExecutionTimedOut(Base, frozen=True, tag="WorkflowExecutionTimedOut"):
    retry_state: int = 0
    new_run_id: str | None = None


class WorkflowExecutionContinuedAsNew(Base, frozen=True, tag="WorkflowExecutionContinuedAsNew"):
    new_run_id: str
    workflow_type: str
    task_queue: str
    input: Payload = NO_ARGS
    workflow_task_completed_event_id: int = 0


class WorkflowExecutionCancelRequested(Base, frozen=True, tag="WorkflowExecutionCancelRequested"):
    reason: str = ""
    identity: str = ""
    external: ParentInfo | None = None
    """The run that asked, if one did; ``initiated_event_id`` is its event."""


class WorkflowExecutionSignaled(Base, frozen=True, tag="WorkflowExecutionSignaled"):
    signal_name: str
    input: Payload = NO_ARGS
    identity: str = ""
    headers: dict[str, str] = {}
    external: ParentInfo | None = None


class WorkflowPropertiesModified(Base, frozen=True, tag="WorkflowPropertiesModified"):
    """``None`` as a value removes the key."""

    upserted_memo: dict[str, Payload | None] = {}
    workflow_task_completed_event_id: int = 0


# --- workflow tasks -----------------------------------------------------------------------------


class WorkflowTaskScheduled(Base, frozen=True, tag="WorkflowTaskScheduled"):
    """``sticky`` names the worker on whose sticky queue it was put first."""

    task_queue: str
    start_to_close_ms: int = 10_000
    attempt: int = 1
    sticky: str | None = None


class WorkflowTaskStarted(Base, frozen=True, tag="WorkflowTaskStarted"):
    """Written together with what ended the task; ``time_ms`` is the worker's word.

    ``history_events``, ``history_bytes`` and ``continue_as_new_suggested`` are what the workflow
    could see while it ran this task. ``fell_back`` tells who was not there of those whom the run
    asks for, when others had the task.
    """

    scheduled_event_id: int
    identity: str = ""
    history_events: int = 0
    history_bytes: int = 0
    continue_as_new_suggested: bool = False
    fell_back: str = ""


class WorkflowTaskCompleted(Base, frozen=True, tag="WorkflowTaskCompleted"):
    """``version`` is that of the worker's deployment, ``versioning_behavior`` the number of a
    `tq_broker.common.VersioningBehavior`."""

    scheduled_event_id: int
    started_event_id: int
    identity: str = ""
    worker_id: str = ""
    version: str = ""
    versioning_behavior: int = 0


class WorkflowTaskTimedOut(Base, frozen=True, tag="WorkflowTaskTimedOut"):
    scheduled_event_id: int
    started_event_id: int = 0
    timeout_type: int = 1


class WorkflowTaskFailed(Base, frozen=True, tag="WorkflowTaskFailed"):
    """``cause`` is one of `tq_broker.model.workflow_tasks.TaskFailedCause`."""

    scheduled_event_id: int
    started_event_id: int
    cause: str
    failure: Failure | None = None
    identity: str = ""


# --- activities ---------------------------------------------------------------------------------


class ActivityTaskScheduled(Base, frozen=True, tag="ActivityTaskScheduled"):
    """``input`` is the payload of an activity body, ``{"args": [...]}``; ``route`` is the JSON of a
    `tq_broker.common.Route` as in the ``tq-route`` header, ``requires`` what is in the
    ``tq-requires`` header, and ``affinity`` the JSON of a `tq_broker.model.affinity.Affinity`. With
    ``announce_start``, ActivityTaskStarted is written when it has started; with ``auto_upgrade`` it
    is not for the version that its run is pinned to."""

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
    affinity: str | None = None
    announce_start: bool = False
    workflow_task_completed_event_id: int = 0
    rate_limit_key: str = ""
    auto_upgrade: bool = False


class ActivityTaskStarted(Base, frozen=True, tag="ActivityTaskStarted"):
    """Written together with what ended the activity, unless its start was to be announced;
    ``time_ms`` is the worker's word."""

    scheduled_event_id: int
    identity: str = ""
    host: str = ""
    worker_id: str = ""
    attempt: int = 1
    last_failure: Failure | None = None


class ActivityTaskCompleted(Base, frozen=True, tag="ActivityTaskCompleted"):
    """``result`` is the payload of an outcome body, ``{"result": ...}``."""

    scheduled_event_id: int
    started_event_id: int
    result: Payload
    identity: str = ""


class ActivityTaskFailed(Base, frozen=True, tag="ActivityTaskFailed"):
    scheduled_event_id: int
    started_event_id: int
    failure: Failure
    identity: str = ""
    retry_state: int = 0


class ActivityTaskTimedOut(Base, frozen=True, tag="ActivityTaskTimedOut"):
    """``started_event_id`` is 0 if it never started."""

    scheduled_event_id: int
    started_event_id: int
    failure: Failure
    retry_state: int = 0


class ActivityTaskCancelRequested(Base, frozen=True, tag="ActivityTaskCancelRequested"):
    scheduled_event_id: int
    workflow_task_completed_event_id: int = 0


class ActivityTaskCanceled(Base, frozen=True, tag="ActivityTaskCanceled"):
    scheduled_event_id: int
    started_event_id: int
    details: Payload = NO_ARGS
    identity: str = ""


# --- timers and markers ---------------------------------------------------------------------------


class TimerStarted(Base, frozen=True, tag="TimerStarted"):
    timer_id: str
    start_to_fire_ms: int
    summary: str = ""
    workflow_task_completed_event_id: int = 0


class TimerFired(Base, frozen=True, tag="TimerFired"):
    timer_id: str
    started_event_id: int


class TimerCanceled(Base, frozen=True, tag="TimerCanceled"):
    timer_id: str
    started_event_id: int
    workflow_task_completed_event_id: int = 0


class MarkerRecorded(Base, frozen=True, tag="MarkerRecorded"):
    """A fact that the worker found out and that replay must see again.

    ``core_patch`` (details ``id``, ``deprecated``), ``core_local_activity`` (``activity_id``,
    ``activity_type``, ``attempt``, ``result``): see `tq_broker.model.commands.RecordMarker`.
    """

    marker_name: str
    details: dict[str, Payload] = {}
    failure: Failure | None = None
    workflow_task_completed_event_id: int = 0


# --- children and other workflows -----------------------------------------------------------------


class StartChildWorkflowExecutionInitiated(
    Base, frozen=True, tag="StartChildWorkflowExecutionInitiated"
):
    """What the child starts with, as in its `WorkflowExecutionStarted`."""

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
    workflow_task_completed_event_id: int = 0
    route: str | None = None
    requires: str | None = None
    affinity: str | None = None
    affinity_target: str = ""
    affinity_firm: bool = False


class StartChildWorkflowExecutionFailed(Base, frozen=True, tag="StartChildWorkflowExecutionFailed"):
    """``cause`` is ``already_exists``, or ``invalid_argument`` with a ``message`` of more."""

    initiated_event_id: int
    workflow_id: str
    workflow_type: str
    cause: str
    message: str = ""


class ChildWorkflowExecutionStarted(Base, frozen=True, tag="ChildWorkflowExecutionStarted"):
    initiated_event_id: int
    workflow_id: str
    run_id: str
    workflow_type: str


class ChildWorkflowExecutionCompleted(Base, frozen=True, tag="ChildWorkflowExecutionCompleted"):
    initiated_event_id: int
    started_event_id: int
    workflow_id: str
    run_id: str
    workflow_type: str
    result: Payload = NULL


class ChildWorkflowExecutionFailed(Base, frozen=True, tag="ChildWorkflowExecutionFailed"):
    initiated_event_id: int
    started_event_id: int
    workflow_id: str
    run_id: str
    workflow_type: str
    failure: Failure
    retry_state: int = 0


class ChildWorkflowExecutionCanceled(Base, frozen=True, tag="ChildWorkflowExecutionCanceled"):
    initiated_event_id: int
    started_event_id: int
    workflow_id: str
    run_id: str
    workflow_type: str
    details: Payload = NO_ARGS


class ChildWorkflowExecutionTimedOut(Base, frozen=True, tag="ChildWorkflowExecutionTimedOut"):
    initiated_event_id: int
    started_event_id: int
    workflow_id: str
    run_id: str
    workflow_type: str
    retry_state: int = 0


class ChildWorkflowExecutionTerminated(Base, frozen=True, tag="ChildWorkflowExecutionTerminated"):
    initiated_event_id: int
    started_event_id: int
    workflow_id: str
    run_id: str
    workflow_type: str


class SignalExternalWorkflowExecutionInitiated(
    Base, frozen=True, tag="SignalExternalWorkflowExecutionInitiated"
):
    """``run_id`` is ``None`` for the current run; ``child_only`` for a signal to an own child."""

    workflow_id: str
    signal_name: str
    run_id: str | None = None
    input: Payload = NO_ARGS
    headers: dict[str, str] = {}
    child_only: bool = False
    workflow_task_completed_event_id: int = 0


class SignalExternalWorkflowExecutionFailed(
    Base, frozen=True, tag="SignalExternalWorkflowExecutionFailed"
):
    initiated_event_id: int
    workflow_id: str
    run_id: str | None = None
    cause: str = "not_found"


class ExternalWorkflowExecutionSignaled(Base, frozen=True, tag="ExternalWorkflowExecutionSignaled"):
    initiated_event_id: int
    workflow_id: str
    run_id: str | None = None


class RequestCancelExternalWorkflowExecutionInitiated(
    Base, frozen=True, tag="RequestCancelExternalWorkflowExecutionInitiated"
):
    workflow_id: str
    run_id: str | None = None
    child_only: bool = False
    reason: str = ""
    workflow_task_completed_event_id: int = 0


class RequestCancelExternalWorkflowExecutionFailed(
    Base, frozen=True, tag="RequestCancelExternalWorkflowExecutionFailed"
):
    initiated_event_id: int
    workflow_id: str
    run_id: str | None = None
    cause: str = "not_found"


class ExternalWorkflowExecutionCancelRequested(
    Base, frozen=True, tag="ExternalWorkflowExecutionCancelRequested"
):
    initiated_event_id: int
    workflow_id: str
    run_id: str | None = None


# --- updates --------------------------------------------------------------------------------------


class WorkflowExecutionUpdateAccepted(Base, frozen=True, tag="WorkflowExecutionUpdateAccepted"):
    """Its validator let it pass. A rejected update leaves no event.

    ``sequencing_event_id`` is the WorkflowTaskScheduled event of the task that it came with.
    """

    update_id: str
    update_name: str
    input: Payload = NO_ARGS
    headers: dict[str, str] = {}
    identity: str = ""
    sequencing_event_id: int = 0


class WorkflowExecutionUpdateCompleted(Base, frozen=True, tag="WorkflowExecutionUpdateCompleted"):
    """With a ``failure`` if its handler raised one."""

    update_id: str
    accepted_event_id: int
    result: Payload = NULL
    failure: Failure | None = None


Event = Union[  # noqa: UP007 - msgspec takes the union apart once
    WorkflowExecutionStarted,
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionCanceled,
    WorkflowExecutionTerminated,
    WorkflowExecutionTimedOut,
    WorkflowExecutionContinuedAsNew,
    WorkflowExecutionCancelRequested,
    WorkflowExecutionSignaled,
    WorkflowPropertiesModified,
    WorkflowTaskScheduled,
    WorkflowTaskStarted,
    WorkflowTaskCompleted,
    WorkflowTaskTimedOut,
    WorkflowTaskFailed,
    ActivityTaskScheduled,
    ActivityTaskStarted,
    ActivityTaskCompleted,
    ActivityTaskFailed,
    ActivityTaskTimedOut,
    ActivityTaskCancelRequested,
    ActivityTaskCanceled,
    TimerStarted,
    TimerFired,
    TimerCanceled,
    MarkerRecorded,
    StartChildWorkflowExecutionInitiated,
    StartChildWorkflowExecutionFailed,
    ChildWorkflowExecutionStarted,
    ChildWorkflowExecutionCompleted,
    ChildWorkflowExecutionFailed,
    ChildWorkflowExecutionCanceled,
    ChildWorkflowExecutionTimedOut,
    ChildWorkflowExecutionTerminated,
    SignalExternalWorkflowExecutionInitiated,
    SignalExternalWorkflowExecutionFailed,
    ExternalWorkflowExecutionSignaled,
    RequestCancelExternalWorkflowExecutionInitiated,
    RequestCancelExternalWorkflowExecutionFailed,
    ExternalWorkflowExecutionCancelRequested,
    WorkflowExecutionUpdateAccepted,
    WorkflowExecutionUpdateCompleted,
]

CLOSING = (
    WorkflowExecutionCompleted,
    WorkflowExecutionFailed,
    WorkflowExecutionCanceled,
    WorkflowExecutionTerminated,
    WorkflowExecutionTimedOut,
    WorkflowExecutionContinuedAsNew,
)
"""The events that can be a history's last."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Event])


def dump_events(events: list[Event]) -> bytes:
    """A batch of events as it is stored and sent: MessagePack."""
    return _encoder.encode(events)


def load_events(data: bytes | memoryview) -> list[Event]:
    """The inverse of `dump_events`. Raises `Malformed`."""
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"history: {error}") from error
