"""``tq-broker task-queue pause``, ``resume``, ``move`` and ``copy``: done to whole queues."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from tq_broker.cli.commands import Command, shared
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.signals import STOPPING, Events
from tq_broker.cli.task_queue import REQUIRES, SIDE, confirm, pause_line
from tq_broker.client.transfer import OnProgress, Transferred
from tq_broker.model.settings import SIDES

BOTH = "both"

_one_side = click.option(
    "--side",
    type=click.Choice([*SIDES, BOTH]),
    default=BOTH,
    show_default=True,
    help="Activities, workflows, or both.",
)
_reason = click.option("--reason", default="", help="Is shown to whoever wonders.")


@click.command(cls=Command)
@click.argument("name")
@_reason
@_one_side
@click.pass_context
def pause(ctx: click.Context, name: str, reason: str, side: str) -> None:
    """Let workers take no more tasks of the task queue NAME, until it is resumed.

    Within a second no worker does. Tasks may still be added, and wait; what runs goes on.
    """
    session = session_of(ctx)
    with session.operator() as client:
        record = client.verbs.pause(name, reason, side="" if side == BOTH else side)
    data = {**msgspec.to_builtins(record), "side": side}
    session.output.done(f"{name} paused {pause_line(record)}", data=data)


@click.command(cls=Command)
@click.argument("name")
@_reason
@_one_side
@click.pass_context
def resume(ctx: click.Context, name: str, reason: str, side: str) -> None:
    """Let workers take tasks of the task queue NAME again."""
    session = session_of(ctx)
    with session.operator() as client:
        record = client.verbs.resume(name, reason, side="" if side == BOTH else side)
    data = {**msgspec.to_builtins(record), "side": side}
    session.output.done(f"{name} resumed by {record.by}", data=data)


_transfer_options = shared(
    click.argument("source"),
    click.argument("target"),
    click.option(
        "--type", "types", multiple=True, metavar="PATTERN", help="Only these, such as 'Send*'."
    ),
    click.option("--limit", type=click.IntRange(min=1), help="So many at most.  [all]"),
    click.option("--create", is_flag=True, help="TARGET need not exist."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Only count. With --type all tasks are read for it, and go round once.",
    ),
    REQUIRES,
    click.option("-y", "--yes", is_flag=True, help="Do not ask."),
)


@click.command(cls=Command)
@_transfer_options
@SIDE
@click.pass_context
def move(ctx: click.Context, /, source: str, target: str, yes: bool, **options: Any) -> None:
    """Move the tasks that wait in the task queue SOURCE to TARGET, oldest first.

    As many as wait now. A task leaves SOURCE when TARGET has it for sure: interrupt it as you like,
    and do it again for the rest. With --type what stays goes to the back of its queue.
    """
    session = session_of(ctx)
    with session.operator() as client:
        _ask(f"Move tasks from task queue {source!r} to {target!r}?", yes, options)
        with _progress(session, "moved") as progress:
            told = client.verbs.move(source, target, on_progress=progress, **options)
    _tell(session, "moved", source, target, told)


@click.command(cls=Command)
@_transfer_options
@click.option("--job", default="", metavar="ID", help="Continue this copy, which was interrupted.")
@click.pass_context
def copy(ctx: click.Context, /, source: str, target: str, yes: bool, **options: Any) -> None:
    """Put a copy of each activity task that waits in SOURCE into the task queue TARGET.

    A copy has a new id, and nobody gets its outcome. The originals go to the back of SOURCE.
    """
    session = session_of(ctx)
    with session.operator() as client:
        _ask(f"Copy tasks from task queue {source!r} to {target!r}?", yes, options)
        if not options["job"] and not options["dry_run"]:
            options["job"] = client.core.new_id()
            click.echo(f"tq-broker: if interrupted, continue with --job {options['job']}", err=True)
        with _progress(session, "copied") as progress:
            told = client.verbs.copy(source, target, on_progress=progress, **options)
    _tell(session, "copied", source, target, told)


def _ask(question: str, yes: bool, options: dict[str, Any]) -> None:
    if not options["dry_run"]:
        confirm(question, yes)


@contextlib.contextmanager
def _progress(session: Session, verb: str) -> Iterator[OnProgress]:
    """Tell on stderr how far it is, where somebody looks; and heed signals, which end the job only
    where it has nothing in hand."""
    events = Events()

    def show(told: Transferred) -> None:
        if session.output.is_terminal:
            line = f"\r{told.done} {verb}, {told.seen} of {told.waiting} seen"
            click.echo(line, nl=told.seen >= told.waiting, err=True)
        if events.next(0) is not None:
            raise KeyboardInterrupt

    events.listen(STOPPING)
    try:
        yield show
    finally:
        events.unlisten()


def _tell(session: Session, verb: str, source: str, target: str, told: Transferred) -> None:
    doing = f"would be {verb}" if told.is_dry else verb
    counts = ", ".join(f"{count} {type_}" for type_, count in sorted(told.types.items()))
    lines = f"{told.done} tasks {doing} from {source} to {target}" + (
        f" ({counts})" if counts else ""
    )
    if not told.complete:
        lines += "; there may be more behind those that stay: do it again for them"
    data = {"source": source, "target": target, **dataclasses.asdict(told)}
    session.output.done(lines, data=data)


VERBS = (pause, resume, move, copy)
