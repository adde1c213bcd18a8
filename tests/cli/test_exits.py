from __future__ import annotations

import pytest

from tq_broker import exceptions
from tq_broker.cli import exits
from tq_broker.stores.store import SchemaMismatch, StoreRefused, StoreUnavailable


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (exceptions.BrokerUnavailable("x"), 3),
        (exceptions.DeadlineExceeded("x"), 3),
        (exceptions.AccessRefused("x"), 4),
        (exceptions.NotFound("x"), 5),
        (exceptions.TargetGone("x"), 5),
        (exceptions.InvalidArgument("x"), 2),
        (exceptions.Bug("x"), 1),
        (StoreUnavailable("x"), 3),
        (StoreRefused("x"), 4),
        (SchemaMismatch("x"), 2),
    ],
)
def test_the_code_tells_who_must_act(error: exceptions.TqBrokerError, code: int) -> None:
    assert exits.code_of(error) == code


def test_a_message_is_one_line_and_says_what_to_do() -> None:
    assert exits.message_of(exceptions.NotFound("no\n  such")) == "no such"
    assert exits.message_of(exceptions.BrokerUnavailable("gone")) == "gone; see: tq-broker doctor"
    assert exits.message_of(exceptions.Bug()) == "Bug"
    assert exits.message_of(StoreUnavailable("gone")) == "gone"
    assert exits.message_of(StoreRefused("no login")) == "no login"


def test_the_table_has_every_code() -> None:
    codes = {value for value in vars(exits).values() if isinstance(value, int)}
    for code in codes - {exits.INTERRUPTED}:
        assert f"\n  {code}  " in exits.TABLE
