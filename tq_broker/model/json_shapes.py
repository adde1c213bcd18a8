"""The shapes of values in Temporal's exported histories: payloads, failures, durations, times.

Each `Shape` is a pair of inverse functions between a value of ours and its JSON. What a value of
ours says and Temporal's shape has no place for goes under the key `OURS`, so that nothing is lost.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model import payload as payloads
from tq_broker.model.failure import Failure, FailureKind
from tq_broker.model.payload import NULL, Payload
from tq_broker.model.tasks import WireRetryPolicy

OURS = "tqBroker"

PLAIN, NONE, BYTES = "json/plain", "binary/null", "binary/plain"
CODED = "binary/tq-encoded"
"""A payload of ours that went through codecs, or a whole list of arguments that did."""
WHOLE = "binary/tq-whole"
"""A whole list of arguments that is not written as we write lists."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_FRACTION = re.compile(r"\.(\d+)")


@dataclass(frozen=True)
class Shape:
    """``write`` makes JSON of a value, ``read`` undoes it."""

    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def named(prefix: str, names: Mapping[Any, str]) -> Shape:
    """An enumeration: ``prefix`` and a name; a value that has none becomes one itself."""
    back = {f"{prefix}_{name}": value for value, name in names.items()}

    def write(value: Any) -> str:
        return f"{prefix}_{names.get(value, str(value).upper())}"

    def read(text: str) -> Any:
        if text in back:
            return back[text]
        rest = text.removeprefix(f"{prefix}_")
        return int(rest) if rest.isdecimal() else rest.lower()

    return Shape(write, read)


def _write_duration(ms: int) -> str:
    whole, rest = divmod(ms, 1000)
    return f"{whole}.{rest:03}s" if rest else f"{whole}s"


def _read_duration(text: str) -> int:
    try:
        return int(Decimal(text.removesuffix("s")) * 1000)
    except InvalidOperation:
        raise Malformed(f"{text!r} is not a duration") from None


def _write_time(ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=ms)).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03}Z"


def _read_time(text: str) -> int:
    # Nanoseconds and "Z" are more than `fromisoformat` of Python 3.10 understands.
    fraction = _FRACTION.search(text)
    whole = _FRACTION.sub("", text).replace("Z", "+00:00")
    try:
        past = datetime.fromisoformat(whole) - _EPOCH
    except ValueError:
        raise Malformed(f"{text!r} is not a time") from None
    return past // timedelta(milliseconds=1) + int(f"{fraction[1]:0<3}"[:3] if fraction else 0)


TEXT = FLAG = NUMBER = Shape(_same, _same)
ID = Shape(str, int)
NAME = Shape(lambda name: {"name": name}, lambda shape: shape["name"])
DURATION = Shape(_write_duration, _read_duration)
TIME = Shape(_write_time, _read_time)


# --- payloads ------------------------------------------------------------------------------------


def _one(encoding: str, data: bytes | None, **metadata: str) -> dict[str, Any]:
    told = {"encoding": encoding, **metadata}
    shape: dict[str, Any] = {"metadata": {key: _b64(text.encode()) for key, text in told.items()}}
    if data is not None:
        shape["data"] = _b64(data)
    return shape


def _b64(data: bytes) -> str:
    return b64encode(data).decode()


def _encoding(shape: Any) -> str:
    return b64decode(shape.get("metadata", {}).get("encoding", "")).decode()


def write_payload(payload: Payload) -> dict[str, Any]:
    """One value."""
    codecs, data = payloads.split(payload)
    if payload.startswith(payloads.HEAD):
        return _one(CODED, data, codecs=codecs)
    return _one(NONE, None) if payload == NULL else _one(PLAIN, data)


def read_payload(shape: Any) -> Payload:
    """The inverse of `write_payload`; also knows what Temporal's default converter writes."""
    encoding, data = _encoding(shape), b64decode(shape.get("data", ""))
    if encoding == NONE:
        return NULL
    if encoding == CODED:
        codecs = b64decode(shape["metadata"].get("codecs", "")).decode()
        return payloads.HEAD + codecs.encode() + payloads.HEAD + data
    if encoding == BYTES:
        return msgspec.json.encode(data)
    if encoding in (PLAIN, WHOLE) or encoding.startswith("json/"):
        return data
    raise Malformed(f"a payload has encoding {encoding!r}, which is not known here")


def _listed(shape: Any) -> list[Any]:
    found = shape.get("payloads", [])
    if not isinstance(found, list):
        raise Malformed("payloads is not a list")
    return found


def _write_single(payload: Payload) -> dict[str, Any]:
    return {"payloads": [write_payload(payload)]}


def _read_single(shape: Any) -> Payload:
    found = _listed(shape)
    return read_payload(found[0]) if found else NULL


