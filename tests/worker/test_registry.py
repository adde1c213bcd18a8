"""The activities of a worker, by type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tq_broker import activity
from tq_broker.activity import RawValue
from tq_broker.converter import JSONPayloadConverter
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.worker.registry import Registry


@dataclass
class Order:
    item: str


@activity.defn
def first(order: Order, *more: int) -> None: ...


@activity.defn(name="Second")
async def second() -> None: ...


@activity.defn(dynamic=True)
def anything(args: list[RawValue]) -> None: ...


@activity.defn
class Adder:
    def __call__(self, number: int) -> int:
        return number


class Mailer:
    @activity.defn
    def send(self, to: str) -> None: ...


def registry(*activities: Any) -> Registry:
    return Registry(activities, JSONPayloadConverter())


def raws(*values: Any) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(value)) for value in values]


def test_activities_are_found_by_type() -> None:
    found = registry(first, second, Adder())
    assert found.types == ("Adder", "Second", "first")
    for name, fn in (("first", first), ("Second", second)):
        registered = found.find(name)
        assert registered is not None
        assert registered.fn is fn
    assert found.find("second") is None
    assert len(found) == 3


def test_a_dynamic_activity_serves_what_no_other_does() -> None:
    found = registry(anything, first)
    unknown, known = found.find("unknown"), found.find("first")
    assert unknown is not None
    assert known is not None
    assert (unknown.fn, known.fn) == (anything, first)
    assert found.types == ("first",)
    assert {definition.name for definition in found.definitions()} == {"", "first"}
    assert len(found) == 2


def test_what_runs_where_is_known() -> None:
    def where(name: str) -> str:
        found = registry(first, second).find(name)
        assert found is not None
        return found.where

    assert (where("first"), where("Second")) == ("thread", "async")


def test_two_of_a_name_are_refused() -> None:
    @activity.defn(name="first")
    def other() -> None: ...

    with pytest.raises(InvalidArgument, match="More than one activity named first"):
        registry(first, other)
    with pytest.raises(InvalidArgument, match="More than one activity named first"):
        registry(first, first)


def test_two_dynamic_ones_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="More than one dynamic activity"):
        registry(anything, anything)


def test_a_class_is_refused_where_an_instance_is_meant() -> None:
    with pytest.raises(InvalidArgument, match=r"send is .*Mailer\.send, a method without"):
        registry(Mailer.send)
    with pytest.raises(InvalidArgument, match="Adder is a class; register an instance of it"):
        registry(Adder)


@pytest.mark.parametrize("what", [len, "first", None, 3])
def test_what_is_no_activity_is_refused(what: Any) -> None:
    with pytest.raises(InvalidArgument, match="is not an activity"):
        registry(what)


def test_arguments_become_what_the_hints_say() -> None:
    registered = registry(first).find("first")
    assert registered is not None
    assert registered.arguments(raws({"item": "pin"})) == [Order("pin")]
    assert registered.arguments([]) == []
    # Further arguments have no hint of their own; Python judges their number.
    assert registered.arguments(raws({"item": "pin"}, 1, "x")) == [Order("pin"), 1, "x"]
    with pytest.raises(Malformed, match="field `item`"):
        registered.arguments(raws({"thing": "pin"}))


def test_raw_values_outlive_their_message() -> None:
    registered = registry(anything).find("x")
    assert registered is not None
    data = bytearray(b"[1,2]")
    ((value,),) = registered.arguments([msgspec.Raw(memoryview(data))])
    data[:] = b"xxxxx"
    assert value.decode() == [1, 2]
