"""Chains, and coroutines that are driven without an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker import chain
from tq_broker.exceptions import InvalidArgument


class Link:
    """What is chained."""

    def __init__(self, next: Link | None = None, name: str = "") -> None:
        self.next, self.name = next, name

    def names(self) -> str:
        return self.name + (self.next.names() if self.next else "")


class Maker:
    def __init__(self, name: str) -> None:
        self.name = name


def wrap(maker: Maker, next: Link) -> Link:
    return Link(next, maker.name)


# --- checks -------------------------------------------------------------------------------------


def test_interceptors_are_given_as_a_sequence_of_their_kind() -> None:
    one = Maker("a")
    assert chain.check("these", [one], Maker) == (one,)
    assert chain.check("these", (), Maker) == ()


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        (3, "these is 3; it must be a sequence"),
        ("ab", "these is 'ab'; it must be a sequence"),
        (iter([Maker("a")]), "it must be a sequence"),
        ([Maker("a"), 3], r"these\[1\] is 3; it must be a tests.Maker"),
        ([Maker], r"these\[0\] is the class Maker; give an instance of it"),
    ],
)
def test_what_is_none_is_refused_by_the_name_of_the_argument(given_: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        chain.check("these", given_, Maker)


# --- building -----------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc")))
def test_the_first_interceptor_is_the_outermost(names: list[str]) -> None:
    first = chain.build(Link(None, "."), [Maker(n) for n in names], wrap, Link)
    assert first.names() == "".join(names) + "."


def test_an_interceptor_that_gives_nothing_is_named() -> None:
    with pytest.raises(InvalidArgument, match="Maker gave None; it must be a Link"):
        chain.build(Link(), [Maker("a")], lambda maker, next: None, Link)  # type: ignore


# --- inputs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    a: int
    b: int
    only: int = 0


@dataclass
class Input:
    a: int
    b: int
    own: str


@given(st.integers(), st.integers(), st.integers(), st.integers())
def test_what_an_input_has_no_field_for_is_not_lost(a: int, b: int, only: int, new: int) -> None:
    said = Said(a, b, only)
    input = chain.filled(Input, said, own="x")
    assert (input.a, input.b, input.own) == (a, b, "x")
    assert chain.changed(said, input) == said
    input.b = new
    assert chain.changed(said, input) == Said(a, new, only)


# --- driving ------------------------------------------------------------------------------------


async def twice(call: Callable[[], int]) -> int:
    return await chain.Pause(call) + await chain.Pause(call)


def test_calls_are_made_by_whoever_drives() -> None:
    made: list[int] = []

    def call() -> int:
        made.append(len(made))
        return len(made)

    driven = chain.Driven(twice(call))
    assert made == []  # it has only begun
    assert driven.result() == 3
    assert driven.result() == 3
    assert made == [0, 1]


def test_an_error_of_a_call_is_raised_in_the_coroutine() -> None:
    async def careful() -> str:
        try:
            await twice(lambda: 1 // 0)
        except ZeroDivisionError:
            return "caught"
        return "not raised"

    assert chain.run(careful()) == "caught"
    with pytest.raises(ZeroDivisionError):
        chain.run(twice(lambda: 1 // 0))


def test_what_needs_an_event_loop_is_refused() -> None:
    closed = []

    async def impatient() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="may await nothing but next"):
        chain.run(impatient())
    assert closed == [True]
