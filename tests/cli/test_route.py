"""``tq-broker route``: rules are tried, set, listed, explained and removed."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from tests.cli.conftest import Invoke
from tq_broker.client import BlockingClient
from tq_broker.model.rules import TaskKind, TrafficRule, matching
from tq_broker.worker import Worker

QUICK = ("--wait", "50ms")
SET = ("route", "set", "try-out", "--task-queue", "work", "--to", "math", *QUICK)


def test_a_rule_is_set_listed_and_removed(invoke: Invoke, worker: Worker) -> None:
    answer = invoke(
        *SET, "--type", "add", "--percent", "5", "--header", "tenant=acme", "--ttl", "1h",
        "--reason", "try it", "--by", "ann",
    )  # fmt: skip
    assert answer.stdout == (
        "rule 'try-out' set: 5 % of tasks of type add in work with tenant=acme"
        " to task queue 'math'\n"
    )
    [line] = invoke("route", "list").stdout.splitlines()
    fields = line.split("\t")
    assert fields[:2] == ["100", "try-out"]
    assert fields[4] == "after 10 s"
    assert fields[6:] == ["ann", "try it"]
    [rule] = json.loads(invoke("route", "list", "--json").stdout)
    assert (rule["percent"], rule["headers"]) == (5, {"tenant": "acme"})
    assert invoke("route", "remove", "try-out", "--reason", "done").exit_code == 0
    assert invoke("route", "list").stdout == ""
    assert invoke("route", "remove", "try-out").exit_code == 5
    first, second = invoke("route", "list", "--history").stdout.splitlines()
    assert "\ttry-out\tset: 5 % of" in first
    assert first.endswith("\tann\ttry it")
    assert second.endswith("\tdone")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--percent", "101"), "percent is 101.0; it must be above 0 and at most 100"),
        (("--to", "nobody"), "no living worker serves task queue 'nobody'"),
        (("--to", "work"), "is a loop"),
        (("--to-host", "mars"), "no living worker on host 'mars'"),
        (("--header", "tenant"), "write tenant=acme"),
        (("--take-within", "1ms"), "take_within_ms is 1; it must be from 1000"),
        (("--take-within", "0s"), "take_within_ms is 0; it must be from 1000"),
        (("--ttl", "0s"), "--ttl is 0:00:00; it must be at least 0:00:00.001000"),
        (("--priority", "6"), "6 is not in the range 1<=x<=5"),
        (("--to-host", "here", "--no-fallback"), "a rule to a host needs its fallback"),
        (("--to-version", "shop.9"), "no living worker of version 'shop.9'"),
        (("--to-version", "shop"), "must be a deployment's name, a dot and a build id"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(
    invoke: Invoke, worker: Worker, options: tuple[str, ...], why: str
) -> None:
    answer = invoke(*SET, *options)
    assert answer.exit_code == 2
    assert why in answer.stderr
    assert invoke("route", "list").stdout == ""


def test_force_sets_it_and_says_what_there_is_to_say(invoke: Invoke, worker: Worker) -> None:
    answer = invoke(*SET, "--to", "nobody", "--force", "--json")
    assert "no living worker serves" in answer.stderr
    assert json.loads(answer.stdout)["findings"][0]["refuses"] is True
    assert len(json.loads(invoke("route", "list", "--json").stdout)) == 1


def test_a_dry_run_tells_what_would_have_moved(
    invoke: Invoke, worker: Worker, client: BlockingClient
) -> None:
    dry = ("route", "set", "r", "--task-queue", "math", "--to", "elsewhere", "--dry-run", *QUICK)
    assert "no worker has taken a task lately" in invoke(*dry).stdout
    for number in range(3):
        client.execute_activity(
            "add", args=(number, 1), task_queue="math", start_to_close_timeout=timedelta(minutes=1)
        )
    shown = invoke(*dry).stdout
    assert "would be refused: no living worker serves task queue 'elsewhere'" in shown
    assert "of 3 tasks in the last" in shown
    assert "3\tactivity\tadd\ttask queue 'math'\ttask queue 'elsewhere' (rule 'r')" in shown
    told = json.loads(invoke(*dry, "--json").stdout)
    assert (told["seen"], len(told["moves"])) == (3, 3)
    assert invoke("route", "list").stdout == ""


def test_an_explanation_is_numbered(invoke: Invoke, worker: Worker) -> None:
    ask = ("route", "explain", "add", "--task-queue", "work", *QUICK)
    assert invoke(*ask).stdout.splitlines()[1] == (
        "2. no traffic rules are in force; it goes there"
    )
    invoke(*SET, "--header", "tenant=acme")
    assert "header 'tenant' is missing" in invoke(*ask).stdout
    shown = invoke(*ask, "--header", "tenant=acme", "--json").stdout
    assert any("it goes to task queue 'math'" in step for step in json.loads(shown)["steps"])
    assert invoke("route", "explain", "add").exit_code == 2


def test_what_a_rule_matches_is_told_in_words() -> None:
    rule = TrafficRule(
        id="r", kind=TaskKind.WORKFLOW, memo={"customer": "acme"}, priority=1, to_host="h"
    )
    assert matching(rule) == "all workflow tasks with memo customer=acme of priority 1"


def test_routes_and_requirements_are_explained(invoke: Invoke, worker: Worker) -> None:
    def told(*options: str) -> str:
        return invoke("route", "explain", "add", "--task-queue", "math", *options, *QUICK).stdout

    assert "it requires gpu, ssd: only workers that have all of it" in told(
        "--requires", "ssd", "--requires", "gpu"
    )
    assert "workers that answer there: none" in told("--requires", "gpu")
    here = told("--route", "host:here")
    assert "its route says host 'here'" in here
    assert "workers that answer there: w1@here" in here
    assert "workers that answer there: none" in told("--route", "process:other")
    falls = told("--requires", "gpu", "--on-unserved", "fall-back")
    assert "if nobody is there: it falls back to queue tq.default.activity.math" in falls


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--route", "mars"), "is not a route"),
        (("--requires", "gpu", "--on-unserved", "pray"), "is not fail, fall-back or wait:30s"),
        (("--requires", "x" * 99), "the bound is 90"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    invoke: Invoke, options: tuple[str, ...], why: str
) -> None:
    answer = invoke("route", "explain", "add", "--task-queue", "math", *options)
    assert answer.exit_code == 2
    assert why in answer.stderr


def test_a_rule_tells_its_fairness_key() -> None:
    rule = TrafficRule(id="r", fairness_key="acme", to_task_queue="there")
    assert matching(rule) == "all tasks with fairness key acme"


def test_an_affinity_is_explained(invoke: Invoke, worker: Worker) -> None:
    ask = ("route", "explain", "add", "--task-queue", "math", *QUICK, "--affinity", "host")
    shown = invoke(*ask, "--kind", "workflow", "--on-lost", "restart-affinity").stdout
    assert "its affinity is host: it does not bind the workflow itself" in shown
    assert "when that is lost, it goes to the task queue" in shown
    assert "its affinity is host: an activity follows to" in invoke(*ask).stdout
    answer = invoke(*ask[:-2], "--on-lost", "wait")
    assert (answer.exit_code, "need an affinity" in answer.stderr) == (2, True)
