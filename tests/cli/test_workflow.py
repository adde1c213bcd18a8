from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tests.client.fake_history import SOON_S, FakeHistory
from tq_broker.clock import SystemClock
from tq_broker.converter import DEFAULT
from tq_broker.model import failure, payload, requests
from tq_broker.model.events import (
    WorkflowExecutionCompleted,
    WorkflowExecutionStarted,
    WorkflowTaskScheduled,
)
from tq_broker.model.names import Names
from tq_broker.model.requests import Status
from tq_broker.model.workflow_tasks import EventsPage, QueryAnswer
from tq_broker.queues.memory import MemoryBroker, server_for

STARTED = requests.Started(run_id="r1", first_run_id="r1")
START = ("workflow", "start", "Order", "-t", "orders")
WHY = failure.application("no good", "Trouble")
FAILED = requests.Closed(run_id="r1", status=Status.FAILED, failure=WHY)


def completed(value: Any) -> requests.Closed:
    return requests.Closed(
        run_id="r1", status=Status.COMPLETED, result=payload.dump(value, DEFAULT)
    )


@pytest.fixture
def history(url: str) -> Iterator[FakeHistory]:
    clock = SystemClock()
    broker = MemoryBroker(server_for(url), clock)
    yield FakeHistory(broker, Names("default"), lambda: clock.monotonic() + SOON_S)
    broker.close(clock.monotonic() + SOON_S)


def test_start_prints_the_id(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.StartWorkflow] = lambda _: STARTED
    answer = invoke(*START, "--id", "w", "-i", "1", "--input", '"two"', "--memo", "a=[1]")
    assert (answer.output, answer.exit_code) == ("w\n", 0)
    (request,) = history.seen
    assert (request.workflow_type, request.task_queue, request.workflow_id) == (
        "Order",
        "orders",
        "w",
    )
    assert (request.input, request.memo) == (b'[1,"two"]', {"a": b"[1]"})
    told = json.loads(invoke(*START, "--json").stdout)
    assert told["run_id"] == "r1"
    assert len(told["id"]) == 36  # made up


def test_start_has_every_option(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.StartWorkflow] = lambda _: STARTED
    options = "--execution-timeout 1h --run-timeout 5m --task-timeout 20s --id-reuse reject"
    options += " --id-conflict use-existing --max-attempts 3 --delay 2s --priority 1"
    options += " --start-signal go --start-signal-input 1"
    assert invoke(*START, *options.split(), "--static-summary", "one line").exit_code == 0
    (request,) = history.seen
    assert (request.execution_timeout_ms, request.run_timeout_ms) == (3_600_000, 300_000)
    assert (request.id_reuse_policy, request.id_conflict_policy) == (3, 2)
    assert (request.retry_policy.attempts, request.start_delay_ms, request.priority) == (3, 2000, 1)
    assert request.signal == requests.SignalInput(signal_name="go", input=b"[1]")
    assert request.static_summary == "one line"
    for said, override in (("shop.1.4", "shop.1.4"), ("auto-upgrade", "auto_upgrade")):
        assert invoke(*START, "--versioning-override", said).exit_code == 0
        assert history.seen[-1].versioning_override == override
    bound = ("--route", "host:h", "--on-gone", "fall-back", "--requires", "gpu")
    assert invoke(*START, *bound).exit_code == 0
    assert history.seen[-1].route == '{"kind":"host","target":"h","on-gone":"fall_back"}'
    assert history.seen[-1].requires == '{"capabilities":["gpu"]}'
    bond = ("--affinity", "host", "--affinity-group", "a-b", "--on-lost", "restart-affinity")
    assert invoke(*START, *bond).exit_code == 0
    assert history.seen[-1].affinity == (
        '{"kind":"host","group":"a-b","on-lost":"restart_affinity"}'
    )
    assert "need an affinity" in invoke(*START, *bond[2:]).stderr
    answer = invoke(*START, "--versioning-override", "shop")
    assert (answer.exit_code, "such as 'shop.1.4'" in answer.stderr) == (2, True)


