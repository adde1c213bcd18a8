"""``tq-broker task-queue``: what waits, who serves it, and what can be done about it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

import click
import msgspec

from tq_broker.cli.commands import Group
from tq_broker.cli.output import age
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.values import DURATION
from tq_broker.client.operations import (
    Operations,
    TaskQueueDescription,
    TaskQueueSummary,
    WorkflowSideDescription,
)
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.settings import ACTIVITY_SIDE, SIDES, TaskQueuePaused

WAIT = click.option(
    "--wait",
    type=DURATION,
    default="1s",
    show_default=True,
    help="How long workers may take to answer.",
)
SIDE = click.option(
    "--side",
    type=click.Choice(SIDES),
    default=ACTIVITY_SIDE,
    show_default=True,
    help="Whose tasks: those of activities or of workflows.",
)


@click.group("task-queue", cls=Group)
def task_queue() -> None:
    """Look after task queues.

    \b
    Examples:
      tq-broker task-queue list
      tq-broker task-queue describe mail
      tq-broker task-queue pause mail --reason 'the server is down'
      tq-broker task-queue move mail mail-eu --type 'Send*' --dry-run
      tq-broker task-queue reclaim
    """


@task_queue.command("list")
@WAIT
@click.pass_context
def list_(ctx: click.Context, wait: timedelta) -> None:
    """List task queues: backlog, consumers, tasks in flight, workers, pauses.

    The activity and the workflow side of a task queue have a line each.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        note_if_unused(session, operations)
        found = operations.task_queues(wait.total_seconds())
    session.output.rows(
        ("TASK QUEUE", "SIDE", "BACKLOG", "CONSUMERS", "IN FLIGHT", "WORKERS", "PAUSED"),
        [
            (
                one.task_queue,
                one.side,
                one.backlog,
                one.consumers,
                one.in_flight,
                ",".join(one.workers),
                "" if one.pause is None else pause_line(one.pause),
            )
            for one in found
        ],
        data=[_summary(one) for one in found],
        empty="no task queues",
    )


@task_queue.command()
@click.argument("name")
@click.option(
    "--oldest",
    is_flag=True,
    help="Tell how long the first task has waited. RabbitMQ lets nobody look at a message in its"
    " place, so that task goes to the back of the queue.",
)
@WAIT
@click.pass_context
def describe(ctx: click.Context, name: str, oldest: bool, wait: timedelta) -> None:
    """Tell all about the task queue NAME.

    Backlog, age of the oldest task, consumers, tasks in flight, workers, the types they have
    registered and those that only some of them have.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        told = operations.describe(name, read_head=oldest, wait_s=wait.total_seconds())
    if session.output.as_json:
        session.output.json(_description(told))
        return
    one = told.summary
    fields: list[tuple[str, object]] = [("task queue", one.task_queue)]
    if one.pause is not None:
        fields.append(("PAUSED", pause_line(one.pause)))
    fields += [
        ("backlog", one.backlog),
        ("oldest age", _oldest(told)),
        ("consumers", one.consumers),
        ("in flight", one.in_flight),
    ]
    fields += [(f"waiting for {b.kind} {b.target}", b.backlog) for b in told.private]
    fields += [
        (
            "worker",
            f"{w.identity} (id {w.worker_id}, host {w.host}, {w.running}/{w.slots} slots"
            f"{', shutting down' if w.shutting_down else ''})",
        )
        for w in told.workers
    ]
    if not told.workers:
        fields.append(("worker", "none answered"))
    fields.append(("activities", ", ".join(told.activities) or "-"))
    fields += [
        ("MISMATCH", f"{type_} is not registered on {', '.join(who)}")
        for type_, who in told.mismatches
    ]
    if told.workflow is not None:
        fields += _workflow_fields(told.workflow)
    session.output.record(fields, data={})


@task_queue.command()
@click.argument("name")
@click.option("-n", "--count", type=click.IntRange(1, 1000), default=10, show_default=True)
@SIDE
@click.pass_context
def peek(ctx: click.Context, name: str, count: int, side: str) -> None:
    """Show the first tasks that wait in the task queue NAME.

    They go to the BACK of the queue: RabbitMQ marks a message that was looked at as redelivered,
    and a worker would take that for a lost attempt, so fresh copies are put there instead. A
    queue of up to 500 tasks that nobody serves keeps its order.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        tasks = operations.peek(name, count, side=side)
    session.output.rows(
        ("TYPE", "ID", "ATTEMPT", "AGE", "BYTES", "REDELIVERED", "ARGUMENTS"),
        [
            (
                one.type,
                one.id,
                one.attempt,
                age(one.age_s),
                one.size_bytes,
                "yes" if one.redelivered else "no",
                one.arguments,
            )
            for one in tasks
        ],
        data=[dataclasses.asdict(one) for one in tasks],
        empty="nothing waits",
    )


