"""Deployment versions: which workers take which tasks, as the records of the settings log say.

::

    (none) ── a worker registers ──> inactive ── set current ──> current ─┐  another is set
                                        │                           ^     ├────> draining
                                        └─────── set ramping ──> ramping ─┘         │ no pinned run
                                                                                    v is open
                                      (deleted) <── inactive, drained ────────── drained

Tasks of a task queue are in three kinds of queues. A pinned task is in the queue of its version,
and waits there for it. All others are in the plain queue, or, if the ramp takes them, in the
ramping queue: whose workers consume these two is looked up in one table (`Deployments.lines`), so
a whole backlog follows when it changes, and no task has to be moved.

Rules of this file: pure values, replaced as a whole; a version is one text, ``shop.1.4``, and "" is
the workers without one. Of two deployments that serve a task queue the one whose routing was set
last has it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from typing import Union

import msgspec

from tq_broker.common import AUTO_UPGRADE_WORD, UNVERSIONED, WorkerDeploymentVersion
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import (
    PLAIN,
    REQUIRING,
    Kind,
    Names,
    QueueName,
    check_task_queue,
    check_text,
)
from tq_broker.model.rule_table import place_of

CHANGES_MAX = 100
"""Changes of a deployment that are remembered."""
VERSIONS_MAX = 1_000
DEPLOYMENTS_MAX = 1_000

NO_VERSION = ""
AUTO_UPGRADE = AUTO_UPGRADE_WORD
"""As a run's override, in place of a version: no version is without a dot."""

Place = tuple[str, str]
"""A side, and the name of a task queue."""

_PLACES = 2**64
_SIDES = (Kind.ACTIVITY.value, Kind.WORKFLOW.value)


def check_version(value: str) -> str:
    """Return ``value`` if it can be a version and part of a queue's name, else raise
    `InvalidArgument`."""
    WorkerDeploymentVersion.from_canonical_string(value)
    return check_text("version", value)


def version_of(deployment: str, build_id: str) -> str:
    """A build of ``deployment`` as one text; "" if there is no build id. Raises
    `InvalidArgument`."""
    if not build_id:
        return NO_VERSION
    return check_version(WorkerDeploymentVersion(deployment, build_id).to_canonical_string())


def shown(build_id: str) -> str:
    """A build id as people see it."""
    return build_id or UNVERSIONED


# --- records --------------------------------------------------------------------------------------


class VersionServes(msgspec.Struct, frozen=True, omit_defaults=True, tag="version-serves"):
    """A worker of a version takes tasks of one side of a task queue."""

    deployment: str
    build_id: str
    side: str
    task_queue: str
    at_ms: int
    by: str = ""

    def __post_init__(self) -> None:
        version_of(self.deployment, self.build_id)
        check_task_queue(self.task_queue)
        if self.side not in _SIDES:
            raise InvalidArgument(f"side is {self.side!r}; it must be one of {', '.join(_SIDES)}")


class RoutingSet(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="routing-set"):
    """Which versions of a deployment take its unpinned tasks, from now on.

    Attributes:
        current: A build id; "" for workers without a version.
        ramping: The same, of those that the ramp is for; ``None`` without a ramp.
        percent: As many of the tasks, by a stable hash of the workflow's id: 0 to 100.
        revision: The `Deployment.revision` that the author had seen. Another one by now: the
            record changes nothing.
        change_id: Names this change, for its author.
        forced: There was something to be said against it.
    """

    deployment: str
    current: str = NO_VERSION
    ramping: str | None = None
    percent: float = 0.0
    at_ms: int
    change_id: str
    revision: int = 0
    by: str = ""
    reason: str = ""
    forced: bool = False

    def __post_init__(self) -> None:
        version_of(self.deployment, self.current or "x")
        version_of(self.deployment, self.ramping or "x")
        if not math.isfinite(self.percent) or not 0 <= self.percent <= 100:
            raise InvalidArgument(f"percent is {self.percent!r}; it must be from 0 to 100")
        if self.ramping is None and self.percent:
            raise InvalidArgument("percent is given without a ramping version")
        if self.ramping == self.current:
            raise InvalidArgument(
                f"{shown(self.current)!r} is current and cannot be ramping as well;"
                " set another one current first, or ramp another one"
            )


