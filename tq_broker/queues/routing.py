"""Where a task goes, and why: one pure router for client, worker and history.

Rules of this file: call options have been laid over decorator options, and those over what is
inherited, before a task exists; so what is decided here is *which queue* a task takes now, and what
becomes of it when that queue's workers are gone. What says a host or process is meant so, and no
traffic rule moves it; and a task that came back from a rule's target stays. Every answer carries
its reason, in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tq_broker.common import OnGone, TargetKind, to_ms
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments, Line, shown
from tq_broker.model.detours import Detour
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.rule_table import NO_MEMO, Facts, RuleTable
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.tasks import ActivityTask
from tq_broker.model.workflow_tasks import WorkflowTask

WAIT_STEP_MS = 500
"""Pause between two looks for a target that is gone and waited for."""

ACTIVITY_SIDE = TaskKind.ACTIVITY.value
_KINDS = {TargetKind.HOST: Kind.HOST, TargetKind.PROCESS: Kind.PROCESS}


@dataclass(frozen=True, slots=True)
class Destination:
    """A queue, and the reason for it.

    ``private`` queues exist only while their target lives: it must be asked to serve the queue
    before anything is put there. ``rule`` is the traffic rule that decided, if one did, and
    ``detour`` what its queue is for.
    """

    queue: QueueName
    why: str
    private: bool = False
    rule: TrafficRule | None = None
    detour: Detour | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """The activity fails now, for this reason."""

    why: str


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Try the same destination again after the delay."""

    delay_ms: int
    why: str


def may_be_moved(task: ActivityTask) -> bool:
    """Whether traffic rules are asked about ``task`` at all."""
    return task.route is None and not task.rule and not task.fell_back


def facts(task: ActivityTask, memo: Mapping[str, bytes] = NO_MEMO) -> Facts:
    """What traffic rules may know of ``task``; ``memo`` is that of its workflow."""
    return Facts(
        kind=TaskKind.ACTIVITY,
        type=task.activity_type,
        task_queue=task.task_queue,
        id=task.activity_id,
        headers=task.headers,
        priority=task.priority,
        memo=memo,
        once=task.retry_policy.maximum_attempts == 1,
    )


def workflow_facts(
    task: WorkflowTask,
    headers: Mapping[str, str],
    priority: int | None,
    memo: Mapping[str, bytes],
) -> Facts:
    """What traffic rules may know of a workflow task."""
    return Facts(
        kind=TaskKind.WORKFLOW,
        type=task.workflow_type,
        task_queue=task.task_queue,
        id=task.run.workflow_id,
        headers=headers,
        priority=priority,
        memo=memo,
    )


def by_rule(names: Names, of: Facts, rules: RuleTable, now_ms: int) -> Destination | None:
    """Where a traffic rule sends a task; ``None`` if it takes its own task queue."""
    rule = rules.choose(of, now_ms)
    if rule is None:
        return None
    task_queue = rule.to_task_queue or of.task_queue
    if task_queue == of.task_queue and not rule.to_host:
        return None
    why = f"traffic rule {rule.id!r} sends it to {rule.target}"
    if rule.fallback:
        detour = Detour(of.kind, task_queue, rule.to_host, of.task_queue, rule.take_within_ms)
        return Destination(detour.queue(names), why, private=True, rule=rule, detour=detour)
    is_activity = of.kind is TaskKind.ACTIVITY
    queue = names.activity(task_queue) if is_activity else names.workflow(task_queue)
    return Destination(queue, why, rule=rule)


def explain_version(of: Facts, task_queue: str, deployments: Deployments) -> list[str]:
    """Which version of the workers of ``task_queue`` takes a task that is not pinned, for people;
    of an activity of a workflow ``of.id`` has to be that workflow's."""
    line = deployments.line(of.kind.value, task_queue)
    if line == Line():
        return []
    ramping = ""
    if line.ramping is not None:
        ramping = f", and {shown(line.ramping)!r} takes {line.percent:g} % by the hash of the id"
    target = deployments.target(of.kind.value, task_queue, of.id)
    return [
        f"of the versions there {shown(line.plain)!r} is current{ramping}; so it goes to"
        f" {shown(target)!r}, unless its run is pinned to another"
    ]


def explain(names: Names, of: Facts, rules: RuleTable, now_ms: int) -> list[str]:
    """How the router comes to what `by_rule` says, step by step, for people."""
    steps = [f"the task queue of {of.kind.value} {of.type!r} is {of.task_queue!r}"]
    if not rules:
        return [*steps, "no traffic rules are in force; it goes there"]
    verdicts = rules.explain(of, now_ms)
    steps += [f"rule {one.rule.id!r} (order {one.rule.order}): {one.why}" for one in verdicts]
    to = by_rule(names, of, rules, now_ms)
    if to is not None and to.rule is not None:
        rule = to.rule
        if rule.by or rule.reason:
            steps.append(f"set by {rule.by or '?'}: {rule.reason or 'no reason given'}")
        steps.append(f"it goes to {rule.target}, queue {to.queue}")
        if rule.fallback:
            steps.append(
                f"if nobody is there, or takes it within {rule.take_within_ms / 1000:g} s, it comes"
                f" back to {of.task_queue!r}, and no rule is asked again"
            )
    elif verdicts and verdicts[-1].matches:
        steps.append("which is where it is; it goes there")
    else:
        steps.append(f"no rule decides; it goes to {of.task_queue!r}")
    return steps


def destination(
    names: Names, task: ActivityTask, deployments: Deployments = NO_DEPLOYMENTS
) -> Destination:
    """The queue for ``task``, as if everybody lived."""
    route = task.route
    if route is None:
        return unpinned(names, task, deployments)
    if route.kind is TargetKind.VERSION:
        return Destination(
            names.version(ACTIVITY_SIDE, route.target, task.task_queue),
            f"version {route.target!r} of task queue {task.task_queue!r}",
        )
    return Destination(
        names.queue(_KINDS[route.kind], route.target, task.task_queue),
        f"route to {route.kind.value} {route.target!r} of task queue {task.task_queue!r}",
        private=True,
    )


def unpinned(names: Names, task: ActivityTask, deployments: Deployments) -> Destination:
    """The queue for ``task``, which takes whatever version is current, or ramping."""
    # Activities of a run go where the run goes.
    id = task.activity_id if task.workflow is None else task.workflow.workflow_id
    queue = deployments.queue(names, ACTIVITY_SIDE, task.task_queue, id)
    is_ramped = queue.kind is Kind.RAMPING
    what = "the ramping version of task queue" if is_ramped else "task queue"
    return Destination(queue, f"{what} {task.task_queue!r}")


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
