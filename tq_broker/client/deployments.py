"""Deployment versions, as an operator sees them: listed, described, made current, ramped, deleted.

Rules of this file: blocking, like `tq_broker.client.operations`; a change is reviewed against the
workers that answer before it is written, and is a record of the settings log with its time, author
and reason. Of two who change a deployment at a time the second gets a `Conflict`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tq_broker.client import deployment_review
from tq_broker.client.core import ClientCore
from tq_broker.client.rule_review import Finding
from tq_broker.client.settings_book import append, followed
from tq_broker.client.workflow_core import WorkflowCore
from tq_broker.clock import epoch_ms, remaining
from tq_broker.common import UNVERSIONED
from tq_broker.exceptions import Conflict, DeadlineExceeded, InvalidArgument
from tq_broker.model.control import WorkerInfo
from tq_broker.model.deployments import (
    NO_VERSION,
    Change,
    Deployment,
    Deployments,
    RoutingSet,
    VersionDeleted,
    VersionState,
    version_of,
)
from tq_broker.model.names import ORDERED, Kind, QueueName
from tq_broker.model.registrations import serving
from tq_broker.model.rules import TrafficRule
from tq_broker.queues.settings_log import SettingsLog

WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedQueue:
    """One side of a task queue that a version serves.

    Attributes:
        pinned: Tasks that wait for this version.
        backlog: Tasks that wait for whoever is current, if that is this version; else 0.
        ramped: The same of the ramp.
    """

    side: str
    task_queue: str
    pinned: int
    backlog: int
    ramped: int
    workers: tuple[str, ...]

    @property
    def is_stranded(self) -> bool:
        """Whether tasks wait for the version here, and no worker of it lives."""
        return bool(self.pinned + self.backlog + self.ramped) and not self.workers


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDescription:
    """All about a version.

    Attributes:
        open_runs: Runs that are open and pinned to it.
        workers: Identities of its workers that answered.
    """

    version: str
    build_id: str
    state: VersionState
    percent: float
    created_ms: int
    open_runs: int
    workers: tuple[str, ...]
    queues: tuple[ServedQueue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentDescription:
    """A deployment with its versions, newest first. ``current`` and ``ramping`` are build ids; ""
    is the workers without a version. ``changes`` are the last ones, oldest first."""

    name: str
    current: str
    ramping: str | None
    percent: float
    revision: int
    versions: tuple[VersionDescription, ...]
    changes: tuple[Change, ...]


class DeploymentOperations:
    """What an operator may do about deployment versions. Thread-safe."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core
        self._names = core.names

    # --- looking ----------------------------------------------------------------------------------

    def all(self) -> list[Deployment]:
        """All deployments, by name, as the settings log has them."""
        with followed(self._core) as log:
            return sorted(log.deployments.by_name.values(), key=lambda one: one.name)

    def describe(self, name: str, *, wait_s: float = WAIT_S) -> DeploymentDescription:
        """A deployment with its versions, their workers, backlogs and open runs.

        Raises:
            NotFound: there is no such deployment.
            Unavailable: there is a history service, and it does not answer.
        """
        with followed(self._core) as log:
            deployments = log.deployments
        deployment = deployment_review.find(deployments, name)
        workers = self._workers(wait_s)
        newest = sorted(deployment.versions.values(), key=lambda one: -one.created_ms)
        return DeploymentDescription(
            name=name,
            current=deployment.current,
            ramping=deployment.ramping,
            percent=deployment.percent,
            revision=deployment.revision,
            versions=tuple(
                self._version(deployments, deployment, one.build_id, workers) for one in newest
            ),
            changes=deployment.changes,
        )

    # --- changing ---------------------------------------------------------------------------------

    def set_current(
        self,
        name: str,
        build_id: str,
        *,
        reason: str = "",
        force: bool = False,
        wait_s: float = WAIT_S,
    ) -> list[Finding]:
        """Let a version take all new and all waiting unpinned tasks, within a second.

        A ramp to the same version ends.

        Args:
            build_id: The version's; ``__unversioned__`` means workers without a version.
            force: Whatever there is to say against it.

        Returns:
            What there is to say against it nevertheless.

        Raises:
            NotFound: there is no such deployment or version.
            InvalidArgument: it is refused; the reasons are told.
            Conflict: somebody else has changed the deployment meanwhile; nothing was changed.
        """
        build_id = _read(build_id)

        def change(now: Deployment) -> RoutingSet:
            ends = now.ramping is None or now.ramping == build_id
            return RoutingSet(
                deployment=name,
                current=build_id,
                ramping=None if ends else now.ramping,
                percent=0.0 if ends else now.percent,
                **self._signed(now, reason, force),
            )

        return self._route(name, change, wait_s)

    def set_ramping(
        self,
        name: str,
        build_id: str | None,
        percent: float = 0.0,
        *,
        reason: str = "",
        force: bool = False,
        wait_s: float = WAIT_S,
    ) -> list[Finding]:
        """Let a version take a part of the unpinned tasks, by a stable hash of the workflow's id.

        Growing the percentage only adds workflows. At 100 it takes all, and is not current yet.

        Args:
            build_id: As for `set_current`; ``None`` ends the ramp.
            percent: 0 to 100.

        Raises as `set_current`, of which the other arguments are.
        """
        ramping = None if build_id is None else _read(build_id)

        def change(now: Deployment) -> RoutingSet:
            return RoutingSet(
                deployment=name,
                current=now.current,
                ramping=ramping,
                percent=float(percent),
                **self._signed(now, reason, force),
            )

        return self._route(name, change, wait_s)

    def delete(
        self,
        name: str,
        build_id: str,
        *,
        reason: str = "",
        force: bool = False,
        wait_s: float = WAIT_S,
    ) -> list[Finding]:
        """Forget a version that is not in use, and remove its queues as far as they are empty.

        Args:
            force: Although runs are pinned to it, or tasks wait for it. They go on waiting; a new
                worker of that version brings it back.

        Raises as `set_current`.
        """
        with followed(self._core) as log:
            deployments = log.deployments
            deployment = deployment_review.find(deployments, name)
            deployment_review.check_known(deployment, build_id)
            deployment_review.check_unused(deployment, build_id)
            told = self._version(deployments, deployment, build_id, self._workers(wait_s))
            waiting = sum(one.pinned for one in told.queues)
            findings = deployment_review.deletion(
                deployment, build_id, told.open_runs, waiting, told.workers, self._in_force(log)
            )
            _refuse(f"version {told.version!r} is not deleted", findings, force)
            record = VersionDeleted(
                deployment=name, build_id=build_id, **self._signed(deployment, reason, force)
            )
            self._write(log, record)
        queues = [self._pinned(told.version, one.side, one.task_queue) for one in told.queues]
        self._core.connection.reclaimer.reclaim_queues(queues)
        return findings

    # --- parts ------------------------------------------------------------------------------------

    def _in_force(self, log: SettingsLog) -> list[TrafficRule]:
        now_ms = epoch_ms(self._core.clock)
        return [rule for rule in log.rules.rules if not rule.is_over(now_ms)]

    def _route(
        self, name: str, change: Callable[[Deployment], RoutingSet], wait_s: float
    ) -> list[Finding]:
        with followed(self._core) as log:
            deployments = log.deployments
            deployment = deployment_review.find(deployments, name)
            record = change(deployment)
            for build_id in filter(None, (record.current, record.ramping)):
                deployment_review.check_known(deployment, build_id)
            findings = deployment_review.routing(deployments, record, self._workers(wait_s))
            _refuse(f"routing of deployment {name!r} is not changed", findings, record.forced)
            self._write(log, record)
        return findings

    def _signed(self, now: Deployment, reason: str, force: bool) -> dict[str, Any]:
        core = self._core
        return {
            "at_ms": epoch_ms(core.clock),
            "change_id": core.sender.ids.next(),
            "revision": now.revision,
            "by": core.identity,
            "reason": reason,
            "forced": force,
        }

    def _write(self, log: SettingsLog, record: Change) -> None:
        """Append ``record``, and wait until it is known to count."""

        def is_read(deployments: Deployments) -> bool:
            now = deployments.by_name[record.deployment]
            ids = (*(one.change_id for one in now.changes), *now.refused)
            return record.change_id in ids

        append(self._core, record)
        if not log.wait_until(is_read, self._core.deadline()):
            raise DeadlineExceeded("the change was written, but the settings log is not read")
        now = log.deployments.by_name[record.deployment]
        if record.change_id in now.refused:
            last = now.changes[-1] if now.changes else None
            who = last.by if last is not None else ""
            raise Conflict(
                f"{who or 'somebody'} has changed deployment {record.deployment!r} meanwhile; yours"
                " is not in force: look again and decide anew"
            )

    def _version(
        self,
        deployments: Deployments,
        deployment: Deployment,
        build_id: str,
        workers: Sequence[WorkerInfo],
    ) -> VersionDescription:
        known = deployment.versions[build_id]
        version = version_of(deployment.name, build_id)
        living = [one for one in workers if one.deployment_version == version]
        open_runs = self._open_runs(version)
        return VersionDescription(
            version=version,
            build_id=build_id,
            state=deployment.state(build_id, open_runs),
            percent=deployment.percent if build_id == deployment.ramping else 0.0,
            created_ms=known.created_ms,
            open_runs=open_runs,
            workers=tuple(one.identity for one in living),
            queues=tuple(
                self._served(deployments, version, side, task_queue, living)
                for side, task_queue in sorted(known.serves)
            ),
        )

    def _served(
        self,
        deployments: Deployments,
        version: str,
        side: str,
        task_queue: str,
        living: Sequence[WorkerInfo],
    ) -> ServedQueue:
        plain = self._names.queue(Kind(side), task_queue)
        ramping = self._names.ramping(side, task_queue)
        ramped = deployments.line(side, task_queue).ramped and deployments.takes(version, ramping)
        return ServedQueue(
            side=side,
            task_queue=task_queue,
            pinned=self._waiting(self._pinned(version, side, task_queue)),
            backlog=self._waiting(plain) if deployments.takes(version, plain) else 0,
            ramped=self._waiting(ramping) if ramped else 0,
            workers=tuple(one.identity for one in serving(living, task_queue, side)),
        )

    def _pinned(self, version: str, side: str, task_queue: str) -> QueueName:
        return self._names.version(side, version, task_queue)

    def _waiting(self, queue: QueueName) -> int:
        queues = [queue, self._names.priority(queue)] if queue.kind in ORDERED else [queue]
        deadline = self._core.deadline()
        stats = [self._core.broker.stats(str(one), deadline) for one in queues]
        return sum(one.ready for one in stats if one is not None)

    def _open_runs(self, version: str) -> int:
        """None where there is no history service at all."""
        deadline = self._core.deadline()
        if self._core.broker.stats(str(self._names.history(0)), deadline) is None:
            return 0
        query = f"version = '{version}' and status = 'running'"
        return WorkflowCore(self._core).count(query).waited().count

    def _workers(self, wait_s: float) -> Sequence[WorkerInfo]:
        core = self._core
        if core.broker.stats(str(self._names.queue(Kind.PARKED)), core.deadline()) is None:
            return ()
        return core.ping(wait_s).result(remaining(core.clock, core.deadline()) + wait_s)


def _read(build_id: str) -> str:
    return NO_VERSION if build_id == UNVERSIONED else build_id


def _refuse(what: str, findings: Sequence[Finding], force: bool) -> None:
    reasons = [one.text for one in findings if one.refuses]
    if reasons and not force:
        raise InvalidArgument(f"{what}: {'; '.join(reasons)}; or say force")
