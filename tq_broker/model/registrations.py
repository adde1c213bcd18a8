"""Who has registered what: the types of a task queue's workers, compared. Pure.

All workers of a task queue should have the same types, because a task goes to any of them. During
an upgrade they differ for a while, which is shown and tolerated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tq_broker.model.control import WorkerInfo
from tq_broker.model.names import QueueName, requirements
from tq_broker.model.sessions import SESSION_TYPE, session_task_queue
from tq_broker.model.settings import ACTIVITY_SIDE, WORKFLOW_SIDE, side_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """The types of one side of a task queue.

    Attributes:
        everywhere: Types that all of its workers have.
        mismatches: Types that only some have, with the identities of those that lack them.
            Deployment versions differ on purpose: only workers of the same one are compared.
    """

    everywhere: tuple[str, ...]
    mismatches: tuple[tuple[str, tuple[str, ...]], ...]


def serving(workers: Iterable[WorkerInfo], task_queue: str, side: str) -> tuple[WorkerInfo, ...]:
    """Those that take tasks of one side of ``task_queue``, which may be one of sessions."""
    return tuple(
        worker
        for worker in workers
        if (task_queue in worker.task_queues and (types(worker, side) or _any(worker, side)))
        or (side == ACTIVITY_SIDE and _holds_sessions(worker, task_queue))
    )


def _holds_sessions(worker: WorkerInfo, task_queue: str) -> bool:
    """Whether ``task_queue`` is one on which sessions of ``worker`` are created."""
    return worker.session_slots > 0 and task_queue in map(session_task_queue, worker.task_queues)


def capable_of(workers: Iterable[WorkerInfo], queue: QueueName) -> tuple[WorkerInfo, ...]:
    """Those that take the tasks of ``queue``, which all require the same capabilities."""
    needed = set(requirements(queue))
    found = serving(workers, queue.parts[-1], side_of(queue))
    return tuple(worker for worker in found if needed <= set(worker.capabilities))


def types(worker: WorkerInfo, side: str) -> tuple[str, ...]:
    """The types that ``worker`` takes tasks of, on one side."""
    if side == WORKFLOW_SIDE:
        return tuple(worker.workflows)
    return () if worker.only_local else tuple(worker.activities)


def _any(worker: WorkerInfo, side: str) -> bool:
    return side == ACTIVITY_SIDE and worker.any_activity and not worker.only_local


def serves(worker: WorkerInfo, activity_type: str) -> bool:
    """Whether ``worker`` can run activities of that type."""
    return activity_type in types(worker, ACTIVITY_SIDE) or _any(worker, ACTIVITY_SIDE)


def registered(
    workers: Iterable[WorkerInfo], task_queue: str, activity_type: str
) -> tuple[bool | None, tuple[str, ...]]:
    """Whether anybody on ``task_queue`` registers that type, and the types that are known there;
    ``None``: nobody of ``workers`` serves it, so it cannot be told."""
    there = serving(workers, task_queue, ACTIVITY_SIDE)
    known = sorted({name for worker in there for name in types(worker, ACTIVITY_SIDE)})
    is_known = any(
        serves(worker, activity_type)
        or (activity_type == SESSION_TYPE and _holds_sessions(worker, task_queue))
        for worker in there
    )
    return is_known if there else None, tuple(known)


def compare(workers: Sequence[WorkerInfo], side: str) -> Comparison:
    """Compare the workers of one side of a task queue.

    One that serves every type lacks none.
    """
    known = {(one.deployment_version, name) for one in workers for name in types(one, side)}
    everywhere, mismatches = [], []
    for name in sorted({name for _, name in known}):
        lacking = [one for one in workers if name not in types(one, side) and not _any(one, side)]
        if not lacking:
            everywhere.append(name)
        # By what others of its own version have.
        who = tuple(one.identity for one in lacking if (one.deployment_version, name) in known)
        if who:
            mismatches.append((name, who))
    return Comparison(tuple(everywhere), tuple(mismatches))
