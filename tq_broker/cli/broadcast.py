"""``tq-broker activity broadcast``: run an activity on every worker of a task queue."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import click

from tq_broker.cli import exits
from tq_broker.cli.commands import Command
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.task_queue import WAIT
from tq_broker.cli.values import DURATION, JSON_LIST, JSON_VALUE
from tq_broker.client.broadcast import WorkerResult
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import ActivityError, InvalidArgument


@click.command(cls=Command)
@click.argument("type", metavar="TYPE")
@click.option(
    "-t", "--task-queue", metavar="NAME", help="Needed unless -A has it at the decorator."
)
@click.option("--args", type=JSON_LIST, metavar="JSON", help="All arguments: '[1, \"two\"]'.")
@click.option(
    "--arg", "each", type=JSON_VALUE, metavar="JSON", multiple=True, help="One; repeat it."
)
@click.option(
    "--timeout",
    type=DURATION,
    default="30s",
    show_default=True,
    help="How long each worker may take.",
)
@WAIT
@click.pass_context
def broadcast(ctx: click.Context, /, **said: Any) -> int:
    """Run an activity of TYPE once on every worker of a task queue; print what each answers.

    Exit code 1 if it failed on one of them, 5 if there is no worker.
    """
    session = session_of(ctx)
    application = session.application() if session.app else None
    known = application.find(said["type"]) if application else None
    if said["args"] is not None and said["each"]:
        raise InvalidArgument("give either --args or --arg, not both")
    if known is None and said["task_queue"] is None:
        raise InvalidArgument("name the task queue: --task-queue NAME")
    options = {} if said["task_queue"] is None else {"task_queue": said["task_queue"]}
    timeout: timedelta = said["timeout"]
    wait: timedelta = said["wait"]
    with session.client(application) as client:
        answers = client.broadcast_activity(
            known or said["type"],
            args=list(said["each"]) if said["args"] is None else said["args"],
            timeout=timeout,
            wait=wait,
            **options,
        )
    return _print(session, answers)


def _print(session: Session, answers: list[WorkerResult]) -> int:
    session.output.rows(
        ("WORKER", "ID", "HOST", "ANSWER"),
        [(one.identity, one.worker_id, one.host, _text(one)) for one in answers],
        data=[_data(one) for one in answers],
    )
    if not answers:
        print("tq-broker: no worker of that task queue answered", file=sys.stderr)
        return exits.NOT_FOUND
    return exits.OK if all(one.ok for one in answers) else exits.FAILED


def _encoded(one: WorkerResult) -> str:
    return DEFAULT.payload_converter.encode(one.result).decode()


def _text(one: WorkerResult) -> str:
    return _encoded(one) if one.error is None else f"{_kind(one)}: {one.error}"


def _kind(one: WorkerResult) -> str:
    error: BaseException | None = one.error
    if isinstance(error, ActivityError) and error.cause is not None:
        error = error.cause
    return type(error).__name__


def _data(one: WorkerResult) -> dict[str, Any]:
    told = {"identity": one.identity, "worker_id": one.worker_id, "host": one.host, "ok": one.ok}
    if one.error is None:
        return {**told, "result": JSON_VALUE.convert(_encoded(one), None, None)}
    return {**told, "error": {"kind": _kind(one), "message": str(one.error)}}