def test_the_application_gives_defaults(
    invoke: Invoke, history: FakeHistory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "orders_app.py").write_text(
        "from tq_broker import workflow\n"
        "@workflow.defn(name='Order', task_queue='shop', priority=2, affinity='host')\n"
        "class Order:\n"
        "    @workflow.run\n"
        "    async def run(self, number: int) -> int:\n"
        "        return number\n"
    )
    history.script[requests.StartWorkflow] = lambda _: STARTED
    start = ("-A", "orders_app", "workflow", "start")
    assert invoke(*start, "Order", "-i", "1").exit_code == 0
    first = history.seen[-1]
    assert (first.task_queue, first.priority, first.input) == ("shop", 2, b"[1]")
    assert first.affinity == '{"kind":"host"}'
    assert invoke(*start, "Order", "-i", "1", "-t", "q", "--priority", "1").exit_code == 0
    assert (history.seen[-1].task_queue, history.seen[-1].priority) == ("q", 1)
    assert "--task-queue NAME" in invoke(*start, "Unknown").stderr
    sys.modules.pop("orders_app", None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("workflow", "start", "Order"), "name the task queue: --task-queue NAME"),
        ((*START, "--input", "two"), "is not JSON"),
        ((*START, "--memo", "a"), "write NAME=JSON"),
        ((*START, "--id", "a\nb"), "id has the control"),
        ((*START, "--cron", "* * * * *", "--delay", "1s"), "start_delay cannot be used"),
        (("workflow", "nonsense"), "There is no command 'nonsense'"),
    ],
)
def test_what_is_wrong_is_said(invoke: Invoke, arguments: tuple[str, ...], text: str) -> None:
    answer = invoke(*arguments)
    assert answer.exit_code == 2
    assert text in answer.stderr


def test_a_taken_id_is_told(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.StartWorkflow] = lambda _: requests.Refused(
        reason="already_started", message="", run_id="r0"
    )
    answer = invoke(*START, "--id", "w")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "already started: Order 'w'" in answer.stderr


def test_execute_prints_the_result(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.StartWorkflow] = lambda _: STARTED
    history.script[requests.AwaitResult] = lambda _: completed({"n": 1})
    execute = ("workflow", "execute", "Order", "-t", "orders", "--id", "w")
    answer = invoke(*execute)
    assert (answer.output, answer.exit_code) == ('{"n":1}\n', 0)
    assert json.loads(invoke(*execute, "--json").stdout) == {
        "id": "w",
        "status": "completed",
        "result": {"n": 1},
    }


def test_a_printed_result_is_what_was_returned(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.AwaitResult] = lambda _: completed("\u0645\u06cc\u200c\u062e\n\x9b")
    answer = invoke("workflow", "result", "w")
    assert answer.output == '"\u0645\u06cc\\u200c\u062e\\n\\u009b"\n'


def test_a_bad_end_is_one_line_and_an_exit_code(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.AwaitResult] = lambda _: FAILED
    answer = invoke("workflow", "result", "w")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr == "tq-broker: Workflow 'w' failed: no good\n"
    told = json.loads(invoke("workflow", "result", "w", "--json").stdout)
    assert (told["status"], told["run_id"]) == ("failed", "r1")
    assert told["error"]["type"] == "Trouble"


@pytest.mark.usefixtures("history")
def test_a_result_is_waited_for_only_so_long(invoke: Invoke) -> None:
    answer = invoke("workflow", "result", "w", "--timeout", "10ms")
    assert answer.exit_code == 3
    assert "not ended within 0.01 s" in answer.stderr


def test_signal_cancel_and_terminate(invoke: Invoke, history: FakeHistory) -> None:
    for kind in (requests.SignalWorkflow, requests.RequestCancel, requests.Terminate):
        history.script[kind] = lambda _: requests.Done()
    sent = invoke("workflow", "signal", "w", "go", "-i", "1", "-r", "r1")
    assert sent.output == "signal go sent to w\n"
    told = invoke("workflow", "cancel", "w", "--reason", "enough", "--json").stdout
    assert json.loads(told) == {"id": "w", "requested": True}
    assert invoke("workflow", "terminate", "w", "--reason", "enough").output == "w terminated\n"
    signal, cancel, terminate = history.seen
    assert (signal.signal_name, signal.input, signal.run_id) == ("go", b"[1]", "r1")
    assert (cancel.reason, terminate.reason) == ("enough", "enough")


