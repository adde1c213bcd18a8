from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Invoke
from tq_broker.client import BlockingClient
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind


@pytest.fixture
def key(client: BlockingClient, invoke: Invoke) -> str:
    """The key of a message that is parked."""
    core = client.core
    names = core.names
    headers = {
        "tq-parked-reason": "not \x1b[31mreadable",
        "tq-parked-from": str(names.activity("math")),
        "tq-parked-ms": 1_700_000_000_000,
        "tq-parked-by": "w1@here",
    }
    message = Message(body=b"{oops\xff", message_id="m1", kind="activity-task", headers=headers)
    core.sender.ensure((), core.deadline())
    publication = Publication(names.exchange(Exchange.PARKED), Kind.PARKED.value, message)
    core.broker.publish(publication, core.deadline(), lambda receipt: None)
    (one,) = json.loads(invoke("parked", "list", "--json").stdout)
    found: str = one["key"]
    return found


def test_a_list_tells_why(invoke: Invoke, key: str) -> None:
    fields = invoke("parked", "list").stdout.rstrip("\n").split("\t")
    assert fields == [
        key,
        "2023-11-14 22:13:20Z",
        "activity-task",
        "m1",
        "math",
        "not [31mreadable",
    ]


@pytest.mark.parametrize("by_id", [False, True])
def test_one_is_shown_whole(invoke: Invoke, key: str, by_id: bool) -> None:
    shown = invoke("parked", "show", "m1" if by_id else key).stdout
    assert "parked by\tw1@here" in shown
    assert "{oops\\xff" in shown
    told = json.loads(invoke("parked", "show", key, "--json").stdout)
    assert told["body"] == "{oops\\xff"
    assert told["headers"]["tq-parked-by"] == "w1@here"


def test_what_is_not_parked_is_not_found(invoke: Invoke, key: str) -> None:
    for command in (("show", "x"), ("replay", "x"), ("drop", "x", "--yes")):
        answer = invoke("parked", *command)
        assert answer.exit_code == 5
        assert "'x' is not parked here" in answer.stderr


def test_replay_puts_it_back(invoke: Invoke, key: str) -> None:
    assert invoke("parked", "replay", key).stdout == f"{key}\tm1\tmath\n"
    assert invoke("parked", "list").stdout == ""
    assert "\tm1\t" in invoke("task-queue", "peek", "math").stdout


def test_replay_can_send_it_elsewhere(invoke: Invoke, key: str) -> None:
    (one,) = json.loads(invoke("parked", "replay", "--all", "--to", "else", "--json").stdout)
    assert one["task_queue"] == "else"
    assert "\tm1\t" in invoke("task-queue", "peek", "else").stdout


def test_drop_asks_first(invoke: Invoke, key: str) -> None:
    answer = invoke("parked", "drop", "--all")
    assert answer.exit_code == 2
    assert "Say --yes" in answer.stderr
    assert invoke("parked", "drop", key, "--yes").stdout == f"{key}\tm1\n"
    assert invoke("parked", "drop", "--all", "--yes").stdout == ""


@pytest.mark.parametrize("command", ["replay", "drop"])
def test_which_ones_must_be_said_in_one_way(invoke: Invoke, command: str) -> None:
    for arguments in ((), ("key", "--all")):
        answer = invoke("parked", command, *arguments)
        assert answer.exit_code == 2
        assert "or say --all" in answer.stderr
