"""Failures as values, and exceptions made of them.

An exception becomes a `Failure` where it is caught and an exception again where somebody waits.
Classes are never looked up by a name that came in a message (that is how Celery's
CVE-2021-23727 worked): an unknown type becomes an `ApplicationError` that carries it as text.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import enum
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from tq_broker.common import DURATION_MAX, to_ms
from tq_broker.exceptions import (
    AFFINITY_LOST,
    ActivityError,
    AffinityLostError,
    ApplicationError,
    ApplicationErrorCategory,
    CancelledError,
    ChildWorkflowError,
    DownstreamBusy,
    FailureError,
    RetryState,
    TerminatedError,
    TimeoutError,
    TimeoutType,
)
from tq_broker.retry import FailedAttempt

CAUSES_MAX = 10
TEXT_MAX = 8_192
"""Characters kept of a message or a stack trace; the end is what tells."""

TARGET_GONE = "TargetGone"
"""The type of failure of a task whose route's target is gone."""
WORKER_LOST = "WorkerLost"
"""The type of failure of an attempt whose worker is gone."""

_TIMEOUTS = {int(timeout): timeout for timeout in TimeoutType}
_DELAY_MS_MAX = to_ms(DURATION_MAX)


class FailureKind(str, enum.Enum):
    """Which branch of `tq_broker.exceptions` a failure stands for."""

    APPLICATION = "application"
    CANCELED = "canceled"
    TERMINATED = "terminated"
    TIMEOUT = "timeout"
    ACTIVITY = "activity"
    """An activity of a workflow ended badly; ``cause`` says how."""
    CHILD_WORKFLOW = "child_workflow"


class Failure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why an attempt ended without a result, in a form that travels."""

    kind: FailureKind
    message: str
    type: str | None = None
    details: list[Any] = []
    non_retryable: bool = False
    next_retry_delay_ms: int | None = None
    category: int = 0
    timeout_type: int | None = None
    stack_trace: str = ""
    cause: Failure | None = None
    about: dict[str, Any] = {}
    """For ACTIVITY and CHILD_WORKFLOW: the fields of the exception, by name."""
    back_off: str = ""
    """The value of a `BackOffScope`: whom ``next_retry_delay_ms`` is for, besides the attempt."""
    sealed: bytes | None = None
    """The whole failure as a payload, when codecs hide it; the rest is what may be known."""

    @property
    def next_retry_delay(self) -> timedelta | None:
        """``next_retry_delay_ms``, within bounds: its author may have said anything."""
        delay_ms = self.next_retry_delay_ms
        if delay_ms is None:
            return None
        return timedelta(milliseconds=min(max(0, delay_ms), _DELAY_MS_MAX))

    def attempt(self, number: int) -> FailedAttempt:
        """What the retry policy needs to know of attempt ``number`` that ended so."""
        return FailedAttempt(
            attempt=number,
            error_type=self.type,
            timeout=_TIMEOUTS.get(self.timeout_type or 0),
            non_retryable=self.non_retryable,
            cancelled=self.kind in (FailureKind.CANCELED, FailureKind.TERMINATED),
            next_delay=self.next_retry_delay,
        )


def application(message: str, type: str, *, non_retryable: bool = False) -> Failure:
    """A failure that we ourselves report."""
    return Failure(
        kind=FailureKind.APPLICATION, message=message, type=type, non_retryable=non_retryable
    )


def timed_out(timeout: TimeoutType, details: list[Any] | None = None) -> Failure:
    """The failure of an attempt that one of the four timeouts ended."""
    name = timeout.name.replace("_", "-").lower()
    return Failure(
        kind=FailureKind.TIMEOUT,
        message=f"activity {name} timeout",
        timeout_type=int(timeout),
        details=details or [],
    )


def canceled(message: str = "Cancelled", details: list[Any] | None = None) -> Failure:
    """The failure of an attempt that honoured a cancellation."""
    return Failure(kind=FailureKind.CANCELED, message=message, details=details or [])


def from_exception(error: BaseException, depth: int = 0) -> Failure:
    """Describe ``error`` and, up to a bound, its causes."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    common: dict[str, Any] = {
        "message": _message(error),
        "stack_trace": _text("".join(traceback.format_exception(error, chain=False))),
        "cause": from_exception(cause, depth + 1) if cause and depth < CAUSES_MAX else None,
    }
    fields = next((made for known, made in _FIELDS.items() if isinstance(error, known)), _plain)
    try:
        told = fields(error)
    except Exception as broken:  # a user's values may be, and do, anything
        told = _plain(error)
        broken_by = f"{type(broken).__name__}: {_message(broken)}"
        common["message"] = _text(f"{common['message']} (its fields cannot be read: {broken_by})")
    return Failure(**(common | told))