@task_queue.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def purge(ctx: click.Context, name: str, yes: bool) -> None:
    """Drop all tasks that wait in the task queue NAME, for ever. Nobody is told of it."""
    session = session_of(ctx)
    with session.operations() as operations:
        backlog = operations.describe(name, wait_s=0.0).summary.backlog
        confirm(f"Drop {backlog} tasks of task queue {name!r} for ever?", yes)
        dropped = operations.purge(name)
    session.output.done(f"{dropped} tasks dropped", data={"task_queue": name, "dropped": dropped})


@task_queue.command()
@click.argument("names", nargs=-1)
@click.option(
    "--grace",
    type=DURATION,
    default="1s",
    show_default=True,
    help="How long a task may be on its way inside RabbitMQ.",
)
@click.pass_context
def reclaim(ctx: click.Context, names: tuple[str, ...], grace: timedelta) -> None:
    """Remove task queues (all, or NAMES) that are empty and that nobody serves.

    No task is lost by it: whoever publishes to one meanwhile makes it anew.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        removed = operations.reclaim(names or None, grace_s=grace.total_seconds())
    session.output.rows(
        ("RECLAIMED",),
        [(name,) for name in removed],
        data=[{"task_queue": name} for name in removed],
        empty="nothing to reclaim",
    )


def note_if_unused(session: Session, operations: Operations) -> None:
    """Say on stderr that nobody has used the namespace: it may be mistyped."""
    if not operations.exists():
        click.echo(
            f"tq-broker: nobody has used namespace {session.namespace!r} on this broker", err=True
        )


def confirm(question: str, yes: bool) -> None:
    """Ask, unless ``yes``; a no ends the command.

    Raises:
        InvalidArgument: there is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidArgument(f"{question} Say --yes where nobody can be asked")
    click.confirm(question, abort=True, err=True)


def pause_line(pause: TaskQueuePaused) -> str:
    """Who paused it, when and why."""
    at = datetime.fromtimestamp(pause.at_ms / 1000, timezone.utc).isoformat(timespec="seconds")
    why = f": {pause.reason}" if pause.reason else ""
    return f"by {pause.by} at {at}{why}"


def _workflow_fields(told: WorkflowSideDescription) -> list[tuple[str, object]]:
    one = told.summary
    fields: list[tuple[str, object]] = []
    if one.pause is not None:
        fields.append(("workflows PAUSED", pause_line(one.pause)))
    fields += [
        ("workflow tasks", one.backlog),
        ("workflow consumers", one.consumers),
        ("workflow workers", ", ".join(one.workers) or "none answered"),
        ("workflows", ", ".join(told.workflows) or "-"),
    ]
    fields += [
        ("MISMATCH", f"workflow {type_} is not registered on {', '.join(who)}")
        for type_, who in told.mismatches
    ]
    return fields


def _oldest(told: TaskQueueDescription) -> str:
    if not told.summary.backlog:
        return "-"
    if told.oldest_age_s is None:
        return "not known (--oldest reads the first task, which then goes to the back)"
    return age(told.oldest_age_s)


def _summary(one: TaskQueueSummary) -> dict[str, Any]:
    pause = None if one.pause is None else msgspec.to_builtins(one.pause)
    return {**dataclasses.asdict(dataclasses.replace(one, pause=None)), "pause": pause}


def _mismatches(found: Iterable[tuple[str, tuple[str, ...]]]) -> list[dict[str, Any]]:
    return [{"type": name, "missing_on": list(who)} for name, who in found]


def _description(told: TaskQueueDescription) -> dict[str, Any]:
    return {
        **_summary(told.summary),
        "oldest_age_s": told.oldest_age_s,
        "private": [dataclasses.asdict(backlog) for backlog in told.private],
        "workers": [
            {
                "identity": w.identity,
                "worker_id": w.worker_id,
                "host": w.host,
                "slots": w.slots,
                "running": w.running,
            }
            for w in told.workers
        ],
        "activities": list(told.activities),
        "mismatches": _mismatches(told.mismatches),
        "workflow": None
        if told.workflow is None
        else {
            **_summary(told.workflow.summary),
            "workflows": list(told.workflow.workflows),
            "mismatches": _mismatches(told.workflow.mismatches),
        },
    }
