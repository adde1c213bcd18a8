"""``tq-broker dev``: all that workflows need, in one terminal, with workers that reload.

Broker and history must live equally long: with a broker that ends with the command the histories
are kept in memory; with one that goes on they are in a database.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import click

from tq_broker.cli import commands
from tq_broker.cli.commands import Command
from tq_broker.cli.output import say
from tq_broker.cli.passwords import STORE_VARIABLE
from tq_broker.cli.process import WorkerSettings, run_worker
from tq_broker.cli.session import Session, session_of
from tq_broker.cli.spawning import supervise
from tq_broker.cli.values import NAMES
from tq_broker.clock import SystemClock
from tq_broker.exceptions import InvalidArgument
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker.tuning import SLOTS_MAX

EMBEDDED = "memory://dev"
STORE = "sqlite:///tq-broker-dev.sqlite"


@click.command(cls=Command)
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
    help="Slots: activities at a time.  [100]",
)
@click.option(
    "--store",
    metavar="URL",
    help=f"Where histories are kept, with -b URL.  [{STORE_VARIABLE}, else {STORE}]",
)
@click.option("--process-index", type=int, hidden=True)
@click.option("--guard-fd", type=int, hidden=True)
@click.pass_context
def dev(
    ctx: click.Context,
    queues: tuple[tuple[str, ...], ...],
    concurrency: int | None,
    store: str | None,
    process_index: int | None,
    guard_fd: int | None,
) -> int:
    """Run a broker, history and a worker that restarts when a .py file below here changes.

    \b
    -b local   a private RabbitMQ, removed afterwards (the default)
    -b memory  no RabbitMQ: all in the worker's process; nothing outlives a reload, and no
               other terminal can take part
    -b URL     a RabbitMQ that runs

    \b
    Examples:
      tq-broker -A app.workflows dev -Q orders
      tq-broker -A app.workflows -b amqp://localhost dev --store sqlite:///orders.sqlite
    """
    session = session_of(ctx)
    url = session.config.get("url", "local")
    if url in ("memory", "local") and store is not None:
        raise InvalidArgument(f"--store: histories would outlive the broker of -b {url}")
    settings = WorkerSettings(
        task_queues=tuple(name for names in queues for name in names),
        concurrency=concurrency,
        process_index=process_index,
        guard_fd=guard_fd,
    )
    if process_index is not None:
        return _all_in_one(session, settings)
    session.application()  # raises: better once here than in every process
    if url == "memory":
        say("everything is in the worker's process; other terminals cannot reach it")
        return supervise(session, 1, reload=True)
    profile = commands.said(ctx).get("profile")
    with _broker(url) as url, _history(session, url, store or _store_for(session)):
        arguments = (*_globals(session, url, profile), "worker", *_options(settings))
        return supervise(replace(session, arguments=arguments), 1, reload=True)


def _all_in_one(session: Session, settings: WorkerSettings) -> int:
    """The worker's process, with the embedded broker and its history."""
    with EmbeddedSystem(SystemClock(), EMBEDDED, namespace=session.namespace):
        return run_worker(replace(session, config={**session.config, "url": EMBEDDED}), settings)


@contextlib.contextmanager
def _broker(url: str) -> Iterator[str]:
    if url != "local":
        yield url
        return
    say("starting a private RabbitMQ ...")
    with LocalRabbitMQ() as node:
        say(f"RabbitMQ {node.version}; for other terminals: export TQ_BROKER_URL={node.url}")
        yield node.url


@contextlib.contextmanager
def _history(session: Session, url: str, store: str | None) -> Iterator[None]:
    session.set_up_logging("WARNING")
    with EmbeddedSystem(SystemClock(), url, store, namespace=session.namespace) as system:
        say(f"history serves, kept in {system.store.url}")
        yield


def _store_for(session: Session) -> str | None:
    """A RabbitMQ that goes on keeps what it has: so must history."""
    if session.config.get("url", "local") == "local":
        return None
    return os.environ.get(STORE_VARIABLE, STORE)


def _globals(session: Session, url: str, profile: str | None) -> Iterator[str]:
    """The global options of the worker's process, as it would be started by hand."""
    assert session.app is not None, "it was loaded"
    yield from ("-A", session.app, "-b", url, "--namespace", session.namespace)
    if profile is not None:
        yield from ("--profile", profile)
    if session.loglevel is not None:
        yield from ("-l", session.loglevel)


def _options(settings: WorkerSettings) -> Iterator[str]:
    if settings.task_queues:
        yield from ("-Q", ",".join(settings.task_queues))
    if settings.concurrency is not None:
        yield from ("-c", str(settings.concurrency))
