"""What waits in the queues of a task queue is counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worker.worlds import NAMES, QUEUE, World
from tq_broker.client.backlog import counted
from tq_broker.client.observer import Observer
from tq_broker.model.composition import Member
from tq_broker.model.control import WorkerInfo
from tq_broker.model.limits import Side
from tq_broker.model.names import Kind


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def usher(**waiting: int) -> WorkerInfo:
    return WorkerInfo(
        worker_id="w",
        identity="w",
        host="h",
        pid=1,
        started_ms=0,
        task_queues=["q"],
        activities=[],
        slots=1,
        running=0,
        waiting=waiting,
    )


def test_only_what_is_there_is_counted_and_nothing_is_declared(world: World) -> None:
    core, members = world.client.core, [Member(QUEUE), Member(NAMES.priority(QUEUE))]
    assert counted(core, members, (), world.soon()) == {}
    world.start("note")
    (found,) = counted(core, members, (), world.soon()).values()
    assert (found.name, found.kind, found.backlog, found.consumers) == (
        str(QUEUE),
        "activity",
        1,
        0,
    )
    world.start("note", priority=1)
    assert [one.backlog for one in counted(core, members, (), world.soon()).values()] == [1, 1]


def test_what_an_usher_has_in_sight_waits_as_well(world: World) -> None:
    anteroom = Member(NAMES.queue(Kind.ANTEROOM, "q"))
    world.client.connection.sender.ensure([anteroom.queue], world.soon())
    workers = [usher(q=7, other=9), usher()]
    found = counted(world.client.core, [anteroom], workers, world.soon())
    assert found[anteroom].backlog == 7


def test_figures_count_both(world: World) -> None:
    for priority in (None, 1, 5):
        world.start("note", priority=priority)
    told = world.client.describe_task_queue("q").figures
    assert [one.backlog for one in told if one.side is Side.ACTIVITY] == [3]
    observer = Observer(world.client.core)
    assert [one.backlog for one in observer.look(0.0)] == [3]
    observer.close()
