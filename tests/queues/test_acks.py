from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.queues.acks import AckLedger

CHANNEL = 5


def read(data: bytes) -> list[tuple[str, int, int]]:
    """The frames as (method, tag, bits)."""
    names = {80: "ack", 90: "reject", 120: "nack"}
    frames = []
    for at in range(0, len(data), 21):
        kind, channel, size, _, method, tag, bits, end = struct.unpack_from(">BHIHHQBB", data, at)
        assert (kind, channel, size, end) == (1, CHANNEL, 13, 0xCE)
        frames.append((names[method], tag, bits))
    return frames


def ledger(delivered: int) -> AckLedger:
    ledger = AckLedger(CHANNEL)
    for tag in range(1, delivered + 1):
        ledger.delivered(tag)
    return ledger


def test_a_prefix_is_one_multiple_ack_and_the_others_are_single() -> None:
    book = ledger(10)
    assert read(book.acked([3, 1, 2, 7, 9])) == [("ack", 3, 1), ("ack", 7, 0), ("ack", 9, 0)]
    assert book.held == 5


def test_a_gap_that_closes_takes_what_was_settled_above_it_along() -> None:
    book = ledger(6)
    book.acked([2, 3])
    # 3 is settled already, and a tag that RabbitMQ does not know any more closes the channel.
    assert read(book.acked([1])) == [("ack", 1, 0)]
    assert read(book.acked([5, 4])) == [("ack", 5, 1)]
    assert book.held == 1


def test_settling_twice_is_told_once() -> None:
    book = ledger(3)
    assert read(book.acked([1, 1])) == [("ack", 1, 0)]
    assert book.acked([1]) == b""
    assert book.rejected([(1, True)]) == b""


def test_a_tag_that_was_never_delivered_is_not_told() -> None:
    assert ledger(1).acked([2]) == b""


def test_giving_back_is_a_nack_and_giving_up_a_reject() -> None:
    book = ledger(3)
    assert read(book.rejected([(2, True), (3, False)])) == [("nack", 2, 2), ("reject", 3, 0)]
    assert read(book.acked([1])) == [("ack", 1, 0)]
    assert book.held == 0


@given(st.data())
def test_rabbitmq_learns_of_each_delivery_once_and_as_it_was_meant(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    book = ledger(count)
    order = data.draw(st.permutations(range(1, count + 1)))
    meant: dict[int, str] = {}
    unknown = set(range(1, count + 1))  # what RabbitMQ holds as unacknowledged
    told: dict[int, str] = {}
    while order:
        size = data.draw(st.integers(1, len(order)))
        turn, order = order[:size], order[size:]
        kinds = {tag: data.draw(st.sampled_from(["ack", "nack", "reject"])) for tag in turn}
        meant |= kinds
        rejects = [(tag, kind == "nack") for tag, kind in kinds.items() if kind != "ack"]
        acks = [tag for tag, kind in kinds.items() if kind == "ack"]
        frames = read(book.rejected(rejects)) + read(book.acked(acks))
        assert len(frames) <= size
        for method, tag, bits in frames:
            assert tag in unknown, "an unknown tag closes the channel"
            covered = {t for t in unknown if t <= tag} if method == "ack" and bits else {tag}
            unknown -= covered
            told |= dict.fromkeys(covered, method)
        assert book.held == len(unknown)
    assert told == meant
