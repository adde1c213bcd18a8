from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tq_broker.cli import doctor
from tq_broker.cli.diagnosis import Finding, Level
from tq_broker.cli.output import Output

GOOD = Finding(Level.OK, "connection", "amqp://host")
BAD = Finding(Level.FAULT, "streams", "none", "upgrade")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the examination will find."""
    listed: list[Finding] = []

    class Fake:
        def __init__(self, *_: Any) -> None: ...

        def findings(self) -> Iterator[Finding]:
            yield from listed

    monkeypatch.setattr(doctor, "Examination", Fake)
    # It would ask the broker that is not there.
    monkeypatch.setattr(doctor, "_settings", lambda session: iter(()))
    return listed


def test_an_embedded_broker_needs_no_doctor(invoke: Invoke) -> None:
    answer = invoke("doctor")
    assert answer.exit_code == 0
    assert "nothing to examine" in answer.stdout


def test_a_fault_is_an_exit_code(invoke: Invoke, found: list[Finding]) -> None:
    found += [GOOD, BAD]
    answer = invoke("doctor", broker="amqp://host")
    assert answer.exit_code == 1
    assert answer.stdout == "ok\tconnection\tamqp://host\t\nfault\tstreams\tnone\tupgrade\n"
    assert answer.stderr == "tq-broker: 1 fault found\n"
    answer = invoke("doctor", "--json", broker="amqp://host")
    assert json.loads(answer.stdout)[1] == {
        "level": "fault",
        "subject": "streams",
        "text": "none",
        "advice": "upgrade",
    }


def test_every_address_is_examined(invoke: Invoke, found: list[Finding]) -> None:
    found += [GOOD]
    answer = invoke("doctor", broker="amqp://one;amqp://two")
    assert answer.exit_code == 0
    assert answer.stdout.count("connection") == 2


def test_a_terminal_gets_marks(capsys: pytest.CaptureFixture[str]) -> None:
    list(doctor._shown(Output(is_terminal=True), [BAD]))
    first, second = capsys.readouterr().out.splitlines()
    assert first == "fault    streams                   none"
    assert second.strip() == "upgrade"
