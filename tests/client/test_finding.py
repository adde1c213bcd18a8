"""Finding an activity, wherever it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.worlds import QUEUE, SOON_S, World
from tq_broker import activity
from tq_broker.client import ActivityDescription, ActivityState
from tq_broker.client.finding import describe_activity
from tq_broker.common import ActivityIDConflictPolicy, Route
from tq_broker.exceptions import InvalidArgument, NotFound
from tq_broker.model.control import Hold
from tq_broker.model.limits import Limits
from tq_broker.model.message import Message
from tq_broker.model.parts import EACH_KEY
from tq_broker.model.rules import TrafficRule

QUICK_S = 0.2
GO = threading.Event()


@activity.defn(name="stay")
def stay() -> None:
    assert GO.wait(SOON_S)


@activity.defn(name="later")
def later() -> None:
    activity.raise_complete_async()


@pytest.fixture
def world() -> Iterator[World]:
    GO.clear()
    world = World()
    yield world
    GO.set()
    world.close()


def find(world: World, id: str, **options: Any) -> ActivityDescription:
    return describe_activity(world.client.core, id, wait_s=QUICK_S, **options)


def test_nothing_is_known_of_what_nobody_has(world: World) -> None:
    assert find(world, "x").state is ActivityState.UNKNOWN
    assert not world.client.operations.exists(), "a look leaves no trace"
    world.start("note", id="other")
    told = find(world, "x", task_queue="q", search=10)
    assert (told.state, told.steps, told.found, told.attempt) == (ActivityState.UNKNOWN, (), (), 0)


def test_one_that_runs_is_found_with_the_reason_for_its_way(world: World) -> None:
    worker = world.worker(stay, worker_id="w", host="h1", max_concurrent_activities=1)
    world.start("stay", id="a", route=Route.host("h1"))
    world.eventually(lambda: worker.running == 1)
    told = find(world, "a")
    assert (told.state, told.type, told.task_queue) == (ActivityState.RUNNING, "stay", "q")
    assert (told.attempt, told.cancel_reason) == (1, None)
    (found,) = told.found
    assert [one.hold for one in found.tasks] == [Hold.RUNNING]
    assert found.tasks[0].at_ms > 0
    assert "its route says host 'h1'" in told.steps
    world.client.cancel_activity("a", "enough")
    world.eventually(lambda: find(world, "a").cancel_reason == "enough")


def test_one_that_somebody_else_completes_is_found(world: World) -> None:
    world.worker(later)
    world.start("later", id="a")
    world.eventually(lambda: find(world, "a").state is ActivityState.COMPLETING)


def test_one_that_waits_is_found_where_it_waits_if_that_is_wanted(world: World) -> None:
    rule = TrafficRule(id="r", type="other", to_task_queue="there", by="ann")
    world.start("stay", id="first")
    world.start("stay", id="a", priority=5)
    world.client.operations.traffic.set(rule, force=True, wait_s=0.0)
    assert find(world, "a").state is ActivityState.UNKNOWN
    told = find(world, "a", task_queue="q", search=10)
    assert told.state is ActivityState.WAITING
    assert told.waits is not None
    assert (told.waits.priority, told.waits.kind) == (5, "priority")
    assert any("rule 'r'" in step and "it is for types like 'other'" in step for step in told.steps)
    assert find(world, "first", task_queue="q", search=1).state is ActivityState.UNKNOWN


def test_one_that_a_limit_holds_back_is_found(world: World) -> None:
    world.client.connection.sender.ensure([QUEUE], world.soon())
    world.client.operations.set_limits("q", lambda _: Limits(concurrency=1), part=EACH_KEY)
    worker = world.worker(stay)
    world.start("stay", id="a", rate_limit_key="k")
    world.eventually(lambda: worker.running == 1)
    world.start("stay", id="b", rate_limit_key="k")
    world.eventually(lambda: find(world, "b").state is ActivityState.HELD_BACK)


def test_one_that_has_ended_is_known_as_long_as_its_outcome_is_kept(world: World) -> None:
    worker = world.worker(stay)
    GO.set()
    kept = {"id_conflict_policy": ActivityIDConflictPolicy.USE_EXISTING}
    world.start("stay", id="a", **kept).result(SOON_S)
    assert find(world, "a").state is ActivityState.ENDED
    world.start("stay").result(SOON_S)
    plain = world.start("stay")
    plain.result(SOON_S)
    told = find(world, plain.id)
    assert (told.state, told.type) == (ActivityState.TAKEN, "stay")
    worker.stop()
    assert find(world, "a").state is ActivityState.UNKNOWN
    assert find(world, "a", task_queue="q").state is ActivityState.ENDED


def test_one_that_is_parked_is_found(world: World) -> None:
    world.worker(stay)
    headers = {"tq-activity-type": "stay", "tq-attempt": "many"}
    world.publish(Message(body=b"{}", message_id="a", kind="activity-task", headers=headers))
    world.eventually(lambda: find(world, "a").state is ActivityState.PARKED)
    assert "tq-attempt" in find(world, "a").parked_reason


def test_bad_questions_are_answered(world: World) -> None:
    world.start("note")
    for options in ({"search": 5}, {"search": 1001, "task_queue": "q"}, {"task_queue": "a\nb"}):
        with pytest.raises(InvalidArgument):
            find(world, "a", **options)
    with pytest.raises(InvalidArgument, match="id must not be empty"):
        find(world, "")
    with pytest.raises(NotFound, match="no task queue 'none'"):
        find(world, "a", task_queue="none", search=5)


def test_a_start_that_is_delayed_is_told_as_unknown(world: World) -> None:
    world.start("stay", id="a", start_delay=timedelta(hours=1))
    assert find(world, "a", task_queue="q").state is ActivityState.UNKNOWN
