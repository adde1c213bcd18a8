"""The settings log as operators read and write it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worker.worlds import World
from tq_broker.client.settings_book import append, followed
from tq_broker.exceptions import Unavailable
from tq_broker.model.deployments import VersionServes
from tq_broker.model.names import Kind


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_look_declares_nothing(world: World) -> None:
    core = world.client.core
    with followed(core) as log:
        assert log.deployments.by_name == {}
    assert core.broker.stats(str(core.names.queue(Kind.SETTINGS)), world.soon()) is None


def test_what_is_written_is_read_and_followed(world: World) -> None:
    core = world.client.core
    append(core, VersionServes("shop", "v1", "activity", "q", 1))
    with followed(core) as log:
        assert log.deployments.knows("shop.v1")
        append(core, VersionServes("shop", "v2", "activity", "q", 1))
        assert log.wait_until(lambda found: found.knows("shop.v2"), world.soon())


def test_what_cannot_be_written_is_an_error(world: World) -> None:
    core = world.client.core
    append(core, VersionServes("shop", "v1", "activity", "q", 1))
    core.broker.close(world.soon())
    with pytest.raises(Unavailable):
        append(core, VersionServes("shop", "v2", "activity", "q", 1))
