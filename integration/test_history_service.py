"""Journey: history services on real servers are killed, frozen and joined by others under load.

The workers here are a hand that keeps to the protocol: what is tested is the service.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psycopg
import pytest

from integration.postgresql_server import PostgresqlServer
from tq_broker.client import BlockingClient
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import TqBrokerError
from tq_broker.model import envelope, requests, workflow_tasks
from tq_broker.model.commands import CompleteWorkflow, ScheduleActivity, StartTimer
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, QueueName
from tq_broker.model.requests import (
    AwaitResult,
    Closed,
    FetchHistory,
    StartWorkflow,
    Status,
    shard_of,
)
from tq_broker.model.tasks import ActivityOutcome
from tq_broker.model.tasks import Status as OutcomeStatus
from tq_broker.model.workflow_tasks import EventsPage, WorkflowTask, WorkflowTaskCompleted
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery, SubscribeOptions
from tq_broker.stores.opening import migrate_store
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

SOON_S = 120.0


class Process:
    """``tq-broker history`` in a process of its own."""

    def __init__(self, broker_url: str, namespace: str, store: str, name: str, log: Path) -> None:
        self.name = name
        self.log = log
        command = [sys.executable, "-m", "tq_broker", "--namespace", namespace, "history"]
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [*command, "--json", "-n", name, "-l", "INFO"],
                env=os.environ | {"TQ_BROKER_URL": broker_url, "TQ_BROKER_STORE": store},
                stdout=subprocess.PIPE,
                stderr=stderr,
            )

    def ready(self) -> Process:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self.log.read_text()
        assert json.loads(line)["event"] == "ready"
        return self

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        with self._process:
            return self._process.wait(SOON_S)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None


class Site:
    """A namespace with history processes, a client and workers."""

    def __init__(self, broker_url: str, namespace: str, store: str, directory: Path) -> None:
        self._broker_url = broker_url
        self._namespace = namespace
        self._store = store
        self._directory = directory
        self._started: list[Process] = []
        self.client = BlockingClient.connect(broker_url, namespace=namespace)
        self.connection = self.client.connection
        self.names = self.connection.names
        self.ran: Counter[str] = Counter()
        self._closing = False
        self._waiting: dict[str, Future[Any]] = {}
        self._work: queue.Queue[Delivery | None] = queue.Queue()
        self._reply_queue = self.names.queue(Kind.REPLY, "hand")
        self._consume(
            self._reply_queue,
            topology.reply_queue(self.names, self._reply_queue),
            self._on_replies,
        )
        for name in (self.names.workflow("q"), self.names.activity("q")):
            self._consume(name, self.connection.sender.plan(name), self._on_tasks)
        self._worker = threading.Thread(target=self._serve, daemon=True)
        self._worker.start()

    def history(self, name: str) -> Process:
        log = self._directory / f"{name}.log"
        process = Process(self._broker_url, self._namespace, self._store, name, log)
        self._started.append(process)
        return process.ready()

    def close(self) -> None:
        self._closing = True
        self._work.put(None)
        self._worker.join(10)
        for process in self._started:
            if not process.has_ended:
                process.send(signal.SIGCONT)
                process.end(signal.SIGKILL)
        with contextlib.suppress(TqBrokerError):
            self.client.close()

    def _consume(self, name: QueueName, plan: topology.Plan, on_deliveries: Any) -> None:
        everything = topology.namespace(self.names) + plan
        broker = self.connection.broker
        subscription = broker.subscribe(
            str(name), on_deliveries, SubscribeOptions(prefetch=200, plan=everything)
        )
        broker.wait_subscribed([subscription], self._deadline())

    def _deadline(self) -> float:
        return self.connection.clock.monotonic() + SOON_S

    # --- a worker ---------------------------------------------------------------------------------

    def _on_tasks(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self._work.put(delivery)

    def _serve(self) -> None:
        while (delivery := self._work.get()) is not None:
            message = delivery.message
            if message.kind == workflow_tasks.WORKFLOW_TASK:
                self._answer(workflow_tasks.read_task(message), delivery)
            else:
                self._perform(envelope.read_task(message, "q"), delivery)

    def _answer(self, task: WorkflowTask, delivery: Delivery) -> None:
        """One activity, then a short timer, then the end."""
        seen = {type(event).__name__ for event in task.events}
        commands: list[Any] = []
        if "TimerFired" in seen:
            commands.append(CompleteWorkflow(result=task.run.workflow_id.encode()))
        elif "ActivityTaskCompleted" in seen:
            commands.append(StartTimer(timer_id="t", start_to_fire_ms=100))
        else:
            commands.append(
                ScheduleActivity(
                    activity_id="1",
                    activity_type="act",
                    task_queue="q",
                    input=b'{"args":[]}',
                    start_to_close_ms=60_000,
                )
            )
        answer = WorkflowTaskCompleted(
            run=task.run,
            scheduled_event_id=task.scheduled_event_id,
            attempt=task.attempt,
            commands=commands,
        )
        message = requests.request_message(answer, self.connection.sender.ids.next())
        self._post(message, task.shard, delivery.ack)

    def _perform(self, task: Any, delivery: Delivery) -> None:
        assert task.workflow is not None
        self.ran[task.workflow.workflow_id] += 1
        outcome = ActivityOutcome(
            activity_id=task.activity_id,
            activity_type=task.activity_type,
            status=OutcomeStatus.COMPLETED,
            attempt=task.attempt,
            result=b"1",
        )
        message = envelope.report_message(outcome, None, DEFAULT)
        publication = Publication(
            self.names.exchange(Exchange.REPLIES), task.reply_to or "", message
        )
        self._insist(publication, (), delivery.ack)

    # --- a client ---------------------------------------------------------------------------------

    def _post(self, message: Message, shard: int, done: Callable[[], None] = lambda: None) -> None:
        inbox = self.names.history(shard)
        publication = Publication(self.names.exchange(Exchange.HISTORY), inbox.key, message)
        self._insist(publication, (inbox,), done)

    def _insist(
        self, publication: Publication, needs: tuple[QueueName, ...], done: Callable[[], None]
    ) -> None:
        def ended(error: TqBrokerError | None) -> None:
            if error is None:
                done()
            elif not self._closing:
                self._insist(publication, needs, done)

        deadline = self.connection.clock.monotonic() + 20
        self.connection.sender.send(publication, needs, deadline, ended)

    def _on_replies(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            reply = requests.read_reply(delivery.message)
            future = self._waiting.get(delivery.message.correlation_id or "")
            if future is not None and not future.done():
                future.set_result(reply)
            delivery.ack()

    def ask(self, request: Any) -> Future[Any]:
        """The answer, whenever it comes."""
        correlation_id = self.connection.sender.ids.next()
        future: Future[Any] = Future()
        self._waiting[correlation_id] = future
        message = requests.request_message(
            request,
            self.connection.sender.ids.next(),
            reply_to=str(self._reply_queue),
            correlation_id=correlation_id,
        )
        self._post(message, shard_of(request.workflow_id))
        return future

    def start(self, workflow_id: str) -> Future[Any]:
        return self.ask(StartWorkflow(workflow_id=workflow_id, workflow_type="T", task_queue="q"))

    def result(self, workflow_id: str) -> Closed:
        deadline = time.monotonic() + SOON_S
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                closed = self.ask(AwaitResult(workflow_id=workflow_id)).result(20)
                if isinstance(closed, Closed):
                    return closed
                time.sleep(0.2)  # its start has not been taken yet
        raise AssertionError(f"no result of {workflow_id}")

    def check(self, workflow_ids: Sequence[str]) -> None:
        """All have ended, once, with the right result and an unbroken history."""
        for workflow_id in workflow_ids:
            closed = self.result(workflow_id)
            assert (closed.status, closed.result) == (Status.COMPLETED, workflow_id.encode())
            page = self.ask(FetchHistory(workflow_id=workflow_id)).result(SOON_S)
            assert isinstance(page, EventsPage)
            assert [event.event_id for event in page.events] == [*range(1, len(page.events) + 1)]
            counts = Counter(type(event).__name__ for event in page.events)
            assert counts["ActivityTaskCompleted"] == counts["TimerFired"] == 1
            assert counts["WorkflowExecutionCompleted"] == 1

    def status(self) -> list[dict[str, Any]]:
        """What ``tq-broker history status`` says."""
        command = [sys.executable, "-m", "tq_broker", "--namespace", self._namespace]
        answer = subprocess.run(
            [*command, "history", "status", "--json", "--wait", "2s"],
            env=os.environ | {"TQ_BROKER_URL": self._broker_url},
            capture_output=True,
            check=False,
        )
        found: list[dict[str, Any]] = json.loads(answer.stdout)
        return found

    def wait_spread(self, *names: str) -> None:
        """Until these, and nobody else, own an even share."""
        want = Counter({name: 16 // len(names) for name in names})
        deadline = time.monotonic() + 10
        found: Counter[Any] = Counter()
        while found != want:
            assert time.monotonic() < deadline + SOON_S, found
            found = Counter(one["owner"] for one in self.status())


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def freeze(process: Process, store: str) -> None:
    """Stop a process where it is; with SQLite, where it does not hold the lock of the file."""
    while True:
        process.send(signal.SIGSTOP)
        if not store.startswith("sqlite"):
            return
        with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"), 0)) as file:
            try:
                file.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send(signal.SIGCONT)
                time.sleep(0.01)
            else:
                return


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'history.sqlite'}"
        migrate_store(url)
        yield url
    else:
        server = request.getfixturevalue("postgresql")
        migrate_store(server.url)
        yield server.url


@pytest.fixture
def site(broker_url: str, namespace: str, store: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(broker_url, namespace, store, tmp_path)
    yield site
    site.close()


def test_workflows_complete(site: Site) -> None:
    process = site.history("h1")
    names = ids("w", 20)
    for name in names:
        site.start(name).result(SOON_S)
    site.check(names)
    assert all(site.ran[name] == 1 for name in names)
    assert process.end() == 0


def test_two_processes_share_the_shards(site: Site) -> None:
    site.history("h1")
    site.wait_spread("h1")
    second = site.history("h2")
    site.wait_spread("h1", "h2")
    names = ids("w", 20)
    for name in names:
        site.start(name).result(SOON_S)
    site.check(names)
    assert second.end() == 0
    site.wait_spread("h1")


def test_owners_that_are_killed_lose_nothing(site: Site) -> None:
    running = [site.history("h0"), site.history("h1")]
    names: list[str] = []
    for round_ in range(4):
        more = ids(f"r{round_}-", 40)
        names += more
        for name in more:
            site.start(name)
        time.sleep(0.3)  # into the midst of it
        running.pop(0).end(signal.SIGKILL)
        running.append(site.history(f"h{round_ + 2}"))
    site.check(names)


def test_a_frozen_owner_that_goes_on_can_commit_nothing(site: Site, store: str) -> None:
    frozen = site.history("frozen")
    names = ids("before", 20)
    for name in names:
        site.start(name)
    time.sleep(0.3)  # into the midst of it
    freeze(frozen, store)
    other = site.history("other")
    more = ids("meanwhile", 20)
    for name in more:
        site.start(name)
    # RabbitMQ sees by its heartbeats that the frozen one is gone.
    site.check([*names, *more])
    frozen.send(signal.SIGCONT)
    last = ids("after", 20)
    for name in last:
        site.start(name)
    site.check([*names, *more, *last])
    site.wait_spread("frozen", "other")
    assert other.end() == frozen.end() == 0


def test_a_database_that_crashes_is_waited_for(
    broker_url: str, namespace: str, postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    migrate_store(postgresql.url)
    site = Site(broker_url, namespace, postgresql.url, tmp_path)
    try:
        process = site.history("h1")
        names = ids("w", 60)
        for name in names:
            site.start(name)
        time.sleep(0.3)  # into the midst of it
        postgresql.kill()
        more = ids("away", 10)
        for name in more:
            site.start(name)
        time.sleep(1)
        postgresql.start()
        site.check([*names, *more])
        assert process.end() == 0
    finally:
        site.close()


def test_what_an_operator_took_from_a_running_service_is_waited_for(
    broker_url: str, namespace: str, postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    migrate_store(postgresql.url)
    site = Site(broker_url, namespace, postgresql.url, tmp_path)
    try:
        process = site.history("h1")
        site.start("before").result(SOON_S)
        with psycopg.connect(postgresql.url.replace("+psycopg", ""), autocommit=True) as operator:
            operator.execute("ALTER TABLE tq_runs RENAME TO gone")
            names = ids("w", 10)
            for name in names:
                site.start(name)
            wait_said(process, 'relation "tq_runs" does not exist')
            operator.execute("ALTER TABLE gone RENAME TO tq_runs")
        site.check([*names, "before"])
        assert process.end() == 0
        assert "the store is back" in process.log.read_text()
    finally:
        site.close()


def test_a_disk_that_is_full_is_waited_for(
    broker_url: str, namespace: str, small_disk: Path, tmp_path: Path
) -> None:
    site = Site(broker_url, namespace, f"sqlite:///{small_disk / 'history.sqlite'}", tmp_path)
    try:
        process = site.history("h1")
        site.start("before").result(SOON_S)
        ballast = small_disk / "ballast"
        fill(ballast)
        names = ids("w", 40)
        for name in names:
            site.start(name)
        wait_said(process, "database or disk is full; nothing is lost")
        ballast.unlink()
        site.check([*names, "before"])
        assert process.end() == 0
        assert "the store is back" in process.log.read_text()
    finally:
        site.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; it needs the rights to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small disk: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(ballast: Path) -> None:
    """Take all the room that is left."""
    with ballast.open("wb", buffering=0) as file:
        for block in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(block)) == block:
                    continue


def wait_said(process: Process, text: str) -> None:
    """Until its log has ``text``."""
    deadline = time.monotonic() + SOON_S
    while text not in process.log.read_text():
        assert time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.05)


def test_a_broker_that_restarts_is_waited_for(
    rabbitmq: LocalRabbitMQ, namespace: str, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'history.sqlite'}"
    site = Site(rabbitmq.url, namespace, store, tmp_path)
    try:
        process = site.history("h1")
        names = ids("before", 60)
        for name in names:
            site.start(name)
        site.check(names)
        # RabbitMQ 3.10 forgets the term of a quorum queue that is killed within five seconds of its
        # birth, which then elects no leader any more.
        time.sleep(6)
        more = ids("w", 60)
        names += more
        for name in more:
            site.start(name)
        time.sleep(0.3)  # into the midst of it
        rabbitmq.kill()
        rabbitmq.start()
        site.check(names)
        assert process.end() == 0
    finally:
        site.close()