def test_what_is_not_there_is_not_found(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.SignalWorkflow] = lambda _: requests.Refused(
        reason="not_found", message=""
    )
    answer = invoke("workflow", "signal", "w", "go")
    assert answer.exit_code == 5
    assert "there is no workflow 'w' in namespace 'default'" in answer.stderr


def test_a_query_prints_its_answer(invoke: Invoke, history: FakeHistory) -> None:
    answers = [
        QueryAnswer(result=b"[1]"),
        QueryAnswer(error="rejected", status="completed"),
        QueryAnswer(error="failed", failure=failure.application("unknown query", "E")),
    ]
    history.script[requests.QueryWorkflow] = lambda _: answers.pop(0)
    assert invoke("workflow", "query", "w", "total", "-i", '"kg"').output == "[1]\n"
    rejected = invoke("workflow", "query", "w", "total", "--only-open")
    assert (rejected.exit_code, "is COMPLETED" in rejected.stderr) == (1, True)
    assert "unknown query" in invoke("workflow", "query", "w", "total").stderr
    first, second, _ = history.seen
    assert (first.query_type, first.input, first.reject_not_open) == ("total", b'["kg"]', False)
    assert second.reject_not_open


def test_an_update_prints_its_result_or_its_id(invoke: Invoke, history: FakeHistory) -> None:
    def answer(request: requests.UpdateWorkflow) -> requests.UpdateState:
        why = WHY if request.update.name == "bad" else None
        return requests.UpdateState(
            update_id=request.update.update_id,
            run_id="r",
            stage=request.wait,
            result=b"7",
            failure=why,
        )

    history.script[requests.UpdateWorkflow] = answer
    change = ("workflow", "update", "w", "change", "-i", "7", "--update-id", "u")
    assert invoke(*change).output == "7\n"
    assert invoke(*change, "--wait", "accepted").output == "u\n"
    bad = invoke("workflow", "update", "w", "bad", "--update-id", "u")
    assert bad.exit_code == 1
    assert bad.stderr == "tq-broker: Workflow update 'u' failed: no good\n"
    assert [request.wait for request in history.seen] == [3, 2, 3]


def test_an_update_is_not_waited_for_longer_than_wanted(
    invoke: Invoke, history: FakeHistory
) -> None:
    late = invoke("workflow", "update", "w", "change", "--timeout", "50ms")
    assert history.seen
    assert late.exit_code == 3
    assert "not ended within 0.05 s" in late.stderr


INFO = requests.RunInfo(
    workflow_id="w",
    run_id="r1",
    workflow_type="Order",
    task_queue="orders",
    status=Status.RUNNING,
    start_ms=1_767_323_045_600,
    memo={"a": b"1"},
)


def test_describe_tells_what_is_waited_for(invoke: Invoke, history: FakeHistory) -> None:
    pending = requests.PendingActivity(
        activity_id="5",
        activity_type="ship",
        task_queue="q",
        state="started",
        attempt=2,
        last_failure=WHY,
        heartbeat_details=b'["half"]',
    )
    history.script[requests.Describe] = lambda _: requests.Description(
        info=INFO, sticky_worker="one", pending_activities=[pending], pending_timers=1
    )
    lines = invoke("workflow", "describe", "w").output.splitlines()
    assert "status\trunning" in lines
    assert "start\t2026-01-02T03:04:05.600Z" in lines
    assert "sticky worker\tone" in lines
    assert 'memo\t{"a":1}' in lines
    assert '5\tship\tstarted\t2\tno good\t["half"]' in lines
    told = json.loads(invoke("workflow", "describe", "w", "--json").stdout)
    assert told["pending_activities"][0]["heartbeat_details"] == ["half"]
    assert (told["status"], told["pending_timers"]) == ("running", 1)


def test_list_and_count(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.ListWorkflows] = lambda _: requests.Listing(runs=[INFO])
    history.script[requests.CountWorkflows] = lambda _: requests.Count(count=3)
    answer = invoke("workflow", "list", "-q", "status = 'running'")
    assert answer.output == "running\tw\tOrder\torders\t2026-01-02T03:04:05.600Z\t-\n"
    (told,) = json.loads(invoke("workflow", "list", "--json", "--limit", "5").stdout)
    assert (told["id"], told["memo"], told["close_time"]) == ("w", {"a": 1}, None)
    assert invoke("workflow", "count", "-q", "status = 'running'").output == "3\n"
    assert [one.query for one in history.seen] == ["status = 'running'", "", "status = 'running'"]
    assert history.seen[1].page_size == 5


