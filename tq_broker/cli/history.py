"""``tq-broker history``: run the history service, bring its database up to date, look at it."""

from __future__ import annotations

import os
import sys
import threading
from datetime import timedelta
from typing import Any

import click
import msgspec

from tq_broker.cli import exits, garbage
from tq_broker.cli.commands import Group
from tq_broker.cli.output import on_a_full_disk_silent, say, visible
from tq_broker.cli.passwords import STORE_VARIABLE
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.signals import STOPPING, Events
from tq_broker.cli.task_queue import WAIT
from tq_broker.cli.values import DURATION
from tq_broker.client import shards
from tq_broker.exceptions import InvalidArgument
from tq_broker.history.service import HistoryService
from tq_broker.model.requests import ShardInfo
from tq_broker.stores.opening import SQLITE, migrate_store, open_store

STORE = click.option(
    "--store",
    metavar="URL",
    envvar=STORE_VARIABLE,
    help="sqlite:///PATH, for one host, or postgresql+psycopg://USER@HOST/DATABASE. Better set"
    f" {STORE_VARIABLE} if there is a password in it: others can see command lines.",
)
RETENTION = click.option(
    "--retention", type=DURATION, help="How long what has ended can be asked about.  [7d]"
)
CACHE = click.option(
    "--max-cached-runs",
    type=click.IntRange(1, 10_000_000),
    help="Workflows whose state is kept in memory.  [10000]",
)
MIGRATE = click.option(
    "--migrate/--no-migrate",
    default=None,
    help="Bring the schema up to date first.  [only of sqlite]",
)
NAME = click.option("-n", "--name", metavar="NAME", help="How it signs.  [pid@host]")


