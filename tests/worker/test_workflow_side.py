"""Workers that run workflows, against a history service, on the broker in memory."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.worlds import NAMES, SOON_S, World
from tq_broker import activity, workflow
from tq_broker.clock import Clock
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ActivityError, ApplicationError, WorkflowFailureError
from tq_broker.history.service import HistoryService
from tq_broker.model.names import Kind
from tq_broker.queues.broker import Subscription
from tq_broker.stores.memory import MemoryDatabase, MemoryStore
from tq_broker.worker import Worker
from tq_broker.worker.workflow_side import WorkflowSide

MINUTE = timedelta(minutes=1)
ONCE = RetryPolicy(maximum_attempts=1)
AT_ONCE_S = 5.0
"""Well under the sticky queue's 10 s: it was not that timeout that did it."""


class Durable(World):
    """A world with a history service."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self.store = MemoryStore(MemoryDatabase(), NAMES.namespace)
        self.history = HistoryService(self.make_client("history"), self.store)
        self.history.start()
        self._closers.append(self.history.stop)

    def begin(self, target: Any, *args: Any, id: str = "w", **options: Any) -> Any:
        return self.client.start_workflow(target, args=args, id=id, task_queue="q", **options)

    def execute(self, target: Any, *args: Any, id: str = "w", **options: Any) -> Any:
        return self.begin(target, *args, id=id, **options).result(timeout=SOON_S)


@pytest.fixture
def world() -> Iterator[Durable]:
    world = Durable()
    yield world
    world.close()


@activity.defn
def add_one(number: int) -> int:
    return number + 1


@activity.defn
def who() -> list[Any]:
    info = activity.info()
    return [info.workflow_id, info.workflow_type, info.in_workflow, info.activity_id, info.is_local]


@workflow.defn
class Sum:
    """Adds up what it is signalled; ends when it is told to."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.over = False

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.over)
        return sum(self.numbers)

    @workflow.signal
    def add(self, number: int) -> None:
        self.numbers.append(number)

    @workflow.signal
    def end(self) -> None:
        self.over = True

    @workflow.query
    def so_far(self) -> int:
        return sum(self.numbers)


@workflow.defn
class Steps:
    @workflow.run
    async def run(self, steps: int, options: dict[str, int]) -> int:
        number = 0
        for _ in range(steps):
            number = await workflow.execute_activity(
                add_one,
                number,
                start_to_close_timeout=MINUTE,
                retry_policy=RetryPolicy(maximum_attempts=options.get("attempts", 0)),
            )
        return number


def test_a_workflow_runs_its_activities(world: Durable) -> None:
    worker = world.worker(add_one, workflows=[Steps])
    assert world.execute(Steps.run, 3, {}) == 3
    info = worker.info()
    assert (info.workflows, info.sticky_hits, info.sticky_misses) == (["Steps"], 3, 0)
    assert info.cached_workflows == 1


def test_without_a_cache_it_does_the_same(world: Durable) -> None:
    worker = world.worker(add_one, workflows=[Steps], max_cached_workflows=0)
    assert world.execute(Steps.run, 3, {}) == 3
    assert worker.info().cached_workflows == 0


def test_an_activity_with_one_attempt_asks_for_leave(world: Durable) -> None:
    world.worker(add_one, workflows=[Steps])
    assert world.execute(Steps.run, 2, {"attempts": 1}) == 2


def test_a_worker_for_workflows_only_leaves_activities_to_others(world: Durable) -> None:
    world.worker(workflows=[Steps])
    world.worker(add_one)
    assert world.execute(Steps.run, 2, {}) == 2


def test_activities_may_be_for_local_use_only(world: Durable) -> None:
    @workflow.defn
    class Local:
        @workflow.run
        async def run(self) -> list[Any]:
            return await workflow.execute_local_activity(who, start_to_close_timeout=MINUTE)

    world.worker(who, workflows=[Local], no_remote_activities=True)
    assert world.execute(Local.run) == ["w", "Local", True, "local-1", True]


def test_an_activity_knows_whose_it_is(world: Durable) -> None:
    @workflow.defn
    class Asks:
        @workflow.run
        async def run(self) -> list[Any]:
            return await workflow.execute_activity(
                who, activity_id="mine", start_to_close_timeout=MINUTE
            )

    world.worker(who, workflows=[Asks])
    assert world.execute(Asks.run) == ["w", "Asks", True, "mine", False]


