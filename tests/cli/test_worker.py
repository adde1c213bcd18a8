from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tq_broker.cli import worker as worker_module
from tq_broker.worker import Worker

QUICK = ("--wait", "50ms")


def test_living_workers_are_listed(invoke: Invoke, worker: Worker) -> None:
    fields = invoke("worker", "list", *QUICK).stdout.removesuffix("\n").split("\t")
    assert fields[:4] == ["w1@here", "one", "here", str(os.getpid())]
    assert fields[5:] == ["0/100", "math", "add,fail", "", "0", "0/0", "", ""]
    (told,) = json.loads(invoke("worker", "list", "--json", *QUICK).stdout)
    assert (told["worker_id"], told["slots"]) == ("one", 100)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("names", [(), ("w1@here",), ("one",), ("here", "one")])
def test_ping_is_a_health_check(invoke: Invoke, names: tuple[str, ...]) -> None:
    assert invoke("worker", "ping", *names, *QUICK).exit_code == 0


def test_nobody_answers(invoke: Invoke) -> None:
    answer = invoke("worker", "ping", *QUICK)
    assert answer.exit_code == 5
    assert answer.stderr == "tq-broker: no answer from any worker within 0.05s\n"
    answer = invoke("worker", "ping", "w9", *QUICK)
    assert "no answer from w9" in answer.stderr
    assert invoke("worker", "list", *QUICK).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "count", "reload"),
    [(("--processes", "1"), 1, False), (("--processes", "3"), 3, False), (("--reload",), 1, True)],
)
def test_processes_are_supervised(
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    count: int,
    reload: bool,
) -> None:
    calls: list[Any] = []

    def supervise(session: Any, count: int, *, reload: bool) -> int:
        calls.append((count, reload, (tmp_path / "pid").read_text()))
        return 6

    monkeypatch.setattr(worker_module, "supervise", supervise)
    pid = str(tmp_path / "pid")
    assert invoke("-A", "x", "worker", *arguments, "--pidfile", pid).exit_code == 6
    assert calls == [(count, reload, f"{os.getpid()}\n")]


def test_a_supervisor_needs_an_application(invoke: Invoke) -> None:
    assert invoke("worker", "--processes", "2").exit_code == 2


def test_a_pidfile_that_cannot_be_written_is_said(invoke: Invoke, tmp_path: Path) -> None:
    answer = invoke("-A", "x", "worker", "--pidfile", str(tmp_path / "none" / "pid"))
    assert answer.exit_code == 2
    assert "No such file or directory" in answer.stderr


def test_what_goes_wrong_later_is_not_laid_to_the_pidfile(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def supervise(*_: Any, **__: Any) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(worker_module, "supervise", supervise)
    pid = tmp_path / "pid"
    answer = invoke("-A", "x", "worker", "--processes", "2", "--pidfile", str(pid))
    assert isinstance(answer.exception, BlockingIOError)
    assert not pid.exists()


def test_help_has_signals_and_examples(invoke: Invoke) -> None:
    shown = invoke("worker", "-h").output
    assert "again, or QUIT" in shown
    assert "--process-index" not in shown
