"""What a worker remembers of the tasks that it took."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tq_broker.common import Route
from tq_broker.model import control
from tq_broker.model.events import WorkflowExecutionStarted, WorkflowTaskScheduled
from tq_broker.model.rules import TaskKind
from tq_broker.model.tasks import ActivityTask
from tq_broker.model.workflow_tasks import RunKey, WorkflowTask
from tq_broker.worker import recent
from tq_broker.worker.recent import RecentTasks

STARTED = WorkflowExecutionStarted(
    event_id=1, time_ms=1, workflow_id="w", workflow_type="W", task_queue="q", run_id="r",
    first_run_id="r",
    headers={"tenant": "acme"}, memo={"m": b'"x"'},
)  # fmt: skip


def activity(id: str = "a") -> ActivityTask:
    return ActivityTask(
        activity_id=id, activity_type="t", task_queue="q", body=b"secret", headers={"h": "x"}
    )


def workflow(*events: Any, sticky: str = "", version: str = "") -> WorkflowTask:
    return WorkflowTask(
        run=RunKey("w", "r"), workflow_type="W", task_queue="q", shard=1, scheduled_event_id=2,
        events=list(events), sticky=sticky, version=version,
    )  # fmt: skip


def test_what_rules_may_ask_is_told_and_no_more() -> None:
    kept = RecentTasks()
    kept.took(activity(), 7)
    kept.took_workflow(workflow(STARTED), 8)
    told = kept.told("me")
    one, other = told.tasks
    assert (one.at_ms, one.facts.id, one.facts.headers) == (7, "a", {"h": "x"})
    assert (other.facts.kind, other.facts.id) == (TaskKind.WORKFLOW, "w")
    assert other.facts.memo == {"m": b'"x"'}
    message = control.message(told, "1")
    assert b"secret" not in message.body
    assert control.read_reply(message) == told


def test_what_no_rule_moves_is_found_and_else_left_out() -> None:
    kept = RecentTasks()
    bound = msgspec.structs.replace(activity("b"), route=Route.version("shop.1"))
    lent = msgspec.structs.replace(activity("l"), rule="r")
    for task in (bound, lent):
        kept.took(task, 1)
    assert [one.facts.id for one in kept.told("me").tasks] == ["l"]
    assert [one.facts.id for one in kept.of("b")] == ["b"]


def test_workflow_tasks_that_tell_nothing_are_left_out() -> None:
    kept = RecentTasks()
    kept.took_workflow(workflow(STARTED, version="shop.1"), 1)
    kept.took_workflow(workflow(STARTED, sticky="w"), 1)
    kept.took_workflow(workflow(WorkflowTaskScheduled(event_id=5, time_ms=1, task_queue="q")), 1)
    kept.took_workflow(workflow(), 1)
    assert kept.told("me").tasks == []


def test_only_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "KEPT_MAX", 2)
    kept = RecentTasks()
    for number in range(5):
        kept.took(activity(str(number)), number)
    assert [one.facts.id for one in kept.told("me").tasks] == ["3", "4"]
