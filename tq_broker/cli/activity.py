"""``tq-broker activity``: start an activity, wait for its result, cancel it."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import click

from tq_broker.cli import exits
from tq_broker.cli.commands import Group, shared
from tq_broker.cli.output import age, visible, visible_json
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.task_queue import WAIT
from tq_broker.cli.values import DURATION, JSON_LIST, JSON_VALUE, TEXTS, parse_requires, parse_route
from tq_broker.client import ActivityDescription, ActivityState, BlockingActivityHandle
from tq_broker.client.finding import describe_activity
from tq_broker.common import ActivityIDConflictPolicy, RetryPolicy
from tq_broker.exceptions import ActivityError, FailureError, InvalidArgument

_CONFLICTS = {
    "join": ActivityIDConflictPolicy.USE_EXISTING,
    "refuse": ActivityIDConflictPolicy.FAIL,
}
_TIMEOUTS = (
    "start_to_close_timeout",
    "schedule_to_start_timeout",
    "schedule_to_close_timeout",
    "heartbeat_timeout",
)


@click.group(cls=Group)
def activity() -> None:
    """Start, find and cancel activities.

    \b
    Examples:
      tq-broker activity start send --task-queue mail --arg '"ann"' --start-to-close 30s
      tq-broker activity execute add --task-queue math --args '[1, 2]' --start-to-close 5s
      tq-broker activity cancel order-17 --reason 'customer called'
      tq-broker activity describe order-17 --task-queue shop --search 100
    """


_start_options = shared(
    click.argument("type", metavar="TYPE"),
    click.option(
        "-t", "--task-queue", metavar="NAME", help="Needed unless -A has it at the decorator."
    ),
    click.option("--args", type=JSON_LIST, metavar="JSON", help="All arguments: '[1, \"two\"]'."),
    click.option(
        "--arg", "each", type=JSON_VALUE, metavar="JSON", multiple=True, help="One; repeat it."
    ),
    click.option("--id", metavar="ID", help="Makes the start idempotent."),
    click.option(
        "--id-conflict",
        type=click.Choice(list(_CONFLICTS)),
        help="What a second start with the same id gets: the first one's outcome, or an error.",
    ),
    click.option("--start-to-close", type=DURATION, help="Bound of one attempt."),
    click.option("--schedule-to-start", type=DURATION, help="Bound of the wait in the queue."),
    click.option("--schedule-to-close", type=DURATION, help="Bound of everything."),
    click.option("--heartbeat", type=DURATION, help="Longest silence between heartbeats."),
    click.option("--max-attempts", type=click.IntRange(min=0), help="0: no bound."),
    click.option("--priority", type=click.IntRange(1, 5), help="1 is first.  [3]"),
    click.option("--fairness-key", help="Whose it is, where keys share what begins."),
    click.option("--fairness-weight", type=float, help="Of its key, 0.001 to 1000.  [1]"),
    click.option(
        "--header", "headers", type=TEXTS, multiple=True, metavar="K=V", help="Travels with it."
    ),
    click.option("--route", metavar="host:NAME|process:ID|version:V", help="Where it must run."),
    click.option(
        "--on-gone",
        metavar="fail|fall-back|wait:30s",
        default="fail",
        show_default=True,
        help="When nobody is there.",
    ),
    click.option("--version", metavar="V", help="The deployment version of its worker: shop.1.4."),
    click.option(
        "--requires", multiple=True, metavar="NAME", help="What its worker must have. Repeat it."
    ),
    click.option(
        "--on-unserved",
        metavar="wait|wait:30s|fail|fall-back",
        default="wait",
        show_default=True,
        help="When no living worker has that.",
    ),
    click.option("--delay", type=DURATION, help="Start it only after this pause."),
)


@activity.command()
@_start_options
@click.pass_context
def start(ctx: click.Context, /, **keywords: Any) -> None:
    """Start an activity of TYPE and print its id. Nobody gets its outcome."""
    session = session_of(ctx)
    with session.operator() as client:
        handle = _start(session, client, {**keywords, "wait_result": False})
        session.output.done(handle.id, data={"id": handle.id})


@activity.command()
@_start_options
@click.option("--timeout", type=DURATION, help="How long to wait.  [for ever]")
@click.pass_context
def execute(ctx: click.Context, /, timeout: timedelta | None, **keywords: Any) -> int:
    """Start an activity of TYPE, wait for it, and print its result as JSON.

    Exit code 1 if it failed, 3 if it has not ended within --timeout; it goes on then.
    """
    session = session_of(ctx)
    with session.operator() as client:
        handle = _start(session, client, keywords)
        try:
            result = handle.result(timeout)
        except ActivityError as error:
            return _report(session, error)
        encoded = client.core.converter.payload_converter.encode(result).decode()
    if session.output.as_json:
        session.output.json({"id": handle.id, "status": "completed", "result": _plain(encoded)})
    else:
        click.echo(visible_json(encoded))
    return exits.OK


@activity.command()
@click.argument("id", metavar="ID")
@click.option("--reason", default="", help="Told to the activity's caller.")
@click.pass_context
def cancel(ctx: click.Context, id: str, reason: str) -> None:
    """Ask that the activity with this ID be cancelled, wherever it is.

    The request is kept: a worker that starts later heeds it, too. Whether there is such an
    activity is not known here.
    """
    session = session_of(ctx)
    with session.operator() as client:
        client.cancel_activity(id, reason)
    session.output.done(f"cancellation of {id} requested", data={"id": id, "requested": True})


@activity.command()
@click.argument("id", metavar="ID")
@click.option("-t", "--task-queue", default="", metavar="NAME", help="Its task queue, if known.")
@click.option(
    "--search",
    type=click.IntRange(0, 1000),
    default=0,
    metavar="N",
    help="Look through the first N tasks of that task queue. They go to the back of it.",
)
@WAIT
@click.pass_context
def describe(ctx: click.Context, id: str, task_queue: str, search: int, wait: timedelta) -> int:
    """Tell what can be known of the activity with this ID: who has it, and where it goes and why.

    Workers are asked for it. RabbitMQ has no list of tasks, so one that waits is found only with
    --search, and one that is delayed until a start or a retry not at all: then its state is
    unknown, and the exit code 5. Activities of workflows are in: tq-broker workflow describe
    """
    session = session_of(ctx)
    with session.operator() as client:
        told = describe_activity(
            client.core,
            id,
            task_queue=task_queue,
            search=search,
            wait_s=wait.total_seconds(),
        )
    session.output.record(_told_fields(told), data=_told_data(told))
    return exits.NOT_FOUND if told.state is ActivityState.UNKNOWN else exits.OK


def _told_fields(told: ActivityDescription) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = [
        ("activity", told.id),
        ("state", told.state.value),
        ("type", told.type or "-"),
        ("task queue", told.task_queue or "-"),
        ("attempt", told.attempt or "-"),
    ]
    for worker in told.found:
        fields += [("worker", f"{worker.identity}: {one.hold.value}") for one in worker.tasks]
    if told.waits is not None:
        where = f"{told.waits.kind} {told.waits.target}".strip()
        fields.append(("waits in", f"{where}, for {age(told.waits.age_s)}"))
    if told.cancel_reason is not None:
        fields.append(("cancel requested", told.cancel_reason or "no reason given"))
    if told.parked_reason:
        fields.append(("parked", told.parked_reason))
    return fields + [("goes", f"{number}. {step}") for number, step in enumerate(told.steps, 1)]


def _told_data(told: ActivityDescription) -> dict[str, Any]:
    return {
        "id": told.id,
        "state": told.state.value,
        "type": told.type,
        "task_queue": told.task_queue,
        "attempt": told.attempt,
        "found": [
            {
                "worker": worker.identity,
                "hold": one.hold.value,
                "attempt": one.attempt,
                "at_ms": one.at_ms,
            }
            for worker in told.found
            for one in worker.tasks
        ],
        "waits": None if told.waits is None else dataclasses.asdict(told.waits),
        "cancel_reason": told.cancel_reason,
        "parked_reason": told.parked_reason,
        "steps": list(told.steps),
    }


def _application(session: Session) -> Any:
    return session.application() if session.app else None


def _start(
    session: Session, client: Any, keywords: Mapping[str, Any]
) -> BlockingActivityHandle[Any]:
    """Start what the options say; with ``-A`` the decorator's options are the defaults."""
    application = _application(session)
    known = application.find(keywords["type"]) if application else None
    if keywords["args"] is not None and keywords["each"]:
        raise InvalidArgument("give either --args or --arg, not both")
    args = list(keywords["each"]) if keywords["args"] is None else keywords["args"]
    options = _options(keywords)
    if known is None:
        if "task_queue" not in options:
            raise InvalidArgument("name the task queue: --task-queue NAME")
        if not options.keys() & {"start_to_close_timeout", "schedule_to_close_timeout"}:
            raise InvalidArgument("bound it: --start-to-close 30s, or --schedule-to-close 5m")
    handle: BlockingActivityHandle[Any] = client.start_activity(
        known or keywords["type"], args=args, **options
    )
    return handle


