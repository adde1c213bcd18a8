"""Backlog: what waits in the shared queues of one side of a task queue, counted together."""

from __future__ import annotations

from collections.abc import Container

from tq_broker.client.core import ClientCore
from tq_broker.model.names import ORDERED, QueueName
from tq_broker.model.settings import side_of
from tq_broker.queues.broker import QueueStats


def stats_of(
    core: ClientCore,
    plain: QueueName,
    prioritized: Container[tuple[str, str]],
    deadline: float,
) -> QueueStats | None:
    """The counts of a task queue; ``None`` if it does not exist.

    Args:
        plain: Its plain queue, which says the side; or that of what requires something.
        prioritized: Sides and task queues that have a priority queue. Then the consumers are that
            one's: those of the plain queue only bring its tasks into order.
    """
    stats = core.broker.stats(str(plain), deadline)
    if stats is None or plain.kind not in ORDERED:
        return stats
    if (side_of(plain), plain.parts[0]) not in prioritized:
        return stats
    in_order = core.broker.stats(str(core.names.priority(plain)), deadline)
    if in_order is None:
        return stats
    return QueueStats(stats.ready + in_order.ready, in_order.consumers)
