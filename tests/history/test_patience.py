from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tq_broker.exceptions import TqBrokerError
from tq_broker.history.patience import Halted, Patience
from tq_broker.stores.store import Conflict, OutcomeUnknown, StoreUnavailable
from tq_broker.testing.manual_clock import ManualClock


class EagerClock(ManualClock):
    """What is booked for later happens at once."""

    def call_at(self, deadline: float, callback: Callable[[], None]):  # type: ignore[no-untyped-def]
        callback()
        return super().call_at(deadline, callback)


def failing(*errors: TqBrokerError) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_it_asks_until_the_store_is_there() -> None:
    patience = Patience(EagerClock(), threading.Event())
    assert patience.insist(failing(StoreUnavailable("a"), StoreUnavailable("b"))) == "done"


def test_other_errors_are_not_waited_for() -> None:
    patience = Patience(EagerClock(), threading.Event())
    with pytest.raises(Conflict):
        patience.insist(failing(Conflict("x")))
    with pytest.raises(OutcomeUnknown):
        patience.insist(failing(OutcomeUnknown("x")))
    assert patience.insist(failing(OutcomeUnknown("x")), OutcomeUnknown) == "done"


def test_it_ends_when_nobody_waits_any_more() -> None:
    over = threading.Event()
    over.set()
    patience = Patience(ManualClock(), over)
    assert patience.insist(failing()) == "done"
    with pytest.raises(Halted):
        patience.insist(failing(StoreUnavailable("a")))
