"""Finding an activity: what can be known of one that was started with this id, and where it goes.

RabbitMQ keeps tasks, and no list of them. So who has it is asked of the workers; a queue is looked
through only when somebody says so, because that costs its tasks their places (see
`tq_broker.client.peeking`); and what waits for a retry or a delayed start cannot be found.
Activities of workflows are known to history, see ``tq-broker workflow describe``.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from tq_broker.client.core import ClientCore
from tq_broker.client.operations import PEEK_MAX, PING_WAIT_S, Operations
from tq_broker.client.peeking import PeekedTask, peeked
from tq_broker.clock import remaining
from tq_broker.exceptions import InvalidArgument
from tq_broker.model import control
from tq_broker.model.composition import begin_first
from tq_broker.model.control import FoundActivity, FoundTask, Hold
from tq_broker.model.names import check_task_queue, check_text
from tq_broker.model.tasks import (
    ActivityTask,
    dump_requires,
    dump_route,
    load_requires,
    load_route,
)
from tq_broker.queues import routing
from tq_broker.queues.routing import Asked


class ActivityState(str, enum.Enum):
    """What is known of an activity."""

    RUNNING = "running"
    COMPLETING = "completing"
    """Its code has returned: it is completed by somebody else, or its end is being told."""
    WAITING = "waiting"
    """In its queue, or at a worker for a slot or for leave to begin."""
    HELD_BACK = "held back"
    """By limits of its type or key."""
    PARKED = "parked"
    """It waits for an operator."""
    TAKEN = "taken"
    """A worker had it lately: it has ended, waits for its next attempt, or went elsewhere."""
    ENDED = "ended"
    """Its outcome is kept, for those who start its id again."""
    UNKNOWN = "unknown"
    """It waits in a queue, is delayed until a start or retry, has ended, or never was."""


_STATES = {
    Hold.RUNNING: ActivityState.RUNNING,
    Hold.OPEN: ActivityState.COMPLETING,
    Hold.IN_HAND: ActivityState.WAITING,
    Hold.HELD_BACK: ActivityState.HELD_BACK,
    Hold.TAKEN: ActivityState.TAKEN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityDescription:
    """What could be found out about an activity.

    Attributes:
        found: What workers have of it, or had.
        waits: It in its queue, if that was looked through.
        type, task_queue, attempt: As far as somebody has told; else empty, and 0.
        cancel_reason: Why its cancellation was asked for; ``None``: nobody has asked for it.
        steps: Where its task goes now and why, as the router says it; none if nobody has it.
    """

    id: str
    state: ActivityState
    type: str = ""
    task_queue: str = ""
    attempt: int = 0
    found: tuple[FoundActivity, ...] = ()
    waits: PeekedTask | None = None
    cancel_reason: str | None = None
    parked_reason: str = ""
    steps: tuple[str, ...] = ()


def describe_activity(
    core: ClientCore,
    activity_id: str,
    *,
    task_queue: str = "",
    search: int = 0,
    wait_s: float = PING_WAIT_S,
) -> ActivityDescription:
    """Find out what can be known about an activity; blocks.

    Args:
        task_queue: Its task queue, if it is known: then whether its outcome is kept is known, too.
        search: Look through so many of the first tasks of that task queue, 0 to 1000, if nobody
            else has it. They go to the back of their queues, as with `Operations.peek`.
        wait_s: How long workers may take to answer.

    Raises:
        InvalidArgument: there can be no such activity, or ``search`` is out of bounds.
        NotFound: there is no task queue of that name to search.
    """
    check_text("id", activity_id)
    if task_queue:
        check_task_queue(task_queue)
    if isinstance(search, bool) or not 0 <= search <= PEEK_MAX:
        raise InvalidArgument(f"search is {search!r}; it must be from 0 to {PEEK_MAX}")
    if search and not task_queue:
        raise InvalidArgument("search needs the task queue to look through")
    return _Search(core, activity_id, task_queue, search, wait_s).description()


class _Search:
    """One question, and what is asked for it."""

    def __init__(
        self, core: ClientCore, activity_id: str, task_queue: str, search: int, wait_s: float
    ) -> None:
        self._core = core
        self._operations = Operations(core)
        self._id = activity_id
        self._task_queue = task_queue
        self._search = search
        self._wait_s = wait_s
        self._found: tuple[FoundActivity, ...] = ()

    def description(self) -> ActivityDescription:
        if not self._operations.exists():
            return self._told(ActivityState.UNKNOWN, None)
        self._found = self._asked()
        tasks = [one for worker in self._found for one in worker.tasks]
        # What says more comes first among the ways to hold it.
        best = min(tasks, key=lambda one: list(Hold).index(one.hold), default=None)
        if best is not None and best.hold is not Hold.TAKEN:
            return self._told(_STATES[best.hold], best)
        if (queued := self._looked_through()) is not None:
            waits, task = queued
            return replace(self._told(ActivityState.WAITING, _as_found(task)), waits=waits)
        if (reason := self._parked()) is not None:
            return replace(self._told(ActivityState.PARKED, best), parked_reason=reason)
        if self._has_outcome(self._task_queue or (best.facts.task_queue if best else "")):
            return self._told(ActivityState.ENDED, best)
        return self._told(ActivityState.TAKEN if best else ActivityState.UNKNOWN, best)

    def _told(self, state: ActivityState, best: FoundTask | None) -> ActivityDescription:
        cancel = self._operations.settings().cancellation(self._id)
        return ActivityDescription(
            id=self._id,
            state=state,
            type=best.facts.type if best else "",
            task_queue=best.facts.task_queue if best else self._task_queue,
            attempt=best.attempt if best else 0,
            found=self._found,
            cancel_reason=None if cancel is None else cancel.reason,
            steps=() if best is None or best.hold is Hold.TAKEN else self._explained(best),
        )

    def _explained(self, task: FoundTask) -> tuple[str, ...]:
        asked = Asked(
            route=None if task.route is None else load_route(task.route),
            requires=None if task.requires is None else load_requires(task.requires),
        )
        return tuple(self._operations.traffic.explain(task.facts, asked, wait_s=self._wait_s))

    def _asked(self) -> tuple[FoundActivity, ...]:
        core, request = self._core, control.FindActivity(self._id)
        asked = core.ask_workers(request, FoundActivity, self._wait_s)
        answers = asked.result(remaining(core.clock, core.deadline()) + self._wait_s)
        return tuple(sorted((one for one in answers if one.tasks), key=lambda one: one.identity))

    def _looked_through(self) -> tuple[PeekedTask, ActivityTask] | None:
        if not self._search:
            return None
        tasks: list[ActivityTask] = []
        left = self._search
        for member in begin_first(self._operations.estate(self._task_queue)):
            deadline = self._core.deadline()
            if left <= 0:
                break
            seen = peeked(self._core, member, self._task_queue, left, deadline, tasks.append)
            left -= len(seen)
            for task in tasks:
                if task.activity_id == self._id:
                    return next(one for one in seen if one.id == self._id), task
            tasks.clear()
        return None

    def _parked(self) -> str | None:
        """Why it is parked; ``None`` if it is not, as far as the parked messages tell."""
        messages = self._operations.parked()
        ids = ((one.message.correlation_id, one.message_id, one.reason) for one in messages)
        return next((reason for *both, reason in ids if self._id in both), None)

    def _has_outcome(self, task_queue: str) -> bool:
        if not task_queue:
            return False
        queue = self._core.names.claim(task_queue, self._id)
        stats = self._core.broker.stats(str(queue), self._core.deadline())
        return stats is not None and stats.ready > 0


def _as_found(task: ActivityTask) -> FoundTask:
    return FoundTask(
        hold=Hold.IN_HAND,
        facts=routing.facts(task),
        attempt=task.attempt,
        route=None if task.route is None else dump_route(task.route),
        requires=None if task.requires is None else dump_requires(task.requires),
    )
