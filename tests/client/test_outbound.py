"""The chain of a client: both kinds of client, one kind of interceptor."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.client.conftest import Side
from tq_broker import activity, workflow
from tq_broker.client import (
    BlockingClient,
    BlockingWithStartWorkflowOperation,
    Interceptor,
    OutboundInterceptor,
    StartActivityInput,
    StartWorkflowInput,
    StartWorkflowOptions,
    WithStartWorkflowOperation,
    WorkflowUpdateStage,
)
from tq_broker.client.request import StartOptions
from tq_broker.common import ActivityOptions, RetryPolicy, WorkflowIDConflictPolicy
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import ActivityError, DeadlineExceeded, InvalidArgument, NotFound
from tq_broker.model import events, payload, requests
from tq_broker.model.workflow_tasks import EventsPage, QueryAnswer
from tq_broker.worker import Interceptor as WorkerInterceptor
from tq_broker.worker import Worker

MINUTE = timedelta(minutes=1)
STARTED = requests.Started(run_id="r2", first_run_id="r1")
WHERE: dict[str, Any] = {"id": "w", "task_queue": "q"}
METHODS = [name for name in vars(OutboundInterceptor) if not name.startswith("_")]


class Outbound(OutboundInterceptor):
    """Tells of each call, and gives headers to what has them."""

    log: list[Any]

    def __init__(self, next: OutboundInterceptor) -> None:
        super().__init__(next)
        self.log = []


def _told(name: str) -> Any:
    def call(self: Outbound, input: Any) -> Any:
        self.log.append((name, input))
        if hasattr(input, "headers"):
            input.headers = {**input.headers, "trace": "t"}
        return getattr(OutboundInterceptor, name)(self, input)

    return call


for _name in METHODS:
    setattr(Outbound, _name, _told(_name))


class Tracing(Interceptor):
    outbound: Outbound

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        self.outbound = Outbound(next)
        return self.outbound

    def calls(self) -> list[str]:
        return [name for name, _ in self.outbound.log]


@pytest.fixture
def tracing(side: Side) -> Iterator[Tracing]:
    """`side`, whose client has an interceptor."""
    tracing, plain = Tracing(), side.client
    side.client = side.do(side.kind.connect(side.url, identity="me", interceptors=[tracing]))
    yield tracing
    side.do(plain.close())


def closed(value: Any) -> requests.Closed:
    result = payload.dump(value, DEFAULT)
    return requests.Closed(run_id="r2", status=requests.Status.COMPLETED, result=result)


@workflow.defn
class Order:
    @workflow.run
    async def run(self, number: int) -> float:
        return number

    @workflow.signal
    def put(self, one: int) -> None: ...

    @workflow.query
    def count(self) -> float:
        return 1.0

    @workflow.update
    def change(self, number: int) -> float:
        return number


# --- workflows ----------------------------------------------------------------------------------


def test_a_start_goes_through_the_chain(side: Side, tracing: Tracing) -> None:
    side.history.script[requests.StartWorkflow] = lambda _: STARTED
    start = side.client.start_workflow
    handle = side.do(start(Order.run, 3, headers={"own": "1"}, memo={"a": 1}, **WHERE))
    (request,) = side.history.seen
    assert (request.workflow_type, request.headers) == ("Order", {"own": "1", "trace": "t"})
    assert request.memo == {"a": b"1"}
    assert type(handle) is type(side.client)._handle_type
    ((_, input),) = tracing.outbound.log
    assert (input.workflow, input.args, input.id, input.task_queue) == ("Order", (3,), "w", "q")


def test_an_execution_is_a_start_and_a_wait(side: Side, tracing: Tracing) -> None:
    side.history.script[requests.StartWorkflow] = lambda _: STARTED
    side.history.script[requests.AwaitResult] = lambda _: closed(3)
    assert repr(side.do(side.client.execute_workflow(Order.run, 3, **WHERE))) == "3.0"
    assert tracing.calls() == ["start_workflow"]


def test_what_is_changed_is_checked_again(side: Side) -> None:
    class Wrong(OutboundInterceptor):
        async def start_workflow(self, input: StartWorkflowInput) -> Any:
            input.headers = {"n": 1}  # type: ignore[dict-item]
            return await super().start_workflow(input)

        async def start_activity(self, input: StartActivityInput) -> Any:
            input.priority = 9
            return await super().start_activity(input)

    class Wrongs(Interceptor):
        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            return Wrong(next)

    client = side.do(side.kind.connect(side.url, interceptors=[Wrongs()]))
    with pytest.raises(InvalidArgument, match="headers must be strings"):
        side.do(client.start_workflow(Order.run, 3, **WHERE))
    with pytest.raises(InvalidArgument, match="priority is 9"):
        side.do(client.start_activity("double", task_queue="q", start_to_close_timeout=MINUTE))
    assert side.history.seen == []


def test_messages_go_through_the_chain(side: Side, tracing: Tracing) -> None:
    script = side.history.script
    script[requests.SignalWorkflow] = lambda _: requests.Done()
    script[requests.QueryWorkflow] = lambda _: QueryAnswer(result=b"3")
    handle = side.client.get_workflow_handle("w", run_id="r")
    side.do(handle.signal(Order.put, 3))
    assert repr(side.do(handle.query(Order.count))) == "3.0"
    signal, query = side.history.seen
    assert (signal.signal_name, signal.run_id, signal.input) == ("put", "r", b"[3]")
    assert (query.query_type, query.run_id) == ("count", "r")
    assert signal.headers == query.headers == {"trace": "t"}
    assert tracing.calls() == ["signal_workflow", "query_workflow"]


@pytest.mark.parametrize("executes", [True, False])
def test_updates_go_through_the_chain(side: Side, tracing: Tracing, executes: bool) -> None:
    state = requests.UpdateState(run_id="r", update_id="u", stage=3, result=b"3")
    side.history.script[requests.UpdateWorkflow] = lambda _: state
    handle = side.client.get_workflow_handle("w", first_execution_run_id="r1")
    if executes:
        value = side.do(handle.execute_update(Order.change, 3, id="u"))
    else:
        done = WorkflowUpdateStage.COMPLETED
        update = side.do(handle.start_update(Order.change, 3, id="u", wait_for_stage=done))
        value = side.do(update.result())
    assert repr(value) == "3.0"
    (request,) = side.history.seen
    assert (request.update.name, request.update.headers) == ("change", {"trace": "t"})
    assert (request.first_run_id, request.wait) == ("r1", 3)
    assert tracing.calls() == ["start_workflow_update"]


@pytest.mark.usefixtures("tracing")
def test_the_bound_of_an_update_holds_within_the_chain(side: Side) -> None:
    handle = side.client.get_workflow_handle("w")
    with pytest.raises(DeadlineExceeded, match=r"not ended within 0\.05 s"):
        side.do(handle.execute_update("change", 3, timeout=0.05))
    operation = operation_of(side)
    ask = side.client.execute_update_with_start_workflow
    with pytest.raises(DeadlineExceeded, match=r"not ended within 0\.05 s"):
        side.do(ask("change", 3, start_workflow_operation=operation, timeout=0.05))


def operation_of(side: Side) -> Any:
    blocking = side.kind is BlockingClient
    kind: Any = BlockingWithStartWorkflowOperation if blocking else WithStartWorkflowOperation
    return kind(Order.run, 3, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING, **WHERE)


def test_an_update_with_start_goes_through_the_chain(side: Side, tracing: Tracing) -> None:
    state = requests.UpdateState(run_id="r2", update_id="u", stage=3, result=b"3")
    side.history.script[requests.StartWorkflow] = lambda _: [STARTED, state]
    operation = operation_of(side)
    value = side.do(
        side.client.execute_update_with_start_workflow(
            Order.change, 4, start_workflow_operation=operation, id="u"
        )
    )
    assert repr(value) == "3.0"
    assert side.do(operation.workflow_handle()).result_run_id == "r2"
    (request,) = side.history.seen
    assert (request.workflow_type, request.update.name) == ("Order", "change")
    ((name, input),) = tracing.outbound.log
    assert name == "start_update_with_start_workflow"
    assert input.update_workflow_input.args == (4,)
    assert input.start_workflow_input.id == "w"


def test_ends_and_looks_go_through_the_chain(side: Side, tracing: Tracing) -> None:
    script = side.history.script
    script[requests.RequestCancel] = script[requests.Terminate] = lambda _: requests.Done()
    script[requests.Describe] = lambda _: requests.Refused(reason="not_found", message="")
    script[requests.FetchHistory] = lambda _: EventsPage(
        found=True,
        last_event_id=1,
        events=[events.WorkflowTaskScheduled(event_id=1, time_ms=1, task_queue="q")],
    )
    script[requests.ListWorkflows] = lambda _: requests.Listing(runs=[])
    script[requests.CountWorkflows] = lambda _: requests.Count(count=4)
    handle = side.client.get_workflow_handle("w", run_id="r", first_execution_run_id="r1")
    side.do(handle.cancel(reason="why"))
    side.do(handle.terminate(1, 2, reason="so"))
    with pytest.raises(NotFound):
        side.do(handle.describe())
    assert len(side.do(handle.fetch_history()).events) == 1
    assert side.all_of(side.client.list_workflows("x = 1", limit=7)) == []
    assert side.do(side.client.count_workflows()).count == 4
    cancel, terminate, *_ = side.history.seen
    assert (cancel.reason, cancel.run_id, cancel.first_run_id) == ("why", "r", "r1")
    assert (terminate.reason, terminate.details) == ("so", b"[1,2]")
    assert tracing.calls() == [
        "cancel_workflow",
        "terminate_workflow",
        "describe_workflow",
        "fetch_workflow_history_events",
        "list_workflows",
        "count_workflows",
    ]


# --- activities ---------------------------------------------------------------------------------


@activity.defn(task_queue="q", start_to_close_timeout=MINUTE, headers={"decorator": "d"})
async def double(number: int) -> float:
    return 2 * number + len(activity.info().headers) / 10


@activity.defn(task_queue="q", start_to_close_timeout=MINUTE)
async def later() -> int:
    tokens.append(activity.info().task_token)
    activity.raise_complete_async()


tokens: list[bytes] = []


@pytest.fixture
def worker(side: Side) -> Iterator[Worker]:
    other = BlockingClient.connect(side.url)
    with Worker(other, task_queue="q", activities=[double, later], reclaim_after=None) as worker:
        yield worker
    other.close()


@pytest.mark.usefixtures("worker")
def test_activities_go_through_the_chain(side: Side, tracing: Tracing) -> None:
    client = side.client
    assert side.do(client.execute_activity(double, 3)) == 6.2
    handle = side.do(client.start_activity(double, 3, headers={"own": "1"}))
    assert side.do(handle.result()) == 6.3
    handles = side.do(client.start_activities(double, [(1,), (2,), (3,)]))
    assert [side.do(one.result()) for one in handles] == [2.2, 4.2, 6.2]
    assert tracing.calls() == ["start_activity"] * 5
    first = tracing.outbound.log[0][1]
    assert (first.activity_type, first.args, first.task_queue) == ("double", (3,), "q")
    assert first.start_to_close_timeout == MINUTE
    side.do(handle.cancel("late"))
    side.do(client.cancel_activity("some", "none"))
    told = [(i.activity_id, i.reason) for name, i in tracing.outbound.log[5:]]
    assert told == [(handle.id, "late"), ("some", "none")]


def test_wrong_arguments_are_refused_before_the_chain(side: Side, tracing: Tracing) -> None:
    client = side.client
    with pytest.raises(InvalidArgument, match="takes at most 1"):
        side.do(client.start_activities(double, [(1,), (1, 2)]))
    with pytest.raises(InvalidArgument, match="waits for its outcome itself"):
        side.do(client.execute_activity(double, 1, wait_result=False))
    with pytest.raises(InvalidArgument, match="unknown activity option"):
        side.do(client.start_activity(double, 1, what=2))
    assert tracing.calls() == []


@pytest.mark.usefixtures("worker")
def test_completions_by_token_go_through_the_chain(side: Side, tracing: Tracing) -> None:
    tokens.clear()
    client = side.client
    ends: list[Any] = [("complete", 5), ("fail", ValueError("bad")), ("report_cancellation", 1)]
    for how, value in ends:
        once = RetryPolicy(maximum_attempts=1)
        handle = side.do(client.start_activity(later, retry_policy=once))
        while not tokens:
            side.do(asyncio.sleep(0.005))
        token = client.get_async_activity_handle(task_token=tokens.pop())
        side.do(token.heartbeat("going"))
        side.do(getattr(token, how)(value))
        if how == "complete":
            assert side.do(handle.result()) == 5
        else:
            with pytest.raises(ActivityError):
                side.do(handle.result())
    assert [name for name in tracing.calls() if name != "start_activity"] == [
        "heartbeat_async_activity",
        "complete_async_activity",
        "heartbeat_async_activity",
        "fail_async_activity",
        "heartbeat_async_activity",
        "report_cancellation_async_activity",
    ]


@pytest.mark.usefixtures("worker")
def test_of_many_starts_one_that_fails_keeps_no_other(side: Side) -> None:
    begun: list[int] = []

    class Picky(OutboundInterceptor):
        async def start_activity(self, input: StartActivityInput) -> Any:
            if input.args[0] < 0:
                raise ValueError("negative")
            handle = await super().start_activity(input)
            begun.append(input.args[0])
            return handle

    class Pickies(Interceptor):
        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            return Picky(next)

    client = side.do(side.kind.connect(side.url, interceptors=[Pickies()]))
    with pytest.raises(ValueError, match="negative"):
        side.do(client.start_activities(double, [(1,), (-1,), (2,)]))
    assert sorted(begun) == [1, 2]
    assert side.do(client.start_activities(double, [])) == []
    side.do(client.close())


# --- the chain itself ---------------------------------------------------------------------------


def test_every_method_has_an_end_that_asks() -> None:
    from tq_broker.client.outbound import OutboundEnd

    assert [name for name in METHODS if name not in vars(OutboundEnd)] == []


def test_interceptors_of_workers_are_handed_on_to_them(side: Side) -> None:
    class Both(Tracing, WorkerInterceptor):
        pass

    both, own = Both(), WorkerInterceptor()
    client = side.do(side.kind.connect(side.url, interceptors=[Tracing(), both]))
    worker = Worker(client, task_queue="q", activities=[double], interceptors=[own])
    assert worker.options.interceptors == (both, own)


@pytest.mark.parametrize("given", [3, [3], [Tracing], [WorkerInterceptor()]])
def test_what_is_no_interceptor_is_refused_at_connect(side: Side, given: Any) -> None:
    with pytest.raises(InvalidArgument, match="interceptors"):
        side.do(side.kind.connect(side.url, interceptors=given))


def test_an_interceptor_that_gives_nothing_is_refused_at_connect(side: Side) -> None:
    class Nothing(Interceptor):
        def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
            return None  # type: ignore[return-value]

    with pytest.raises(InvalidArgument, match="Nothing gave None"):
        side.do(side.kind.connect(side.url, interceptors=[Nothing()]))


def test_who_has_none_has_no_chain(side: Side) -> None:
    assert side.client.outbound is None
    assert side.client.interceptors == ()


@pytest.mark.parametrize(
    ("kind", "values", "own"),
    [
        (StartActivityInput, (ActivityOptions, StartOptions), {"activity_type", "args", "said"}),
        (
            StartWorkflowInput,
            (StartWorkflowOptions,),
            {"workflow", "args", "ret_type", "options", "target"},
        ),
    ],
)
def test_inputs_name_what_the_options_name(kind: Any, values: Any, own: set[str]) -> None:
    known = {field.name for value in values for field in dataclasses.fields(value)}
    assert {field.name for field in dataclasses.fields(kind)} - known == own


def test_coroutines_are_coroutines_in_every_place() -> None:
    from tq_broker.client.outbound import OutboundEnd

    for name in METHODS:
        one, other = getattr(OutboundInterceptor, name), getattr(OutboundEnd, name)
        assert inspect.iscoroutinefunction(one) == inspect.iscoroutinefunction(other), name
