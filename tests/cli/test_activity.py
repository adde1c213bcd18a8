from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Invoke
from tq_broker.client import BlockingActivityHandle, BlockingClient
from tq_broker.client.operations import Operations
from tq_broker.worker import Worker

EXECUTE = ("activity", "execute", "add", "-t", "math", "--start-to-close", "5s")


@pytest.mark.usefixtures("worker")
def test_execute_prints_the_result(invoke: Invoke) -> None:
    answer = invoke(*EXECUTE, "--args", "[1, 2]")
    assert (answer.output, answer.exit_code) == ("3\n", 0)
    answer = invoke(*EXECUTE, "--arg", "1", "--arg", "2", "--json", "--id", "mine")
    assert json.loads(answer.stdout) == {"id": "mine", "status": "completed", "result": 3}


def test_a_printed_result_is_what_was_returned(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: joiners of Persian and of emoji were missing, in pipes too."""
    monkeypatch.setattr(BlockingActivityHandle, "result", lambda *_: "\u0645\u200c\u202e")
    assert invoke(*EXECUTE).output == '"\u0645\\u200c\\u202e"\n'


@pytest.mark.usefixtures("worker")
def test_the_application_gives_defaults(invoke: Invoke, app: str) -> None:
    assert invoke("-A", app, "activity", "execute", "add", "--args", "[1, 2]").output == "3\n"
    answer = invoke("-A", app, "activity", "execute", "add", "--args", "[1]")
    assert answer.exit_code == 2
    assert "takes at least 2 arguments" in answer.stderr


@pytest.mark.usefixtures("worker")
def test_a_failure_is_one_line_and_an_exit_code(invoke: Invoke, app: str) -> None:
    failing = ("-A", app, "activity", "execute", "fail", "--arg", '"a\\nb"', "--max-attempts", "1")
    answer = invoke(*failing)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    answer = invoke(*failing, "--json")
    assert answer.exit_code == 1
    told = json.loads(answer.stdout)
    assert told["status"] == "failed"
    assert told["error"]["type"] == "ValueError"
    assert told["error"]["message"] == "a\nb"
    assert told["error"]["retry_state"] == "MAXIMUM_ATTEMPTS_REACHED"


@pytest.mark.usefixtures("worker")
def test_retries_that_ran_out_of_time_tell_why_they_were_needed(invoke: Invoke) -> None:
    """Found: who had misspelt the type was told of a timeout only."""
    unknown = ("activity", "execute", "nope", "-t", "math", "--schedule-to-close", "300ms")
    answer = invoke(*unknown)
    assert (answer.exit_code, answer.stderr.count("\n")) == (1, 1)
    assert "schedule-to-close timeout: Activity function nope is not registered" in answer.stderr
    error = json.loads(invoke(*unknown, "--json").stdout)["error"]
    assert (error["kind"], error["type"]) == ("TimeoutError", "SCHEDULE_TO_CLOSE")
    assert "available activities: add, fail" in error["cause"]


def test_execute_waits_only_for_its_timeout(invoke: Invoke) -> None:
    answer = invoke(*EXECUTE, "--args", "[1, 2]", "--timeout", "50ms")
    assert answer.exit_code == 3
    assert "not ended within 0.05 s" in answer.stderr


def test_start_prints_the_id(invoke: Invoke, client: BlockingClient) -> None:
    start = ("activity", "start", "add", "-t", "math", "--schedule-to-close", "5m", "--priority")
    answer = invoke(*start, "1", "--args", "[1, 2]", "--id", "mine", "--id-conflict", "refuse")
    assert answer.output == "mine\n"
    (task,) = Operations(client.core).peek("math")
    assert (task.id, task.type, task.arguments) == ("mine", "add", "[1,2]")


def test_a_route_to_nobody_is_not_found(invoke: Invoke, worker: Worker) -> None:
    routed = (*EXECUTE, "--args", "[1, 2]", "--route")
    assert invoke(*routed, "host:here").output == "3\n"
    assert invoke(*routed, "process:one").output == "3\n"
    answer = invoke(*routed, "host:gone")
    assert answer.exit_code == 5
    assert "no living worker serves" in answer.stderr
    assert invoke(*routed, "host:gone", "--on-gone", "fall-back").output == "3\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("add",), "name the task queue"),
        (("add", "-t", "math"), "bound it: --start-to-close"),
        (("add", "-t", "m", "--args", "[1]", "--arg", "1"), "give either --args or --arg"),
        (("add", "-t", "m", "--args", "1"), "not a JSON list"),
        (("add", "-t", "m", "--start-to-close", "soon"), "is not a duration"),
        (("add", "-t", "m", "--start-to-close", "1s", "--route", "x"), "is not a route"),
        (("add", "-t", "m", "--start-to-close", "1s", "--priority", "9"), "1<=x<=5"),
        (("add", "-t", "m\x00", "--start-to-close", "1s"), "task_queue"),
    ],
)
def test_what_is_wrong_is_said(invoke: Invoke, arguments: tuple[str, ...], text: str) -> None:
    answer = invoke("activity", "start", *arguments)
    assert answer.exit_code == 2
    assert text in answer.stderr


def test_cancel_asks(invoke: Invoke) -> None:
    answer = invoke("activity", "cancel", "mine", "--reason", "no more")
    assert (answer.output, answer.exit_code) == ("cancellation of mine requested\n", 0)
    assert json.loads(invoke("activity", "cancel", "mine", "--json").stdout)["requested"]


def test_what_is_required_is_said(invoke: Invoke, worker: Worker) -> None:
    needs = (*EXECUTE, "--args", "[1, 2]", "--requires", "gpu")
    answer = invoke(*needs)
    assert answer.exit_code == 5
    assert "has ever had gpu; known there: none" in answer.stderr
    assert invoke(*needs, "--on-unserved", "fall-back").output == "3\n"
    assert "did not within" in invoke(*needs, "--on-unserved", "wait:50ms").stderr


def test_a_version_is_said(invoke: Invoke) -> None:
    start = ("activity", "start", "add", "-t", "math", "--start-to-close", "1s", "--version")
    answer = invoke(*start, "shop.1")
    assert answer.exit_code == 5
    assert "no worker of version 'shop.1' has ever served task queue 'math'" in answer.stderr
    answer = invoke(*start, "shop")
    assert (answer.exit_code, "such as 'shop.1.4'" in answer.stderr) == (2, True)
    assert invoke(*start, "shop.1", "--route", "host:h").exit_code == 2


def test_an_activity_is_described_wherever_it_waits(invoke: Invoke) -> None:
    start = ("activity", "start", "add", "-t", "math", "--schedule-to-close", "5m")
    invoke(*start, "--id", "mine", "--args", "[1, 2]")
    describe = ("activity", "describe", "mine", "--wait", "50ms")
    answer = invoke(*describe)
    assert answer.exit_code == 5
    assert "unknown" in answer.output
    answer = invoke(*describe, "-t", "math", "--search", "10")
    assert answer.exit_code == 0
    lines = [line.split(maxsplit=1) for line in answer.output.splitlines()]
    assert ["state", "waiting"] in lines
    assert ["goes", "1. the task queue of activity 'add' is 'math'"] in lines
    told = json.loads(invoke(*describe, "-t", "math", "--search", "10", "--json").stdout)
    assert (told["state"], told["type"], told["attempt"]) == ("waiting", "add", 1)
    assert told["waits"]["kind"] == "activity"
    assert told["steps"][-1] == "workers that answer there: none"
    assert invoke(*describe, "--search", "10").exit_code == 2


def test_an_activity_that_was_done_is_described(invoke: Invoke, worker: Worker) -> None:
    invoke(*EXECUTE, "--args", "[1, 2]", "--id", "mine", "--id-conflict", "join")
    told = json.loads(invoke("activity", "describe", "mine", "--wait", "200ms", "--json").stdout)
    assert told["state"] == "ended"
    assert told["found"][0]["worker"] == worker.identity
    assert told["found"][0]["hold"] == "taken"
