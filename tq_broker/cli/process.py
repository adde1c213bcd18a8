"""One worker process: from its banner to its exit code.

Rules of this file: signals only put events in a box; the main thread reads them and moves on
along ``_NEXT``; what blocks is done on threads beside it, so that a second signal is heard.
"""

from __future__ import annotations

import enum
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click

from tq_broker.cli import exits, garbage
from tq_broker.cli.application import Application
from tq_broker.cli.output import flush, on_a_full_disk_silent, say, visible
from tq_broker.cli.passwords import without_password
from tq_broker.cli.session import Session
from tq_broker.cli.signals import STOPPING, Events
from tq_broker.client import BlockingClient
from tq_broker.exceptions import InvalidArgument
from tq_broker.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """What the options of ``tq-broker worker`` say; ``None`` leaves it to the application.

    Attributes:
        process_index: The number of this process among supervised ones, from 1.
        guard_fd: Read end of a pipe whose other end the supervisor holds while it lives.
    """

    task_queues: tuple[str, ...] = ()
    concurrency: int | None = None
    sessions: int | None = None
    name: str | None = None
    host: str | None = None
    worker_id: str | None = None
    capabilities: tuple[str, ...] = ()
    graceful_timeout: timedelta | None = None
    deployment: str | None = None
    build_id: str | None = None
    process_index: int | None = None
    guard_fd: int | None = None

    def worker_options(self, application: Application) -> dict[str, Any]:
        """Fields of `WorkerOptions`: the application's, with the options laid over them."""
        options = dict(application.options)
        index = self.process_index
        machine = options.get("host") or socket.gethostname()
        host = expand(self.host, machine, index) if self.host else machine
        options["host"] = host
        if self.name:
            options["identity"] = _distinct(self.name, expand(self.name, host, index), index)
        if self.worker_id:
            worker_id = expand(self.worker_id, host, index)
            options["worker_id"] = _distinct(self.worker_id, worker_id, index)
        for name in ("deployment", "build_id"):
            if said := getattr(self, name):
                options[name] = said
        if self.concurrency:
            options["max_concurrent_activities"] = self.concurrency
        if self.sessions is not None:
            options["max_concurrent_sessions"] = self.sessions
        if self.capabilities:
            options["capabilities"] = self.capabilities
        if self.graceful_timeout is not None:
            options["graceful_shutdown_timeout"] = self.graceful_timeout
        return options


def expand(template: str, host: str, index: int | None) -> str:
    """Fill in %h (host), %n (host without domain), %d (domain), %i (process), %% (%).

    Raises:
        InvalidArgument: another letter stands behind a %.
    """
    name, _, domain = host.partition(".")
    values = {"h": host, "n": name, "d": domain, "i": str(index or 0), "%": "%"}
    parts = template.split("%")
    text, rest = parts[0], iter(parts[1:])
    for part in rest:
        # "%%" splits into an empty part and what follows it.
        letter = part[:1] or "%"
        if letter not in values:
            raise InvalidArgument(f"{template!r}: %{letter} is none of %h, %n, %d, %i, %%")
        text += values[letter] + (part[1:] if part else next(rest, ""))
    return text


def _distinct(template: str, expanded: str, index: int | None) -> str:
    """Processes of one supervisor need names of their own."""
    if index is None or "%i" in template:
        return expanded
    name, at, host = expanded.partition("@")
    return f"{name}-{index}{at}{host}"


class _Stage(enum.Enum):
    SERVING = "serving"
    WARM = "warm shutdown"
    COLD = "cold shutdown"
    AT_ONCE = "at once"


_NEXT = {
    _Stage.SERVING: _Stage.WARM,
    _Stage.WARM: _Stage.COLD,
    _Stage.COLD: _Stage.AT_ONCE,
}


class _Happened(enum.Enum):
    STOPPED = "the worker has stopped"
    FATAL = "the worker cannot go on"
    ORPHANED = "the supervisor is gone"


def run_worker(session: Session, settings: WorkerSettings) -> int:
    """Run a worker in this process until a signal ends it; returns the exit code.

    Raises:
        TqBrokerError: it could not be started.
    """
    application = session.application()
    options = settings.worker_options(application)
    task_queues = settings.task_queues or application.task_queues
    if not task_queues:
        raise InvalidArgument("no task queues: say which, -Q A,B, or name them at the activities")
    events = Events()
    events.listen((*STOPPING, signal.SIGHUP))
    try:
        if settings.guard_fd is not None:
            _watch(settings.guard_fd, events)
        with session.client(application, identity=options.get("identity")) as client:
            # Not before: an error that ends the command is one line, and not said twice.
            session.set_up_logging("INFO")
            worker = _make(client, application, task_queues, options, events)
            said = _about(session, application, worker, client)
            with on_a_full_disk_silent():
                _print_banner(session, settings, said)
            garbage.settle()
            worker.start()
            with on_a_full_disk_silent():
                _print_ready(session, settings, said)
            restart, code = _serve(worker, events)
    finally:
        events.unlisten()
    if restart:
        _start_anew(session.arguments)
    if left := worker.running:
        # The interpreter would wait for their threads, and nobody waits for what they return.
        say(f"leaving {left} activities behind that do not end")
        flush()
        os._exit(code)
    return code


