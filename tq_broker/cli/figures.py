"""``tq-broker task-queue figures``: what comes and goes, once or at an endpoint for programs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from datetime import timedelta

import click

from tq_broker.cli.commands import Command
from tq_broker.cli.endpoint import Endpoint, parse_address
from tq_broker.cli.exposition import as_json
from tq_broker.cli.output import age
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.signals import STOPPING, Events
from tq_broker.cli.task_queue import WAIT
from tq_broker.cli.values import DURATION
from tq_broker.client.observer import Observer
from tq_broker.exceptions import InvalidArgument, TqBrokerError, Unavailable
from tq_broker.model.figures import Figures

log = logging.getLogger(__name__)

EVERY_MIN = timedelta(seconds=1)
EVERY_MAX = timedelta(minutes=5)
MISSED_MAX = 3
"""Looks that may fail, one after another, before nothing is told any more."""


@click.command(cls=Command)
@click.argument("names", nargs=-1)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Go on looking, and tell programs: /metrics for Prometheus, /figures and /figures/NAME"
    " as JSON.",
)
@click.option(
    "--every", type=DURATION, default="5s", show_default=True, help="How often to look, 1s to 5m."
)
@WAIT
@click.pass_context
def figures(
    ctx: click.Context,
    names: tuple[str, ...],
    listen: str | None,
    every: timedelta,
    wait: timedelta,
) -> None:
    """Tell figures of task queues (all, or NAMES): what comes, what is begun, what waits.

    Rates are averages of half a minute. LIMITED says that tasks wait although there are free
    slots, because of a limit or a pause: more workers would not help. What of the settings log
    could not be read is told as well: limits and pauses may be others then.

    \b
    Examples:
      tq-broker task-queue figures
      tq-broker task-queue figures mail --json
      tq-broker task-queue figures --listen 127.0.0.1:9464
      curl http://127.0.0.1:9464/figures/mail
    """
    session = session_of(ctx)
    if listen is not None:
        _check(every, wait)
        _serve(session, names, listen, every, wait)
        return
    with session.client() as client, contextlib.closing(Observer(client.core, names)) as observer:
        _print(session, observer.look(wait.total_seconds()))
        if observer.settings_fault:
            click.echo(f"settings log: {observer.settings_fault}", err=True)


def _check(every: timedelta, wait: timedelta) -> None:
    if not EVERY_MIN <= every <= EVERY_MAX:
        raise InvalidArgument(f"--every is {every.total_seconds():g}s; it must be from 1s to 5m")
    if wait > every:
        raise InvalidArgument(
            f"--wait is {wait.total_seconds():g}s; it must not be longer than --every"
        )


def _print(session: Session, found: Sequence[Figures]) -> None:
    session.output.rows(
        (
            *("TASK QUEUE", "SIDE", "BACKLOG", "OLDEST", "ADDED/S", "BEGUN/S", "WORKERS"),
            *("SLOTS", "LIMIT", "SOURCE", "LIMITED"),
        ),
        [
            (
                one.task_queue,
                one.side.value,
                one.backlog,
                age(one.oldest_age_s),
                f"{one.add_rate:.3g}",
                f"{one.dispatch_rate:.3g}",
                one.workers,
                f"{one.slots_used}/{one.slots}",
                _limit(one),
                one.limit.source,
                "yes" if one.limit.is_limiting else "no",
            )
            for one in found
        ],
        data=as_json(found),
        empty="no task queues",
    )


def _limit(one: Figures) -> str:
    limit = one.limit
    if limit.is_paused:
        return "paused"
    told = [] if limit.rate is None else [f"{limit.rate:g}/s"]
    if limit.concurrency is not None:
        told.append(f"{limit.concurrency} at once")
    return ", ".join(told) or "-"


def _serve(
    session: Session, names: Sequence[str], listen: str, every: timedelta, wait: timedelta
) -> None:
    """Look every so often, until a signal comes."""
    events = Events()
    events.listen(STOPPING)
    with contextlib.ExitStack() as stack:
        stack.callback(events.unlisten)
        client = stack.enter_context(session.client())
        clock, namespace = client.core.clock, session.namespace
        fresh_s = MISSED_MAX * every.total_seconds() + wait.total_seconds()
        endpoint = Endpoint(parse_address(listen), namespace, clock, fresh_s=fresh_s)
        stack.callback(endpoint.close)
        observer = stack.enter_context(contextlib.closing(Observer(client.core, names)))
        host, port = endpoint.address
        click.echo(f"figures of {namespace} at http://{host}:{port}/metrics and /figures", err=True)
        has_looked = False
        while True:
            due = clock.monotonic() + every.total_seconds()
            try:
                endpoint.tell(observer.look(wait.total_seconds()))
                has_looked = True
            except TqBrokerError as error:
                # Who was let in before may be refused for a moment, by a RabbitMQ that starts.
                if not (has_looked or isinstance(error, Unavailable)):
                    raise
                log.warning("no look at the task queues: %s", error)
            if events.next(max(0.0, due - clock.monotonic())) is not None:
                return
