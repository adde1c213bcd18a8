"""The settings log as operators read and write it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worker.worlds import World
from tq_broker.client.settings_book import append, followed
from tq_broker.exceptions import Unavailable
from tq_broker.model.names import Kind
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import TrafficRuleSet

RULE = TrafficRule(id="r", to_task_queue="there")


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_look_declares_nothing(world: World) -> None:
    core = world.client.core
    with followed(core) as log:
        assert log.rules.rules == ()
    assert core.broker.stats(str(core.names.queue(Kind.SETTINGS)), world.soon()) is None


def test_what_is_written_is_read(world: World) -> None:
    core = world.client.core
    append(core, TrafficRuleSet(RULE))
    with followed(core) as log:
        assert log.rules.rules == (RULE,)


def test_what_cannot_be_written_is_an_error(world: World) -> None:
    core = world.client.core
    append(core, TrafficRuleSet(RULE))
    core.broker.close(world.soon())
    with pytest.raises(Unavailable):
        append(core, TrafficRuleSet(RULE))
