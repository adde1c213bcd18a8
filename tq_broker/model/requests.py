"""What clients and other runs ask of a history shard, and what it answers.

A request goes to the shard of its workflow id (`shard_of`) by the history exchange; its answer
to the request's ``reply_to`` with its ``correlation_id``. A request has a ``message_id`` that stays
the same when it is sent again: history answers a repetition as it answered the first.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Any, Union

import msgspec

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model import envelope
from tq_broker.model.events import NO_ARGS, ParentInfo
from tq_broker.model.failure import Failure
from tq_broker.model.message import Message
from tq_broker.model.payload import NULL, Payload
from tq_broker.model.tasks import ActivityOutcome, WireRetryPolicy
from tq_broker.model.workflow_tasks import (
    MESSAGE_PACK,
    EventsPage,
    FromWorker,
    QueryAnswer,
    StartGranted,
    UpdateRequest,
    encode,
)

SHARDS = 16
"""Shards of a namespace. A constant of the protocol: clients and workers compute with it."""

REQUEST = "history-request"
REPLY = "history-reply"


def shard_of(workflow_id: str) -> int:
    """The shard that a workflow id belongs to, on every machine and in every release."""
    digest = hashlib.blake2b(workflow_id.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % SHARDS


class Status(str, enum.Enum):
    """How a run stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    TERMINATED = "terminated"
    CONTINUED_AS_NEW = "continued_as_new"
    TIMED_OUT = "timed_out"


