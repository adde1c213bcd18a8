from __future__ import annotations

import json

from tests.cli.conftest import Invoke
from tq_broker.worker import Worker

QUICK = ("--wait", "300ms", "--timeout", "20s")


def test_each_worker_answers(invoke: Invoke, worker: Worker, app: str) -> None:
    arguments = ("activity", "broadcast", "add", "--args", "[1, 2]", *QUICK)
    assert invoke(*arguments, "-t", "math").stdout == "w1@here\tone\there\t3\n"
    (told,) = json.loads(invoke(*arguments, "-A", app, "--json").stdout)
    assert told == {
        "identity": "w1@here",
        "worker_id": "one",
        "host": "here",
        "ok": True,
        "result": 3,
    }


def test_what_fails_is_told_and_so_is_the_exit_code(
    invoke: Invoke, worker: Worker, app: str
) -> None:
    arguments = ("activity", "broadcast", "fail", "-t", "math", "--wait", "300ms")
    answer = invoke(*arguments, "--arg", '"oh"', "--timeout", "1s", "--json")
    (told,) = json.loads(answer.stdout)
    assert (answer.exit_code, told["ok"]) == (1, False)
    assert told["error"]["kind"] in ("ApplicationError", "TimeoutError")
    answer = invoke("activity", "broadcast", "nothing", "-t", "math", *QUICK)
    assert answer.exit_code == 1
    assert "NotFound: activity 'nothing' is not registered on w1@here" in answer.stdout


def test_nobody_there_and_wrong_arguments(invoke: Invoke, worker: Worker) -> None:
    answer = invoke("activity", "broadcast", "add", "-t", "unserved", *QUICK)
    assert (answer.exit_code, answer.stdout) == (5, "")
    assert "no worker of that task queue answered" in answer.stderr
    for wrong in ((), ("-t", "math", "--args", "[1]", "--arg", "1")):
        assert invoke("activity", "broadcast", "add", *wrong, *QUICK).exit_code == 2
