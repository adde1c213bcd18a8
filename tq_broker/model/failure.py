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

from tq_broker.exceptions import (
    ApplicationError,
    ApplicationErrorCategory,
    CancelledError,
    FailureError,
    TerminatedError,
    TimeoutError,
    TimeoutType,
)
from tq_broker.retry import FailedAttempt

CAUSES_MAX = 10
TEXT_MAX = 8_192
"""Characters kept of a message or a stack trace; the end is what tells."""


class FailureKind(str, enum.Enum):
    """Which branch of `tq_broker.exceptions` a failure stands for."""

    APPLICATION = "application"
    CANCELED = "canceled"
    TERMINATED = "terminated"
    TIMEOUT = "timeout"


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

    def attempt(self, number: int) -> FailedAttempt:
        """What the retry policy needs to know of attempt ``number`` that ended so."""
        delay_ms = self.next_retry_delay_ms
        return FailedAttempt(
            attempt=number,
            error_type=self.type,
            timeout=None if self.timeout_type is None else TimeoutType(self.timeout_type),
            non_retryable=self.non_retryable,
            cancelled=self.kind in (FailureKind.CANCELED, FailureKind.TERMINATED),
            next_delay=None if delay_ms is None else timedelta(milliseconds=delay_ms),
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
        "stack_trace": "".join(traceback.format_exception(error, chain=False))[-TEXT_MAX:],
        "cause": from_exception(cause, depth + 1) if cause and depth < CAUSES_MAX else None,
    }
    for known, fields in _FIELDS.items():
        if isinstance(error, known):
            return Failure(**(common | fields(error)))
    return Failure(kind=FailureKind.APPLICATION, type=type(error).__name__, **common)


def _message(error: BaseException) -> str:
    try:
        text = error.message if isinstance(error, FailureError) else str(error)
    except Exception as broken:  # a user's __str__ may do anything
        text = f"<str() of {type(error).__name__} raised {type(broken).__name__}>"
    # Lone surrogates cannot be sent as UTF-8.
    return text[-TEXT_MAX:].encode("utf-8", "replace").decode()


def _application_fields(error: ApplicationError) -> dict[str, Any]:
    delay_s = error.next_retry_delay_s
    return {
        "kind": FailureKind.APPLICATION,
        "type": error.type or type(error).__name__,
        "details": _sendable(error.details),
        "non_retryable": error.non_retryable,
        "next_retry_delay_ms": None if delay_s is None else max(0, int(delay_s * 1000)),
        "category": int(error.category),
    }


def _sendable(details: Any) -> list[Any]:
    return [detail if _is_jsonable(detail) else repr(detail)[:TEXT_MAX] for detail in details]


def _is_jsonable(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except Exception:  # whatever a user's object does when it is looked at
        return False
    return True


def _canceled_fields(error: BaseException) -> dict[str, Any]:
    details = _sendable(getattr(error, "details", ()))
    return {
        "kind": FailureKind.CANCELED,
        "message": str(error) or "Cancelled",
        "details": details,
    }


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
}


def to_exception(failure: Failure) -> FailureError:
    """The exception that ``failure`` stands for, with its causes chained."""
    error = _EXCEPTIONS[failure.kind](failure)
    if failure.cause is not None:
        error.__cause__ = to_exception(failure.cause)
    return error


def _application_error(failure: Failure) -> FailureError:
    delay_ms = failure.next_retry_delay_ms
    return ApplicationError(
        failure.message,
        *failure.details,
        type=failure.type,
        non_retryable=failure.non_retryable,
        next_retry_delay_s=None if delay_ms is None else delay_ms / 1000,
        category=ApplicationErrorCategory(failure.category)
        if failure.category in set(ApplicationErrorCategory)
        else ApplicationErrorCategory.UNSPECIFIED,
    )


def _timeout_error(failure: Failure) -> FailureError:
    known = {int(timeout): timeout for timeout in TimeoutType}
    kind = known.get(failure.timeout_type or 0, TimeoutType.SCHEDULE_TO_CLOSE)
    return TimeoutError(failure.message, type=kind, last_heartbeat_details=failure.details)


_EXCEPTIONS: dict[FailureKind, Callable[[Failure], FailureError]] = {
    FailureKind.APPLICATION: _application_error,
    FailureKind.CANCELED: lambda failure: CancelledError(failure.message, *failure.details),
    FailureKind.TERMINATED: lambda failure: TerminatedError(failure.message, *failure.details),
    FailureKind.TIMEOUT: _timeout_error,
}