class Base(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request or an answer."""


# --- requests of clients ------------------------------------------------------------------------


class SignalInput(Base, frozen=True):
    """A signal to send together with a start."""

    signal_name: str
    input: Payload = NO_ARGS
    headers: dict[str, str] = {}


class StartWorkflow(Base, frozen=True, tag="start"):
    """Start a run. Answered by `Started` or `Refused` (``already_started``).

    ``id_reuse_policy`` and ``id_conflict_policy`` are the numbers of `tq_broker.common`. With
    ``signal`` or ``update`` a running workflow is used as it is (signal-with-start). ``parent`` is
    set for a child; then the answer is a `ChildStarted` or `ChildRefused` to the parent's shard.
    ``want_result`` asks for a `Closed` as well, as `AwaitResult` does. ``versioning_override`` and
    ``inherited_version``, ``route``, ``requires`` and all about the affinity as in
    `tq_broker.model.events.WorkflowExecutionStarted`.
    """

    workflow_id: str
    workflow_type: str
    task_queue: str
    input: Payload = NO_ARGS
    execution_timeout_ms: int = 0
    run_timeout_ms: int = 0
    task_timeout_ms: int = 10_000
    id_reuse_policy: int = 1
    id_conflict_policy: int = 0
    retry_policy: WireRetryPolicy | None = None
    cron_schedule: str = ""
    memo: dict[str, Payload] = {}
    headers: dict[str, str] = {}
    priority: int | None = None
    fairness_key: str = ""
    fairness_weight: float | None = None
    start_delay_ms: int = 0
    static_summary: str = ""
    static_details: str = ""
    identity: str = ""
    signal: SignalInput | None = None
    update: UpdateRequest | None = None
    update_wait: int = 2
    parent: ParentInfo | None = None
    want_result: bool = False
    versioning_override: str = ""
    inherited_version: str = ""
    route: str | None = None
    requires: str | None = None
    affinity: str | None = None
    affinity_target: str = ""
    affinity_firm: bool = False


class SignalWorkflow(Base, frozen=True, tag="signal"):
    """Answered by `Done` or `Refused` (``not_found``)."""

    workflow_id: str
    signal_name: str
    run_id: str | None = None
    input: Payload = NO_ARGS
    identity: str = ""
    headers: dict[str, str] = {}
    external: ParentInfo | None = None
    child_only: bool = False


class RequestCancel(Base, frozen=True, tag="cancel"):
    """Answered by `Done` or `Refused`. ``first_run_id`` restricts it to one chain of runs."""

    workflow_id: str
    run_id: str | None = None
    first_run_id: str | None = None
    reason: str = ""
    identity: str = ""
    external: ParentInfo | None = None
    child_only: bool = False


class Terminate(Base, frozen=True, tag="terminate"):
    """Answered by `Done` or `Refused`. With ``parent`` it is for a child of that run, which has
    ended and waits for no answer."""

    workflow_id: str
    run_id: str | None = None
    first_run_id: str | None = None
    reason: str = ""
    details: Payload = NO_ARGS
    identity: str = ""
    parent: ParentInfo | None = None


class QueryWorkflow(Base, frozen=True, tag="query"):
    """Answered by a worker's `QueryAnswer`, or by `Refused`."""

    workflow_id: str
    query_type: str
    run_id: str | None = None
    input: Payload = NO_ARGS
    headers: dict[str, str] = {}
    deadline_ms: int = 0
    reject_not_open: bool = False


class UpdateWorkflow(Base, frozen=True, tag="update"):
    """Answered by `UpdateState` when the update has come as far as ``wait``, or by `Refused`.

    ``wait``: 1 admitted, 2 accepted, 3 completed. The same ``update_id`` again joins the first.
    """

    workflow_id: str
    update: UpdateRequest
    run_id: str | None = None
    first_run_id: str | None = None
    wait: int = 2


class AwaitUpdate(Base, frozen=True, tag="await-update"):
    """Answered by `UpdateState` when it is completed, or by `Refused`."""

    workflow_id: str
    update_id: str
    run_id: str | None = None


class AwaitResult(Base, frozen=True, tag="await-result"):
    """Answered by `Closed` when the run has ended; asked again, answered again."""

    workflow_id: str
    run_id: str | None = None


class Describe(Base, frozen=True, tag="describe"):
    """Answered by `Description` or `Refused`."""

    workflow_id: str
    run_id: str | None = None


class FetchHistory(Base, frozen=True, tag="fetch-history"):
    """Like `FetchEvents`, for clients: by workflow id, the current run if ``run_id`` is ``None``.
    Answered by `EventsPage` or `Refused`."""

    workflow_id: str
    run_id: str | None = None
    first_event_id: int = 1


class ListWorkflows(Base, frozen=True, tag="list"):
    """Runs that match ``query`` (see `tq_broker.model.listing`), newest start first.

    Answered by `Listing` or `Refused` (``invalid_argument``). It may be sent to any shard: all runs
    of the namespace are looked at. ``page_token`` is that of the page before.
    """

    query: str = ""
    page_size: int = 100
    page_token: str = ""


class CountWorkflows(Base, frozen=True, tag="count"):
    """Answered by `Count` or `Refused`."""

    query: str = ""


class ResetSticky(Base, frozen=True, tag="reset-sticky"):
    """Forget which worker has the run in its cache. Answered by `Done` or `Refused`."""

    workflow_id: str
    run_id: str | None = None


class ShardStatus(Base, frozen=True, tag="shard-status"):
    """Answered by `ShardInfo` of the shard that it was sent to."""


class Echo(Base, frozen=True, tag="echo"):
    """A shard's word to itself: when it comes, all has come that was sent to the shard before.

    Attributes:
        epoch: Of the owner who has sent it; it means nothing to another.
        sent_ms: When, by that owner's clock.
    """

    epoch: int
    sent_ms: int


# --- messages between runs ------------------------------------------------------------------------


class ChildStarted(Base, frozen=True, tag="child-started"):
    """To the parent's shard. ``parent`` names the run and its initiated event."""

    parent: ParentInfo
    workflow_id: str
    run_id: str
    workflow_type: str


class ChildRefused(Base, frozen=True, tag="child-refused"):
    parent: ParentInfo
    workflow_id: str
    workflow_type: str
    cause: str = "already_exists"
    message: str = ""


class ChildClosed(Base, frozen=True, tag="child-closed"):
    """The child's chain of runs has ended; not told between the runs of one chain."""

    parent: ParentInfo
    workflow_id: str
    run_id: str
    workflow_type: str
    status: Status
    result: Payload = NULL
    failure: Failure | None = None
    details: Payload = NO_ARGS
    retry_state: int = 0


class ExternalDone(Base, frozen=True, tag="external-done"):
    """What became of a signal to, or a cancellation of, another run. ``origin`` names the run that
    asked and its initiated event; ``cause`` is empty, or says why not."""

    origin: ParentInfo
    cause: str = ""


Request = Union[  # noqa: UP007 - msgspec takes the union apart once
    StartWorkflow,
    SignalWorkflow,
    RequestCancel,
    Terminate,
    QueryWorkflow,
    UpdateWorkflow,
    AwaitUpdate,
    AwaitResult,
    Describe,
    FetchHistory,
    ListWorkflows,
    CountWorkflows,
    ResetSticky,
    ShardStatus,
    Echo,
    ChildStarted,
    ChildRefused,
    ChildClosed,
    ExternalDone,
    FromWorker,
]
"""Whatever a shard's inbox may hold, beside activity outcomes (`Outcome`)."""


class Outcome(msgspec.Struct, frozen=True):
    """An activity's outcome or notice, as read from its message. ``result`` is a payload of the
    outcome body; ``heartbeat`` the sealed details, if any came."""

    scheduled_event_id: int
    run_id: str
    outcome: ActivityOutcome
    body: Payload
    heartbeat: Payload | None = None


# --- answers -------------------------------------------------------------------------------------


class Refused(Base, frozen=True, tag="refused"):
    """``reason``: ``not_found``, ``closed``, ``already_started``, ``invalid_argument``, ``limit``,
    ``query_failed``. ``run_id`` is that of the run in the way, if one is. ``message`` says what the
    reason does not."""

    reason: str
    message: str
    workflow_id: str = ""
    run_id: str = ""


class Started(Base, frozen=True, tag="started"):
    """``is_new`` is False when a running one was used as it is."""

    run_id: str
    first_run_id: str
    is_new: bool = True


class Done(Base, frozen=True, tag="done"):
    """It has been done, and is kept."""

    run_id: str = ""


class UpdateState(Base, frozen=True, tag="update-state"):
    """``stage``: 1 admitted, 2 accepted, 3 completed (or rejected: then ``failure`` is set)."""

    update_id: str
    run_id: str
    stage: int
    result: Payload = NULL
    failure: Failure | None = None


class Closed(Base, frozen=True, tag="closed"):
    """A run has ended. ``next_run_id`` continues the chain, if there is one."""

    run_id: str
    status: Status
    result: Payload = NULL
    failure: Failure | None = None
    details: Payload = NO_ARGS
    retry_state: int = 0
    next_run_id: str = ""


class RunInfo(Base, frozen=True):
    """A run in a list. ``close_ms`` is 0 while it runs; ``deployment_version`` is the one that it
    is pinned to, if it is."""

    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    status: Status
    start_ms: int
    close_ms: int = 0
    execution_ms: int = 0
    history_length: int = 0
    history_bytes: int = 0
    first_run_id: str = ""
    parent_id: str = ""
    parent_run_id: str = ""
    memo: dict[str, Payload] = {}
    cron_schedule: str = ""
    static_summary: str = ""
    deployment_version: str = ""


class PendingActivity(Base, frozen=True):
    """``state``: ``scheduled`` (also while it waits for a retry, until ``next_ms``), ``started``,
    ``cancel_requested``. ``route``, ``requires``, ``headers``, ``fairness_key``, ``priority`` and
    ``auto_upgrade`` (they heed no pin of their run) are those of its tasks, whose id is
    ``task_id``."""

    activity_id: str
    activity_type: str
    task_queue: str
    state: str
    attempt: int
    maximum_attempts: int = 0
    scheduled_ms: int = 0
    started_ms: int = 0
    next_ms: int = 0
    last_failure: Failure | None = None
    heartbeat_details: Payload | None = None
    heartbeat_ms: int = 0
    identity: str = ""
    host: str = ""
    worker_id: str = ""
    route: str | None = None
    requires: str | None = None
    headers: dict[str, str] = {}
    task_id: str = ""
    fairness_key: str = ""
    priority: int | None = None
    auto_upgrade: bool = False


class PendingChild(Base, frozen=True):
    workflow_id: str
    workflow_type: str
    run_id: str = ""
    initiated_event_id: int = 0
    parent_close_policy: int = 1


class PendingTask(Base, frozen=True):
    """The workflow task under way. ``started_ms`` is 0 as long as no worker has said so;
    ``fell_back`` as in `tq_broker.model.events.WorkflowTaskStarted`."""

    scheduled_ms: int
    attempt: int
    started_ms: int = 0
    last_failure: Failure | None = None
    last_cause: str = ""
    next_ms: int = 0
    fell_back: str = ""


class Description(Base, frozen=True, tag="description"):
    """All about one run. ``version`` has completed its last workflow task; ``route``, ``requires``,
    ``headers``, ``fairness_key`` and ``affinity`` are as its start said; ``affinity_target`` is the
    host or process that its activities follow to now, "" for none."""

    info: RunInfo
    current_details: str = ""
    static_details: str = ""
    execution_timeout_ms: int = 0
    run_timeout_ms: int = 0
    task_timeout_ms: int = 0
    sticky_worker: str = ""
    pending_task: PendingTask | None = None
    pending_activities: list[PendingActivity] = []
    pending_children: list[PendingChild] = []
    pending_timers: int = 0
    pending_updates: list[str] = []
    cancel_requested: bool = False
    identity: str = ""
    version: str = ""
    versioning_behavior: int = 0
    versioning_override: str = ""
    route: str | None = None
    requires: str | None = None
    headers: dict[str, str] = {}
    fairness_key: str = ""
    affinity: str | None = None
    affinity_target: str = ""


class Listing(Base, frozen=True, tag="listing"):
    """``page_token`` is empty on the last page."""

    runs: list[RunInfo]
    page_token: str = ""


class Count(Base, frozen=True, tag="count-is"):
    """``groups``: by status, if the query asked for it."""

    count: int
    groups: dict[str, int] = {}


class ShardInfo(Base, frozen=True, tag="shard-info"):
    """``timers_due`` and ``outbox`` are rows; ``owner`` is the identity of the process;
    ``lag_ms`` is the age of the oldest message of the last batch when it was committed."""

    shard: int
    owner: str
    epoch: int
    open_runs: int = 0
    cached_runs: int = 0
    timers_due: int = 0
    outbox: int = 0
    lag_ms: int = 0


Reply = Union[  # noqa: UP007 - msgspec takes the union apart once
    Refused,
    Started,
    Done,
    UpdateState,
    Closed,
    Description,
    Listing,
    Count,
    ShardInfo,
    QueryAnswer,
    StartGranted,
    EventsPage,
]

_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


def request_message(request: Request, message_id: str, **properties: Any) -> Message:
    """The message that carries ``request``. Raises `InvalidArgument`: a value in it cannot be sent,
    as a text that is not Unicode."""
    return _message(request, message_id, REQUEST, **properties)


def reply_message(reply: Reply, message_id: str, correlation_id: str | None) -> Message:
    """The message that carries ``reply``. Raises `InvalidArgument` as `request_message` does."""
    return _message(reply, message_id, REPLY, correlation_id=correlation_id)


def _message(value: Any, message_id: str, kind: str, **properties: Any) -> Message:
    try:
        body = encode(value)
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{error.object!a:.80} is not Unicode") from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"{type(value).__name__}: {error}") from error
    return Message(
        body=body,
        message_id=message_id,
        kind=kind,
        headers={"tq-protocol": envelope.PROTOCOL},
        content_type=MESSAGE_PACK,
        content_encoding="binary",
        **properties,
    )


def read_request(message: Message) -> Request:
    """The request in ``message``. Raises `Malformed`."""
    request: Request = _read(_request_decoder, message, REQUEST)
    return request


def read_reply(message: Message) -> Reply:
    """The answer in ``message``. Raises `Malformed`."""
    reply: Reply = _read(_reply_decoder, message, REPLY)
    return reply


def _read(decoder: Any, message: Message, kind: str) -> Any:
    if message.kind != kind or message.headers.get("tq-protocol") != envelope.PROTOCOL:
        raise Malformed(f"not a {kind} of a known protocol version")
    try:
        return decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{kind}: {error}") from error
