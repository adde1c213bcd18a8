from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.cli.conftest import FullDisk, Invoke, NoThread
from tq_broker.cli import process
from tq_broker.cli.application import Application
from tq_broker.cli.process import WorkerSettings, expand
from tq_broker.cli.signals import Events
from tq_broker.exceptions import InvalidArgument

TERM, INT, QUIT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("w1@%h", "w1@web.example.org"),
        ("%n.%d", "web.example.org"),
        ("%i", "3"),
        ("100%%", "100%"),
        ("%%h%h", "%hweb.example.org"),
        ("%%%i", "%3"),
        ("plain", "plain"),
    ],
)
def test_names_are_filled_in(template: str, text: str) -> None:
    assert expand(template, "web.example.org", 3) == text


@pytest.mark.parametrize("template", ["%x", "a%"])
def test_other_letters_are_refused(template: str) -> None:
    if template == "a%":
        assert expand(template, "h", None) == "a%"
        return
    with pytest.raises(InvalidArgument, match="%x is none of"):
        expand(template, "h", None)


def options(app: Application | None = None, **settings: Any) -> dict[str, Any]:
    made = app or Application(name="app", activities=())
    return WorkerSettings(**settings).worker_options(made)


def test_a_version_may_come_from_the_application_or_the_command_line() -> None:
    app = Application(name="app", activities=(), options={"deployment": "shop", "build_id": "1"})
    told = options(app, build_id="2")
    assert (told["deployment"], told["build_id"]) == ("shop", "2")
    assert "deployment" not in options()


def test_options_win_over_the_application() -> None:
    app = Application(
        name="app", activities=(), options={"max_concurrent_activities": 3, "host": "own"}
    )
    assert options(app) == {"max_concurrent_activities": 3, "host": "own"}
    said = options(
        app,
        concurrency=9,
        sessions=4,
        host="h-%i",
        name="w@%h",
        worker_id="id",
        graceful_timeout=timedelta(seconds=5),
        capabilities=("gpu",),
    )
    assert said == {
        "max_concurrent_activities": 9,
        "max_concurrent_sessions": 4,
        "host": "h-0",
        "identity": "w@h-0",
        "worker_id": "id",
        "graceful_shutdown_timeout": timedelta(seconds=5),
        "capabilities": ("gpu",),
    }


def test_processes_have_names_of_their_own() -> None:
    said = options(name="w@%h", host="web", worker_id="id", process_index=2)
    assert (said["identity"], said["worker_id"]) == ("w-2@web", "id-2")
    said = options(name="w%i@%h", host="web-%i", process_index=2)
    assert (said["identity"], said["host"]) == ("w2@web-2", "web-2")


# --- a life -----------------------------------------------------------------------------------


class FakeWorker:
    """Stops when it is told to, as far as ``heeds`` goes."""

    def __init__(self, *heeds: str) -> None:
        self.heeds = heeds
        self.running = 2
        self.fatal_error = ValueError("broken")
        self.calls: list[str] = []
        self.stopped = threading.Event()

    def stop(self, *, cold: bool = False) -> None:
        how = "cold" if cold else "warm"
        self.calls.append(how)
        if how in self.heeds:
            self.stopped.set()
        self.stopped.wait()


def serve(worker: FakeWorker, *happenings: object) -> tuple[bool, int]:
    events = Events()
    for event in happenings:
        events.put(event)
    return process._serve(worker, events)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [TERM, INT])
def test_one_signal_is_warm(number: int) -> None:
    worker = FakeWorker("warm")
    assert serve(worker, number) == (False, 0)
    assert worker.calls == ["warm"]


def test_a_second_signal_is_cold(capsys: pytest.CaptureFixture[str]) -> None:
    worker = FakeWorker("cold")
    assert serve(worker, TERM, INT) == (False, 1)
    assert sorted(worker.calls) == ["cold", "warm"]
    said = capsys.readouterr().err
    assert said == "tq-broker: warm shutdown: 2 running\ntq-broker: cold shutdown: 2 running\n"


def test_quit_is_cold() -> None:
    worker = FakeWorker("cold")
    assert serve(worker, QUIT) == (False, 1)
    assert worker.calls == ["cold"]


def test_a_third_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Left(Exception):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    worker = FakeWorker()
    with pytest.raises(Left, match="1"):
        serve(worker, TERM, TERM, TERM)
    worker.stopped.set()


