"""Handles of workflows and updates, with both faces of the client."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.client.conftest import Side
from tq_broker import workflow
from tq_broker.client import (
    QueryRejectCondition,
    WorkflowContinuedAsNewError,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import DeadlineExceeded, InvalidArgument, NotFound, PayloadTooLarge
from tq_broker.model import failure, payload, requests
from tq_broker.model.events import (
    TimerFired,
    WorkflowExecutionCompleted,
    WorkflowExecutionStarted,
    WorkflowTaskScheduled,
)
from tq_broker.model.requests import Status
from tq_broker.model.workflow_tasks import EventsPage, QueryAnswer

BIG = "x" * payload.BYTES_MAX


@workflow.defn
class Order:
    @workflow.run
    async def run(self) -> int:
        return 1

    @workflow.signal(name="go-on")
    def go(self, how: str) -> None:
        """Go on."""

    @workflow.query
    def total(self, unit: str) -> float:
        return 1.0

    @workflow.update
    def change(self, number: int) -> float:
        return number


def handle_of(side: Side, **options: Any) -> Any:
    return side.client.get_workflow_handle("w", **options)


def test_a_signal_is_sent(side: Side) -> None:
    side.history.script[requests.SignalWorkflow] = lambda _: requests.Done()
    handle = handle_of(side, run_id="r")
    side.do(handle.signal(Order.go, "fast"))
    side.do(handle.signal("other", args=[1, 2]))
    first, second = side.history.seen
    assert (first.signal_name, first.run_id, first.identity) == ("go-on", "r", "me")
    assert payload.load(first.input, DEFAULT) == ["fast"]
    assert (second.signal_name, payload.load(second.input, DEFAULT)) == ("other", [1, 2])


def test_wrong_calls_are_refused_before_anything_is_sent(side: Side) -> None:
    handle = handle_of(side)
    for call, text in [
        (lambda: handle.signal(Order.total), "total is not a signal"),
        (lambda: handle.signal(Order.go), "'go-on' cannot be called so: missing .* 'how'"),
        (lambda: handle.signal(""), "signal must not be empty"),
        (lambda: handle.query(Order.go, ""), "go is not a query"),
        (lambda: handle.execute_update(print), "print is not a update"),
        (lambda: handle.start_update("u", wait_for_stage=2), "must be a WorkflowUpdateStage"),
        (lambda: handle.execute_update("u", id=""), "id must not be empty"),
    ]:
        with pytest.raises(InvalidArgument, match=text):
            side.do(call())
    with pytest.raises(PayloadTooLarge, match="the input of signal 'go-on'"):
        side.do(handle.signal(Order.go, BIG))
    assert side.history.seen == []


def test_texts_that_are_not_unicode_are_refused(side: Side) -> None:
    side.history.script[requests.RequestCancel] = lambda _: requests.Done()
    handle, wrong = handle_of(side), "\ud800"

    def start(**options: Any) -> Any:
        return side.do(side.client.start_workflow(Order.run, id="w", task_queue="q", **options))

    for ask in (
        lambda: side.do(handle.cancel(reason=wrong)),
        lambda: side.do(handle.terminate(reason=wrong)),
        lambda: side.do(handle_of(side, first_execution_run_id=wrong).cancel()),
        lambda: side.do(handle.get_update_handle(wrong).result()),
        lambda: side.do(side.client.count_workflows(f"id = '{wrong}'")),
        lambda: start(memo={wrong: 1}),
        lambda: start(static_summary=wrong),
        lambda: start(static_details=wrong),
        lambda: start(cron_schedule=wrong),
    ):
        with pytest.raises(InvalidArgument, match="is not Unicode"):
            ask()
    side.do(handle.cancel())  # it goes on


def test_an_unknown_workflow_is_not_found_whatever_is_asked(side: Side) -> None:
    for kind in (
        requests.SignalWorkflow,
        requests.RequestCancel,
        requests.Terminate,
        requests.QueryWorkflow,
        requests.UpdateWorkflow,
        requests.AwaitResult,
        requests.AwaitUpdate,
        requests.Describe,
        requests.FetchHistory,
    ):
        side.history.script[kind] = lambda _: requests.Refused(reason="not_found", message="")
    handle = handle_of(side)
    update = handle.get_update_handle("u")
    for call in (
        lambda: handle.signal("s"),
        handle.cancel,
        handle.terminate,
        lambda: handle.query("q"),
        lambda: handle.execute_update("u"),
        handle.result,
        update.result,
        handle.describe,
        handle.fetch_history,
    ):
        with pytest.raises(NotFound, match="there is no workflow 'w' in namespace 'default'"):
            side.do(call())


def test_a_query_is_answered(side: Side) -> None:
    side.history.script[requests.QueryWorkflow] = lambda _: QueryAnswer(result=b"3")
    handle = handle_of(side)
    assert repr(side.do(handle.query(Order.total, "kg"))) == "3.0"
    assert repr(side.do(handle.query("total", result_type=float))) == "3.0"
    not_open = QueryRejectCondition.NOT_OPEN
    assert side.do(handle.query("total", reject_condition=not_open)) == 3
    first, _, third = side.history.seen
    assert (first.query_type, first.reject_not_open, third.reject_not_open) == (
        "total",
        False,
        True,
    )
    assert first.deadline_ms > 1_700_000_000_000


def test_a_query_fails_and_is_rejected_with_the_sdk_s_classes(side: Side) -> None:
    answers = [
        QueryAnswer(error="failed", failure=failure.application("unknown query 'x'", "E")),
        QueryAnswer(error="rejected", status="completed"),
    ]
    side.history.script[requests.QueryWorkflow] = lambda _: answers.pop(0)
    handle = handle_of(side)
    with pytest.raises(WorkflowQueryFailedError, match="unknown query 'x'"):
        side.do(handle.query("x"))
    with pytest.raises(WorkflowQueryRejectedError, match="the workflow is COMPLETED") as raised:
        side.do(handle.query("x"))
    assert raised.value.status is WorkflowExecutionStatus.COMPLETED


def test_a_query_that_no_worker_answers_says_so(side: Side) -> None:
    side.history.script[requests.QueryWorkflow] = lambda _: ()
    side.client.core.timeout_s = 0.5  # enough for a busy machine to have sent the query
    with pytest.raises(DeadlineExceeded, match="no worker serves the workflow's task queue"):
        side.do(handle_of(side).query("x"))


def state(request: Any, stage: int, **fields: Any) -> requests.UpdateState:
    return requests.UpdateState(
        update_id=request.update.update_id, run_id="r", stage=stage, **fields
    )


def test_an_update_is_executed(side: Side) -> None:
    side.history.script[requests.UpdateWorkflow] = lambda r: state(r, 3, result=b"7")
    handle = handle_of(side, run_id="r")
    assert repr(side.do(handle.execute_update(Order.change, 7))) == "7.0"
    assert side.do(handle.execute_update("change", 7, id="mine")) == 7
    first, second = side.history.seen
    assert (first.update.name, first.run_id, first.wait) == ("change", "r", 3)
    assert payload.load(first.update.input, DEFAULT) == [7]
    assert first.update.update_id != second.update.update_id == "mine"


def test_an_update_that_takes_too_long_is_not_waited_for(side: Side) -> None:
    handle = handle_of(side)
    stage = WorkflowUpdateStage.ACCEPTED
    with pytest.raises(DeadlineExceeded, match=r"not ended within 0\.05 s"):
        side.do(handle.execute_update("u", id="1", timeout=timedelta(seconds=0.05)))
    with pytest.raises(DeadlineExceeded):
        side.do(handle.start_update("u", id="1", wait_for_stage=stage, timeout=0.05))
    assert {request.update.update_id for request in side.history.seen} == {"1"}


def test_an_update_that_failed_raises_where_its_result_is_wanted(side: Side) -> None:
    why = failure.application("bad number", "ValueError")
    side.history.script[requests.UpdateWorkflow] = lambda r: state(r, 3, failure=why)
    handle = handle_of(side)
    with pytest.raises(WorkflowUpdateFailedError, match="'u' failed: bad number") as raised:
        side.do(handle.execute_update("change", id="u"))
    assert raised.value.cause.message == "bad number"
    accepted = WorkflowUpdateStage.ACCEPTED
    update = side.do(handle.start_update("change", wait_for_stage=accepted, id="u"))
    with pytest.raises(WorkflowUpdateFailedError):
        side.do(update.result())


def test_an_update_is_started_and_its_end_waited_for(side: Side) -> None:
    side.history.script[requests.UpdateWorkflow] = lambda r: state(r, 2)
    side.history.script[requests.AwaitUpdate] = lambda r: requests.UpdateState(
        update_id=r.update_id, run_id="r", stage=3, result=b"7"
    )
    accepted = WorkflowUpdateStage.ACCEPTED
    started = handle_of(side).start_update(Order.change, 7, wait_for_stage=accepted, id="u")
    update = side.do(started)
    assert (update.id, update.workflow_id, update.workflow_run_id) == ("u", "w", "r")
    assert repr(side.do(update.result())) == "7.0"
    assert side.do(update.result()) == 7  # known now
    again = handle_of(side).get_update_handle("u", workflow_run_id="r", result_type=float)
    assert repr(side.do(again.result())) == "7.0"
    typed = handle_of(side).get_update_handle_for(Order.change, "u", workflow_run_id="r")
    assert repr(side.do(typed.result())) == "7.0"
    assert [type(one).__name__ for one in side.history.seen] == [
        "UpdateWorkflow",
        "AwaitUpdate",
        "AwaitUpdate",
        "AwaitUpdate",
    ]


def test_cancel_and_terminate_concern_one_chain_of_runs(side: Side) -> None:
    side.history.script[requests.RequestCancel] = lambda _: requests.Done()
    side.history.script[requests.Terminate] = lambda _: requests.Done()
    handle = handle_of(side, first_execution_run_id="r1")
    side.do(handle.cancel(reason="enough"))
    side.do(handle.terminate("why", 2, reason="enough"))
    cancel, terminate = side.history.seen
    assert (cancel.first_run_id, cancel.reason, cancel.run_id) == ("r1", "enough", None)
    assert (terminate.first_run_id, terminate.reason) == ("r1", "enough")
    assert payload.load(terminate.details, DEFAULT) == ["why", 2]


def test_runs_are_followed_unless_told_not_to(side: Side) -> None:
    side.history.script[requests.AwaitResult] = lambda request: (
        requests.Closed(run_id="r2", status=Status.COMPLETED, result=b"2")
        if request.run_id == "r2"
        else requests.Closed(run_id="r1", status=Status.CONTINUED_AS_NEW, next_run_id="r2")
    )
    handle = handle_of(side)
    assert side.do(handle.result()) == 2
    with pytest.raises(WorkflowContinuedAsNewError, match="run r2") as raised:
        side.do(handle.result(follow_runs=False))
    assert raised.value.new_execution_run_id == "r2"


def test_a_result_that_is_not_there_in_time(side: Side) -> None:
    with pytest.raises(DeadlineExceeded, match=r"not ended within 0.01 s"):
        side.do(handle_of(side).result(timeout=0.01))
    assert side.client.core.calls.open_count == 0


def test_a_description(side: Side) -> None:
    info = requests.RunInfo(
        workflow_id="w",
        run_id="r",
        workflow_type="Order",
        task_queue="q",
        status=Status.RUNNING,
        start_ms=1_700_000_000_000,
    )
    side.history.script[requests.Describe] = lambda _: requests.Description(
        info=info, sticky_worker="one"
    )
    told = side.do(handle_of(side).describe())
    assert (told.id, told.sticky_worker, told.status.name) == ("w", "one", "RUNNING")


def events() -> list[Any]:
    first = WorkflowExecutionStarted(
        event_id=1,
        time_ms=1,
        workflow_type="Order",
        task_queue="q",
        workflow_id="w",
        run_id="r1",
        first_run_id="r1",
    )
    return [
        first,
        WorkflowTaskScheduled(event_id=2, time_ms=2, task_queue="q"),
        TimerFired(event_id=3, time_ms=3, timer_id="1", started_event_id=2),
        WorkflowExecutionCompleted(event_id=4, time_ms=4),
    ]


def test_a_history_is_fetched_page_by_page_of_one_run(side: Side) -> None:
    all_events = events()

    def page(request: requests.FetchHistory) -> EventsPage:
        at = request.first_event_id - 1
        return EventsPage(events=all_events[at : at + 2], last_event_id=4)

    side.history.script[requests.FetchHistory] = page
    handle = handle_of(side)
    assert side.do(handle.fetch_history()).events == all_events
    assert side.all_of(handle.fetch_history_events()) == all_events
    assert [(one.first_event_id, one.run_id) for one in side.history.seen[:2]] == [
        (1, None),
        (3, "r1"),
    ]


def test_the_history_of_an_unknown_run_is_not_found(side: Side) -> None:
    side.history.script[requests.FetchHistory] = lambda _: EventsPage(events=[], found=False)
    with pytest.raises(NotFound, match="no workflow 'w' with run 'r9'"):
        side.do(handle_of(side, run_id="r9").fetch_history())


def test_a_history_that_ends_with_an_empty_page(side: Side) -> None:
    pages = [EventsPage(events=events()[:2], last_event_id=3), EventsPage(events=[])]
    side.history.script[requests.FetchHistory] = lambda _: pages.pop(0)
    assert len(side.all_of(handle_of(side).fetch_history_events())) == 2
