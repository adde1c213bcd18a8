from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from tests.model.samples import sample
from tq_broker.exceptions import Malformed
from tq_broker.model import events
from tq_broker.model.events import Event

encode = msgspec.msgpack.encode


@pytest.mark.parametrize("kind", get_args(Event))
def test_an_event_is_stored_and_read_without_a_loss(kind: type) -> None:
    batch = [sample(kind), sample(events.TimerFired)]
    assert events.load_events(events.dump_events(batch)) == batch


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x80", b"\x90\xff"])
def test_what_is_no_batch_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match="history"):
        events.load_events(data)


def test_an_event_of_a_later_release_is_malformed_and_named() -> None:
    beamed: Any = {"type": "WorkflowExecutionBeamed", "event_id": 1, "time_ms": 0}
    with pytest.raises(Malformed, match="WorkflowExecutionBeamed"):
        events.load_events(encode([beamed]))


def test_a_field_of_a_later_release_does_no_harm() -> None:
    fired = events.TimerFired(event_id=5, time_ms=7, timer_id="1", started_event_id=4)
    later = msgspec.to_builtins(fired) | {"of_the_future": [1]}
    assert events.load_events(encode([later])) == [fired]


def test_every_event_of_the_module_is_in_the_union_under_its_own_name() -> None:
    known = set(get_args(Event))
    here = {
        value
        for value in vars(events).values()
        if isinstance(value, type) and issubclass(value, events.Base) and value is not events.Base
    }
    assert known == here
    assert all(kind.__struct_config__.tag == kind.__name__ for kind in known)
    assert set(events.CLOSING) < known
