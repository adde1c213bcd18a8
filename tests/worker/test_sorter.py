"""Priorities on the broker in memory, whose plain queues do not order: start order, no matter who
puts tasks where, and that verbs, limits and pauses know where they wait."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.worlds import NAMES, QUEUE, SOON_S, World
from tq_broker import activity
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ActivityError, ApplicationError, InvalidArgument
from tq_broker.model import envelope
from tq_broker.model.limits import Limits
from tq_broker.model.tasks import ActivityTask
from tq_broker.worker import Worker

IN_ORDER = NAMES.priority(QUEUE)
SOON = RetryPolicy(initial_interval=timedelta(milliseconds=1), maximum_attempts=3)


class Line:
    """Activities that say in which order they begin, while the first one holds the slot."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.free = threading.Event()

    @activity.defn(name="hold")
    def hold(self) -> None:
        self.free.wait(SOON_S)

    @activity.defn(name="note")
    def note(self, key: Any) -> None:
        self.begun.append(key)

    def worker(self, world: World, **options: Any) -> Worker:
        worker = world.worker(self.hold, self.note, max_concurrent_activities=1, **options)
        world.start("hold")
        world.eventually(lambda: worker.running == 1)
        return worker


def by_hand(world: World, id_: str, priority: int | None = None) -> None:
    """Put a task on the plain queue, as somebody does who knows nothing of priorities."""
    task = ActivityTask(
        activity_id=id_,
        activity_type="note",
        task_queue="q",
        body=msgspec.json.encode({"args": [priority or 3]}),
        start_to_close_ms=60_000,
        priority=priority,
    )
    world.publish(envelope.task_message(task))


def test_tasks_begin_in_the_order_of_their_priorities(world: World) -> None:
    line = Line()
    line.worker(world)
    wanted = [3, 3, 5, 1, 4, 2, 3, 1, 5]
    handles = [
        # The first ones are in the plain queue already when somebody uses priorities.
        world.start("note", p, priority=None if n < 2 else p)
        for n, p in enumerate(wanted)
    ]
    world.eventually(lambda: world.count(IN_ORDER) == len(wanted))
    line.free.set()
    for handle in handles:
        handle.result(SOON_S)
    assert line.begun == sorted(wanted)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, 1, 2, 3, 4, 5]), st.booleans()), min_size=1, max_size=12
    )
)
def test_nothing_is_inverted_whoever_puts_tasks_where(
    tasks: list[tuple[int | None, bool]],
) -> None:
    world, line = World(), Line()
    try:
        line.worker(world)
        # Given that priorities are used
        world.start("note", 1, priority=1)
        world.eventually(lambda: world.count(IN_ORDER) == 1)
        # When some who start tasks know of that, and others do not
        for number, (priority, knows) in enumerate(tasks):
            if knows:
                world.start("note", priority or 3, id=f"a{number}", priority=priority)
            else:
                by_hand(world, f"a{number}", priority)
                world.eventually(lambda: world.count() == 0)
        world.eventually(lambda: world.count(IN_ORDER) == len(tasks) + 1)
        line.free.set()
        # Then all begin in order
        world.eventually(lambda: len(line.begun) == len(tasks) + 1)
        assert line.begun == sorted(line.begun)
    finally:
        line.free.set()
        world.close()


def test_who_does_not_use_priorities_has_no_further_queue(world: World) -> None:
    line = Line()
    line.free.set()
    world.worker(line.note)
    world.run("note", 1)
    world.run("note", 2, priority=3)
    assert world.broker.stats(str(IN_ORDER), world.soon()) is None


def test_a_worker_that_comes_later_finds_the_queue(world: World) -> None:
    handles = [world.start("note", p, priority=p) for p in (5, 1)]
    line = Line()
    world.worker(line.note, max_concurrent_activities=1)
    for handle in handles:
        handle.result(SOON_S)
    assert line.begun == [1, 5]


