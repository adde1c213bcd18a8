"""The command line on a real server: workers that live, are ended, crash and come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from kombu import Connection

from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

ROOT = Path(__file__).parent.parent
CLOCK = SystemClock()
WITHIN_S = 20.0
SECRET = "hunter2"

SOURCE = """
import asyncio
import os
import time
from datetime import timedelta
from pathlib import Path

from tq_broker import activity

SECONDS = timedelta(seconds=60)


@activity.defn(task_queue="jobs", start_to_close_timeout=SECONDS)
def add(a: int, b: int) -> int:
    return a + b


@activity.defn(task_queue="jobs", start_to_close_timeout=SECONDS)
async def nap(seconds: float, note: str = "") -> str:
    if note:
        Path(note).touch()
    await asyncio.sleep(seconds)
    return "rested"


@activity.defn(task_queue="jobs", start_to_close_timeout=SECONDS)
def deaf(seconds: float, note: str) -> None:
    Path(note).touch()
    time.sleep(seconds)


@activity.defn(task_queue="jobs", start_to_close_timeout=SECONDS)
def attempt() -> int:
    if activity.info().attempt == 1:
        os._exit(9)
    return activity.info().attempt
"""


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = CLOCK.monotonic() + WITHIN_S
    while not condition():
        assert CLOCK.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}"
        CLOCK.sleep(0.05)


class Running:
    """A ``tq-broker`` that goes on, with what it printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_ready(self, times: int = 1) -> None:
        until(
            lambda: self.out.count(" ready\n") >= times or self.process.poll() is not None,
            f"ready: {self.out} {self.err}",
        )
        assert self.process.poll() is None, self.err

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        return self.process.wait(WITHIN_S)


class Shell:
    """Runs ``tq-broker`` in a directory with an application, as a user would."""

    def __init__(self, directory: Path, url: str, namespace: str) -> None:
        self.directory = directory
        self.url = url
        self.namespace = namespace
        self.started: list[Running] = []
        self.printed = ""

    def environment(self, url: str | None) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TQ_BROKER_")}
        environment["PYTHONPATH"] = str(ROOT)
        environment["TQ_BROKER_NAMESPACE"] = self.namespace
        environment["XDG_CONFIG_HOME"] = str(self.directory)
        if url:
            environment["TQ_BROKER_URL"] = url
        return environment

    def run(self, *arguments: str, url: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tq_broker", *arguments],
            cwd=self.directory,
            env=self.environment(url or self.url),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        self.printed += done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: str) -> object:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str, url: str | None = "") -> Running:
        out, err = (self.directory / f"{len(self.started)}.{name}" for name in ("out", "err"))
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [sys.executable, "-m", "tq_broker", *arguments],
                cwd=self.directory,
                env=self.environment(self.url if url == "" else url),
                stdout=out_file,
                stderr=err_file,
                stdin=subprocess.DEVNULL,
            )
        self.started.append(Running(process, out, err))
        return self.started[-1]

    def worker(self, *arguments: str) -> Running:
        started = self.start("-A", "app", "worker", *arguments)
        started.wait_ready()
        return started

    def backlog(self) -> tuple[int, int]:
        """Tasks of ``jobs`` that wait, and that are in flight."""
        told = self.json("task-queue", "describe", "jobs", "--wait", "300ms")
        assert isinstance(told, dict)
        return told["backlog"], told["in_flight"]


@pytest.fixture
def shell(tmp_path: Path, broker_url: str, namespace: str) -> Iterator[Shell]:
    (tmp_path / "app.py").write_text(SOURCE)
    shell = Shell(tmp_path, broker_url, namespace)
    yield shell
    for running in shell.started:
        running.process.kill()
        running.process.wait(WITHIN_S)
        shell.printed += running.out + running.err
    assert SECRET not in shell.printed


# --- activities and a worker ----------------------------------------------------


def test_an_activity_is_started_executed_and_cancelled(shell: Shell) -> None:
    worker = shell.worker("-n", "w1@%h", "--host", "web-1", "-c", "5")
    assert "w1@web-1 ready" in worker.out
    run = shell.run("-A", "app", "activity", "execute", "add", "--args", "[1, 2]")
    assert (run.stdout, run.returncode) == ("3\n", 0)
    run = shell.run(
        *("activity", "execute", "add", "--task-queue", "jobs", "--start-to-close", "5s"),
        *("--arg", "1", "--arg", "2", "--route", "host:web-1"),
    )
    assert run.stdout == "3\n"
    run = shell.run("-A", "app", "activity", "start", "nap", "--args", "[60]", "--id", "n1")
    assert run.stdout == "n1\n"
    until(lambda: shell.backlog() == (0, 1), "the activity runs")
    assert shell.run("activity", "cancel", "n1", "--reason", "enough").returncode == 0
    until(lambda: shell.backlog() == (0, 0), "the activity is cancelled")
    (listed,) = shell.json("worker", "list")  # type: ignore[misc]
    assert (listed["identity"], listed["slots"]) == ("w1@web-1", 5)
    assert shell.run("worker", "ping", "w1@web-1").returncode == 0
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert shell.run("worker", "ping").returncode == 5


