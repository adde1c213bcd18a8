"""``tq-broker parked``: messages that nobody could make sense of, and what becomes of them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import click

from tq_broker.cli.commands import Group
from tq_broker.cli.output import visible
from tq_broker.cli.session import session_of
from tq_broker.cli.task_queue import confirm, note_if_unused
from tq_broker.client.parked import ParkedMessage
from tq_broker.exceptions import InvalidArgument, NotFound

BODY_CHARS = 2_000


@click.group(cls=Group)
def parked() -> None:
    """Look after parked messages: poison, undecodable, unroutable.

    \b
    Examples:
      tq-broker parked list
      tq-broker parked show 3f9a01c2d4e5
      tq-broker parked replay --all
    """


@parked.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1_000, show_default=True)
@click.pass_context
def list_(ctx: click.Context, limit: int) -> None:
    """List parked messages, oldest first. They stay."""
    session = session_of(ctx)
    with session.operations() as operations:
        note_if_unused(session, operations)
        found = operations.parked(limit)
    session.output.rows(
        ("KEY", "PARKED", "TYPE", "ID", "TASK QUEUE", "REASON"),
        [
            (one.key, _time(one), one.type, one.message_id, one.task_queue or "?", one.reason)
            for one in found
        ],
        data=[_data(one) for one in found],
        empty="nothing is parked",
    )


@parked.command()
@click.argument("key")
@click.pass_context
def show(ctx: click.Context, key: str) -> None:
    """Show the parked message KEY (or message id) with headers and body. It stays."""
    session = session_of(ctx)
    with session.operations() as operations:
        found = [one for one in operations.parked(10_000) if key in (one.key, one.message_id)]
    if not found:
        raise NotFound(f"{key!r} is not parked here; see: tq-broker parked list")
    one = found[0]
    message = one.message
    text = message.body.decode("utf-8", "backslashreplace")
    headers = {name: _jsonable(value) for name, value in message.headers.items()}
    if session.output.as_json:
        session.output.json({**_data(one), "headers": headers, "body": text})
        return
    session.output.record(
        [
            ("key", one.key),
            ("message id", one.message_id),
            ("type", one.type),
            ("attempt", one.attempt),
            ("task queue", one.task_queue or "unknown: replay needs --to"),
            ("reason", one.reason),
            ("parked", _time(one)),
            ("parked by", one.parked_by or "-"),
            ("came from", one.origin or "-"),
            ("content type", f"{message.content_type}, {len(message.body)} bytes"),
            *((f"header {name}", json.dumps(value)) for name, value in headers.items()),
        ],
        data={},
    )
    cut = f"... ({len(text) - BODY_CHARS} characters more)" if len(text) > BODY_CHARS else ""
    click.echo("")
    click.echo(visible(text[:BODY_CHARS]) + cut)


@parked.command()
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that is parked.")
@click.option("--to", "task_queue", metavar="TASK_QUEUE", help="Put them there instead.")
@click.pass_context
def replay(
    ctx: click.Context, keys: tuple[str, ...], everything: bool, task_queue: str | None
) -> None:
    """Put parked messages back on the task queues they came from, as fresh tasks."""
    chosen = _chosen(keys, everything)
    session = session_of(ctx)
    with session.operations() as operations:
        replayed = operations.replay(chosen, task_queue=task_queue)
    session.output.rows(
        ("REPLAYED", "ID", "TASK QUEUE"),
        [(one.key, one.message_id, task_queue or one.task_queue) for one in replayed],
        data=[{**_data(one), "task_queue": task_queue or one.task_queue} for one in replayed],
        empty="nothing was parked",
    )


@parked.command()
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that is parked.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def drop(ctx: click.Context, keys: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Remove parked messages for ever."""
    chosen = _chosen(keys, everything)
    session = session_of(ctx)
    what = "all parked messages" if everything else f"{len(keys)} parked messages"
    confirm(f"Drop {what} for ever?", yes)
    with session.operations() as operations:
        dropped = operations.drop(chosen)
    session.output.rows(
        ("DROPPED", "ID"),
        [(one.key, one.message_id) for one in dropped],
        data=[_data(one) for one in dropped],
        empty="nothing was parked",
    )


def _chosen(keys: tuple[str, ...], everything: bool) -> tuple[str, ...] | None:
    if bool(keys) == everything:
        raise InvalidArgument("name the messages by KEY (see: tq-broker parked list), or say --all")
    return None if everything else keys


def _time(one: ParkedMessage) -> str:
    if not one.parked_ms:
        return "-"
    when = datetime.fromtimestamp(one.parked_ms / 1000, timezone.utc)
    return when.strftime("%Y-%m-%d %H:%M:%SZ")


def _data(one: ParkedMessage) -> dict[str, Any]:
    return {
        "key": one.key,
        "id": one.message_id,
        "type": one.type,
        "attempt": one.attempt,
        "task_queue": one.task_queue,
        "reason": one.reason,
        "parked_ms": one.parked_ms,
        "parked_by": one.parked_by,
        "origin": one.origin,
    }


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
