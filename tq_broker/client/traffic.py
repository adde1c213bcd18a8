"""Traffic rules, as an operator sees them: read, tried, set, removed, explained.

Rules of this file: blocking, like `tq_broker.client.operations`; a rule is reviewed against the
workers that answer and the rules in force before it is written; each change is a record of the
settings log with its time, author and reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tq_broker.client.core import ClientCore
from tq_broker.client.rule_review import Finding, review
from tq_broker.client.settings_book import append, followed
from tq_broker.clock import epoch_ms, remaining
from tq_broker.common import Route, TargetKind
from tq_broker.exceptions import InvalidArgument, NotFound
from tq_broker.model import affinity, control, requests, settings
from tq_broker.model.control import RecentTask
from tq_broker.model.deployments import Deployments
from tq_broker.model.names import Kind
from tq_broker.model.rule_table import Facts, RuleTable
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.settings import ACTIVITY_SIDE, RuleChange
from tq_broker.model.tasks import load_requires, load_route
from tq_broker.queues import routing
from tq_broker.queues.routing import NOTHING_ASKED, Asked

WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Move:
    """What would become of a task that a worker took lately. ``before`` and ``after`` say where it
    goes, in words."""

    task: RecentTask
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a rule would have done.

    Attributes:
        findings: What there is to say about it; see `Finding.refuses`.
        seen: How many tasks of the last minutes it was tried on.
        since_ms: When the oldest of them was taken (epoch ms); 0 if there is none.
        moves: Those that would have gone elsewhere.
    """

    findings: tuple[Finding, ...]
    seen: int
    since_ms: int
    moves: tuple[Move, ...]


