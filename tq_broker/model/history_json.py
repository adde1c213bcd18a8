"""Histories as JSON, in the shape that Temporal's tools export and read.

Rules of this file: a table says for each field of an event where it stands in the JSON; what
Temporal has no place for stands beside the rest, under a name of our own. A field that has its
default is left out, and one that is missing has it. Keys that are not known are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model import events as ev
from tq_broker.model.events import Event, ParentInfo
from tq_broker.model.json_shapes import (
    ACTIVITY_INPUT,
    ACTIVITY_RESULT,
    ARGUMENTS,
    CHANGES,
    DETAILS,
    DURATION,
    FAILURE,
    FIELDS,
    FLAG,
    HEADER,
    ID,
    NAME,
    NUMBER,
    POLICY,
    RETRY_STATE,
    SINGLE,
    STRING,
    TEXT,
    TIME,
    TIMEOUT_TYPE,
    Shape,
    Table,
    get,
    named,
    put,
)


@dataclass(frozen=True)
class WorkflowHistory:
    """The events of one run."""

    workflow_id: str
    events: Sequence[Event]

    @property
    def run_id(self) -> str:
        """Of the run; empty if its first event is missing."""
        first = self.events[0] if self.events else None
        return first.run_id if isinstance(first, ev.WorkflowExecutionStarted) else ""

    def to_json_dict(self) -> dict[str, Any]:
        """In the shape of Temporal's exported histories."""
        return {"events": [_write(event) for event in self.events]}

    def to_json(self) -> str:
        """The same as text."""
        return msgspec.json.format(msgspec.json.encode(self.to_json_dict()), indent=2).decode()

    @classmethod
    def from_json(cls, workflow_id: str, history: str | dict[str, Any]) -> WorkflowHistory:
        """The inverse of `to_json` and `to_json_dict`.

        Raises:
            Malformed: names the event that cannot be understood.
        """
        if isinstance(history, str):
            try:
                history = msgspec.json.decode(history)
            except (msgspec.DecodeError, RecursionError) as error:
                raise Malformed(f"history: {error}") from error
        found = history.get("events") if isinstance(history, dict) else None
        if not isinstance(found, list):
            raise Malformed("history: it has no list of events")
        return cls(workflow_id, [_read(shape, workflow_id, n + 1) for n, shape in enumerate(found)])


# --- the table ------------------------------------------------------------------------------------

_INITIATOR = named(
    "CONTINUE_AS_NEW_INITIATOR",
    {"continue_as_new": "WORKFLOW", "retry": "RETRY", "cron": "CRON_SCHEDULE"},
)
_TASK_FAILED = named(
    "WORKFLOW_TASK_FAILED_CAUSE",
    {
        "unhandled_failure": "WORKFLOW_WORKER_UNHANDLED_FAILURE",
        "non_deterministic": "NON_DETERMINISTIC_ERROR",
    },
)
_NOT_FOUND = {"not_found": "EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND"}
_CLOSE_POLICY = named("PARENT_CLOSE_POLICY", {1: "TERMINATE", 2: "ABANDON", 3: "REQUEST_CANCEL"})
_REUSE_POLICY = named(
    "WORKFLOW_ID_REUSE_POLICY",
    {
        1: "ALLOW_DUPLICATE",
        2: "ALLOW_DUPLICATE_FAILED_ONLY",
        3: "REJECT_DUPLICATE",
        4: "TERMINATE_IF_RUNNING",
    },
)
_BEHAVIOR = named("VERSIONING_BEHAVIOR", {0: "UNSPECIFIED", 1: "PINNED", 2: "AUTO_UPGRADE"})
_TASK_QUEUE = Shape(
    lambda name: {"name": name, "kind": "TASK_QUEUE_KIND_NORMAL"},
    lambda shape: shape.get("normalName") or shape["name"],
)

