"""``tq-broker task-queue``: what waits, who serves it, and what can be done about it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
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
from tq_broker.client.sampling import Sample
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.capabilities import in_words
from tq_broker.model.composition import Way
from tq_broker.model.figures import Figures, QueueFigures
from tq_broker.model.figures import Part as PartFigures
from tq_broker.model.limits import Limits, Side
from tq_broker.model.parts import ALL, Part, part_of
from tq_broker.model.settings import ACTIVITY_SIDE, SIDES, BackedOff, LimitState, TaskQueuePaused

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

PRIORITIES_HINT = (
    "; RabbitMQ does not tell how many of each wait: --sample N reads the first N and counts them"
)

REQUIRES = click.option(
    "--requires",
    multiple=True,
    metavar="NAME",
    help="Only tasks that require just these capabilities. Repeat it.",
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

    The activity and the workflow side of a task queue have a line each, and so has each set of
    capabilities that tasks require.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        note_if_unused(session, operations)
        found = operations.task_queues(wait.total_seconds())
    session.output.rows(
        (
            *("TASK QUEUE", "SIDE", "BACKLOG", "CONSUMERS"),
            *("IN FLIGHT", "WORKERS", "PAUSED", "REQUIRES"),
        ),
        [
            (
                one.task_queue,
                one.side,
                one.backlog,
                one.consumers,
                one.in_flight,
                ",".join(one.workers),
                _stopped(one),
                ",".join(one.requires),
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
@click.option(
    "--sample",
    type=click.IntRange(0, 1000),
    default=0,
    metavar="N",
    help="Read the first N activities, which go to the back as well, and count their priorities and"
    " keys: RabbitMQ does not tell those.",
)
@WAIT
@click.pass_context
def describe(ctx: click.Context, name: str, oldest: bool, sample: int, wait: timedelta) -> None:
    """Tell all about the task queue NAME.

    Backlog, where it waits and for whom, age of the oldest task, figures of the whole, of its
    priorities and of the busiest keys, limits, traffic rules and versions, consumers, tasks in
    flight, workers, the types they have registered and those that only some of them have.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        told = operations.describe(
            name, read_head=oldest, sample=sample, wait_s=wait.total_seconds()
        )
    if session.output.as_json:
        session.output.json(_description(told))
        return
    one = told.summary
    fields: list[tuple[str, object]] = [("task queue", one.task_queue)]
    if one.pause is not None:
        fields.append(("PAUSED", pause_line(one.pause)))
    fields += [back_off_field(back_off) for back_off in one.back_offs]
    fields += [
        ("backlog", one.backlog),
        ("oldest age", _oldest(told)),
        ("consumers", one.consumers),
        ("in flight", one.in_flight),
    ]
    if one.prioritized:
        more = told.sample is None and one.backlog
        fields.append(("priorities", f"kept by a priority queue{PRIORITIES_HINT if more else ''}"))
    if one.fair:
        fields.append(("fairness", "keys share what begins"))
    for figures in told.figures:
        fields += figures_fields(figures)
    for side, state in told.limits:
        if state.source is not None:
            fields += [(f"{side.value} {key}", value) for key, value in limits_fields(state)]
    fields += part_fields(told.part_limits)
    if told.part_limits or told.waiting:
        fields.append(("waiting for limits", told.waiting))
    fields += [
        ("SETTINGS LOG", f"{who}: {fault}" if who else fault) for who, fault in told.settings_faults
    ]
    fields += queues_fields(one.queues)
    fields += [_capable_field(one) for one in told.capable]
    if told.sample is not None:
        fields += _sample_fields(told.sample)
    fields += [("route", step) for step in told.routes]
    fields += [
        (
            "worker",
            f"{w.identity} (id {w.worker_id}, host {w.host}, {w.running}/{w.slots} slots"
            f"{', has ' + in_words(w.capabilities) if w.capabilities else ''}"
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
@REQUIRES
@click.pass_context
def peek(ctx: click.Context, name: str, count: int, side: str, requires: tuple[str, ...]) -> None:
    """Show the first tasks that wait in the task queue NAME.

    Those of all its queues, and where each waits. They go to the BACK: RabbitMQ marks a message
    that was looked at as redelivered, and a worker would take that for a lost attempt, so fresh
    copies are put there instead. A queue of up to 500 tasks that nobody serves keeps its order.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        tasks = operations.peek(name, count, side=side, requires=requires)
    session.output.rows(
        (
            *("TYPE", "ID", "PRIORITY", "ATTEMPT", "AGE", "BYTES", "REDELIVERED"),
            *("WAITS IN", "ARGUMENTS"),
        ),
        [
            (
                one.type,
                one.id,
                one.priority,
                one.attempt,
                age(one.age_s),
                one.size_bytes,
                "yes" if one.redelivered else "no",
                f"{one.kind} {one.target}".strip(),
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
@REQUIRES
@click.pass_context
def purge(ctx: click.Context, name: str, yes: bool, requires: tuple[str, ...]) -> None:
    """Drop all activities that wait in the task queue NAME, for ever. Nobody is told of it.

    Those of all its queues: also what is for a version, a host or a process, or waits for a limit.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        estate = operations.estate(name, requires=requires)
        backlog = sum(one.backlog for one in estate.values())
        confirm(f"Drop {backlog} tasks of task queue {name!r} for ever?", yes)
        dropped = operations.purge(name, requires=requires)
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


@task_queue.group("config", cls=Group)
def config() -> None:
    """Limits of a task queue: how fast, and how many at once, all its workers together.

    \b
    Examples:
      tq-broker task-queue config get mail
      tq-broker task-queue config set mail --rate 10 --burst 20 --reason "provider's limit"
      tq-broker task-queue config set mail --concurrency 4
      tq-broker task-queue config set mail --type SendMail --rate 5
      tq-broker task-queue config set mail --each-key --concurrency 2
      tq-broker task-queue config set mail --rate none
      tq-broker task-queue config reset mail
    """


REASON = click.option("--reason", default="", help="For those who ask later.")


def _part_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which activities of the task queue are meant."""
    for option in (
        click.option("--each-key", is_flag=True, help="For each rate_limit_key, one by one."),
        click.option("--key", help="For the activities with this rate_limit_key."),
        click.option("--type", "type_", help="For the activities of this type."),
    ):
        command = option(command)
    return command


@config.command()
@click.argument("name")
@SIDE
@click.pass_context
def get(ctx: click.Context, name: str, side: str) -> None:
    """Tell the limits of the task queue NAME and of its types and keys, who set them, when and why,
    and what its activities have asked for.
    """
    session = session_of(ctx)
    with session.operations() as operations:
        settings = operations.settings_of(name, Side(side))
    state = settings.limits(Side(side), name)
    is_activity = side == ACTIVITY_SIDE
    parts = settings.part_limits(name) if is_activity else []
    back_offs = settings.back_offs(name) if is_activity else []
    fields = [("task queue", name), *limits_fields(state), *part_fields(parts)]
    fields += [back_off_field(one) for one in back_offs]
    if settings.fault:
        fields.append(("SETTINGS LOG", settings.fault))
    session.output.record(
        fields,
        data={
            "task_queue": name,
            **limits_data(state),
            "parts": parts_data(parts),
            "back_offs": back_offs_data(back_offs),
            "settings_fault": settings.fault,
        },
    )


@config.command("set")
@click.argument("name")
@click.option("--rate", help="Tasks per second, or none.")
@click.option("--burst", help="Tasks at once after a quiet time, or none for the default.")
@click.option("--concurrency", help="Tasks that run at a time, or none.")
@_part_options
@click.option("--force", is_flag=True, help="Also for a type that no worker there registers.")
@REASON
@SIDE
@click.pass_context
def set_(
    ctx: click.Context,
    name: str,
    rate: str | None,
    burst: str | None,
    concurrency: str | None,
    type_: str | None,
    key: str | None,
    each_key: bool,
    force: bool,
    reason: str,
    side: str,
) -> None:
    """Set limits of the task queue NAME; what is not given stays as it is.

    With --type, --key or --each-key they are for these activities only, beside those of all.
    What is set for one key stands in place of what is set for each. A type that none of its living
    workers registers is refused unless it is forced; when no worker answers that is told.

    All workers keep them within a second. Should somebody else change them at the same time,
    whoever comes first is in force, and the other one is told.
    """
    given: dict[str, Any] = {}
    for option, text, read in (
        ("rate", rate, float),
        ("burst", burst, int),
        ("concurrency", concurrency, int),
    ):
        if text is not None:
            given[option] = _number(option, text, read)
    if not given:
        raise InvalidArgument("nothing to set; give --rate, --burst or --concurrency")
    if "rate" in given and given["rate"] is None:
        given.setdefault("burst", None)  # it has nothing to belong to
    part = part_of(type_, key, each_key=each_key)
    if not force:
        with session_of(ctx).operations() as operations:
            if note := operations.review_part(name, part):
                click.echo(f"tq-broker: {note}", err=True)
    _change(ctx, name, part, side, reason, lambda limits: msgspec.structs.replace(limits, **given))


@config.command()
@click.argument("name")
@_part_options
@REASON
@SIDE
@click.pass_context
def reset(
    ctx: click.Context,
    name: str,
    type_: str | None,
    key: str | None,
    each_key: bool,
    reason: str,
    side: str,
) -> None:
    """Take the setting of the task queue NAME back: its workers' options count again.

    With --type, --key or --each-key only what was set for that.
    """
    _change(ctx, name, part_of(type_, key, each_key=each_key), side, reason, None)


def _number(option: str, text: str, read: Callable[[str], Any]) -> Any:
    if text == "none":
        return None
    try:
        return read(text)
    except ValueError:
        number = "a whole number" if read is int else "a number"
        raise InvalidArgument(f"{option} is {text!r}; write {number}, or none") from None


def _change(
    ctx: click.Context,
    name: str,
    part: Part,
    side: str,
    reason: str,
    change: Callable[[Limits], Limits] | None,
) -> None:
    session = session_of(ctx)
    with session.operations() as operations:
        state = operations.set_limits(name, change, side=Side(side), part=part, reason=reason)
    data = {"task_queue": name, "part": part_data(part), **limits_data(state)}
    fields: list[tuple[str, object]] = [("task queue", name)]
    if part != ALL:
        fields.append(("for", str(part)))
    session.output.record([*fields, *limits_fields(state)], data=data)


def part_fields(parts: Iterable[tuple[Part, LimitState]]) -> list[tuple[str, object]]:
    """The limits of types and keys, for people."""
    return [
        (f"{part} {name}", value) for part, state in parts for name, value in limits_fields(state)
    ]


def part_data(part: Part) -> dict[str, str]:
    """Which activities are meant, for programs."""
    return {"kind": part.kind.value, "name": part.name}


def parts_data(parts: Iterable[tuple[Part, LimitState]]) -> list[dict[str, Any]]:
    """The limits of types and keys, for programs."""
    return [{**part_data(part), **limits_data(state)} for part, state in parts]


def limits_fields(state: LimitState) -> list[tuple[str, object]]:
    """The limits in force, for people."""
    limits, source = state.limits, state.source
    rate = "-" if limits.rate is None else f"{limits.rate:g}/s, burst {limits.burst_size}"
    fields: list[tuple[str, object]] = [
        ("rate", rate),
        ("concurrency", "-" if limits.concurrency is None else limits.concurrency),
    ]
    if source is not None:
        when = datetime.fromtimestamp(source.at_ms / 1000, timezone.utc)
        kind = "default of a worker" if source.is_default else "setting"
        fields += [
            ("set by", f"{source.by or '?'} ({kind})"),
            ("set at", when.isoformat(timespec="seconds")),
            ("reason", source.reason or "-"),
        ]
    return fields


def limits_data(state: LimitState) -> dict[str, Any]:
    """The limits in force, for programs."""
    limits, source = state.limits, state.source
    return {
        "rate": limits.rate,
        "burst": limits.burst_size if limits.rate is not None else None,
        "concurrency": limits.concurrency,
        "revision": state.revision,
        "source": "none" if source is None else "default" if source.is_default else "setting",
        "by": "" if source is None else source.by,
        "at_ms": None if source is None else source.at_ms,
        "reason": "" if source is None else source.reason,
    }


def figures_fields(told: Figures) -> list[tuple[str, object]]:
    """The figures of one side, for people; what the rest of a description tells is left out."""
    side, limit = told.side.value, told.limit
    waits = "-" if told.last_waited_s is None else age(told.last_waited_s)
    fields: list[tuple[str, object]] = [
        (f"{side} add rate", f"{told.add_rate:.3g}/s"),
        (f"{side} dispatch rate", f"{told.dispatch_rate:.3g}/s"),
        (f"{side} last wait", waits),
        (f"{side} slots", f"{told.slots_used} of {told.slots} used"),
    ]
    fields += [(f"{side} {_part_name(part)}", part_told(part)) for part in told.parts]
    if told.sticky_hits or told.sticky_misses:
        hits, sent = told.sticky_hits, told.sticky_hits + told.sticky_misses
        fields.append((f"{side} sticky cache", f"{hits} of {sent} hits"))
    if limit.source == "workers":
        fields.append((f"{side} rate of the workers", f"{limit.rate:g}/s"))
    if limit.is_limiting:
        fields.append((f"{side} LIMITED", "tasks wait although there are free slots"))
    return fields


def _part_name(part: PartFigures) -> str:
    return f"priority {part.priority}" if part.key is None else f"key {part.key}"


def part_told(part: PartFigures) -> str:
    """The figures of a priority or key, for people."""
    told = [f"{part.dispatch_rate:.3g}/s"]
    if part.last_waited_s is not None:
        told.append(f"last wait {age(part.last_waited_s)}")
    if part.backlog:
        told.append(f"{part.backlog} held back, oldest {age(part.oldest_age_s)}")
    limit = part.limit
    if limit is not None:
        told += [] if limit.rate is None else [f"limit {limit.rate:g}/s ({limit.source})"]
        if limit.concurrency is not None:
            told.append(f"limit {limit.concurrency} at once ({limit.source})")
        told += ["BACKED OFF"] if limit.is_paused else []
        told += ["LIMITED"] if limit.is_limiting else []
    return ", ".join(told)


def queues_fields(queues: Iterable[QueueFigures]) -> list[tuple[str, object]]:
    """What waits for some workers only, for people."""
    fields: list[tuple[str, object]] = []
    for one in queues:
        if one.way in (Way.SHARED, Way.LIMITED):
            continue
        nobody = ", NOBODY takes them now" if one.backlog and not one.consumers else ""
        verb = "lent to" if one.way is Way.DETOUR else f"waiting for {one.kind}"
        fields.append((f"{verb} {one.target}", f"{one.backlog}{nobody}"))
    return fields


def _sample_fields(told: Sample) -> list[tuple[str, object]]:
    more = "" if told.is_whole else " or more"
    what = "all" if told.is_whole else "the first ones"
    return [
        ("sample", f"{told.read} of {told.waiting} tasks read, {what}"),
        *((f"waiting with priority {one}", f"{count}{more}") for one, count in told.priorities),
        *((f"waiting with key {one}", f"{count}{more}") for one, count in told.keys),
    ]


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


def _stopped(one: TaskQueueSummary) -> str:
    if one.pause is not None:
        return pause_line(one.pause)
    return "; ".join(": ".join(back_off_field(found)) for found in one.back_offs if not found.key)


def back_off_field(back_off: BackedOff) -> tuple[str, str]:
    """A back-off that an activity has asked for, for people."""
    whom = f" of key {back_off.key!r}" if back_off.key else ""
    until = datetime.fromtimestamp(back_off.until_ms / 1000, timezone.utc)
    when = until.isoformat(timespec="seconds")
    return f"BACKED OFF{whom}", f"until {when}, by {back_off.by or '?'}: {back_off.reason or '-'}"


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
        *((f"workflows {name}", value) for name, value in queues_fields(one.queues)),
    ]
    fields += [
        ("MISMATCH", f"workflow {type_} is not registered on {', '.join(who)}")
        for type_, who in told.mismatches
    ]
    return fields


def _capable_field(one: TaskQueueSummary) -> tuple[str, object]:
    name = f"waiting for {in_words(one.requires)}"
    if one.workers:
        return name, f"{one.backlog} (served by {', '.join(one.workers)})"
    # One that is paused has no consumers either, but its workers answer.
    who = "NOBODY who answers" if one.backlog else "nobody who answers"
    return name, f"{one.backlog} (served by {who})"


def _oldest(told: TaskQueueDescription) -> str:
    if not told.summary.backlog:
        return "-"
    if told.oldest_age_s is None:
        return "not known (--oldest reads the first task, which then goes to the back)"
    return age(told.oldest_age_s)


def _summary(one: TaskQueueSummary) -> dict[str, Any]:
    plain = dataclasses.asdict(dataclasses.replace(one, pause=None, back_offs=(), queues=()))
    return {
        **plain,
        "queues": msgspec.to_builtins(one.queues),
        "pause": None if one.pause is None else msgspec.to_builtins(one.pause),
        "back_offs": back_offs_data(one.back_offs),
    }


def back_offs_data(back_offs: Iterable[BackedOff]) -> list[dict[str, Any]]:
    """What activities have asked for, for programs."""
    return [
        {
            "key": one.key,
            "until_ms": one.until_ms,
            "at_ms": one.at_ms,
            "by": one.by,
            "reason": one.reason,
        }
        for one in back_offs
    ]


def _sample_data(told: Sample) -> dict[str, Any]:
    return {
        "read": told.read,
        "waiting": told.waiting,
        "is_whole": told.is_whole,
        "priorities": [{"priority": one, "count": count} for one, count in told.priorities],
        "keys": [{"key": one, "count": count} for one, count in told.keys],
    }


def _mismatches(found: Iterable[tuple[str, tuple[str, ...]]]) -> list[dict[str, Any]]:
    return [{"type": name, "missing_on": list(who)} for name, who in found]


def _description(told: TaskQueueDescription) -> dict[str, Any]:
    return {
        **_summary(told.summary),
        "oldest_age_s": told.oldest_age_s,
        "limits": {side.value: limits_data(state) for side, state in told.limits},
        "capable": [_summary(one) for one in told.capable],
        "figures": {one.side.value: msgspec.to_builtins(one) for one in told.figures},
        "part_limits": parts_data(told.part_limits),
        "waiting_for_limits": told.waiting,
        "settings_faults": [{"worker": who, "fault": what} for who, what in told.settings_faults],
        "private": msgspec.to_builtins(told.private),
        "routes": list(told.routes),
        "sample": None if told.sample is None else _sample_data(told.sample),
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
