"""To which deployment version a run belongs, and those that it starts. Pure.

What is asked first: an override of the start; then what the workflow itself says, known from its
last workflow task; before the first one, what a pinned run that has started it hands on.
"""

from __future__ import annotations

from tq_broker.common import ContinueAsNewVersioningBehavior, VersioningBehavior
from tq_broker.history.state import Execution
from tq_broker.model.deployments import AUTO_UPGRADE, NO_VERSION, Deployments
from tq_broker.model.names import Kind
from tq_broker.model.rule_table import NO_RULES, Facts, RuleTable
from tq_broker.model.rules import TaskKind
from tq_broker.queues import routing

WORKFLOW_SIDE, ACTIVITY_SIDE = Kind.WORKFLOW.value, Kind.ACTIVITY.value


def pin(run: Execution) -> str:
    """The version that ``run`` is pinned to; "" if it goes with the current one."""
    override = run.started.versioning_override
    if override:
        return NO_VERSION if override == AUTO_UPGRADE else override
    if run.behavior:
        return run.version if run.behavior == VersioningBehavior.PINNED else NO_VERSION
    return run.started.inherited_version


def of_activities(run: Execution, task_queue: str, deployments: Deployments) -> str:
    """The version that an activity of ``run`` is pinned to: the run's, if that serves its task
    queue."""
    version = pin(run)
    if version and deployments.serves(version, ACTIVITY_SIDE, task_queue):
        return version
    return NO_VERSION


def inherited(run: Execution, task_queue: str, deployments: Deployments) -> str:
    """What a run on ``task_queue`` that ``run`` starts inherits: a pinned run's version, if that
    serves the task queue."""
    version = pin(run)
    if version and deployments.serves(version, WORKFLOW_SIDE, task_queue):
        return version
    return NO_VERSION


def continued(run: Execution, task_queue: str, behavior: int, deployments: Deployments) -> str:
    """What the run after a continue-as-new inherits. ``behavior`` is the number of a
    `ContinueAsNewVersioningBehavior`."""
    if behavior == ContinueAsNewVersioningBehavior.AUTO_UPGRADE:
        return NO_VERSION
    return inherited(run, task_queue, deployments)


def may_stick(
    run: Execution, deployments: Deployments, rules: RuleTable = NO_RULES, now_ms: int = 0
) -> bool:
    """Whether the worker that has ``run`` in its cache is still of the right version."""
    started = run.started
    target = (
        pin(run)
        or _by_rule(run, rules, now_ms)
        or deployments.target(WORKFLOW_SIDE, started.task_queue, run.workflow_id)
    )
    return target == run.version


def _by_rule(run: Execution, rules: RuleTable, now_ms: int) -> str:
    """The version that a traffic rule sends ``run`` to; "" if none does."""
    started = run.started
    if not rules or not routing.asked_by(started).is_movable:
        return NO_VERSION
    facts = Facts(
        kind=TaskKind.WORKFLOW,
        type=started.workflow_type,
        task_queue=started.task_queue,
        id=run.workflow_id,
        headers=started.headers,
        priority=started.priority,
        fairness_key=started.fairness_key,
        memo=run.memo,
    )
    rule = rules.choose(facts, now_ms)
    return NO_VERSION if rule is None else rule.to_version
