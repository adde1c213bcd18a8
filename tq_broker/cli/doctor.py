"""``tq-broker doctor``: what this broker can do for us, and what will not work and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from tq_broker.cli import exits
from tq_broker.cli.commands import Command
from tq_broker.cli.diagnosis import Finding, Level, settings_log
from tq_broker.cli.examination import Examination
from tq_broker.cli.output import Output, visible
from tq_broker.cli.session import DEFAULT_URL, Session, session_of
from tq_broker.clock import SystemClock
from tq_broker.exceptions import TqBrokerError
from tq_broker.model.names import Names
from tq_broker.queues.address import parse_addresses

_COLORS = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.WARNING: "yellow",
    Level.FAULT: "red",
}


@click.command(cls=Command)
@click.pass_context
def doctor(ctx: click.Context) -> int:
    """Try on the broker what clients and workers do, and tell what will not work and why.

    What it makes is named tq.<namespace>.doctor-... and removed again. Exit code 1 if there is a
    fault.
    """
    session = session_of(ctx)
    found = list(_shown(session.output, _findings(session)))
    faults = sum(one.level is Level.FAULT for one in found)
    if session.output.as_json:
        session.output.json([_data(one) for one in found])
    elif faults:
        click.echo(f"tq-broker: {faults} fault{'s' * (faults > 1)} found", err=True)
    return exits.FAILED if faults else exits.OK


def _findings(session: Session) -> Iterator[Finding]:
    url = session.config.get("url", DEFAULT_URL)
    names = Names(session.namespace)
    if url.startswith("memory://"):
        text = "an embedded broker lives in one process: nothing to examine"
        yield Finding(Level.NOTE, "connection", text)
        return
    faults = 0
    for address in parse_addresses(url):
        for one in Examination(address, names, SystemClock()).findings():
            faults += one.level is Level.FAULT
            yield one
    if not faults:
        yield from _settings(session)


def _settings(session: Session) -> Iterator[Finding]:
    try:
        with session.operations() as operations:
            if operations.exists():
                yield settings_log(operations.settings().fault)
    except TqBrokerError as error:
        yield Finding(Level.FAULT, "settings log", str(error))


def _shown(output: Output, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Print each as it is found: a try may take seconds."""
    for one in findings:
        if not output.as_json:
            _print(output, one)
        yield one


def _print(output: Output, one: Finding) -> None:
    if not output.is_terminal:
        click.echo(
            "\t".join(
                visible(part) for part in (one.level.value, one.subject, one.text, one.advice)
            )
        )
        return
    mark = output.colored(f"{one.level.value:<7}", _COLORS[one.level])
    click.echo(f"{mark}  {one.subject:<24}  {visible(one.text)}")
    if one.advice:
        click.echo(f"{'':<35}{visible(one.advice)}")


def _data(one: Finding) -> dict[str, Any]:
    return {
        "level": one.level.value,
        "subject": one.subject,
        "text": one.text,
        "advice": one.advice,
    }
