"""The chains of interceptors around a run. Each task is also asked of a replay; they must agree."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import msgspec
import pytest

from tests.worker.replays import Run, types
from tq_broker import activity, workflow
from tq_broker.activity import RawValue
from tq_broker.common import ActivityOptions
from tq_broker.exceptions import ApplicationError, InvalidArgument
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev
from tq_broker.worker import (
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    HandleQueryInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    SignalChildWorkflowInput,
    SignalExternalWorkflowInput,
    StartActivityInput,
    StartChildWorkflowInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)
from tq_broker.worker.workflow_chain import WorkflowInterception
from tq_broker.workflow.calls import ActivityCall, ChildCall, Continuation, LocalActivityCall
from tq_broker.workflow.facts import Info

SECOND = timedelta(seconds=1)
TRACE = {"trace": "t"}
seen: list[str] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


def note(what: str) -> None:
    """As an interceptor should: not in a replay."""
    if not workflow.unsafe.is_replaying():
        seen.append(what)


class Outbound(WorkflowOutboundInterceptor):
    """Writes a header on everything that has headers."""

    def info(self) -> Info:
        return dataclasses.replace(self.next.info(), namespace="intercepted")

    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:
        input.headers = {**input.headers, **TRACE}
        input.args = [*input.args, "more"]
        input.task_queue = "elsewhere"
        return super().start_activity(input)

    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:
        input.headers = {**input.headers, **TRACE}
        input.activity = "look_further"
        return super().start_local_activity(input)

    async def start_child_workflow(
        self, input: StartChildWorkflowInput
    ) -> workflow.ChildWorkflowHandle[Any]:
        input.headers = {**input.headers, **TRACE}
        input.id += "-child"
        return await super().start_child_workflow(input)

    async def signal_child_workflow(self, input: SignalChildWorkflowInput) -> None:
        input.headers = TRACE
        await super().signal_child_workflow(input)

    async def signal_external_workflow(self, input: SignalExternalWorkflowInput) -> None:
        input.headers = TRACE
        input.signal += f"-from-{input.namespace}"
        await super().signal_external_workflow(input)

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:
        input.memo = {"by": "interceptor"}
        super().continue_as_new(input)


class Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(Outbound(outbound))

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        note(f"execute {input.type.__name__} {input.args} {input.headers}")
        result = await super().execute_workflow(input)
        return {"result": result}

    async def handle_signal(self, input: HandleSignalInput) -> None:
        note(f"signal {input.signal} {len(input.args)} {input.headers}")
        await asyncio.sleep(1)  # it is workflow code: a timer
        await super().handle_signal(input)

    async def handle_query(self, input: HandleQueryInput) -> Any:
        return [await super().handle_query(input), input.id, input.headers]

    def handle_update_validator(self, input: HandleUpdateInput) -> None:
        seen.append(f"validate {input.args}")
        super().handle_update_validator(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:
        input.args = [2 * one for one in input.args]
        return [await super().handle_update_handler(input), input.id, input.headers]


class Around(Interceptor):
    def __init__(self, kind: Any = Inbound) -> None:
        self.kind = kind

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> Any:
        input.unsafe_extern_functions["shout"] = str.upper
        return self.kind


def commands(run: Run) -> list[Any]:
    turn = run.task()
    assert turn.failure is None, turn.failure
    return turn.commands


# --- what comes in ------------------------------------------------------------------------------


@workflow.defn
class Listening:
    def __init__(self) -> None:
        self.got: list[Any] = []

    @workflow.run
    async def run(self, until: int) -> list[Any]:
        await workflow.wait_condition(lambda: len(self.got) >= until)
        return self.got

    @workflow.signal
    def put(self, one: Any) -> None:
        self.got.append(one)

    @workflow.signal(dynamic=True)
    async def put_any(self, name: str, args: Sequence[RawValue]) -> None:
        self.got.append([name, *(one.decode() for one in args)])

    @workflow.query
    def count(self, more: int) -> int:
        return len(self.got) + more

    @workflow.update
    async def change(self, number: int) -> int:
        self.got.append(number)
        return number

    @change.validator
    def check(self, number: int) -> None:
        if number < 0:
            raise ValueError("negative")


def test_a_run_is_within_its_interceptors() -> None:
    run = Run(Listening, 0, interceptors=[Around(), Around()], headers={"k": "v"})
    run.task()
    assert run.result() == {"result": {"result": []}}
    assert seen[:2] == ["execute Listening [0] {'k': 'v'}"] * 2


def test_signals_go_through_interceptors() -> None:
    run = Run(Listening, 2, interceptors=[Around()])
    run.signal("put", 1, headers={"k": "v"})
    run.signal("any", 2, 3)
    assert types(run.task()) == ["StartTimer", "StartTimer"]
    assert "signal put 1 {'k': 'v'}" in seen
    assert "signal any 2 {}" in seen
    run.fire("1")
    run.fire("2")
    run.task()
    assert run.result() == {"result": [1, ["any", 2, 3]]}


def test_queries_go_through_interceptors() -> None:
    run = Run(Listening, 9, interceptors=[Around()])
    run.task()
    answer = run.query("count", 5, headers={"k": "v"})
    assert msgspec.json.decode(answer.result) == [5, "query-1", {"k": "v"}]
    assert run.query("what").error == "failed"


def test_updates_go_through_interceptors_and_validators_see_what_came() -> None:
    run = Run(Listening, 1, interceptors=[Around()])
    run.update("u1", "change", -1)
    run.update("u2", "change", 4, headers={"k": "v"})
    done = [c for c in commands(run) if isinstance(c, cmd.CompleteUpdate)]
    assert [msgspec.json.decode(c.result) for c in done] == [[8, "u2", {"k": "v"}]]
    assert seen.count("validate [-1]") == 2  # once by each of the two workers that are asked
    assert seen.count("validate [4]") == 2
    assert run.result() == {"result": [8]}
    replay = run.replay()
    replay.activate(run.events, now_ms=run.now_ms, live=False)
    replay.close()
    assert seen.count("validate [4]") == 2  # one that was accepted is not refused by a replay


class Waiting(WorkflowInboundInterceptor):
    async def handle_query(self, input: HandleQueryInput) -> Any:
        await asyncio.sleep(1)
        return await super().handle_query(input)


class Renaming(WorkflowInboundInterceptor):
    async def handle_query(self, input: HandleQueryInput) -> Any:
        input.query = "unknown"
        return await super().handle_query(input)


@pytest.mark.parametrize(
    ("kind", "says"), [(Waiting, "cannot start a timer in a query"), (Renaming, "has no handler")]
)
def test_an_interceptor_that_cannot_be_is_the_answer_to_the_query(kind: Any, says: str) -> None:
    run = Run(Listening, 9, interceptors=[Around(kind)])
    run.task()
    answer = run.query("count", 5)
    assert answer.failure is not None
    assert says in answer.failure.message


# --- what goes out ------------------------------------------------------------------------------


@activity.defn(start_to_close_timeout=SECOND)
async def look(key: str) -> str: ...


@workflow.defn
class Kid:
    @workflow.run
    async def run(self) -> None: ...

    @workflow.signal
    def poke(self, how: str) -> None: ...


@workflow.defn
class Asking:
    @workflow.run
    async def run(self) -> Any:
        found = await workflow.execute_local_activity(look, "k", headers={"own": "1"})
        looking = workflow.start_activity(look, "k", headers={"own": "2"}, affinity="host")
        child = await workflow.start_child_workflow(Kid.run, id="kid", headers={"own": "3"})
        await asyncio.gather(
            child.signal(Kid.poke, "softly"),
            workflow.get_external_workflow_handle("other").signal("go", 7),
        )
        return [found, await looking, workflow.info().namespace]


def test_what_a_workflow_asks_for_goes_through_interceptors() -> None:
    asked: list[Any] = []

    def local(kind: str, args: list[Any], attempt: int) -> Any:
        asked.append(kind)
        return "found"

    run = Run(Asking, local=local, interceptors=[Around()], headers={"run": "r"})
    marker, scheduled, started = commands(run)
    assert isinstance(marker, cmd.RecordMarker)
    assert set(asked) == {"look_further"}
    assert scheduled.headers == {"run": "r", "own": "2", "trace": "t"}
    assert scheduled.input == b'{"args":["k","more"]}'
    assert scheduled.task_queue == "elsewhere"
    assert scheduled.affinity == '{"kind":"host"}'  # an option that the input has no field for
    assert (started.workflow_id, started.headers) == (
        "kid-child",
        {"run": "r", "own": "3", "trace": "t"},
    )
    initiated = run.find(ev.StartChildWorkflowExecutionInitiated)
    run.add(
        ev.ChildWorkflowExecutionStarted,
        initiated_event_id=initiated.event_id,
        workflow_id="kid-child",
        run_id="kid-run",
        workflow_type="Kid",
    )
    to_child, to_other = commands(run)
    assert (to_child.workflow_id, to_child.child_only) == ("kid-child", True)
    assert to_child.headers == to_other.headers == TRACE
    assert (to_other.signal_name, to_other.input) == ("go-from-default", b"[7]")


def test_a_local_activity_has_the_headers_of_workflow_and_call() -> None:
    run = Run(Asking, interceptors=[Around()], headers={"run": "r"})
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    turn = run.cached.activate(run.events, now_ms=1)
    (task,) = turn.local_activities
    assert task.headers == {"run": "r", "own": "1", "trace": "t"}


@workflow.defn
class Going:
    @workflow.run
    async def run(self, left: int) -> None:
        workflow.continue_as_new(left - 1, run_timeout=SECOND)


def test_the_next_run_is_asked_for_through_interceptors() -> None:
    (command,) = commands(Run(Going, 3, interceptors=[Around()]))
    assert isinstance(command, cmd.ContinueAsNew)
    assert (command.input, command.run_timeout_ms) == (b"[2]", 1000)
    assert command.memo == {"by": b'"interceptor"'}


@workflow.defn
class Curious:
    @workflow.run
    async def run(self) -> Any:
        return workflow.extern_functions()["shout"]("a"), workflow.info().namespace


def test_extern_functions_and_facts_come_from_the_interceptor() -> None:
    run = Run(Curious, interceptors=[Around()])
    run.task()
    assert run.result() == {"result": ["A", "intercepted"]}


@workflow.defn
class Plain:
    @workflow.run
    async def run(self) -> Any:
        return [dict(workflow.extern_functions()), workflow.info().namespace]


def test_without_interceptors_there_is_none_of_this() -> None:
    run = Run(Plain, interceptors=[Interceptor()])
    run.task()
    assert run.result() == [{}, "default"]


# --- bad ones -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [3, Interceptor, Inbound(None)])  # type: ignore[arg-type]
def test_what_is_no_class_of_interceptors_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"Around\.workflow_interceptor_class gave"):
        WorkflowInterception.of([Around(kind)])


class NoOutbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(None)  # type: ignore[arg-type]


class Broken(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        raise RuntimeError("broken")


class Failing(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        raise ApplicationError("not today")


@pytest.mark.parametrize(
    ("kind", "says"), [(NoOutbound, "WorkflowOutboundInterceptor"), (Broken, "broken")]
)
def test_a_mistake_in_an_interceptor_fails_the_task_and_not_the_workflow(
    kind: Any, says: str
) -> None:
    turn = Run(Listening, 0, interceptors=[Around(kind)]).task()
    assert turn.failure is not None
    assert says in str(turn.failure.error)


def test_an_interceptor_can_fail_the_workflow() -> None:
    run = Run(Listening, 0, interceptors=[Around(Failing)])
    assert types(run.task()) == ["FailWorkflow"]


# --- inputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (StartActivityInput, ActivityCall),
        (StartLocalActivityInput, LocalActivityCall),
        (StartChildWorkflowInput, ChildCall),
        (ContinueAsNewInput, Continuation),
    ],
)
def test_inputs_name_what_the_calls_name(kind: Any, value: Any) -> None:
    named = {"workflow_type", "activity_type", "result_type", "options"}
    own = {field.name for field in dataclasses.fields(kind)}
    known = {f.name for v in (value, ActivityOptions) for f in dataclasses.fields(v)}
    assert own - known == {"activity", "ret_type", "call", "workflow"} & own
    assert {"args", "call"} <= own
    assert not own & named