EVENTS = [
    WorkflowExecutionStarted(
        event_id=1,
        time_ms=1_767_323_045_600,
        workflow_type="Order",
        task_queue="orders",
        workflow_id="w",
        run_id="r1",
        first_run_id="r1",
        input=b"[1]",
    ),
    WorkflowTaskScheduled(event_id=2, time_ms=1_767_323_045_600, task_queue="orders"),
    WorkflowExecutionCompleted(event_id=3, time_ms=1_767_323_045_601, result=b'"\\u001b"'),
]


def test_show_prints_events(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.FetchHistory] = lambda _: EventsPage(events=EVENTS, last_event_id=3)
    first, second, third = invoke("workflow", "show", "w").output.splitlines()
    assert first.startswith("1\t2026-01-02T03:04:05.600Z\tWorkflowExecutionStarted\tworkflow_type=")
    assert first.endswith("input=[1]")
    assert second.endswith("\tWorkflowTaskScheduled\ttask_queue=orders")
    assert third.endswith('\tWorkflowExecutionCompleted\tresult="\\u001b"')
    told = json.loads(invoke("workflow", "show", "w", "--json").stdout)
    assert [event["eventType"] for event in told["events"]] == [
        "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED",
        "EVENT_TYPE_WORKFLOW_TASK_SCHEDULED",
        "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED",
    ]


def test_show_follows_one_run_until_it_ends(
    invoke: Invoke, history: FakeHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tq_broker.cli.workflow.FOLLOW_S", 0.0)

    def pages(request: requests.FetchHistory) -> EventsPage:
        asked = len(history.seen)
        known = EVENTS[: 2 if asked < 4 else 3]
        return EventsPage(events=known[request.first_event_id - 1 :], last_event_id=len(known))

    history.script[requests.FetchHistory] = pages
    lines = invoke("workflow", "show", "w", "--follow").output.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["1", "2", "3"]
    assert [(one.first_event_id, one.run_id) for one in history.seen] == [
        (1, None),
        (3, "r1"),
        (3, "r1"),
        (3, "r1"),
    ]
    last = invoke("workflow", "show", "w", "--follow", "--json").output.splitlines()[-1]
    assert json.loads(last)["eventType"] == "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"


def test_without_history_it_is_said_how_to_start_one(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQ_BROKER_TIMEOUT", "0.1")
    answer = invoke("workflow", "describe", "w")
    assert answer.exit_code == 3
    assert "no history service answered; start one with tq-broker history" in answer.stderr


def test_describe_tells_where_pending_activities_go(invoke: Invoke, history: FakeHistory) -> None:
    pending = requests.PendingActivity(
        activity_id="5",
        activity_type="render",
        task_queue="film",
        state="scheduled",
        attempt=1,
        requires='{"capabilities":["gpu"],"on-gone":"fail"}',
        task_id="r/5",
    )
    history.script[requests.Describe] = lambda _: requests.Description(
        info=INFO, pending_activities=[pending]
    )
    lines = invoke("workflow", "describe", "w").output.splitlines()
    assert "5 goes\t2. it requires gpu: only workers that have all of it get it" in lines
    assert lines[-1].endswith("if nobody is there: it fails at once")
    told = json.loads(invoke("workflow", "describe", "w", "--json").stdout)
    assert told["pending_activities"][0]["where"][0] == (
        "the task queue of activity 'render' is 'film'"
    )


def test_describe_tells_whom_activities_follow(invoke: Invoke, history: FakeHistory) -> None:
    history.script[requests.Describe] = lambda _: requests.Description(
        info=INFO, affinity='{"kind":"host"}', affinity_target="h1"
    )
    shown = invoke("workflow", "describe", "w").output
    assert "its affinity is host" in shown
    assert "follows to host 'h1'" in shown
    told = json.loads(invoke("workflow", "describe", "w", "--json").stdout)
    assert told["where"][-1] == "when that is lost, it fails"
