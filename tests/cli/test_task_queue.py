from __future__ import annotations

import json
from datetime import timedelta

import pytest

from tests.cli.conftest import Invoke
from tq_broker import activity
from tq_broker.cli import exits
from tq_broker.cli.task_queue import part_told
from tq_broker.client import BlockingClient
from tq_broker.common import Route
from tq_broker.model.figures import LimitFigures
from tq_broker.model.figures import Part as PartFigures
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import CapabilitiesDeclared
from tq_broker.worker import Worker

QUICK = ("--wait", "50ms")


@activity.defn(start_to_close_timeout=timedelta(seconds=30))
def rate() -> None: ...


@pytest.fixture
def waiting(client: BlockingClient, app: str) -> str:
    """A task queue with two tasks and no worker."""
    from tq_broker.cli.application import load_application

    add = load_application(app).find("add")
    assert add is not None
    client.start_activities(add, [(1, 2), (3, 4)], wait_result=False, task_queue="idle")
    return "idle"


def test_an_unused_namespace_is_named(invoke: Invoke) -> None:
    answer = invoke("task-queue", "list", "--namespace", "typo", *QUICK)
    assert answer.exit_code == 0
    assert answer.stdout == ""
    assert "nobody has used namespace 'typo'" in answer.stderr


def test_a_list_has_what_waits_and_who_serves(invoke: Invoke, waiting: str, worker: Worker) -> None:
    answer = invoke("task-queue", "list", *QUICK)
    assert answer.stdout == "idle\tactivity\t2\t0\t0\t\t\t\nmath\tactivity\t0\t1\t0\tw1@here\t\t\n"
    first, second = json.loads(invoke("task-queue", "list", "--json", *QUICK).stdout)
    assert (first["task_queue"], first["backlog"], first["workers"]) == ("idle", 2, [])
    assert (second["task_queue"], second["workers"]) == ("math", ["w1@here"])


def test_a_description_tells_all(invoke: Invoke, waiting: str, worker: Worker) -> None:
    shown = invoke("task-queue", "describe", "math", *QUICK).stdout
    assert "worker\tw1@here (id one, host here, 0/100 slots)" in shown
    assert "activity add rate\t0/s\nactivity dispatch rate\t0/s\n" in shown
    assert "activity slots\t0 of 100 used\n" in shown
    assert "activities\tadd, fail" in shown
    shown = invoke("task-queue", "describe", waiting, *QUICK).stdout
    assert "backlog\t2\noldest age\tnot known" in shown
    assert "worker\tnone answered" in shown
    told = json.loads(
        invoke("task-queue", "describe", waiting, "--oldest", "--json", *QUICK).stdout
    )
    assert told["backlog"] == 2
    assert 0 <= told["oldest_age_s"] < 60
    assert told["figures"]["activity"]["backlog"] == 2
    assert told["figures"]["activity"]["limit"]["source"] == "none"
    assert invoke("task-queue", "describe", "none").exit_code == 5


def test_peek_shows_tasks(invoke: Invoke, waiting: str) -> None:
    lines = invoke("task-queue", "peek", waiting).stdout.splitlines()
    assert [line.split("\t")[-1] for line in lines] == ["[1,2]", "[3,4]"]
    (one,) = json.loads(invoke("task-queue", "peek", waiting, "-n", "1", "--json").stdout)
    assert (one["type"], one["attempt"], one["redelivered"]) == ("add", 1, False)
    assert invoke("task-queue", "peek", waiting, "-n", "0").exit_code == 2


def test_purge_asks_first(invoke: Invoke, waiting: str) -> None:
    answer = invoke("task-queue", "purge", waiting)
    assert answer.exit_code == 2
    assert "Drop 2 tasks of task queue 'idle' for ever? Say --yes" in answer.stderr
    assert invoke("task-queue", "purge", waiting, "--yes").stdout == "2 tasks dropped\n"
    answer = invoke("task-queue", "purge", waiting, "-y", "--json")
    assert json.loads(answer.stdout) == {"task_queue": waiting, "dropped": 0}


def test_reclaim_removes_what_is_idle(invoke: Invoke, waiting: str, worker: Worker) -> None:
    assert invoke("task-queue", "reclaim", "--grace", "10ms").stdout == ""
    invoke("task-queue", "purge", waiting, "--yes")
    assert invoke("task-queue", "reclaim", "--grace", "10ms").stdout == "idle\n"
    assert invoke("task-queue", "describe", waiting).exit_code == 5
    assert invoke("task-queue", "describe", "math", *QUICK).exit_code == 0


def test_workflow_sides_are_listed_and_described(
    invoke: Invoke, client: BlockingClient, waiting: str
) -> None:
    core = client.core
    core.sender.ensure([core.names.workflow("orders")], core.deadline())
    listed = invoke("task-queue", "list", *QUICK).stdout.splitlines()
    assert listed[1] == "orders\tworkflow\t0\t0\t0\t\t\t"
    shown = invoke("task-queue", "describe", "orders", *QUICK).stdout
    assert "workflow tasks\t0\nworkflow consumers\t0\nworkflow workers\tnone answered" in shown
    told = json.loads(invoke("task-queue", "describe", "orders", "--json", *QUICK).stdout)
    assert (told["exists"], told["workflow"]["exists"], told["workflow"]["side"]) == (
        False,
        True,
        "workflow",
    )
    assert invoke("task-queue", "peek", "orders", "--side", "workflow").exit_code == 0
    assert invoke("task-queue", "reclaim", "--grace", "10ms").stdout == "orders\n"


