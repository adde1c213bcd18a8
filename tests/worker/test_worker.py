"""The worker as a whole, on the broker in memory: what its users are promised."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.worker.worlds import MINUTE, NAMES, QUEUE, SOON_S, World
from tq_broker import activity
from tq_broker.activity import RawValue
from tq_broker.common import OnGone, RetryPolicy, Route
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    RetryState,
    TargetGone,
    TimeoutError,
    TimeoutType,
    Unavailable,
)
from tq_broker.model import playback
from tq_broker.model.message import Message
from tq_broker.model.names import Kind
from tq_broker.queues import settings_keeper
from tq_broker.queues.broker import Delivery, SubscribeOptions
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker import (
    CustomSlotSupplier,
    ResourceBasedSlotConfig,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
    Worker,
    WorkerTuner,
)

ONCE = RetryPolicy(maximum_attempts=1)
FAST = RetryPolicy(initial_interval=timedelta(milliseconds=1))
SECOND = timedelta(seconds=1)


class Gate:
    """An activity that begins, and ends when it is let through."""

    def __init__(self, name: str = "gate") -> None:
        self.begun: queue.Queue[activity.Info] = queue.Queue()
        self.opened = threading.Event()
        self.runs: Counter[int] = Counter()

        @activity.defn(name=name)
        def gate() -> str:
            info = activity.info()
            self.runs[info.attempt] += 1
            self.begun.put(info)
            assert self.opened.wait(SOON_S)
            return f"attempt {info.attempt}"

        self.activity = gate

    def next(self) -> activity.Info:
        return self.begun.get(timeout=SOON_S)


def cause(caught: pytest.ExceptionInfo[ActivityError]) -> Any:
    return caught.value.cause


# --- kinds of activities --------------------------------------------------------------------------


@activity.defn
async def in_a_coroutine(a: int, b: str = "x") -> str:
    await asyncio.sleep(0)
    return f"{a}{b}"


@activity.defn
def in_a_thread(a: int) -> str:
    return f"{a} on {threading.current_thread().name}"


class Greeter:
    def __init__(self, word: str) -> None:
        self.word = word

    @activity.defn
    def greet(self, name: str) -> str:
        return f"{self.word}, {name}"

    @activity.defn
    async def greet_async(self, name: str) -> str:
        return f"{self.word}, {name}!"


@activity.defn(name="callable")
class Callable_:
    def __call__(self, a: int) -> int:
        return a + 1


@activity.defn(dynamic=True)
async def anything(args: Sequence[RawValue]) -> list[Any]:
    return [activity.info().activity_type, *(arg.decode(int) for arg in args)]


class Point(msgspec.Struct):
    x: int


@activity.defn
def typed(point: Point, more: list[Point]) -> Point:
    assert isinstance(point, Point)
    return Point(point.x + sum(p.x for p in more))


def test_all_kinds_of_activities_are_run(world: World) -> None:
    greeter = Greeter("Hello")
    world.worker(
        in_a_coroutine,
        in_a_thread,
        greeter.greet,
        greeter.greet_async,
        Callable_(),
        typed,
        anything,
    )
    assert world.run(in_a_coroutine, 1, "y") == "1y"
    assert world.run(in_a_coroutine, 1) == "1x"
    assert world.run(in_a_thread, 1).startswith("1 on tq-activity")
    assert world.run(greeter.greet, "you") == "Hello, you"
    assert world.run("greet_async", "you") == "Hello, you!"
    assert world.run("callable", 1) == 2
    assert world.run(typed, Point(1), [Point(2)]) == Point(3)
    assert world.run("of-no-name", 1, 2) == ["of-no-name", 1, 2]


def test_an_activity_is_told_where_and_what_it_is(world: World) -> None:
    @activity.defn
    async def tell() -> dict[str, Any]:
        about = activity.info()
        return {
            "queue": about.task_queue,
            "attempt": about.attempt,
            "worker": about.worker_id,
            "host": about.host,
            "namespace": about.namespace,
            "id": about.activity_id,
            "timeout": about.start_to_close_timeout == MINUTE,
        }

    worker = world.worker(tell, host="here", worker_id="w-1")
    assert worker.info().host == "here"
    assert world.run(tell, id="my-id") == {
        "queue": "q",
        "attempt": 1,
        "worker": "w-1",
        "host": "here",
        "namespace": "n",
        "id": "my-id",
        "timeout": True,
    }


# --- failures and retries -------------------------------------------------------------------------


def test_a_type_that_nobody_has_fails_and_says_what_there_is(world: World) -> None:
    world.worker(in_a_thread, typed)
    with pytest.raises(ActivityError) as caught:
        world.run("unknown", retry_policy=ONCE)
    assert cause(caught).type == "NotFoundError"
    assert "in_a_thread, typed" in str(cause(caught))


@pytest.mark.parametrize("args", [["one"], [1, 2, 3], [], [None]])
def test_wrong_arguments_fail_the_activity_and_nothing_else(world: World, args: list[Any]) -> None:
    world.worker(in_a_coroutine, in_a_thread)
    for name in ("in_a_coroutine", "in_a_thread"):
        if name == "in_a_coroutine" and len(args) == 2:
            continue
        with pytest.raises(ActivityError):
            world.run(name, *args, retry_policy=ONCE)
    assert world.run(in_a_coroutine, 1) == "1x"


def test_a_result_that_cannot_be_sent_fails_the_activity(world: World) -> None:
    @activity.defn
    async def unsendable() -> Any:
        return object()

    world.worker(unsendable)
    with pytest.raises(ActivityError) as caught:
        world.run(unsendable, retry_policy=ONCE)
    assert "cannot be sent as JSON" in str(cause(caught))


def test_a_failed_attempt_is_retried_with_what_it_left_behind(timed: World) -> None:
    seen: list[tuple[int, Any]] = []

    @activity.defn
    def flaky() -> str:
        about = activity.info()
        seen.append((about.attempt, list(about.heartbeat_details)))
        activity.heartbeat("reached", about.attempt)
        if about.attempt < 3:
            raise ValueError("again")
        return "done"

    timed.worker(flaky)
    assert timed.result(timed.start(flaky)) == "done"
    assert seen == [(1, []), (2, ["reached", 1]), (3, ["reached", 2])]


def test_retries_end_with_the_policy(timed: World) -> None:
    @activity.defn
    async def bad() -> None:
        raise ApplicationError("bad", "detail", type="Bad")

    timed.worker(bad)
    handle = timed.start(bad, retry_policy=RetryPolicy(maximum_attempts=3))
    with pytest.raises(ActivityError) as caught:
        timed.result(handle)
    assert caught.value.attempt == 3
    assert caught.value.retry_state is RetryState.MAXIMUM_ATTEMPTS_REACHED
    assert (cause(caught).type, list(cause(caught).details)) == ("Bad", ["detail"])


@pytest.mark.parametrize("delay", [timedelta.max, timedelta.resolution, timedelta(-1), 5])
def test_an_absurd_wish_for_the_next_delay_is_no_crash(world: World, delay: Any) -> None:
    """Found: it ended the reporting of the attempt with an error nobody saw."""

    @activity.defn
    async def wishes() -> None:
        if activity.info().attempt == 1:
            raise ApplicationError("later", next_retry_delay=delay)

    worker = world.worker(wishes)
    handle = world.start(wishes, retry_policy=FAST)
    world.eventually(lambda: worker._handler.unreported == 0 and not worker._table.open())
    if delay == timedelta.max:
        assert worker.is_running
    else:
        assert handle.result(SOON_S) is None


# --- timeouts -------------------------------------------------------------------------------------


def timeout_of(world: World, handle: Any) -> TimeoutError:
    with pytest.raises(ActivityError) as caught:
        world.result(handle)
    assert isinstance(caught.value.cause, TimeoutError)
    return caught.value.cause


def test_an_attempt_that_takes_too_long_times_out_and_its_code_is_stopped(timed: World) -> None:
    stopped = threading.Event()

    @activity.defn
    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    timed.worker(endless)
    handle = timed.start(endless, start_to_close_timeout=SECOND, retry_policy=ONCE)
    assert timeout_of(timed, handle).type is TimeoutType.START_TO_CLOSE
    assert stopped.wait(SOON_S)


def test_a_silent_attempt_times_out_with_its_last_details(timed: World) -> None:
    @activity.defn
    async def silent() -> None:
        activity.heartbeat("half way", 50)
        await asyncio.Event().wait()

    timed.worker(silent)
    handle = timed.start(silent, heartbeat_timeout=SECOND, retry_policy=ONCE)
    error = timeout_of(timed, handle)
    assert error.type is TimeoutType.HEARTBEAT
    assert list(error.last_heartbeat_details) == ["half way", 50]


def test_an_attempt_that_beats_does_not_time_out(timed: World) -> None:
    gate = Gate()

    @activity.defn
    def beats() -> str:
        for _ in range(10):
            activity.heartbeat()
            gate.begun.put(activity.info())
            assert gate.opened.wait(SOON_S)
            gate.opened.clear()
        return "done"

    timed.worker(beats)
    handle = timed.start(beats, heartbeat_timeout=SECOND, retry_policy=ONCE)
    assert isinstance(timed.clock, ManualClock)
    for _ in range(10):
        gate.next()
        timed.clock.advance(0.9)
        gate.opened.set()
    assert timed.result(handle) == "done"


def test_a_task_that_waits_too_long_is_not_started(timed: World) -> None:
    gate = Gate()
    gate.opened.set()
    handle = timed.start(gate.activity, schedule_to_start_timeout=SECOND)
    assert isinstance(timed.clock, ManualClock)
    timed.clock.advance(1.5)
    timed.worker(gate.activity)
    assert timeout_of(timed, handle).type is TimeoutType.SCHEDULE_TO_START
    assert not gate.runs


def test_retries_end_with_the_time_for_everything(timed: World) -> None:
    @activity.defn
    async def bad() -> None:
        raise ValueError("bad")

    timed.worker(bad)
    handle = timed.start(bad, schedule_to_close_timeout=timedelta(seconds=5))
    error = timeout_of(timed, handle)
    assert error.type is TimeoutType.SCHEDULE_TO_CLOSE
    assert "bad" in str(error.cause)


def test_heartbeat_details_that_nobody_can_read_do_not_end_the_worker(timed: World) -> None:
    """Found: a number over every bound, sent by token, stopped the supervisor at the timeout."""
    tokens: queue.Queue[bytes] = queue.Queue()

    @activity.defn
    def later() -> None:
        tokens.put(activity.info().task_token)
        activity.raise_complete_async()

    worker = timed.worker(later)
    handle = timed.start(later, heartbeat_timeout=SECOND, retry_policy=ONCE)
    other = timed.client.get_async_activity_handle(task_token=tokens.get(timeout=SOON_S))
    other._tell(heartbeat=[msgspec.Raw(b"1e400"), msgspec.Raw(b"2")]).waited(SOON_S)
    error = timeout_of(timed, handle)
    assert list(error.last_heartbeat_details) == ["1e400", 2]
    assert worker.is_running
    assert worker.fatal_error is None


# --- cancellation ---------------------------------------------------------------------------------


def test_a_running_activity_is_cancelled(world: World) -> None:
    begun = threading.Semaphore(0)

    @activity.defn
    async def in_coroutine() -> None:
        begun.release()
        await asyncio.Event().wait()

    @activity.defn
    def in_thread() -> None:
        begun.release()
        while True:
            activity.wait_for_cancelled_sync(0.001)

    world.worker(in_coroutine, in_thread)
    for fn in (in_coroutine, in_thread):
        handle = world.start(fn)
        assert begun.acquire(timeout=SOON_S)
        handle.cancel()
        with pytest.raises(ActivityError) as caught:
            handle.result(SOON_S)
        assert isinstance(caught.value.cause, CancelledError)
        assert caught.value.retry_state is RetryState.CANCEL_REQUESTED


def test_a_queued_task_that_was_cancelled_is_never_run(world: World) -> None:
    gate = Gate()
    handle = world.start(gate.activity)
    handle.cancel()
    world.worker(gate.activity)
    with pytest.raises(ActivityError) as caught:
        handle.result(SOON_S)
    assert isinstance(caught.value.cause, CancelledError)
    assert not gate.runs


def test_an_activity_may_end_well_in_spite_of_its_cancellation(world: World) -> None:
    begun = threading.Event()

    @activity.defn(no_thread_cancel_exception=True)
    def looks() -> bool:
        begun.set()
        activity.wait_for_cancelled_sync(SOON_S)
        return activity.is_cancelled()

    world.worker(looks)
    handle = world.start(looks)
    assert begun.wait(SOON_S)
    handle.cancel()
    assert handle.result(SOON_S) is True


# --- completion by somebody else ------------------------------------------------------------------


def test_an_attempt_completed_later_leaves_its_slot_free(world: World) -> None:
    tokens: queue.Queue[bytes] = queue.Queue()

    @activity.defn
    async def later() -> int:
        tokens.put(activity.info().task_token)
        activity.raise_complete_async()

    worker = world.worker(later, in_a_coroutine, max_concurrent_activities=1)
    handles = [world.start(later) for _ in range(3)]
    found = [tokens.get(timeout=SOON_S) for _ in range(3)]
    assert world.run(in_a_coroutine, 1) == "1x"
    for number, token in enumerate(found):
        world.client.get_async_activity_handle(task_token=token).complete(number)
    assert sorted(handle.result(SOON_S) for handle in handles) == [0, 1, 2]
    world.eventually(lambda: not worker._table.open())
    with pytest.raises(NotFound):
        world.client.get_async_activity_handle(task_token=found[0]).complete()


def test_an_attempt_awaited_by_a_worker_that_is_killed_is_lost_and_retried(world: World) -> None:
    tokens: queue.Queue[int] = queue.Queue()

    @activity.defn
    async def later() -> str:
        attempt = activity.info().attempt
        tokens.put(attempt)
        if attempt == 1:
            activity.raise_complete_async()
        return f"attempt {attempt}"

    first = world.worker(later)
    handle = world.start(later, retry_policy=FAST)
    assert tokens.get(timeout=SOON_S) == 1
    world.eventually(lambda: all(a.windowless for a in first._table.open()))
    world.worker(later)
    world.kill(first)
    assert handle.result(SOON_S) == "attempt 2"


# --- routes ---------------------------------------------------------------------------------------


def test_a_task_runs_on_the_host_or_process_that_it_names(world: World) -> None:
    @activity.defn
    async def where() -> list[str]:
        return [activity.info().host, activity.info().worker_id]

    for host, worker_id in (("a", "w-1"), ("b", "w-2"), ("b", "w-3")):
        world.worker(where, host=host, worker_id=worker_id)
    for _ in range(5):
        assert world.run(where, route=Route.process("w-2")) == ["b", "w-2"]
        assert world.run(where, route=Route.host("a")) == ["a", "w-1"]
        assert world.run(where, route=Route.host("b"))[0] == "b"


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_route_works_however_few_slots_there_are(world: World, slots: int) -> None:
    """Found: with two slots the private queue never got a consumer."""

    @activity.defn
    async def where() -> str:
        return activity.info().worker_id

    world.worker(where, worker_id="w", max_concurrent_activities=slots)
    assert world.run(where) == "w"
    assert world.run(where, route=Route.process("w")) == "w"
    assert world.run(where) == "w"


def test_a_worker_without_a_free_slot_still_is_where_a_route_leads(world: World) -> None:
    """Found: nobody declared the queue before a slot was free, and the start failed."""
    go = threading.Event()

    @activity.defn
    def hold() -> str:
        assert go.wait(SOON_S)
        return activity.info().host

    worker = world.worker(hold, host="h", max_concurrent_activities=1)
    first = world.start(hold)
    world.eventually(lambda: worker.running == 1)
    try:
        second = world.start(hold, route=Route.host("h"))
        assert [one.kind for one in world.client.operations.estate("q")] == ["activity", "host"]
    finally:
        go.set()
    assert (first.result(SOON_S), second.result(SOON_S)) == ("h", "h")


def test_a_target_that_is_gone_fails_falls_back_or_is_waited_for(timed: World) -> None:
    @activity.defn
    async def where() -> str:
        return activity.info().host

    timed.worker(where, host="here")
    with pytest.raises(TargetGone):
        timed.start(where, route=Route.host("gone"))
    fell_back = timed.start(where, route=Route.host("gone", on_gone=OnGone.FALL_BACK))
    assert timed.result(fell_back) == "here"
    waits = Route.host("late", on_gone=OnGone.WAIT, wait=timedelta(seconds=10))
    late = timed.start(where, route=waits)
    gone = timed.start(where, route=Route.host("never", on_gone=OnGone.WAIT, wait=SECOND))
    with pytest.raises(ActivityError) as caught:
        timed.result(gone)
    assert cause(caught).type == "TargetGone"
    timed.worker(where, host="late")
    assert timed.result(late) == "late"


# --- slots ----------------------------------------------------------------------------------------


def test_no_more_run_than_there_are_slots_over_all_task_queues(world: World) -> None:
    guard, now, most = threading.Lock(), Counter[str](), Counter[str]()

    @activity.defn
    def counted() -> None:
        with guard:
            now["n"] += 1
            most["n"] = max(most["n"], now["n"])
        in_a_thread(1)
        with guard:
            now["n"] -= 1

    world.worker(counted, task_queues=["a", "b", "c"], max_concurrent_activities=2)
    handles = [
        world.start(counted, task_queue=name, id=f"{name}{number}")
        for number in range(20)
        for name in "abc"
    ]
    for handle in handles:
        handle.result(SOON_S)
    assert most["n"] <= 2


def test_several_task_queues_share_the_slots(world: World) -> None:
    gates = {name: Gate(name) for name in "ab"}
    world.worker(
        *(gate.activity for gate in gates.values()),
        task_queues=["qa", "qb"],
        max_concurrent_activities=4,
    )
    handles = [world.start("a", task_queue="qa") for _ in range(4)]
    for _ in range(3):
        gates["a"].next()
    other = world.start("b", task_queue="qb")
    gates["b"].next()
    for gate in gates.values():
        gate.opened.set()
    assert [handle.result(SOON_S) for handle in [*handles, other]] == ["attempt 1"] * 5
    assert gates["a"].runs == {1: 4}


def test_an_idle_worker_gets_what_a_busy_one_cannot_run(world: World) -> None:
    gate = Gate()
    busy = world.worker(gate.activity, max_concurrent_activities=1, worker_id="busy")
    handles = [world.start(gate.activity)]
    assert gate.next().worker_id == busy.worker_id
    idle = world.worker(gate.activity, max_concurrent_activities=1)
    handles.append(world.start(gate.activity))
    assert gate.next().worker_id == idle.worker_id
    gate.opened.set()
    assert [handle.result(SOON_S) for handle in handles] == ["attempt 1"] * 2


# --- tuners ---------------------------------------------------------------------------------------


class Pool(CustomSlotSupplier):
    """Slots that several workers share."""

    def __init__(self, size: int) -> None:
        self.size, self.out, self.most = size, 0, 0
        self.guard = threading.Lock()
        self.infos: list[Any] = []

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        while (permit := self.try_reserve_slot(ctx)) is None:
            await asyncio.sleep(0.002)
        return permit

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        with self.guard:
            if self.out >= self.size:
                return None
            self.out += 1
            self.most = max(self.most, self.out)
            return SlotPermit()

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        self.infos.append(ctx.slot_info)

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        with self.guard:
            self.out -= 1


def test_workers_share_the_slots_of_their_authors_supplier(world: World) -> None:
    pool, guard, now, most = Pool(3), threading.Lock(), Counter[str](), Counter[str]()

    @activity.defn
    def counted() -> None:
        with guard:
            now["n"] += 1
            most["n"] = max(most["n"], now["n"])
        in_a_thread(1)
        with guard:
            now["n"] -= 1

    tuner = WorkerTuner(activity_supplier=pool)
    workers = [world.worker(counted, tuner=tuner) for _ in range(2)]
    handles = [world.start(counted) for _ in range(40)]
    for handle in handles:
        handle.result(SOON_S)
    assert most["n"] <= 3
    assert len(pool.infos) == 40
    assert {info.activity_type for info in pool.infos} == {"counted"}
    for worker in workers:
        worker.stop()
    assert pool.out == 0, "all slots are given back"


def test_a_worker_by_resources_runs_with_what_it_gets(world: World) -> None:
    tuner = WorkerTuner.create_resource_based(
        target_memory_usage=1.0,
        target_cpu_usage=1.0,
        activity_config=ResourceBasedSlotConfig(minimum_slots=2, maximum_slots=4),
    )
    gate = Gate()
    worker = world.worker(gate.activity, tuner=tuner)
    handles = [world.start(gate.activity) for _ in range(3)]
    for _ in range(2):
        gate.next()
    assert 2 <= worker.info().slots <= worker.slots_max == 4
    gate.opened.set()
    assert [handle.result(SOON_S) for handle in handles] == ["attempt 1"] * 3


def test_a_worker_takes_what_it_may_run_and_leaves_a_full_type_to_others(world: World) -> None:
    heavy, light = Gate("heavy"), Gate("light")
    by_type = {"heavy": 1}
    one = world.worker(
        heavy.activity, light.activity, worker_id="1", max_concurrent_activities_by_type=by_type
    )
    handles = [world.start("heavy") for _ in range(3)]
    assert heavy.next().worker_id == one.worker_id
    # Behind more of the full type there is one that may begin.
    handles.append(world.start("light"))
    light.next()
    assert heavy.begun.empty()
    two = world.worker(heavy.activity, worker_id="2", max_concurrent_activities_by_type=by_type)
    assert heavy.next().worker_id == two.worker_id
    for gate in (heavy, light):
        gate.opened.set()
    assert [handle.result(SOON_S) for handle in handles] == ["attempt 1"] * 4
    assert heavy.runs == {1: 3}, "what was given back has used up no attempt"


def test_a_queue_of_a_full_type_is_not_turned_over_and_over(world: World) -> None:
    heavy = Gate("heavy")
    worker = world.worker(
        heavy.activity,
        max_concurrent_activities=20,
        max_concurrent_activities_by_type={"heavy": 1},
    )
    window = worker._poller._windows[str(QUEUE)]
    assert window.size == 20
    handles = [world.start("heavy") for _ in range(60)]
    heavy.next()
    # What runs is in hand from before, and one more may be taken to see of what type it is.
    world.eventually(lambda: window.size <= 1 and window.draining <= 1)
    heavy.opened.set()
    assert {handle.result(SOON_S) for handle in handles} == {"attempt 1"}


def test_a_worker_that_a_program_hosts_needs_fixed_slots(world: World) -> None:
    tuner = WorkerTuner(activity_supplier=Pool(3))
    worker = Worker(world.client, task_queue="q", activities=[in_a_thread], tuner=tuner)
    with pytest.raises(InvalidArgument, match="needs fixed activity slots"):
        worker.get_consumers(None, None)


def test_a_worker_begins_no_more_per_second_than_it_may(timed: World) -> None:
    begun: list[int] = []

    @activity.defn
    def noted(number: int) -> None:
        begun.append(number)

    worker = timed.worker(noted, max_activities_per_second=2.0)
    for number in range(10):
        timed.start(noted, number)
    timed.eventually(lambda: len(begun) >= 3)
    before, at = len(begun), timed.clock.monotonic()
    assert worker.info().per_second == 2.0
    timed.eventually(lambda: len(begun) == 10)
    passed = timed.clock.monotonic() - at
    assert 10 - before <= 2.0 * passed + 3, "rate times time, and the burst"


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message(body=b"", message_id="1"), "tq-activity-type is missing"),
        (
            Message(body=b"x", message_id="1", headers={"tq-activity-type": "in_a_coroutine"}),
            "body: ",
        ),
        (
            Message(
                body=b'{"args":[' + b"[" * 100_000,
                message_id="1",
                headers={"tq-activity-type": "in_a_coroutine"},
            ),
            "body: ",
        ),
        (
            Message(
                body=b'{"args":[1]}',
                message_id="1",
                headers={"tq-activity-type": "in_a_coroutine", "tq-attempt": "one"},
            ),
            "header tq-attempt",
        ),
        (
            Message(
                body=b"\x80\x04.",
                message_id="1",
                content_type="application/x-python-serialize",
                headers={"tq-activity-type": "in_a_coroutine"},
            ),
            "content_type",
        ),
        (
            Message(
                body=b'{"args":[1]}',
                message_id="1",
                reply_to="tq.other.reply.x",
                headers={"tq-activity-type": "in_a_coroutine"},
            ),
            "reply_to",
        ),
        (
            Message(
                body=b'{"args":[1]}',
                message_id="1",
                correlation_id="\ud800",
                headers={"tq-activity-type": "unknown"},
            ),
            "correlation_id",
        ),
        (
            Message(
                body=b'{"args":[1]}',
                message_id="1",
                timestamp=2**63,
                headers={"tq-activity-type": "in_a_coroutine", "tq-schedule-to-close-ms": 5},
            ),
            "timestamp",
        ),
    ],
)
def test_what_nobody_can_read_is_parked_and_the_worker_goes_on(
    world: World, message: Message, reason: str
) -> None:
    world.worker(in_a_coroutine)
    world.publish(message)
    handle = world.start(in_a_coroutine, 1)
    parked = world.take_parked().message
    assert reason in parked.headers["tq-parked-reason"]
    assert parked.headers["tq-parked-from"] == str(QUEUE)
    assert parked.body == message.body
    assert handle.result(SOON_S) == "1x"


def test_arguments_over_every_bound_fail_the_activity_only(world: World) -> None:
    world.worker(in_a_coroutine)
    body = b'{"args":[' + b"9" * 5000 + b"]}"
    world.publish(
        Message(body=body, message_id="1", headers={"tq-activity-type": "in_a_coroutine"})
    )
    assert world.run(in_a_coroutine, 1) == "1x"


# --- ids ------------------------------------------------------------------------------------------


def test_an_id_runs_once_however_often_it_is_started(world: World) -> None:
    gate = Gate()
    gate.opened.set()
    workers = [world.worker(gate.activity) for _ in range(2)]
    handles = [world.start(gate.activity, id="x") for _ in range(10)]
    assert [handle.result(SOON_S) for handle in handles] == ["attempt 1"] * 10
    assert gate.runs == {1: 1}
    world.eventually(lambda: not any(worker._handler.unreported for worker in workers))


def test_a_second_start_lost_with_its_worker_is_not_run(world: World) -> None:
    """Found: it was retried as if it had begun, next to the first start of its id."""
    gate = Gate()
    starts = [world.start(gate.activity, id="x", retry_policy=FAST) for _ in range(2)]
    taker = world.broker_of(world.make_client("taker"))
    assert taker.get(str(QUEUE), world.soon()) is not None
    worker = world.worker(gate.activity)
    gate.next()
    taker.kill()  # before it has looked at what it took
    world.eventually(lambda: not world.count() and not worker._handler.unreported)
    world.eventually(lambda: not worker._handler._early)
    assert world.count(NAMES.queue(Kind.DELAY, "0")) == 0, "no further attempt is under way"
    gate.opened.set()
    assert [start.result(SOON_S) for start in starts] == ["attempt 1"] * 2
    assert gate.runs == {1: 1}


def test_a_first_start_lost_with_its_worker_is_retried_under_its_id(world: World) -> None:
    gate = Gate()
    gate.opened.set()
    start = world.start(gate.activity, id="x", retry_policy=FAST)
    taker = world.broker_of(world.make_client("taker"))
    assert taker.get(str(QUEUE), world.soon()) is not None
    world.worker(gate.activity)
    taker.kill()
    assert start.result(SOON_S) == "attempt 2"
    assert gate.runs == {2: 1}


# --- the end of a worker --------------------------------------------------------------------------


def test_a_graceful_shutdown_lets_what_runs_end_and_gives_the_rest_back(world: World) -> None:
    gate = Gate()
    first = world.worker(gate.activity, max_concurrent_activities=1)
    running = world.start(gate.activity)
    gate.next()
    waiting = [world.start(gate.activity) for _ in range(5)]
    stopping = threading.Thread(target=first.stop)
    stopping.start()
    world.eventually(lambda: not first.is_running)
    world.eventually(lambda: world.count() == 5)
    gate.opened.set()
    stopping.join(SOON_S)
    assert first.is_shutdown
    assert running.result(SOON_S) == "attempt 1"
    world.worker(gate.activity)
    assert [handle.result(SOON_S) for handle in waiting] == ["attempt 1"] * 5
    assert gate.runs == {1: 6}, "what is given back has used no attempt"


def test_activities_are_told_of_the_shutdown(world: World) -> None:
    begun = threading.Event()

    @activity.defn
    async def heeds() -> str:
        begun.set()
        await activity.wait_for_worker_shutdown()
        return "heeded"

    worker = world.worker(heeds)
    handle = world.start(heeds)
    assert begun.wait(SOON_S)
    worker.stop()
    assert handle.result(SOON_S) == "heeded"


def test_a_cold_shutdown_cancels_and_what_was_cut_off_is_retried_elsewhere(world: World) -> None:
    begun: queue.Queue[int] = queue.Queue()

    @activity.defn
    async def endless() -> str:
        begun.put(activity.info().attempt)
        if activity.info().attempt == 1:
            await asyncio.Event().wait()
        return "done"

    first = world.worker(endless)
    handle = world.start(endless, retry_policy=FAST)
    assert begun.get(timeout=SOON_S) == 1
    first.stop(cold=True)
    world.worker(endless)
    assert handle.result(SOON_S) == "done"


def test_code_that_heeds_nothing_does_not_keep_the_worker(world: World) -> None:
    """Found: the worker waited for it for ever, on the thread that called `stop`."""
    gate = Gate()

    @activity.defn(no_thread_cancel_exception=True)
    def deaf() -> str:
        if activity.info().attempt == 1:
            gate.begun.put(activity.info())
            gate.opened.wait(SOON_S)
        return f"attempt {activity.info().attempt}"

    first = world.worker(deaf, cancel_grace=timedelta(milliseconds=20))
    handle = world.start(deaf, retry_policy=FAST)
    gate.next()
    stopping = threading.Thread(target=first.stop, kwargs={"cold": True}, daemon=True)
    stopping.start()
    stopping.join(5)
    is_stopped = not stopping.is_alive()
    gate.opened.set()
    assert is_stopped
    world.worker(deaf)
    assert handle.result(SOON_S) == "attempt 2"


def test_a_cold_call_hurries_a_warm_one_also_when_the_code_heeds_nothing(world: World) -> None:
    """Found: it went on waiting for the end of ``graceful_shutdown_timeout``."""
    gate = Gate()
    worker = world.worker(
        gate.activity,
        cancel_grace=timedelta(milliseconds=20),
        graceful_shutdown_timeout=timedelta(hours=1),
    )
    world.start(gate.activity, retry_policy=FAST)
    gate.next()
    warm, cold = (
        threading.Thread(target=worker.stop, kwargs={"cold": cold}, daemon=True)
        for cold in (False, True)
    )
    warm.start()
    world.eventually(worker._place.shutdown.is_set)
    cold.start()
    cold.join(SOON_S)
    assert worker.is_shutdown
    assert worker.running == 1, "the code runs on, and that can be seen"
    gate.opened.set()


def test_a_worker_that_stops_waits_for_its_leases(world: World) -> None:
    """Found: a lease sent just before the end came to nobody, and an activity that had ended
    well counted as lost, and was run again.
    """
    worker = world.worker(in_a_thread)
    worker._keeper._under_way.add(("q", "x", 1, ""))
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    world.eventually(worker._place.shutdown.is_set)
    stopping.join(0.1)
    assert stopping.is_alive()
    worker._keeper._under_way.clear()
    stopping.join(SOON_S)
    assert worker.is_shutdown


def test_stopping_is_idempotent_and_a_stopped_worker_does_not_start_again(world: World) -> None:
    worker = world.worker(in_a_thread)
    for _ in range(2):
        worker.stop()
    assert worker.is_shutdown
    assert not worker.is_running
    with pytest.raises(InvalidArgument, match="started once"):
        worker.start()


def test_a_worker_that_cannot_consume_says_so_and_leaves_nothing_behind(world: World) -> None:
    """Found: it went on consuming the queues that it could, unseen."""
    client = world.make_client("refused")
    broker = world.broker_of(client)
    wait = broker.wait_subscribed
    calls = []

    def wait_subscribed(subscriptions: Any, deadline: float) -> None:
        calls.append(subscriptions)
        if len(calls) == 2:
            raise Unavailable("no")
        wait(subscriptions, deadline)

    broker.wait_subscribed = wait_subscribed  # type: ignore[method-assign]
    gate = Gate()
    worker = Worker(client, task_queue="q", activities=[gate.activity], reclaim_after=None)
    with pytest.raises(Unavailable):
        worker.start()
    assert worker.is_shutdown
    assert worker._supervisor is not None
    assert not worker._supervisor.is_alive()
    world.start(gate.activity)
    assert world.count() == 1


class SlowStart:
    """A worker whose start waits, in the middle, until it is let go on."""

    def __init__(self, world: World) -> None:
        client = world.make_client("w")
        broker = client.connection.broker
        self.reached, self.go = threading.Event(), threading.Event()
        self.gate = Gate()
        self.worker = Worker(
            client, task_queue="q", activities=[self.gate.activity], reclaim_after=None
        )
        wait = broker.wait_subscribed

        def wait_subscribed(subscriptions: Any, deadline: float) -> None:
            self.reached.set()
            assert self.go.wait(SOON_S)
            wait(subscriptions, deadline)

        broker.wait_subscribed = wait_subscribed  # type: ignore[method-assign]


def test_a_worker_that_is_stopped_while_it_starts_takes_nothing(world: World) -> None:
    slow = SlowStart(world)
    with ThreadPoolExecutor(2) as pool:
        starting = pool.submit(slow.worker.start)
        assert slow.reached.wait(SOON_S)
        stopping = pool.submit(slow.worker.stop)
        world.eventually(slow.worker._stopping.is_set)
        slow.go.set()
        with pytest.raises(Unavailable, match="stopped while it started"):
            starting.result(SOON_S)
        stopping.result(SOON_S)
    assert slow.worker.is_shutdown
    world.start(slow.gate.activity)
    assert world.count() == 1


def test_a_worker_whose_start_is_cancelled_is_stopped(world: World) -> None:
    slow = SlowStart(world)

    async def cancel() -> None:
        running = asyncio.ensure_future(slow.worker.run())
        await asyncio.to_thread(slow.reached.wait, SOON_S)
        running.cancel()
        asyncio.get_running_loop().call_later(0.01, slow.go.set)
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    assert slow.worker.is_shutdown
    world.start(slow.gate.activity)
    assert world.count() == 1


def test_workers_that_run_take_no_threads_of_the_loops(world: World) -> None:
    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        workers = [
            Worker(world.make_client(f"w{n}"), task_queue="q", activities=[in_a_thread])
            for n in range(3)
        ]
        running = [asyncio.ensure_future(worker.run()) for worker in workers]
        await asyncio.to_thread(world.run, in_a_thread, 1)
        for worker in workers:
            await worker.shutdown()
        await asyncio.gather(*running, return_exceptions=True)  # one may be starting still
        assert all(worker.is_shutdown for worker in workers)

    asyncio.run(asyncio.wait_for(serve(), SOON_S))


def test_what_rabbitmq_does_not_answer_leaves_no_other_consumer_open(world: World) -> None:
    gate = Gate()
    worker = world.worker(gate.activity)

    def silent(deadline: float) -> None:
        raise DeadlineExceeded("no answer")

    worker._gates.close_intake = silent  # type: ignore[method-assign]
    worker.stop()
    world.start(gate.activity)
    assert world.count() == 1


def test_a_worker_serves_within_its_block_and_while_it_runs(world: World) -> None:
    async def serve() -> str:
        client = world.make_client("w")
        worker = Worker(client, task_queue="q", activities=[in_a_coroutine], reclaim_after=None)
        running = asyncio.ensure_future(worker.run())
        result = await asyncio.to_thread(world.run, in_a_coroutine, 1)
        await worker.shutdown()
        await running
        return str(result)

    assert asyncio.run(serve()) == "1x"
    client = world.make_client("w")
    with Worker(client, task_queue="q", activities=[in_a_thread], reclaim_after=None) as worker:
        assert worker.is_running
        assert world.run(in_a_thread, 1)
    assert worker.is_shutdown


def test_a_defect_of_the_supervisor_ends_the_worker_loudly(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    told: queue.Queue[BaseException] = queue.Queue()
    worker = world.worker(in_a_thread, on_fatal_error=told.put)
    defect = ZeroDivisionError("defect")

    def tick(*args: Any) -> None:
        raise defect

    worker._keeper.tick = tick  # type: ignore[method-assign]
    assert told.get(timeout=SOON_S) is defect
    world.eventually(lambda: worker.is_shutdown)
    assert worker.fatal_error is defect
    assert "cannot go on" in caplog.text


def test_a_worker_ends_itself_without_a_thread_for_that(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = world.worker(in_a_thread)

    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name != "tq-clock":  # which is there, but for tests
            raise RuntimeError("can't start new thread")
        real(thread)

    def tick(*args: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        patch.setattr(worker._keeper, "tick", tick)
        world.eventually(lambda: worker.is_shutdown)


def test_who_stops_a_worker_that_ends_itself_meanwhile_is_not_waited_for(world: World) -> None:
    told = threading.Event()
    worker = world.worker(in_a_thread, on_fatal_error=lambda error: told.set())
    real, stopping = worker._drain, threading.Event()

    def drain(cold: bool) -> None:
        stopping.set()
        assert told.wait(SOON_S)
        real(cold)

    def tick(*args: Any) -> None:
        if stopping.is_set():
            raise ZeroDivisionError("defect")

    worker._drain = drain  # type: ignore[method-assign]
    worker._keeper.tick = tick  # type: ignore[method-assign]
    worker.stop()
    assert worker.is_shutdown


def test_an_end_that_fails_is_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = world.worker(in_a_thread)

    def close(deadline: float) -> None:
        raise ZeroDivisionError("defect")

    monkeypatch.setattr(worker._executors["async"], "close", close)
    with pytest.raises(ZeroDivisionError):
        worker.stop()
    worker.stop()
    assert worker.is_shutdown


# --- broken connections and killed workers --------------------------------------------------------


def test_a_broken_connection_costs_no_attempt_and_the_outcome_is_told_once(world: World) -> None:
    gate = Gate()
    worker = world.worker(gate.activity)
    handles = [world.start(gate.activity, retry_policy=ONCE) for _ in range(3)]
    for _ in handles:
        gate.next()
    for _ in range(3):
        world.broker_of_worker(worker).break_connection()
        world.broker_of_worker(worker).wait_quiet(world.soon())
    gate.opened.set()
    assert [handle.result(SOON_S) for handle in handles] == ["attempt 1"] * 3
    world.eventually(lambda: not worker._handler.unreported and not worker._table._held)
    assert gate.runs == {1: 3}
    assert world.count() == 0
    windows = worker._poller._windows
    world.eventually(lambda: windows[str(QUEUE)].in_hand + windows[str(QUEUE)].draining == 0)


def test_an_end_during_an_outage_is_told_afterwards(world: World) -> None:
    gate = Gate()
    worker = world.worker(gate.activity)
    handle = world.start(gate.activity, retry_policy=ONCE)
    gate.next()
    world.broker_of_worker(worker).break_connection(away_s=0.1)
    gate.opened.set()
    assert handle.result(SOON_S) == "attempt 1"
    world.eventually(lambda: not worker._table._held)
    assert gate.runs == {1: 1}
    assert world.count() == 0


def test_an_attempt_lost_with_its_worker_is_retried_by_another(world: World) -> None:
    gate = Gate()
    first = world.worker(gate.activity)
    handle = world.start(gate.activity, retry_policy=FAST)
    assert gate.next().attempt == 1
    world.worker(gate.activity)
    world.kill(first)
    assert gate.next().attempt == 2
    gate.opened.set()
    assert handle.result(SOON_S) == "attempt 2"
    assert gate.runs == {1: 1, 2: 1}


def test_a_single_attempt_lost_with_its_worker_is_not_run_again(world: World) -> None:
    gate = Gate()
    first = world.worker(gate.activity)
    handle = world.start(gate.activity, retry_policy=ONCE)
    gate.next()
    world.worker(gate.activity)
    world.kill(first)
    with pytest.raises(ActivityError) as caught:
        handle.result(SOON_S)
    assert cause(caught).type == "WorkerLost"
    gate.opened.set()
    assert gate.runs == {1: 1}


def test_details_of_a_killed_worker_reach_the_next_attempt(world: World) -> None:
    begun: queue.Queue[Any] = queue.Queue()
    go_on = threading.Event()

    @activity.defn
    def long() -> list[Any]:
        about = activity.info()
        if about.attempt == 1:
            activity.heartbeat({"page": 7})
            begun.put(about)
            go_on.wait(SOON_S)
        return list(about.heartbeat_details)

    first = world.worker(long)
    handle = world.start(long, heartbeat_timeout=MINUTE, retry_policy=FAST)
    begun.get(timeout=SOON_S)
    world.eventually(lambda: all(attempt.windowless for attempt in first._table.open()))
    world.worker(long)
    world.kill(first)
    assert handle.result(SOON_S) == [{"page": 7}]
    go_on.set()


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, "task_queue or task_queues"),
        ({"task_queues": "q"}, "task_queues must be a sequence"),
        ({"task_queue": ""}, "task_queue must not be empty"),
        ({"task_queue": "q", "slots": 3}, "unknown worker option 'slots'"),
        ({"task_queue": "q", "max_concurrent_activities": 0}, "max_concurrent_activities is 0"),
        ({"task_queue": "q", "activities": []}, "At least one activity"),
        ({"task_queue": "q", "activities": in_a_thread}, "activities is .*must be a sequence"),
        ({"task_queue": "q", "workflows": int}, "workflows is .*must be a sequence"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(
    world: World, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(InvalidArgument, match=error):
        Worker(world.client, **({"activities": [in_a_thread]} | options))


def test_a_worker_answers_a_ping(world: World) -> None:
    worker = world.worker(in_a_thread, worker_id="w", identity="me", max_concurrent_activities=7)
    (info,) = world.client.core.ping(0.3).result(SOON_S)
    assert (info.worker_id, info.identity, info.slots, info.running) == ("w", "me", 7, 0)
    assert (info.task_queues, info.activities) == (["q"], ["in_a_thread"])
    assert worker.running == 0


def test_a_worker_keeps_the_settings_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playback, "SNAPSHOT_EVERY", 3)
    monkeypatch.setattr(settings_keeper, "JITTER_S", 0.0)
    worker = world.worker(in_a_thread)
    for _ in range(3):
        world.client.pause_task_queue("q")
    read: list[bytes] = []

    def on_deliveries(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            read.append(delivery.message.body)
            delivery.ack()

    arguments = {"x-stream-offset": "first"}
    options = SubscribeOptions(prefetch=10, arguments=arguments)
    world.broker.subscribe(str(NAMES.queue(Kind.SETTINGS)), on_deliveries, options)
    world.eventually(lambda: any(b"settings-snapshot" in body for body in read))
    assert not worker._settings.fault
