"""What must exist on the broker: names and options in, declarations out.

Rules of this file:

* only *identity* goes into arguments (queue type, single active consumer, time-to-live, expiry
  and dead-lettering of private queues): what an operator may want to tune belongs in a policy;
* ``x-queue-type`` is always sent, because a vhost can have another default;
* names that churn (host, process, lease, reply, claim, lock) are classic: a quorum queue leaves
  an Erlang atom behind for every name ever used. Queues of deployment versions are quorum queues
  all the same: tasks may wait there for as long as in a task queue, and there are few a day;
* a private queue's ``x-expires`` is at least twice its time-to-live and a minute: a queue that
  expires drops its messages, confirmed or not, so they must have been dead-lettered long before.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tq_broker.model.detours import Detour
from tq_broker.model.envelope import AMQP_PRIORITY_MAX
from tq_broker.model.names import Exchange, Kind, Names, QueueName

DELIVERY_LIMIT = 20
"""Redeliveries before a quorum queue gives a message up to the parked queue.

RabbitMQ's default from 4.0; sent explicitly because 3.x has none, and because with a limit a
message that comes back keeps its place in the queue.
"""
SHARD_DELIVERY_LIMIT = 1_000
"""The same for the inbox of a shard, where it is the last resort: history finds and parks poison by
itself. Before 4.3 RabbitMQ counts lost connections as well, and hand-overs from process to process;
what they made of an activity's result, parked, would be a workflow that waits for ever."""
PARKED_DELIVERY_LIMIT = 1_000_000
PRIVATE_TTL_MS = 600_000
"""How long a task may wait for its host or process before it is routed anew.

Only the last resort: the will of a worker that dies empties its queues at once.
"""
PRIVATE_EXPIRES_MS = 2 * PRIVATE_TTL_MS + 60_000
HELD_TTL_MS = 1_000
HELD_EXPIRES_MS = 600_000
REPLY_EXPIRES_MS = 600_000
SETTINGS_BYTES_MAX = 50_000_000
SETTINGS_SEGMENT_BYTES = 1_000_000

DELAY_LEVELS = 28
DELAY_UNIT_MS = 100


class QueueType(str, enum.Enum):
    """Kind of RabbitMQ queue behind a shared task queue."""

    QUORUM = "quorum"
    CLASSIC = "classic"


@dataclass(frozen=True, slots=True)
class DeclareExchange:
    """A durable exchange."""

    name: str
    type: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeclareQueue:
    """A queue: durable unless exclusive (then it lives as long as its connection)."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class BindQueue:
    """A binding from an exchange to a queue."""

    queue: str
    exchange: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class BindExchange:
    """A binding from ``source`` to the exchange ``destination``."""

    destination: str
    source: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class UnbindQueue:
    """Removal of a binding; harmless when there is none."""

    queue: str
    exchange: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class DeleteQueue:
    """Removal of a queue with whatever is in it; harmless when there is none.

    ``only_idle`` (classic queues): only if it has neither ready messages nor consumers; otherwise
    it stays, and nothing happens. RabbitMQ decides that in one step.
    """

    queue: str
    only_idle: bool = False


Step = DeclareExchange | DeclareQueue | BindQueue | BindExchange | UnbindQueue | DeleteQueue


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps to take in order, idempotent as a whole.

    ``lock`` names the exclusive queue to hold meanwhile: whoever declares a shared queue and
    whoever reclaims it exclude each other through it. ``None`` takes no lock.
    """

    steps: tuple[Step, ...]
    lock: str | None = None

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.steps + other.steps, self.lock or other.lock)


def namespace(names: Names) -> Plan:
    """The exchanges of a namespace and its three fixed queues (unrouted, parked)."""
    unrouted, parked = names.queue(Kind.UNROUTED), names.queue(Kind.PARKED)
    exchange = names.exchange
    return Plan(
        (
            DeclareExchange(exchange(Exchange.PARKED), "fanout"),
            DeclareExchange(exchange(Exchange.UNROUTED), "fanout"),
            DeclareExchange(exchange(Exchange.TASKS), "direct"),
            DeclareExchange(
                exchange(Exchange.DUE),
                "topic",
                # What a timer releases must find a home although its queue was reclaimed
                # meanwhile. The task exchange must not have this: a message rescued by an
                # alternate exchange counts as routed, and publishers would never know.
                {"alternate-exchange": exchange(Exchange.UNROUTED)},
            ),
            DeclareExchange(exchange(Exchange.REPLIES), "direct"),
            DeclareExchange(exchange(Exchange.CONTROL), "direct"),
            DeclareQueue(
                str(parked),
                # Looking at parked messages hands them out and gives them back.
                {"x-queue-type": "quorum", "x-delivery-limit": PARKED_DELIVERY_LIMIT},
            ),
            BindQueue(str(parked), exchange(Exchange.PARKED), parked.key),
            DeclareQueue(str(unrouted), _shared_arguments(names, QueueType.QUORUM)),
            BindQueue(str(unrouted), exchange(Exchange.UNROUTED), unrouted.key),
        )
    )


