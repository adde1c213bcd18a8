"""Composition: which queues of RabbitMQ one side of a task queue consists of, and what they hold.

=============================== ==================================================================
plain, priority                 tasks for any worker: one of both is used, or both for a while
fair, lane                      the same, where they wait for the share of their fairness keys
ramping, version                tasks for workers of a deployment version
capable                         tasks for workers that have certain capabilities
anteroom, admitted              tasks that limits of their type or key hold back, and those let in
host, process, niche            tasks for some workers only; they exist while these live
detour                          tasks that a traffic rule has lent to other workers; they come home
=============================== ==================================================================

Rules of this file:

* figures, verbs and the reclaimer ask here and have no list of their own. A new kind of queue gets
  a line in `_WAYS`, a place in `members`, and in `_RANKS` if it is not begun with most others;
* all of these queues hold tasks. What limits are kept with (rosters, permits, banks, ledgers) holds
  none, stays as long as the limits are remembered, and is not listed;
* what exists is not known here, only what may.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from tq_broker.model.capabilities import in_words
from tq_broker.model.control import Serve
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.detours import Detour
from tq_broker.model.names import ADMITTED, PLAIN, REQUIRING, Kind, Names, QueueName, requirements
from tq_broker.model.settings import ACTIVITY_SIDE, side_of


class Way(str, enum.Enum):
    """How tasks come to their workers. Those that come the same way are in one order, but for their
    priorities. The value is the word on the wire."""

    SHARED = "shared"
    VERSION = "version"
    CAPABLE = "capable"
    LIMITED = "limited"
    """They wait, or have waited, for limits of their type or key."""
    PRIVATE = "private"
    DETOUR = "detour"


_WAYS = {
    Kind.ACTIVITY: Way.SHARED,
    Kind.WORKFLOW: Way.SHARED,
    Kind.PRIORITY: Way.SHARED,
    Kind.WORKFLOW_PRIORITY: Way.SHARED,
    Kind.FAIR: Way.SHARED,
    Kind.WORKFLOW_FAIR: Way.SHARED,
    Kind.LANE: Way.SHARED,
    Kind.RAMPING: Way.VERSION,
    Kind.VERSION: Way.VERSION,
    Kind.CAPABLE: Way.CAPABLE,
    Kind.WORKFLOW_CAPABLE: Way.CAPABLE,
    Kind.ANTEROOM: Way.LIMITED,
    Kind.ADMITTED: Way.LIMITED,
    Kind.ADMITTED_PRIORITY: Way.LIMITED,
    Kind.HOST: Way.PRIVATE,
    Kind.PROCESS: Way.PRIVATE,
    Kind.NICHE: Way.PRIVATE,
    Kind.WORKFLOW_NICHE: Way.PRIVATE,
    Kind.DETOUR: Way.DETOUR,
}
_FLEETING = {Way.PRIVATE, Way.DETOUR}
_RANKS = {**dict.fromkeys((*PLAIN, *ADMITTED), 0), Kind.ANTEROOM: 2}


def way_of(queue: QueueName) -> Way | None:
    """The way on which a task comes through ``queue``; ``None`` for a sticky queue, whose tasks are
    of any task queue, and for what holds no tasks."""
    return _WAYS.get(queue.kind)


@dataclass(frozen=True, slots=True)
class Member:
    """One queue of a task queue.

    Attributes:
        target: Whom its tasks are for: a version, capabilities, a host, a worker, or whom a rule
            says; empty where any worker may have them.
    """

    queue: QueueName
    target: str = ""

    @property
    def way(self) -> Way:
        """How its tasks come to their workers."""
        return _WAYS[self.queue.kind]

    @property
    def kind(self) -> str:
        """What it is for, in a word."""
        return self.queue.kind.value

    @property
    def is_fleeting(self) -> bool:
        """Whether it exists only while somebody serves it: what is in it goes elsewhere by itself
        when nobody does."""
        return self.way in _FLEETING

    @property
    def has_passes(self) -> bool:
        """Whether its tasks may have a pass, which their usher misses when they vanish."""
        return self.queue.kind in ADMITTED or self.way not in (Way.SHARED, Way.LIMITED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a task queue, by the settings log and by workers.

    Attributes:
        prioritized: Sides and task queues whose tasks wait in priority queues.
        fair: Those whose tasks wait for their fair shares before.
        capable: Sets of capabilities that its tasks require.
        has_parts: Types or keys of it have limits, or had.
        served: What workers say that they serve for some of its tasks only.
    """

    prioritized: Container[tuple[str, str]] = frozenset()
    fair: Container[tuple[str, str]] = frozenset()
    capable: Sequence[tuple[str, ...]] = ()
    deployments: Deployments = NO_DEPLOYMENTS
    has_parts: bool = False
    served: Sequence[Serve] = ()


