from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FullDisk, Invoke
from tq_broker.cli import main as main_module
from tq_broker.cli.main import cli, main
from tq_broker.exceptions import AccessRefused, Bug


def test_help_shows_commands_exit_codes_and_examples(invoke: Invoke) -> None:
    for option in ("-h", "--help"):
        shown = invoke(option).output
        for word in ("worker", "activity", "task-queue", "parked", "doctor", "Exit codes", "-Q"):
            assert word in shown


def test_the_version_is_told(invoke: Invoke) -> None:
    assert invoke("--version").output.startswith("tq-broker, version ")


def test_what_was_printed_in_vain_is_not_tried_again_at_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stderr", FullDisk(fileno=log.fileno()))
        assert main(["--version"]) == 0
        with open(os.devnull) as nowhere:
            assert os.path.sameopenfile(log.fileno(), nowhere.fileno())


def test_main_returns_the_exit_code(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-b", url, "task-queue", "list"]) == 0
    assert main(["-b", url, "task-queue", "describe", "none"]) == 5
    assert main(["-b", url, "nonsense"]) == 2
    assert main(["--help"]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_an_error_is_one_line(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_(error: BaseException) -> Any:
        def connect(**_: Any) -> None:
            raise error

        return connect

    target = "tq_broker.cli.session.BlockingClient.connect"
    monkeypatch.setattr(target, raise_(AccessRefused("not\nyou")))
    answer = invoke("worker", "list")
    assert answer.exit_code == 4
    assert answer.stderr == "tq-broker: not you; see: tq-broker doctor\n"
    monkeypatch.setattr(target, raise_(Bug("ours")))
    assert invoke("worker", "list").exit_code == 1
    monkeypatch.setattr(target, raise_(KeyboardInterrupt()))
    assert invoke("worker", "list").exit_code == 130


def test_a_wrong_url_does_not_show_its_password(invoke: Invoke) -> None:
    answer = invoke("worker", "list", "-b", "http://user:hunter2@host")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("tq-broker: url must begin with one of amqp://")
    assert answer.stderr.count("\n") == 1
    assert "hunter2" not in answer.output


def test_a_password_on_the_command_line_goes_to_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []

    class Started(Exception):
        pass

    def execv(program: str, arguments: list[str]) -> None:
        started.append((program, arguments))
        raise Started

    monkeypatch.setenv("TQ_BROKER_URL", "amqp://other")
    monkeypatch.setattr("os.execv", execv)
    monkeypatch.setattr(
        sys, "argv", ["tq-broker", "-b", "amqp://user:hunter2@host", "doctor", "--json"]
    )
    with pytest.raises(Started):
        main()
    program = sys.executable
    assert started == [(program, [program, "-m", "tq_broker", "doctor", "--json"])]
    assert main_module.os.environ["TQ_BROKER_URL"] == "amqp://user:hunter2@host"


def test_shells_can_complete(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TQ_BROKER_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "tq-broker task-queue de")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        cli.main([], prog_name="tq-broker")
    assert capsys.readouterr().out == "plain,describe\n"
