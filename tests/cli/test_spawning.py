from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from tests.cli.conftest import FullDisk
from tq_broker.cli import spawning
from tq_broker.cli.output import Output
from tq_broker.cli.session import Session

SECRET = "amqp://user:hunter2@host"


class Started:
    """Stands for a process that runs for ever, or ends with ``code``."""

    def __init__(self, arguments: list[str], **keywords: Any) -> None:
        self.arguments = arguments
        self.keywords = keywords
        self.pid = 7
        self.code: int | None = 2

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, sig: int, /) -> None:
        raise AssertionError("it has ended")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Started]:
    made: list[Started] = []

    def popen(arguments: list[str], **keywords: Any) -> Started:
        made.append(Started(arguments, **keywords))
        return made[-1]

    monkeypatch.setattr("subprocess.Popen", popen)
    return made


def test_a_process_is_this_program_again(started: list[Started]) -> None:
    spawning.start_process(["-b", SECRET, "-A", "app", "worker"], 2, 9)
    (one,) = started
    assert one.arguments[0] == sys.executable
    assert one.arguments[1:] == [
        *("-m", "tq_broker", "-A", "app", "worker"),
        *("--process-index", "2", "--guard-fd", "9"),
    ]
    assert one.keywords["env"]["TQ_BROKER_URL"] == SECRET
    assert one.keywords["pass_fds"] == (9,)
    assert one.keywords["start_new_session"]


@pytest.mark.usefixtures("signals_kept", "started")
def test_a_supervisor_whose_log_is_full_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", FullDisk())
    session = Session({}, None, Output(), None, ("-A", "app", "worker"))
    assert spawning.supervise(session, 1, reload=False) == 2


@pytest.mark.usefixtures("signals_kept")
def test_a_supervisor_ends_with_its_processes(
    started: list[Started], capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session({}, None, Output(), None, ("-A", "app", "worker"))
    before = signal.getsignal(signal.SIGTERM)
    open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert spawning.supervise(session, 1, reload=False) == 2
    assert "process 1 ended with code 2; giving up" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    if open_before:
        assert len(os.listdir("/proc/self/fd")) == open_before
