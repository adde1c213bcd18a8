from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tq_broker import workflow
from tq_broker.activity import RawValue
from tq_broker.client.workflow_targets import handler_target, workflow_target
from tq_broker.exceptions import InvalidArgument


@workflow.defn(name="order")
class Order:
    @workflow.run
    async def run(self, number: int, *notes: str) -> list[int]:
        return [number]

    @workflow.signal
    def go(self, how: str = "") -> None:
        """Go on."""

    @workflow.query(name="total-of")
    def total(self) -> float:
        return 1.0


@workflow.defn(dynamic=True)
class Any_:
    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> None:
        """Whatever."""


@pytest.mark.parametrize("given", [Order, Order.run])
def test_a_workflow_is_named_by_its_class_or_its_run_method(given: Any) -> None:
    target = workflow_target(given)
    assert (target.name, target.result_type) == ("order", list[int])
    assert workflow_target(given, tuple[int, ...]).result_type == tuple[int, ...]


def test_a_name_is_taken_as_it_is() -> None:
    assert workflow_target("x").result_type is Any
    assert handler_target("signal", "x").name == "x"
    assert workflow_target("x", int).result_type is int
    assert workflow_target("x").check_args([1, 2, 3]) == [1, 2, 3]


def test_handlers_are_named_by_their_methods() -> None:
    assert handler_target("signal", Order.go).name == "go"
    query = handler_target("query", Order.total)
    assert (query.name, query.result_type) == ("total-of", float)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: workflow_target(""), "workflow must not be empty"),
        (lambda: workflow_target(print), "print is not a workflow"),
        (lambda: workflow_target(Any_), "a dynamic workflow is started by the name of a type"),
        (lambda: handler_target("query", Order.go), "go is not a query"),
        (lambda: handler_target("update", "x" * 1001), "update is 1001 bytes long"),
    ],
)
def test_what_is_none_is_refused(make: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        make()


def test_arguments_must_fit() -> None:
    run, go = workflow_target(Order), handler_target("signal", Order.go)
    assert run.check_args([1, "a", "b"]) == [1, "a", "b"]
    assert go.check_args([]) == []
    with pytest.raises(InvalidArgument, match="'order' cannot be called so: missing a required"):
        run.check_args([])
    with pytest.raises(InvalidArgument, match="'go' cannot be called so: too many positional"):
        go.check_args([1, 2])


def test_defaults_and_what_comes_after_them_may_be_given() -> None:
    @workflow.defn
    class Named:
        @workflow.run
        async def run(self, number: int = 1, *rest: int) -> None: ...

    run = workflow_target(Named)
    for args in ([], [1], [1, 2, 3]):
        assert run.check_args(args) == args
