"""Backlog: what waits in the queues of one side of a task queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tq_broker.client.core import ClientCore
from tq_broker.model.composition import Member
from tq_broker.model.control import WorkerInfo
from tq_broker.model.figures import QueueFigures
from tq_broker.model.names import Kind, QueueName

Estate = Mapping[Member, QueueFigures]
"""The queues of one side of a task queue that are there."""


def counted(
    core: ClientCore,
    members: Iterable[Member],
    workers: Sequence[WorkerInfo],
    deadline: float,
) -> Estate:
    """The counts of those of ``members`` that are there.

    Args:
        workers: One of them may be an usher, or a dealer, which has tasks in sight that RabbitMQ
            does not count as waiting.

    Raises:
        BrokerUnavailable, DeadlineExceeded: there was no answer.
    """
    found = {}
    for one in members:
        stats = core.broker.stats(str(one.queue), deadline)
        if stats is None:
            continue
        in_sight = sum(_in_sight(worker, one.queue) for worker in workers)
        found[one] = QueueFigures(
            name=str(one.queue),
            kind=one.kind,
            target=one.target,
            way=one.way,
            backlog=stats.ready + in_sight,
            consumers=stats.consumers,
        )
    return found


def _in_sight(worker: WorkerInfo, queue: QueueName) -> int:
    """What ``worker`` has in hand of what waits in ``queue``."""
    of_kind = {
        Kind.ANTEROOM: worker.waiting,
        Kind.FAIR: worker.dealing,
        Kind.WORKFLOW_FAIR: worker.workflow_dealing,
    }
    return of_kind.get(queue.kind, {}).get(queue.parts[-1], 0)