def test_hup_is_warm_and_then_anew_unless_a_signal_follows() -> None:
    assert serve(FakeWorker("warm"), HUP) == (True, 0)
    assert serve(FakeWorker("cold"), HUP, TERM) == (False, 1)
    assert serve(FakeWorker("cold"), TERM, HUP, TERM) == (False, 1)


def test_a_worker_that_cannot_go_on_has_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(FakeWorker("warm"), process._Happened.FATAL) == (False, 6)
    assert "the worker cannot go on: broken" in capsys.readouterr().err


def test_an_orphan_shuts_down() -> None:
    read, write = os.pipe()
    events = Events()
    process._watch(read, events)
    os.close(write)
    assert events.next(5.0) is process._Happened.ORPHANED
    os.close(read)
    assert serve(FakeWorker("warm"), process._Happened.ORPHANED) == (False, 0)


def test_a_shutdown_goes_on_when_it_cannot_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: a full disk made a warm shutdown a sudden end."""
    monkeypatch.setattr(sys, "stderr", FullDisk())
    worker = FakeWorker("cold")
    assert serve(worker, TERM, INT) == (False, 1)
    assert sorted(worker.calls) == ["cold", "warm"]


def test_a_shutdown_goes_on_without_a_thread_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "Thread", NoThread)
    worker = FakeWorker("warm")
    assert serve(worker, TERM) == (False, 0)
    assert worker.calls == ["warm"]


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def run(
    invoke: Invoke, app: str, monkeypatch: pytest.MonkeyPatch, signals_kept: None
) -> Callable[..., Result]:
    """Run the worker command; as soon as it is ready it gets ``number``."""
    ready = process._print_ready

    def run(*arguments: str, number: int = TERM) -> Result:
        def then_signal(*about: Any) -> None:
            try:
                ready(*about)
            finally:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(process, "_print_ready", then_signal)
        return invoke("-A", app, "worker", *arguments)

    return run


def test_a_worker_says_what_it_is_and_serves_until_a_signal(
    run: Callable[..., Result], settled: list[None]
) -> None:
    answer = run("-n", "w1@%h", "--host", "web", "-c", "5", "--worker-id", "one")
    assert answer.exit_code == 0
    lines = [line.split(None, 1) for line in answer.stdout.splitlines()]
    assert ["worker", "w1@web"] in lines
    assert ["slots", "5"] in lines
    assert ["activities", "add, fail"] in lines
    assert "  task queues  math" in answer.stdout
    assert "  worker id    one" in answer.stdout
    assert answer.stdout.endswith("w1@web ready\n")
    assert len(settled) == 1
    assert "warm shutdown" in answer.stderr


def test_queues_are_a_list(run: Callable[..., Result]) -> None:
    answer = run("-Q", "a,b", "-Q", "c", "--json", number=QUIT)
    told = json.loads(answer.stdout)
    assert told["event"] == "ready"
    assert told["task_queues"] == ["a", "b", "c"]
    assert answer.exit_code == 1


def test_hup_starts_the_program_anew(
    run: Callable[..., Result], app: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *call: started.append(call))
    run("-Q", "a", number=HUP)
    ((program, arguments),) = started
    assert program == sys.executable
    assert arguments[1:] == ["-m", "tq_broker", "-b", url, "-A", app, "worker", "-Q", "a"]


def test_threads_that_do_not_end_do_not_keep_the_process(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: the interpreter waited for them, for as long as their code ran."""
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    assert run("-Q", "a", number=QUIT).exit_code == 1
    assert left == []
    monkeypatch.setattr(process.Worker, "running", 2)
    assert "leaving 2 activities behind" in run("-Q", "a", number=QUIT).stderr
    assert left == [1]


def test_a_full_disk_keeps_no_worker_from_starting_nor_from_ending(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: processes that were started again crashed of their first line, until all ended."""

    def echo(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(process.Worker, "running", 2)
    monkeypatch.setattr(process.click, "echo", echo)
    assert run("-Q", "a", number=QUIT).exit_code == 1
    assert left == [1]


def test_a_worker_needs_an_application_and_task_queues(
    invoke: Invoke, app: str, tmp_path: Path
) -> None:
    assert "say where the activities are" in invoke("worker").stderr
    with (tmp_path / f"{app}.py").open("a") as file:
        file.write("@activity.defn\ndef homeless() -> None: ...\nalone = [homeless]\n")
    answer = invoke("-A", f"{app}:alone", "worker")
    assert answer.exit_code == 2
    assert "say which, -Q A,B" in answer.stderr
    answer = invoke("-A", app, "worker", "--host", "a\nb")
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