def _shared_arguments(names: Names, queue_type: QueueType) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "x-queue-type": queue_type.value,
        "x-dead-letter-exchange": names.exchange(Exchange.PARKED),
    }
    if queue_type is QueueType.QUORUM:
        arguments["x-delivery-limit"] = DELIVERY_LIMIT
    return arguments


def task_queue_arguments(names: Names, queue_type: QueueType = QueueType.QUORUM) -> dict[str, Any]:
    """The arguments of a shared task queue, for programs that declare it themselves."""
    return _shared_arguments(names, queue_type)


def task_queue(
    names: Names, queue: QueueName, lock: QueueName, queue_type: QueueType = QueueType.QUORUM
) -> Plan:
    """A shared task queue, bound where tasks and due tasks arrive."""
    return Plan(
        (
            DeclareQueue(str(queue), _shared_arguments(names, queue_type)),
            *_task_bindings(names, queue),
        ),
        lock=str(lock),
    )


def priority_queue(names: Names, queue: QueueName, lock: QueueName) -> Plan:
    """What takes the place of a shared task queue that does not order its tasks by priority.

    Classic on every version: there the order is exact.
    """
    arguments = _shared_arguments(names, QueueType.CLASSIC)
    return Plan(
        (
            DeclareQueue(str(queue), arguments | {"x-max-priority": AMQP_PRIORITY_MAX}),
            *_task_bindings(names, queue),
        ),
        lock=str(lock),
    )


def private_queue(names: Names, queue: QueueName) -> Plan:
    """A host or process queue: what waits in it for too long goes to be routed anew.

    Not bound where due tasks arrive: those are routed anew as well, because only then it is
    known whether the target lives.
    """
    return Plan(
        (
            DeclareQueue(
                str(queue),
                {
                    "x-queue-type": "classic",
                    "x-expires": PRIVATE_EXPIRES_MS,
                    "x-message-ttl": PRIVATE_TTL_MS,
                    "x-dead-letter-exchange": names.exchange(Exchange.UNROUTED),
                },
            ),
            BindQueue(str(queue), names.exchange(Exchange.TASKS), queue.key),
        )
    )


def detour_queue(names: Names, detour: Detour) -> Plan:
    """A queue of tasks that a traffic rule has brought: what nobody takes in time goes home.

    By the exchange of due tasks, because what cannot be routed there is rescued.
    """
    queue = detour.queue(names)
    return Plan(
        (
            DeclareQueue(
                str(queue),
                {
                    "x-queue-type": "classic",
                    "x-expires": 2 * detour.take_within_ms + 60_000,
                    "x-message-ttl": detour.take_within_ms,
                    "x-dead-letter-exchange": names.exchange(Exchange.DUE),
                    "x-dead-letter-routing-key": detour.home_queue(names).key,
                },
            ),
            BindQueue(str(queue), names.exchange(Exchange.TASKS), queue.key),
        )
    )


def held_queue(names: Names, queue: QueueName) -> Plan:
    """A lease or will queue: what a worker holds, unacknowledged, for as long as it lives.

    When the worker dies its messages come back after their time-to-live has passed, and are
    dead-lettered at once: what follows from its death begins in milliseconds.
    """
    return Plan(
        (
            DeclareQueue(
                str(queue),
                {
                    "x-queue-type": "classic",
                    "x-expires": HELD_EXPIRES_MS,
                    "x-message-ttl": HELD_TTL_MS,
                    "x-dead-letter-exchange": names.exchange(Exchange.UNROUTED),
                },
            ),
            BindQueue(str(queue), names.exchange(Exchange.TASKS), queue.key),
        )
    )