@click.group(cls=Group, invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@STORE
@RETENTION
@CACHE
@MIGRATE
@NAME
@click.pass_context
def history(ctx: click.Context, /, **options: Any) -> int | None:
    """Run the history service of durable workflows, or look after it.

    Any number of processes share the work of a namespace; with sqlite, those of one host.

    \b
    Examples:
      tq-broker history --store sqlite:///history.sqlite
      TQ_BROKER_STORE=postgresql+psycopg://tq@db/tq tq-broker history -l INFO
      tq-broker history migrate --store postgresql+psycopg://tq@db/tq
      tq-broker history status

    \b
    Signals:
      TERM, INT  finishes what it has begun, hands its shards over, leaves with 0
      again      leaves at once
    """
    if ctx.invoked_subcommand is not None:
        return None
    return _run(session_of(ctx), **options)


@history.command()
@STORE
@RETENTION
@CACHE
@MIGRATE
@NAME
@click.pass_context
def run(ctx: click.Context, /, **options: Any) -> int:
    """Run the service; so does ``tq-broker history`` alone."""
    return _run(session_of(ctx), **_with_outer(ctx, options))


@history.command()
@STORE
@click.pass_context
def migrate(ctx: click.Context, /, **options: Any) -> None:
    """Bring the schema of the database up to date, making it in an empty one."""
    session = session_of(ctx)
    before, after = migrate_store(_url(_with_outer(ctx, options)["store"]))
    if before == after:
        text = f"the schema is up to date: version {after}"
    else:
        text = f"the schema was version {before}, and is version {after} now"
    session.output.done(text, data={"before": before, "after": after})


@history.command()
@WAIT
@click.pass_context
def status(ctx: click.Context, wait: timedelta) -> int:
    """Ask the owners of all shards how they are doing.

    LAG is how long the oldest message of the last transaction had waited, DUE are runs whose time
    to be woken is over, OUTBOX messages that are stored and not known to be sent, and INBOX
    messages that nobody has taken. Exit code 5 if a shard has no owner that answers.
    """
    session = session_of(ctx)
    with session.client() as client:
        found = shards.look(client.core, wait.total_seconds())
    _print(session, found)
    missing = [one.shard for one in found if one.info is None]
    if not missing:
        return exits.OK
    who = "any shard" if len(missing) == len(found) else f"shards {', '.join(map(str, missing))}"
    click.echo(f"tq-broker: no answer from the owner of {who}", err=True)
    return exits.NOT_FOUND


def _with_outer(ctx: click.Context, options: dict[str, Any]) -> dict[str, Any]:
    """Options may stand before the sub-command, too."""
    assert ctx.parent is not None, "it is a command of the group"
    outer = ctx.parent.params
    return {name: outer.get(name) if value is None else value for name, value in options.items()}


def _url(store: str | None) -> str:
    if store is None:
        raise InvalidArgument(
            f"no store: say where histories are kept, --store or {STORE_VARIABLE}"
        )
    return store


def _run(
    session: Session,
    *,
    store: str | None,
    retention: timedelta | None,
    max_cached_runs: int | None,
    migrate: bool | None,
    name: str | None,
) -> int:
    url = _url(store)
    said = {"retention": retention, "max_cached_runs": max_cached_runs, "identity": name}
    options = {key: value for key, value in said.items() if value is not None}
    is_sqlite = url.startswith(f"{SQLITE}:")
    events = Events()
    events.listen(STOPPING)
    try:
        with session.client(identity=name) as client:
            database = open_store(
                url, session.namespace, migrate=is_sqlite if migrate is None else migrate
            )
            try:
                session.set_up_logging("INFO")
                service = HistoryService(client, database, **options)
                about = {
                    "history": service.identity,
                    "broker": client.core.broker.url,
                    "namespace": session.namespace,
                    "store": database.url,
                }
                with on_a_full_disk_silent():
                    _print_banner(session, about)
                garbage.settle()
                service.start()
                with on_a_full_disk_silent():
                    _print_ready(session, about)
                _serve(service, events)
            finally:
                database.close()
    finally:
        events.unlisten()
    return exits.OK


def _serve(service: HistoryService, events: Events) -> None:
    """Wait for a signal, and end in order; a second signal ends at once."""
    events.next()
    say(f"gives up {len(service.shards)} shards")
    stopped = object()

    def stop() -> None:
        try:
            service.stop()
        finally:
            events.put(stopped)

    try:
        threading.Thread(target=stop, name="tq-shutdown", daemon=True).start()
    except RuntimeError:  # the system has no thread for us: then a second signal is not heard
        stop()
    if events.next() is not stopped:
        say("leaving at once")
        os._exit(exits.FAILED)


def _print_banner(session: Session, about: dict[str, str]) -> None:
    if not session.output.as_json:
        click.echo(session.output.bold("tq-broker history"))
        for name, value in about.items():
            click.echo(f"  {name:<12} {visible(value)}")


def _print_ready(session: Session, about: dict[str, str]) -> None:
    if session.output.as_json:
        session.output.json({"event": "ready", **about})
    else:
        click.echo(f"{visible(about['history'])} ready")
    # In a pipe stdout is buffered, and somebody may wait for this line.
    sys.stdout.flush()


def _print(session: Session, found: list[shards.ShardState]) -> None:
    session.output.rows(
        ("SHARD", "OWNER", "EPOCH", "OPEN", "CACHED", "DUE", "OUTBOX", "LAG", "INBOX"),
        [(one.shard, *_cells(one.info), _or_dash(one.waiting)) for one in found],
        data=[_data(one) for one in found],
    )


def _cells(info: ShardInfo | None) -> tuple[object, ...]:
    if info is None:
        return ("-",) * 7
    return (
        info.owner,
        info.epoch,
        info.open_runs,
        info.cached_runs,
        info.timers_due,
        info.outbox,
        f"{info.lag_ms}ms",
    )


def _data(one: shards.ShardState) -> dict[str, Any]:
    told = {} if one.info is None else msgspec.structs.asdict(one.info)
    return {**told, "shard": one.shard, "inbox": one.waiting, "owner": told.get("owner")}


def _or_dash(number: int | None) -> object:
    return "-" if number is None else number