_COMMON: Table = {
    "accepted_event_id": (("acceptedEventId",), ID),
    "activity_id": (("activityId",), TEXT),
    "activity_type": (("activityType",), NAME),
    "affinity": (("affinity",), TEXT),
    "affinity_firm": (("affinityFirm",), FLAG),
    "affinity_target": (("affinityTarget",), TEXT),
    "announce_start": (("announceStart",), FLAG),
    "auto_upgrade": (("autoUpgrade",), FLAG),
    "attempt": (("attempt",), NUMBER),
    "child_only": (("childWorkflowOnly",), FLAG),
    "continue_as_new_suggested": (("suggestContinueAsNew",), FLAG),
    "continued_run_id": (("continuedExecutionRunId",), TEXT),
    "cron_schedule": (("cronSchedule",), TEXT),
    "execution_deadline_ms": (("workflowExecutionExpirationTime",), TIME),
    "execution_timeout_ms": (("workflowExecutionTimeout",), DURATION),
    "failure": (("failure",), FAILURE),
    "fell_back": (("fellBack",), TEXT),
    "first_run_id": (("firstExecutionRunId",), TEXT),
    "first_task_backoff_ms": (("firstWorkflowTaskBackoff",), DURATION),
    "headers": (("header",), HEADER),
    "heartbeat_ms": (("heartbeatTimeout",), DURATION),
    "history_bytes": (("historySizeBytes",), ID),
    "history_events": (("historyLength",), ID),
    "host": (("host",), TEXT),
    "id_reuse_policy": (("workflowIdReusePolicy",), _REUSE_POLICY),
    "identity": (("identity",), TEXT),
    "inherited_version": (("inheritedVersion",), TEXT),
    "initiated_event_id": (("initiatedEventId",), ID),
    "initiator": (("initiator",), _INITIATOR),
    "input": (("input",), ARGUMENTS),
    "details": (("details",), ARGUMENTS),
    "last_completion_result": (("lastCompletionResult",), SINGLE),
    "last_failure": (("lastFailure",), FAILURE),
    "marker_name": (("markerName",), TEXT),
    "memo": (("memo",), FIELDS),
    "new_run_id": (("newExecutionRunId",), TEXT),
    "parent_close_policy": (("parentClosePolicy",), _CLOSE_POLICY),
    "fairness_key": (("priority", "fairnessKey"), TEXT),
    "fairness_weight": (("priority", "fairnessWeight"), NUMBER),
    "priority": (("priority", "priorityKey"), NUMBER),
    "rate_limit_key": (("rateLimitKey",), TEXT),
    "reason": (("reason",), TEXT),
    "result": (("result",), SINGLE),
    "retry_policy": (("retryPolicy",), POLICY),
    "retry_state": (("retryState",), RETRY_STATE),
    "requires": (("requires",), TEXT),
    "route": (("route",), TEXT),
    "run_id": (("workflowExecution", "runId"), TEXT),
    "run_timeout_ms": (("workflowRunTimeout",), DURATION),
    "schedule_to_close_ms": (("scheduleToCloseTimeout",), DURATION),
    "schedule_to_start_ms": (("scheduleToStartTimeout",), DURATION),
    "scheduled_event_id": (("scheduledEventId",), ID),
    "signal_name": (("signalName",), TEXT),
    "start_to_close_ms": (("startToCloseTimeout",), DURATION),
    "start_to_fire_ms": (("startToFireTimeout",), DURATION),
    "started_event_id": (("startedEventId",), ID),
    "sticky": (("stickyWorkerId",), TEXT),
    "task_queue": (("taskQueue",), _TASK_QUEUE),
    "task_timeout_ms": (("workflowTaskTimeout",), DURATION),
    "timeout_type": (("timeoutType",), TIMEOUT_TYPE),
    "timer_id": (("timerId",), TEXT),
    "upserted_memo": (("upsertedMemo",), CHANGES),
    "version": (("workerDeploymentVersion",), TEXT),
    "versioning_behavior": (("versioningBehavior",), _BEHAVIOR),
    "versioning_override": (("versioningOverride", "pinnedVersion"), TEXT),
    "worker_id": (("workerId",), TEXT),
    "workflow_id": (("workflowExecution", "workflowId"), TEXT),
    "workflow_task_completed_event_id": (("workflowTaskCompletedEventId",), ID),
    "workflow_type": (("workflowType",), NAME),
}
"""Where a field stands in every event that has it, except those of `_SPECIAL`."""

_ID_AT_TOP: Table = {"workflow_id": (("workflowId",), TEXT)}

_SPECIAL: dict[type, Table] = {
    ev.WorkflowExecutionStarted: {
        **_ID_AT_TOP,
        "run_id": (("originalExecutionRunId",), TEXT),
        "last_failure": (("continuedFailure",), FAILURE),
    },
    ev.WorkflowExecutionCancelRequested: {"reason": (("cause",), TEXT)},
    ev.WorkflowTaskFailed: {"cause": (("cause",), _TASK_FAILED)},
    ev.ActivityTaskScheduled: {"input": (("input",), ACTIVITY_INPUT)},
    ev.ActivityTaskCompleted: {"result": (("result",), ACTIVITY_RESULT)},
    ev.MarkerRecorded: {"details": (("details",), DETAILS)},
    ev.StartChildWorkflowExecutionInitiated: _ID_AT_TOP,
    ev.StartChildWorkflowExecutionFailed: {
        **_ID_AT_TOP,
        "cause": (
            ("cause",),
            named(
                "START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE",
                {"already_exists": "WORKFLOW_ALREADY_EXISTS", "invalid_argument": "INVALID"},
            ),
        ),
        "message": (("message",), TEXT),
    },
    ev.SignalExternalWorkflowExecutionFailed: {
        "cause": (("cause",), named("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE", _NOT_FOUND))
    },
    ev.RequestCancelExternalWorkflowExecutionFailed: {
        "cause": (("cause",), named("CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE", _NOT_FOUND))
    },
    ev.WorkflowExecutionUpdateAccepted: {
        "update_id": (("protocolInstanceId",), TEXT),
        "update_name": (("acceptedRequest", "input", "name"), TEXT),
        "input": (("acceptedRequest", "input", "args"), ARGUMENTS),
        "headers": (("acceptedRequest", "input", "header"), HEADER),
        "identity": (("acceptedRequest", "meta", "identity"), TEXT),
        "sequencing_event_id": (("acceptedRequestSequencingEventId",), ID),
    },
    ev.WorkflowExecutionUpdateCompleted: {
        "update_id": (("meta", "updateId"), TEXT),
        "result": (("outcome", "success"), SINGLE),
        "failure": (("outcome", "failure"), FAILURE),
    },
}
_METADATA: Table = {
    "summary": (("userMetadata", "summary"), STRING),
    "static_summary": (("userMetadata", "summary"), STRING),
    "static_details": (("userMetadata", "details"), STRING),
}
"""These stand in the event, beside its attributes."""