def test_a_delayed_activity_waits(shell: Shell) -> None:
    shell.worker()
    began = CLOCK.monotonic()
    execute = ("-A", "app", "activity", "execute", "add", "--args", "[1, 2]")
    assert shell.run(*execute, "--delay", "2s").stdout == "3\n"
    assert CLOCK.monotonic() - began > 2


# --- signals ----------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_warm_shutdown_lets_activities_end(shell: Shell, number: int) -> None:
    worker = shell.worker()
    waiting = shell.start("-A", "app", "activity", "execute", "nap", "--args", '[2, "began"]')
    until((shell.directory / "began").exists, "the activity runs")
    worker.signal(number)
    assert worker.ended() == 0
    assert waiting.ended() == 0
    assert waiting.out == '"rested"\n'
    assert "warm shutdown: 1 running" in worker.err


@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGQUIT,)]
)
def test_a_cold_shutdown_hands_the_activity_on(shell: Shell, numbers: tuple[int, ...]) -> None:
    worker = shell.worker()
    start = ("-A", "app", "activity", "start", "nap", "--args", '[60, "began"]')
    assert shell.run(*start).returncode == 0
    until((shell.directory / "began").exists, "the activity runs")
    for number in numbers:
        worker.signal(number)
        CLOCK.sleep(0.3)
    began = CLOCK.monotonic()
    assert worker.ended() == 1
    assert CLOCK.monotonic() - began < 15
    assert "cold shutdown" in worker.err
    until(lambda: sum(shell.backlog()) == 1, "the task waits for another worker")


def test_code_that_heeds_nothing_does_not_keep_a_cold_worker(shell: Shell) -> None:
    """Found: the process stayed until the code returned."""
    worker = shell.worker()
    start = ("-A", "app", "activity", "start", "deaf", "--args", '[120, "began"]')
    assert shell.run(*start).returncode == 0
    until((shell.directory / "began").exists, "the activity runs")
    for stage in ("warm", "cold"):
        worker.signal(signal.SIGTERM)
        until(lambda stage=stage: f"{stage} shutdown" in worker.err, stage)  # type: ignore[misc]
    assert worker.process.wait(90) == 1, "its code takes 120 s"
    assert "leaving 1 activities behind" in worker.err
    until(lambda: sum(shell.backlog()) == 1, "the task waits for another worker")


def test_hup_starts_a_worker_anew(shell: Shell) -> None:
    worker = shell.worker("-n", "same", "--worker-id", "same")
    worker.signal(signal.SIGHUP)
    worker.wait_ready(times=2)
    run = shell.run("-A", "app", "activity", "execute", "add", "--args", "[1, 2]")
    assert run.stdout == "3\n"
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0


# --- processes ----------------------------------------------------


def test_a_crashed_process_comes_back_and_its_task_is_tried_again(shell: Shell) -> None:
    supervisor = shell.worker("--processes", "2", "-n", "w%i", "--pidfile", "pid")
    supervisor.wait_ready(times=2)
    assert (shell.directory / "pid").read_text() == f"{supervisor.process.pid}\n"
    run = shell.run("-A", "app", "activity", "execute", "attempt")
    assert run.stdout == "2\n"
    assert "ended with code 9; starting it again in 1s" in supervisor.err
    supervisor.wait_ready(times=3)
    workers = shell.json("worker", "list")
    assert isinstance(workers, list)
    assert [one["identity"] for one in workers] == ["w1", "w2"]
    supervisor.signal(signal.SIGHUP)
    supervisor.wait_ready(times=5)
    supervisor.signal(signal.SIGTERM)
    assert supervisor.ended() == 0
    assert not (shell.directory / "pid").exists()
    assert shell.run("worker", "ping").returncode == 5


def test_processes_end_with_their_supervisor(shell: Shell) -> None:
    supervisor = shell.worker("--processes", "1")
    (one,) = shell.json("worker", "list")  # type: ignore[misc]
    supervisor.process.kill()
    until(lambda: not Path(f"/proc/{one['pid']}").exists(), "the orphan ends")


