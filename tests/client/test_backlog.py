"""What waits in both queues of a task queue is counted together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worker.worlds import NAMES, QUEUE, World
from tq_broker.client.backlog import stats_of
from tq_broker.client.observer import Observer
from tq_broker.model.limits import Side
from tq_broker.queues.broker import QueueStats

PRIORITIZED = frozenset({("activity", "q")})


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_task_queue_that_is_not_there_has_no_counts(world: World) -> None:
    assert stats_of(world.client.core, QUEUE, PRIORITIZED, world.soon()) is None


def test_both_queues_count(world: World) -> None:
    core = world.client.core
    world.start("note")
    assert stats_of(core, QUEUE, PRIORITIZED, world.soon()) == QueueStats(1, 0)
    world.start("note", priority=1)
    assert world.count(NAMES.priority(QUEUE)) == 1
    assert stats_of(core, QUEUE, PRIORITIZED, world.soon()) == QueueStats(2, 0)
    assert stats_of(core, QUEUE, frozenset(), world.soon()) == QueueStats(1, 0)


def test_figures_count_both(world: World) -> None:
    for priority in (None, 1, 5):
        world.start("note", priority=priority)
    told = world.client.describe_task_queue("q").figures
    assert [one.backlog for one in told if one.side is Side.ACTIVITY] == [3]
    observer = Observer(world.client.core)
    assert [one.backlog for one in observer.look(0.0)] == [3]
    observer.close()
