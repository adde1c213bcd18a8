"""The values of the port; the port itself is tried by ``tests/contracts/broker.py``."""

from __future__ import annotations

import pytest

from tq_broker.queues.broker import Receipt, SubscribeOptions, Verdict
from tq_broker.queues.topology import Plan


def test_a_subscription_needs_nothing_but_its_prefetch() -> None:
    options = SubscribeOptions(prefetch=5)
    assert (options.plan, options.exclusive, dict(options.arguments)) == (Plan(()), False, {})
    with pytest.raises(TypeError):
        SubscribeOptions()  # type: ignore[call-arg]


def test_a_receipt_is_a_value() -> None:
    assert Receipt(Verdict.CONFIRMED) == Receipt(Verdict.CONFIRMED, "")
    assert Receipt(Verdict.CONFIRMED) != Receipt(Verdict.RETURNED)
