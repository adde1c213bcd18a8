"""``tq-broker workflow``: start workflows, talk to them, and look at them."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import click

from tq_broker.cli import exits
from tq_broker.cli import workflow_report as report
from tq_broker.cli.commands import Group, affinity_options, shared
from tq_broker.cli.output import visible, visible_json
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.values import (
    DURATION,
    JSON_VALUE,
    TEXTS,
    parse_affinity,
    parse_requires,
    parse_route,
)
from tq_broker.client import (
    BlockingClient,
    BlockingWorkflowHandle,
    QueryRejectCondition,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from tq_broker.common import (
    AutoUpgradeVersioningOverride,
    PinnedVersioningOverride,
    RetryPolicy,
    VersioningOverride,
    WorkerDeploymentVersion,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from tq_broker.exceptions import InvalidArgument, TqBrokerError
from tq_broker.model.events import CLOSING, Event, WorkflowExecutionStarted
from tq_broker.model.history_json import WorkflowHistory

FOLLOW_S = 0.5
"""How often a history that is followed is asked for more."""
_REUSE = {
    "allow": WorkflowIDReusePolicy.ALLOW_DUPLICATE,
    "failed-only": WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
    "reject": WorkflowIDReusePolicy.REJECT_DUPLICATE,
}
_CONFLICT = {
    "fail": WorkflowIDConflictPolicy.FAIL,
    "use-existing": WorkflowIDConflictPolicy.USE_EXISTING,
    "terminate": WorkflowIDConflictPolicy.TERMINATE_EXISTING,
}


@click.group(cls=Group)
def workflow() -> None:
    """Start workflows, talk to them, and look at them. Needs a history service (tq-broker history).

    \b
    Examples:
      tq-broker workflow start Order -t orders --id order-17 --input '{"number": 17}'
      tq-broker workflow signal order-17 approve --input '"ann"'
      tq-broker workflow result order-17
      tq-broker workflow show order-17 --follow
      tq-broker workflow list -q 'status = "running" and type = "Order"'
    """


_inputs = click.option(
    "-i",
    "--input",
    "inputs",
    type=JSON_VALUE,
    metavar="JSON",
    multiple=True,
    help="One argument; repeat it for several.",
)
_run_id = click.option("-r", "--run-id", metavar="ID", help="One run of it.  [the current one]")
_timeout = click.option("--timeout", type=DURATION, help="How long to wait.  [for ever]")
_id = click.argument("id", metavar="ID")

_start_options = shared(
    click.argument("type", metavar="TYPE"),
    click.option(
        "-t",
        "--task-queue",
        metavar="NAME",
        help="Where its workers are. Required, unless -A knows it.",
    ),
    click.option("--id", metavar="ID", help="Names the workflow.  [made up]"),
    _inputs,
    click.option("--execution-timeout", type=DURATION, help="Bound of all its runs."),
    click.option("--run-timeout", type=DURATION, help="Bound of one run."),
    click.option("--task-timeout", type=DURATION, help="Bound of one workflow task.  [10s]"),
    click.option(
        "--id-reuse",
        type=click.Choice(list(_REUSE)),
        help="When the id's last run has ended.  [allow]",
    ),
    click.option(
        "--id-conflict",
        type=click.Choice(list(_CONFLICT)),
        help="While a run with the id is open.  [fail]",
    ),
    click.option("--max-attempts", type=click.IntRange(min=0), help="Retry it; 0: no bound."),
    click.option("--cron", metavar="SCHEDULE", help="Such as '0 12 * * MON-FRI' or '@every 5m'."),
    click.option("--delay", type=DURATION, help="Begin only after this pause."),
    click.option("--memo", metavar="NAME=JSON", multiple=True, help="Told with it; repeat it."),
    click.option("--priority", type=click.IntRange(1, 5), help="Of its activities; 1 is first."),
    click.option("--fairness-key", help="Whose it is, where keys share what begins."),
    click.option("--fairness-weight", type=float, help="Of its key, 0.001 to 1000.  [1]"),
    click.option(
        "--header", "headers", type=TEXTS, multiple=True, metavar="K=V", help="Travels with it."
    ),
    click.option(
        "--versioning-override",
        metavar="VERSION|auto-upgrade",
        help="Pin it to this deployment version, such as shop.1.4, or let it follow the current.",
    ),
    click.option(
        "--route", metavar="host:NAME|process:ID", help="The workers that have its workflow tasks."
    ),
    click.option(
        "--on-gone",
        default="fail",
        show_default=True,
        metavar="fail|fall-back|wait:30s",
        help="When nobody is there any more.",
    ),
    click.option(
        "--requires", multiple=True, metavar="NAME", help="Those workers have it. Repeat it."
    ),
    click.option(
        "--on-unserved",
        default="wait",
        show_default=True,
        metavar="wait|wait:30s|fail|fall-back",
        help="When no living worker has it all.",
    ),
    affinity_options,
    click.option("--static-summary", metavar="TEXT", help="One line for people."),
    click.option("--start-signal", metavar="NAME", help="Deliver this signal with the start."),
    click.option(
        "--start-signal-input",
        "signal_inputs",
        type=JSON_VALUE,
        metavar="JSON",
        multiple=True,
        help="One argument of it; repeat it.",
    ),
)


@workflow.command()
@_start_options
@click.pass_context
def start(ctx: click.Context, /, **keywords: Any) -> None:
    """Start a workflow of TYPE and print its id.

    With -A the options at its decorator are the defaults.
    """
    options = _options(keywords)
    with _client(ctx) as (session, client):
        handle = _started(session, client, keywords, options)
        session.output.done(
            handle.id, data={"id": handle.id, "run_id": handle.first_execution_run_id}
        )


@workflow.command()
@_start_options
@_timeout
@click.pass_context
def execute(ctx: click.Context, /, timeout: timedelta | None, **keywords: Any) -> int:
    """Start a workflow of TYPE, wait for it, and print its result as JSON.

    With -A the options at its decorator are the defaults. Exit code 1 if it ended badly, 3 if it
    has not ended within --timeout; it goes on then.
    """
    options = _options(keywords)
    with _client(ctx) as (session, client):
        handle = _started(session, client, keywords, options)
        return _wait(session, handle, timeout, follow_runs=True)


@workflow.command()
@_id
@_run_id
@_timeout
@click.option("--no-follow", is_flag=True, help="End with this run, also if it goes on in another.")
@click.pass_context
def result(
    ctx: click.Context, id: str, run_id: str | None, timeout: timedelta | None, no_follow: bool
) -> int:
    """Wait for the workflow ID to end, and print its result as JSON.

    Exit codes as of execute.
    """
    with _client(ctx) as (session, client):
        handle = client.get_workflow_handle(id, run_id=run_id)
        return _wait(session, handle, timeout, follow_runs=not no_follow)


@workflow.command()
@_id
@click.argument("name", metavar="SIGNAL")
@_inputs
@_run_id
@click.pass_context
def signal(
    ctx: click.Context, id: str, name: str, inputs: tuple[Any, ...], run_id: str | None
) -> None:
    """Send SIGNAL to the workflow ID. One that its code does not know is kept, too."""
    with _client(ctx) as (session, client):
        client.get_workflow_handle(id, run_id=run_id).signal(name, args=inputs)
        session.output.done(f"signal {name} sent to {id}", data={"id": id, "signal": name})


@workflow.command()
@_id
@click.argument("name", metavar="QUERY")
@_inputs
@_run_id
@click.option("--only-open", is_flag=True, help="Fail if the workflow has ended.")
@click.pass_context
def query(
    ctx: click.Context,
    id: str,
    name: str,
    inputs: tuple[Any, ...],
    run_id: str | None,
    only_open: bool,
) -> None:
    """Ask a worker for QUERY of the workflow ID, and print the answer as JSON."""
    condition = QueryRejectCondition.NOT_OPEN if only_open else None
    with _client(ctx) as (session, client):
        handle = client.get_workflow_handle(id, run_id=run_id)
        answer = handle.query(name, args=inputs, reject_condition=condition)
        _print(session, answer, {"id": id, "query": name})


@workflow.command()
@_id
@click.argument("name", metavar="UPDATE")
@_inputs
@_run_id
@click.option("--update-id", metavar="ID", help="Makes it idempotent.  [made up]")
@click.option(
    "--wait",
    type=click.Choice([stage.name.lower() for stage in WorkflowUpdateStage]),
    default="completed",
    show_default=True,
    help="How far it must have come.",
)
@_timeout
@click.pass_context
def update(
    ctx: click.Context,
    id: str,
    name: str,
    inputs: tuple[Any, ...],
    run_id: str | None,
    update_id: str | None,
    wait: str,
    timeout: timedelta | None,
) -> int:
    """Send UPDATE to the workflow ID, and print its result as JSON (its id, if not waited for).

    Exit code 1 if it was rejected or failed, 3 if it has not come so far within --timeout; it may
    be under way then: ask again with its --update-id.
    """
    stage = WorkflowUpdateStage[wait.upper()]
    with _client(ctx) as (session, client):
        handle = client.get_workflow_handle(id, run_id=run_id)
        sent = handle.start_update(
            name, args=inputs, id=update_id, wait_for_stage=stage, timeout=timeout
        )
        data = {"id": id, "update": name, "update_id": sent.id}
        if stage is not WorkflowUpdateStage.COMPLETED:
            session.output.done(sent.id, data=data)
            return exits.OK
        try:
            _print(session, sent.result(), data)
        except WorkflowUpdateFailedError as error:
            return _failed(session, error, data)
    return exits.OK


@workflow.command()
@_id
@_run_id
@click.option("--reason", default="", help="Kept in the history.")
@click.pass_context
def cancel(ctx: click.Context, id: str, run_id: str | None, reason: str) -> None:
    """Ask that the workflow ID be cancelled: its code decides how it ends."""
    with _client(ctx) as (session, client):
        client.get_workflow_handle(id, run_id=run_id).cancel(reason=reason)
        text = f"cancellation of {id} requested"
        session.output.done(text, data={"id": id, "requested": True})


@workflow.command()
@_id
@_run_id
@click.option("--reason", default="", help="Kept in the history.")
@click.pass_context
def terminate(ctx: click.Context, id: str, run_id: str | None, reason: str) -> None:
    """End the workflow ID at once. Its code is not told."""
    with _client(ctx) as (session, client):
        client.get_workflow_handle(id, run_id=run_id).terminate(reason=reason)
        session.output.done(f"{id} terminated", data={"id": id, "terminated": True})


@workflow.command()
@_id
@_run_id
@click.pass_context
def describe(ctx: click.Context, id: str, run_id: str | None) -> None:
    """Tell all about the workflow ID: status, task queue, what it waits for."""
    with _client(ctx) as (session, client):
        run = client.get_workflow_handle(id, run_id=run_id).describe()
        told = [one.raw for one in run.pending_activities]
        traffic = client.operations.traffic
        ways = traffic.explain_pending(told, run.raw.info) if told else []
        is_bound = run.route or run.requires or run.raw.affinity
        way = traffic.explain_run(run.raw) if is_bound else []
    output = session.output
    output.record(
        report.description_fields(run) + [("where", step) for step in way],
        data=report.description_data(run, ways) | ({"where": way} if way else {}),
    )
    if run.pending_activities and not output.as_json:
        rows = [report.activity_row(one) for one in run.pending_activities]
        output.rows(report.PENDING_HEADING, rows, data=[])
        for one, steps in zip(run.pending_activities, ways, strict=True):
            output.rows(("", ""), report.way_rows(one, steps), data=[])


@workflow.command()
@_id
@_run_id
@click.option("-f", "--follow", is_flag=True, help="Go on until it has ended.")
@click.pass_context
def show(ctx: click.Context, id: str, run_id: str | None, follow: bool) -> None:
    """Print the history of the workflow ID, one event per line.

    With --json in the form in which Temporal exports histories; with --follow one event per line.
    """
    with _client(ctx) as (session, client):
        handle = client.get_workflow_handle(id, run_id=run_id)
        if not follow:
            _show(session, client, handle)
            return
        for event in _followed(client, id, run_id):
            _show_event(session, client, id, event)


@workflow.command("list")
@click.option("-q", "--query", metavar="QUERY", help="Such as 'status = \"running\"'.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="No more than that."
)
@click.pass_context
def list_(ctx: click.Context, query: str | None, limit: int) -> None:
    """List workflows, newest first.

    QUERY is made of conditions joined by "and": type, status, task_queue (=, !=, in), id (=, in,
    starts_with), start_time and close_time (<, <=, >, >=, =; ISO 8601).
    """
    with _client(ctx) as (session, client):
        runs = list(client.list_workflows(query, limit=limit))
    session.output.rows(
        report.LIST_HEADING,
        [report.run_row(run) for run in runs],
        data=[report.run_data(run) for run in runs],
        empty="no workflows",
    )


@workflow.command()
@click.option("-q", "--query", metavar="QUERY", help="As of list.")
@click.pass_context
def count(ctx: click.Context, query: str | None) -> None:
    """Count workflows."""
    with _client(ctx) as (session, client):
        found = client.count_workflows(query)
    data = {"count": found.count, "groups": dict(found.groups)}
    session.output.done(str(found.count), data=data)


@contextmanager
def _client(ctx: click.Context) -> Iterator[tuple[Session, BlockingClient]]:
    session = session_of(ctx)
    with session.operator() as client:
        yield session, client


def _started(
    session: Session, client: BlockingClient, keywords: Mapping[str, Any], options: dict[str, Any]
) -> BlockingWorkflowHandle[Any]:
    """Start what the options say; with ``-A`` the decorator's options are the defaults."""
    application = session.application() if session.app else None
    known = application.find_workflow(keywords["type"]) if application else None
    if known is None and "task_queue" not in options:
        raise InvalidArgument("name the task queue: --task-queue NAME")
    handle = client.start_workflow(known or keywords["type"], args=keywords["inputs"], **options)
    # Its result is printed as it comes, not as what the code makes of it.
    run_id = handle.first_execution_run_id
    return client.get_workflow_handle(handle.id, first_execution_run_id=run_id)


