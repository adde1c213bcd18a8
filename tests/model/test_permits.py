from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import Malformed
from tq_broker.model import permits
from tq_broker.model.limits import BURST_MAX, RATE_MAX, RATE_MIN, Limits, Side
from tq_broker.model.names import Names, QueueName
from tq_broker.model.permits import (
    PERMITS_MIN,
    PERMITS_PER_S,
    Flavor,
    Issue,
    Ledger,
    Mint,
    Permit,
    Refund,
    issue_of,
    place_of,
)


def test_a_permit_and_a_ledger_survive_their_messages() -> None:
    permit = Permit("mint", 3)
    assert permits.read_permit(permits.permit_message(permit, "m")) == permit
    ledger = Ledger((Mint("a", 0, 2),), 17)
    assert permits.read_ledger(permits.ledger_message(ledger, "m")) == ledger


@given(st.floats(RATE_MIN, RATE_MAX), st.integers(1, BURST_MAX))
def test_the_permits_of_a_rate_are_few_and_never_more_than_it_allows(
    rate: float, burst: int
) -> None:
    issue = issue_of(Flavor.RATE, Limits(rate=rate, burst=burst))
    assert issue is not None
    assert issue.rate is not None
    assert issue.rate * issue.units == pytest.approx(rate)
    assert issue.size >= 1
    assert burst * (1 - 1 / PERMITS_MIN) <= issue.size * issue.units <= burst
    assert issue.units == 1 or rate > PERMITS_PER_S
    assert issue.rate <= PERMITS_PER_S or issue.units == burst // PERMITS_MIN or issue.units == 1


def test_a_permit_is_for_one_begin_unless_the_rate_is_high() -> None:
    assert issue_of(Flavor.RATE, Limits(rate=10.0)) == Issue(11, 10.0)
    assert issue_of(Flavor.RATE, Limits(rate=1000.0)) == Issue(100, 100.0, 10)
    assert issue_of(Flavor.RATE, Limits(rate=1000.0, burst=1)) == Issue(1, 1000.0)
    assert issue_of(Flavor.CONCURRENCY, Limits(concurrency=7)) == Issue(7)
    assert issue_of(Flavor.CONCURRENCY, Limits(rate=1.0)) is None
    assert issue_of(Flavor.RATE, Limits(concurrency=1)) is None


def test_units_and_refunds_have_bounds() -> None:
    assert permits.read_refund(permits.refund_message(Refund(3), "m")).units == 3
    for units in (0, permits.UNITS_MAX + 1):
        with pytest.raises(Malformed, match=f"refund of {units} units"):
            permits.read_refund(permits.refund_message(Refund(units), "m"))
        with pytest.raises(Malformed, match=f"permit of {units} units"):
            permits.read_permit(permits.permit_message(Permit("a", 0, units), "m"))


def test_foreign_messages_are_malformed() -> None:
    message = permits.permit_message(Permit("mint", -1), "m")
    with pytest.raises(Malformed, match="rank -1"):
        permits.read_permit(message)
    with pytest.raises(Malformed, match="'baton' is not a permit"):
        permits.read_permit(permits.baton_message("m"))
    with pytest.raises(Malformed, match="ledger:"):
        permits.read_ledger(
            msgspec.structs.replace(permits.ledger_message(Ledger(), "m"), body=b"[")
        )


def test_a_ledger_knows_what_was_made() -> None:
    ledger = Ledger((Mint("a", 0, 2), Mint("b", 2, 3)))
    assert ledger.total == 5
    assert ledger.knows(Permit("a", 1))
    assert ledger.knows(Permit("b", 4))
    assert not ledger.knows(Permit("a", 2)), "made by somebody who died over it"
    assert not ledger.knows(Permit("c", 0))
    assert Ledger().total == 0


def test_each_limit_has_queues_of_its_own_whose_names_can_be_read() -> None:
    names = Names("n")
    places = [place_of(names, flavor, side, "a.b") for flavor in Flavor for side in Side]
    queues = [queue for place in places for queue in (place.permits, place.bank, place.ledger)]
    assert len(set(queues)) == 12
    assert all(QueueName.parse(str(queue)) == queue for queue in queues)
