"""Workflow executions as clients see them: their status, a row of a list, a description."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import msgspec

from tq_broker.common import Requires, Route, VersioningBehavior
from tq_broker.converter import DataConverter
from tq_broker.exceptions import FailureError
from tq_broker.model import failure, payload, requests
from tq_broker.model.affinity import Affinity, load_affinity
from tq_broker.model.failure import Failure
from tq_broker.model.payload import Payload
from tq_broker.model.tasks import load_requires, load_route


class WorkflowExecutionStatus(enum.IntEnum):
    """How a run stands (Temporal's numbers)."""

    RUNNING = 1
    COMPLETED = 2
    FAILED = 3
    CANCELED = 4
    TERMINATED = 5
    CONTINUED_AS_NEW = 6
    TIMED_OUT = 7

    @classmethod
    def of(cls, status: str) -> WorkflowExecutionStatus:
        """The status that travels as ``status``."""
        return cls[requests.Status(status).name]


@dataclass(frozen=True, kw_only=True)
class WorkflowExecution:
    """A run, as it is listed.

    Attributes:
        start_time: When it was started, with a time zone, as all times here.
        execution_time: When it really began: later than ``start_time`` after a start delay, a
            retry's pause or the wait for a cron schedule.
        close_time: ``None`` while it is open.
        first_execution_run_id: The first run of its chain.
        pinned_version: The deployment version that it is pinned to; ``None`` if to none.
    """

    id: str
    run_id: str
    namespace: str
    workflow_type: str
    task_queue: str
    status: WorkflowExecutionStatus
    start_time: datetime
    execution_time: datetime | None
    close_time: datetime | None
    history_length: int
    history_size_bytes: int
    first_execution_run_id: str
    parent_id: str | None
    parent_run_id: str | None
    cron_schedule: str
    static_summary: str | None
    pinned_version: str | None
    _memo: Mapping[str, Payload] = field(repr=False)
    _converter: DataConverter = field(repr=False)

    def memo(self) -> dict[str, Any]:
        """The memo, decoded."""
        return {name: payload.load(value, self._converter) for name, value in self._memo.items()}

    def memo_value(self, key: str, default: Any = ..., *, type_hint: Any = Any) -> Any:
        """One value of the memo, as ``type_hint``.

        Raises:
            KeyError: there is none, and no ``default`` was given.
        """
        if key in self._memo:
            return payload.load(self._memo[key], self._converter, type_hint)
        if default is ...:
            raise KeyError(f"memo has no {key!r}")
        return default

    @classmethod
    def of(
        cls, info: requests.RunInfo, namespace: str, converter: DataConverter
    ) -> WorkflowExecution:
        """From what history tells."""
        return cls(**_fields(info, namespace, converter))


@dataclass(frozen=True, kw_only=True)
class PendingActivity:
    """An activity that has not ended.

    Attributes:
        state: ``scheduled`` (also while it waits for its next attempt), ``started`` or
            ``cancel_requested``.
        attempt: The one that runs or comes next, from 1.
        maximum_attempts: 0: no bound.
        next_attempt_time: When a retry is due; ``None`` if none is waited for.
        last_failure: Of the attempt before, if there was one.
        heartbeat_details: Those it told last.
        raw: As history has told it.
    """

    activity_id: str
    activity_type: str
    task_queue: str
    state: str
    attempt: int
    maximum_attempts: int
    scheduled_time: datetime | None
    last_started_time: datetime | None
    next_attempt_time: datetime | None
    last_failure: FailureError | None
    heartbeat_details: Sequence[Any]
    last_heartbeat_time: datetime | None
    last_worker_identity: str
    raw: requests.PendingActivity = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class PendingChild:
    """A child workflow that has not ended. ``run_id`` is empty until it has started."""

    workflow_id: str
    run_id: str
    workflow_type: str


@dataclass(frozen=True, kw_only=True)
class PendingWorkflowTask:
    """The workflow task under way.

    Attributes:
        attempt: From 1; more when workers have failed it.
        started_time: ``None`` as long as no worker has said so.
        last_failure_cause: Why the attempt before has failed, such as ``non_deterministic``.
        next_attempt_time: When the next attempt is due, after a failure.
        fell_back: Who was not there of those whom the run asks for, so that others may have it; ""
            if they may not.
    """

    scheduled_time: datetime
    started_time: datetime | None
    attempt: int
    last_failure: FailureError | None
    last_failure_cause: str
    next_attempt_time: datetime | None
    fell_back: str


@dataclass(frozen=True, kw_only=True)
class WorkflowExecutionDescription(WorkflowExecution):
    """All about a run.

    Attributes:
        sticky_worker: The worker that has it in its cache; ``None`` if none has.
        pending_timers: How many timers have not fired.
        pending_updates: Ids of updates that have not ended.
        execution_timeout_ms, run_timeout_ms, task_timeout_ms: 0 if not set.
        identity: Who started it.
        version: The deployment version that has completed its last workflow task.
        versioning_behavior: What its workflow says a new version means for it.
        versioning_override: What its start says instead: a version, or ``auto_upgrade``.
        route: The host or process whose workers have its workflow tasks; ``None``: any.
        requires: What they must have; ``None``: nothing.
        affinity: Whom its activities and children follow that do not say where they run; ``None``:
            nobody.
        affinity_target: The host or process that they follow to; ``None`` while that is not known.
        raw: As history has told it.
    """

    sticky_worker: str | None
    pending_workflow_task: PendingWorkflowTask | None
    pending_activities: Sequence[PendingActivity]
    pending_children: Sequence[PendingChild]
    pending_timers: int
    pending_updates: Sequence[str]
    cancel_requested: bool
    current_details: str
    static_details: str | None
    execution_timeout_ms: int
    run_timeout_ms: int
    task_timeout_ms: int
    identity: str
    version: str | None
    versioning_behavior: VersioningBehavior
    versioning_override: str | None
    route: Route | None
    requires: Requires | None
    affinity: Affinity | None
    affinity_target: str | None
    raw: requests.Description = field(repr=False)

    @classmethod
    def of_description(
        cls, told: requests.Description, namespace: str, converter: DataConverter
    ) -> WorkflowExecutionDescription:
        """From what history tells."""
        task = told.pending_task
        return cls(
            **_fields(told.info, namespace, converter),
            sticky_worker=told.sticky_worker or None,
            pending_workflow_task=None if task is None else _task(task, converter),
            pending_activities=[_activity(one, converter) for one in told.pending_activities],
            pending_children=[
                PendingChild(
                    workflow_id=one.workflow_id,
                    run_id=one.run_id,
                    workflow_type=one.workflow_type,
                )
                for one in told.pending_children
            ],
            pending_timers=told.pending_timers,
            pending_updates=told.pending_updates,
            cancel_requested=told.cancel_requested,
            current_details=told.current_details,
            static_details=told.static_details or None,
            execution_timeout_ms=told.execution_timeout_ms,
            run_timeout_ms=told.run_timeout_ms,
            task_timeout_ms=told.task_timeout_ms,
            identity=told.identity,
            version=told.version or None,
            versioning_behavior=VersioningBehavior(told.versioning_behavior),
            versioning_override=told.versioning_override or None,
            route=None if told.route is None else load_route(told.route),
            requires=None if told.requires is None else load_requires(told.requires),
            affinity=None if told.affinity is None else load_affinity(told.affinity),
            affinity_target=told.affinity_target or None,
            raw=told,
        )


@dataclass(frozen=True)
class WorkflowExecutionCount:
    """How many runs match. ``groups``: by status, if the query asked for that."""

    count: int
    groups: Mapping[str, int]

    @classmethod
    def of(cls, told: requests.Count) -> WorkflowExecutionCount:
        """From what history tells."""
        return cls(told.count, told.groups)


def _fields(info: requests.RunInfo, namespace: str, converter: DataConverter) -> dict[str, Any]:
    return {
        "id": info.workflow_id,
        "run_id": info.run_id,
        "namespace": namespace,
        "workflow_type": info.workflow_type,
        "task_queue": info.task_queue,
        "status": WorkflowExecutionStatus.of(info.status),
        "start_time": to_time(info.start_ms),
        "execution_time": to_time(info.execution_ms or info.start_ms),
        "close_time": to_time(info.close_ms),
        "history_length": info.history_length,
        "history_size_bytes": info.history_bytes,
        "first_execution_run_id": info.first_run_id,
        "parent_id": info.parent_id or None,
        "parent_run_id": info.parent_run_id or None,
        "cron_schedule": info.cron_schedule,
        "static_summary": info.static_summary or None,
        "pinned_version": info.deployment_version or None,
        "_memo": info.memo,
        "_converter": converter,
    }


def _activity(told: requests.PendingActivity, converter: DataConverter) -> PendingActivity:
    details = told.heartbeat_details
    return PendingActivity(
        activity_id=told.activity_id,
        activity_type=told.activity_type,
        task_queue=told.task_queue,
        state=told.state,
        attempt=told.attempt,
        maximum_attempts=told.maximum_attempts,
        scheduled_time=to_time(told.scheduled_ms),
        last_started_time=to_time(told.started_ms),
        next_attempt_time=to_time(told.next_ms),
        last_failure=_error(told.last_failure, converter),
        heartbeat_details=[]
        if details is None
        else [msgspec.json.decode(raw) for raw in payload.load_args(details, converter)],
        last_heartbeat_time=to_time(told.heartbeat_ms),
        last_worker_identity=told.identity,
        raw=told,
    )


def _task(told: requests.PendingTask, converter: DataConverter) -> PendingWorkflowTask:
    scheduled = to_time(told.scheduled_ms)
    assert scheduled is not None, "a task that is under way was scheduled at some time"
    return PendingWorkflowTask(
        scheduled_time=scheduled,
        started_time=to_time(told.started_ms),
        attempt=told.attempt,
        last_failure=_error(told.last_failure, converter),
        last_failure_cause=told.last_cause,
        next_attempt_time=to_time(told.next_ms),
        fell_back=told.fell_back,
    )


def _error(told: Failure | None, converter: DataConverter) -> FailureError | None:
    if told is None:
        return None
    return failure.to_exception(payload.unseal_failure(told, converter))


def to_time(epoch_ms: int) -> datetime | None:
    """A time of the wire; ``None`` for 0."""
    return datetime.fromtimestamp(epoch_ms / 1000, timezone.utc) if epoch_ms else None