def test_a_changed_source_is_loaded(shell: Shell) -> None:
    running = shell.worker("--reload")
    execute = ("activity", "execute", "add", "-t", "jobs", "--args", "[1, 2]")
    bounded = (*execute, "--start-to-close", "5s")
    assert shell.run(*bounded).stdout == "3\n"
    source = shell.directory / "app.py"
    source.write_text("this is no Python")
    until(lambda: "waiting for a change of the sources" in running.err, "the mistake is told")
    source.write_text(SOURCE.replace("a + b", "a * b * 100"))
    running.wait_ready(times=2)
    assert shell.run(*bounded).stdout == "200\n"


def test_what_cannot_start_is_not_tried_for_ever(shell: Shell) -> None:
    running = shell.start("-A", "nothing", "worker", "--processes", "2")
    assert running.ended() == 2
    assert "there is no module 'nothing'" in running.err


# --- what is wrong ----------------------------------------------------


@pytest.mark.parametrize(
    ("of", "code", "text"),
    [
        (lambda url: f"amqp://user:{SECRET}@127.0.0.1:1/", 3, "nothing listens there"),
        (lambda url: url.replace("guest:guest", f"guest:{SECRET}"), 4, "check the user"),
        (lambda url: f"{url.rstrip('/')}/nowhere", 4, "check that the vhost exists"),
        (lambda url: f"amqp://user:{SECRET}@nowhere.invalid", 3, "cannot be resolved"),
        (lambda url: f"http://user:{SECRET}@host", 2, "url must begin with"),
    ],
)
@pytest.mark.parametrize("command", [("task-queue", "list"), ("-A", "app", "worker", "-Q", "a")])
def test_no_connection_is_one_line_and_a_code(
    shell: Shell, of: Callable[[str], str], code: int, text: str, command: tuple[str, ...]
) -> None:
    url = of(shell.url)
    for run in (shell.run(*command, url=url), shell.run(*command, "-b", url)):
        assert run.returncode == code
        assert text in run.stderr
        assert run.stderr.count("\n") == 1
        assert run.stdout == ""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_password_is_not_in_the_list_of_processes(shell: Shell, broker: LocalRabbitMQ) -> None:
    broker.ctl("add_user", "someone", SECRET)
    broker.ctl("set_permissions", "someone", ".*", ".*", ".*")
    try:
        url = shell.url.replace("guest:guest", f"someone:{SECRET}")
        worker = shell.start("-b", url, "-A", "app", "worker", "--processes", "1", url=None)
        worker.wait_ready()
        (one,) = shell.json("worker", "list")  # type: ignore[misc]
        for pid in (worker.process.pid, one["pid"]):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            assert b"app" in command
            assert SECRET.encode() not in command
        assert "amqp://someone@" in worker.out
    finally:
        broker.ctl("delete_user", "someone")


# --- task queues and parked messages ----------------------------------------------------


def test_peeked_tasks_use_no_attempt(shell: Shell) -> None:
    start = ("-A", "app", "activity", "start", "add", "--args")
    for number in range(3):
        shell.run(*start, f"[{number}, 1]", "--max-attempts", "1")
    waiting = shell.start(
        *("-A", "app", "activity", "execute", "add", "--args", "[40, 2]", "--max-attempts", "1")
    )
    until(lambda: shell.backlog() == (4, 0), "all wait")
    for _ in range(2):
        tasks = shell.json("task-queue", "peek", "jobs")
        assert isinstance(tasks, list)
        assert [one["arguments"] for one in tasks] == ["[0,1]", "[1,1]", "[2,1]", "[40,2]"]
        assert not any(one["redelivered"] for one in tasks)
    told = shell.json("task-queue", "describe", "jobs", "--oldest")
    assert isinstance(told, dict)
    assert 0 < told["oldest_age_s"] < 60
    shell.worker()
    assert waiting.ended() == 0
    assert waiting.out == "42\n"


def test_task_queues_are_listed_purged_and_reclaimed(shell: Shell) -> None:
    unused = shell.run("task-queue", "list")
    assert unused.stdout == ""
    assert "nobody has used namespace" in unused.stderr
    shell.run("-A", "app", "activity", "start", "add", "--args", "[1, 2]")
    shell.run("-A", "app", "activity", "start", "add", "--args", "[1, 2]", "-t", "others")
    assert shell.run("task-queue", "list").stdout == (
        "jobs\tactivity\t1\t0\t0\t\t\t\nothers\tactivity\t1\t0\t0\t\t\t\n"
    )
    assert shell.run("task-queue", "purge", "others").returncode == 2
    assert shell.run("task-queue", "purge", "others", "--yes").stdout == "1 tasks dropped\n"
    assert shell.run("task-queue", "reclaim").stdout == "others\n"
    assert shell.run("task-queue", "list").stdout == "jobs\tactivity\t1\t0\t0\t\t\t\n"
    assert shell.run("task-queue", "describe", "others").returncode == 5


