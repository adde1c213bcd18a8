"""Where a task goes, and why: one pure router for client and worker.

Rules of this file: call options have been laid over decorator options before a task exists, so
what is decided here is only *which queue of its task queue* a task takes now, and what becomes
of it when that queue's workers are gone. Every answer carries its reason, in words.
"""

from __future__ import annotations

from dataclasses import dataclass

from tq_broker.common import OnGone, TargetKind, to_ms
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.tasks import ActivityTask

WAIT_STEP_MS = 500
"""Pause between two looks for a target that is gone and waited for."""

_KINDS = {TargetKind.HOST: Kind.HOST, TargetKind.PROCESS: Kind.PROCESS}


@dataclass(frozen=True, slots=True)
class Destination:
    """A queue, and the reason for it.

    ``private`` queues exist only while their target lives: it must be asked to serve the queue
    before anything is put there.
    """

    queue: QueueName
    why: str
    private: bool = False


@dataclass(frozen=True, slots=True)
class Fail:
    """The activity fails now, for this reason."""

    why: str


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Try the same destination again after the delay."""

    delay_ms: int
    why: str


def destination(names: Names, task: ActivityTask) -> Destination:
    """The queue for ``task``, as if everybody lived."""
    route = task.route
    if route is None:
        return Destination(names.activity(task.task_queue), f"task queue {task.task_queue!r}")
    return Destination(
        names.queue(_KINDS[route.kind], route.target, task.task_queue),
        f"route to {route.kind.value} {route.target!r} of task queue {task.task_queue!r}",
        private=True,
    )


def when_gone(names: Names, task: ActivityTask, now_ms: int) -> Destination | Fail | LookAgain:
    """What becomes of a routed ``task`` whose target is gone at ``now_ms``.

    With `OnGone.WAIT` the time runs from the start of the activity.
    """
    route = task.route
    assert route is not None, "only a routed task has a target that can be gone"
    gone = (
        f"no living worker serves task queue {task.task_queue!r}"
        f" on {route.kind.value} {route.target!r}"
    )
    if route.on_gone is OnGone.FALL_BACK:
        queue = names.activity(task.task_queue)
        return Destination(queue, f"{gone}; fell back to the task queue")
    if route.on_gone is OnGone.WAIT and route.wait is not None:
        left_ms = task.scheduled_ms + to_ms(route.wait) - now_ms
        if left_ms > 0:
            return LookAgain(min(WAIT_STEP_MS, left_ms), f"{gone}; waits {left_ms} ms more")
        return Fail(f"{gone}, and did not within {route.wait}")
    return Fail(gone)