def test_limits_are_set_told_and_taken_back(invoke: Invoke, waiting: str) -> None:
    config = ("task-queue", "config")
    assert "rate\t-\nconcurrency\t-\n" in invoke(*config, "get", waiting).stdout
    shown = invoke(*config, "set", waiting, "--rate", "2.5", "--reason", "slow down").stdout
    assert "rate\t2.5/s, burst 4\n" in shown
    assert "reason\tslow down" in shown
    assert "(setting)" in shown
    shown = invoke(*config, "set", waiting, "--concurrency", "3", "--burst", "9", "--json").stdout
    told = json.loads(shown)
    assert (told["rate"], told["burst"], told["concurrency"]) == (2.5, 9, 3)
    assert (told["source"], told["revision"]) == ("setting", 2)
    shown = invoke("task-queue", "describe", waiting, *QUICK).stdout
    assert "activity rate\t2.5/s, burst 9" in shown
    told = json.loads(invoke(*config, "set", waiting, "--rate", "none", "--json").stdout)
    assert (told["rate"], told["burst"], told["concurrency"]) == (None, None, 3)
    told = json.loads(invoke(*config, "reset", waiting, "--json").stdout)
    assert told["concurrency"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rate", "0"), "to stop a task queue, pause it"),
        (("--rate=-1",), "rate is -1; it must be from 0.001 to 10000"),
        (("--rate", "nan"), "rate is nan"),
        (("--rate", "1e12"), "rate is 1e+12"),
        (("--rate", "fast"), "rate is 'fast'; write a number, or none"),
        (("--rate", "5", "--burst", "1.5"), "burst is '1.5'; write a whole number, or none"),
        (("--burst", "3"), "burst is given without a rate"),
        (("--concurrency", "1000000"), "concurrency is 1000000; it must be from 1 to 10000"),
        ((), "nothing to set"),
    ],
)
def test_bad_limits_are_refused_with_the_bound(
    invoke: Invoke, waiting: str, arguments: tuple[str, ...], words: str
) -> None:
    answer = invoke("task-queue", "config", "set", waiting, *arguments)
    assert answer.exit_code != 0
    assert words in answer.stderr


def test_limits_of_an_unknown_task_queue_are_refused(invoke: Invoke, waiting: str) -> None:
    answer = invoke("task-queue", "config", "set", "typo", "--rate", "1")
    assert answer.exit_code != 0
    assert "there is no task queue 'typo'" in answer.stderr
    answer = invoke("task-queue", "config", "get", "typo")
    assert answer.exit_code == exits.NOT_FOUND
    assert "there is no task queue 'typo'" in answer.stderr


def test_limits_of_an_unknown_type_are_refused(
    invoke: Invoke, waiting: str, worker: Worker
) -> None:
    def limit(task_queue: str, *more: str) -> tuple[int, str]:
        answer = invoke("task-queue", "config", "set", task_queue, "--rate", "5", *more)
        return answer.exit_code, answer.stderr

    code, told = limit(waiting, "--type", "add")
    assert code == exits.OK
    assert "no worker of task queue 'idle' answers: nobody knows whether it has" in told
    code, told = limit("math", "--type", "ad")
    assert code == exits.USAGE
    assert "registers activity type 'ad'; known there: add, fail" in told
    for more in (("--type", "add"), ("--type", "ad", "--force"), ("--key", "ad"), ()):
        assert limit("math", *more) == (exits.OK, "")


def test_what_nobody_can_serve_is_shown(invoke: Invoke, client: BlockingClient) -> None:
    record = CapabilitiesDeclared("film", ("gpu",), 1)
    client.core.sender.append(record, client.core.deadline(), lambda error: None)
    client.start_activity(
        "render", task_queue="film", requires={"gpu"}, wait_result=False,
        start_to_close_timeout=timedelta(seconds=9),
    )  # fmt: skip
    lines = invoke("task-queue", "describe", "film", *QUICK).output.splitlines()
    assert "waiting for gpu\t1 (served by NOBODY who answers)" in lines
    told = json.loads(invoke("task-queue", "describe", "film", "--json", *QUICK).stdout)
    assert (told["capable"][0]["requires"], told["capable"][0]["backlog"]) == (["gpu"], 1)
    purge = ("task-queue", "purge", "film", "--yes", "--requires")
    assert invoke(*purge, "gpu").output == "1 tasks dropped\n"
    assert invoke(*purge, "tpu").exit_code == 5


