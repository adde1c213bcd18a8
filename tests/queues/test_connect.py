"""From a URL to a broker."""

from __future__ import annotations

import pytest

from tq_broker.clock import SystemClock
from tq_broker.exceptions import InvalidArgument
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.connect import broker_for
from tq_broker.queues.memory import MemoryBroker

CLOCK = SystemClock()


def test_the_scheme_says_which_broker() -> None:
    assert isinstance(broker_for("memory://test-connect", CLOCK), MemoryBroker)
    for url in ("amqp://guest:guest@localhost/", "amqps://u:p@host:5671/v"):
        broker = broker_for(url, CLOCK)
        assert isinstance(broker, AmqpBroker)
        broker.close(CLOCK.monotonic() + 5)


@pytest.mark.parametrize(
    "url", ["", "redis://u:secret@h", "u:secret@host", "http://u:secret@h", "AMQP//u:secret@h"]
)
def test_another_scheme_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(InvalidArgument, match="url must begin with one of amqp://") as caught:
        broker_for(url, CLOCK)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("url", [None, 5, b"memory://x"])
def test_a_url_is_a_string(url: object) -> None:
    with pytest.raises(InvalidArgument, match="url must be a string"):
        broker_for(url, CLOCK)  # type: ignore[arg-type]
