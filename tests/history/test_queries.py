"""When a query is passed on, and to whom."""

from __future__ import annotations

import pytest

from tests.history.stage import CLIENT, WORKER, Stage
from tq_broker.history import queries
from tq_broker.history.effects import DispatchQuery
from tq_broker.model import commands as c
from tq_broker.model import requests as r
from tq_broker.model.workflow_tasks import QueryAnswer, QueryRequest, WorkflowTask

QUERY = r.QueryWorkflow(workflow_id="order-1", query_type="total", input=b"[1]")
PASSED_ON = QueryRequest(
    query_type="total",
    reply_to=CLIENT.reply_to,
    correlation_id=CLIENT.correlation_id,
    input=b"[1]",
)


def passed_on(stage: Stage) -> WorkflowTask:
    [effect] = stage.last.effects
    assert isinstance(effect, DispatchQuery)
    assert not stage.last.changed
    return effect.task


def test_an_idle_run_is_asked_where_it_is_cached() -> None:
    stage = Stage()
    stage.answer(sticky=True)
    stage.tell(QUERY)
    task = passed_on(stage)
    assert (task.sticky, task.queries, task.scheduled_event_id) == (WORKER, [PASSED_ON], 0)
    assert task.first_event_id == task.last_event_id + 1 == 5


def test_an_idle_run_in_no_cache_is_asked_with_its_history() -> None:
    stage = Stage()
    stage.answer()
    stage.tell(QUERY)
    task = passed_on(stage)
    assert (task.sticky, task.first_event_id, task.last_event_id) == ("", 1, 4)


def test_a_run_that_has_ended_is_asked_with_its_history() -> None:
    stage = Stage()
    stage.answer(c.CompleteWorkflow(), sticky=True)
    stage.tell(QUERY)
    assert (passed_on(stage).first_event_id, passed_on(stage).last_event_id) == (1, 5)


def test_a_run_that_has_ended_may_be_of_no_interest() -> None:
    stage = Stage()
    stage.answer(c.CompleteWorkflow())
    stage.tell(r.QueryWorkflow(workflow_id="order-1", query_type="q", reject_not_open=True))
    assert stage.replies() == [QueryAnswer(error="rejected", status="completed")]


def test_while_a_task_is_out_a_query_waits_for_its_end() -> None:
    stage = Stage()
    stage.tell(QUERY)
    assert not stage.last.effects
    stage.answer(sticky=True)
    [effect] = stage.last.effects
    assert isinstance(effect, DispatchQuery)
    assert effect.task.sticky == WORKER


def test_a_query_rides_in_the_task_that_follows() -> None:
    stage = Stage()
    stage.tell(QUERY)
    stage.tell_signal()
    stage.answer(sticky=True)
    assert stage.dispatched().queries == [PASSED_ON]
    stage.answer(sticky=True)
    assert not stage.last.effects


def test_a_run_that_fails_its_tasks_is_asked_all_the_same() -> None:
    stage = Stage()
    stage.fail_task()
    stage.tell(QUERY)
    assert passed_on(stage).first_event_id == 1


def test_a_query_that_nobody_waits_for_any_more_is_dropped() -> None:
    stage = Stage()
    stage.tell(r.QueryWorkflow(workflow_id="order-1", query_type="q", deadline_ms=stage.now_ms + 5))
    stage.now_ms += 5
    stage.answer()
    assert not stage.last.effects


def test_a_run_that_has_not_begun_cannot_answer() -> None:
    stage = Stage(start_delay_ms=1_000)
    stage.tell(QUERY)
    assert stage.replies()[0].reason == "query_failed"


def test_waiting_queries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "WAITING_MAX", 1)
    stage = Stage()
    stage.tell(QUERY)
    stage.tell(QUERY)
    assert stage.replies()[0].reason == "limit"


def test_a_query_of_nobody_is_dropped() -> None:
    stage = Stage()
    stage.answer()
    stage.tell(QUERY, None)
    assert not stage.last.effects
