"""The event loop of workflows, by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tq_broker.worker.loop import Timer, WorkflowLoop, awaited
from tq_broker.workflow.errors import BeingEvictedError, RestrictedWorkflowAccessError


class Owner:
    def __init__(self) -> None:
        self.now_ms = 0
        self.timers: list[tuple[Timer, int]] = []
        self.canceled: list[Timer] = []
        self.errors: list[dict[str, Any]] = []
        self.forbidden = False

    def check(self, what: str) -> None:
        if self.forbidden:
            raise PermissionError(what)

    def timer_started(self, timer: Timer, delay_ms: int) -> None:
        self.timers.append((timer, delay_ms))

    def timer_canceled(self, timer: Timer) -> None:
        self.canceled.append(timer)

    def loop_error(self, context: dict[str, Any]) -> None:
        self.errors.append(context)


def no_more() -> bool:
    return False


@contextmanager
def loop_of(owner: Owner, salt: int = 0) -> Iterator[WorkflowLoop]:
    loop = WorkflowLoop(owner, salt)  # type: ignore[abstract]
    with loop.entered():
        yield loop


def test_callbacks_run_in_the_order_in_which_they_were_asked_for() -> None:
    told: list[int] = []
    with loop_of(Owner()) as loop:
        loop.call_soon(told.append, 1)
        loop.call_soon(lambda: loop.call_soon(told.append, 3))
        loop.call_soon(told.append, 2)
        loop.call_soon(told.append, 0).cancel()
        loop.run(no_more)
    assert told == [1, 2, 3]


def test_it_runs_on_while_there_is_more() -> None:
    told: list[str] = []
    with loop_of(Owner()) as loop:
        more = iter([True, True, False])

        def ask() -> bool:
            loop.call_soon(told.append, "x")
            return next(more)

        loop.run(ask)
    assert told == ["x", "x"]


def test_time_is_the_owners_and_stands_still() -> None:
    owner = Owner()
    with loop_of(owner) as loop:
        told: list[float] = []
        loop.call_later(1.5, lambda: told.append(loop.time()))
        loop.call_at(2, told.append, -1)
        loop.run(no_more)
        assert [delay for _, delay in owner.timers] == [1500, 2000]
        assert told == []
        owner.now_ms = 1500
        loop.fire(owner.timers[0][0])
        loop.run(no_more)
    assert told == [1.5]


def test_a_cancelled_timer_is_told_of_once() -> None:
    owner = Owner()
    with loop_of(owner) as loop:
        timer = loop.call_later(1, print)
        timer.cancel()
        timer.cancel()
    assert owner.canceled == [timer]


def test_it_is_the_running_loop_only_while_it_runs() -> None:
    with loop_of(Owner()) as loop:
        assert asyncio.get_running_loop() is loop
        assert loop.is_running()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert not loop.is_running()


def test_the_loop_around_is_running_again_afterwards() -> None:
    async def main() -> None:
        outer = asyncio.get_running_loop()
        with loop_of(Owner()) as loop:
            task = loop.create_task(asyncio.sleep(0, "x"))
            loop.run(no_more)
            assert task.result() == "x"
        assert asyncio.get_running_loop() is outer
        await asyncio.sleep(0)

    asyncio.run(main())


def test_sets_of_tasks_iterate_in_the_order_of_their_making() -> None:
    async def nothing() -> None: ...

    with loop_of(Owner(), salt=1 << 40) as loop:
        tasks = [loop.create_task(nothing()) for _ in range(100)]
        backwards = [*reversed(tasks)]
        assert list(set(backwards)) == list(set(tasks)) == tasks
        loop.run(no_more)


def test_tasks_that_are_done_are_forgotten() -> None:
    async def nothing() -> None: ...

    with loop_of(Owner()) as loop:
        for _ in range(1000):
            loop.create_task(nothing())
            loop.run(no_more)
        assert len(loop._tasks) <= 16
        assert loop.tasks() == []


def test_what_the_owner_forbids_is_not_done() -> None:
    owner = Owner()
    owner.forbidden = True
    with loop_of(owner) as loop:
        with pytest.raises(PermissionError):
            loop.call_soon(print)
        with pytest.raises(PermissionError):
            loop.call_later(1, print)


def test_a_callback_that_raises_is_the_owners_to_tell() -> None:
    owner = Owner()
    with loop_of(owner) as loop:
        loop.call_soon(int, "x")
        loop.run(no_more)
    assert isinstance(owner.errors[0]["exception"], ValueError)


@pytest.mark.parametrize(
    "name", ["run_forever", "call_soon_threadsafe", "add_reader", "create_server", "stop"]
)
def test_what_a_workflow_has_not_is_refused_by_name(name: str) -> None:
    with loop_of(Owner()) as loop, pytest.raises(RestrictedWorkflowAccessError, match=name):
        getattr(loop, name)()


def test_to_thread_is_refused() -> None:
    with loop_of(Owner()) as loop:
        task = loop.create_task(asyncio.to_thread(int))
        loop.run(no_more)
        with pytest.raises(RestrictedWorkflowAccessError, match="use an activity"):
            task.result()


def test_eviction_closes_tasks_where_they_stand() -> None:
    told: list[str] = []

    async def inner() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
        finally:
            told.append("finally")
            await asyncio.sleep(1)
            told.append("never")

    async def outer() -> None:
        await inner()

    async def not_begun() -> None:
        told.append("begun")

    with loop_of(Owner()) as loop:
        task = loop.create_task(outer())
        loop.run(no_more)
        loop.create_task(not_begun())
        assert len(awaited(task.get_coro())) == 3
        assert loop.evict() == []
        with pytest.raises(BeingEvictedError):
            loop.create_task(not_begun())
        loop.call_soon(told.append, "late")
        loop.run(no_more)
    assert told == ["finally"]
    assert loop.is_closed()


def test_async_generators_are_no_business_of_the_loop_around() -> None:
    async def numbers() -> Any:
        for n in range(3):
            yield n
            await asyncio.sleep(0)

    async def first() -> int:
        async for number in numbers():
            return int(number)
        return -1

    async def main() -> None:
        with loop_of(Owner()) as loop:
            task = loop.create_task(first())
            loop.run(no_more)
            assert task.result() == 0

    asyncio.run(main())