def permits(names: Names, permit: QueueName, bank: QueueName, ledger: QueueName) -> Plan:
    """The permits of a limit: where workers take them, where they are kept, and the book of both.

    What is rejected in one of the first two queues goes to the other: a permit changes places in
    one step of RabbitMQ's, so that there are never more of them, nor less, whoever dies when.
    The bank has a single active consumer, which is the election of the one who hands them out.
    """
    tasks = names.exchange(Exchange.TASKS)
    return Plan(
        (
            DeclareQueue(
                str(permit),
                {
                    "x-queue-type": "classic",
                    "x-dead-letter-exchange": tasks,
                    "x-dead-letter-routing-key": bank.key,
                },
            ),
            DeclareQueue(
                str(bank),
                {
                    "x-queue-type": "classic",
                    "x-single-active-consumer": True,
                    "x-dead-letter-exchange": tasks,
                    "x-dead-letter-routing-key": permit.key,
                },
            ),
            DeclareQueue(str(ledger), {"x-queue-type": "classic", "x-max-length": 1}),
            *(BindQueue(str(queue), tasks, queue.key) for queue in (permit, bank, ledger)),
        )
    )


def anteroom(names: Names, task_queue: str, queue_type: QueueType = QueueType.QUORUM) -> Plan:
    """Where tasks of a task queue wait whose type or key is limited, the roster of who was let in,
    and where these are taken from.

    The roster has a single active consumer, which is the election of the usher. Tasks come back to
    the anteroom whenever an usher ends, without anybody having begun them.
    """
    tasks = names.exchange(Exchange.TASKS)
    waiting, roster, admitted = (
        names.queue(kind, task_queue) for kind in (Kind.ANTEROOM, Kind.ROSTER, Kind.ADMITTED)
    )
    shared = _shared_arguments(names, queue_type)
    patient = shared.copy()
    if queue_type is QueueType.QUORUM:
        patient["x-delivery-limit"] = PARKED_DELIVERY_LIMIT
    return Plan(
        (
            DeclareQueue(str(waiting), patient),
            DeclareQueue(
                str(roster), {"x-queue-type": "classic", "x-single-active-consumer": True}
            ),
            DeclareQueue(str(admitted), shared),
            *(BindQueue(str(queue), tasks, queue.key) for queue in (waiting, roster, admitted)),
        )
    )


def waiting_for_shares(
    names: Names, queue: QueueName, lock: QueueName, queue_type: QueueType = QueueType.QUORUM
) -> Plan:
    """Where tasks wait for their fair shares. They come back to it whenever a dealer ends, without
    anybody having begun them."""
    arguments = _shared_arguments(names, queue_type)
    if queue_type is QueueType.QUORUM:
        arguments["x-delivery-limit"] = PARKED_DELIVERY_LIMIT
    return Plan(
        (DeclareQueue(str(queue), arguments), *_task_bindings(names, queue)), lock=str(lock)
    )


def dealers(names: Names, queue: QueueName) -> Plan:
    """The election of the dealer: a single active consumer. Nothing is lost with it."""
    return Plan(
        (
            DeclareQueue(
                str(queue),
                {
                    "x-queue-type": "classic",
                    "x-single-active-consumer": True,
                    "x-expires": HELD_EXPIRES_MS,
                },
            ),
            BindQueue(str(queue), names.exchange(Exchange.TASKS), queue.key),
        )
    )


def history_shard(names: Names, queue: QueueName) -> Plan:
    """The inbox of one shard of the history service.

    Bound where requests and completions arrive, where activity outcomes do (a shard is what a
    workflow's activity names as ``reply_to``), and where sticky queues give tasks up to.
    """
    shard = queue.parts[0]
    exchange = names.exchange
    return Plan(
        (
            DeclareExchange(exchange(Exchange.HISTORY), "direct"),
            DeclareExchange(exchange(Exchange.STICKY), "topic"),
            DeclareExchange(exchange(Exchange.ABANDONED), "topic"),
            DeclareQueue(
                str(queue),
                _shared_arguments(names, QueueType.QUORUM)
                | {"x-single-active-consumer": True, "x-delivery-limit": SHARD_DELIVERY_LIMIT},
            ),
            BindQueue(str(queue), exchange(Exchange.HISTORY), queue.key),
            BindQueue(str(queue), exchange(Exchange.REPLIES), str(queue)),
            BindQueue(str(queue), exchange(Exchange.ABANDONED), f"{Kind.STICKY.value}.*.{shard}"),
        )
    )


def sticky_queue(names: Names, queue: QueueName, ttl_ms: int) -> Plan:
    """A worker's sticky queue: what waits in it for ``ttl_ms`` goes back to its shard.

    It outlives its worker by twice that and a minute, so nothing expires with the queue.
    """
    return Plan(
        (
            DeclareExchange(names.exchange(Exchange.STICKY), "topic"),
            DeclareExchange(names.exchange(Exchange.ABANDONED), "topic"),
            DeclareQueue(
                str(queue),
                {
                    "x-queue-type": "classic",
                    "x-expires": 2 * ttl_ms + 60_000,
                    "x-message-ttl": ttl_ms,
                    "x-dead-letter-exchange": names.exchange(Exchange.ABANDONED),
                },
            ),
            BindQueue(str(queue), names.exchange(Exchange.STICKY), f"{queue.key}.*"),
        )
    )


