"""Physical names of queues and exchanges: the one grammar, built and parsed here only.

Rules of this file:

* a queue is ``tq.<namespace>.<kind>[.<part>...]``; its *key* is what follows the namespace and
  is at the same time its routing key, so a returned or dead-lettered message tells where it
  was going;
* user-given parts are encoded: RabbitMQ strips CR and LF from names, ``.``, ``#`` and ``*``
  mean something in bindings and in permission patterns, so every byte of the UTF-8 form
  outside ``[A-Za-z0-9_-]`` becomes ``%XX``;
* the bounds below keep every name, and every key behind the prefix of the delay ladder,
  within the 255 bytes of an AMQP short string;
* `QueueName.parse` is the inverse of ``str(QueueName)``.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from tq_broker.exceptions import InvalidArgument

PREFIX = "tq"
NAMESPACE_BYTES_MAX = 40
TASK_QUEUE_BYTES_MAX = 100
CAPABILITIES_BYTES_MAX = 90
"""Longest encoded set of capabilities of one task."""
TARGET_BYTES_MAX = 64
"""Longest encoded host name or worker id."""

CACHED_MAX = 1024
"""Names in use at a time, about: what is computed of them is kept."""

_ENCODED = re.compile(r"(?:[A-Za-z0-9_-]|%[0-9A-F]{2})+\Z")
_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class Kind(enum.Enum):
    """What a queue is for. The value is the word in its name."""

    __hash__ = object.__hash__  # every name has one in it, and that of `Enum` is no C

    ACTIVITY = "activity"
    WORKFLOW = "workflow"
    PRIORITY = "priority"
    WORKFLOW_PRIORITY = "workflow-priority"
    HOST = "host"
    PROCESS = "process"
    DETOUR = "detour"
    CAPABLE = "capable"
    WORKFLOW_CAPABLE = "workflow-capable"
    NICHE = "niche"
    WORKFLOW_NICHE = "workflow-niche"
    LEASE = "lease"
    WILL = "will"
    REPLY = "reply"
    CONTROL = "control"
    DELAY = "delay"
    CLAIM = "claim"
    LOCK = "lock"
    PARKED = "parked"
    UNROUTED = "unrouted"
    SETTINGS = "settings"
    HISTORY = "history"
    STICKY = "sticky"
    ABANDONED = "abandoned"
    PERMIT = "permit"
    BANK = "bank"
    LEDGER = "ledger"
    ANTEROOM = "anteroom"
    ROSTER = "roster"
    ADMITTED = "admitted"
    ADMITTED_PRIORITY = "admitted-priority"
    VERSION = "version"
    RAMPING = "ramping"
    FAIR = "fair"
    WORKFLOW_FAIR = "workflow-fair"
    LANE = "lane"
    DEALERS = "dealers"


_ARITY = {
    Kind.ACTIVITY: 1,  # task queue
    Kind.WORKFLOW: 1,  # task queue
    Kind.PRIORITY: 1,  # task queue
    Kind.WORKFLOW_PRIORITY: 1,  # task queue
    Kind.HOST: 2,  # host, task queue
    Kind.PROCESS: 2,  # worker id, task queue
    Kind.DETOUR: 1,  # digest of what it is for
    Kind.CAPABLE: 2,  # set of capabilities, task queue
    Kind.WORKFLOW_CAPABLE: 2,  # the same
    Kind.NICHE: 2,  # digest of who it is for, task queue
    Kind.WORKFLOW_NICHE: 2,  # the same
    Kind.LEASE: 1,  # worker id
    Kind.WILL: 1,  # worker id
    Kind.REPLY: 1,  # client id
    Kind.CONTROL: 1,  # worker id
    Kind.DELAY: 1,  # level
    Kind.CLAIM: 1,  # digest of task queue and activity id
    Kind.LOCK: 1,  # digest of the guarded queue's name
    Kind.PARKED: 0,
    Kind.UNROUTED: 0,
    Kind.SETTINGS: 0,
    Kind.HISTORY: 1,  # shard
    Kind.STICKY: 1,  # worker id
    Kind.ABANDONED: 0,
    Kind.PERMIT: 3,  # rate or concurrency, side, task queue
    Kind.BANK: 3,  # the same
    Kind.LEDGER: 3,  # the same
    Kind.ANTEROOM: 1,  # task queue
    Kind.ROSTER: 1,  # the same
    Kind.ADMITTED: 1,  # the same
    Kind.ADMITTED_PRIORITY: 1,  # the same
    Kind.VERSION: 3,  # side, deployment version, task queue
    Kind.RAMPING: 2,  # side, task queue
    Kind.FAIR: 1,  # task queue
    Kind.WORKFLOW_FAIR: 1,  # task queue
    Kind.LANE: 3,  # side, number, task queue
    Kind.DEALERS: 2,  # side, task queue
}

ORDERED = {Kind.ACTIVITY: Kind.PRIORITY, Kind.WORKFLOW: Kind.WORKFLOW_PRIORITY}
"""Which queue takes the place of a plain shared one that does not order its tasks by priority."""
PLAIN = {ordered: plain for plain, ordered in ORDERED.items()}
ADMITTED = frozenset({Kind.ADMITTED, Kind.ADMITTED_PRIORITY})
"""Queues of activities that the usher of their task queue has let in."""
SHARED = ORDERED.keys() | PLAIN.keys() | ADMITTED
"""Queues whose tasks any worker of the task queue may take."""
FAIR = {Kind.ACTIVITY: Kind.FAIR, Kind.WORKFLOW: Kind.WORKFLOW_FAIR}
"""Where tasks wait for their fair share, before they go to the queue of `ORDERED`."""
UNFAIR = {fair: plain for plain, fair in FAIR.items()}
DEALT = UNFAIR.keys() | {Kind.LANE}
"""Queues whose tasks wait for their fair share."""
LANES = 8
"""Queues of one side of a task queue for tasks that get their share only after many others."""
_TWINS = ORDERED | PLAIN
CAPABLE = {Kind.ACTIVITY: Kind.CAPABLE, Kind.WORKFLOW: Kind.WORKFLOW_CAPABLE}
"""Of each side the queues of tasks that require the same capabilities."""
REQUIRING = {capable: plain for plain, capable in CAPABLE.items()}
NICHES = {Kind.ACTIVITY: Kind.NICHE, Kind.WORKFLOW: Kind.WORKFLOW_NICHE}
"""Of each side the private queues of a few workers; see `tq_broker.model.capabilities`."""
_OF_TASK_QUEUES = (
    SHARED
    | DEALT
    | REQUIRING.keys()
    | {*NICHES.values()}
    | {*(Kind.HOST, Kind.PROCESS, Kind.VERSION, Kind.RAMPING)}
)
"""Tasks wait in them; their last part is the task queue."""


class Exchange(enum.Enum):
    """The exchanges of a namespace, one per direction. The value is the word in the name."""

    __hash__ = object.__hash__

    TASKS = "tasks"
    """direct: tasks to their queues; publishes here are mandatory."""
    DUE = "due"
    """topic: tasks whose delay is over; what it cannot route goes to UNROUTED."""
    REPLIES = "replies"
    """direct: outcomes to the clients' reply queues."""
    CONTROL = "control"
    """direct: requests to living workers."""
    DELAY = "delay"
    """topic: entry of the delay ladder."""
    UNROUTED = "unrouted"
    """fanout: tasks whose queue was gone; workers route them anew."""
    PARKED = "parked"
    """fanout: messages that wait for an operator."""
    HISTORY = "history"
    """direct: requests and completions to the shards of the history service."""
    STICKY = "sticky"
    """topic: workflow tasks to sticky queues; the key also names the shard, see `sticky_key`."""
    ABANDONED = "abandoned"
    """topic: what a sticky queue gave up, back to the shard that its key names."""


