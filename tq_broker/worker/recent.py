"""The tasks that a worker took lately: a traffic rule can be tried on them before it is set.

What is kept is what rules may ask of a task, no arguments; and of a few hundred tasks only.
"""

from __future__ import annotations

from collections import deque

from tq_broker.model.control import Recent, RecentTask
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.rule_table import Facts
from tq_broker.model.tasks import ActivityTask
from tq_broker.model.workflow_tasks import WorkflowTask
from tq_broker.queues import routing

KEPT_MAX = 500


class RecentTasks:
    """Of one worker. Thread-safe, because a deque is."""

    def __init__(self) -> None:
        self._kept: deque[tuple[int, Facts]] = deque(maxlen=KEPT_MAX)

    def took(self, task: ActivityTask, now_ms: int) -> None:
        """An activity task has come; which is of no interest if no rule ever moves it."""
        if routing.is_movable(task):
            self._kept.append((now_ms, routing.facts(task)))

    def took_workflow(self, task: WorkflowTask, now_ms: int) -> None:
        """A workflow task has come; from its sticky queue, or pinned, it comes whatever the rules
        say."""
        first = task.events[0] if task.events else None
        is_moved = not (task.sticky or task.version)
        if is_moved and isinstance(first, WorkflowExecutionStarted):
            facts = routing.workflow_facts(task, first, first.memo)
            self._kept.append((now_ms, facts))

    def of(self, activity_id: str) -> list[RecentTask]:
        """The tasks of the activity with this id."""
        kept = self._kept.copy()
        return [RecentTask(at_ms, facts) for at_ms, facts in kept if facts.id == activity_id]

    def told(self, worker_id: str) -> Recent:
        """The answer to who asks for them."""
        return Recent(worker_id, [RecentTask(at_ms, facts) for at_ms, facts in self._kept.copy()])