def _task_bindings(names: Names, queue: QueueName) -> tuple[Step, ...]:
    return (
        BindQueue(str(queue), names.exchange(Exchange.TASKS), queue.key),
        BindQueue(str(queue), names.exchange(Exchange.DUE), f"#.{queue.key}"),
    )


def unbind_task_queue(names: Names, queue: QueueName) -> Plan:
    """Takes away the bindings of `task_queue`, so that publishes are returned."""
    return Plan(
        (
            UnbindQueue(str(queue), names.exchange(Exchange.TASKS), queue.key),
            UnbindQueue(str(queue), names.exchange(Exchange.DUE), f"#.{queue.key}"),
        )
    )


def reply_queue(names: Names, queue: QueueName) -> Plan:
    """A client's reply queue: outlives a broken connection, not its client."""
    return Plan(
        (
            DeclareQueue(str(queue), {"x-queue-type": "classic", "x-expires": REPLY_EXPIRES_MS}),
            BindQueue(str(queue), names.exchange(Exchange.REPLIES), str(queue)),
        )
    )


def claim_queue(names: Names, queue: QueueName, token: str, expires_ms: int) -> Plan:
    """The claim of one activity id: the first ``token`` to declare it has it.

    A second declaration with another token is inequivalent (406), because the dead-letter
    routing key differs. It also holds the outcome for those who join, for as long as it lives.
    """
    return Plan(
        (
            DeclareQueue(
                str(queue),
                {
                    "x-queue-type": "classic",
                    "x-expires": expires_ms,
                    "x-max-length": 1,
                    "x-dead-letter-exchange": names.exchange(Exchange.REPLIES),
                    "x-dead-letter-routing-key": token,
                },
            ),
            BindQueue(str(queue), names.exchange(Exchange.REPLIES), str(queue)),
        )
    )


def control_queue(names: Names, queue: QueueName, keys: tuple[str, ...]) -> Plan:
    """A worker's control queue, bound under each key it answers to.

    Exclusive: it goes with the worker's connection, so a mandatory publish to one of its keys
    is returned as soon as the worker is gone.
    """
    exchange = names.exchange(Exchange.CONTROL)
    return Plan(
        (
            DeclareQueue(str(queue), {"x-queue-type": "classic"}, exclusive=True),
            *(BindQueue(str(queue), exchange, key) for key in keys),
        )
    )


def settings_log(names: Names) -> Plan:
    """The namespace's log of settings: a stream, read from its start and followed live."""
    return Plan(
        (
            DeclareQueue(
                str(names.queue(Kind.SETTINGS)),
                {
                    "x-queue-type": "stream",
                    "x-max-length-bytes": SETTINGS_BYTES_MAX,
                    "x-stream-max-segment-size-bytes": SETTINGS_SEGMENT_BYTES,
                },
            ),
            BindQueue(
                str(names.queue(Kind.SETTINGS)),
                names.exchange(Exchange.TASKS),
                names.queue(Kind.SETTINGS).key,
            ),
        )
    )


def delay_ladder(names: Names) -> Plan:
    """The ladder of delay queues: level ``k`` holds a message for ``2**k`` units.

    The routing key carries one word per level, ``1`` to wait there and ``0`` to pass by, highest
    level first, and then the key of the queue that the message is for. Each level has one fixed
    time-to-live (only the head of a queue expires, so a per-message one would wait behind
    longer ones).
    """
    steps: list[Step] = []
    for level in range(DELAY_LEVELS):
        below = names.delay_exchange(level - 1) if level else names.exchange(Exchange.DUE)
        queue = str(names.queue(Kind.DELAY, str(level)))
        here = names.delay_exchange(level)
        passed = "*." * (DELAY_LEVELS - 1 - level)
        steps += [
            DeclareExchange(here, "topic"),
            DeclareQueue(
                queue,
                {
                    "x-queue-type": "quorum",
                    "x-message-ttl": DELAY_UNIT_MS << level,
                    "x-dead-letter-exchange": below,
                    # Both are needed for dead-lettering that is confirmed inside the broker.
                    "x-dead-letter-strategy": "at-least-once",
                    "x-overflow": "reject-publish",
                },
            ),
            BindQueue(queue, here, f"{passed}1.#"),
            BindExchange(below, here, f"{passed}0.#"),
        ]
    return Plan(tuple(steps))