def check_text(argument: str, value: object, *, bytes_max: int | None = None) -> str:
    """Return ``value`` if it is a visible, non-empty string.

    Args:
        argument: The name to blame in the error.
        bytes_max: Bound of the encoded form; ``None`` checks no length.

    Raises:
        InvalidArgument: not a string, empty, with control, bidirectional or surrogate
            characters, or too long.
    """
    if not isinstance(value, str):
        raise InvalidArgument(f"{argument} must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidArgument(f"{argument} must not be empty")
    if not value.isascii() or not value.isprintable():
        for char in value:
            if unicodedata.category(char) in _HIDDEN:
                raise InvalidArgument(
                    f"{argument} has the control or invisible character U+{ord(char):04X}"
                )
    if bytes_max is not None and len(encode_part(value)) > bytes_max:
        raise InvalidArgument(
            f"{argument} is {len(encode_part(value))} bytes long when encoded for RabbitMQ;"
            f" the bound is {bytes_max}"
        )
    return value


def check_storable(argument: str, value: str) -> str:
    """Return ``value`` if every store can keep it as a text.

    Raises:
        InvalidArgument: with U+0000, which PostgreSQL refuses, or with lone surrogates, which AMQP
            libraries let pass.
    """
    if "\0" in value:
        raise InvalidArgument(f"{argument} has the character U+0000")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{argument} is not Unicode: {value!a:.40}") from None
    return value


def check_namespace(value: object) -> str:
    """Return ``value`` if it can name a namespace, else raise `InvalidArgument`."""
    return check_text("namespace", value, bytes_max=NAMESPACE_BYTES_MAX)


def check_task_queue(value: object) -> str:
    """Return ``value`` if it can name a task queue, else raise `InvalidArgument`."""
    return check_text("task_queue", value, bytes_max=TASK_QUEUE_BYTES_MAX)


@functools.lru_cache(CACHED_MAX)  # every message names some queue, and they are few
def encode_part(text: str) -> str:
    """Encode one user-given part for use in a name or key."""
    if _PLAIN.match(text):
        return text
    # quote() leaves "." and "~" alone as well; both are outside our alphabet.
    return quote(text, safe="").replace(".", "%2E").replace("~", "%7E")


@functools.lru_cache(CACHED_MAX)
def decode_part(part: str) -> str:
    """Undo `encode_part`. Raises `InvalidArgument` for what it cannot have made."""
    if not _ENCODED.match(part):
        raise InvalidArgument(f"{part!r} is not an encoded name part")
    try:
        text = unquote_to_bytes(part).decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{part!r} is not UTF-8") from error
    if encode_part(text) != part:
        raise InvalidArgument(f"{part!r} is not in the one form that is used")
    return text


@dataclass(frozen=True, slots=True)
class QueueName:
    """A queue of ours: namespace, kind and the decoded parts."""

    namespace: str
    kind: Kind
    parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.parts) != _ARITY[self.kind]:
            raise InvalidArgument(
                f"a {self.kind.value} queue has {_ARITY[self.kind]} name part(s),"
                f" not {len(self.parts)}"
            )

    @property
    def key(self) -> str:
        """The routing key under which this queue is bound."""
        return _key(self.kind, self.parts)

    @property
    def task_queue(self) -> str | None:
        """The user's task queue that this queue belongs to, if it belongs to one."""
        if self.kind in _OF_TASK_QUEUES:
            return self.parts[-1]
        return None

    def __str__(self) -> str:
        return f"{PREFIX}.{encode_part(self.namespace)}.{self.key}"

    @staticmethod
    @functools.lru_cache(CACHED_MAX)  # every task names the queue of its answer, and they are few
    def parse(name: str) -> QueueName:
        """Read a queue name. Raises `InvalidArgument` if it is none of ours."""
        head, _, rest = name.partition(".")
        namespace, _, key = rest.partition(".")
        if head != PREFIX or not key:
            raise InvalidArgument(f"{name!r} is not the name of a tq_broker queue")
        return QueueName.from_key(decode_part(namespace), key)

    @classmethod
    def from_key(cls, namespace: str, key: str) -> QueueName:
        """Read a routing key. Raises `InvalidArgument` if it is none of ours."""
        word, *parts = key.split(".")
        try:
            kind = Kind(word)
        except ValueError:
            raise InvalidArgument(f"{key!r} is not the key of a tq_broker queue") from None
        return cls(namespace, kind, tuple(map(decode_part, parts)))