def _options(keywords: Mapping[str, Any]) -> dict[str, Any]:
    conflict, attempts, route = (
        keywords["id_conflict"],
        keywords["max_attempts"],
        keywords["route"],
    )
    options = {
        "task_queue": keywords["task_queue"],
        "id": keywords["id"],
        "id_conflict_policy": _CONFLICTS[conflict] if conflict else None,
        "retry_policy": None if attempts is None else RetryPolicy(maximum_attempts=attempts),
        "priority": keywords["priority"],
        "fairness_key": keywords["fairness_key"],
        "fairness_weight": keywords["fairness_weight"],
        "headers": dict(keywords["headers"]) or None,
        "route": parse_route(route, keywords["on_gone"]) if route else None,
        "version": keywords["version"],
        "requires": parse_requires(keywords["requires"], keywords["on_unserved"]),
        "start_delay": keywords["delay"],
        "wait_result": keywords.get("wait_result"),
    }
    for name in _TIMEOUTS:
        options[name] = keywords[name.removesuffix("_timeout")]
    return {name: value for name, value in options.items() if value is not None}


def _report(session: Session, error: ActivityError) -> int:
    """Say how an activity failed: on one line, or as JSON on stdout."""
    cause = error.cause
    message = cause.message if isinstance(cause, FailureError) else str(cause)
    type_ = getattr(cause, "type", None)
    # Of retries that ran out of time: why they were needed.
    last = cause.cause if isinstance(cause, FailureError) else None
    if session.output.as_json:
        session.output.json(
            {
                "id": error.activity_id,
                "status": "failed",
                "error": {
                    "kind": type(cause).__name__,
                    "type": type_.name if isinstance(type_, enum.Enum) else type_,
                    "message": message,
                    "cause": None if last is None else str(last),
                    "attempt": error.attempt,
                    "retry_state": error.retry_state.name if error.retry_state else None,
                },
            }
        )
    else:
        why = "" if last is None else f": {last}"
        print(f"tq-broker: {visible(f'{error}{why}')} (attempt {error.attempt})", file=sys.stderr)
    return exits.FAILED


def _plain(encoded: str) -> Any:
    return JSON_VALUE.convert(encoded, None, None)
