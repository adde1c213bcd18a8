"""Purging: dropping what waits in a queue of a task queue.

An usher or a dealer is made to stand aside for it, so that RabbitMQ has all that waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tq_broker.client.core import ClientCore
from tq_broker.client.transfer import Job, Transfer, Verb
from tq_broker.clock import remaining
from tq_broker.exceptions import DeadlineExceeded
from tq_broker.model import control
from tq_broker.model.composition import Member
from tq_broker.model.message import Publication
from tq_broker.model.names import UNFAIR, Exchange, Kind, QueueName

ASIDE_MS = control.ASIDE_MS_MAX
"""Who stands aside comes back after that by itself, if whoever asked for it was killed."""
LOOK_EVERY_S = 0.1
_WATCHED = {Kind.ANTEROOM, *UNFAIR}
"""Usher and dealers consume these, and have in hand what is not ready there."""


def purged(core: ClientCore, member: Member, *, has_usher: bool) -> int:
    """Drop what waits in ``member``, for ever; returns how many.

    Args:
        has_usher: An usher may have let tasks in. Then they are taken one by one: it is told of
            each, and else would count them as running.

    Raises:
        BrokerUnavailable, DeadlineExceeded: perhaps not all were dropped.
    """
    deadline = core.deadline()
    if not (has_usher and member.has_passes):
        return core.broker.purge(str(member.queue), deadline)
    stats = core.broker.stats(str(member.queue), deadline)
    if stats is None or not stats.ready:
        return 0
    job = Job(verb=Verb.DROP, source=member.queue, target=None, id=core.new_id())
    return Transfer(core, job, None).run({member.queue: stats.ready}).done


@contextmanager
def aside(core: ClientCore, task_queue: str, members: Iterable[Member]) -> Iterator[None]:
    """Inside the block RabbitMQ has all that waits in a task queue for limits of types and keys, or
    for its fair share, and its usher and its dealer have nothing in sight; up to a minute.

    Raises:
        DeadlineExceeded: they did not do so in time; the block was not entered.
    """
    queues = [one.queue for one in members if one.queue.kind in _WATCHED]
    if not any(_is_watched(core, one) for one in queues):
        yield
        return
    _ask(core, control.StandAside(task_queue, ASIDE_MS))
    try:
        deadline = core.deadline()
        while any(_is_watched(core, one) for one in queues):
            if not remaining(core.clock, deadline):
                raise DeadlineExceeded(
                    f"who has tasks of {task_queue!r} did not stand aside in time"
                )
            core.clock.sleep(LOOK_EVERY_S)
        core.clock.sleep(LOOK_EVERY_S)  # what it gives back comes behind its cancel
        yield
    finally:
        _ask(core, control.StandAside(task_queue, 0))


def _is_watched(core: ClientCore, anteroom: QueueName) -> bool:
    stats = core.broker.stats(str(anteroom), core.deadline())
    return stats is not None and stats.consumers > 0


def _ask(core: ClientCore, request: control.StandAside) -> None:
    message = control.message(request, core.new_id())
    exchange = core.names.exchange(Exchange.CONTROL)
    publication = Publication(exchange, control.EVERY_WORKER, message)
    # Nobody who answers: then nobody is in the way, or the wait tells.
    core.sender.send(publication, (), core.deadline(), lambda error: None)
