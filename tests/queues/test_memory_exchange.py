"""Which bindings a routing key meets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument
from tq_broker.queues.memory_exchange import Destination, MemoryExchange, topic_matches

A, B = Destination.queue("a"), Destination.queue("b")


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("*", "", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.#.c", "a.b.b", False),
        ("#.*.z", "z", False),
        ("#.*.z", "y.z", True),
        ("#.a.#", "b.a.b", True),
        ("*.*.1.#", "0.0.1.key", True),
        ("*.*.1.#", "0.1.0.key", False),
        ("", "", True),
        ("", "a", False),
        ("a..b", "a..b", True),
    ],
)
def test_a_pattern_meets_keys_word_by_word(pattern: str, key: str, expected: bool) -> None:
    assert topic_matches(pattern, key) is expected


words = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6)
plain = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=6)


@given(words, plain)
def test_a_pattern_means_the_same_as_its_regular_expression(
    pattern: list[str], key: list[str]
) -> None:
    parts = {"*": r"\.[a-z]+", "#": r"(?:\.[a-z]+)*"}
    expression = "".join(parts.get(word, rf"\.{word}") for word in pattern)
    expected = re.fullmatch(expression, "." + ".".join(key)) is not None
    assert topic_matches(".".join(pattern), ".".join(key)) is expected


def test_a_direct_exchange_wants_the_very_key() -> None:
    exchange = MemoryExchange("x", "direct", {})
    assert exchange.bind(A, "#")
    assert exchange.bind(B, "k")
    assert exchange.match("k") == [B]
    assert exchange.match("#") == [A]


def test_a_fanout_exchange_reaches_each_destination_once() -> None:
    exchange = MemoryExchange("x", "fanout", {})
    exchange.bind(A, "one")
    exchange.bind(A, "two")
    exchange.bind(B, "")
    assert exchange.match("any") == [A, B]


def test_a_destination_met_by_two_patterns_is_met_once() -> None:
    exchange = MemoryExchange("x", "topic", {})
    exchange.bind(A, "#")
    exchange.bind(A, "k.*")
    assert exchange.match("k.v") == [A]


def test_binding_twice_is_binding_once() -> None:
    exchange = MemoryExchange("x", "direct", {})
    assert exchange.bind(A, "k")
    assert not exchange.bind(A, "k")
    assert exchange.unbind(A, "k")
    assert not exchange.unbind(A, "k")
    assert exchange.match("k") == []


def test_a_destination_that_is_gone_is_bound_nowhere() -> None:
    exchange = MemoryExchange("x", "direct", {})
    exchange.bind(A, "k")
    exchange.bind(A, "l")
    exchange.bind(B, "k")
    assert exchange.forget(A)
    assert not exchange.forget(A)
    assert (exchange.match("k"), exchange.match("l")) == ([B], [])


def test_a_queue_and_an_exchange_of_one_name_are_two_destinations() -> None:
    assert Destination.queue("n") != Destination.exchange("n")
    assert Destination.exchange("n").is_exchange
    assert Destination.queue("n").name == "n"


def test_it_knows_its_alternate() -> None:
    assert MemoryExchange("x", "topic", {"alternate-exchange": "y"}).alternate == "y"
    assert MemoryExchange("x", "topic", {}).alternate is None


def test_a_type_that_we_do_not_have_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="headers"):
        MemoryExchange("x", "headers", {})
