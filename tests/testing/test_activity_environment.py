"""Calling activities without a worker."""

from __future__ import annotations

import asyncio
import dataclasses
import queue
import threading
from typing import Any

import pytest

from tq_broker import activity
from tq_broker.converter import JSONPayloadConverter
from tq_broker.exceptions import CancelledError
from tq_broker.testing import ActivityEnvironment, ManualClock

SOON_S = 30.0


@pytest.fixture
def env() -> ActivityEnvironment:
    return ActivityEnvironment()


def double(number: int) -> int:
    assert activity.in_activity()
    return 2 * number


def test_the_package_has_what_tests_need() -> None:
    assert ManualClock().monotonic() == 1000.0


def test_an_undecorated_function_is_called(env: ActivityEnvironment) -> None:
    assert env.run(double, 4) == 8
    assert not activity.in_activity()


def test_a_decorated_function_method_and_instance_are_called(env: ActivityEnvironment) -> None:
    class Twice:
        @activity.defn
        def method(self, number: int) -> int:
            return double(number)

        def __call__(self, number: int) -> int:
            return double(number)

    assert env.run(activity.defn(double), 4) == 8
    assert env.run(Twice().method, 4) == 8
    assert env.run(Twice(), 4) == 8


def test_an_async_function_gives_a_coroutine(env: ActivityEnvironment) -> None:
    @activity.defn
    async def fn(number: int) -> int:
        await asyncio.sleep(0)
        return double(number)

    class Fn:
        async def __call__(self, number: int) -> int:
            return double(number)

    assert asyncio.run(env.run(fn, 4)) == 8
    assert asyncio.run(env.run(Fn(), 4)) == 8


def test_an_exception_is_the_callers(env: ActivityEnvironment) -> None:
    def fn() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        env.run(fn)
    assert not activity.in_activity()


def test_the_info_can_be_replaced(env: ActivityEnvironment) -> None:
    env.info = dataclasses.replace(env.info, attempt=3)
    assert env.run(lambda: activity.info().attempt) == 3
    assert env.run(lambda: activity.info().task_queue) == "test"


def test_heartbeats_go_to_the_callback(env: ActivityEnvironment) -> None:
    env.run(activity.heartbeat, "to nobody")
    beats: list[tuple[Any, ...]] = []
    env.on_heartbeat = lambda *details: beats.append(details)
    env.run(activity.heartbeat, 1, "two")
    assert beats == [(1, "two")]


def test_the_converter_can_be_replaced(env: ActivityEnvironment) -> None:
    env.payload_converter = converter = JSONPayloadConverter()
    assert env.run(activity.payload_converter) is converter


def test_completing_elsewhere_is_seen_by_the_caller(env: ActivityEnvironment) -> None:
    with pytest.raises(activity.CompleteAsyncError):
        env.run(activity.raise_complete_async)


def test_a_shutdown_is_told(env: ActivityEnvironment) -> None:
    async def waits() -> bool:
        await activity.wait_for_worker_shutdown()
        return activity.is_worker_shutdown()

    async def scenario() -> bool:
        task = asyncio.ensure_future(env.run(waits))
        await asyncio.sleep(0)
        env.worker_shutdown()
        return bool(await task)

    assert not env.run(activity.is_worker_shutdown)
    assert asyncio.run(asyncio.wait_for(scenario(), SOON_S))


def test_a_cancelled_coroutine_gets_asyncios_error(env: ActivityEnvironment) -> None:
    seen: list[bool] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(activity.is_cancelled())
            raise

    async def scenario() -> None:
        task = asyncio.ensure_future(env.run(waits))
        await asyncio.sleep(0)
        env.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scenario())
    assert seen == [True]


def test_a_coroutine_may_honour_its_cancellation_with_a_result(env: ActivityEnvironment) -> None:
    async def tidies() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "tidied"
        return "never"

    env.cancel()
    assert asyncio.run(env.run(tidies)) == "tidied"


class InThread:
    """Runs a synchronous activity in a thread, to cancel it from another one."""

    def __init__(self, env: ActivityEnvironment, fn: Any) -> None:
        self.ready: queue.Queue[None] = queue.Queue()
        self.ends: queue.Queue[Any] = queue.Queue()
        env.on_heartbeat = lambda *details: self.ready.put(None)
        self.thread = threading.Thread(target=self._run, args=(env, fn), daemon=True)
        self.thread.start()
        self.ready.get(timeout=SOON_S)

    def _run(self, env: ActivityEnvironment, fn: Any) -> None:
        try:
            self.ends.put(env.run(fn))
        except BaseException as error:
            self.ends.put(error)

    def end(self) -> Any:
        return self.ends.get(timeout=SOON_S)


def test_a_cancelled_thread_gets_our_error(env: ActivityEnvironment) -> None:
    def spins() -> None:
        activity.heartbeat()
        while True:
            pass

    running = InThread(env, spins)
    env.cancel()
    assert isinstance(running.end(), CancelledError)


def test_a_shield_holds_the_error_back(env: ActivityEnvironment) -> None:
    done: list[str] = []

    def tidies() -> None:
        with activity.shield_thread_cancel_exception():
            activity.heartbeat()
            activity.wait_for_cancelled_sync(SOON_S)
            done.append("tidied")
        done.append("never")

    running = InThread(env, tidies)
    env.cancel()
    assert isinstance(running.end(), CancelledError)
    assert done == ["tidied"]


def test_a_function_may_decline_the_error(env: ActivityEnvironment) -> None:
    @activity.defn(no_thread_cancel_exception=True)
    def looks() -> str:
        activity.heartbeat()
        activity.wait_for_cancelled_sync(SOON_S)
        return "cancelled" if activity.is_cancelled() else "waited in vain"

    running = InThread(env, looks)
    env.cancel()
    assert running.end() == "cancelled"


def test_what_is_run_after_the_cancellation_is_cancelled_too(env: ActivityEnvironment) -> None:
    env.cancel()
    with pytest.raises(CancelledError):
        env.run(double, 4)


def test_nothing_is_raised_after_the_end(env: ActivityEnvironment) -> None:
    assert env.run(double, 4) == 8
    env.cancel()
    assert sum(range(1000)) == 499500
