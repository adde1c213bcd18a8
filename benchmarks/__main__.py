"""The command: ``python -m benchmarks``."""

# mypy: disable-error-code="no-untyped-call"
# (Kombu has no type hints.)

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
from pathlib import Path

import amqp
import click
from kombu.connection import Connection

from benchmarks import catalogue, report, servers
from benchmarks.inspection import LeftBehind
from benchmarks.measurement import NotPossible, measure
from benchmarks.process import ProcessError

LIBRARIES = (
    "tq_broker",
    "celery",
    "dramatiq",
    "taskiq",
    "taskiq-aio-pika",
    "faststream",
    "repid",
    "kombu",
    "amqp",
    "pika",
    "aio-pika",
    "uvloop",
)


@click.command()
@click.option("--quick", is_flag=True, help="Small counts and one repeat, to see that all works.")
@click.option("--only", metavar="ROW-GLOB", default="*", help="Rows to run, as 'drain-*'.")
@click.option("--list", "list_rows", is_flag=True, help="Print the names of the rows and end.")
@click.option("--broker", metavar="URL", help="A broker that runs already. Default: a private one.")
@click.option("--repeat", type=click.IntRange(min=1), help="Measurements per row.  [default: 5]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all samples.")
@click.option("--rst", "rst_file", type=click.Path(path_type=Path), help="Write the tables.")
def main(
    *,
    quick: bool,
    only: str,
    list_rows: bool,
    broker: str | None,
    repeat: int | None,
    json_file: Path | None,
    rst_file: Path | None,
) -> None:
    """Measure tq_broker and its peers on one broker and print medians and ratios."""
    rows = catalogue.matching(only)
    if not rows:
        raise click.BadParameter("no row has such a name; see --list", param_hint="--only")
    if list_rows:
        click.echo("\n".join(row.name for row in rows))
        return
    # So that also a run that is ended from outside leaves nothing behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with servers.started(broker) as running:
        about = describe(running.url)
        outcomes = run(rows, running, quick=quick, repeat=repeat or (1 if quick else 5))
    click.echo("\n" + report.as_text(outcomes))
    if json_file:
        json_file.write_text(report.as_json(outcomes, about))
    if rst_file:
        rst_file.write_text(report.as_rst(outcomes))


def run(
    rows: list[catalogue.Row], running: servers.Servers, *, quick: bool, repeat: int
) -> list[report.Outcome]:
    """Measure all rows *repeat* times, one round after the other.

    A slow minute of the machine then costs each row one sample, and not one row all of them. A row
    that failed is not tried again.
    """
    outcomes = [report.Outcome(row) for row in rows]
    for number in range(repeat):
        for outcome in outcomes:
            if not outcome.failure:
                _measure_once(outcome, running, quick=quick)
                click.echo(
                    f"{number + 1}/{repeat} {outcome.row.name}: {_latest(outcome)}", err=True
                )
    return outcomes


def describe(url: str) -> dict[str, str]:
    """Where and with what this is measured."""
    with Connection(url) as connection:
        connection.connect()
        about = {"rabbitmq": str(connection.connection.server_properties["version"])}
    about |= {"python": platform.python_version(), "cores": str(os.cpu_count())}
    # Above 0.5 or so before the first row, somebody else is using the machine.
    about["load_before"] = f"{os.getloadavg()[0]:.2f}"
    for library in LIBRARIES:
        try:
            about[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            about[library] = "not installed"
    return about


def _measure_once(outcome: report.Outcome, running: servers.Servers, *, quick: bool) -> None:
    try:
        outcome.samples.append(measure(outcome.row, running, quick=quick))
    except (NotPossible, ProcessError, LeftBehind, OSError, amqp.AMQPError) as error:
        # One row's failure is that row's result; the others go on.
        lines = str(error).strip().splitlines() or [repr(error)]
        outcome.failure = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
        outcome.samples.clear()


def _latest(outcome: report.Outcome) -> str:
    if outcome.failure:
        return f"FAILED: {outcome.failure}"
    figures = outcome.samples[-1].figures
    return ", ".join(f"{name} {value:,.2f}" for name, value in figures.items())


if __name__ == "__main__":
    main()
