"""Workflow tasks and what workers answer to them, as values and as messages.

A task is put on the sticky queue of the worker that has the run in its cache, with only the events
since the last completed task, or on the workflow task queue with the history from its first event.
Bodies are MessagePack: nobody but this library reads them.
"""

from __future__ import annotations

import enum
from typing import Union

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model import envelope
from tq_broker.model.commands import Command
from tq_broker.model.events import NO_ARGS, Event
from tq_broker.model.failure import Failure
from tq_broker.model.message import Message
from tq_broker.model.payload import NULL, Payload

MESSAGE_PACK = "application/msgpack"
WORKFLOW_TASK = "workflow-task"


class TaskFailedCause(str, enum.Enum):
    """Why a workflow task failed; the workflow itself goes on with the next attempt."""

    UNHANDLED_FAILURE = "unhandled_failure"
    """Workflow code raised what is not a failure of the workflow."""
    NON_DETERMINISTIC = "non_deterministic"
    UNKNOWN_TYPE = "unknown_type"
    DEADLOCK = "deadlock"
    UNHANDLED_COMMAND = "unhandled_command"
    """It wanted to end while something new had come in. Said by history."""
    BAD_COMMAND = "bad_command"
    """A command cannot be carried out. Said by history."""
    PAYLOAD = "payload"
    """A value cannot be encoded or decoded, or is too large."""
    TOO_MANY_EVENTS = "too_many_events"
    """So much came in meanwhile that the task is given out anew with it. Said by history."""


class RunKey(msgspec.Struct, frozen=True, array_like=True):
    """Names one run; the namespace is that of the queues."""

    workflow_id: str
    run_id: str


class UpdateRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """An update that was admitted and not yet accepted."""

    update_id: str
    name: str
    input: Payload = NO_ARGS
    headers: dict[str, str] = {}
    identity: str = ""


class QueryRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A query that travels to a worker; the answer goes from there to ``reply_to``."""

    query_type: str
    reply_to: str
    correlation_id: str
    input: Payload = NO_ARGS
    headers: dict[str, str] = {}
    deadline_ms: int = 0
    reject_not_open: bool = False


class WorkflowTask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A turn of one run, on its way to a worker.

    Attributes:
        scheduled_event_id: Of its WorkflowTaskScheduled; with ``attempt`` it names the task. 0: no
            task of the run's own but only ``queries``.
        first_event_id: Id of the first event in ``events``: 1, or one after the last event that
            the sticky worker has seen.
        events: As many as fit one message; the worker asks for more while the last one is before
            ``last_event_id``.
        last_event_id: The last event of the history this task is about.
        sticky: The worker id whose sticky queue it was put on; "" on a workflow task queue.
        shard: Where answers go.
        history_bytes: Size of the history so far.
        version: The deployment version that the run is pinned to; "" for whoever takes it.
        is_bound: The run has a route, or requires something of its workers.
        fell_back: Why it has fallen back from what its run asks for, each time that it has.
    """

    run: RunKey
    workflow_type: str
    task_queue: str
    shard: int
    scheduled_event_id: int
    attempt: int = 1
    first_event_id: int = 1
    events: list[Event] = []
    last_event_id: int = 0
    scheduled_ms: int = 0
    task_timeout_ms: int = 10_000
    history_bytes: int = 0
    continue_as_new_suggested: bool = False
    sticky: str = ""
    updates: list[UpdateRequest] = []
    queries: list[QueryRequest] = []
    version: str = ""
    is_bound: bool = False
    fell_back: list[str] = []


class TargetMissing(msgspec.Struct, frozen=True):
    """Not on the wire: nobody lives who may have ``task``, and its run says to fail or fall back
    then."""

    task: WorkflowTask
    why: str


