"""Activity tasks and their outcomes, as values.

Times are wall-clock milliseconds since the epoch, durations are milliseconds; 0 or ``None``
means "not set". `msgspec.Struct` for speed, see `tq_broker.model.message`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

from tq_broker.common import (
    ActivityIDConflictPolicy,
    ActivityOptions,
    OnGone,
    Requires,
    RetryPolicy,
    Route,
    TargetKind,
    check_headers,
    to_ms,
)
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model.capabilities import check_requires
from tq_broker.model.failure import Failure
from tq_broker.model.names import TARGET_BYTES_MAX, check_text

DEFAULT_RETRY_POLICY = RetryPolicy()


class TaskBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON body of a task: arguments, and what the attempt before left behind."""

    args: list[msgspec.Raw]
    heartbeat: list[msgspec.Raw] = []
    failure: Failure | None = None


class WorkflowOrigin(msgspec.Struct, frozen=True, omit_defaults=True, rename="kebab"):
    """The run that scheduled an activity; travels in the ``tq-workflow`` header.

    ``claim``: the attempt must ask history before it runs, so that it runs at most once.
    """

    workflow_id: str
    run_id: str
    workflow_type: str
    activity_id: str
    scheduled_event_id: int
    claim: bool = False


class ActivityTask(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of one activity, on its way to a worker or in its hands.

    Attributes:
        body: `TaskBody` as JSON, after the codecs that ``codecs`` names.
        scheduled_ms: When the activity was started by its caller.
        attempt_scheduled_ms: When this attempt was put on its queue (or is due).
        id_retention_ms: For how long the id is claimed; 0 means it is not.
        start_token: Tells one start of the same id from another.
        resent: How often the publisher sent this copy again.
        lease: The worker that already runs it and only keeps hold of it.
        workflow: The run that scheduled it. History retries such an activity, not the worker.
        headers: Texts of its caller, for traffic rules and for the activity.
        rule: The traffic rule that has put it where it is; "" on its own task queue.
        fell_back: The traffic rule whose target did not take it; no rule is asked again.
        rate_limit_key: What shares a limit with it; "" if nothing does.
        fairness_key: Whose it is, where keys share what begins; "" if nobody's.
        fairness_weight: That of its key, as it says itself.
        pass_mark: The pass that an usher has given it, and of which task queue; "" if none has.
        heartbeat_details: Payload of what the attempt before left behind, when it cannot be in
            the body because codecs hide that from history; empty if there is none.
    """

    activity_id: str
    activity_type: str
    task_queue: str
    body: bytes
    codecs: str = ""
    attempt: int = 1
    scheduled_ms: int = 0
    attempt_scheduled_ms: int = 0
    start_to_close_ms: int = 0
    schedule_to_start_ms: int = 0
    schedule_to_close_ms: int = 0
    heartbeat_ms: int = 0
    retry_policy: RetryPolicy = DEFAULT_RETRY_POLICY
    reply_to: str | None = None
    route: Route | None = None
    requires: Requires | None = None
    priority: int | None = None
    id_retention_ms: int = 0
    id_conflict: ActivityIDConflictPolicy = ActivityIDConflictPolicy.USE_EXISTING
    start_token: str = ""
    resent: int = 0
    lease: str = ""
    workflow: WorkflowOrigin | None = None
    heartbeat_details: bytes = b""
    headers: dict[str, str] = {}
    rule: str = ""
    fell_back: str = ""
    rate_limit_key: str = ""
    fairness_key: str = ""
    fairness_weight: float = 1.0
    pass_mark: str = ""

    def left(self, now_ms: int) -> timedelta | None:
        """Until the schedule-to-close timeout; ``None`` without one."""
        if not self.schedule_to_close_ms:
            return None
        return timedelta(milliseconds=self.scheduled_ms + self.schedule_to_close_ms - now_ms)


def task_fields(options: ActivityOptions) -> dict[str, Any]:
    """The fields of a task that options decide, with Temporal's rules for missing timeouts.

    Raises:
        InvalidArgument: neither start-to-close nor schedule-to-close is set.
    """
    start_to_close, close = options.start_to_close_timeout, options.schedule_to_close_timeout
    if start_to_close is None and close is None:
        raise InvalidArgument(
            "start_to_close_timeout or schedule_to_close_timeout must be set,"
            " at the activity's decorator or at the call"
        )
    start_to_close_ms = to_ms(start_to_close) if start_to_close else 0
    close_ms = to_ms(close) if close else 0
    start_to_close_ms = min(start_to_close_ms or close_ms, close_ms or start_to_close_ms)
    start = options.schedule_to_start_timeout
    heartbeat = options.heartbeat_timeout
    fields: dict[str, Any] = {
        "start_to_close_ms": start_to_close_ms,
        "schedule_to_close_ms": close_ms,
        "schedule_to_start_ms": to_ms(start) if start else 0,
        "heartbeat_ms": min(to_ms(heartbeat), start_to_close_ms) if heartbeat else 0,
        "route": options.place,
        "requires": requires_of(options),
        "priority": options.priority,
        "headers": dict(options.headers) if options.headers else {},
        "rate_limit_key": options.rate_limit_key or "",
        "fairness_key": options.fairness_key or "",
        "fairness_weight": options.fairness_weight or 1.0,
    }
    if options.retry_policy is not None:
        fields["retry_policy"] = options.retry_policy
    return fields


def requires_of(options: ActivityOptions) -> Requires | None:
    """What options require of a worker. Raises `InvalidArgument`."""
    requires = Requires.of(options.requires)
    return None if requires is None else check_requires(requires)


def check_route(options: ActivityOptions) -> None:
    """Raise `InvalidArgument` if no host or worker can have the name that the route says."""
    route = options.route
    if route is not None and route.kind is not TargetKind.VERSION:
        check_text(f"route.{route.kind.value}", route.target, bytes_max=TARGET_BYTES_MAX)


def check_place(options: ActivityOptions) -> tuple[str | None, str | None]:
    """The header values of the route of a workflow, and of what it requires; ``None`` where it says
    nothing.

    Raises:
        InvalidArgument: names what is wrong.
    """
    check_route(options)
    route, requires = options.route, requires_of(options)
    if route is not None and route.kind is TargetKind.VERSION:
        raise InvalidArgument("a workflow is bound to a version by version=, not by its route")
    return (
        None if route is None else dump_route(route),
        None if requires is None else dump_requires(requires),
    )


class WireRetryPolicy(msgspec.Struct, frozen=True, omit_defaults=True, rename="kebab"):
    """A retry policy as it travels, in the ``tq-retry-policy`` header."""

    initial_ms: int = 1000
    coefficient: float = 2.0
    maximum_ms: int | None = None
    attempts: int = 0
    non_retryable: list[str] = []


_decode_policy = msgspec.json.Decoder(WireRetryPolicy).decode


def wire_retry_policy(policy: RetryPolicy) -> WireRetryPolicy:
    """``policy`` as it travels."""
    maximum = policy.maximum_interval
    return WireRetryPolicy(
        initial_ms=to_ms(policy.initial_interval),
        coefficient=policy.backoff_coefficient,
        maximum_ms=None if maximum is None else to_ms(maximum),
        attempts=policy.maximum_attempts,
        non_retryable=list(policy.non_retryable_error_types),
    )


def dump_retry_policy(policy: RetryPolicy) -> str:
    """The header value for ``policy``."""
    return msgspec.json.encode(wire_retry_policy(policy)).decode()


def retry_policy(wire: WireRetryPolicy) -> RetryPolicy:
    """The policy that travelled as ``wire``. Raises `InvalidArgument`, `OverflowError`."""
    return RetryPolicy(
        initial_interval=timedelta(milliseconds=wire.initial_ms),
        backoff_coefficient=wire.coefficient,
        maximum_interval=None
        if wire.maximum_ms is None
        else timedelta(milliseconds=wire.maximum_ms),
        maximum_attempts=wire.attempts,
        non_retryable_error_types=tuple(wire.non_retryable),
    )


def load_retry_policy(text: str) -> RetryPolicy:
    """The policy of a header value. Raises `Malformed`."""
    try:
        return retry_policy(_decode_policy(text))
    except (msgspec.DecodeError, InvalidArgument, OverflowError) as error:
        raise Malformed(f"header tq-retry-policy: {error}") from error


class WireRoute(msgspec.Struct, frozen=True, omit_defaults=True, rename="kebab"):
    """A route as it travels, in the ``tq-route`` header."""

    kind: TargetKind
    target: str
    on_gone: OnGone = OnGone.FAIL
    wait_ms: int | None = None


_decode_route = msgspec.json.Decoder(WireRoute).decode


def dump_route(route: Route) -> str:
    """The header value for ``route``."""
    wire = WireRoute(
        kind=route.kind,
        target=route.target,
        on_gone=route.on_gone,
        wait_ms=None if route.wait is None else to_ms(route.wait),
    )
    return msgspec.json.encode(wire).decode()


def load_route(text: str) -> Route:
    """The route of a header value. Raises `Malformed`."""
    try:
        wire = _decode_route(text)
        wait = None if wire.wait_ms is None else timedelta(milliseconds=wire.wait_ms)
        return Route(wire.kind, wire.target, wire.on_gone, wait)
    except (msgspec.DecodeError, InvalidArgument, OverflowError) as error:
        raise Malformed(f"header tq-route: {error}") from error


class WireRequires(msgspec.Struct, frozen=True, omit_defaults=True, rename="kebab"):
    """What a task requires, as it travels in the ``tq-requires`` header."""

    capabilities: list[str]
    on_gone: OnGone = OnGone.WAIT
    wait_ms: int | None = None


_decode_requires = msgspec.json.Decoder(WireRequires).decode


def dump_requires(requires: Requires) -> str:
    """The header value for ``requires``."""
    wire = WireRequires(
        capabilities=list(requires.names),
        on_gone=requires.on_gone,
        wait_ms=None if requires.wait is None else to_ms(requires.wait),
    )
    return msgspec.json.encode(wire).decode()


def load_requires(text: str) -> Requires:
    """What a header value requires. Raises `Malformed`."""
    try:
        wire = _decode_requires(text)
        wait = None if wire.wait_ms is None else timedelta(milliseconds=wire.wait_ms)
        return check_requires(Requires(tuple(wire.capabilities), wire.on_gone, wait))
    except (msgspec.DecodeError, InvalidArgument, OverflowError) as error:
        raise Malformed(f"header tq-requires: {error}") from error


_decode_origin = msgspec.json.Decoder(WorkflowOrigin).decode


def dump_origin(origin: WorkflowOrigin) -> str:
    """The header value for ``origin``."""
    return msgspec.json.encode(origin).decode()


def load_origin(text: str) -> WorkflowOrigin:
    """The origin in a header value. Raises `Malformed`."""
    try:
        return _decode_origin(text)
    except msgspec.DecodeError as error:
        raise Malformed(f"header tq-workflow: {error}") from error


def dump_headers(headers: Mapping[str, str]) -> str:
    """The header value for a caller's ``headers``."""
    return msgspec.json.encode(headers).decode()


_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


def load_headers(text: str) -> dict[str, str]:
    """The caller's headers in a header value. Raises `Malformed`."""
    try:
        headers = _decode_headers(text)
        check_headers("they", headers)
    except (msgspec.DecodeError, InvalidArgument) as error:
        raise Malformed(f"header tq-headers: {error}") from error
    return headers


class Status(str, enum.Enum):
    """What an outcome message says."""

    STARTED = "started"
    """A worker has begun an attempt. Only sent when a schedule-to-start timeout is set, and for a
    workflow's activity that runs for longer than a moment."""
    HEARTBEAT = "heartbeat"
    """The attempt of a workflow's activity lives; with details."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    TIMED_OUT = "timed_out"
    JOINED = "joined"
    """The id was started before; the outcome is, or will be, in the queue ``result`` names."""
    REFUSED = "refused"
    """The id was started before, and the caller wanted to be refused."""


class ActivityOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an activity ended, or a notice about it, as told to its caller.

    ``result`` is JSON, before codecs. ``start_token`` is that of the start which it answers, if
    its id was named.
    """

    activity_id: str
    activity_type: str
    status: Status
    attempt: int = 1
    result: bytes = b"null"
    failure: Failure | None = None
    retry_state: int | None = None
    identity: str = ""
    host: str = ""
    worker_id: str = ""
    started_ms: int = 0
    finished_ms: int = 0
    start_token: str = ""


NO_RESULT = msgspec.Raw(b"null")


class OutcomeBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The JSON body of an outcome; ``heartbeat``: the last details of a workflow's activity."""

    result: msgspec.Raw = NO_RESULT
    failure: Failure | None = None
    heartbeat: list[msgspec.Raw] | None = None
