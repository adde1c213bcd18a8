from __future__ import annotations

from tq_broker.history.flights import Flights, Group
from tq_broker.history.transaction import Sending


class FakeDelivery:
    def __init__(self) -> None:
        self.settled: list[str] = []

    def ack(self) -> None:
        self.settled.append("ack")

    def reject(self, *, requeue: bool) -> None:
        self.settled.append("back" if requeue else "dead")


def group(left: int) -> tuple[FakeDelivery, Group]:
    delivery = FakeDelivery()
    return delivery, Group([delivery], left)  # type: ignore[list-item]


def test_a_delivery_is_acknowledged_when_all_has_arrived() -> None:
    delivery, waiting = group(2)
    waiting.ended()
    assert not delivery.settled
    waiting.ended()
    assert delivery.settled == ["ack"]


def test_nothing_follows() -> None:
    assert group(0)[0].settled == ["ack"]


def test_what_is_lost_comes_again() -> None:
    delivery, waiting = group(2)
    waiting.failed()
    waiting.ended()
    waiting.ended()
    assert delivery.settled == ["back"]


def test_rows_that_were_sent_are_known_until_they_are_removed() -> None:
    flights = Flights()
    one, two, unstored = Sending("a", 3, 10), Sending("b", 3, 11), Sending("c", 3)
    for sending in (one, two, unstored):
        flights.begin(sending, None)
    assert flights.is_busy(3)
    assert flights.sent_since is None
    flights.end(one, 5.0)
    flights.end(unstored, 6.0)
    assert flights.known(3) == {10, 11}
    assert flights.sent_since == 5.0
    assert flights.take_sent() == [(3, 10)]
    assert flights.sent_count == 0
    flights.put_back([(3, 10)])
    assert flights.sent_count == 1
    assert not flights.is_flying(one)
    assert flights.is_flying(two)


def test_what_is_to_be_sent_again() -> None:
    flights = Flights()
    one, two = Sending("a", 1, 1), Sending("b", 2, 1)
    flights.begin(one, None)
    flights.begin(two, None)
    flights.postpone(one, 1.0)
    flights.postpone(two, 2.0)
    assert flights.due_at == 1.0
    assert flights.take_due(1.5) == [one]
    assert flights.take_due(1.5) == []
    assert flights.due_at == 2.0


def test_what_is_stored_can_be_waited_for_by_nobody() -> None:
    flights = Flights()
    stored, direct = Sending("a", 1, 1), Sending("b", 1)
    first, for_stored = group(1)
    second, for_direct = group(1)
    flights.begin(stored, for_stored)
    flights.begin(direct, for_direct)
    for _ in range(2):
        flights.unburden(stored)
        flights.unburden(direct)
    assert first.settled == ["ack"]
    assert not second.settled
    assert flights.is_flying(stored)
    flights.end(stored, 1.0)
    flights.end(direct, 1.0)
    assert (first.settled, second.settled) == (["ack"], ["ack"])


def test_a_shard_that_is_lost() -> None:
    flights = Flights()
    stored, direct, other = Sending("a", 1, 1), Sending("b", 1), Sending("c", 2, 1)
    first, for_stored = group(1)
    second, for_direct = group(1)
    flights.begin(stored, for_stored)
    flights.begin(direct, for_direct)
    flights.begin(other, None)
    flights.postpone(stored, 1.0)
    flights.postpone(other, 1.0)
    flights.put_back([(1, 7), (2, 7)])
    flights.lose({1})
    assert first.settled == ["ack"]
    assert second.settled == ["back"]
    assert not flights.is_flying(stored)
    assert flights.take_due(1.0) == [other]
    assert flights.take_sent() == [(2, 7)]
