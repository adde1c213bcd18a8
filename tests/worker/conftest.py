"""Clients and workers on one broker in memory, for each test anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worker.worlds import World
from tq_broker.testing.manual_clock import ManualClock


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def timed() -> Iterator[World]:
    """A world whose time passes only when it is told to."""
    world = World(ManualClock())
    yield world
    world.close()