class VersionDeleted(
    msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="version-deleted"
):
    """A version is not known any more, unless it is current or ramping. ``revision`` and
    ``change_id`` as in `RoutingSet`."""

    deployment: str
    build_id: str
    at_ms: int
    change_id: str
    revision: int = 0
    by: str = ""
    reason: str = ""
    forced: bool = False


Change = Union[RoutingSet, VersionDeleted]  # noqa: UP007 - like the other unions of values
DeploymentRecord = Union[VersionServes, Change]  # noqa: UP007


# --- state ----------------------------------------------------------------------------------------


class VersionState(str, enum.Enum):
    """How a version stands, in Temporal's words."""

    INACTIVE = "inactive"
    """It was never current or ramping."""
    CURRENT = "current"
    RAMPING = "ramping"
    DRAINING = "draining"
    """It is not current or ramping any more, and runs are open that are pinned to it."""
    DRAINED = "drained"
    """No run is open that is pinned to it."""


class Version(msgspec.Struct, frozen=True):
    """A build of a deployment.

    Attributes:
        serves: The sides of task queues that its workers have registered.
        created_ms: When the first of them did.
        routed_ms: When it was last made current or ramping; 0: never.
    """

    build_id: str
    serves: frozenset[Place]
    created_ms: int
    routed_ms: int = 0


class Deployment(msgspec.Struct, frozen=True):
    """A deployment with its versions, by build id.

    Attributes:
        revision: Counts its changes.
        routing: The last one that was set; ``None``: none was ever.
        changes: The last ones that are in force, or were, oldest first.
        refused: Ids of the last ones that came too late.
        order: Greater is later: when its routing was set, beside that of others.
    """

    name: str
    versions: dict[str, Version] = {}
    revision: int = 0
    routing: RoutingSet | None = None
    changes: tuple[Change, ...] = ()
    refused: tuple[str, ...] = ()
    order: int = 0

    @property
    def current(self) -> str:
        """The build that is current; "" for workers without a version."""
        return NO_VERSION if self.routing is None else self.routing.current

    @property
    def ramping(self) -> str | None:
        """The build that is ramping; ``None`` if none is."""
        return None if self.routing is None else self.routing.ramping

    @property
    def percent(self) -> float:
        """How much the ramp takes."""
        return 0.0 if self.routing is None else self.routing.percent

    def serves(self, build_id: str) -> frozenset[Place]:
        """What a build serves, as far as it is known."""
        version = self.versions.get(build_id)
        return frozenset() if version is None else version.serves

    def places(self) -> frozenset[Place]:
        """What any of its versions serves."""
        return frozenset().union(*(version.serves for version in self.versions.values()))

    def state(self, build_id: str, open_runs: int) -> VersionState:
        """How a build stands, of which ``open_runs`` pinned runs are open."""
        if self.routing is not None and build_id == self.routing.current:
            return VersionState.CURRENT
        if build_id == self.ramping:
            return VersionState.RAMPING
        version = self.versions.get(build_id)
        if version is None or not version.routed_ms:
            return VersionState.INACTIVE
        return VersionState.DRAINING if open_runs else VersionState.DRAINED


