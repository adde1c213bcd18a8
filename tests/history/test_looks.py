"""When the queue of a task that nobody speaks of is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.history.worlds import NAMES, World
from tq_broker.history import looks
from tq_broker.history.service import HistoryService
from tq_broker.model.commands import ScheduleActivity
from tq_broker.model.names import QueueName
from tq_broker.model.tasks import Status
from tq_broker.testing.manual_clock import ManualClock

WORKFLOWS, ACTIVITIES = NAMES.workflow("q"), NAMES.activity("q")
ACTIVITY = ScheduleActivity(
    activity_id="1",
    activity_type="a",
    task_queue="q",
    input=b'{"args":[]}',
    schedule_to_close_ms=10**9,
)


def test_pauses_grow_to_a_bound() -> None:
    at, pauses = looks.first_ms(60_000), []
    for _ in range(8):
        following = looks.next_ms(60_000, at)
        pauses.append(following - at)
        at = following
    assert pauses[:3] == [2_400_000, 4_800_000, 9_600_000]
    assert pauses[-1] == looks.PAUSE_MAX_MS


@given(st.integers(0, 1 << 45))
def test_a_first_look_is_at_a_full_minute(published_ms: int) -> None:
    at_ms = looks.first_ms(published_ms)
    assert at_ms % 60_000 == 0
    assert 1_800_000 < looks.FIRST_MS <= at_ms - published_ms < looks.FIRST_MS + 60_000


@pytest.fixture
def world() -> Iterator[World]:
    world = World(ManualClock())
    yield world
    world.close()


@pytest.fixture(autouse=True)
def service(world: World) -> HistoryService:
    return world.service()


def put(world: World, queue: QueueName) -> None:
    """A task gets into ``queue``, which nobody consumes."""
    world.start()
    if queue == ACTIVITIES:
        world.complete(world.workflow_task(), ACTIVITY)
    world.eventually(lambda: world.count(queue) == 1)


def lose(world: World, queue: QueueName) -> None:
    delivery = world.connection.broker.get(str(queue), world.soon())
    assert delivery is not None
    delivery.ack()


def wait(world: World, seconds: float) -> None:
    assert isinstance(world.clock, ManualClock)
    for _ in range(10):
        world.clock.advance(seconds / 10)
        world.clock.advance(0.01)


@pytest.mark.parametrize("queue", [WORKFLOWS, ACTIVITIES], ids=["workflow", "activity"])
def test_a_task_that_its_queue_has_lost_is_published_again(world: World, queue: QueueName) -> None:
    put(world, queue)
    lose(world, queue)
    wait(world, looks.FIRST_MS / 1000 - 60)
    assert world.count(queue) == 0
    wait(world, 180)
    world.eventually(lambda: world.count(queue) == 1)


@pytest.mark.parametrize("queue", [WORKFLOWS, ACTIVITIES], ids=["workflow", "activity"])
def test_a_task_that_waits_is_not_published_again(
    world: World, service: HistoryService, queue: QueueName
) -> None:
    put(world, queue)
    for _ in range(3):
        wait(world, looks.FIRST_MS / 1000)
        world.eventually(lambda: service.is_at_rest)
    assert world.count(queue) == 1


def test_an_attempt_that_runs_is_not_looked_for(world: World) -> None:
    world.start()
    world.complete(world.workflow_task(), ACTIVITY)
    world.report(world.activity_task(), Status.STARTED)
    wait(world, 2 * looks.FIRST_MS / 1000)
    assert world._inboxes[str(ACTIVITIES)].empty()