def test_a_failed_attempt_is_tried_again_by_history_with_its_heartbeat(world: Durable) -> None:
    attempts: queue.Queue[tuple[int, list[Any]]] = queue.Queue()

    @activity.defn
    def shaky() -> str:
        info = activity.info()
        attempts.put((info.attempt, list(info.heartbeat_details)))
        if info.attempt == 1:
            activity.heartbeat("half", 2)
            raise ApplicationError("not yet")
        return "done"

    @workflow.defn
    class Tries:
        @workflow.run
        async def run(self) -> str:
            return await workflow.execute_activity(
                shaky,
                start_to_close_timeout=MINUTE,
                retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10)),
            )

    world.worker(shaky, workflows=[Tries])
    assert world.execute(Tries.run) == "done"
    assert [attempts.get(), attempts.get()] == [(1, []), (2, ["half", 2])]


def test_an_activity_of_a_killed_worker_is_tried_again_elsewhere(world: Durable) -> None:
    begun: queue.Queue[int] = queue.Queue()
    gate = threading.Event()

    @activity.defn
    def slow() -> str:
        begun.put(activity.info().attempt)
        assert activity.info().attempt > 1 or gate.wait(SOON_S)
        return f"attempt {activity.info().attempt}"

    @workflow.defn
    class Waits:
        @workflow.run
        async def run(self) -> str:
            policy = RetryPolicy(initial_interval=timedelta(milliseconds=10))
            return await workflow.execute_activity(
                slow, start_to_close_timeout=MINUTE, retry_policy=policy
            )

    world.worker(workflows=[Waits])
    doomed = world.worker(slow)
    handle = world.begin(Waits.run)
    assert begun.get(timeout=SOON_S) == 1
    world.kill(doomed)
    world.worker(slow)
    assert handle.result(timeout=SOON_S) == "attempt 2"
    gate.set()


# --- sticky execution -----------------------------------------------------------------------------


@contextmanager
def summing(world: Durable, count: int = 10) -> Iterator[list[Any]]:
    """Runs in the cache of the one worker there is."""
    handles = [world.begin(Sum.run, id=f"sum-{number}") for number in range(count)]
    for handle in handles:
        handle.signal(Sum.add, 1)
        assert handle.query(Sum.so_far) == 1
    yield handles


def finish(handles: list[Any], timeout: float = AT_ONCE_S) -> list[int]:
    with ThreadPoolExecutor(len(handles)) as pool:
        for handle in handles:
            handle.signal(Sum.add, 2)
            handle.signal(Sum.end)
        return list(pool.map(lambda handle: handle.result(timeout=timeout), handles))


def test_workflows_of_a_worker_that_stops_move_at_once(world: Durable) -> None:
    first = world.worker(workflows=[Sum])
    with summing(world) as handles:
        world.worker(workflows=[Sum])
        first.stop()
        assert finish(handles) == [3] * 10
    sticky = NAMES.sticky(first.worker_id)
    assert world.broker.stats(str(sticky), world.soon()) is None


def test_workflows_of_a_killed_worker_move_at_once(world: Durable) -> None:
    first = world.worker(workflows=[Sum])
    with summing(world) as handles:
        world.worker(workflows=[Sum])
        world.kill(first)
        assert finish(handles) == [3] * 10
    sticky = NAMES.sticky(first.worker_id)
    world.eventually(lambda: world.broker.stats(str(sticky), world.soon()) is None)


def test_a_worker_whose_connection_broke_goes_on(world: Durable) -> None:
    worker = world.worker(workflows=[Sum])
    with summing(world) as handles:
        world.broker_of_worker(worker).break_connection(away_s=0.1)
        assert finish(handles, SOON_S) == [3] * 10


def test_a_worker_whose_connection_broke_has_a_will_again(world: Durable) -> None:
    first = world.worker(workflows=[Sum])
    with summing(world) as handles:
        world.broker_of_worker(first).break_connection()
        for handle in handles:
            handle.signal(Sum.add, 0)
            assert handle.query(Sum.so_far) == 1
        will = str(NAMES.queue(Kind.WILL, first.worker_id))
        sticky = str(NAMES.sticky(first.worker_id))
        world.eventually(lambda: sticky in first._wills._held)
        assert world.broker.stats(will, world.soon()) is not None
        world.worker(workflows=[Sum])
        world.kill(first)
        assert finish(handles) == [3] * 10


