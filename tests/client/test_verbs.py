"""Pausing, resuming, moving and copying, on the broker in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.worlds import NAMES, SOON_S, World
from tq_broker import activity
from tq_broker.client import BlockingClient, Client
from tq_broker.client.transfer import Transferred
from tq_broker.common import Route
from tq_broker.exceptions import InvalidArgument, NotFound
from tq_broker.model.control import WorkerInfo
from tq_broker.model.names import QueueName
from tq_broker.queues.broker import Delivery

ran: list[int] = []


@activity.defn
def work(number: int) -> int:
    ran.append(number)
    return number


@activity.defn
def rest() -> None: ...


@pytest.fixture
def world() -> Iterator[World]:
    ran.clear()
    world = World()
    yield world
    world.close()


def start(world: World, count: int = 1, task_queue: str = "q", what: Any = work) -> None:
    calls = [(number,) if what is work else () for number in range(count)]
    world.client.start_activities(
        what,
        calls,
        task_queue=task_queue,
        wait_result=False,
        start_to_close_timeout=timedelta(minutes=1),
    )


def all_of(world: World, queue: QueueName) -> list[Delivery]:
    found = []
    while one := world.broker.get(str(queue), world.soon()):
        found.append(one)
    return found


# --- pausing --------------------------------------------------------------------------------------


def test_a_paused_task_queue_is_consumed_by_nobody_and_loses_nothing(world: World) -> None:
    world.worker(work, worker_id="w1", host="h1")
    assert world.run(work, 1) == 1
    # Given a pause
    record = world.client.pause_task_queue("q", "the server is down")
    assert (record.by, record.reason, record.side) == ("client", "the server is down", "")
    world.eventually(lambda: consumers(world) == 0)
    # When tasks are added, also for the host
    handles = [world.start(work, number) for number in range(2, 7)]
    handles.append(world.start(work, 7, route=Route.host("h1")))
    world.eventually(lambda: world.count() == 5)
    # Then they wait, and it is told why
    (told,) = world.client.list_task_queues()
    assert told.pause == record
    assert (told.backlog, told.consumers) == (6, 0)
    waits = {(one.kind, one.target): one.backlog for one in told.queues}
    assert waits == {("activity", ""): 5, ("host", "h1"): 1}
    description = world.client.describe_task_queue("q")
    assert description.summary.pause == record
    assert paused_of(description.workers) == [["q"]]
    # And a worker that starts later does not take them either
    world.worker(work)
    assert ran == [1]
    # Until it is resumed
    world.client.resume_task_queue("q")
    assert [handle.result(SOON_S) for handle in handles] == [2, 3, 4, 5, 6, 7]
    assert world.client.describe_task_queue("q").summary.pause is None


def consumers(world: World, task_queue: str = "q") -> int:
    stats = world.broker.stats(str(NAMES.activity(task_queue)), world.soon())
    return 0 if stats is None else stats.consumers


def paused_of(workers: tuple[WorkerInfo, ...]) -> list[list[str]]:
    return [worker.paused for worker in workers]


def test_other_task_queues_get_the_slots_of_a_paused_one(world: World) -> None:
    world.worker(work, task_queues=["a", "b"], max_concurrent_activities=1)
    world.client.pause_task_queue("a")
    world.eventually(lambda: consumers(world, "a") == 0)
    start(world, 3, "a")
    assert world.run(work, 9, task_queue="b") == 9
    assert world.count(NAMES.activity("a")) == 3
    world.client.resume_task_queue("a")
    world.eventually(lambda: sorted(ran) == [0, 1, 2, 9])


def test_each_side_is_paused_for_itself(world: World) -> None:
    start(world)
    world.client.pause_task_queue("q", side="activity")
    with pytest.raises(NotFound, match="the workflow side of task queue 'q' is not paused"):
        world.client.resume_task_queue("q", side="workflow")
    world.client.resume_task_queue("q", side="activity")
    with pytest.raises(NotFound, match="task queue 'q' is not paused"):
        world.client.resume_task_queue("q")


def test_bad_pauses_are_refused(world: World) -> None:
    pause = world.client.pause_task_queue
    with pytest.raises(NotFound, match="there is no task queue 'typo'"):
        pause("typo")
    start(world)
    for arguments, why in (
        (("",), "task_queue"),
        (("q", "a\nb"), "reason"),
        (("q", "x" * 1001), "reason"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            pause(*arguments)
    with pytest.raises(InvalidArgument, match="it must be one of activity, workflow"):
        pause("q", side="both")
    assert world.client.describe_task_queue("q").summary.pause is None


# --- moving ---------------------------------------------------------------------------------------


def test_a_backlog_moves_in_order_as_fresh_as_it_was(world: World) -> None:
    start(world, 250)
    start(world, 0, "r")
    seen: list[Transferred] = []
    told = world.client.move_tasks("q", "r", create=True, on_progress=seen.append)
    assert (told.waiting, told.seen, told.done, told.types) == (250, 250, 250, {"work": 250})
    assert [one.done for one in seen] == [100, 200, 250]
    assert world.count() == 0
    moved = all_of(world, NAMES.activity("r"))
    assert not any(delivery.redelivered for delivery in moved)
    assert [d.message.body for d in moved] == [b'{"args":[%d]}' % n for n in range(250)]
    assert not any("tq-transfer" in d.message.headers for d in moved)


def test_who_waits_gets_the_outcome_of_a_moved_task(world: World) -> None:
    handle = world.start(work, 5)
    world.worker(work, task_queues=["r"])
    world.client.move_tasks("q", "r")
    assert handle.result(SOON_S) == 5


def test_a_limit_and_a_dry_run(world: World) -> None:
    start(world, 5)
    dry = world.client.move_tasks("q", "r", create=True, dry_run=True)
    assert (dry.done, dry.is_dry, world.count()) == (5, True, 5)
    assert world.client.move_tasks("q", "r", create=True, limit=3, dry_run=True).done == 3
    assert world.broker.stats(str(NAMES.activity("r")), world.soon()) is None
    assert world.client.move_tasks("q", "r", create=True, limit=3).done == 3
    assert (world.count(), world.count(NAMES.activity("r"))) == (2, 3)


def test_only_some_types_move_and_the_others_keep_their_order(world: World) -> None:
    for _ in range(3):
        start(world, 2)
        start(world, 1, what=rest)
    dry = world.client.move_tasks("q", "r", types=["re*"], create=True, dry_run=True)
    assert (dry.done, dry.seen, dry.types) == (3, 9, {"rest": 3})
    told = world.client.move_tasks("q", "r", types=["re*"], create=True)
    assert (told.done, told.seen, told.types, told.complete) == (3, 9, {"rest": 3}, True)
    left = all_of(world, NAMES.activity("q"))
    assert [d.message.body for d in left] == [b'{"args":[0]}', b'{"args":[1]}'] * 3
    assert not any(delivery.redelivered for delivery in left)


def test_a_task_that_was_handed_out_before_stays_a_lost_attempt(world: World) -> None:
    handle = world.start(work, 1)
    taken = world.broker.get(str(NAMES.activity("q")), world.soon())
    assert taken is not None
    taken.reject(requeue=True)
    world.client.move_tasks("q", "r", create=True)
    (moved,) = all_of(world, NAMES.activity("r"))
    assert moved.message.headers["tq-handed-out"] == 1
    moved.ack()
    # Moved on by hand, so that RabbitMQ's own mark is gone.
    world.publish(moved.message, NAMES.activity("r"))
    world.worker(work, task_queues=["r"])
    assert handle.result(SOON_S) == 1
    assert ran == [1]


def test_it_moves_while_workers_consume_on_both_sides(world: World) -> None:
    start(world, 600)
    world.worker(work, max_concurrent_activities=2)
    world.worker(work, task_queues=["r"], max_concurrent_activities=2)
    told = world.client.move_tasks("q", "r")
    assert told.done <= 600
    world.eventually(lambda: len(ran) == 600)
    assert sorted(ran) == list(range(600))


def test_bad_moves_are_refused(world: World) -> None:
    start(world, 2)
    move = world.client.move_tasks
    with pytest.raises(NotFound, match=r"no task queue 'typo'.*say create"):
        move("q", "typo")
    with pytest.raises(NotFound, match="no task queue 'typo'"):
        move("typo", "q")
    for keywords, why in (
        ({"limit": 0}, "limit is 0"),
        ({"limit": True}, "limit is True"),
        ({"types": "work"}, "sequence of patterns"),
        ({"types": [""]}, "types"),
        ({"side": "x"}, "side"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            move("q", "r", create=True, **keywords)
    with pytest.raises(InvalidArgument, match="same task queue"):
        move("q", "q")
    assert world.count() == 2


# --- copying --------------------------------------------------------------------------------------


def test_copies_are_nobody_elses_and_the_originals_stay(world: World) -> None:
    handles = [world.start(work, number, id=f"id-{number}") for number in range(3)]
    told = world.client.copy_tasks("q", "r", create=True)
    assert (told.done, world.count(), world.count(NAMES.activity("r"))) == (3, 3, 3)
    copies = all_of(world, NAMES.activity("r"))
    assert [c.message.body for c in copies] == [b'{"args":[%d]}' % n for n in range(3)]
    assert {c.message.reply_to for c in copies} == {None}
    assert [c.message.headers["tq-copy-of"] for c in copies] == ["id-0", "id-1", "id-2"]
    assert len({c.message.message_id for c in copies}) == 3
    assert not any("tq-id-retention-ms" in c.message.headers for c in copies)
    world.worker(work)
    assert [handle.result(SOON_S) for handle in handles] == [0, 1, 2]


def test_a_copy_that_was_interrupted_goes_on(world: World) -> None:
    start(world, 10)
    first = world.client.copy_tasks("q", "r", create=True, limit=4, job="j1")
    assert (first.job, first.done) == ("j1", 4)
    again = world.client.copy_tasks("q", "r", job="j1")
    assert (again.done, again.complete) == (6, True)
    bodies = sorted(c.message.body for c in all_of(world, NAMES.activity("r")))
    assert bodies == [b'{"args":[%d]}' % number for number in range(10)]
    assert world.count() == 10
    assert world.client.copy_tasks("q", "r", job="j1").done == 0
    assert world.client.copy_tasks("q", "r").done == 10


# --- both faces -----------------------------------------------------------------------------------


def test_the_async_client_has_the_same_verbs(world: World) -> None:
    start(world, 3)
    client = Client(world.client.core)

    async def journey() -> None:
        await client.pause_task_queue("q", "why")
        (told,) = await client.list_task_queues()
        assert told.pause is not None
        await client.resume_task_queue("q")
        assert (await client.move_tasks("q", "r", create=True, limit=1)).done == 1
        assert (await client.copy_tasks("q", "r")).done == 2
        assert (await client.describe_task_queue("r")).summary.backlog == 3
        assert len(await client.peek_tasks("r", 2)) == 2
        assert await client.purge_task_queue("r") == 3

    asyncio.run(journey())
    assert isinstance(world.client, BlockingClient)
    assert len(world.client.peek_tasks("q")) == 2
    assert world.client.purge_task_queue("q") == 2


# --- what requires capabilities -------------------------------------------------------------------


def test_what_requires_capabilities_moves_and_still_requires_them(world: World) -> None:
    world.worker(work, capabilities=["gpu", "ssd"]).stop()
    start(world, 2)
    for number in range(5):
        world.start(work, number, requires=["gpu"])
    world.start(work, 9, requires=["ssd"])
    told = world.client.move_tasks("q", "r", requires=["gpu"], create=True, limit=2)
    assert (told.waiting, told.done) == (5, 2)
    assert world.client.move_tasks("q", "r", dry_run=True, create=True).done == 6
    seen: list[Transferred] = []
    told = world.client.move_tasks("q", "r", create=True, on_progress=seen.append)
    assert (told.waiting, told.done, told.types) == (6, 6, {"work": 6})
    assert [one.done for one in seen] == [2, 5, 6]
    assert world.count(NAMES.activity("r")) == 2
    assert world.count(NAMES.capable("r", ["gpu"])) == 5
    assert world.count(NAMES.capable("r", ["ssd"])) == 1
    assert world.client.move_tasks("r", "q", create=True, limit=3).done == 3


def test_what_only_has_tasks_that_require_something_can_be_paused(world: World) -> None:
    world.worker(work, task_queues=["p"], capabilities=["gpu"]).stop()
    world.start(work, 1, task_queue="p", requires=["gpu"])
    world.client.operations.reclaim(["p"], grace_s=0)
    world.client.pause_task_queue("p")
    with pytest.raises(NotFound):
        world.client.pause_task_queue("typo")
