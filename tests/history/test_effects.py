"""Effects are values."""

from __future__ import annotations

import msgspec

from tq_broker.history.effects import Effect, ReplyTo


def test_an_address_travels_in_a_few_bytes() -> None:
    to = ReplyTo("q", "c")
    data = msgspec.msgpack.encode(to)
    assert len(data) == 5
    assert msgspec.msgpack.decode(data, type=ReplyTo) == to


def test_every_effect_is_frozen() -> None:
    for kind in Effect.__args__:
        assert kind.__struct_config__.frozen