def members(names: Names, side: str, task_queue: str, known: Known) -> list[Member]:
    """The queues of one side of a task queue, of which the plain one comes first."""
    return [
        *shared(names, side, task_queue, known.prioritized, known.fair),
        *_of_limits(names, side, task_queue, known),
        *_of_versions(names, side, task_queue, known.deployments),
        *_of_capabilities(names, side, task_queue, known.capable),
        *_of_few(names, side, task_queue, known.served),
    ]


def shared(
    names: Names,
    side: str,
    task_queue: str,
    prioritized: Container[tuple[str, str]],
    fair: Container[tuple[str, str]] = frozenset(),
) -> list[Member]:
    """The plain queue, and, if there are any, those in which tasks wait for their fair shares, and
    the priority queue; the one from which they are begun is the last."""
    plain = names.queue(Kind(side), task_queue)
    found = [Member(plain)]
    if (side, task_queue) in fair:
        found += map(Member, names.unshared(plain))
    return [*found, Member(names.priority(plain))] if (side, task_queue) in prioritized else found


def begin_first(found: Iterable[Member]) -> list[Member]:
    """The same in the order in which their tasks are begun, as far as there is one: what is in a
    plain queue beside a priority queue comes after it, and what is held back comes last."""
    return sorted(found, key=lambda one: _RANKS.get(one.queue.kind, 1))


def counterpart(
    names: Names, member: Member, task_queue: str, deployments: Deployments
) -> QueueName | None:
    """Where a task that waits in ``member`` waits in another task queue: for the same version or
    capabilities; what a ramp or a limit says is said anew there. ``None``: it stays, because it is
    for some workers only, or for a version that does not serve the other one."""
    queue = member.queue
    if member.is_fleeting:
        return None
    if queue.kind in REQUIRING:
        return names.capable(task_queue, requirements(queue), REQUIRING[queue.kind])
    if queue.kind is Kind.VERSION:
        side, version, _ = queue.parts
        is_served = deployments.serves(version, side, task_queue)
        return names.version(side, version, task_queue) if is_served else None
    return names.queue(Kind(side_of(queue)), task_queue)


def _of_limits(names: Names, side: str, task_queue: str, known: Known) -> list[Member]:
    if side != ACTIVITY_SIDE or not known.has_parts:
        return []
    found = [Member(names.queue(Kind.ADMITTED, task_queue))]
    if (side, task_queue) in known.prioritized:
        found.append(Member(names.queue(Kind.ADMITTED_PRIORITY, task_queue)))
    return [*found, Member(names.queue(Kind.ANTEROOM, task_queue))]


def _of_versions(
    names: Names, side: str, task_queue: str, deployments: Deployments
) -> list[Member]:
    line = deployments.line(side, task_queue)
    target = line.of_ramping_queue
    ramping = [Member(names.ramping(side, task_queue), target)] if line.ramped else []
    versions = sorted(deployments.versions(side, task_queue))
    return ramping + [Member(names.version(side, one, task_queue), one) for one in versions]


def _of_capabilities(
    names: Names, side: str, task_queue: str, capable: Iterable[tuple[str, ...]]
) -> list[Member]:
    return [Member(names.capable(task_queue, one, Kind(side)), in_words(one)) for one in capable]


def _of_few(names: Names, side: str, task_queue: str, served: Iterable[Serve]) -> list[Member]:
    found = {}
    for one in served:
        if one.detour is not None:
            if one.detour.kind.value == side and one.detour.home == task_queue:
                queue = one.detour.queue(names)
                found[queue] = Member(queue, _lent_to(one.detour))
            continue
        queue = QueueName.parse(one.queue)
        if side == side_of(queue) and queue.task_queue == task_queue:
            target = queue.parts[0] if one.niche is None else str(one.niche)
            found[queue] = Member(queue, target)
    return sorted(found.values(), key=lambda one: (one.kind, one.target))


def _lent_to(detour: Detour) -> str:
    host = f" on host {detour.host}" if detour.host else ""
    return f"{detour.task_queue}{host}"
