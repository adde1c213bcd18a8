"""What is found of an activity at a worker, as it tells who asks. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tq_broker.model.control import FoundTask, Hold, RecentTask
from tq_broker.model.tasks import ActivityTask, dump_requires, dump_route
from tq_broker.queues import routing
from tq_broker.worker.attempt import Attempt


def open_attempt(attempt: Attempt) -> FoundTask:
    """One that has begun."""
    hold = Hold.RUNNING if attempt.code_running else Hold.OPEN
    return _found(attempt.task, hold, attempt.started_ms)


def in_hand(task: ActivityTask) -> FoundTask:
    """One that waits at the worker."""
    return _found(task, Hold.IN_HAND)


def held_back(task: ActivityTask) -> FoundTask:
    """One that waits for limits of its type or key."""
    return _found(task, Hold.HELD_BACK)


def taken(tasks: Iterable[RecentTask]) -> list[FoundTask]:
    """The last one that was taken, if any was; newest last."""
    last = list(tasks)[-1:]
    return [FoundTask(hold=Hold.TAKEN, facts=one.facts, at_ms=one.at_ms) for one in last]


def _found(task: ActivityTask, hold: Hold, at_ms: int = 0) -> FoundTask:
    return FoundTask(
        hold=hold,
        facts=routing.facts(task),
        attempt=task.attempt,
        at_ms=at_ms,
        route=None if task.route is None else dump_route(task.route),
        requires=None if task.requires is None else dump_requires(task.requires),
    )
