"""Journey: a trace goes from either client to a workflow, and on to all that this asks for.

The worker has no cache: every workflow task replays the run, with its interceptors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tq_broker import activity, workflow
from tq_broker import client as clients
from tq_broker import worker as workers
from tq_broker.client import BlockingClient, Client
from tq_broker.clock import SystemClock
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Replayer, Worker

SOON_S = 60.0
MINUTE = timedelta(minutes=1)
TRACE = "trace"


# --- what authors write ---------------------------------------------------------------------------


def told() -> str:
    return activity.info().headers.get(TRACE, "none")


@activity.defn(start_to_close_timeout=MINUTE)
async def on_the_loop(number: int) -> str:
    return f"loop {number} {told()}"


@activity.defn(start_to_close_timeout=MINUTE)
def in_a_thread(number: int) -> str:
    return f"thread {number} {told()}"


@activity.defn(start_to_close_timeout=MINUTE, executor="process")
def in_a_process(number: int) -> str:
    return f"process {number} {told()}"


@workflow.defn
class Kid:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(on_the_loop, 5)


@workflow.defn
class Traced:
    def __init__(self) -> None:
        self.got: list[str] = []

    @workflow.run
    async def run(self, again: bool) -> list[Any]:
        await workflow.wait_condition(lambda: len(self.got) == 2)
        if again:
            workflow.continue_as_new(False)
        found = await asyncio.gather(
            workflow.execute_activity(on_the_loop, 1),
            workflow.execute_activity(in_a_thread, 2),
            workflow.execute_activity(in_a_process, 3),
            workflow.execute_local_activity(in_a_thread, 4),
            workflow.execute_child_workflow(Kid.run, id=f"{workflow.info().workflow_id}-kid"),
        )
        return [self.got, found]

    @workflow.signal
    async def put(self, what: str) -> None:
        self.got.append(what)

    @workflow.update
    async def change(self, what: str) -> int:
        self.got.append(what)
        return len(self.got)

    @workflow.query
    def so_far(self) -> list[str]:
        return self.got


# --- interceptors ---------------------------------------------------------------------------------


class OutOfClient(clients.OutboundInterceptor):
    async def start_workflow(self, input: clients.StartWorkflowInput) -> Any:
        input.headers = {**input.headers, TRACE: "client"}
        return await super().start_workflow(input)

    async def signal_workflow(self, input: clients.SignalWorkflowInput) -> None:
        input.headers = {TRACE: "signal"}
        await super().signal_workflow(input)

    async def start_workflow_update(self, input: clients.StartWorkflowUpdateInput) -> Any:
        input.headers = {TRACE: "update"}
        return await super().start_workflow_update(input)

    async def query_workflow(self, input: clients.QueryWorkflowInput) -> Any:
        input.headers = {TRACE: "query"}
        return await super().query_workflow(input)


class IntoActivity(workers.ActivityInboundInterceptor):
    async def execute_activity(self, input: workers.ExecuteActivityInput) -> Any:
        return f"<{await super().execute_activity(input)}>"


class IntoWorkflow(workers.WorkflowInboundInterceptor):
    def init(self, outbound: workers.WorkflowOutboundInterceptor) -> None:
        super().init(OutOfWorkflow(outbound))

    async def execute_workflow(self, input: workers.ExecuteWorkflowInput) -> Any:
        result = await super().execute_workflow(input)
        return [*result, input.headers[TRACE]] if isinstance(result, list) else result

    async def handle_signal(self, input: workers.HandleSignalInput) -> None:
        input.args = [f"{input.args[0]} {input.headers[TRACE]}"]
        await asyncio.sleep(0.01)
        await super().handle_signal(input)

    async def handle_update_handler(self, input: workers.HandleUpdateInput) -> Any:
        input.args = [f"{input.args[0]} {input.headers[TRACE]}"]
        return await super().handle_update_handler(input)

    async def handle_query(self, input: workers.HandleQueryInput) -> Any:
        return [*await super().handle_query(input), input.headers[TRACE]]


class OutOfWorkflow(workers.WorkflowOutboundInterceptor):
    def start_activity(self, input: workers.StartActivityInput) -> Any:
        input.headers = {TRACE: workflow.info().workflow_type}
        return super().start_activity(input)

    def start_local_activity(self, input: workers.StartLocalActivityInput) -> Any:
        input.headers = {TRACE: "local"}
        return super().start_local_activity(input)

    async def start_child_workflow(self, input: workers.StartChildWorkflowInput) -> Any:
        input.headers = {TRACE: "child"}
        return await super().start_child_workflow(input)

    def continue_as_new(self, input: workers.ContinueAsNewInput) -> NoReturn:
        input.memo = {"by": "interceptor"}
        super().continue_as_new(input)


class Tracing(clients.Interceptor, workers.Interceptor):
    def intercept_client(self, next: clients.OutboundInterceptor) -> clients.OutboundInterceptor:
        return OutOfClient(next)

    def intercept_activity(
        self, next: workers.ActivityInboundInterceptor
    ) -> workers.ActivityInboundInterceptor:
        return IntoActivity(next)

    def workflow_interceptor_class(
        self, input: workers.WorkflowInterceptorClassInput
    ) -> type[workers.WorkflowInboundInterceptor]:
        return IntoWorkflow


# --- the journey ----------------------------------------------------------------------------------

RESULT = [
    ["b signal", "c update"],
    [
        "<loop 1 Traced>",
        "<thread 2 Traced>",
        "<process 3 Traced>",
        "<thread 4 local>",
        "<loop 5 Kid>",
    ],
    "client",
]


@pytest.fixture
def url(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[str]:
    """A broker with a history service, and a worker made with an intercepted client."""
    store = f"sqlite:///{tmp_path / 'history.sqlite'}"
    with EmbeddedSystem(SystemClock(), broker_url, store, namespace=namespace):
        client = BlockingClient.connect(broker_url, namespace=namespace, interceptors=[Tracing()])
        with Worker(
            client,
            task_queue="q",
            workflows=[Traced, Kid],
            activities=[on_the_loop, in_a_thread, in_a_process],
            max_cached_workflows=0,
        ):
            yield broker_url
        client.close()


def test_a_trace_goes_all_the_way(url: str, namespace: str) -> None:
    client = BlockingClient.connect(
        url, namespace=namespace, interceptors=[Tracing()], timeout=SOON_S
    )
    handle = client.start_workflow(Traced.run, False, id="w", task_queue="q")
    handle.signal(Traced.put, "b")
    # The signal's handler sleeps: only then is the second one sent.
    while "b signal" not in (seen := handle.query(Traced.so_far)):
        assert seen[-1] == "query"
    assert handle.execute_update(Traced.change, "c", timeout=SOON_S) == 2
    assert handle.result(timeout=SOON_S) == RESULT
    history = handle.fetch_history()
    asyncio.run(_replayed(history))
    client.close()


async def _replayed(history: Any) -> None:
    await Replayer(workflows=[Traced], interceptors=[Tracing()]).replay_workflow(history)
    with pytest.raises(workflow.NondeterminismError):
        await Replayer(workflows=[Traced]).replay_workflow(history)


async def _through_asyncio(url: str, namespace: str) -> None:
    connect = Client.connect(url, namespace=namespace, interceptors=[Tracing()], timeout=SOON_S)
    async with await connect as client:
        handle = await client.start_workflow(Traced.run, True, id="w", task_queue="q")
        for what in "xy":
            await handle.signal(Traced.put, what)
        while (await handle.describe()).run_id == handle.result_run_id:
            await asyncio.sleep(0.1)
        assert (await handle.describe()).memo_value("by") == "interceptor"
        await handle.signal(Traced.put, "b")
        while "b signal" not in await handle.query(Traced.so_far):
            await asyncio.sleep(0.1)
        assert await handle.execute_update(Traced.change, "c", timeout=SOON_S) == 2
        assert await handle.result(timeout=SOON_S) == RESULT


def test_a_trace_goes_on_with_the_next_run(url: str, namespace: str) -> None:
    asyncio.run(_through_asyncio(url, namespace))