@functools.lru_cache(CACHED_MAX)
def _key(kind: Kind, parts: tuple[str, ...]) -> str:
    return ".".join((kind.value, *map(encode_part, parts)))


@functools.lru_cache(CACHED_MAX)
def _queue(namespace: str, kind: Kind, parts: tuple[str, ...]) -> QueueName:
    return QueueName(namespace, kind, parts)


@functools.lru_cache(CACHED_MAX)
def _exchange(namespace: str, exchange: Exchange) -> str:
    return f"{PREFIX}.{encode_part(namespace)}.{exchange.value}"


def set_part(capabilities: Iterable[str]) -> str:
    """A set of capabilities as a part of a name.

    It begins with a character that is encoded, so that no word of ours, and so no binding of due
    tasks, can be mistaken for it.
    """
    return "".join(f"+{encode_part(name)}" for name in sorted(set(capabilities)))


def read_set(part: str) -> tuple[str, ...]:
    """Undo `set_part`. Raises `InvalidArgument`."""
    head, *names = part.split("+")
    if head or not names:
        raise InvalidArgument(f"{part!r} is not a set of capabilities")
    return tuple(map(decode_part, names))


def requirements(queue: QueueName) -> tuple[str, ...]:
    """The capabilities that all tasks of the shared ``queue`` require."""
    return read_set(queue.parts[0]) if queue.kind in REQUIRING else ()


def sticky_key(queue: QueueName, shard: int) -> str:
    """The routing key of a task from ``shard`` to a sticky queue."""
    return f"{queue.key}.{shard}"


