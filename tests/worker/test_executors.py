"""Coroutines on a loop, functions in threads, and how they are stopped."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tests.worker.attempts import SOON_S, FakeOwner, attempt_of
from tq_broker import activity
from tq_broker.clock import SystemClock
from tq_broker.exceptions import CancelledError, InvalidArgument, Malformed
from tq_broker.model.failure import FailureKind
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.executors import AsyncExecutor, Executor, Interrupter, ThreadExecutor
from tq_broker.worker.passage import Passage

CLOCK = SystemClock()


class Stage:
    """An executor, its owner, and the heartbeats of what runs in it."""

    def __init__(self, make: Callable[[FakeOwner], Executor]) -> None:
        self.owner = FakeOwner()
        self.executor = make(self.owner)
        self.beats: queue.Queue[list[Any]] = queue.Queue()

    def attempt(self, fn: Callable[..., Any], *args: Any) -> Attempt:
        def on_heartbeat(attempt: Attempt) -> None:
            self.beats.put([msgspec.json.decode(detail) for detail in attempt.details or ()])

        return attempt_of(fn, *args, on_heartbeat=on_heartbeat)

    def start(self, fn: Callable[..., Any], *args: Any) -> Attempt:
        attempt = self.attempt(fn, *args)
        self.executor.start([attempt])
        return attempt

    def beat(self) -> list[Any]:
        return self.beats.get(timeout=SOON_S)

    def cancel(self, attempt: Attempt) -> None:
        """As a worker does it."""
        attempt.request_cancel(self.executor.cancel)


@pytest.fixture
def coroutines() -> Iterator[Stage]:
    stage = Stage(lambda owner: AsyncExecutor(owner, CLOCK))
    yield stage
    stage.executor.close(CLOCK.monotonic() + SOON_S)


@pytest.fixture
def threads() -> Iterator[Stage]:
    stage = Stage(lambda owner: ThreadExecutor(owner, 2))
    yield stage
    stage.executor.close(CLOCK.monotonic() + SOON_S)


# --- coroutines ---------------------------------------------------------------------------------


@activity.defn
async def async_double(number: int) -> int:
    await asyncio.sleep(0)
    activity.heartbeat(activity.info().activity_id)
    return 2 * number


@activity.defn
async def async_nothing() -> None: ...


@activity.defn
async def async_fails() -> None:
    raise KeyError("x")


@activity.defn
async def async_unsendable() -> Any:
    return object()


@activity.defn
async def async_exits() -> None:
    raise SystemExit(3)


@activity.defn
async def async_waits() -> None:
    activity.heartbeat("ready")
    await asyncio.Event().wait()


@activity.defn
async def async_notices() -> str:
    activity.heartbeat("ready")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "noticed" if activity.is_cancelled() else "surprised"
    return "never"


def test_a_coroutine_returns_its_result_as_json(coroutines: Stage) -> None:
    attempt = coroutines.start(async_double, "4")
    end = coroutines.owner.next()
    assert (end.attempt, end.how, end.value) == (attempt, "returned", b"8")
    assert coroutines.beat() == ["a-1"]
    coroutines.start(async_nothing)
    assert coroutines.owner.next().value == b"null"


def test_an_attempt_that_has_ended_does_not_hold_its_task(coroutines: Stage) -> None:
    first = coroutines.start(async_nothing)
    coroutines.owner.next()
    coroutines.start(async_nothing)
    coroutines.owner.next()  # the loop comes to this after all that follows from the first
    assert first.handle is None


@pytest.mark.parametrize(
    ("fn", "args", "error"),
    [
        (async_fails, [], KeyError),
        (async_unsendable, [], InvalidArgument),
        (async_double, ["four"], Malformed),
        (async_double, [1, 2], TypeError),
    ],
)
def test_a_coroutine_that_fails_tells_its_error(
    coroutines: Stage, fn: Any, args: list[Any], error: type[BaseException]
) -> None:
    coroutines.start(fn, *args)
    end = coroutines.owner.next()
    assert (end.how, type(end.value)) == ("raised", error)


def test_many_coroutines_run_at_once_each_in_its_own_context(coroutines: Stage) -> None:
    attempts = [coroutines.attempt(async_waits) for _ in range(100)]
    coroutines.executor.start(attempts)
    for _ in attempts:
        coroutines.beat()
    for attempt in attempts:
        coroutines.cancel(attempt)
    ends = [coroutines.owner.next() for _ in attempts]
    assert {end.attempt for end in ends} == set(attempts)
    assert all(end.failure.kind is FailureKind.CANCELED for end in ends)


def test_a_coroutine_may_notice_its_cancellation(coroutines: Stage) -> None:
    attempt = coroutines.start(async_notices)
    coroutines.beat()
    coroutines.cancel(attempt)
    assert coroutines.owner.next().value == b'"noticed"'


@activity.defn
async def async_waits_to_be_told() -> str:
    activity.heartbeat()
    await activity.wait_for_cancelled()
    return "told"


def test_a_coroutine_that_waits_to_be_told_is_interrupted_there(coroutines: Stage) -> None:
    def interrupt(attempt: Attempt) -> None:
        # Whatever was told before has reached the coroutine by now
        idle = coroutines.start(async_nothing)
        assert coroutines.owner.next().attempt is idle
        coroutines.executor.cancel(attempt)

    attempt = coroutines.start(async_waits_to_be_told)
    coroutines.beat()
    attempt.request_cancel(interrupt)
    assert coroutines.owner.next().failure.kind is FailureKind.CANCELED


class Leave(Passage):
    def __init__(self) -> None:
        self.begins = 0

    def begun(self) -> None:
        self.begins += 1


@activity.defn
async def wants_a_number(number: int) -> None: ...


@activity.defn
def needs_a_number(number: int) -> None: ...


@pytest.mark.parametrize("fn", [wants_a_number, needs_a_number])
def test_limits_hear_of_what_begins_and_of_nothing_else(
    coroutines: Stage, threads: Stage, fn: Callable[..., Any]
) -> None:
    stage = coroutines if fn is wants_a_number else threads
    runs, malformed, cancelled = stage.attempt(fn, 1), stage.attempt(fn, "x"), stage.attempt(fn, 2)
    leaves = [Leave(), Leave(), Leave()]
    for one, leave in zip((runs, malformed, cancelled), leaves, strict=True):
        one.passage = leave
        if one is cancelled and stage is coroutines:
            one.request_cancel()
        if one is not cancelled or stage is coroutines:
            stage.executor.start([one])
            stage.owner.next()
    assert [leave.begins for leave in leaves] == [1, 0, 0]


def test_a_coroutine_cancelled_before_it_began_is_told_of(coroutines: Stage) -> None:
    attempt = coroutines.attempt(async_double, 3)
    attempt.request_cancel()
    coroutines.executor.start([attempt])
    assert coroutines.owner.next().failure.kind is FailureKind.CANCELED


def test_an_abandoned_coroutine_is_cancelled(coroutines: Stage) -> None:
    attempt = coroutines.start(async_waits)
    coroutines.beat()
    coroutines.executor.abandon(attempt)
    assert coroutines.owner.next().attempt is attempt


def test_cancelling_what_has_ended_does_nothing(coroutines: Stage) -> None:
    attempt = coroutines.start(async_nothing)
    coroutines.owner.next()
    coroutines.cancel(attempt)
    coroutines.start(async_nothing)
    assert coroutines.owner.next().how == "returned"


def test_a_coroutine_that_exits_fails_and_the_loop_goes_on(coroutines: Stage) -> None:
    coroutines.start(async_exits)
    assert isinstance(coroutines.owner.next().value, SystemExit)
    coroutines.start(async_nothing)
    assert coroutines.owner.next().how == "returned"


def test_the_loop_can_be_closed_twice_or_unused(coroutines: Stage) -> None:
    coroutines.executor.close(CLOCK.monotonic())
    coroutines.start(async_nothing)
    coroutines.owner.next()
    coroutines.executor.close(CLOCK.monotonic() + SOON_S)
    coroutines.executor.close(CLOCK.monotonic() + SOON_S)
    assert not [t for t in threading.enumerate() if t.name == "tq-activities"]


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def no_loop() -> asyncio.AbstractEventLoop:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("where", "name", "fails"),
    [(threading.Thread, "start", no_thread), (asyncio, "new_event_loop", no_loop)],
)
def test_coroutines_fail_where_the_system_has_no_loop_for_them(
    coroutines: Stage, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fails: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fails)
        attempt = coroutines.start(async_nothing)
    end = coroutines.owner.next()
    assert (end.attempt, end.how) == (attempt, "raised")
    coroutines.executor.close(CLOCK.monotonic() + SOON_S)
    coroutines.start(async_nothing)
    assert coroutines.owner.next().how == "returned"


def test_two_first_starts_at_once_make_one_loop(
    coroutines: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, others = asyncio.new_event_loop, []

    def slowly() -> asyncio.AbstractEventLoop:
        if not others:
            others.append(threading.Thread(target=coroutines.start, args=(async_nothing,)))
            others[0].start()
            others[0].join(0.05)  # if it can go on at all, it has by then
        made.append(make())
        return made[-1]

    made: list[asyncio.AbstractEventLoop] = []
    monkeypatch.setattr(asyncio, "new_event_loop", slowly)
    coroutines.start(async_nothing)
    assert [coroutines.owner.next().how for _ in range(2)] == ["returned"] * 2
    assert len(made) == 1


# --- threads ------------------------------------------------------------------------------------


@activity.defn
def double(number: int) -> int:
    activity.heartbeat(activity.info().activity_id)
    return 2 * number


@activity.defn
def fails() -> None:
    raise KeyError("x")


@activity.defn
def unsendable() -> Any:
    return object()


@activity.defn
def exits() -> None:
    raise SystemExit(3)


@activity.defn
def spins() -> None:
    activity.heartbeat("ready")
    while True:
        pass


@activity.defn
def shields() -> str:
    with activity.shield_thread_cancel_exception():
        activity.heartbeat("ready")
        activity.wait_for_cancelled_sync(SOON_S)
        with activity.shield_thread_cancel_exception():
            activity.heartbeat("inner")
        activity.heartbeat("outer")
    return "never"


@activity.defn
def recovers() -> str:
    try:
        activity.heartbeat("ready")
        while True:
            pass
    except CancelledError:
        return "recovered"


@activity.defn(no_thread_cancel_exception=True)
def looks() -> str:
    activity.heartbeat("ready")
    activity.wait_for_cancelled_sync(SOON_S)
    return "looked" if activity.is_cancelled() else "waited in vain"


def test_a_function_returns_its_result_as_json(threads: Stage) -> None:
    attempt = threads.start(double, 4)
    end = threads.owner.next()
    assert (end.attempt, end.how, end.value) == (attempt, "returned", b"8")
    assert threads.beat() == ["a-1"]
    assert not activity.in_activity()


@pytest.mark.parametrize(
    ("fn", "args", "error"),
    [
        (fails, [], KeyError),
        (unsendable, [], InvalidArgument),
        (double, ["four"], Malformed),
        (exits, [], SystemExit),
    ],
)
def test_a_function_that_fails_tells_its_error(
    threads: Stage, fn: Any, args: list[Any], error: type[BaseException]
) -> None:
    threads.start(fn, *args)
    end = threads.owner.next()
    assert (end.how, type(end.value)) == ("raised", error)


@pytest.mark.parametrize("stop", ["cancel", "abandon"])
def test_a_function_is_interrupted(threads: Stage, stop: str) -> None:
    attempt = threads.start(spins)
    threads.beat()
    getattr(threads.executor, stop)(attempt)
    assert threads.owner.next().failure.kind is FailureKind.CANCELED


def test_a_function_may_catch_the_interruption_and_gets_it_once(threads: Stage) -> None:
    attempt = threads.start(recovers)
    threads.beat()
    threads.cancel(attempt)
    threads.cancel(attempt)
    assert threads.owner.next().value == b'"recovered"'


def test_a_shield_holds_until_the_last_one_is_left(threads: Stage) -> None:
    attempt = threads.start(shields)
    threads.beat()
    threads.cancel(attempt)
    assert [threads.beat(), threads.beat()] == [["inner"], ["outer"]]
    assert threads.owner.next().failure.kind is FailureKind.CANCELED


def test_a_function_may_decline_interruptions(threads: Stage) -> None:
    attempt = threads.start(looks)
    threads.beat()
    threads.cancel(attempt)
    assert threads.owner.next().value == b'"looked"'


def test_a_function_cancelled_while_it_waits_for_a_thread_never_runs() -> None:
    stage = Stage(lambda owner: ThreadExecutor(owner, 1))
    running = stage.start(looks)
    stage.beat()
    waiting = stage.start(spins)
    stage.cancel(waiting)
    stage.cancel(running)
    ends = {end.attempt: end for end in (stage.owner.next(), stage.owner.next())}
    assert ends[waiting].failure.kind is FailureKind.CANCELED
    assert stage.beats.empty()
    stage.executor.close(CLOCK.monotonic())


def test_an_interruption_never_reaches_the_threads_next_function() -> None:
    stage = Stage(lambda owner: ThreadExecutor(owner, 1))
    for _ in range(200):
        first, second = stage.attempt(double, 1), stage.attempt(double, 2)
        stage.executor.start([first, second])
        stage.cancel(first)
        ends = {end.attempt: end for end in (stage.owner.next(), stage.owner.next())}
        assert ends[second].value == b"4"
    stage.executor.close(CLOCK.monotonic())


def test_what_was_not_started_yet_can_be_cancelled_and_never_runs(threads: Stage) -> None:
    attempt = threads.attempt(spins)
    threads.cancel(attempt)
    threads.executor.abandon(attempt)
    threads.executor.start([attempt])
    assert threads.owner.next().failure.kind is FailureKind.CANCELED
    assert threads.beats.empty()


def test_functions_fail_where_the_system_has_no_thread_for_them(
    threads: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        attempt = threads.start(double, 1)
    end = threads.owner.next()
    assert end.attempt is attempt
    assert "can't start new thread" in end.failure.message
    threads.start(double, 2)
    assert threads.owner.next().value == b"4"


def test_the_users_own_pool_is_used_and_left_open() -> None:
    with concurrent.futures.ThreadPoolExecutor(1, "theirs") as pool:

        @activity.defn
        def where() -> str:
            return threading.current_thread().name

        stage = Stage(lambda owner: ThreadExecutor(owner, 1, pool))
        stage.start(where)
        assert b"theirs" in stage.owner.next().value
        stage.executor.close(CLOCK.monotonic())
        assert pool.submit(int, "3").result(SOON_S) == 3


def test_what_the_users_pool_drops_or_cannot_run_fails() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stage = Stage(lambda owner: ThreadExecutor(owner, 1, pool))
        running, dropped = stage.start(looks), stage.start(double, 1)
        stage.beat()
        pool.shutdown(wait=False, cancel_futures=True)
        assert stage.owner.next().attempt is dropped
        stage.cancel(running)
        assert stage.owner.next().attempt is running
    with concurrent.futures.ThreadPoolExecutor(1, initializer=broken) as pool:
        stage = Stage(lambda owner: ThreadExecutor(owner, 1, pool))
        attempt = stage.start(double, 1)
        end = stage.owner.next()
        assert (end.attempt, end.how) == (attempt, "raised")


def test_what_the_users_pool_took_although_it_has_no_thread_does_not_run_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        stage = Stage(lambda owner: ThreadExecutor(owner, 2, pool))
        running = stage.start(looks)
        stage.beat()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            refused = stage.start(double, 1)
        assert stage.owner.next().attempt is refused
        refused.code_running = False  # as a worker does it
        stage.cancel(running)
        assert stage.owner.next().attempt is running
    assert stage.owner.ends.empty()


# --- Interrupter --------------------------------------------------------------------------------


def test_an_interruption_before_the_beginning_is_raised_there() -> None:
    interrupter = Interrupter()
    interrupter.interrupt()
    with pytest.raises(CancelledError):
        interrupter.begin()
    interrupter.end()


def test_an_interruption_of_the_own_thread_is_raised_at_once() -> None:
    interrupter = Interrupter()

    def interrupted() -> None:
        interrupter.begin()
        interrupter.interrupt()
        for _ in range(1000):
            pass

    with pytest.raises(CancelledError):
        interrupted()
    interrupter.end()


def test_after_the_end_nothing_is_raised() -> None:
    interrupter = Interrupter()
    interrupter.begin()
    interrupter.end()
    interrupter.interrupt()
    assert sum(range(1000)) == 499500


def test_an_error_in_a_shield_does_not_lose_the_cancellation() -> None:
    interrupter = Interrupter()
    interrupter.begin()

    def shielded() -> None:
        with interrupter.shield():
            interrupter.interrupt()
            raise ValueError("mine")

    try:
        with pytest.raises((ValueError, CancelledError)) as caught:
            shielded()
        # The cancellation wins, as it does without a shield; the error is its context.
        assert isinstance(caught.value, CancelledError)
        assert isinstance(caught.value.__context__, ValueError)
    finally:
        interrupter.end()
