"""Signals, updates and queries of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.worker.replays import Run, types
from tq_broker import activity, workflow
from tq_broker.exceptions import ApplicationError
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev
from tq_broker.workflow import HandlerUnfinishedPolicy


@activity.defn(start_to_close_timeout=timedelta(seconds=5))
async def work(key: int) -> int: ...


@workflow.defn
class Basket:
    def __init__(self) -> None:
        self.items: list[Any] = []
        self.closed = False

    @workflow.run
    async def run(self) -> list[Any]:
        await workflow.wait_condition(lambda: self.closed and workflow.all_handlers_finished())
        return self.items

    @workflow.signal
    def add(self, item: int) -> None:
        self.items.append(item)

    @workflow.signal(name="slowly")
    async def add_slowly(self, item: int) -> None:
        self.items.append(await workflow.execute_activity(work, item))

    @workflow.signal(dynamic=True)
    def other(self, name: str, args: Sequence[workflow.RawValue]) -> None:
        self.items.append([name, *(arg.decode() for arg in args)])

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.query
    def count(self, more: int = 0) -> int:
        return len(self.items) + more

    @workflow.query
    def meddle(self) -> None:
        workflow.start_activity(work, 1)

    @workflow.query
    def spawn(self) -> None:
        asyncio.get_running_loop().call_soon(print)

    @workflow.query(dynamic=True)
    def any_query(self, name: str, args: Sequence[workflow.RawValue]) -> str:
        return f"{name} {len(args)}"

    @workflow.update
    async def put(self, item: int) -> int:
        info = workflow.current_update_info()
        assert info is not None
        assert info.name == "put"
        self.items.append(await workflow.execute_activity(work, item))
        return len(self.items)

    @put.validator
    def check_put(self, item: int) -> None:
        if item < 0:
            raise ValueError("negative")
        if item == 0:
            self.check_changes()

    def check_changes(self) -> None:
        workflow.start_activity(work, 0)

    @workflow.update
    def fail(self, how: str) -> None:
        if how == "failure":
            raise ApplicationError("no", type="Bad")
        raise KeyError(how)


def test_signals_are_handled_in_order_and_before_what_waits_for_them() -> None:
    run = Run(Basket)
    run.signal("add", 1)
    run.signal("add", 2)
    run.task()
    run.signal("odd", "x")
    run.signal("close")
    run.task()
    assert run.result() == [1, 2, ["odd", "x"]]


def test_a_handler_may_be_async() -> None:
    run = Run(Basket)
    run.task()
    run.signal("slowly", 3)
    run.signal("close")
    assert types(run.task()) == ["ScheduleActivity"]
    run.complete("1", 9)
    run.task()
    assert run.result() == [9]


def test_a_signal_that_does_not_fit_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(Basket)
    run.signal("add", "many")
    run.signal("close")
    run.task()
    assert run.result() == []
    assert "'add' is dropped" in caplog.text


def test_queries() -> None:
    run = Run(Basket)
    run.signal("add", 1)
    run.task()
    assert run.query("count").result == b"1"
    assert run.query("count", 2).result == b"3"
    assert run.query("whatever", 1, 2).result == b'"whatever 2"'


@pytest.mark.parametrize("name", ["meddle", "spawn"])
def test_a_query_must_change_nothing(name: str) -> None:
    run = Run(Basket)
    run.task()
    answer = run.query(name)
    assert answer.error == "failed"
    assert answer.failure is not None
    assert answer.failure.type == "ReadOnlyContextError"
    run.signal("close")
    assert types(run.task()) == ["CompleteWorkflow"]


def test_a_query_works_after_the_end() -> None:
    run = Run(Basket)
    run.signal("close")
    run.task()
    assert run.query("count").result == b"0"


def test_a_query_before_the_beginning_fails() -> None:
    run = Run(Basket)
    assert run.query("count").error == "failed"


def test_an_update_is_accepted_and_completed() -> None:
    run = Run(Basket)
    run.task()
    run.update("u1", "put", 5)
    turn = run.task()
    assert types(turn) == ["AcceptUpdate", "ScheduleActivity"]
    run.complete("1", 50)
    assert run.task().commands == [cmd.CompleteUpdate(update_id="u1", result=b"1")]
    run.signal("close")
    run.task()
    assert run.result() == [50]


@pytest.mark.parametrize(
    ("name", "arg", "type_name"),
    [
        ("put", -1, "ValueError"),
        ("put", "many", "Malformed"),
        ("put", 0, "ReadOnlyContextError"),
        ("unknown", 1, "UpdateNotFound"),
    ],
)
def test_an_update_is_rejected(name: str, arg: Any, type_name: str) -> None:
    run = Run(Basket)
    run.task()
    run.update("u1", name, arg)
    run.update("u2", "put", 1)
    turn = run.task()
    rejected = turn.commands[0]
    assert isinstance(rejected, cmd.RejectUpdate)
    assert rejected.failure.type == type_name
    assert types(turn)[1:] == ["AcceptUpdate", "ScheduleActivity"]
    run.complete("1", 2)
    assert types(run.task()) == ["CompleteUpdate"]


def test_a_failure_in_an_update_is_its_result() -> None:
    run = Run(Basket)
    run.task()
    run.update("u1", "fail", "failure")
    done = run.task().commands[1]
    assert isinstance(done, cmd.CompleteUpdate)
    assert done.failure is not None
    assert done.failure.type == "Bad"


def test_any_other_exception_in_an_update_fails_the_task() -> None:
    run = Run(Basket)
    run.task()
    run.update("u1", "fail", "oops")
    turn = run.task()
    assert turn.failure is not None
    assert turn.failure.failure.type == "KeyError"


@workflow.defn
class Late:
    """Sets its handlers when it feels like it."""

    @workflow.run
    async def run(self) -> list[Any]:
        self.got: list[Any] = []
        await asyncio.sleep(1)
        assert workflow.get_signal_handler("add") is None
        workflow.set_signal_handler("add", self.got.append)
        assert workflow.get_signal_handler("add") is not None
        workflow.set_query_handler("got", lambda: self.got)
        workflow.set_update_handler("put", self.put, validator=self.check)
        await asyncio.sleep(1)
        workflow.set_dynamic_signal_handler(self.dynamic)
        workflow.set_query_handler("got", None)
        await asyncio.sleep(1)
        return self.got

    def put(self, item: int) -> str:
        self.got.append(item)
        return "put"

    def check(self, item: int) -> None:
        if item < 0:
            raise ValueError("negative")

    def dynamic(self, name: str, args: Sequence[workflow.RawValue]) -> None:
        self.got.append(name)


def test_signals_wait_for_their_handlers(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(Late)
    run.signal("add", 1)
    run.signal("other")
    run.task()
    kept = {one.partition("; ")[0] for one in caplog.messages if "kept until" in one}
    about = "signal kept until it has a handler: workflow 'wf' has no handler for signal"
    assert kept == {f"{about} 'add'", f"{about} 'other'"}
    run.signal("add", 2)
    run.fire("1")
    run.task()
    assert run.query("got").result == b"[1,2]"
    run.update("u", "put", 3)
    run.update("v", "put", -3)
    assert types(run.task()) == ["AcceptUpdate", "CompleteUpdate", "RejectUpdate"]
    run.fire("2")
    run.task()
    answer = run.query("got")
    assert answer.failure is not None
    assert answer.failure.type == "QueryNotFound"
    assert answer.failure.message.startswith("workflow 'wf' has no handler for query 'got'")
    run.fire("3")
    run.task()
    assert run.result() == [1, 2, 3, "other"]


@workflow.defn
class Abrupt:
    @workflow.run
    async def run(self) -> None:
        await asyncio.sleep(1)

    @workflow.signal
    async def slow(self) -> None:
        await asyncio.Event().wait()

    @workflow.update(unfinished_policy=HandlerUnfinishedPolicy.ABANDON)
    async def abandoned(self) -> None:
        await asyncio.Event().wait()

    @workflow.update
    async def unfinished(self) -> None:
        await asyncio.Event().wait()


def test_unfinished_handlers_are_told_of() -> None:
    run = Run(Abrupt)
    run.signal("slow")
    run.update("u", "abandoned")
    run.task()
    run.fire("1")
    with pytest.warns(workflow.UnfinishedSignalHandlersWarning, match="signal 'slow'"):
        run.task()


def test_of_abandoned_handlers_nothing_is_said() -> None:
    run = Run(Abrupt)
    run.update("u", "abandoned")
    run.task()
    run.fire("1")
    assert types(run.task()) == ["CompleteWorkflow"]


def test_unfinished_updates_are_told_of() -> None:
    run = Run(Abrupt)
    run.update("u", "unfinished")
    run.task()
    run.fire("1")
    with pytest.warns(workflow.UnfinishedUpdateHandlersWarning, match=r"update 'unfinished' \(u\)"):
        run.task()


def test_a_signal_handler_may_end_the_workflow() -> None:
    @workflow.defn
    class Ender:
        @workflow.run
        async def run(self) -> None:
            await asyncio.Event().wait()

        @workflow.signal
        async def again(self) -> None:
            workflow.continue_as_new()

        @workflow.signal
        async def fail(self) -> None:
            raise ApplicationError("no")

    run = Run(Ender)
    run.signal("again")
    run.signal("fail")
    assert types(run.task()) == ["ContinueAsNew"]
    run = Run(Ender)
    run.signal("fail")
    assert types(run.task()) == ["FailWorkflow"]


def test_updates_that_come_with_the_first_task_find_the_object_made() -> None:
    run = Run(Basket)
    run.update("u1", "put", 5)
    assert types(run.task()) == ["AcceptUpdate", "ScheduleActivity"]
    accepted = run.find(ev.WorkflowExecutionUpdateAccepted)
    assert msgspec.json.decode(accepted.input) == [5]