def test_poison_is_parked_shown_and_replayed(shell: Shell, client: BlockingClient) -> None:
    core = client.core
    queue = core.names.activity("jobs")
    headers = {"tq-protocol": 99, "tq-activity-type": "add"}
    poison = Message(body=b'{"args":[1,2]}', message_id="m1", kind="activity-task", headers=headers)
    sent: Future[object] = Future()
    core.sender.send(
        Publication(core.names.exchange(Exchange.TASKS), queue.key, poison),
        (queue,),
        core.deadline(),
        sent.set_result,
    )
    assert sent.result(WITHIN_S) is None
    shell.worker()
    until(lambda: bool(shell.json("parked", "list")), "it is parked")
    # More looks than RabbitMQ 4 lets a message be given back.
    for _ in range(8):
        (one,) = shell.json("parked", "list")  # type: ignore[misc]
    assert one["task_queue"] == "jobs"
    assert "version 99 is not known" in one["reason"]
    assert "tq-protocol" in shell.run("parked", "show", one["key"]).stdout
    assert shell.run("parked", "replay", one["key"], "--to", "later").returncode == 0
    assert shell.json("parked", "list") == []
    (task,) = shell.json("task-queue", "peek", "later")  # type: ignore[misc]
    assert task["id"] == "m1"


def test_what_rabbitmq_parked_itself_can_be_replayed(
    shell: Shell, client: BlockingClient, broker_url: str
) -> None:
    shell.run("-A", "app", "activity", "start", "add", "--args", "[1, 2]", "--id", "often")
    core = client.core
    queue, parked = str(core.names.activity("jobs")), str(core.names.queue(Kind.PARKED))

    def give_back() -> bool:
        message = channel.basic_get(queue)
        if message is not None:
            # Not a nack, which 4.3 does not count.
            channel.basic_reject(message.delivery_tag, requeue=True)
        stats = core.broker.stats(parked, core.deadline())
        return stats is not None and stats.ready == 1

    with Connection(broker_url) as connection:
        channel = connection.default_channel
        until(give_back, "RabbitMQ parks it")
    for _ in range(25):
        core_looks = core.broker.get(parked, core.deadline())
        if core_looks is None:
            break
        core_looks.reject(requeue=True)
        (one,) = shell.json("parked", "list")  # type: ignore[misc]
    assert (one["id"], one["task_queue"], one["parked_by"]) == ("often", "jobs", "RabbitMQ")
    assert "too often" in one["reason"]
    assert shell.run("parked", "replay", "often").returncode == 0
    (task,) = shell.json("task-queue", "peek", "jobs")  # type: ignore[misc]
    assert (task["id"], task["redelivered"]) == ("often", False)


# --- doctor ----------------------------------------------------


def test_doctor_finds_a_good_server_good_and_leaves_nothing(
    shell: Shell, broker: LocalRabbitMQ
) -> None:
    run = shell.run("doctor", "--json")
    assert run.returncode == 0, run.stdout
    levels = {one["subject"]: one["level"] for one in json.loads(run.stdout)}
    for subject in (
        "connection",
        "version",
        "permission to configure",
        "permission to write",
        "permission to read",
        "exclusive queues",
        "quorum queues",
        "streams",
        "publishing",
        "dead letters",
        "clock",
    ):
        assert levels[subject] == "ok", run.stdout
    assert "default queue type" in levels
    assert "doctor" not in broker.ctl("list_queues", "name")
    assert "doctor" not in broker.ctl("list_exchanges", "name")


@pytest.mark.parametrize(
    ("permissions", "missing"),
    [
        (("^$", ".*", ".*"), "configure"),
        ((".*", "^$", ".*"), "write"),
        ((".*", ".*", "^$"), "read"),
    ],
)
def test_doctor_names_a_missing_permission(
    shell: Shell, broker: LocalRabbitMQ, permissions: tuple[str, ...], missing: str
) -> None:
    broker.ctl("add_user", "limited", SECRET)
    broker.ctl("set_permissions", "limited", *permissions)
    try:
        url = shell.url.replace("guest:guest", f"limited:{SECRET}")
        run = shell.run("doctor", "-b", url)
        assert run.returncode == 1
        assert f"fault\tpermission to {missing}\tuser 'limited' may not {missing}" in run.stdout
        assert "rabbitmqctl set_permissions -p / limited" in run.stdout
        assert "doctor" not in broker.ctl("list_queues", "name")
        assert "doctor" not in broker.ctl("list_exchanges", "name")
    finally:
        broker.ctl("delete_user", "limited")


def test_doctor_tells_why_there_is_no_connection(shell: Shell) -> None:
    run = shell.run("doctor", "-b", f"{shell.url.rstrip('/')}/nowhere")
    assert run.returncode == 1
    assert "rabbitmqctl add_vhost nowhere" in run.stdout
