"""What is to be said against a change of a deployment before it is made: a pure review.

Rules of this file: a finding says what is wrong and what would make it acceptable. What can never
be (a version that nobody knows, a percentage out of bounds) is an error instead, which no force
gets past.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tq_broker.client.rule_review import Finding
from tq_broker.exceptions import InvalidArgument, NotFound
from tq_broker.model.control import WorkerInfo
from tq_broker.model.deployments import (
    Deployment,
    Deployments,
    Place,
    RoutingSet,
    VersionState,
    shown,
    version_of,
)
from tq_broker.model.registrations import serving
from tq_broker.model.rules import TrafficRule


def routing(
    deployments: Deployments, wanted: RoutingSet, workers: Sequence[WorkerInfo]
) -> list[Finding]:
    """What there is to say against ``wanted``, with ``workers`` that live.

    The deployment and the versions are known.
    """
    deployment = deployments.by_name[wanted.deployment]
    found: list[Finding] = []
    for build_id, role in _new(deployment, wanted):
        found += _living(deployment, build_id, role, workers)
    if wanted.current and wanted.current != deployment.current:
        found += _missing(deployment, wanted.current, "current")
    if wanted.ramping and wanted.ramping != deployment.ramping:
        found += _missing(deployment, wanted.ramping, "ramping")
    found += _elsewhere(deployments, deployment, wanted)
    return found


def find(deployments: Deployments, name: str) -> Deployment:
    """The deployment ``name``. Raises `NotFound`."""
    if name not in deployments.by_name:
        known = ", ".join(sorted(deployments.by_name)) or "none"
        raise NotFound(
            f"there is no deployment {name!r} (there are: {known}); it begins to exist with its"
            " first worker: Worker(deployment=..., build_id=...)"
        )
    return deployments.by_name[name]


def check_known(deployment: Deployment, build_id: str) -> None:
    """Raises `NotFound` if there is no such version."""
    if build_id not in deployment.versions:
        known = ", ".join(sorted(deployment.versions)) or "none"
        raise NotFound(
            f"deployment {deployment.name!r} has no version {build_id!r} (there are: {known});"
            " start a worker of it first"
        )


def check_unused(deployment: Deployment, build_id: str) -> None:
    """Raises `InvalidArgument` if a version is current or ramping."""
    state = deployment.state(build_id, 0)
    if state in (VersionState.CURRENT, VersionState.RAMPING):
        raise InvalidArgument(
            f"version {version_of(deployment.name, build_id)!r} is {state.value};"
            f" set another one {state.value} first"
        )


def deletion(
    deployment: Deployment,
    build_id: str,
    open_runs: int,
    waiting: int,
    living: Sequence[str],
    rules: Iterable[TrafficRule] = (),
) -> list[Finding]:
    """What there is to say against the deletion of a version that is not in use.

    Args:
        open_runs: Runs that are open and pinned to it.
        waiting: Tasks in its queues.
        living: Identities of its living workers.
        rules: The traffic rules in force.

    Raises:
        InvalidArgument: it has workers; no force gets past that, because they would go on.
    """
    name = version_of(deployment.name, build_id)
    if living:
        raise InvalidArgument(
            f"version {name!r} has living workers: {', '.join(living)}; stop them first"
        )
    found = []
    if open_runs:
        found.append(
            Finding(
                f"{open_runs} open runs are pinned to it, and would wait for ever; let them end, or"
                " terminate them (tq-broker workflow list"
                f" \"version = '{name}' and status = 'running'\")"
            )
        )
    if waiting:
        found.append(Finding(f"{waiting} tasks wait in its queues; start a worker of it for them"))
    if senders := [repr(rule.id) for rule in rules if rule.to_version == name]:
        found.append(
            Finding(
                f"traffic rules send tasks to it: {', '.join(senders)}; remove them first"
                " (tq-broker route remove)"
            )
        )
    return found


# --- parts ----------------------------------------------------------------------------------------


def _new(deployment: Deployment, wanted: RoutingSet) -> list[tuple[str, str]]:
    """Builds that get something that they did not have, and what."""
    found = []
    if deployment.routing is None or wanted.current != deployment.current:
        found.append((wanted.current, "current"))
    if wanted.ramping is not None and wanted.percent:
        found.append((wanted.ramping, "ramping"))
    return found


def _living(
    deployment: Deployment, build_id: str, role: str, workers: Iterable[WorkerInfo]
) -> list[Finding]:
    version = version_of(deployment.name, build_id)
    of_version = [
        one for one in workers if one.deployment_version == version and not one.shutting_down
    ]
    places = deployment.serves(build_id) if build_id else deployment.places()
    empty = sorted((side, name) for side, name in places if not serving(of_version, name, side))
    if not empty:
        return []
    who = f"version {version!r}" if build_id else "workers without a version"
    return [
        Finding(
            f"no living worker of {who} serves {_text(empty)}, so nothing would run there;"
            f" start one before it is {role}"
        )
    ]


def _missing(deployment: Deployment, build_id: str, role: str) -> list[Finding]:
    """Whether the version that is current serves what this one does not."""
    if not deployment.current:
        return []
    missing = sorted(deployment.serves(deployment.current) - deployment.serves(build_id))
    if not missing:
        return []
    return [
        Finding(
            f"version {build_id!r} does not serve {_text(missing)}, which the current version"
            f" {deployment.current!r} does; start workers of it for them before it is {role}"
        )
    ]


def _elsewhere(
    deployments: Deployments, deployment: Deployment, wanted: RoutingSet
) -> list[Finding]:
    """Whether another deployment has task queues that this one would take over."""
    places = deployment.serves(wanted.current) | deployment.serves(wanted.ramping or "")
    found = []
    for other in deployments.by_name.values():
        if other.name == deployment.name or other.order <= deployment.order:
            continue
        theirs = other.serves(other.current) | other.serves(other.ramping or "")
        if taken := sorted(places & theirs):
            found.append(
                Finding(
                    f"deployment {other.name!r} has {_text(taken)}, and would lose it; let each"
                    " deployment have task queues of its own"
                )
            )
    return found


def _text(places: Iterable[Place]) -> str:
    return ", ".join(f"{shown(side)} task queue {name!r}" for side, name in places)