def _arguments(before: bytes, after: bytes) -> Shape:
    """A JSON list between ``before`` and ``after``, each element a payload of its own."""

    def write(payload: Payload) -> dict[str, Any]:
        if payload.startswith(payloads.HEAD):
            return {"payloads": [write_payload(payload)]}
        inner = payload[len(before) : len(payload) - len(after)]
        try:
            elements = [bytes(raw) for raw in msgspec.json.decode(inner, type=list[msgspec.Raw])]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {"payloads": [_one(WHOLE, payload)]}
        shape = {"payloads": [write_payload(element) for element in elements]}
        return shape if read(shape) == payload else {"payloads": [_one(WHOLE, payload)]}

    def read(shape: Any) -> Payload:
        found = _listed(shape)
        if len(found) == 1 and _encoding(found[0]) in (CODED, WHOLE):
            return read_payload(found[0])
        return before + b"[" + b",".join(map(read_payload, found)) + b"]" + after

    return Shape(write, read)


_RESULT_BEFORE, _RESULT_AFTER = b'{"result":', b"}"


def _write_activity_result(payload: Payload) -> dict[str, Any]:
    if payload.startswith(payloads.HEAD):
        return _write_single(payload)
    if payload == b"{}":
        return {"payloads": [_one(NONE, None)]}
    if payload.startswith(_RESULT_BEFORE) and payload.endswith(_RESULT_AFTER):
        value = payload[len(_RESULT_BEFORE) : -len(_RESULT_AFTER)]
        return {"payloads": [_one(PLAIN, value)]}
    return {"payloads": [_one(WHOLE, payload)]}


def _read_activity_result(shape: Any) -> Payload:
    found = _listed(shape)
    if not found or _encoding(found[0]) == NONE:
        return b"{}"
    value = read_payload(found[0])
    if _encoding(found[0]) in (CODED, WHOLE):
        return value
    return _RESULT_BEFORE + value + _RESULT_AFTER


def _write_changes(changes: dict[str, Payload | None]) -> dict[str, Any]:
    # A null of Temporal's removes the key; one of ours that does not is written as JSON.
    return {
        "fields": {
            key: _one(NONE, None)
            if payload is None
            else _one(PLAIN, payload)
            if payload == NULL
            else write_payload(payload)
            for key, payload in changes.items()
        }
    }


def _read_changes(shape: Any) -> dict[str, Payload | None]:
    return {
        key: None if _encoding(each) == NONE else read_payload(each)
        for key, each in shape.get("fields", {}).items()
    }


def _read_fields(shape: Any) -> dict[str, Payload]:
    return {key: read_payload(each) for key, each in shape.get("fields", {}).items()}


def _read_text(shape: Any) -> str:
    value = msgspec.json.decode(read_payload(shape))
    return value if isinstance(value, str) else str(value)


SINGLE = Shape(_write_single, _read_single)
ARGUMENTS = _arguments(b"", b"")
ACTIVITY_INPUT = _arguments(b'{"args":', b"}")
ACTIVITY_RESULT = Shape(_write_activity_result, _read_activity_result)
STRING = Shape(lambda text: write_payload(msgspec.json.encode(text)), _read_text)
"""Text for people, as a payload."""
FIELDS = Shape(
    lambda memo: {"fields": {key: write_payload(payload) for key, payload in memo.items()}},
    _read_fields,
)
CHANGES = Shape(_write_changes, _read_changes)
HEADER = Shape(
    lambda headers: {"fields": {key: STRING.write(text) for key, text in headers.items()}},
    lambda shape: {key: _read_text(each) for key, each in shape.get("fields", {}).items()},
)
DETAILS = Shape(
    lambda details: {key: _write_single(payload) for key, payload in details.items()},
    lambda shape: {key: _read_single(each) for key, each in shape.items()},
)


# --- retry policies and failures ------------------------------------------------------------------


def _write_policy(policy: WireRetryPolicy) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "initialInterval": _write_duration(policy.initial_ms),
        "backoffCoefficient": policy.coefficient,
    }
    if policy.maximum_ms is not None:
        shape["maximumInterval"] = _write_duration(policy.maximum_ms)
    if policy.attempts:
        shape["maximumAttempts"] = policy.attempts
    if policy.non_retryable:
        shape["nonRetryableErrorTypes"] = list(policy.non_retryable)
    return shape


def _read_policy(shape: Any) -> WireRetryPolicy:
    maximum = shape.get("maximumInterval")
    return WireRetryPolicy(
        initial_ms=_read_duration(shape.get("initialInterval", "1s")),
        coefficient=float(shape.get("backoffCoefficient", 2.0)),
        maximum_ms=None if maximum is None else _read_duration(maximum),
        attempts=shape.get("maximumAttempts", 0),
        non_retryable=list(shape.get("nonRetryableErrorTypes", [])),
    )


POLICY = Shape(_write_policy, _read_policy)

TIMEOUT_TYPE = named(
    "TIMEOUT_TYPE",
    {1: "START_TO_CLOSE", 2: "SCHEDULE_TO_START", 3: "SCHEDULE_TO_CLOSE", 4: "HEARTBEAT"},
)
RETRY_STATE = named(
    "RETRY_STATE",
    {
        0: "UNSPECIFIED",
        1: "IN_PROGRESS",
        2: "NON_RETRYABLE_FAILURE",
        3: "TIMEOUT",
        4: "MAXIMUM_ATTEMPTS_REACHED",
        5: "RETRY_POLICY_NOT_SET",
        6: "INTERNAL_SERVER_ERROR",
        7: "CANCEL_REQUESTED",
    },
)
CATEGORY = named("APPLICATION_ERROR_CATEGORY", {0: "UNSPECIFIED", 1: "BENIGN"})

