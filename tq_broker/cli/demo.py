"""``tq-broker demo``: files are downloaded, processed and uploaded by workers on several hosts.

The program of it is `tq_broker.cli.demo_job`; here are the command's options, what becomes of
them, and the table in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from tq_broker.cli import exits
from tq_broker.cli.commands import Command
from tq_broker.cli.demo_activities import Work, is_url
from tq_broker.cli.demo_job import FileJob, Row, run_jobs
from tq_broker.cli.demo_progress import DemoProgress
from tq_broker.cli.demo_stage import Scene, Stage, stage_for
from tq_broker.cli.demo_workflow import WorkflowJob
from tq_broker.cli.session import Session, session_of
from tq_broker.client import Client
from tq_broker.clock import SystemClock
from tq_broker.exceptions import InvalidArgument, TqBrokerError
from tq_broker.model.requests import SHARDS
from tq_broker.queues.memory import forget
from tq_broker.queues.topology import DeleteQueue, Plan
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

BUNDLED = Path(__file__).with_name("demo_files")
NAMESPACE = "demo"
EMBEDDED = "memory://demo"
WORKERS_MAX = 20
GRACE_S = 0.2


@click.command(cls=Command)
@click.argument("urls", nargs=-1, metavar="[URL]...")
@click.option(
    "--input",
    "directory",
    metavar="DIR",
    help="Take the files of this directory.  [default: texts that come with tq-broker]",
)
@click.option("--files", type=click.IntRange(1), metavar="N", help="Take the first N only.")
@click.option(
    "--workers",
    type=click.IntRange(1, WORKERS_MAX),
    default=3,
    show_default=True,
    help="How many hosts to play, each with one worker.",
)
@click.option("--kill-worker", is_flag=True, help="Kill one worker while it has work.")
@click.option(
    "--workflow",
    is_flag=True,
    help="Let a durable workflow see to each file; a history service is started for it.",
)
@click.pass_context
def demo(
    ctx: click.Context,
    urls: Sequence[str],
    directory: str | None,
    files: int | None,
    workers: int,
    kill_worker: bool,
    workflow: bool,
) -> None:
    """Process files on several hosts: download each on any of them, then compress, count words
    and upload where it was downloaded.

    Without a broker, client and workers run in this one process. With -b URL the workers are
    processes that use that RabbitMQ; -b local starts a private one for the time of the demo.
    """
    session = session_of(ctx)
    if session.loglevel is None:
        # Of a worker that is killed on purpose much is to be said that nobody wants to read.
        session.set_up_logging("CRITICAL")
    if kill_worker and workers < 2:
        raise InvalidArgument("--kill-worker needs at least two --workers: somebody must go on")
    sources = find_sources(urls, directory)[:files]
    with contextlib.ExitStack() as cleanup:
        run = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tq-demo-"))
        works = [Work(name, source, run) for name, source in named(sources)]
        scene = cleanup.enter_context(_scene(session, has_workflows=workflow))
        if workflow:
            cleanup.enter_context(_history(scene))
        rows = asyncio.run(_play(session, scene, works, workers, kill_worker))
    show(session, rows)
    if any(row.error for row in rows):
        ctx.exit(exits.FAILED)


# --- what goes in -----------------------------------------------------------------------------


def find_sources(urls: Sequence[str], directory: str | None) -> list[str]:
    """The paths or URLs of all input files.

    Raises:
        InvalidArgument: they are not URLs, there is no such directory, no file in it, or both
            ways were used.
    """
    if urls and directory is not None:
        raise InvalidArgument("give either --input or URLs, not both")
    if urls:
        return [_check_url(url) for url in urls]
    folder = BUNDLED if directory is None else Path(directory)
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except NotADirectoryError:
        raise InvalidArgument(f"--input {directory}: is not a directory") from None
    except OSError as error:
        raise InvalidArgument(f"--input {directory}: {error.strerror}") from error
    # Everything but directories: what cannot be read becomes a row that says so.
    files = [path for path in found if not path.is_dir()]
    if directory is None:
        files = [path for path in files if path.name != "README.txt"]
    if not files:
        raise InvalidArgument(f"--input {directory}: there are no files in it")
    return [str(path.absolute()) for path in sorted(files)]


def _check_url(url: str) -> str:
    try:
        has_host = bool(urlsplit(url).hostname)
    except ValueError:
        has_host = False
    if not is_url(url) or not has_host or not url.isprintable() or " " in url:
        raise InvalidArgument(f"{url!r} is not an http:// or https:// URL")
    return url


def named(sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each of ``sources`` with a name that is unique, and harmless as a file's name."""
    taken: set[str] = set()
    for source in sources:
        path = urlsplit(source).path if is_url(source) else source
        name = re.sub(r"[^A-Za-z0-9._-]", "_", path.rstrip("/").rpartition("/")[2])[:80]
        # Not "", not "..", not a hidden file.
        unique = base = name.lstrip(".") or "file"
        number = 2
        while unique in taken:
            unique, number = f"{number}-{base}", number + 1
        taken.add(unique)
        yield unique, source


# --- where it plays -----------------------------------------------------------------------------


