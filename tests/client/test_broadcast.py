"""An activity on every worker of a task queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.worker.worlds import World
from tq_broker import activity
from tq_broker.client import Client
from tq_broker.common import RetryPolicy, Route
from tq_broker.exceptions import ActivityError, InvalidArgument, NotFound, TimeoutError, Unavailable

ONCE = RetryPolicy(maximum_attempts=1)


@activity.defn
def who(text: str) -> str:
    return f"{text} {activity.info().worker_id}"


@activity.defn
def fail_on_two() -> str:
    if activity.info().worker_id == "two":
        raise ValueError("not here")
    return "well"


@activity.defn
async def hang_on_two() -> str:
    if activity.info().worker_id == "two":
        await asyncio.sleep(1000)
    return "well"


@activity.defn
def only_one() -> str:
    return "mine"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    shared = [who, fail_on_two, hang_on_two]
    world.worker(*shared, only_one, worker_id="one", identity="a", host="h1")
    world.worker(*shared, worker_id="two", identity="b", host="h1")
    world.worker(who, task_queues=["other"], worker_id="three")
    yield world
    world.close()


def test_every_worker_answers_for_itself(world: World) -> None:
    answers = world.client.broadcast_activity(who, "I am", task_queue="q", wait=0.3)
    assert [(one.identity, one.host, one.result) for one in answers] == [
        ("a", "h1", "I am one"),
        ("b", "h1", "I am two"),
    ]
    assert all(one.ok for one in answers)


def test_the_async_client_broadcasts_by_name(world: World) -> None:
    async def journey() -> list[object]:
        client = Client(world.client.core)
        answers = await client.broadcast_activity("who", args=["x"], task_queue="q", wait=0.3)
        return [one.result for one in answers]

    assert asyncio.run(journey()) == ["x one", "x two"]


def test_a_failure_on_one_is_told_apart(world: World) -> None:
    one, two = world.client.broadcast_activity(
        fail_on_two, task_queue="q", retry_policy=ONCE, wait=0.3
    )
    assert (one.ok, one.result) == (True, "well")
    assert isinstance(two.error, ActivityError)
    assert "not here" in str(two.error)


def test_a_worker_that_takes_too_long_is_told(world: World) -> None:
    one, two = world.client.broadcast_activity(
        hang_on_two, task_queue="q", timeout=timedelta(seconds=0.5), wait=0.3
    )
    assert one.result == "well"
    assert isinstance(two.error, ActivityError)
    assert isinstance(two.error.cause, TimeoutError)


def test_a_worker_without_the_type_is_not_asked(world: World) -> None:
    one, two = world.client.broadcast_activity(only_one, task_queue="q", wait=0.3)
    assert one.result == "mine"
    assert isinstance(two.error, NotFound)
    assert "'only_one' is not registered on b" in str(two.error)


def test_a_paused_task_queue_says_so(world: World) -> None:
    world.client.pause_task_queue("q")
    answers = world.client.broadcast_activity(who, "x", task_queue="q", timeout=1, wait=0.3)
    assert [type(one.error) for one in answers] == [Unavailable, Unavailable]


def test_nobody_is_there(world: World) -> None:
    assert world.client.broadcast_activity(who, "x", task_queue="unserved", wait=0.1) == []


def test_bad_broadcasts_are_refused(world: World) -> None:
    broadcast = world.client.broadcast_activity
    with pytest.raises(InvalidArgument, match="route cannot be given"):
        broadcast(who, "x", task_queue="q", route=Route.host("h1"))
    with pytest.raises(InvalidArgument, match="task_queue"):
        broadcast(who, "x")
    with pytest.raises(InvalidArgument, match="timeout is 0"):
        broadcast(who, "x", task_queue="q", timeout=0)
    with pytest.raises(InvalidArgument, match="at most 1 arguments"):
        broadcast(who, args=["x", "y"], task_queue="q", wait=0.3)