_PARENTS = {
    ("parent", "workflow_id"): ("parentWorkflowExecution", "workflowId"),
    ("parent", "run_id"): ("parentWorkflowExecution", "runId"),
    ("parent", "initiated_event_id"): ("parentInitiatedEventId",),
    ("external", "workflow_id"): ("externalWorkflowExecution", "workflowId"),
    ("external", "run_id"): ("externalWorkflowExecution", "runId"),
    ("external", "initiated_event_id"): ("externalInitiatedEventId",),
}


# --- reading and writing --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """What there is to know about one event type."""

    type: type
    event_type: str
    attributes: str
    fields: tuple[msgspec.structs.FieldInfo, ...]
    table: Table


def _kind(event_class: type) -> _Kind:
    name = event_class.__name__
    words = re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()
    fields = tuple(
        field
        for field in msgspec.structs.fields(event_class)
        if field.name not in ("event_id", "time_ms")
    )
    return _Kind(
        event_class,
        f"EVENT_TYPE_{words}",
        f"{name[0].lower()}{name[1:]}EventAttributes",
        fields,
        {**_COMMON, **_SPECIAL.get(event_class, {})},
    )


_KINDS = {event_class: _kind(event_class) for event_class in get_args(Event)}
_BY_TYPE = {kind.event_type: kind for kind in _KINDS.values()}


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _write(event: Event) -> dict[str, Any]:
    kind = _KINDS[type(event)]
    attributes: dict[str, Any] = {}
    shape: dict[str, Any] = {
        "eventId": str(event.event_id),
        "eventTime": TIME.write(event.time_ms),
        "eventType": kind.event_type,
        kind.attributes: attributes,
    }
    for field in kind.fields:
        value = getattr(event, field.name)
        if value == _default(field):
            continue
        if field.name in _METADATA:
            path, form = _METADATA[field.name]
            put(shape, path, form.write(value))
        elif isinstance(value, ParentInfo):
            paths = {part: _PARENTS[field.name, part] for part in value.__struct_fields__}
            put(attributes, paths["workflow_id"], value.workflow_id)
            put(attributes, paths["run_id"], value.run_id)
            put(attributes, paths["initiated_event_id"], str(value.initiated_event_id))
        else:
            path, form = kind.table[field.name]
            put(attributes, path, form.write(value))
    return shape


def _read(shape: Any, workflow_id: str, number: int) -> Event:
    kind = _BY_TYPE.get(shape.get("eventType", "")) if isinstance(shape, dict) else None
    if kind is None:
        raise Malformed(f"history: event {number} is of no known type")
    try:
        told = _fields(kind, shape)
        if kind.type is ev.WorkflowExecutionStarted:
            told.setdefault("workflow_id", workflow_id)
            told.setdefault("first_run_id", told.get("run_id", ""))
        event: Event = kind.type(
            event_id=int(shape["eventId"]), time_ms=TIME.read(shape["eventTime"]), **told
        )
        return event
    except (Malformed, TypeError, KeyError, ValueError, AttributeError) as error:
        raise Malformed(f"history: event {number} ({kind.event_type}): {error}") from error


def _fields(kind: _Kind, shape: dict[str, Any]) -> dict[str, Any]:
    attributes = shape.get(kind.attributes, {})
    told: dict[str, Any] = {}
    for field in kind.fields:
        if field.name in ("parent", "external"):
            value = _read_parent(field.name, attributes)
        else:
            source = shape if field.name in _METADATA else attributes
            path, form = _METADATA.get(field.name) or kind.table[field.name]
            found = get(source, path)
            value = None if found is None else form.read(found)
        if value is not None:
            told[field.name] = value
    return told


def _read_parent(field: str, attributes: Any) -> ParentInfo | None:
    workflow_id = get(attributes, _PARENTS[field, "workflow_id"])
    if workflow_id is None:
        return None
    return ParentInfo(
        workflow_id=workflow_id,
        run_id=get(attributes, _PARENTS[field, "run_id"]) or "",
        initiated_event_id=int(get(attributes, _PARENTS[field, "initiated_event_id"]) or 0),
    )