def _plain(error: BaseException) -> dict[str, Any]:
    return {"kind": FailureKind.APPLICATION, "type": _text(type(error).__name__)}


def _message(error: BaseException) -> str:
    try:
        text = error.message if isinstance(error, FailureError) else str(error)
    except Exception as broken:  # a user's __str__ may do anything
        text = f"<str() of {type(error).__name__} raised {type(broken).__name__}>"
    return _text(text)


def _text(text: object) -> str:
    # Lone surrogates cannot be sent as UTF-8; and the types of a user's values are hopes.
    return str(text)[-TEXT_MAX:].encode("utf-8", "replace").decode()


def _application_fields(error: ApplicationError) -> dict[str, Any]:
    return {
        "kind": FailureKind.APPLICATION,
        "type": _text(error.type or type(error).__name__),
        "details": _sendable(error.details),
        "non_retryable": bool(error.non_retryable),
        "next_retry_delay_ms": _delay_ms(error.next_retry_delay),
        "category": int(error.category),
        "back_off": error.scope.value if isinstance(error, DownstreamBusy) else "",
    }


def _delay_ms(delay: timedelta | None) -> int | None:
    return None if delay is None else min(delay // timedelta(milliseconds=1), _DELAY_MS_MAX)


def _sendable(details: Any) -> list[Any]:
    return [_fit(detail, msgspec.json.encode) for detail in details]


def _fit(value: Any, encode: Callable[[Any], object]) -> Any:
    """``value``, or a text about it if ``encode`` does not take it."""
    return value if _takes(encode, value) else _described(value)


def _takes(encode: Callable[[Any], object], value: Any) -> bool:
    try:
        encode(value)
    except Exception:  # whatever a user's object does when it is looked at
        return False
    return True


def _described(value: Any) -> str:
    try:
        return _text(repr(value)[:TEXT_MAX])
    except Exception as broken:
        return f"<repr() of {type(value).__name__} raised {type(broken).__name__}>"


def storable(failure: Failure, depth: int = 0) -> Failure:
    """``failure`` as a history can keep it: what JSON can say and MessagePack cannot, as integers
    of more than 64 bits in its details, is described in a text."""
    if _takes(_pack, failure):
        return failure
    cause = failure.cause if depth < CAUSES_MAX else None
    return msgspec.structs.replace(
        failure,
        details=[_fit(detail, _pack) for detail in failure.details],
        about={name: _fit(fact, _pack) for name, fact in failure.about.items()},
        next_retry_delay_ms=_delay_ms(failure.next_retry_delay),
        category=failure.category if failure.category in set(ApplicationErrorCategory) else 0,
        timeout_type=failure.timeout_type if failure.timeout_type in _TIMEOUTS else None,
        cause=None if cause is None else storable(cause, depth + 1),
    )


_pack = msgspec.msgpack.encode


def _canceled_fields(error: BaseException) -> dict[str, Any]:
    details = _sendable(getattr(error, "details", ()))
    return {
        "kind": FailureKind.CANCELED,
        "message": _message(error) or "Cancelled",
        "details": details,
    }


def _about(kind: FailureKind, *names: str) -> Callable[[FailureError], dict[str, Any]]:
    def fields(error: FailureError) -> dict[str, Any]:
        told = {name: getattr(error, name) for name in names}
        return {"kind": kind, "about": {k: v for k, v in told.items() if v is not None}}

    return fields


_FIELDS: dict[Any, Callable[[Any], dict[str, Any]]] = {
    ApplicationError: _application_fields,
    CancelledError: _canceled_fields,
    asyncio.CancelledError: _canceled_fields,
    concurrent.futures.CancelledError: _canceled_fields,
    TerminatedError: lambda error: {
        "kind": FailureKind.TERMINATED,
        "details": _sendable(error.details),
    },
    TimeoutError: lambda error: {
        "kind": FailureKind.TIMEOUT,
        "timeout_type": int(error.type),
        "details": _sendable(error.last_heartbeat_details),
    },
    ActivityError: _about(
        FailureKind.ACTIVITY, "activity_id", "activity_type", "identity", "attempt", "retry_state"
    ),
    ChildWorkflowError: _about(
        FailureKind.CHILD_WORKFLOW,
        "workflow_id",
        "run_id",
        "workflow_type",
        "namespace",
        "initiated_event_id",
        "started_event_id",
        "retry_state",
    ),
}


def to_exception(failure: Failure) -> FailureError:
    """The exception that ``failure`` stands for, with its causes chained, up to a bound."""
    first = error = _EXCEPTIONS[failure.kind](failure)
    for _ in range(CAUSES_MAX):
        if failure.cause is None:
            break
        failure = failure.cause
        error.__cause__ = _EXCEPTIONS[failure.kind](failure)
        error = error.__cause__
    return first


def _application_error(failure: Failure) -> FailureError:
    own = _OWN.get(failure.type or "")
    if own is not None and failure.non_retryable:
        return own(failure.message)
    return ApplicationError(
        failure.message,
        *failure.details,
        type=failure.type,
        non_retryable=failure.non_retryable,
        next_retry_delay=failure.next_retry_delay,
        category=ApplicationErrorCategory(failure.category)
        if failure.category in set(ApplicationErrorCategory)
        else ApplicationErrorCategory.UNSPECIFIED,
    )


_OWN: dict[str, Callable[[str], ApplicationError]] = {AFFINITY_LOST: AffinityLostError}
"""Errors that only we raise, by their type."""


def _timeout_error(failure: Failure) -> FailureError:
    kind = _TIMEOUTS.get(failure.timeout_type or 0, TimeoutType.SCHEDULE_TO_CLOSE)
    return TimeoutError(failure.message, type=kind, last_heartbeat_details=failure.details)


def retry_state(number: object) -> RetryState | None:
    """The state of that number; ``None`` for 0 and for what no release knew so far."""
    return _RETRY_STATES.get(number) if isinstance(number, int) else None


_RETRY_STATES = {int(state): state for state in RetryState}


def _activity_error(failure: Failure) -> FailureError:
    about = failure.about
    attempt = about.get("attempt")
    return ActivityError(
        failure.message,
        activity_id=str(about.get("activity_id", "")),
        activity_type=str(about.get("activity_type", "")),
        identity=str(about.get("identity", "")),
        attempt=attempt if isinstance(attempt, int) else 1,
        retry_state=retry_state(about.get("retry_state")),
    )


def _child_workflow_error(failure: Failure) -> FailureError:
    about = failure.about
    initiated, started = about.get("initiated_event_id"), about.get("started_event_id")
    return ChildWorkflowError(
        failure.message,
        workflow_id=str(about.get("workflow_id", "")),
        run_id=str(about.get("run_id", "")),
        workflow_type=str(about.get("workflow_type", "")),
        namespace=str(about.get("namespace", "")),
        initiated_event_id=initiated if isinstance(initiated, int) else 0,
        started_event_id=started if isinstance(started, int) else 0,
        retry_state=retry_state(about.get("retry_state")),
    )


_EXCEPTIONS: dict[FailureKind, Callable[[Failure], FailureError]] = {
    FailureKind.APPLICATION: _application_error,
    FailureKind.CANCELED: lambda failure: CancelledError(failure.message, *failure.details),
    FailureKind.TERMINATED: lambda failure: TerminatedError(failure.message, *failure.details),
    FailureKind.TIMEOUT: _timeout_error,
    FailureKind.ACTIVITY: _activity_error,
    FailureKind.CHILD_WORKFLOW: _child_workflow_error,
}
