from __future__ import annotations

import json

from tests.cli.conftest import Invoke


def test_weights_are_set_shown_and_taken_back(invoke: Invoke) -> None:
    assert json.loads(invoke("task-queue", "weights", "q", "--json").stdout) == []
    answer = invoke("task-queue", "weights", "q", "acme=2.5", "a=b=1", "--reason", "paid for")
    assert answer.stdout == "weights of q set: acme: 2.5, a=b: 1\n"
    lines = invoke("task-queue", "weights", "q").stdout.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("activity\tacme\t2.5\t")
    assert lines[1].endswith("\tpaid for")
    answer = invoke("task-queue", "weights", "q", "acme=default", "--side", "activity", "--json")
    (record,) = json.loads(answer.stdout)["weights"]
    assert (record["key"], record["weight"], record["side"]) == ("acme", None, "activity")
    told = json.loads(invoke("task-queue", "weights", "q", "--json").stdout)
    assert [(one["side"], one["key"]) for one in told] == [
        ("activity", "a=b"),
        ("workflow", "a=b"),
        ("workflow", "acme"),
    ]


def test_bad_weights_are_refused(invoke: Invoke) -> None:
    for text, why in (
        ("acme", "'acme' is not KEY=WEIGHT, such as acme=2.5"),
        ("acme=much", "'much' is not a number, nor 'default'"),
        ("acme=0", "the weight of 'acme' is 0.0; it must be a number from 0.001 to 1000"),
        ("=1", "the key of a weight has 0 bytes"),
    ):
        answer = invoke("task-queue", "weights", "q", text)
        assert answer.exit_code == 2
        assert why in answer.stderr


def test_keys_are_given_on_the_command_line(invoke: Invoke, app: str) -> None:
    options = ("--task-queue", "q", "--start-to-close", "1m", "--fairness-key", "acme")
    answer = invoke("activity", "start", "add", "--args", "[1, 2]", *options, "--fairness-weight=0")
    assert "fairness_weight is 0.0; it must be a number" in answer.stderr
    assert invoke("activity", "start", "add", "--args", "[1, 2]", *options).exit_code == 0
    steps = invoke("route", "explain", "add", "--task-queue", "q", "--fairness-key", "acme").stdout
    assert "its fairness key is 'acme'" in steps
