"""One worker process of the demo, called in this process."""

from __future__ import annotations

import io
import secrets

import pytest

from tq_broker.cli.demo_worker import main
from tq_broker.cli.passwords import URL_VARIABLE
from tq_broker.queues.memory import forget

ARGUMENTS = ["host-1", "demo", "files", "quorum"]


def test_it_says_that_it_is_ready_and_ends_with_its_input(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    url = f"memory://{secrets.token_hex(4)}"
    monkeypatch.setenv(URL_VARIABLE, url)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(ARGUMENTS) == 0
    assert capsysbinary.readouterr().out == b"ready\n"
    forget(url)


def test_what_is_wrong_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(URL_VARIABLE, "ftp://user:secret@host")
    assert main(ARGUMENTS) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("url must begin with one of ")
    assert "secret" not in said.err
