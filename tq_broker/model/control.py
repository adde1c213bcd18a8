"""Requests to living workers and their answers.

They travel as JSON with a ``type`` tag through the control exchange; a request that no worker
is bound for is returned to its sender, which is how "gone" is known at once. Answers come on
the reply queue, with the request's ``correlation_id``.
"""

from __future__ import annotations

import base64
import binascii
import enum
from typing import Any, TypeVar

import msgspec

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model import envelope
from tq_broker.model.capabilities import Niche
from tq_broker.model.detours import Detour
from tq_broker.model.failure import Failure
from tq_broker.model.limits import Side
from tq_broker.model.message import Message
from tq_broker.model.names import encode_part
from tq_broker.model.rule_table import Facts
from tq_broker.model.tasks import NO_RESULT

EVERY_WORKER = "worker"
"""The control key that all workers of a namespace answer to."""
ASIDE_MS_MAX = 60_000


def worker_key(worker_id: str) -> str:
    """The control key of one worker."""
    return f"worker.{encode_part(worker_id)}"


def ready_key(queue_key: str) -> str:
    """The control key of those who serve the private queue with the key ``queue_key``."""
    return f"ready.{queue_key}"


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Who are you?"""


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Nothing: that it is routed says that somebody is there."""


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """Serve the private queue ``queue`` from now on, if it is yours: somebody has a task for it.
    The names of a detour's and a niche's queue do not say what they are for; ``detour`` and
    ``niche`` do.

    When it is consumed, and there is a will for it, bind the control queue under `ready_key`.
    """

    queue: str
    detour: Detour | None = None
    niche: Niche | None = None


class AskRecent(msgspec.Struct, frozen=True, tag="recent"):
    """Which tasks did you take lately?"""


class StandAside(msgspec.Struct, frozen=True, tag="stand-aside"):
    """The usher of ``task_queue`` is to leave what waits to RabbitMQ for ``for_ms``, at most
    `ASIDE_MS_MAX`; 0: it may come back. Nobody answers it."""

    task_queue: str
    for_ms: int


class GiveWay(msgspec.Struct, frozen=True, tag="give-way"):
    """Somebody has a task of this side of ``task_queue`` that nobody else may run, and no leave to
    begin it: who holds permits and has no tasks for them is to put them back. Nobody answers it."""

    task_queue: str
    side: Side


class FindActivity(msgspec.Struct, frozen=True, tag="find-activity"):
    """Who has the activity with this id?"""

    activity_id: str


class CompleteAttempt(msgspec.Struct, frozen=True, tag="complete"):
    """An attempt that completes asynchronously has ended, or only sends a ``heartbeat``.

    It has failed if ``failure`` is set; otherwise ``result`` (JSON) is its result.
    """

    activity_id: str
    attempt: int
    result: msgspec.Raw = NO_RESULT
    failure: Failure | None = None
    heartbeat: list[msgspec.Raw] | None = None


class Begins(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker has begun of one side of a task queue, or of a part of that.

    Attributes:
        total: Since the worker started.
        shared: Those of them that came through the queue that all workers share.
        ways: All of them by the way on which they came, see `tq_broker.model.composition.Way`.
        per_second: The average of the last half minute.
        waited_ms: How long the last one had waited on its queue; ``None`` if it did not tell.
        priority: Only those of this priority; ``None`` means all.
        key: Only those with this ``rate_limit_key``; ``None`` means all. Only the busiest keys are
            told, with what was counted while they were among them.
    """

    task_queue: str
    side: Side
    total: int
    shared: int
    per_second: float
    waited_ms: int | None = None
    priority: int | None = None
    key: str | None = None
    ways: dict[str, int] = {}


class HeldBack(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks of one type and key that limits hold back, in sight of their usher.

    Attributes:
        count: How many.
        oldest_age_s: How long the first of them has waited; ``None`` if it does not tell.
    """

    task_queue: str
    activity_type: str
    key: str
    priority: int
    count: int
    oldest_age_s: float | None


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True, tag="worker"):
    """The answer to `Ping`."""

    worker_id: str
    identity: str
    host: str
    pid: int
    started_ms: int
    task_queues: list[str]
    activities: list[str]
    slots: int
    running: int
    held: dict[str, int] = {}
    """Tasks in hand by task queue."""
    version: str = ""
    shutting_down: bool = False
    workflows: list[str] = []
    workflow_tasks: int = 0
    """Workflow tasks in hand."""
    cached_workflows: int = 0
    sticky_hits: int = 0
    """Tasks sent to this worker because of its cache, whose run was there."""
    sticky_misses: int = 0
    only_local: bool = False
    """Its activities are local ones of its workflows: it takes no activity tasks."""
    any_activity: bool = False
    """It serves activity types beside those that it names."""
    paused: list[str] = []
    """Those of its task queues from which it takes no activities because they are paused."""

    sessions: int = 0
    """Sessions open at it, of ``session_slots``."""
    session_slots: int = 0
    capabilities: list[str] = []
    unserved: dict[str, dict[str, int]] = {}
    """Activities that wait for capabilities or a version that nobody has, as this one sees: by task
    queue their number by set,"""
    unserved_workflows: dict[str, dict[str, int]] = {}
    """and workflow tasks."""
    deployment_version: str = ""
    """``<deployment>.<build id>``; empty without one."""

    banks: dict[str, list[str]] = {}
    """What this worker keeps of limits, by task queue: hands out the permits of its ``rate`` or
    ``concurrency``, or is its ``usher``."""
    begins: list[Begins] = []
    """What it has begun."""
    per_second: float | None = None
    """What it may begin per second, of activities, if it has a limit of its own."""
    workflow_slots: int = 0
    local_slots: int = 0
    """Slots for local activities."""
    local_running: int = 0
    settings_fault: str = ""
    """What of the settings log it could not read; the last settings that it could are in force."""
    waiting: dict[str, int] = {}
    """Tasks in sight that wait for limits of their types or keys, where it is the usher."""
    held_back: list[HeldBack] = []
    """The longest lines of those."""
    serves: list[Serve] = []
    """The queues of its host, its process, its niches and of traffic rules that it was asked to
    serve."""
    dealing: dict[str, int] = {}
    """Activities in its hands that wait for the share of their fairness keys, by task queue of
    which it is the dealer,"""
    workflow_dealing: dict[str, int] = {}
    """and workflow tasks."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A worker has started; those that are there answer it with `Present`."""

    info: WorkerInfo


