"""``tq-broker deployment``: versions of what workers run, and which of them gets the tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import click
import msgspec

from tq_broker.cli.commands import Group, shared
from tq_broker.cli.session import session_of
from tq_broker.cli.task_queue import WAIT
from tq_broker.client.deployments import ServedQueue, VersionDescription
from tq_broker.client.rule_review import Finding
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.deployments import Change, Deployment, RoutingSet, shown

_name = click.argument("name", metavar="DEPLOYMENT")
_build = click.argument("build_id", metavar="BUILD")
_change = shared(
    click.option("--reason", default="", help="For those who see it later."),
    click.option("--force", is_flag=True, help="In spite of what there is to say against it."),
    WAIT,
)


@click.group(cls=Group)
def deployment() -> None:
    """Versions of a deployment: which one is current, which is ramping, which may be deleted.

    \b
    Examples:
      tq-broker -A app worker -Q orders --deployment shop --build-id 1.4
      tq-broker deployment set-ramping shop 1.4 --percent 5 --reason "ticket 812"
      tq-broker deployment set-current shop 1.4
      tq-broker deployment describe shop
      tq-broker deployment delete shop 1.3
    """


@deployment.command("list")
@click.pass_context
def list_(ctx: click.Context) -> None:
    """List the deployments."""
    session = session_of(ctx)
    with session.operations() as operations:
        found = operations.deployments.all()
    session.output.rows(
        ("DEPLOYMENT", "CURRENT", "RAMPING", "VERSIONS"),
        [(one.name, _current(one), _ramp(one), len(one.versions)) for one in found],
        data=[
            {
                "name": one.name,
                "current": _current(one),
                "ramping": None if one.ramping is None else shown(one.ramping),
                "percent": one.percent,
                "revision": one.revision,
                "versions": sorted(one.versions),
            }
            for one in found
        ],
        empty="no deployments",
    )


@deployment.command()
@_name
@click.option("--history", is_flag=True, help="Who has changed it, when and why.")
@WAIT
@click.pass_context
def describe(ctx: click.Context, name: str, history: bool, wait: timedelta) -> None:
    """Tell how the versions of DEPLOYMENT stand: workers, what waits, and pinned runs."""
    session = session_of(ctx)
    with session.operations() as operations:
        told = operations.deployments.describe(name, wait_s=wait.total_seconds())
    if history:
        session.output.rows(
            ("TIME", "CHANGE", "BY", "REASON"),
            [_changed(one) for one in told.changes],
            data=[msgspec.to_builtins(one) for one in told.changes],
            empty="it was never changed",
        )
        return
    if session.output.as_json:
        data = dataclasses.asdict(told)
        data["current"] = shown(told.current)
        data["ramping"] = None if told.ramping is None else shown(told.ramping)
        data["changes"] = [msgspec.to_builtins(one) for one in told.changes]
        for version, of in zip(data["versions"], told.versions, strict=True):
            version["state"] = of.state.value
        session.output.json(data)
        return
    session.output.rows(
        ("VERSION", "STATE", "WORKERS", "WAITING", "PINNED RUNS", "TASK QUEUES"),
        [_row(one) for one in told.versions],
        data=[],
        empty="no versions",
    )
    for version in told.versions:
        for queue in version.queues:
            if queue.is_stranded:
                click.echo(
                    f"tq-broker: {_waiting(queue)} tasks wait in {queue.side} task queue"
                    f" {queue.task_queue} for version {version.version}, of which no worker lives",
                    err=True,
                )


@deployment.command("set-current")
@_name
@_build
@_change
@click.pass_context
def set_current(
    ctx: click.Context, name: str, build_id: str, reason: str, force: bool, wait: timedelta
) -> None:
    """Let the version BUILD of DEPLOYMENT take what is new, and what waits and is not pinned.

    It is refused when none of its workers lives, or when it does not serve what the current version
    serves. BUILD may be __unversioned__: workers without a version.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        findings = operations.deployments.set_current(
            name, build_id, reason=reason, force=force, wait_s=wait.total_seconds()
        )
    _tell(findings)
    data = {"deployment": name, "current": build_id, "findings": _data(findings)}
    session.output.done(f"{build_id} is the current version of {name}", data=data)


@deployment.command("set-ramping")
@_name
@click.argument("build_id", metavar="[BUILD]", required=False)
@click.option("--percent", type=float, help="As much of what is not pinned: 0 to 100.")
@click.option("--end", is_flag=True, help="End the ramp, in place of BUILD and --percent.")
@_change
@click.pass_context
def set_ramping(
    ctx: click.Context,
    /,
    name: str,
    build_id: str | None,
    percent: float | None,
    end: bool,
    wait: timedelta,
    **said: Any,
) -> None:
    """Let the version BUILD of DEPLOYMENT take a part of what is new, by a hash of workflow ids.

    Growing the part only adds to it. BUILD may be __unversioned__.
    """
    if end != (build_id is None) or end != (percent is None):
        raise InvalidArgument("say BUILD and --percent, or --end")
    session = session_of(ctx)
    with session.operations() as operations:
        findings = operations.deployments.set_ramping(
            name, build_id, percent or 0.0, wait_s=wait.total_seconds(), **said
        )
    _tell(findings)
    data = {
        "deployment": name,
        "ramping": build_id,
        "percent": percent or 0.0,
        "findings": _data(findings),
    }
    text = f"{build_id} ramps to {percent:g} % of" if build_id else "no version ramps of"
    session.output.done(f"{text} {name}", data=data)


@deployment.command()
@_name
@_build
@_change
@click.pass_context
def delete(
    ctx: click.Context, name: str, build_id: str, reason: str, force: bool, wait: timedelta
) -> None:
    """Forget the version BUILD of DEPLOYMENT, which must not be in use any more.

    It is refused while it is current or ramping, has workers, or runs are pinned to it; --force
    gets past the last, and past tasks that wait for it.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        findings = operations.deployments.delete(
            name, build_id, reason=reason, force=force, wait_s=wait.total_seconds()
        )
    _tell(findings)
    data = {"deployment": name, "deleted": build_id, "findings": _data(findings)}
    session.output.done(f"version {build_id} of {name} deleted", data=data)


# --- words ----------------------------------------------------------------------------------------


def _current(one: Deployment) -> str:
    return "-" if one.routing is None else shown(one.current)


def _ramp(one: Deployment) -> str:
    return "-" if one.ramping is None else f"{shown(one.ramping)} {one.percent:g} %"


def _row(one: VersionDescription) -> tuple[object, ...]:
    state = one.state.value
    return (
        one.build_id,
        f"{state} {one.percent:g} %" if one.percent else state,
        len(one.workers),
        sum(map(_waiting, one.queues)),
        one.open_runs,
        ", ".join(f"{queue.task_queue} ({queue.side})" for queue in one.queues),
    )


def _waiting(queue: ServedQueue) -> int:
    return queue.pinned + queue.backlog + queue.ramped


def _changed(change: Change) -> tuple[str, str, str, str]:
    time = datetime.fromtimestamp(change.at_ms / 1000, timezone.utc).isoformat(timespec="seconds")
    if isinstance(change, RoutingSet):
        what = f"current {shown(change.current)}"
        if change.ramping is not None:
            what += f", ramping {shown(change.ramping)} {change.percent:g} %"
    else:
        what = f"{change.build_id} deleted"
    return time, what + (" (forced)" if change.forced else ""), change.by, change.reason


def _tell(findings: Sequence[Finding]) -> None:
    for finding in findings:
        click.echo(f"tq-broker: {finding.text}", err=True)


def _data(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in findings]