class Line(msgspec.Struct, frozen=True):
    """Who takes the unpinned tasks of one side of a task queue.

    Attributes:
        plain: The version that consumes the plain queue.
        ramping: The one that consumes the ramping queue, and takes ``percent`` of what is new;
            ``None`` without a ramp.
        ramped: There is or was a ramp, so there may be tasks in a ramping queue.
    """

    plain: str = NO_VERSION
    ramping: str | None = None
    percent: float = 0.0
    ramped: bool = False

    def ramps(self, id: str) -> bool:
        """Whether the ramp takes what has this id; growing it only adds."""
        if self.ramping is None or not self.percent or not id:
            return False
        return place_of(id) < self.percent / 100 * _PLACES

    @property
    def of_ramping_queue(self) -> str:
        """The version that consumes the ramping queue: who is current has what a ramp left."""
        return self.plain if self.ramping is None or not self.percent else self.ramping


_UNVERSIONED_LINE = Line()


class Deployments(msgspec.Struct, frozen=True):
    """All deployments by name, and the table that follows from them."""

    by_name: dict[str, Deployment] = {}
    lines: dict[Place, Line] = {}

    # --- questions of who routes ------------------------------------------------------------------

    def line(self, side: str, task_queue: str) -> Line:
        """Who takes the unpinned tasks of one side of a task queue."""
        return self.lines.get((side, task_queue), _UNVERSIONED_LINE)

    def target(self, side: str, task_queue: str, id: str) -> str:
        """The version that takes a new unpinned task with this id (a workflow's, or a standalone
        activity's)."""
        line = self.line(side, task_queue)
        return line.of_ramping_queue if line.ramps(id) else line.plain

    def queue(self, names: Names, side: str, task_queue: str, id: str) -> QueueName:
        """The queue for an unpinned task."""
        if self.lines and self.line(side, task_queue).ramps(id):
            return names.ramping(side, task_queue)
        return names.queue(Kind(side), task_queue)

    def serves(self, version: str, side: str, task_queue: str) -> bool:
        """Whether ``version`` serves one side of a task queue."""
        name, _, build_id = version.partition(".")
        deployment = self.by_name.get(name)
        return deployment is not None and (side, task_queue) in deployment.serves(build_id)

    def versions(self, side: str, task_queue: str) -> list[str]:
        """All versions that serve one side of a task queue, or did."""
        return [
            version_of(deployment.name, build_id)
            for deployment in self.by_name.values()
            for build_id, version in deployment.versions.items()
            if (side, task_queue) in version.serves
        ]

    def knows(self, version: str) -> bool:
        """Whether there is such a version."""
        name, _, build_id = version.partition(".")
        deployment = self.by_name.get(name)
        return deployment is not None and build_id in deployment.versions

    def queues(self, names: Names) -> Iterator[tuple[str, QueueName]]:
        """Every queue that a version has to consume now, and that version."""
        for deployment in self.by_name.values():
            for build_id, known in deployment.versions.items():
                version = version_of(deployment.name, build_id)
                for side, task_queue in known.serves:
                    shared = (names.queue(Kind(side), task_queue), names.ramping(side, task_queue))
                    yield version, names.version(side, version, task_queue)
                    yield from ((version, queue) for queue in shared if self.takes(version, queue))

    # --- questions of who consumes ----------------------------------------------------------------

    def takes(self, version: str, queue: QueueName) -> bool:
        """Whether workers of ``version`` consume ``queue`` now. Whoever is asked by name (a host,
        a process) does."""
        match queue.kind:
            case Kind.ACTIVITY | Kind.WORKFLOW | Kind.PRIORITY | Kind.WORKFLOW_PRIORITY:
                side = PLAIN.get(queue.kind, queue.kind).value
                return self.line(side, queue.parts[0]).plain == version
            case Kind.ADMITTED | Kind.ADMITTED_PRIORITY:
                return self.line(Kind.ACTIVITY.value, queue.parts[-1]).plain == version
            case Kind.CAPABLE | Kind.WORKFLOW_CAPABLE:
                side = REQUIRING[queue.kind].value
                return self.line(side, queue.parts[-1]).plain == version
            case Kind.RAMPING:
                return self.line(*queue.parts).of_ramping_queue == version
            case Kind.VERSION:
                return queue.parts[1] == version
            case _:
                return True

    # --- records ----------------------------------------------------------------------------------

    def apply(self, record: DeploymentRecord) -> Deployments:
        """All of it after ``record``."""
        before = self.by_name.get(record.deployment)
        if before is None and len(self.by_name) >= DEPLOYMENTS_MAX:
            return self
        deployment = before or Deployment(record.deployment)
        if isinstance(record, VersionServes):
            after = _registered(deployment, record)
        elif record.revision != deployment.revision or not _is_possible(deployment, record):
            refused = (*deployment.refused, record.change_id)[-CHANGES_MAX:]
            after = msgspec.structs.replace(deployment, refused=refused)
        else:
            after = self._changed(deployment, record)
        if after is deployment:
            return self
        by_name = {**self.by_name, after.name: after}
        return Deployments(by_name, _table(by_name, self.lines))

    def _changed(self, deployment: Deployment, record: Change) -> Deployment:
        versions = dict(deployment.versions)
        order, routing = deployment.order, deployment.routing
        if isinstance(record, VersionDeleted):
            del versions[record.build_id]
        else:
            routing = record
            order = 1 + max((one.order for one in self.by_name.values()), default=0)
            for build_id in filter(None, (record.current, record.ramping)):
                versions[build_id] = msgspec.structs.replace(
                    versions[build_id], routed_ms=record.at_ms
                )
        return msgspec.structs.replace(
            deployment,
            versions=versions,
            revision=deployment.revision + 1,
            routing=routing,
            changes=(*deployment.changes, record)[-CHANGES_MAX:],
            order=order,
        )


