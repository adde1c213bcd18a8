from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from tq_broker.exceptions import TqBrokerError
from tq_broker.history.patience import SAID_AGAIN_S, Halted, Patience
from tq_broker.stores.store import Conflict, OutcomeUnknown, StoreRefused, StoreUnavailable
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


def test_that_the_store_is_away_is_said_again_and_not_too_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = EagerClock()
    patience = Patience(clock, threading.Event())
    tries = 0

    def call() -> str:
        nonlocal tries
        tries += 1
        clock.advance(1.0)
        if tries <= 3 * SAID_AGAIN_S:
            raise StoreRefused("no such table")
        return "done"

    with caplog.at_level(logging.INFO):
        assert patience.insist(call) == "done"
        assert patience.insist(lambda: "done") == "done"
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["ERROR"] * 3 + ["WARNING"]
    assert "no such table" in said[0][1]
    assert "(30 s so far)" in said[1][1]
    assert "the store is back, after 90" in said[-1][1]