def test_types_and_keys_have_limits_of_their_own(invoke: Invoke, waiting: str) -> None:
    config = ("task-queue", "config")
    told = json.loads(
        invoke(*config, "set", waiting, "--type", "T", "--rate", "5", "--json").stdout
    )
    assert (told["part"], told["rate"]) == ({"kind": "type", "name": "T"}, 5.0)
    shown = invoke(*config, "set", waiting, "--each-key", "--concurrency", "2").stdout
    assert "for\teach-key\n" in shown
    shown = invoke(*config, "get", waiting).stdout
    assert "rate\t-\n" in shown
    assert "type T rate\t5/s, burst 6\n" in shown
    assert "each-key concurrency\t2\n" in shown
    told = json.loads(invoke("task-queue", "describe", waiting, "--wait", "0s", "--json").stdout)
    assert [one["kind"] for one in told["part_limits"]] == ["each-key", "type"]
    assert told["waiting_for_limits"] == 0
    invoke(*config, "reset", waiting, "--each-key")
    told = json.loads(invoke(*config, "get", waiting, "--json").stdout)
    assert [one["name"] for one in told["parts"] if one["rate"]] == ["T"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "--type", "T", "--key", "k", "--rate", "1"), "not several"),
        (("set", "--key", "", "--rate", "1"), "1 to 256 bytes"),
        (("set", "--key", "k", "--rate", "nan"), "from 0.001 to 10000"),
        (("set", "--key", "k", "--concurrency", "0"), "pause it"),
        (("set", "--type", "T", "--rate", "1", "--side", "workflow"), "only activities"),
        (("reset", "--key", "typo"), "nothing was set for key typo"),
    ],
)
def test_bad_parts_are_refused(
    invoke: Invoke, waiting: str, arguments: tuple[str, ...], said: str
) -> None:
    verb, *options = arguments
    answer = invoke("task-queue", "config", verb, waiting, *options)
    assert answer.exit_code != 0
    assert said in answer.stderr


def test_a_sample_and_the_routes_are_described(
    invoke: Invoke, waiting: str, client: BlockingClient
) -> None:
    rule = TrafficRule(
        id="lend", task_queue=waiting, to_task_queue="laptop", by="ann", reason="try"
    )
    client.operations.traffic.set(rule, force=True, wait_s=0.0)
    describe = ("task-queue", "describe", waiting, "--sample", "5", *QUICK)
    lines = invoke(*describe).output.splitlines()
    assert [
        " ".join(line.split()) for line in lines if "sample" in line or "priority 3" in line
    ] == [
        "sample 2 of 2 tasks read, all",
        "waiting with priority 3 2",
    ]
    assert any("rule 'lend'" in line and "set by ann: try" in line for line in lines)
    told = json.loads(invoke(*describe, "--json").stdout)
    assert told["sample"]["priorities"] == [{"priority": 3, "count": 2}]
    assert told["sample"]["is_whole"]
    assert len(told["routes"]) == 1
    assert [one["kind"] for one in told["queues"]] == ["activity"]
    assert invoke("task-queue", "describe", waiting, "--sample", "1001").exit_code == 2


def test_what_waits_for_a_version_is_shown_with_nobody_there(
    invoke: Invoke, client: BlockingClient
) -> None:
    with Worker(client, task_queue="film", activities=[rate], deployment="cut", build_id="1"):
        pass
    route = Route.version("cut.1")
    client.start_activity(rate, task_queue="film", route=route, wait_result=False)
    lines = invoke("task-queue", "describe", "film", *QUICK).output.splitlines()
    (line,) = [line for line in lines if "version" in line and "waiting" in line]
    assert " ".join(line.split()) == "waiting for version cut.1 1, NOBODY takes them now"
    answer = invoke("task-queue", "peek", "film").output
    assert "version cut.1" in answer
    assert invoke("task-queue", "purge", "film", "--yes").output == "1 tasks dropped\n"


def test_a_key_tells_what_limits_it() -> None:
    limit = LimitFigures(
        rate=2.0,
        burst=1,
        concurrency=3,
        source="setting",
        by="ann",
        is_paused=True,
        is_limiting=True,
    )
    part = PartFigures(
        priority=None,
        key="k",
        dispatch_rate=1.5,
        begun=2,
        last_waited_s=2.0,
        backlog=7,
        oldest_age_s=30.0,
        limit=limit,
    )
    assert part_told(part) == (
        "1.5/s, last wait 2.0s, 7 held back, oldest 30s, limit 2/s (setting),"
        " limit 3 at once (setting), BACKED OFF, LIMITED"
    )


def test_why_the_priorities_of_what_waits_are_not_told_and_what_to_do(
    invoke: Invoke, client: BlockingClient
) -> None:
    client.start_activities(rate, [()], wait_result=False, task_queue="ranked", priority=1)
    shown = invoke("task-queue", "describe", "ranked", *QUICK).stdout
    assert "RabbitMQ does not tell how many of each wait: --sample N" in shown
    shown = invoke("task-queue", "describe", "ranked", "--sample", "5", *QUICK).stdout
    assert "RabbitMQ does not tell" not in shown
    assert "waiting with priority 1\t1\n" in shown
