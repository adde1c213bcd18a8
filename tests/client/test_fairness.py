from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.worker.worlds import World
from tq_broker.client.fairness import FairnessOperations
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import Kind
from tq_broker.model.settings import WEIGHTS_MAX


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_look_at_what_nobody_has_used_declares_nothing(world: World) -> None:
    told = FairnessOperations(world.client.core).look("q")
    assert (told.sides, told.weights) == ((), {"activity": (), "workflow": ()})
    settings = world.client.connection.names.queue(Kind.SETTINGS)
    assert world.broker.stats(str(settings), world.soon()) is None


def test_weights_are_set_by_side_and_taken_back(world: World) -> None:
    operations = FairnessOperations(world.client.core)
    (record,) = operations.set_weights("q", {"acme": 2.5}, reason="paid for", side="activity")
    assert (record.by, record.reason) == ("client", "paid for")
    operations.set_weights("q", {"acme": 3.0, "b": 1.0}, side="workflow")
    told = operations.look("q").weights
    assert {side: [one.key for one in found] for side, found in told.items()} == {
        "activity": ["acme"],
        "workflow": ["acme", "b"],
    }
    operations.set_weights("q", {"acme": None, "b": None})
    assert operations.look("q").weights == {"activity": (), "workflow": ()}


@pytest.mark.parametrize(
    ("weights", "options", "why"),
    [
        ({"": 1.0}, {}, "the key of a weight has 0 bytes"),
        ({"a": 0.0}, {}, "the weight of 'a' is 0.0; it must be a number from 0.001 to 1000"),
        ({"a": 1.0}, {"side": "both"}, "side is 'both'; it must be one of activity, workflow"),
        ({"a": 1.0}, {"reason": "x" * 2000}, "reason is 2000 bytes long"),
        (
            {f"k{n}": 1.0 for n in range(WEIGHTS_MAX + 1)},
            {},
            "1001 keys of task queue 'q' would have weights of their own; the bound is 1000",
        ),
    ],
)
def test_bad_weights_are_refused_and_nothing_is_recorded(
    world: World, weights: dict[str, float], options: dict[str, Any], why: str
) -> None:
    operations = FairnessOperations(world.client.core)
    with pytest.raises(InvalidArgument) as caught:
        operations.set_weights("q", weights, **options)
    assert why in str(caught.value)
    assert operations.look("q").weights == {"activity": (), "workflow": ()}
