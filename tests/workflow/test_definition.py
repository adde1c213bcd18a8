"""Decorators: what they make of a class, and which classes they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tq_broker import workflow
from tq_broker.common import Route
from tq_broker.exceptions import InvalidArgument
from tq_broker.workflow import RawValue
from tq_broker.workflow.definition import definition_of, handler_of


@workflow.defn(name="order", failure_exception_types=[KeyError])
class Order:
    @workflow.run
    async def run(self, number: int, text: str = "") -> list[str]: ...

    @workflow.signal
    def hurry(self) -> None: ...

    @workflow.signal(name="slow down", unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON)
    async def slow(self, how: float) -> None: ...

    @workflow.query(description="how far")
    def progress(self) -> float: ...

    @workflow.update
    async def change(self, to: int) -> int: ...

    @change.validator
    def check_change(self, to: int) -> None: ...

    @workflow.update(dynamic=True)
    def other(self, name: str, args: Sequence[RawValue]) -> None: ...


def test_a_definition_says_what_there_is() -> None:
    definition = definition_of(Order)
    assert definition is definition_of(Order.run)
    assert definition.name == "order"
    assert definition.arg_types == (int, str)
    assert definition.result_type == list[str]
    assert definition.failure_exception_types == (KeyError,)
    assert set(definition.signals) == {"hurry", "slow down"}
    assert definition.signals["slow down"].arg_types == (float,)
    assert definition.signals["slow down"].is_async
    assert definition.queries["progress"].description == "how far"
    assert definition.updates["change"].validator is not None
    assert None in definition.updates


def test_handlers_are_found_by_their_methods() -> None:
    assert handler_of("signal", Order.slow).name == "slow down"
    assert handler_of("update", Order.change).result_type is int
    for kind, target, told in (
        ("query", Order.slow, "not a query"),
        ("signal", print, "not a signal"),
        ("update", Order.other, "dynamic"),
    ):
        with pytest.raises(InvalidArgument, match=told):
            handler_of(kind, target)  # type: ignore[arg-type]


class Base:
    @workflow.signal
    def hurry(self) -> None: ...

    @workflow.signal
    def stop(self) -> None: ...


@workflow.defn
class Derived(Base):
    @workflow.run
    async def run(self) -> None: ...

    @workflow.signal(name="faster")
    def hurry(self) -> None: ...


def test_handlers_are_inherited_and_overridden() -> None:
    assert set(definition_of(Derived).signals) == {"faster", "stop"}


def test_a_subclass_is_not_a_workflow_by_itself() -> None:
    class Another(Order): ...

    with pytest.raises(InvalidArgument, match="Another is not a workflow"):
        definition_of(Another)
    with pytest.raises(InvalidArgument, match=r"must define its @workflow.run method itself"):
        workflow.defn(Another)


def test_hints_that_cannot_be_resolved_are_as_good_as_none() -> None:
    @workflow.defn
    class Odd:
        @workflow.run
        async def run(self, what: Unheard) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    assert definition_of(Odd).arg_types == (Any,)


class NoRun: ...


class TwoRuns:
    @workflow.run
    async def one(self) -> None: ...

    @workflow.run
    async def two(self) -> None: ...


class NeedsArguments:
    def __init__(self, number: int) -> None: ...

    @workflow.run
    async def run(self, number: int) -> None: ...


class OtherArguments:
    @workflow.init
    def __init__(self, text: str) -> None: ...

    @workflow.run
    async def run(self, number: int) -> None: ...


class TwoOfOneName:
    @workflow.run
    async def run(self) -> None: ...

    @workflow.signal(name="x")
    def one(self) -> None: ...

    @workflow.signal(name="x")
    def two(self) -> None: ...


class KeywordOnly:
    @workflow.run
    async def run(self, *, number: int) -> None: ...


@pytest.mark.parametrize(
    ("cls", "told"),
    [
        (NoRun, "one @workflow.run method; it has 0"),
        (TwoRuns, "one @workflow.run method; it has 2"),
        (NeedsArguments, "__init__ must not need arguments"),
        (OtherArguments, "@workflow.init must take the arguments of the run method"),
        (TwoOfOneName, "more than one signal handler named x"),
        (KeywordOnly, "keyword-only"),
        (print, "is for classes"),
    ],
)
def test_a_class_that_cannot_be_a_workflow(cls: Any, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        workflow.defn(cls)


def test_functions_that_cannot_be_what_they_are_decorated_as() -> None:
    def sync(self: Any) -> None: ...

    async def coroutine(self: Any) -> None: ...

    def needy(self: Any, *, number: int) -> None: ...

    with pytest.raises(InvalidArgument, match="must be an async method"):
        workflow.run(sync)
    with pytest.raises(InvalidArgument, match="must not be async"):
        workflow.query(coroutine)
    with pytest.raises(InvalidArgument, match="for __init__ only"):
        workflow.init(sync)
    with pytest.raises(InvalidArgument, match="keyword-only"):
        workflow.signal(needy)
    with pytest.raises(InvalidArgument, match="has no name"):
        workflow.signal(name="x", dynamic=True)(sync)
    with pytest.raises(InvalidArgument, match=r"name and a Sequence\[RawValue\]"):
        workflow.signal(dynamic=True)(sync)
    with pytest.raises(InvalidArgument, match="must not be async"):
        workflow.update(sync).validator(coroutine)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="by keyword"):
        workflow.signal("name")  # type: ignore[call-overload]


def test_a_dynamic_workflow() -> None:
    with pytest.raises(InvalidArgument, match="has no name"):
        workflow.defn(name="x", dynamic=True)(Order)
    with pytest.raises(InvalidArgument, match=r"one Sequence\[RawValue\]"):
        workflow.defn(dynamic=True)(Order)


def test_who_may_have_its_tasks_is_checked_when_the_class_is_made() -> None:
    for options, told in (
        ({"requires": "gpu"}, "requires must be a set of names"),
        ({"route": Route.version("a.b")}, "bound to a version by version="),
        ({"route": Route.host("h" * 65)}, "the bound is 64"),
    ):
        with pytest.raises(InvalidArgument, match=told):
            workflow.defn(**options)


def test_whom_its_activities_follow_is_checked_when_the_class_is_made() -> None:
    @workflow.defn(affinity="host", on_lost="wait", route=Route.host("h"))
    class Bonded:
        @workflow.run
        async def run(self) -> None: ...

    assert definition_of(Bonded).defaults == {
        "affinity": "host", "on_lost": "wait", "route": Route.host("h"),
    }  # fmt: skip
    for options, told in (
        ({"affinity": "ship"}, "affinity is 'ship'; it must be one of: host, process"),
        ({"affinity_group": "g"}, "need an affinity"),
        ({"affinity": "host", "affinity_group": "g" * 201}, "the bound is 200"),
    ):
        with pytest.raises(InvalidArgument, match=told):
            workflow.defn(**options)  # type: ignore[call-overload]