# --- answers: from a worker to the run's shard ----------------------------------------------------


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Names the task that it answers, and who answers."""

    run: RunKey
    scheduled_event_id: int
    attempt: int = 1
    identity: str = ""
    worker_id: str = ""


class WorkflowTaskCompleted(Answer, frozen=True, tag="task-completed"):
    """``sticky``: the run is in the cache of ``worker_id`` now, and further tasks may go there for
    ``sticky_timeout_ms`` each. ``version`` is the worker's, ``versioning_behavior`` the number of
    the workflow's."""

    commands: list[Command] = []
    started_ms: int = 0
    sticky: bool = False
    sticky_timeout_ms: int = 10_000
    current_details: str = ""
    version: str = ""
    versioning_behavior: int = 0


class WorkflowTaskFailed(Answer, frozen=True, tag="task-failed"):
    cause: str
    failure: Failure | None = None
    started_ms: int = 0


class WorkflowTaskProgress(Answer, frozen=True, tag="task-progress"):
    """The task takes long (half a second, then again before each task timeout), because of local
    activities or a long replay: the task timeout counts from here."""

    started_ms: int = 0


class StickyEvicted(msgspec.Struct, frozen=True, kw_only=True, tag="sticky-evicted"):
    """The run has left the cache of ``worker_id``: its tasks go to the workflow task queue."""

    run: RunKey
    worker_id: str


class StickyGone(msgspec.Struct, frozen=True, kw_only=True, tag="sticky-gone"):
    """Worker ``worker_id`` shuts down, or has died: so for all runs of the shard."""

    worker_id: str


class ClaimStart(msgspec.Struct, frozen=True, kw_only=True, tag="claim-start"):
    """May this attempt of an activity run? Answered by `StartGranted`, the same answer for the same
    ``request_id``; to ``reply_to`` of the message."""

    run: RunKey
    scheduled_event_id: int
    attempt: int
    request_id: str
    identity: str = ""
    host: str = ""
    worker_id: str = ""


class StartGranted(msgspec.Struct, frozen=True, tag="start-granted"):
    """The answer to `ClaimStart`; without ``granted`` the attempt must not run."""

    granted: bool
    why: str = ""


class FetchEvents(msgspec.Struct, frozen=True, kw_only=True, tag="fetch-events"):
    """Events from ``first_event_id``, as many as fit a message. Answered by `EventsPage`."""

    run: RunKey
    first_event_id: int = 1


class EventsPage(msgspec.Struct, frozen=True, tag="events-page"):
    """``events`` is empty when the history has no such event; ``found`` is False without a run."""

    events: list[Event]
    last_event_id: int = 0
    found: bool = True


class QueryAnswer(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="query-answer"
):
    """From a worker straight to whoever asked. ``error`` is empty, or one of ``rejected`` (the run
    has ended and ``reject_not_open`` was set), ``failed`` (``failure`` says how)."""

    result: Payload = NULL
    error: str = ""
    failure: Failure | None = None
    status: str = ""


FromWorker = Union[  # noqa: UP007 - msgspec takes the union apart once
    WorkflowTaskCompleted,
    WorkflowTaskFailed,
    WorkflowTaskProgress,
    StickyEvicted,
    StickyGone,
    ClaimStart,
    FetchEvents,
]
ToWorker = Union[StartGranted, EventsPage]  # noqa: UP007

encode = msgspec.msgpack.Encoder().encode
_task_decoder = msgspec.msgpack.Decoder(WorkflowTask)


def task_message(task: WorkflowTask, message_id: str) -> Message:
    """The message that carries ``task``."""
    return Message(
        body=encode(task),
        message_id=message_id,
        kind=WORKFLOW_TASK,
        headers={"tq-protocol": envelope.PROTOCOL, "tq-workflow-type": task.workflow_type},
        correlation_id=None,
        content_type=MESSAGE_PACK,
        content_encoding="binary",
    )


def type_of(message: Message) -> str:
    """The workflow type that ``message`` says in its headers; empty if it says none."""
    told = message.headers.get("tq-workflow-type", "")
    return told if isinstance(told, str) else ""


def read_task(message: Message) -> WorkflowTask:
    """The task in ``message``. Raises `Malformed`."""
    if message.kind != WORKFLOW_TASK or message.headers.get("tq-protocol") != envelope.PROTOCOL:
        raise Malformed("not a workflow task of a known protocol version")
    try:
        return _task_decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"workflow task: {error}") from error