def _make(
    client: BlockingClient,
    application: Application,
    task_queues: tuple[str, ...],
    options: Mapping[str, Any],
    events: Events,
) -> Worker:
    theirs: Callable[[BaseException], None] | None = options.get("on_fatal_error")

    def on_fatal_error(error: BaseException) -> None:
        events.put(_Happened.FATAL)
        if theirs is not None:
            theirs(error)

    return Worker(
        client,
        task_queues=task_queues,
        activities=application.activities,
        workflows=application.workflows,
        **{**options, "on_fatal_error": on_fatal_error},
    )


def _serve(worker: Worker, events: Events) -> tuple[bool, int]:
    """Wait for the end; returns whether to start anew, and the exit code."""
    stage, restart, code = _Stage.SERVING, False, exits.OK
    while True:
        event = events.next()
        if event is _Happened.STOPPED:
            return restart, code
        if event is _Happened.FATAL:
            say(f"the worker cannot go on: {visible(worker.fatal_error)}")
            restart, code = False, exits.GAVE_UP
        if event in (_Happened.FATAL, _Happened.ORPHANED, signal.SIGHUP):
            if stage is not _Stage.SERVING:
                continue  # it ends anyway; only people may hurry it
            restart = event is signal.SIGHUP
        if event in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            restart = False
        stage = _Stage.COLD if event is signal.SIGQUIT else _NEXT[stage]
        if stage is _Stage.AT_ONCE:
            say("leaving at once; RabbitMQ hands the tasks on")
            os._exit(exits.FAILED)
        if stage is _Stage.COLD and code == exits.OK:
            code = exits.FAILED
        running = worker.running
        say(f"{stage.value}{', then a restart' if restart else ''}: {running} running")
        _stop(worker, events, cold=stage is _Stage.COLD)


def _stop(worker: Worker, events: Events, *, cold: bool) -> None:
    def stop() -> None:
        try:
            worker.stop(cold=cold)
        finally:
            events.put(_Happened.STOPPED)

    try:
        threading.Thread(target=stop, name="tq-shutdown", daemon=True).start()
    except RuntimeError:  # the system has no thread for us: then a second signal is not heard
        stop()


def _watch(guard_fd: int, events: Events) -> None:
    """Note when the supervisor is gone, however it went: then nobody would restart us."""

    def watch() -> None:
        while os.read(guard_fd, 1):
            pass
        events.put(_Happened.ORPHANED)

    threading.Thread(target=watch, name="tq-guard", daemon=True).start()


def _start_anew(arguments: tuple[str, ...]) -> None:
    kept, hidden = without_password(arguments)
    os.environ.update(hidden)
    flush()
    os.execv(sys.executable, [sys.executable, "-m", "tq_broker", *kept])


def _about(
    session: Session, application: Application, worker: Worker, client: BlockingClient
) -> dict[str, Any]:
    return {
        "worker": worker.identity,
        "worker_id": worker.worker_id,
        "host": worker.host,
        "pid": os.getpid(),
        "broker": client.core.broker.url,
        "namespace": session.namespace,
        "app": application.name,
        "task_queues": list(worker.task_queues),
        "activities": list(application.types),
        "workflows": list(application.workflow_types),
        "slots": worker.slots_max,
    }


def _print_banner(session: Session, settings: WorkerSettings, said: Mapping[str, Any]) -> None:
    # One banner is enough for many processes.
    if session.output.as_json or (settings.process_index or 1) > 1:
        return
    click.echo(session.output.bold("tq-broker worker"))
    for name, value in said.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        click.echo(f"  {name.replace('_', ' '):<12} {visible(text)}")


def _print_ready(session: Session, settings: WorkerSettings, said: Mapping[str, Any]) -> None:
    if session.output.as_json:
        session.output.json({"event": "ready", "process": settings.process_index, **said})
    else:
        click.echo(f"{visible(said['worker'])} ready")
    # In a pipe stdout is buffered, and somebody may wait for this line.
    sys.stdout.flush()
