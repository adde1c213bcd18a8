"""Delays: the way through the ladder, followed by nothing but the ladder's own bindings."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.queues import topology
from tq_broker.queues.delay import DELAY_MAX_MS, delayed, destination_key
from tq_broker.queues.topology import DELAY_UNIT_MS, BindExchange, BindQueue, DeclareQueue

NAMES = Names("n")
DUE = NAMES.exchange(Exchange.DUE)
LADDER = topology.delay_ladder(NAMES)
delays = st.integers(1, DELAY_MAX_MS)
keys = st.builds(
    lambda parts, kind: NAMES.queue(kind, *parts[: 2 if kind is Kind.HOST else 1]).key,
    st.lists(st.text(min_size=1, max_size=20).filter(str.isprintable), min_size=2, max_size=2),
    st.sampled_from([Kind.ACTIVITY, Kind.HOST]),
)


def matches(pattern: str, key: str) -> bool:
    """Topic matching, for patterns whose only ``#`` is their last word."""
    *words, last = pattern.split(".")
    assert last == "#", "the patterns of the ladder end so"
    given_words = key.split(".")
    return len(given_words) >= len(words) and all(
        word in ("*", given_word) for word, given_word in zip(words, given_words, strict=False)
    )


def waited_ms(publication: Publication) -> tuple[int, str]:
    """How long the ladder holds a message, and under which key it is due."""
    queues = {step.name: step for step in LADDER.steps if isinstance(step, DeclareQueue)}
    total, exchange = 0, publication.exchange
    while exchange != DUE:
        into = [
            step
            for step in LADDER.steps
            if isinstance(step, BindQueue)
            and step.exchange == exchange
            and matches(step.routing_key, publication.routing_key)
        ]
        past = [
            step
            for step in LADDER.steps
            if isinstance(step, BindExchange)
            and step.source == exchange
            and matches(step.routing_key, publication.routing_key)
        ]
        assert len(into) + len(past) == 1, "it is in exactly one place at a time"
        if into:
            arguments = queues[into[0].queue].arguments
            total += arguments["x-message-ttl"]
            exchange = arguments["x-dead-letter-exchange"]
        else:
            exchange = past[0].destination
    return total, publication.routing_key


def publication(key: str = "activity.q") -> Publication:
    return Publication(NAMES.exchange(Exchange.TASKS), key, Message(body=b"", message_id="1"))


@given(delays, keys)
@example(1, "activity.q")
@example(DELAY_MAX_MS, "activity.q")
def test_nothing_is_due_early_nor_later_than_the_next_step(delay_ms: int, key: str) -> None:
    total_ms, due_key = waited_ms(delayed(publication(key), NAMES, delay_ms))
    assert delay_ms <= total_ms < delay_ms + DELAY_UNIT_MS
    assert due_key.endswith(f".{key}")


@given(delays)
def test_a_message_enters_where_it_first_has_to_wait(delay_ms: int) -> None:
    message = delayed(publication(), NAMES, delay_ms)
    into = [
        step
        for step in LADDER.steps
        if isinstance(step, BindQueue)
        and step.exchange == message.exchange
        and matches(step.routing_key, message.routing_key)
    ]
    assert len(into) == 1


@given(delays, keys)
def test_the_destination_is_told_by_the_key(delay_ms: int, key: str) -> None:
    assert destination_key(delayed(publication(key), NAMES, delay_ms).routing_key) == key
    assert destination_key(key) == key


def test_the_destination_of_a_queue_called_0_or_1_is_told_as_well() -> None:
    key = NAMES.queue(Kind.HOST, "1", "0").key
    assert destination_key(delayed(publication(key), NAMES, 1000).routing_key) == key


@given(delays)
def test_the_message_itself_is_not_touched(delay_ms: int) -> None:
    before = publication()
    assert delayed(before, NAMES, delay_ms).message is before.message


@pytest.mark.parametrize("delay_ms", [0, -1, -(10**9)])
def test_no_delay_changes_nothing(delay_ms: int) -> None:
    assert delayed(publication(), NAMES, delay_ms) == publication()


def test_longer_than_the_ladder_is_refused_with_the_bound() -> None:
    with pytest.raises(InvalidArgument, match=str(DELAY_MAX_MS)):
        delayed(publication(), NAMES, DELAY_MAX_MS + 1)


def test_the_longest_key_fits_behind_the_prefix() -> None:
    names = Names("n" * 40)
    key = names.queue(Kind.HOST, "h" * 64, "q" * 100).key
    long = msgspec.structs.replace(publication(), routing_key=key)
    assert len(delayed(long, names, DELAY_MAX_MS).routing_key) <= 255