class Present(msgspec.Struct, frozen=True, tag="present"):
    """The answer to `Hello`, sent to the control key of the worker that said it."""

    info: WorkerInfo


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """The answer to `CompleteAttempt`: whether the attempt was known here and still open."""

    found: bool
    cancel_requested: bool = False


class RecentTask(msgspec.Struct, frozen=True):
    """A task that a worker took, without what only its code may see."""

    at_ms: int
    facts: Facts


class Recent(msgspec.Struct, frozen=True, tag="recent"):
    """The answer to `AskRecent`: the last few hundred at most."""

    worker_id: str
    tasks: list[RecentTask]


class Hold(str, enum.Enum):
    """How a worker has a task. The value is the word on the wire."""

    RUNNING = "running"
    OPEN = "open"
    """Its code has returned: it is completed by somebody else, or its end is being told."""
    IN_HAND = "in-hand"
    """It waits there for a slot, or for leave to begin."""
    HELD_BACK = "held-back"
    """It waits for limits of its type or key, in sight of their usher."""
    TAKEN = "taken"
    """It was there lately, and is not any more."""


class FoundTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task of an activity that a worker has, or had.

    Attributes:
        at_ms: When it began, or was taken (epoch ms); 0 if that is not told.
        facts: What traffic rules may ask of it.
        route: As its header says it, and so ``requires``; ``None`` without one.
        attempt: 0 if it is not known any more.
    """

    hold: Hold
    facts: Facts
    attempt: int = 0
    at_ms: int = 0
    route: str | None = None
    requires: str | None = None


class FoundActivity(msgspec.Struct, frozen=True, tag="found-activity"):
    """The answer to `FindActivity`: what this worker has of it."""

    worker_id: str
    identity: str
    tasks: list[FoundTask]


Request = (
    Ping
    | Probe
    | Serve
    | StandAside
    | GiveWay
    | FindActivity
    | AskRecent
    | CompleteAttempt
    | Hello
    | Present
)
Reply = WorkerInfo | Answer | Recent | FoundActivity

_request_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_reply_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def message(value: Request | Reply, message_id: str, **properties: Any) -> Message:
    """The message that carries a request or a reply."""
    return Message(
        body=msgspec.json.encode(value),
        message_id=message_id,
        kind=envelope.CONTROL,
        headers={"tq-protocol": envelope.PROTOCOL},
        persistent=False,
        **properties,
    )


def read_request(message: Message) -> Request:
    """The request in ``message``. Raises `Malformed`."""
    return _read(_request_decoder, message)


def read_reply(message: Message) -> Reply:
    """The reply in ``message``. Raises `Malformed`."""
    return _read(_reply_decoder, message)


T = TypeVar("T")


def _read(decoder: msgspec.json.Decoder[T], message: Message) -> T:
    try:
        return decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"control message: {error}") from error


class TaskToken(msgspec.Struct, frozen=True, array_like=True):
    """What somebody else needs to complete an attempt: opaque to users."""

    namespace: str
    worker_id: str
    activity_id: str
    attempt: int

    def dump(self) -> bytes:
        """The token's printable form."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self))

    @classmethod
    def load(cls, token: bytes | str) -> TaskToken:
        """Read a token. Raises `InvalidArgument`."""
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(token), type=cls)
        except (binascii.Error, ValueError, TypeError, msgspec.DecodeError) as error:
            raise InvalidArgument(f"task_token is not one of ours: {error}") from error