def _options(keywords: Mapping[str, Any]) -> dict[str, Any]:
    attempts, route = keywords["max_attempts"], keywords["route"]
    options = {
        "id": keywords["id"] or str(uuid.uuid4()),
        "task_queue": keywords["task_queue"],
        "execution_timeout": keywords["execution_timeout"],
        "run_timeout": keywords["run_timeout"],
        "task_timeout": keywords["task_timeout"],
        "id_reuse_policy": _REUSE.get(keywords["id_reuse"]),
        "id_conflict_policy": _CONFLICT.get(keywords["id_conflict"]),
        "retry_policy": None if attempts is None else RetryPolicy(maximum_attempts=attempts),
        "cron_schedule": keywords["cron"],
        "start_delay": keywords["delay"],
        "memo": dict(map(_named, keywords["memo"])) or None,
        "priority": keywords["priority"],
        "fairness_key": keywords["fairness_key"],
        "fairness_weight": keywords["fairness_weight"],
        "headers": dict(keywords["headers"]) or None,
        "versioning_override": _override(keywords["versioning_override"]),
        "route": parse_route(route, keywords["on_gone"]) if route else None,
        "requires": parse_requires(keywords["requires"], keywords["on_unserved"]),
        **parse_affinity(keywords),
        "static_summary": keywords["static_summary"],
        "start_signal": keywords["start_signal"],
        "start_signal_args": keywords["signal_inputs"] or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _override(text: str | None) -> VersioningOverride | None:
    if text is None:
        return None
    if text == "auto-upgrade":
        return AutoUpgradeVersioningOverride()
    return PinnedVersioningOverride(WorkerDeploymentVersion.from_canonical_string(text))


def _named(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"--memo is {text!r:.80}; write NAME=JSON")
    return name, JSON_VALUE.convert(value, None, None)


def _wait(
    session: Session,
    handle: BlockingWorkflowHandle[Any],
    timeout: timedelta | None,
    *,
    follow_runs: bool,
) -> int:
    data: dict[str, Any] = {"id": handle.id}
    try:
        _print(session, handle.result(follow_runs=follow_runs, timeout=timeout), data)
    except WorkflowFailureError as error:
        return _failed(session, error, {**data, "run_id": error.run_id})
    return exits.OK


def _print(session: Session, value: Any, data: Mapping[str, Any]) -> None:
    """A result: JSON on stdout; with --json, inside what it is the result of."""
    if session.output.as_json:
        session.output.json({**data, "status": "completed", "result": value})
    else:
        click.echo(visible_json(report.json_text(value)))


def _failed(session: Session, error: TqBrokerError, data: Mapping[str, Any]) -> int:
    if session.output.as_json:
        cause = report.error_data(error.__cause__)
        session.output.json({**data, "status": "failed", "error": cause})
    else:
        print(f"tq-broker: {visible(error)}{_causes(error)}", file=sys.stderr)
    return exits.FAILED


def _causes(error: BaseException) -> str:
    """What stands behind the first cause, which the message tells."""
    text, cause = "", error.__cause__ and error.__cause__.__cause__
    while cause is not None:
        text += f": {visible(cause)}"
        cause = cause.__cause__
    return text


def _show(session: Session, client: BlockingClient, handle: BlockingWorkflowHandle[Any]) -> None:
    if session.output.as_json:
        session.output.json(handle.fetch_history().to_json_dict())
        return
    converter = client.core.converter
    rows = [report.event_row(event, converter) for event in handle.fetch_history_events()]
    session.output.rows(report.EVENT_HEADING, rows, data=[])


def _show_event(session: Session, client: BlockingClient, id: str, event: Event) -> None:
    number, time, name, details = report.event_row(event, client.core.converter)
    if session.output.as_json:
        (exported,) = WorkflowHistory(id, [event]).to_json_dict()["events"]
        click.echo(visible_json(report.json_text(exported)))
    elif session.output.is_terminal:
        click.echo(visible(f"{number:>5}  {time}  {name}  {details}"))
    else:
        click.echo("\t".join(visible(cell) for cell in (number, time, name, details)))


def _followed(client: BlockingClient, id: str, run_id: str | None) -> Iterator[Event]:
    """The events of one run, as they come, until it has ended."""
    next_id = 1
    while True:
        page = client.workflows.history_page(id, run_id, next_id).waited()
        for event in page.events:
            yield event
            next_id = event.event_id + 1
            if isinstance(event, WorkflowExecutionStarted):
                run_id = event.run_id
            if isinstance(event, CLOSING):
                return
        if not page.events:
            client.core.clock.sleep(FOLLOW_S)