def test_a_retry_keeps_its_priority(world: World) -> None:
    seen: list[tuple[int, int | None]] = []

    @activity.defn(name="fail")
    def fail() -> None:
        info = activity.info()
        seen.append((info.attempt, info.priority))
        if info.attempt < 3:
            raise ApplicationError("again")

    world.worker(fail)
    world.run("fail", priority=2, retry_policy=SOON)
    assert seen == [(1, 2), (2, 2), (3, 2)]


def test_a_task_that_may_have_begun_is_a_lost_attempt_after_it_was_moved(world: World) -> None:
    # Given a task in the plain queue that somebody has had, and priorities since then
    once = RetryPolicy(maximum_attempts=1)
    handle = world.start("note", 0, retry_policy=once)
    taken = world.broker.get(str(QUEUE), world.soon())
    assert taken is not None
    world.start("note", 1, priority=1)
    taken.reject(requeue=True)
    # When a worker comes
    line = Line()
    world.worker(line.note)
    # Then it is not begun a second time
    with pytest.raises(ActivityError):
        handle.result(SOON_S)
    assert 0 not in line.begun


def test_a_limited_task_queue_keeps_to_the_order(world: World) -> None:
    line = Line()
    line.worker(world)
    world.client.operations.set_limits("q", lambda limits: Limits(concurrency=1))
    handles = [world.start("note", p, priority=p) for p in (5, 3, 1, 4, 2)]
    world.eventually(lambda: world.count(IN_ORDER) == 5)
    line.free.set()
    for handle in handles:
        handle.result(SOON_S)
    assert line.begun == [1, 2, 3, 4, 5]


def test_a_paused_task_queue_begins_nothing(world: World) -> None:
    line = Line()
    line.free.set()
    world.worker(line.note)
    world.run("note", 1, priority=1)
    world.client.pause_task_queue("q")

    def consumers() -> int:
        stats = world.broker.stats(str(IN_ORDER), world.soon())
        return -1 if stats is None else stats.consumers

    world.eventually(lambda: consumers() == 0)
    handle = world.start("note", 2, priority=1)
    world.eventually(lambda: world.count(IN_ORDER) == 1)
    world.client.resume_task_queue("q")
    handle.result(SOON_S)
    assert line.begun == [1, 2]


def test_operators_see_and_move_what_waits_in_either_queue(world: World) -> None:
    for key, priority in ((0, None), (5, 5), (1, 1)):
        world.start("note", key, priority=priority)
    (told,) = world.client.list_task_queues()
    assert (told.backlog, told.prioritized, told.consumers) == (3, True, 0)
    peeked = {(task.arguments, task.priority) for task in world.client.peek_tasks("q")}
    assert peeked == {("[0]", 3), ("[1]", 1), ("[5]", 5)}
    moved = world.client.move_tasks("q", "r", create=True)
    assert (moved.done, moved.waiting) == (3, 3)
    (_, told) = world.client.list_task_queues()
    assert (told.task_queue, told.backlog, told.prioritized) == ("r", 3, True)
    line = Line()
    world.worker(line.note, task_queue="r", max_concurrent_activities=1)
    world.eventually(lambda: len(line.begun) == 3)
    assert line.begun[0] == 1
    world.start("note", 1, priority=1)
    assert world.client.operations.purge("q") == 1


def test_an_idle_priority_queue_is_removed_before_its_task_queue(world: World) -> None:
    line = Line()
    worker = world.worker(line.note)
    world.run("note", 1, priority=1)
    worker.stop()
    operations = world.client.operations
    world.eventually(lambda: operations.reclaim(["q"], grace_s=0) == ["q"])
    assert world.broker.stats(str(IN_ORDER), world.soon()) is None
    assert operations.settings().prioritized == frozenset()
    # And it comes back when it is needed
    handle = world.start("note", 2, priority=1)
    world.worker(line.note)
    handle.result(SOON_S)


@pytest.mark.parametrize("priority", [0, 6, -1, "1"])
def test_a_priority_out_of_bounds_is_refused(world: World, priority: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"priority is .* from 1 \(first\) to 5"):
        world.start("note", 1, priority=priority)