class TrafficOperations:
    """What an operator may do about traffic rules. Thread-safe."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core
        self._names = core.names

    def rules(self) -> list[TrafficRule]:
        """The rules in force, in their order."""
        with followed(self._core) as log:
            now_ms = epoch_ms(self._core.clock)
            return [one for one in log.rules.rules if not one.is_over(now_ms)]

    def changes(self) -> list[RuleChange]:
        """Who has set and removed rules, when and why: the last thousand, oldest first."""
        with followed(self._core) as log:
            return log.rule_changes()

    def review(self, rule: TrafficRule, *, wait_s: float = WAIT_S) -> list[Finding]:
        """What there is to say about ``rule`` before it is set."""
        workers = self._workers(wait_s)
        return review(rule, self.rules(), workers, epoch_ms(self._core.clock))

    def set(
        self, rule: TrafficRule, *, force: bool = False, wait_s: float = WAIT_S
    ) -> list[Finding]:
        """Put ``rule`` in force, in place of another of its id; everywhere within a second.

        ``at_ms`` and, if it is empty, ``by`` are filled in.

        Args:
            force: Set it whatever there is to say about it.

        Returns:
            What there is to say about it nevertheless.

        Raises:
            InvalidArgument: it is refused; the reasons are told.
        """
        findings = self.review(rule, wait_s=wait_s)
        reasons = [one.text for one in findings if one.refuses]
        if reasons and not force:
            raise InvalidArgument(f"rule {rule.id!r} is not set: {'; '.join(reasons)}")
        signed = msgspec.structs.replace(
            rule, at_ms=epoch_ms(self._core.clock), by=rule.by or self._core.identity
        )
        append(self._core, settings.TrafficRuleSet(signed))
        return findings

    def remove(self, rule_id: str, *, reason: str = "") -> TrafficRule:
        """End a rule; returns it. What its target has, stays there.

        Raises:
            NotFound: there is no such rule in force.
        """
        found = {one.id: one for one in self.rules()}
        if rule_id not in found:
            known = ", ".join(sorted(found)) or "none"
            raise NotFound(f"there is no traffic rule {rule_id!r}; in force: {known}")
        now_ms = epoch_ms(self._core.clock)
        record = settings.TrafficRuleRemoved(rule_id, now_ms, self._core.identity, reason)
        append(self._core, record)
        return found[rule_id]

    def rehearse(self, rule: TrafficRule, *, wait_s: float = WAIT_S) -> Rehearsal:
        """What ``rule`` would have done with the tasks that workers took lately. Sets nothing.

        Of activities that workflows have started workers do not know the memo.
        """
        workers = self._workers(wait_s)
        rules = self.rules()
        now_ms = epoch_ms(self._core.clock)
        # Those that ran out meanwhile must not count, and the new one counts whenever it ends.
        before = RuleTable(rules)
        after = RuleTable([*(one for one in rules if one.id != rule.id), rule])
        tasks = self._recent(wait_s)
        moves = []
        for task in tasks:
            was, will = (self._where(task.facts, table, now_ms) for table in (before, after))
            if was != will:
                moves.append(Move(task, was, will))
        return Rehearsal(
            findings=tuple(review(rule, rules, workers, now_ms)),
            seen=len(tasks),
            since_ms=min((task.at_ms for task in tasks), default=0),
            moves=tuple(moves),
        )

    def explain(
        self, facts: Facts, asked: Asked = NOTHING_ASKED, *, wait_s: float = WAIT_S
    ) -> list[str]:
        """Where a task goes now, and why, step by step.

        Args:
            asked: What it says itself about its host, process and the capabilities of its worker.
        """
        workers = self._workers(wait_s)
        with followed(self._core) as log:
            table, deployments = log.rules, log.deployments
        now_ms = epoch_ms(self._core.clock)
        steps = routing.explain(self._names, facts, table, now_ms, asked, deployments)
        to = None if asked.route else routing.by_rule(self._names, facts, table, now_ms)
        rule = None if to is None else to.rule
        queue = (rule.to_task_queue if rule else "") or facts.task_queue
        host = rule.to_host if rule else ""
        version = rule.to_version if rule else ""
        is_bound = asked.route is not None
        if not is_bound and not version:
            steps += routing.explain_version(facts, queue, deployments)
            version = deployments.target(facts.kind.value, queue, facts.id)
        living = [
            worker.identity
            for worker in workers
            if queue in worker.task_queues
            and host in ("", worker.host)
            and (is_bound or version == worker.deployment_version)
            and _fits(asked, worker)
        ]
        steps.append(f"workers that answer there: {', '.join(living) or 'none'}")
        if rule is not None and rule.fallback and not living:
            steps.append(f"so it goes to its own task queue {facts.task_queue!r} after all")
        return steps

    def explain_pending(
        self, activities: Sequence[requests.PendingActivity], run: requests.RunInfo
    ) -> list[list[str]]:
        """Where the activities of ``run`` go, each step by step."""
        with followed(self._core) as log:
            table, deployments = log.rules, log.deployments
        now_ms = epoch_ms(self._core.clock)
        return [
            routing.explain(self._names, facts, table, now_ms, asked, deployments)
            for facts, asked in (_told(one, run, deployments) for one in activities)
        ]

    def explain_run(self, run: requests.Description) -> list[str]:
        """Where the workflow tasks of ``run`` go that no worker has in its cache, and whom its
        activities follow, step by step."""
        with followed(self._core) as log:
            table, deployments = log.rules, log.deployments
        facts, asked = _told_of_run(run)
        now_ms = epoch_ms(self._core.clock)
        steps = routing.explain(self._names, facts, table, now_ms, asked, deployments)
        if run.affinity is not None:
            bond = affinity.load_affinity(run.affinity)
            steps += affinity.explain(bond, of_workflow=True, target=run.affinity_target)
        return steps

    # --- parts ------------------------------------------------------------------------------------

    def _where(self, facts: Facts, table: RuleTable, now_ms: int) -> str:
        to = routing.by_rule(self._names, facts, table, now_ms)
        return (
            f"task queue {facts.task_queue!r}"
            if to is None or to.rule is None
            else (f"{to.rule.target} (rule {to.rule.id!r})")
        )

    def _workers(self, wait_s: float) -> Sequence[control.WorkerInfo]:
        core = self._core
        if not self._is_used():
            return ()
        return core.ping(wait_s).result(remaining(core.clock, core.deadline()) + wait_s)

    def _recent(self, wait_s: float) -> list[RecentTask]:
        core = self._core
        if not self._is_used():
            return []
        asked = core.ask_workers(control.AskRecent(), control.Recent, wait_s)
        answers = asked.result(remaining(core.clock, core.deadline()) + wait_s)
        return sorted(
            (task for answer in answers for task in answer.tasks), key=lambda task: task.at_ms
        )

    def _is_used(self) -> bool:
        """Whether anybody has used this namespace: a look declares nothing."""
        parked = str(self._names.queue(Kind.PARKED))
        return self._core.broker.stats(parked, self._core.deadline()) is not None


def _told(
    one: requests.PendingActivity, run: requests.RunInfo, deployments: Deployments
) -> tuple[Facts, Asked]:
    """What rules may know of an activity of ``run``, and what it asks for itself."""
    route, version = one.route, run.deployment_version
    is_bound = route is None and not one.auto_upgrade
    is_pinned = is_bound and deployments.serves(version, ACTIVITY_SIDE, one.task_queue)
    facts = Facts(
        kind=TaskKind.ACTIVITY,
        type=one.activity_type,
        task_queue=one.task_queue,
        id=one.task_id,
        headers=one.headers,
        priority=one.priority,
        fairness_key=one.fairness_key,
        memo=run.memo,
        once=one.maximum_attempts == 1,
    )
    asked = Asked(
        route=Route.version(version) if is_pinned else None if route is None else load_route(route),
        requires=None if one.requires is None else load_requires(one.requires),
    )
    return facts, asked


def _told_of_run(run: requests.Description) -> tuple[Facts, Asked]:
    info = run.info
    requires = None if run.requires is None else load_requires(run.requires)
    facts = Facts(
        kind=TaskKind.WORKFLOW,
        type=info.workflow_type,
        task_queue=info.task_queue,
        id=info.workflow_id,
        headers=run.headers,
        fairness_key=run.fairness_key,
        memo=info.memo,
        capabilities=() if requires is None else requires.names,
    )
    if run.route is not None:
        return facts, Asked(load_route(run.route), requires)
    version = info.deployment_version
    return facts, Asked(Route.version(version) if version else None, requires)


def _fits(asked: Asked, worker: control.WorkerInfo) -> bool:
    """Whether ``worker`` has what is asked for."""
    route, requires = asked.route, asked.requires
    is_at = {
        TargetKind.HOST: worker.host,
        TargetKind.PROCESS: worker.worker_id,
        TargetKind.VERSION: worker.deployment_version,
    }
    if route is not None and route.target != is_at[route.kind]:
        return False
    return requires is None or set(requires.names) <= set(worker.capabilities)