def test_more_runs_than_fit_the_cache(world: Durable) -> None:
    worker = world.worker(workflows=[Sum], max_cached_workflows=3)
    with summing(world) as handles:
        assert worker.info().cached_workflows == 3
        assert finish(handles) == [3] * 10


def test_a_query_of_a_closed_run_is_answered(world: Durable) -> None:
    world.worker(workflows=[Sum])
    with summing(world, 1) as (handle,):
        assert finish([handle]) == [3]
        assert handle.query(Sum.so_far) == 3
    world.worker(workflows=[Sum])


# --- what goes wrong ------------------------------------------------------------------------------


def test_an_unknown_workflow_waits_for_a_worker_that_knows_it(
    world: Durable, caplog: pytest.LogCaptureFixture
) -> None:
    world.worker(workflows=[Steps])
    handle = world.begin(Sum.run)
    world.eventually(lambda: "Sum is not registered on this worker" in caplog.text)
    handle.signal(Sum.end)
    knows = world.worker(workflows=[Sum, Steps])
    assert handle.result(timeout=SOON_S) == 0
    assert knows.info().workflows == ["Steps", "Sum"]


def test_nothing_is_taken_before_it_can_be_run(
    world: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = WorkflowSide.start
    too_early: list[object] = []

    def start_late(side: WorkflowSide, *args: Any) -> Sequence[Subscription]:
        # The supervisor's thread may be quicker
        side.tick(world.clock.monotonic())
        too_early.extend(side._poller.subscriptions())
        return start(side, *args)

    monkeypatch.setattr(WorkflowSide, "start", start_late)
    world.worker(workflows=[Sum])
    with summing(world, 1) as handles:
        assert finish(handles) == [3]
    assert too_early == []


def test_code_that_blocks_fails_its_task_and_not_the_worker(
    world: Durable, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()

    @workflow.defn(sandboxed=False)
    class Blocks:
        @workflow.run
        async def run(self) -> str:
            gate.wait(SOON_S)
            return "free"

    world.worker(workflows=[Blocks, Sum], workflow_deadlock_timeout=timedelta(milliseconds=100))
    handle = world.begin(Blocks.run, id="blocks")
    world.eventually(lambda: "Potential deadlock detected" in caplog.text)
    with summing(world, 1) as handles:
        assert finish(handles) == [3]
    gate.set()
    assert handle.result(timeout=SOON_S) == "free"


def test_an_error_that_is_no_failure_suspends_the_workflow(
    world: Durable, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [True]

    @workflow.defn(sandboxed=False)
    class Odd:
        @workflow.run
        async def run(self) -> str:
            if broken:
                raise ZeroDivisionError
            return "mended"

    world.worker(workflows=[Odd])
    handle = world.begin(Odd.run)
    world.eventually(lambda: "ZeroDivisionError" in caplog.text)
    broken.clear()
    assert handle.result(timeout=SOON_S) == "mended"


def test_an_error_that_is_declared_to_be_a_failure_is_one(world: Durable) -> None:
    @workflow.defn
    class Fails:
        @workflow.run
        async def run(self) -> None:
            raise ZeroDivisionError("no")

    world.worker(workflows=[Fails], workflow_failure_exception_types=[ZeroDivisionError])
    with pytest.raises(WorkflowFailureError):
        world.execute(Fails.run)


def test_an_activity_that_fails_for_good_fails_the_workflow(world: Durable) -> None:
    @activity.defn
    async def fails() -> None:
        raise ApplicationError("never", non_retryable=True)

    @workflow.defn
    class Relies:
        @workflow.run
        async def run(self) -> None:
            await workflow.execute_activity(fails, start_to_close_timeout=MINUTE)

    world.worker(fails, workflows=[Relies])
    with pytest.raises(WorkflowFailureError) as caught:
        world.execute(Relies.run)
    assert isinstance(caught.value.cause, ActivityError)


def test_cancelling_a_workflow_reaches_its_activity(world: Durable) -> None:
    begun = threading.Event()

    @activity.defn
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow.defn
    class Cancels:
        @workflow.run
        async def run(self) -> str:
            try:
                await workflow.execute_activity(
                    endless,
                    start_to_close_timeout=MINUTE,
                    cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                )
            except ActivityError:
                return "cleaned up"
            return "?"

    world.worker(endless, workflows=[Cancels])
    handle = world.begin(Cancels.run)
    assert begun.wait(SOON_S)
    handle.cancel()
    assert handle.result(timeout=AT_ONCE_S) == "cleaned up"


def test_a_worker_that_stops_leaves_its_local_activities_to_another(world: Durable) -> None:
    begun: queue.Queue[Worker | None] = queue.Queue()
    gate = threading.Event()

    @activity.defn
    def slow() -> str:
        begun.put(None)
        assert gate.wait(SOON_S)
        return "done"

    @workflow.defn
    class Local:
        @workflow.run
        async def run(self) -> str:
            return await workflow.execute_local_activity(slow, start_to_close_timeout=MINUTE)

    zero = timedelta(0)
    first = world.worker(slow, workflows=[Local], graceful_shutdown_timeout=zero, cancel_grace=zero)
    handle = world.begin(Local.run)
    begun.get(timeout=SOON_S)
    first.stop()
    world.worker(slow, workflows=[Local])
    begun.get(timeout=SOON_S)
    gate.set()
    assert handle.result(timeout=SOON_S) == "done"


@pytest.mark.parametrize(
    ("workflows", "message"),
    [((), "At least one activity or workflow"), ([Sum, Sum], "More than one workflow named Sum")],
)
def test_what_a_worker_must_have(world: Durable, workflows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Worker(world.client, task_queue="q", workflows=workflows)


# --- pauses ---------------------------------------------------------------------------------------


def test_a_paused_task_queue_makes_sticky_runs_wait_too(world: Durable) -> None:
    world.worker(workflows=[Sum])
    handle = world.begin(Sum)
    handle.signal(Sum.add, 1)
    world.eventually(lambda: handle.query(Sum.so_far) == 1)
    # Given a run in the cache of a worker, and a pause
    world.client.pause_task_queue("q", "upgrade", side="workflow")
    queue = NAMES.workflow("q")

    def consumers() -> int:
        stats = world.broker.stats(str(queue), world.soon())
        return 0 if stats is None else stats.consumers

    world.eventually(lambda: consumers() == 0)
    # When it is signalled, then its task waits on the workflow task queue
    handle.signal(Sum.add, 2)
    handle.signal(Sum.end)
    world.eventually(lambda: world.count(queue) == 1)
    # Until the task queue is resumed
    world.client.resume_task_queue("q")
    assert handle.result(timeout=SOON_S) == 3


# --- priorities -----------------------------------------------------------------------------------


def test_workflows_and_what_they_start_keep_to_the_order_of_priorities(world: Durable) -> None:
    begun: dict[str, int | None] = {}
    seen: list[int | None] = []

    @activity.defn(name="see", start_to_close_timeout=MINUTE)
    def see() -> None:
        seen.append(activity.info().priority)

    @workflow.defn(name="Ranked")
    class Ranked:
        @workflow.run
        async def run(self, child: bool) -> None:
            info = workflow.info()
            begun.setdefault(info.workflow_id, info.priority)
            await workflow.execute_activity(see)
            if child:
                await workflow.execute_child_workflow(Ranked.run, False, id="child")

    wanted = [None, 5, 3, 1, 4, 2, None, 5, 1]
    # Given workflows that wait for a worker
    handles = [
        world.begin(Ranked.run, False, id=f"w{n}", priority=priority)
        for n, priority in enumerate(wanted)
    ]
    plain = NAMES.workflow("q")
    in_order = NAMES.priority(plain)
    world.eventually(lambda: world.count(plain) + world.count(in_order) == len(wanted))
    assert world.count(in_order) >= 7  # one without priority may have been there before
    # When one comes
    world.worker(see, workflows=[Ranked], max_concurrent_workflow_tasks=1, max_cached_workflows=0)
    for handle in handles:
        handle.result(timeout=SOON_S)
    # Then they begin in order, and so do their activities
    ranked = [priority for priority in begun.values() if priority is not None]
    assert ranked == [1, 1, 2, 3, 4, 5, 5]
    assert sorted(p or 3 for p in seen) == sorted(p or 3 for p in wanted)
    # And a child and its activity have the priority of their parent
    begun.clear()
    seen.clear()
    world.execute(Ranked.run, True, id="parent", priority=2)
    assert begun == {"parent": 2, "child": 2}
    assert seen == [2, 2]
