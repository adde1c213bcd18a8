"""The tasks that a worker took lately: a traffic rule can be tried on them before it is set, and an
activity that is not here any more is found.

What is kept is what rules may ask of a task, no arguments; and of a few hundred tasks only.
"""

from __future__ import annotations

from collections import deque

import msgspec

from tq_broker.model.control import Recent, RecentTask
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.tasks import ActivityTask
from tq_broker.model.workflow_tasks import WorkflowTask
from tq_broker.queues import routing

KEPT_MAX = 500


class RecentTasks:
    """Of one worker. Thread-safe, because deques are."""

    def __init__(self) -> None:
        self._activities: deque[tuple[int, ActivityTask]] = deque(maxlen=KEPT_MAX)
        """When they came, and without their arguments. Nearly always nobody asks for more."""
        self._workflows: deque[RecentTask] = deque(maxlen=KEPT_MAX)

    def took(self, task: ActivityTask, now_ms: int) -> None:
        """An activity task has come."""
        self._activities.append((now_ms, msgspec.structs.replace(task, body=b"")))

    def took_workflow(self, task: WorkflowTask, now_ms: int) -> None:
        """A workflow task has come; from its sticky queue, or pinned, it comes whatever the rules
        say, and is of no interest."""
        first = task.events[0] if task.events else None
        is_moved = not (task.sticky or task.version)
        if is_moved and isinstance(first, WorkflowExecutionStarted):
            facts = routing.workflow_facts(task, first, first.memo)
            self._workflows.append(RecentTask(now_ms, facts))

    def of(self, activity_id: str) -> list[RecentTask]:
        """The tasks of the activity with this id."""
        kept = self._activities.copy()
        return [_recent(at, task) for at, task in kept if task.activity_id == activity_id]

    def told(self, worker_id: str) -> Recent:
        """The answer to who asks for those that a rule may move, oldest first."""
        kept = self._activities.copy()
        movable = [_recent(at, task) for at, task in kept if routing.is_movable(task)]
        tasks = sorted([*movable, *self._workflows.copy()], key=lambda one: one.at_ms)
        return Recent(worker_id, tasks[-KEPT_MAX:])


def _recent(at_ms: int, task: ActivityTask) -> RecentTask:
    return RecentTask(at_ms, routing.facts(task))
