from __future__ import annotations

from collections import Counter
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.samples import sample
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model import requests
from tq_broker.model.failure import Failure, FailureKind
from tq_broker.model.requests import Reply, Request


@pytest.mark.parametrize("kind", get_args(Request))
def test_a_request_travels_without_a_loss(kind: type) -> None:
    request = sample(kind)
    message = requests.request_message(request, "m1", reply_to="q", correlation_id="c")
    assert (message.message_id, message.reply_to, message.correlation_id) == ("m1", "q", "c")
    assert requests.read_request(message) == request


@pytest.mark.parametrize("kind", get_args(Reply))
def test_an_answer_travels_without_a_loss(kind: type) -> None:
    reply = sample(kind)
    message = requests.reply_message(reply, "m1", "c")
    assert message.correlation_id == "c"
    assert requests.read_reply(message) == reply


@pytest.mark.parametrize(
    "change",
    [{"kind": "control"}, {"headers": {}}, {"headers": {"tq-protocol": 99}}, {"body": b"\xc1"}],
)
def test_what_is_neither_is_malformed(change: dict[str, object]) -> None:
    request = requests.request_message(requests.ShardStatus(), "m1")
    reply = requests.reply_message(requests.Done(), "m1", "c")
    with pytest.raises(Malformed):
        requests.read_request(msgspec.structs.replace(request, **change))
    with pytest.raises(Malformed):
        requests.read_reply(msgspec.structs.replace(reply, **change))


def test_a_request_is_no_answer() -> None:
    with pytest.raises(Malformed):
        requests.read_reply(requests.request_message(requests.ShardStatus(), "m1"))


def test_shards_never_move() -> None:
    # These numbers are where workflows of older releases are.
    found = [requests.shard_of(name) for name in ("", "a", "order-17", "ä", "x" * 1000)]
    assert found == [5, 5, 2, 15, 1]


@given(st.text())
def test_there_is_a_shard_for_every_id(workflow_id: str) -> None:
    assert 0 <= requests.shard_of(workflow_id) < requests.SHARDS


def test_ids_are_spread_evenly() -> None:
    counts = Counter(requests.shard_of(f"order-{number}") for number in range(16_000))
    assert len(counts) == requests.SHARDS
    assert max(counts.values()) < 1.15 * min(counts.values())


def deep() -> list[object]:
    value: list[object] = []
    for _ in range(5_000):
        value = [value]
    return value


@pytest.mark.parametrize("detail", ["\ud800", 2**64, object(), deep()], ids=type)
def test_what_cannot_be_sent_is_an_argument_of_the_callers(detail: object) -> None:
    why = Failure(kind=FailureKind.APPLICATION, message="x", details=[detail])
    with pytest.raises(InvalidArgument):
        requests.reply_message(requests.UpdateState("u", "r", 3, failure=why), "m1", "c")
