from __future__ import annotations

import msgspec
import pytest

from tq_broker.exceptions import Malformed
from tq_broker.model import permits
from tq_broker.model.limits import Side
from tq_broker.model.names import Names, QueueName
from tq_broker.model.permits import Flavor, Ledger, Mint, Permit, place_of


def test_a_permit_and_a_ledger_survive_their_messages() -> None:
    permit = Permit("mint", 3)
    assert permits.read_permit(permits.permit_message(permit, "m")) == permit
    ledger = Ledger((Mint("a", 0, 2),), 17)
    assert permits.read_ledger(permits.ledger_message(ledger, "m")) == ledger


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
