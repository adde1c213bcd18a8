"""Starting, finding, listing and counting workflows, with both faces of the client."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.client.conftest import Side
from tq_broker import workflow
from tq_broker.client import (
    BlockingClient,
    BlockingWithStartWorkflowOperation,
    WithStartWorkflowOperation,
    WorkflowExecutionStatus,
    WorkflowUpdateStage,
)
from tq_broker.common import WorkflowIDConflictPolicy
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import (
    InvalidArgument,
    PayloadTooLarge,
    WorkflowAlreadyStartedError,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from tq_broker.model import failure, payload, requests
from tq_broker.model.requests import Status

STARTED = requests.Started(run_id="r2", first_run_id="r1")
WHERE: dict[str, Any] = {"id": "w", "task_queue": "q"}


@workflow.defn
class Order:
    @workflow.run
    async def run(self, number: int, note: str = "") -> dict[str, int]:
        return {note: number}

    @workflow.update
    def change(self, number: int) -> float:
        return number


def done(value: Any, status: Status = Status.COMPLETED, **fields: Any) -> requests.Closed:
    result = payload.dump(value, DEFAULT)
    return requests.Closed(run_id="r2", status=status, result=result, **fields)


def test_a_workflow_is_started(side: Side) -> None:
    side.history.script[requests.StartWorkflow] = lambda _: STARTED
    handle = side.do(
        side.client.start_workflow(
            Order.run, args=[3, "x"], run_timeout=timedelta(seconds=2), memo={"a": [1]}, **WHERE
        )
    )
    (request,) = side.history.seen
    assert request.workflow_type == "Order"
    assert payload.load(request.input, DEFAULT) == [3, "x"]
    assert (request.run_timeout_ms, request.identity, request.want_result) == (2000, "me", False)
    assert request.memo == {"a": b"[1]"}
    assert (handle.id, handle.run_id, handle.result_run_id) == ("w", None, "r2")
    assert handle.first_execution_run_id == "r1"
    assert repr(handle).endswith("WorkflowHandle w>")


@pytest.mark.parametrize("which", [Order, Order.run, "Order"])
def test_a_workflow_is_executed_in_one_round_trip(side: Side, which: Any) -> None:
    side.history.script[requests.StartWorkflow] = lambda _: [STARTED, done({"x": 3})]
    assert side.do(side.client.execute_workflow(which, 3, **WHERE)) == {"x": 3}
    (request,) = side.history.seen
    assert request.want_result


def test_the_result_has_the_type_of_the_hint(side: Side) -> None:
    side.history.script[requests.StartWorkflow] = lambda _: [STARTED, done(3)]
    execute = side.client.execute_workflow
    assert repr(side.do(execute("Order", result_type=float, **WHERE))) == "3.0"


def test_a_workflow_that_failed_raises(side: Side) -> None:
    why = failure.application("no good", "Trouble")
    side.history.script[requests.StartWorkflow] = lambda _: [
        STARTED,
        requests.Closed(run_id="r2", status=Status.FAILED, failure=why),
    ]
    with pytest.raises(WorkflowFailureError, match="Workflow 'w' failed: no good") as raised:
        side.do(side.client.execute_workflow(Order, 1, **WHERE))
    assert raised.value.cause.type == "Trouble"  # type: ignore[attr-defined]
    assert raised.value.run_id == "r2"


def test_a_taken_id_is_refused(side: Side) -> None:
    side.history.script[requests.StartWorkflow] = lambda _: requests.Refused(
        reason="already_started", message="", run_id="r0"
    )
    for start in (side.client.start_workflow, side.client.execute_workflow):
        with pytest.raises(WorkflowAlreadyStartedError) as raised:
            side.do(start(Order, 1, **WHERE))
        assert (raised.value.workflow_id, raised.value.run_id) == ("w", "r0")


def test_wrong_arguments_are_refused_before_anything_is_sent(side: Side) -> None:
    for wrong, text in [
        ({"args": []}, "'Order' cannot be called so: missing a required argument: 'number'"),
        ({"args": [1, "", 2]}, "too many positional arguments"),
        ({"arg": 1, "args": [1]}, "either arg or args"),
        ({"arg": object()}, "cannot be sent as JSON"),
        ({"arg": 1, "id": None}, "id is not set"),
        ({"arg": 1, "nonsense": 1}, "unknown workflow option 'nonsense'"),
    ]:
        with pytest.raises(InvalidArgument, match=text):
            side.do(side.client.start_workflow(Order, **{**WHERE, **wrong}))
    with pytest.raises(PayloadTooLarge, match=r"the input of workflow .w. is .* bytes long"):
        side.do(side.client.start_workflow("Order", "x" * payload.BYTES_MAX, **WHERE))
    with pytest.raises(InvalidArgument, match="int is not a workflow"):
        side.do(side.client.start_workflow(int, **WHERE))
    assert side.history.seen == []


def test_a_handle_is_made_of_an_id(side: Side) -> None:
    handle = side.client.get_workflow_handle("w", run_id="r")
    assert (handle.id, handle.run_id, handle.result_run_id) == ("w", "r", "r")
    assert repr(handle).endswith("WorkflowHandle w run r>")
    side.history.script[requests.AwaitResult] = lambda _: done({"x": 1})
    assert side.do(side.client.get_workflow_handle_for(Order, "w").result()) == {"x": 1}
    with pytest.raises(InvalidArgument, match="workflow_id must not be empty"):
        side.client.get_workflow_handle("")


def operation(side: Side, **options: Any) -> Any:
    kinds = {BlockingClient: BlockingWithStartWorkflowOperation}
    kind = kinds.get(side.kind, WithStartWorkflowOperation)
    given = {"id_conflict_policy": WorkflowIDConflictPolicy.USE_EXISTING, **WHERE, **options}
    return kind(Order.run, 1, **given)


def test_an_update_is_sent_with_a_start(side: Side) -> None:
    def answer(request: requests.StartWorkflow) -> list[Any]:
        assert request.update is not None
        value = payload.dump(7, DEFAULT)
        return [
            STARTED,
            requests.UpdateState(
                update_id=request.update.update_id, run_id="r2", stage=3, result=value
            ),
        ]

    side.history.script[requests.StartWorkflow] = answer
    start = operation(side)
    with pytest.raises(InvalidArgument, match="has not been executed yet"):
        side.do(start.workflow_handle())
    execute = side.client.execute_update_with_start_workflow
    value = side.do(execute(Order.change, 7, start_workflow_operation=start, id="u"))
    assert repr(value) == "7.0"
    assert side.do(start.workflow_handle()).result_run_id == "r2"
    (request,) = side.history.seen
    assert (request.update.name, request.update.update_id, request.update_wait) == (
        "change",
        "u",
        3,
    )
    with pytest.raises(InvalidArgument, match="start_workflow_operation has been used"):
        side.do(execute(Order.change, 7, start_workflow_operation=start))
    begin = side.client.start_update_with_start_workflow
    accepted = WorkflowUpdateStage.ACCEPTED
    handle = side.do(
        begin("change", 7, start_workflow_operation=operation(side), wait_for_stage=accepted)
    )
    assert side.do(handle.result()) == 7
    assert (handle.workflow_id, handle.workflow_run_id) == ("w", "r2")


def test_an_update_that_came_with_a_start_may_fail(side: Side) -> None:
    side.history.script[requests.StartWorkflow] = lambda request: [
        STARTED,
        requests.UpdateState(
            update_id="u", run_id="r2", stage=3, failure=failure.application("no", "Refused")
        ),
    ]
    with pytest.raises(WorkflowUpdateFailedError, match="'u' failed: no"):
        side.do(
            side.client.execute_update_with_start_workflow(
                "change", start_workflow_operation=operation(side), id="u"
            )
        )


def test_an_update_with_start_needs_a_conflict_policy(side: Side) -> None:
    with pytest.raises(InvalidArgument, match="id_conflict_policy must be given"):
        operation(side, id_conflict_policy=WorkflowIDConflictPolicy.UNSPECIFIED)


def run(number: int) -> requests.RunInfo:
    return requests.RunInfo(
        workflow_id=f"w{number}",
        run_id=f"r{number}",
        workflow_type="Order",
        task_queue="q",
        status=Status.RUNNING,
        start_ms=1_700_000_000_000,
        memo={"n": b"1"},
    )


def test_runs_are_listed_page_by_page(side: Side) -> None:
    def page(request: requests.ListWorkflows) -> requests.Listing:
        first = int(request.page_token or 0)
        last = min(first + request.page_size, 5)
        token = str(last) if last < 5 else ""
        return requests.Listing(runs=[run(n) for n in range(first, last)], page_token=token)

    side.history.script[requests.ListWorkflows] = page
    found = side.all_of(side.client.list_workflows('type = "Order"', page_size=2))
    assert [one.id for one in found] == ["w0", "w1", "w2", "w3", "w4"]
    assert found[0].status is WorkflowExecutionStatus.RUNNING
    assert found[0].memo() == {"n": 1}
    assert [request.page_token for request in side.history.seen] == ["", "2", "4"]
    assert {request.query for request in side.history.seen} == {'type = "Order"'}
    side.history.seen.clear()
    found = side.all_of(side.client.list_workflows(limit=3, page_size=2))
    assert [one.id for one in found] == ["w0", "w1", "w2"]
    assert [request.page_size for request in side.history.seen] == [2, 1]
    assert side.all_of(side.client.list_workflows(limit=0)) == []


def test_wrong_lists_are_refused(side: Side) -> None:
    for wrong, text in [
        ({"page_size": 0}, "page_size is 0"),
        ({"page_size": "x"}, "page_size must be a number"),
        ({"query": "x" * 20_000}, "query must be a string of at most"),
    ]:
        with pytest.raises(InvalidArgument, match=text):
            side.all_of(side.client.list_workflows(**wrong))
    side.history.script[requests.ListWorkflows] = lambda _: requests.Refused(
        reason="invalid_argument", message="query: unknown field 'x'"
    )
    with pytest.raises(InvalidArgument, match="unknown field 'x'"):
        side.all_of(side.client.list_workflows("x = 1"))


def test_runs_are_counted(side: Side) -> None:
    side.history.script[requests.CountWorkflows] = lambda _: requests.Count(count=4)
    assert side.do(side.client.count_workflows("status = 'running'")).count == 4
    assert side.history.seen[0].query == "status = 'running'"


@workflow.defn(task_queue="films", priority=1)
class Film:
    @workflow.run
    async def run(self) -> None: ...


def test_what_the_decorator_says_counts_where_the_call_says_nothing(side: Side) -> None:
    side.history.script[requests.StartWorkflow] = lambda _: STARTED
    for options in ({}, {"task_queue": "other", "priority": 5}):
        side.do(side.client.start_workflow(Film.run, id="f", **options))
    told = [(one.task_queue, one.priority) for one in side.history.seen]
    assert told == [("films", 1), ("other", 5)]