@dataclass(frozen=True, slots=True)
class Names:
    """All names of one namespace."""

    namespace: str

    def __post_init__(self) -> None:
        check_namespace(self.namespace)

    def exchange(self, exchange: Exchange) -> str:
        """The physical name of an exchange."""
        return _exchange(self.namespace, exchange)

    def delay_exchange(self, level: int) -> str:
        """The exchange above level ``level`` of the delay ladder."""
        return f"{self.exchange(Exchange.DELAY)}.{level}"

    def queue(self, kind: Kind, *parts: str) -> QueueName:
        """A queue of this namespace."""
        return _queue(self.namespace, kind, parts)

    def activity(self, task_queue: str) -> QueueName:
        """The shared queue of an activity task queue."""
        return self.queue(Kind.ACTIVITY, task_queue)

    def workflow(self, task_queue: str) -> QueueName:
        """The shared queue of a workflow task queue."""
        return self.queue(Kind.WORKFLOW, task_queue)

    def priority(self, plain: QueueName) -> QueueName:
        """The priority queue of a task queue; ``plain`` is its `activity` or `workflow`."""
        return self.queue(ORDERED[plain.kind], *plain.parts)

    def fair(self, plain: QueueName) -> QueueName:
        """Where tasks of a task queue wait for their fair share; ``plain`` as in `priority`, to
        which they go from there."""
        return self.queue(FAIR[plain.kind], *plain.parts)

    def lanes(self, fair: QueueName) -> tuple[QueueName, ...]:
        """The queues in which tasks wait that have come through the queue ``fair``, and whose turn
        is far away; each exists only while it is needed."""
        side, (task_queue,) = UNFAIR[fair.kind].value, fair.parts
        return tuple(self.queue(Kind.LANE, side, str(n), task_queue) for n in range(LANES))

    def unshared(self, plain: QueueName) -> tuple[QueueName, ...]:
        """All queues in which tasks of a task queue may wait for their fair share."""
        fair = self.fair(plain)
        return (fair, *self.lanes(fair))

    def plain(self, queue: QueueName) -> QueueName:
        """The plain queue of the task queue of ``queue``, which takes the place of it, or is it."""
        if queue.kind is Kind.LANE:
            return self.queue(Kind(queue.parts[0]), queue.parts[-1])
        known = PLAIN | UNFAIR
        kind = Kind.ACTIVITY if queue.kind in ADMITTED else known.get(queue.kind, queue.kind)
        return self.queue(kind, *queue.parts)

    def twin(self, queue: QueueName) -> QueueName:
        """Of the plain and the priority queue of a task queue the one that is not ``queue``."""
        return self.queue(_TWINS[queue.kind], *queue.parts)

    def capable(
        self, task_queue: str, capabilities: Sequence[str], side: Kind = Kind.ACTIVITY
    ) -> QueueName:
        """The shared queue of a task queue's tasks that require just these ``capabilities``."""
        return self.queue(CAPABLE[side], set_part(capabilities), task_queue)

    def shared(
        self, task_queue: str, capabilities: Sequence[str] = (), side: Kind = Kind.ACTIVITY
    ) -> QueueName:
        """The shared queue of a task queue's tasks that require ``capabilities``, if any."""
        if capabilities:
            return self.capable(task_queue, capabilities, side)
        return self.queue(side, task_queue)

    def version(self, side: str, version: str, task_queue: str) -> QueueName:
        """The queue of one side of a task queue for tasks that are pinned to ``version``."""
        return self.queue(Kind.VERSION, side, version, task_queue)

    def ramping(self, side: str, task_queue: str) -> QueueName:
        """The queue of one side of a task queue for tasks that the ramp takes."""
        return self.queue(Kind.RAMPING, side, task_queue)

    def claim(self, task_queue: str, activity_id: str) -> QueueName:
        """The queue that stands for one activity id of one task queue."""
        digest = hashlib.blake2b(f"{task_queue}\0{activity_id}".encode(), digest_size=16)
        return self.queue(Kind.CLAIM, digest.hexdigest())

    def history(self, shard: int) -> QueueName:
        """The inbox of a history shard."""
        return self.queue(Kind.HISTORY, str(shard))

    def sticky(self, worker_id: str) -> QueueName:
        """The sticky queue of a worker."""
        return self.queue(Kind.STICKY, worker_id)

    def owns(self, queue: str, *kinds: Kind) -> bool:
        """Whether ``queue`` is a queue of this namespace, of one of ``kinds`` if any are given.

        The check for names that come from outside, such as a task's ``reply_to``.
        """
        try:
            name = QueueName.parse(queue)
        except InvalidArgument:
            return False
        return name.namespace == self.namespace and (not kinds or name.kind in kinds)
