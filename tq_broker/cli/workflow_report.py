"""What the ``workflow`` commands print: runs, descriptions and events, as rows and as objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

from tq_broker.client import (
    PendingActivity,
    WorkflowExecution,
    WorkflowExecutionDescription,
)
from tq_broker.converter import DataConverter
from tq_broker.exceptions import FailureError, Malformed, TqBrokerError
from tq_broker.model import payload
from tq_broker.model.events import Event
from tq_broker.model.failure import Failure

LIST_HEADING = ("STATUS", "ID", "TYPE", "TASK QUEUE", "START", "CLOSE")
EVENT_HEADING = ("ID", "TIME", "TYPE", "DETAILS")
PENDING_HEADING = ("PENDING", "TYPE", "STATE", "ATTEMPT", "LAST FAILURE", "HEARTBEAT")
PREVIEW_CHARS = 80
_UNTOLD = {"event_id", "time_ms", "headers", "memo", "retry_policy", "identity"}


def moment(time: datetime | None) -> str:
    """A time for people and programs: ISO 8601 in UTC, or ``-``."""
    if time is None:
        return "-"
    return time.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_row(run: WorkflowExecution) -> tuple[object, ...]:
    """A line of a list."""
    return (
        run.status.name.lower(),
        run.id,
        run.workflow_type,
        run.task_queue,
        moment(run.start_time),
        moment(run.close_time),
    )


def run_data(run: WorkflowExecution) -> dict[str, Any]:
    """A run for programs."""
    return {
        "id": run.id,
        "run_id": run.run_id,
        "type": run.workflow_type,
        "task_queue": run.task_queue,
        "status": run.status.name.lower(),
        "start_time": _time(run.start_time),
        "execution_time": _time(run.execution_time),
        "close_time": _time(run.close_time),
        "history_length": run.history_length,
        "history_bytes": run.history_size_bytes,
        "first_run_id": run.first_execution_run_id,
        "parent_id": run.parent_id,
        "parent_run_id": run.parent_run_id,
        "cron_schedule": run.cron_schedule,
        "static_summary": run.static_summary,
        "pinned_version": run.pinned_version,
        "memo": _readable(run.memo),
    }


def description_fields(run: WorkflowExecutionDescription) -> list[tuple[str, object]]:
    """A description, line by line; what is not there is left out."""
    task = run.pending_workflow_task
    lines: list[tuple[str, object]] = [
        ("id", run.id),
        ("run id", run.run_id),
        ("type", run.workflow_type),
        ("status", run.status.name.lower()),
        ("task queue", run.task_queue),
        ("start", moment(run.start_time)),
        ("close", moment(run.close_time) if run.close_time else ""),
        ("events", run.history_length),
        ("history bytes", run.history_size_bytes),
        ("parent", run.parent_id),
        ("cron schedule", run.cron_schedule),
        ("version", run.version),
        ("pinned to", run.pinned_version),
        ("versioning", _versioning(run)),
        ("sticky worker", run.sticky_worker),
        ("cancel requested", "yes" if run.cancel_requested else ""),
        ("workflow task", task and f"attempt {task.attempt}, {task.last_failure_cause or 'open'}"),
        ("last task failure", task and _message(task.last_failure)),
        ("fell back", task and task.fell_back),
        ("pending activities", len(run.pending_activities)),
        ("pending children", ", ".join(child.workflow_id for child in run.pending_children)),
        ("pending timers", run.pending_timers),
        ("pending updates", ", ".join(run.pending_updates)),
        ("summary", run.static_summary),
        ("details", run.static_details),
        ("current details", run.current_details),
        ("memo", json_text(memo) if (memo := _readable(run.memo)) else ""),
    ]
    return [(name, value) for name, value in lines if value not in ("", None)]


def _versioning(run: WorkflowExecutionDescription) -> str:
    if run.versioning_override:
        return f"overridden by the start: {run.versioning_override}"
    return run.versioning_behavior.name.lower() if run.versioning_behavior else ""


def description_data(
    run: WorkflowExecutionDescription, ways: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    """A description for programs; ``ways`` tell of each pending activity where it goes, and why."""
    task = run.pending_workflow_task
    return run_data(run) | {
        "sticky_worker": run.sticky_worker,
        "version": run.version,
        "versioning_behavior": run.versioning_behavior.name.lower(),
        "versioning_override": run.versioning_override,
        "cancel_requested": run.cancel_requested,
        "pending_workflow_task": task
        and {
            "attempt": task.attempt,
            "scheduled_time": _time(task.scheduled_time),
            "started_time": _time(task.started_time),
            "last_failure": _message(task.last_failure) or None,
            "last_failure_cause": task.last_failure_cause or None,
            "fell_back": task.fell_back or None,
        },
        "pending_activities": [
            _activity_data(one) | ({"where": list(way)} if way else {})
            for one, way in zip(
                run.pending_activities, ways or [()] * len(run.pending_activities), strict=True
            )
        ],
        "pending_children": [
            {"id": one.workflow_id, "run_id": one.run_id, "type": one.workflow_type}
            for one in run.pending_children
        ],
        "pending_timers": run.pending_timers,
        "pending_updates": list(run.pending_updates),
        "static_details": run.static_details,
        "current_details": run.current_details,
        "execution_timeout_ms": run.execution_timeout_ms,
        "run_timeout_ms": run.run_timeout_ms,
        "task_timeout_ms": run.task_timeout_ms,
        "identity": run.identity,
    }


def activity_row(activity: PendingActivity) -> tuple[object, ...]:
    """A pending activity."""
    most = f"/{activity.maximum_attempts}" if activity.maximum_attempts else ""
    return (
        activity.activity_id,
        activity.activity_type,
        activity.state,
        f"{activity.attempt}{most}",
        _message(activity.last_failure),
        json_text(activity.heartbeat_details) if activity.heartbeat_details else "",
    )


def way_rows(activity: PendingActivity, steps: Sequence[str]) -> list[tuple[str, str]]:
    """Where a pending activity goes, and why."""
    return [
        (f"{activity.activity_id} goes", f"{number}. {step}")
        for number, step in enumerate(steps, 1)
    ]


def _activity_data(activity: PendingActivity) -> dict[str, Any]:
    return {
        "id": activity.activity_id,
        "type": activity.activity_type,
        "task_queue": activity.task_queue,
        "state": activity.state,
        "attempt": activity.attempt,
        "maximum_attempts": activity.maximum_attempts,
        "scheduled_time": _time(activity.scheduled_time),
        "last_started_time": _time(activity.last_started_time),
        "next_attempt_time": _time(activity.next_attempt_time),
        "last_failure": _message(activity.last_failure) or None,
        "heartbeat_details": activity.heartbeat_details,
        "worker": activity.last_worker_identity,
    }


def event_row(event: Event, converter: DataConverter) -> tuple[object, ...]:
    """An event on one line: its id, time, type, and what is special about it."""
    time = datetime.fromtimestamp(event.time_ms / 1000, timezone.utc)
    return (event.event_id, moment(time), type(event).__name__, _details(event, converter))


def _details(event: Event, converter: DataConverter) -> str:
    told = []
    for field in msgspec.structs.fields(event):
        value = getattr(event, field.name)
        if field.name not in _UNTOLD and value != field.default and value not in (None, {}, ""):
            told.append(f"{field.name}={_preview(value, converter)}")
    return " ".join(told)


def _preview(value: object, converter: DataConverter) -> str:
    if isinstance(value, bytes):
        return shortened(payload_text(value, converter))
    if isinstance(value, Failure):
        return repr(shortened(value.message))
    if isinstance(value, msgspec.Struct):
        return shortened(json_text(msgspec.to_builtins(value)))
    return shortened(str(value))


def payload_text(data: bytes, converter: DataConverter) -> str:
    """The JSON in a payload; or what hides it."""
    try:
        return payload.unseal(data, converter).decode("utf-8", "replace")
    except Malformed:
        return f"<{len(data)} bytes, encoded>"


def shortened(text: str) -> str:
    """``text``, cut to what fits a line beside others."""
    return text if len(text) <= PREVIEW_CHARS else f"{text[: PREVIEW_CHARS - 3]}..."


def json_text(value: Any) -> str:
    """``value`` as JSON on one line."""
    return msgspec.json.encode(value).decode()


def error_data(error: BaseException | None) -> dict[str, Any] | None:
    """An error and its causes for programs."""
    if error is None:
        return None
    return {
        "kind": type(error).__name__,
        "type": getattr(error, "type", None),
        "message": error.message if isinstance(error, FailureError) else str(error),
        "cause": error_data(error.__cause__),
    }


def _message(error: TqBrokerError | None) -> str:
    return str(error) if error is not None else ""


def _time(time: datetime | None) -> str | None:
    return None if time is None else moment(time)


def _readable(memo: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return memo()
    except Malformed as error:  # the codecs of the application are not known here
        return {"": str(error)}