@contextlib.contextmanager
def _scene(session: Session, *, has_workflows: bool) -> Iterator[Scene]:
    """The broker of this run."""
    config = session.config
    where: dict[str, Any] = {
        "namespace": config.get("namespace", NAMESPACE),
        # A task queue of its own: who else runs the demo gets none of our files.
        "task_queue": f"files-{secrets.token_hex(4)}",
        "queue_type": config.get("queue_type", "quorum"),
        "has_workflows": has_workflows,
    }
    url = config.get("url")
    if url is None:
        _say(session, "no broker given: everything runs embedded in this process (memory://)")
        try:
            yield Scene(url=EMBEDDED, **where)
        finally:
            forget(EMBEDDED)
    elif url == "local":
        _say(session, "starting a private RabbitMQ ...")
        with LocalRabbitMQ() as node:
            _say(session, f"RabbitMQ {node.version} runs; it is removed afterwards")
            yield Scene(url=node.url, **where)
    else:
        yield Scene(url=url, **where)


@contextlib.contextmanager
def _history(scene: Scene) -> Iterator[None]:
    """A history service in this process, for the time of the demo: it keeps all in memory."""
    with EmbeddedSystem(SystemClock(), scene.url, namespace=scene.namespace):
        yield
    # Its queues would wait for a service that knew what is in them.
    with scene.client() as client, contextlib.suppress(TqBrokerError):
        core = client.core
        queues = [core.names.workflow(scene.task_queue), *map(core.names.history, range(SHARDS))]
        plan = Plan(tuple(DeleteQueue(str(queue)) for queue in queues))
        core.broker.apply(plan, core.deadline())


async def _play(
    session: Session, scene: Scene, works: Sequence[Work], workers: int, kill_worker: bool
) -> list[Row]:
    """Run the job with workers around it, and take away what it leaves on the broker."""
    client = await Client.connect(scene.url, namespace=scene.namespace, queue_type=scene.queue_type)
    stage = stage_for(scene)
    progress = _progress(session, works)
    try:
        hosts = [f"host-{number}" for number in range(1, workers + 1)]
        await asyncio.to_thread(stage.start, hosts)
        progress.say(f"{len(works)} files, workers on {', '.join(hosts)}, at {_place(client)}")
        watch = Killer(stage, progress, len(works)).step if kill_worker else progress.step
        job = WorkflowJob if scene.has_workflows else FileJob
        return await run_jobs([job(client, scene.task_queue, work, watch) for work in works])
    finally:
        await asyncio.to_thread(stage.close)
        await asyncio.to_thread(_tidy, client, scene.task_queue)
        with contextlib.suppress(TqBrokerError):
            await client.close()


def _place(client: Client) -> str:
    return client.connection.broker.url


def _tidy(client: Client, task_queue: str) -> None:
    """Remove the task queue of this run."""
    with contextlib.suppress(TqBrokerError):
        client.connection.reclaimer.reclaim([task_queue], grace_s=GRACE_S)


class Killer:
    """Passes progress on, and kills one worker after a third of the files was downloaded.

    It is the worker that has just downloaded one: that file has steps to go, on that host. Of a
    workflow not every step is seen, so it may be processed already.
    """

    def __init__(self, stage: Stage, progress: DemoProgress, files: int) -> None:
        self._stage = stage
        self._progress = progress
        self._left = max(1, files // 3)
        self._seen: set[str] = set()

    def step(self, name: str, what: str, host: str) -> None:
        """See `DemoProgress.step`."""
        self._progress.step(name, what, host)
        if what not in ("downloaded", "processed") or name in self._seen:
            return
        self._seen.add(name)
        self._left -= 1
        if self._left == 0:
            self._stage.kill(host)
            self._progress.say(f"killed the worker on {host}")


# --- what comes out -----------------------------------------------------------------------------


def _progress(session: Session, works: Sequence[Work]) -> DemoProgress:
    names = [work.name for work in works]
    if session.output.as_json:
        return DemoProgress(names, _Nowhere(), is_live=False, color=False)
    is_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return DemoProgress(
        names, sys.stderr, is_live=is_terminal, color=is_terminal and session.output.color
    )


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def _say(session: Session, text: str) -> None:
    if not session.output.as_json:
        click.echo(text, err=True)


def show(session: Session, rows: Sequence[Row]) -> None:
    """Print what became of the files."""
    output = session.output
    output.rows(
        ["FILE", "HOST", "ATTEMPTS", "TIME", "WORDS", "SHA256", "RESULT"],
        [
            [
                row.file,
                row.host,
                row.attempts,
                f"{row.seconds:.2f}s",
                row.words if not row.error else "-",
                row.sha256[:12] or "-",
                f"failed: {row.error}" if row.error else "verified",
            ]
            for row in rows
        ],
        data=[asdict(row) | {"verified": not row.error} for row in rows],
    )
    failed = sum(bool(row.error) for row in rows)
    hosts = {row.host for row in rows if not row.error}
    if failed:
        _say(session, f"{failed} of {len(rows)} files failed")
    else:
        _say(session, f"all {len(rows)} uploads are verified; hosts used: {len(hosts)}")