_VALUES = Shape(
    lambda values: {"payloads": [write_payload(msgspec.json.encode(value)) for value in values]},
    lambda shape: [msgspec.json.decode(read_payload(each)) for each in _listed(shape)],
)

Table = dict[str, tuple[tuple[str, ...], Shape]]
"""Fields of ours: where in the JSON they stand, and in what shape."""

_FAILURE: Table = {
    "message": (("message",), TEXT),
    "stack_trace": (("stackTrace",), TEXT),
    "sealed": (("encodedAttributes",), Shape(write_payload, read_payload)),
}
_BY_KIND: dict[FailureKind, tuple[str, Table]] = {
    FailureKind.APPLICATION: (
        "applicationFailureInfo",
        {
            "type": (("type",), TEXT),
            "non_retryable": (("nonRetryable",), FLAG),
            "details": (("details",), _VALUES),
            "next_retry_delay_ms": (("nextRetryDelay",), DURATION),
            "category": (("category",), CATEGORY),
        },
    ),
    FailureKind.TIMEOUT: (
        "timeoutFailureInfo",
        {
            "timeout_type": (("timeoutType",), TIMEOUT_TYPE),
            "details": (("lastHeartbeatDetails",), _VALUES),
        },
    ),
    FailureKind.CANCELED: ("canceledFailureInfo", {"details": (("details",), _VALUES)}),
    FailureKind.TERMINATED: ("terminatedFailureInfo", {}),
    FailureKind.ACTIVITY: ("activityFailureInfo", {}),
    FailureKind.CHILD_WORKFLOW: ("childWorkflowExecutionFailureInfo", {}),
}
_ABOUT: dict[FailureKind, Table] = {
    FailureKind.ACTIVITY: {
        "activity_id": (("activityId",), TEXT),
        "activity_type": (("activityType",), NAME),
        "identity": (("identity",), TEXT),
        "retry_state": (("retryState",), RETRY_STATE),
    },
    FailureKind.CHILD_WORKFLOW: {
        "workflow_id": (("workflowExecution", "workflowId"), TEXT),
        "run_id": (("workflowExecution", "runId"), TEXT),
        "workflow_type": (("workflowType",), NAME),
        "namespace": (("namespace",), TEXT),
        "initiated_event_id": (("initiatedEventId",), ID),
        "started_event_id": (("startedEventId",), ID),
        "retry_state": (("retryState",), RETRY_STATE),
    },
}
_FAILURE_DEFAULTS = {
    field.name: field.default_factory() if callable(field.default_factory) else field.default
    for field in msgspec.structs.fields(Failure)
}


def put(shape: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set what stands at ``path``."""
    for key in path[:-1]:
        shape = shape.setdefault(key, {})
    shape[path[-1]] = value


def get(shape: Any, path: tuple[str, ...]) -> Any:
    """What stands at ``path``; ``None`` if nothing does."""
    for key in path:
        if not isinstance(shape, dict) or key not in shape:
            return None
        shape = shape[key]
    return shape


def write_failure(failure: Failure) -> dict[str, Any]:
    """A failure with its causes."""
    told = {
        name: value
        for name in _FAILURE_DEFAULTS
        if (value := getattr(failure, name)) != _FAILURE_DEFAULTS[name]
    }
    told.pop("kind")
    cause, about = told.pop("cause", None), dict(told.pop("about", {}))
    key, table = _BY_KIND[failure.kind]
    info: dict[str, Any] = {}
    shape: dict[str, Any] = {key: info}
    _move(told, _FAILURE, shape)
    _move(told, table, info)
    _move(about, _ABOUT.get(failure.kind, {}), info)
    if about:
        told["about"] = about
    if told:
        shape[OURS] = told
    if cause is not None:
        shape["cause"] = write_failure(cause)
    return shape


def read_failure(shape: Any) -> Failure:
    """The inverse of `write_failure`."""
    known = [kind for kind, (key, _) in _BY_KIND.items() if key in shape]
    kind = known[0] if known else FailureKind.APPLICATION
    key, table = _BY_KIND[kind]
    info, ours = shape.get(key, {}), dict(shape.get(OURS, {}))
    about = {**_collect(_ABOUT.get(kind, {}), info), **ours.pop("about", {})}
    told = {"message": "", **_collect(_FAILURE, shape), **_collect(table, info), **ours}
    cause = shape.get("cause")
    return Failure(
        kind=kind, about=about, cause=None if cause is None else read_failure(cause), **told
    )


def _move(told: dict[str, Any], table: Table, shape: dict[str, Any]) -> None:
    for name, (path, form) in table.items():
        if name in told:
            put(shape, path, form.write(told.pop(name)))


def _collect(table: Table, shape: Any) -> dict[str, Any]:
    return {
        name: form.read(found)
        for name, (path, form) in table.items()
        if (found := get(shape, path)) is not None
    }


FAILURE = Shape(write_failure, read_failure)
