"""``tq-broker worker``: run one, in this process or in several supervised ones; ask others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import msgspec

from tq_broker.cli import exits
from tq_broker.cli.commands import Group
from tq_broker.cli.output import age
from tq_broker.cli.pidfile import pidfile_of
from tq_broker.cli.process import WorkerSettings, run_worker
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.spawning import supervise
from tq_broker.cli.task_queue import WAIT, note_if_unused
from tq_broker.cli.values import DURATION, NAMES
from tq_broker.clock import SystemClock
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.control import WorkerInfo
from tq_broker.worker.tuning import SLOTS_MAX


@click.group(cls=Group, invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@click.option(
    "-Q",
    "--queues",
    type=NAMES,
    multiple=True,
    metavar="A,B",
    help="Task queues to serve.  [those that the activities name]",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, SLOTS_MAX),
    help="Slots: activities at a time, over all task queues of a process.  [100]",
)
@click.option(
    "--sessions",
    type=click.IntRange(0, SLOTS_MAX),
    metavar="N",
    help="Sessions of workflows at a time, over all task queues of a process.  [0]",
)
@click.option(
    "-n",
    "--name",
    metavar="NAME",
    help="How it signs, such as w1@%h. %h: host, %n: host without domain, %d: domain,"
    " %i: number of the process.",
)
@click.option("--host", metavar="NAME", help="What Route.host knows this machine by; %i as above.")
@click.option("--worker-id", metavar="ID", help="What Route.process knows it by; %i as above.")
@click.option("--deployment", metavar="NAME", help="What its code is a version of, such as shop.")
@click.option("--build-id", metavar="ID", help="Names that version; see 'tq-broker deployment'.")
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    metavar="NAME",
    help="What it has, such as gpu: it also gets tasks that require that. Repeat it.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 1000),
    help="Run so many processes and start those that crash again.  [this one, unsupervised]",
)
@click.option(
    "--reload", is_flag=True, help="Restart when a .py file below this directory changes."
)
@click.option(
    "--graceful-timeout",
    type=DURATION,
    help="How long activities may go on at a warm shutdown.  [30s]",
)
@click.option("--pidfile", type=click.Path(dir_okay=False, path_type=Path), help="Write our pid.")
@click.option("--process-index", type=int, hidden=True)
@click.option("--guard-fd", type=int, hidden=True)
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    processes: int | None,
    reload: bool,
    pidfile: Path | None,
    process_index: int | None,
    guard_fd: int | None,
    **keywords: Any,
) -> int | None:
    """Run a worker, or ask the running ones (list, ping).

    \b
    Examples:
      tq-broker -A app.activities worker -Q mail,reports -c 50 -l INFO
      tq-broker -A app.activities worker -n w1@%h --processes 4
      tq-broker -A app.activities worker -Q video --capability gpu --capability ssd
      tq-broker -A app:options worker --reload -l DEBUG
      tq-broker worker list

    \b
    Signals:
      TERM, INT      warm: takes nothing more, lets activities end, leaves with 0
      again, or QUIT cold: cancels activities at once, leaves with 1; a third time: at once
      HUP            warm, then starts anew
    """
    if ctx.invoked_subcommand is not None:
        return None
    session = session_of(ctx)
    queues = tuple(name for names in keywords.pop("queues") for name in names)
    settings = WorkerSettings(
        task_queues=queues, process_index=process_index, guard_fd=guard_fd, **keywords
    )
    if process_index is not None:
        return run_worker(session, settings)
    with _pidfile(pidfile):
        if processes is not None or reload:
            if session.app is None:
                session.application()  # raises: better once here than in every process
            return supervise(session, processes or 1, reload=reload)
        return run_worker(session, settings)


@worker.command("list")
@WAIT
@click.pass_context
def list_(ctx: click.Context, wait: timedelta) -> None:
    """List the living workers."""
    session = session_of(ctx)
    with session.operations() as operations:
        note_if_unused(session, operations)
        found = operations.workers(wait.total_seconds())
    _print(session, found)


@worker.command()
@click.argument("names", nargs=-1)
@WAIT
@click.pass_context
def ping(ctx: click.Context, names: tuple[str, ...], wait: timedelta) -> int:
    """Ask workers (all, or NAMES: identities, worker ids or hosts) whether they live.

    Exit code 5 if one of NAMES does not answer, or nobody does: a health check.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        found = operations.workers(wait.total_seconds())
    if names:
        found = [one for one in found if {one.identity, one.worker_id, one.host} & {*names}]
    _print(session, found)
    answered = {name for one in found for name in (one.identity, one.worker_id, one.host)}
    missing = [name for name in names if name not in answered]
    if found and not missing:
        return exits.OK
    who = ", ".join(missing) or "any worker"
    click.echo(f"tq-broker: no answer from {who} within {wait.total_seconds():g}s", err=True)
    return exits.NOT_FOUND


def _print(session: Session, workers: list[WorkerInfo]) -> None:
    now_s = SystemClock().wall()
    session.output.rows(
        (
            *("WORKER", "ID", "HOST", "PID", "UP", "SLOTS", "TASK QUEUES", "ACTIVITIES"),
            *("WORKFLOWS", "CACHED", "HITS", "HAS", "VERSION"),
        ),
        [
            (
                one.identity,
                one.worker_id,
                one.host,
                one.pid,
                age(max(0.0, now_s - one.started_ms / 1000)),
                f"{one.running}/{one.slots}{' closing' if one.shutting_down else ''}",
                ",".join(one.task_queues),
                ",".join(one.activities),
                ",".join(one.workflows),
                one.cached_workflows,
                f"{one.sticky_hits}/{one.sticky_hits + one.sticky_misses}",
                ",".join(one.capabilities),
                one.deployment_version,
            )
            for one in workers
        ],
        data=[msgspec.to_builtins(one) for one in workers],
        empty="no worker answered",
    )


@contextlib.contextmanager
def _pidfile(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(pidfile_of(path))
        except OSError as error:
            raise InvalidArgument(f"--pidfile {path}: {error.strerror or error}") from error
        yield