NO_DEPLOYMENTS = Deployments()


def _registered(deployment: Deployment, record: VersionServes) -> Deployment:
    place = (record.side, record.task_queue)
    known = deployment.versions.get(record.build_id)
    if known is None and len(deployment.versions) >= VERSIONS_MAX:
        return deployment
    version = known or Version(record.build_id, frozenset(), record.at_ms)
    if place in version.serves:
        return deployment
    version = msgspec.structs.replace(version, serves=version.serves | {place})
    return msgspec.structs.replace(
        deployment, versions={**deployment.versions, record.build_id: version}
    )


def _is_possible(deployment: Deployment, record: Change) -> bool:
    """Whether the versions that it names are there, and the one that it deletes is not in use."""
    if isinstance(record, VersionDeleted):
        in_use = (deployment.current, deployment.ramping)
        return record.build_id in deployment.versions and record.build_id not in in_use
    named = filter(None, (record.current, record.ramping))
    return all(build_id in deployment.versions for build_id in named)


def _table(by_name: Mapping[str, Deployment], before: Mapping[Place, Line]) -> dict[Place, Line]:
    """The line of each side of a task queue that a deployment has, or that was ever ramped."""
    lines = {place: Line(ramped=True) for place, line in before.items() if line.ramped}
    for deployment in sorted(by_name.values(), key=lambda one: one.order):
        for place, line in _lines(deployment):
            was = lines.get(place, _UNVERSIONED_LINE)
            ramped = was.ramped or line.ramping is not None
            lines[place] = msgspec.structs.replace(line, ramped=ramped)
    return lines


def _lines(deployment: Deployment) -> Iterator[tuple[Place, Line]]:
    """What a deployment says about the task queues that its current or ramping version serves."""
    current, ramping = deployment.current, deployment.ramping
    for place in deployment.serves(current) | deployment.serves(ramping or NO_VERSION):
        plain = current if place in deployment.serves(current) else NO_VERSION
        # A ramp to the workers without a version: they serve what they serve.
        has_ramp = ramping is not None and (not ramping or place in deployment.serves(ramping))
        yield (
            place,
            Line(
                plain=version_of(deployment.name, plain),
                ramping=version_of(deployment.name, ramping or "") if has_ramp else None,
                percent=deployment.percent if has_ramp else 0.0,
            ),
        )
