"""Where a task goes, and why: one pure router for client, worker and history.

Rules of this file: call options have been laid over decorator options, and those over what is
inherited, before a task exists; so what is decided here is *which queue* a task takes now, and what
becomes of it when that queue's workers are gone. What says a host or process is meant so, and no
traffic rule moves it; and a task that came back from a rule's target stays. Every answer carries
its reason, in words.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass

import msgspec

from tq_broker.common import OnGone, Requires, Route, TargetKind, to_ms
from tq_broker.model.capabilities import Niche, in_words
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments, Line, shown
from tq_broker.model.detours import Detour
from tq_broker.model.envelope import AMQP_PRIORITY_DEFAULT
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.names import ORDERED, Kind, Names, QueueName
from tq_broker.model.rule_table import NO_MEMO, Facts, RuleTable
from tq_broker.model.rules import TaskKind, TrafficRule, matching
from tq_broker.model.sessions import SESSION_TYPE
from tq_broker.model.tasks import ActivityTask, load_requires, load_route
from tq_broker.model.workflow_tasks import RunKey, WorkflowTask

WAIT_STEP_MS = 500
"""Pause between two looks for a target that is gone and waited for."""

ACTIVITY_SIDE, WORKFLOW_SIDE = TaskKind.ACTIVITY.value, TaskKind.WORKFLOW.value
_KINDS = {TargetKind.HOST: Kind.HOST, TargetKind.PROCESS: Kind.PROCESS}


@dataclass(frozen=True, slots=True)
class Destination:
    """A queue, and the reason for it.

    ``private`` queues exist only while their target lives: it must be asked to serve the queue
    before anything is put there. ``rule`` is the traffic rule that decided, if one did, and
    ``detour`` what its queue is for; ``niche`` is who is meant by a private queue of that kind.
    """

    queue: QueueName
    why: str
    private: bool = False
    rule: TrafficRule | None = None
    detour: Detour | None = None
    niche: Niche | None = None


@dataclass(frozen=True, slots=True)
class Fail:
    """The activity, or the run, fails now, for this reason."""

    why: str


@dataclass(frozen=True, slots=True)
class FallBack:
    """It goes where it would go if it did not ask for what is gone."""

    why: str


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Try the same destination again after the delay."""

    delay_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a task says itself about where it must run, beside its task queue."""

    route: Route | None = None
    requires: Requires | None = None

    @property
    def is_movable(self) -> bool:
        """Whether traffic rules are asked about the task."""
        return self.route is None and (self.requires is None or self.requires.is_patient)

    @property
    def fallen(self) -> Asked:
        """What is left of it after it has fallen back once: who falls back from a host still needs
        what it requires."""
        return Asked(requires=None if self.route is None else self.requires)


NOTHING_ASKED = Asked()


def asked_by(started: WorkflowExecutionStarted) -> Asked:
    """What a run that was ``started`` so asks for. Raises `Malformed`."""
    if not started.is_bound:
        return NOTHING_ASKED
    return Asked(
        None if started.route is None else load_route(started.route),
        None if started.requires is None else load_requires(started.requires),
    )


def still_asked(task: WorkflowTask, started: WorkflowExecutionStarted) -> Asked:
    """What a run that was ``started`` so asks for ``task``, after it has fallen back as often as it
    has. Raises `Malformed`."""
    asked = asked_by(started)
    for _ in task.fell_back:
        asked = asked.fallen
    return asked


def may_be_moved(task: ActivityTask) -> bool:
    """Whether traffic rules are asked about ``task`` now."""
    return is_movable(task) and not (task.rule or task.fell_back or task.pass_mark)


def is_movable(task: ActivityTask) -> bool:
    """Whether traffic rules are asked about ``task`` at all, at the beginning of each attempt."""
    if task.activity_type == SESSION_TYPE:
        return False  # nobody else has slots for sessions of its task queue
    return Asked(task.route, task.requires).is_movable


def facts(task: ActivityTask, memo: Mapping[str, bytes] = NO_MEMO) -> Facts:
    """What traffic rules may know of ``task``; ``memo`` is that of its workflow."""
    return Facts(
        kind=TaskKind.ACTIVITY,
        type=task.activity_type,
        task_queue=task.task_queue,
        id=task.activity_id,
        headers=task.headers,
        priority=task.priority,
        fairness_key=task.fairness_key,
        memo=memo,
        once=task.retry_policy.maximum_attempts == 1,
        capabilities=() if task.requires is None else task.requires.names,
    )


def workflow_facts(
    task: WorkflowTask, started: WorkflowExecutionStarted, memo: Mapping[str, bytes]
) -> Facts:
    """What traffic rules may know of a workflow task, whose run was ``started`` so."""
    requires = asked_by(started).requires
    return Facts(
        kind=TaskKind.WORKFLOW,
        type=task.workflow_type,
        task_queue=task.task_queue,
        id=task.run.workflow_id,
        headers=started.headers,
        priority=started.priority,
        fairness_key=started.fairness_key,
        memo=memo,
        capabilities=() if requires is None else requires.names,
    )


def by_rule(names: Names, of: Facts, rules: RuleTable, now_ms: int) -> Destination | None:
    """Where a traffic rule sends a task; ``None`` if it takes its own task queue."""
    rule = rules.choose(of, now_ms)
    if rule is None:
        return None
    task_queue = rule.to_task_queue or of.task_queue
    if task_queue == of.task_queue and not (rule.to_host or rule.to_version):
        return None
    why = f"traffic rule {rule.id!r} sends it to {rule.target}"
    if rule.fallback:
        detour = Detour(
            of.kind,
            task_queue,
            rule.to_host,
            of.task_queue,
            rule.take_within_ms,
            of.capabilities,
            rule.to_version,
        )
        return Destination(detour.queue(names), why, private=True, rule=rule, detour=detour)
    queue = names.shared(task_queue, of.capabilities, Kind(of.kind.value))
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


def explain_task_queue(
    task_queue: str, rules: RuleTable, deployments: Deployments, now_ms: int
) -> list[str]:
    """What sends tasks of ``task_queue`` elsewhere, or tasks of others to it, for people: traffic
    rules in their order, and what its versions take."""
    steps = [
        f"rule {one.id!r} (order {one.order}): {matching(one)} to {one.target}"
        f"{_coming_home(one)}; set by {one.by or '?'}: {one.reason or 'no reason given'}"
        for one in rules.rules
        if not one.is_over(now_ms)
        and (one.task_queue in ("", task_queue) or one.to_task_queue == task_queue)
    ]
    for kind in TaskKind:
        line = deployments.line(kind.value, task_queue)
        if line != Line():
            ramp = ""
            if line.ramping is not None:
                ramp = f", and {shown(line.ramping)!r} takes {line.percent:g} % of what is new"
            current = f"unpinned {kind.value} tasks are for version {shown(line.plain)!r}"
            steps.append(f"{current}, which is current{ramp}")
    return steps


def _coming_home(rule: TrafficRule) -> str:
    if not rule.fallback:
        return ", where they stay"
    return f", and back if not taken within {rule.take_within_ms / 1000:g} s"


def explain(
    names: Names,
    of: Facts,
    rules: RuleTable,
    now_ms: int,
    asked: Asked = NOTHING_ASKED,
    deployments: Deployments = NO_DEPLOYMENTS,
) -> list[str]:
    """How the router comes to its answer, step by step, for people."""
    steps = [f"the task queue of {of.kind.value} {of.type!r} is {of.task_queue!r}"]
    if of.fairness_key and asked == NOTHING_ASKED:
        plain = names.queue(Kind(of.kind.value), of.task_queue)
        steps.append(
            f"its fairness key is {of.fairness_key!r}: on its task queue it waits for its share of"
            f" what begins, in queue {names.fair(plain)}"
        )
    steps += _asked_steps(asked)
    to, gone = _as_asked(names, of, asked, now_ms, deployments)
    if not asked.is_movable:
        return [
            *steps,
            "what says so itself no traffic rule moves",
            f"it goes to queue {to.queue}: {to.why}",
            f"if nobody is there: {gone}",
        ]
    if asked.requires is not None:
        of = msgspec.structs.replace(of, capabilities=asked.requires.names)
        steps.append(f"so its own queue is {to.queue}")
    if not rules:
        return [*steps, "no traffic rules are in force; it goes there"]
    return [*steps, *_rule_steps(names, of, rules, now_ms)]


def _as_asked(
    names: Names, of: Facts, asked: Asked, now_ms: int, deployments: Deployments
) -> tuple[Destination, str]:
    """Where a task goes that no rule moves, and what becomes of it if nobody is there, in words."""
    if of.kind is TaskKind.ACTIVITY:
        task = ActivityTask(
            activity_id=of.id,
            activity_type=of.type,
            task_queue=of.task_queue,
            body=b"",
            route=asked.route,
            requires=asked.requires,
        )
        to = destination(names, task, deployments)
        answer = when_gone(names, task, now_ms) if to.private else None
    else:
        turn, asked = _example(of, asked)
        to = workflow_destination(names, turn, asked, deployments)
        left = workflow_gone(turn, asked, now_ms) if to.private else None
        answer = (
            left
            if not isinstance(left, FallBack)
            else (workflow_destination(names, turn, asked.fallen, deployments))
        )
    return to, "it waits" if answer is None else _gone_in_words(answer)


def _example(of: Facts, asked: Asked) -> tuple[WorkflowTask, Asked]:
    """A workflow task like those that are asked about. Runs are pinned, not routed, to versions."""
    route, version = asked.route, ""
    if route is not None and route.kind is TargetKind.VERSION:
        asked, version = Asked(requires=asked.requires), route.target
    task = WorkflowTask(
        run=RunKey(of.id, ""),
        workflow_type=of.type,
        task_queue=of.task_queue,
        shard=0,
        scheduled_event_id=1,
        version=version,
    )
    return task, asked


def _asked_steps(asked: Asked) -> list[str]:
    steps = []
    if asked.route is not None:
        route = asked.route
        steps.append(f"its route says {route.kind.value} {route.target!r}")
    if asked.requires is not None:
        needed = in_words(asked.requires.names)
        steps.append(f"it requires {needed}: only workers that have all of it get it")
        if asked.requires.is_patient:
            steps.append("while no living worker has, it waits")
    return steps


def _gone_in_words(answer: Destination | Fail | LookAgain) -> str:
    if isinstance(answer, Fail):
        return "it fails at once"
    if isinstance(answer, LookAgain):
        return f"it waits, and is looked at again every {answer.delay_ms / 1000:g} s"
    return f"it falls back to queue {answer.queue}"


def _rule_steps(names: Names, of: Facts, rules: RuleTable, now_ms: int) -> list[str]:
    steps: list[str] = []
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


def in_order(
    names: Names,
    queue: QueueName,
    priority: int | None,
    prioritized: Container[tuple[str, str]],
    is_ordered: bool | None,
    *,
    has_key: bool = False,
    fair: Container[tuple[str, str]] = (),
) -> QueueName | None:
    """The queue that a task for ``queue`` waits in, so that tasks begin in their order.

    Args:
        priority: The AMQP priority of its message.
        prioritized: The sides and task queues that the settings log says have a priority queue.
        is_ordered: Whether the plain queues of this RabbitMQ order by priority themselves;
            ``None``: not known. Then the answer may be ``None``.
        has_key: It has a fairness key.
        fair: The sides and task queues that the settings log says give fair shares.
    """
    if queue.kind not in ORDERED:
        return queue
    if has_key or (fair and (queue.kind.value, queue.parts[0]) in fair):
        return names.fair(queue)
    if prioritized and (queue.kind.value, queue.parts[0]) in prioritized:
        return names.priority(queue)
    if priority is None or priority == AMQP_PRIORITY_DEFAULT or is_ordered:
        return queue
    return None if is_ordered is None else names.priority(queue)


def destination(
    names: Names, task: ActivityTask, deployments: Deployments = NO_DEPLOYMENTS
) -> Destination:
    """The queue for ``task``, as if everybody lived."""
    route, requires = task.route, task.requires
    if requires is not None:
        return _to_capable(names, task, requires, deployments)
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


def _to_capable(
    names: Names, task: ActivityTask, requires: Requires, deployments: Deployments
) -> Destination:
    if task.route is None and requires.is_patient:
        queue = names.capable(task.task_queue, requires.names)
        why = f"task queue {task.task_queue!r}, workers with {in_words(requires.names)}"
        return Destination(queue, why)
    niche = niche_of(task, deployments)
    return Destination(niche.queue(names), str(niche), private=True, niche=niche)


def niche_of(task: ActivityTask, deployments: Deployments = NO_DEPLOYMENTS) -> Niche:
    """The workers that may have ``task``, which requires something."""
    assert task.requires is not None, "a niche is for those who have something"
    if task.route is None:
        version = deployments.target(ACTIVITY_SIDE, task.task_queue, ramp_id(task))
        return Niche(task.task_queue, task.requires.names, version=version)
    targets = {task.route.kind: task.route.target}
    return Niche(
        task.task_queue,
        task.requires.names,
        targets.get(TargetKind.HOST, ""),
        targets.get(TargetKind.PROCESS, ""),
        targets.get(TargetKind.VERSION),
    )


def ramp_id(task: ActivityTask) -> str:
    """The id by which a ramp takes ``task``, or not: activities of a run go where the run goes."""
    return task.activity_id if task.workflow is None else task.workflow.workflow_id


def workflow_destination(
    names: Names, task: WorkflowTask, asked: Asked, deployments: Deployments = NO_DEPLOYMENTS
) -> Destination:
    """The queue for ``task``, whose run asks for ``asked``, as if everybody lived.

    On a host, too, only workers of the right deployment version are meant: another one's code may
    not be able to replay the run.
    """
    side, task_queue, workflow_id = WORKFLOW_SIDE, task.task_queue, task.run.workflow_id
    route, requires = asked.route, asked.requires
    if route is None and requires is None:
        if task.version:
            queue = names.version(side, task.version, task_queue)
            return Destination(queue, f"version {task.version!r} of task queue {task_queue!r}")
        queue = deployments.queue(names, side, task_queue, workflow_id)
        return Destination(queue, f"task queue {task_queue!r}")
    needed = () if requires is None else requires.names
    version = task.version or deployments.target(side, task_queue, workflow_id)
    is_current = not task.version and version == deployments.line(side, task_queue).plain
    if is_current and asked.is_movable:
        queue = names.capable(task_queue, needed, Kind.WORKFLOW)
        return Destination(queue, f"task queue {task_queue!r}, workers with {in_words(needed)}")
    target = {} if route is None else {route.kind: route.target}
    host, worker_id = target.get(TargetKind.HOST, ""), target.get(TargetKind.PROCESS, "")
    niche = Niche(task_queue, needed, host, worker_id, version, side)
    return Destination(niche.queue(names), str(niche), private=True, niche=niche)


def must_be_known(requires: Requires) -> bool:
    """Whether a task is refused that requires what no worker has ever had: not if it says what is
    to become of it otherwise."""
    return requires.is_patient or requires.on_gone is OnGone.FAIL


def refused_unknown(task_queue: str, requires: Requires | None, known: Collection[str]) -> str:
    """Why a task or a run is not accepted that requires what no worker has ever had; "" if it is.

    Args:
        known: What the workers of its task queue have, or had once.
    """
    if requires is None or not must_be_known(requires):
        return ""
    unknown = [name for name in requires.names if name not in known]
    if not unknown:
        return ""
    return (
        f"no worker of task queue {task_queue!r} has ever had {in_words(unknown)};"
        f" known there: {in_words(known) or 'none'}. Start a worker with"
        " capabilities={...} that have it, or require what is known, or say what is to happen:"
        " Requires(..., on_gone=OnGone.FALL_BACK), or OnGone.WAIT with a wait"
    )


def lacks_version(task: ActivityTask, deployments: Deployments) -> bool:
    """Whether ``task`` is bound to a version that has never served its task queue, as far as is
    known."""
    route = task.route
    if route is None or route.kind is not TargetKind.VERSION:
        return False
    return not deployments.serves(route.target, ACTIVITY_SIDE, task.task_queue)


def refused_version(task: ActivityTask, deployments: Deployments) -> str:
    """Why a task is not accepted that is bound to such a version; "" if it is."""
    if task.route is None or not lacks_version(task, deployments):
        return ""
    known = sorted({one for one, queue in deployments.queues(Names("n")) if _is_for(queue, task)})
    return (
        f"no worker of version {task.route.target!r} has ever served task queue"
        f" {task.task_queue!r}; versions that do: {', '.join(known) or 'none'}. Start a worker of"
        " it first, or name a version that is known"
    )


def _is_for(queue: QueueName, task: ActivityTask) -> bool:
    is_versioned = queue.kind is Kind.VERSION
    return is_versioned and (queue.parts[0], queue.parts[-1]) == (ACTIVITY_SIDE, task.task_queue)


def unpinned(names: Names, task: ActivityTask, deployments: Deployments) -> Destination:
    """The queue for ``task``, which takes whatever version is current, or ramping."""
    queue = deployments.queue(names, ACTIVITY_SIDE, task.task_queue, ramp_id(task))
    is_ramped = queue.kind is Kind.RAMPING
    what = "the ramping version of task queue" if is_ramped else "task queue"
    return Destination(queue, f"{what} {task.task_queue!r}")


def when_gone(names: Names, task: ActivityTask, now_ms: int) -> Destination | Fail | LookAgain:
    """What becomes of ``task`` at ``now_ms``, whose private queue nobody serves: its route says
    so, or, without one or with one to a version, what it requires.

    With `OnGone.WAIT` the time runs from the start of the activity.
    """
    route, requires = task.route, task.requires
    answer = _when_gone(task.task_queue, Asked(route, requires), task.scheduled_ms, now_ms)
    if not isinstance(answer, FallBack):
        return answer
    if route is not None and route.kind is TargetKind.VERSION:
        to = destination(names, msgspec.structs.replace(task, requires=None))
        return Destination(to.queue, f"{answer.why}; fell back to the version")
    # Who falls back from a host still needs what it requires.
    needed = () if route is None or requires is None else requires.names
    queue = names.shared(task.task_queue, needed)
    return Destination(queue, f"{answer.why}; fell back to the task queue")


def workflow_gone(task: WorkflowTask, asked: Asked, now_ms: int) -> FallBack | Fail | LookAgain:
    """What becomes of ``task`` at ``now_ms``, whose private queue nobody serves: as of `when_gone`,
    and what falls back is for those whom `Asked.fallen` says.

    With `OnGone.WAIT` the time runs from when the workflow task was scheduled.
    """
    return _when_gone(task.task_queue, asked, task.scheduled_ms, now_ms)


def _when_gone(
    task_queue: str, asked: Asked, since_ms: int, now_ms: int
) -> FallBack | Fail | LookAgain:
    route, requires = asked.route, asked.requires
    is_pinned = route is not None and route.kind is TargetKind.VERSION
    said = requires if is_pinned else route or requires
    assert said is not None, "only a task with a route or requirements has a target"
    gone = f"no living worker serves task queue {task_queue!r}"
    if route is not None:
        gone += f" on {route.kind.value} {route.target!r}"
    if requires is not None:
        gone += f" with {in_words(requires.names)}"
    if said.on_gone is OnGone.FALL_BACK:
        return FallBack(gone)
    if said.on_gone is OnGone.WAIT and said.wait is None:
        return LookAgain(WAIT_STEP_MS, f"{gone}; waits")
    if said.on_gone is OnGone.WAIT and said.wait is not None:
        left_ms = since_ms + to_ms(said.wait) - now_ms
        if left_ms > 0:
            return LookAgain(min(WAIT_STEP_MS, left_ms), f"{gone}; waits {left_ms} ms more")
        return Fail(f"{gone}, and did not within {said.wait}")
    return Fail(gone)
