"""The tasks that a worker took lately: a traffic rule can be tried on them before it is set, and an
activity that is not here any more is found.

What is kept is what rules may ask of a task, no arguments; and of a few hundred tasks only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tq_broker.model.control import Recent, RecentTask
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.tasks import ActivityTask
from tq_broker.model.workflow_tasks import WorkflowTask
from tq_broker.queues import routing

KEPT_MAX = 500


@dataclass(frozen=True, slots=True)
class _Kept:
    task: RecentTask
    is_movable: bool
    """Traffic rules are asked about it."""


class RecentTasks:
    """Of one worker. Thread-safe, because a deque is."""

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque(maxlen=KEPT_MAX)

    def took(self, task: ActivityTask, now_ms: int) -> None:
        """An activity task has come."""
        recent = RecentTask(now_ms, routing.facts(task))
        self._kept.append(_Kept(recent, routing.is_movable(task)))

    def took_workflow(self, task: WorkflowTask, now_ms: int) -> None:
        """A workflow task has come; from its sticky queue, or pinned, it comes whatever the rules
        say, and is of no interest."""
        first = task.events[0] if task.events else None
        is_moved = not (task.sticky or task.version)
        if is_moved and isinstance(first, WorkflowExecutionStarted):
            facts = routing.workflow_facts(task, first, first.memo)
            self._kept.append(_Kept(RecentTask(now_ms, facts), True))

    def of(self, activity_id: str) -> list[RecentTask]:
        """The tasks of the activity with this id."""
        kept = self._kept.copy()
        return [one.task for one in kept if one.task.facts.id == activity_id]

    def told(self, worker_id: str) -> Recent:
        """The answer to who asks for those that a rule may move."""
        return Recent(worker_id, [one.task for one in self._kept.copy() if one.is_movable])
