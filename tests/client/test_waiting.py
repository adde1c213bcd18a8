from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest

from tq_broker.client.waiting import UNSET, Asked, awaited, one_or_many, to_seconds
from tq_broker.exceptions import DeadlineExceeded, InvalidArgument, Unavailable

Wait = Callable[..., Any]


def awaiting(asked: Asked[Any], timeout: Any = None) -> Any:
    return asyncio.run(asked.awaited(timeout))


def blocking(asked: Asked[Any], timeout: Any = None) -> Any:
    return asked.waited(timeout)


def test_a_timeout_is_a_duration_or_seconds_or_nothing() -> None:
    assert to_seconds(timedelta(minutes=1)) == 60
    assert to_seconds(1.5) == 1.5
    assert to_seconds(None) is None
    for wrong in (-1, float("nan"), timedelta(seconds=-1)):
        with pytest.raises(InvalidArgument, match="timeout is"):
            to_seconds(wrong)


def test_arguments_are_one_or_many() -> None:
    assert one_or_many(UNSET, ()) == ()
    assert one_or_many(None, ()) == (None,)
    assert one_or_many(UNSET, [1, 2]) == [1, 2]
    with pytest.raises(InvalidArgument, match="either arg or args"):
        one_or_many(1, [2])


@pytest.mark.parametrize("wait", [awaiting, blocking])
def test_an_answer_is_read_by_who_waits_and_then_dropped(wait: Wait) -> None:
    dropped: list[bool] = []
    future: Future[int] = Future()
    future.set_result(20)
    asked = Asked(future, lambda number: number + 1, lambda: dropped.append(True))
    assert wait(asked) == 21
    assert dropped == [True]


def test_what_fails_after_nobody_waits_any_more_is_no_error_of_asyncio() -> None:
    """Found: "Future exception was never retrieved" when the client was closed later."""
    complaints: list[Any] = []

    async def give_up() -> None:
        future: Future[int] = Future()
        asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))
        with pytest.raises(DeadlineExceeded):
            await awaited(future, 0)
        future.set_exception(Unavailable("the client was closed"))
        await asyncio.sleep(0)
        del future
        gc.collect()

    asyncio.run(give_up())
    assert complaints == []


@pytest.mark.parametrize("wait", [awaiting, blocking])
def test_an_answer_that_is_there_needs_no_time(wait: Wait) -> None:
    future: Future[int] = Future()
    future.set_result(20)
    assert wait(Asked(future, int, lambda: None), 0) == 20
    failed: Future[int] = Future()
    failed.set_exception(Unavailable("it said so"))
    with pytest.raises(Unavailable, match="it said so"):
        wait(Asked(failed, int, lambda: None), 0)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, timedelta.max])
@pytest.mark.parametrize("wait", [awaiting, blocking])
def test_a_timeout_may_be_as_long_as_one_likes(wait: Wait, timeout: Any) -> None:
    future: Future[int] = Future()
    comes = threading.Timer(0.05, future.set_result, (20,))
    comes.start()
    assert wait(Asked(future, int, lambda: None), timeout) == 20
    comes.join()


@pytest.mark.parametrize("wait", [awaiting, blocking])
def test_an_answer_that_does_not_come_is_dropped(wait: Wait) -> None:
    dropped: list[bool] = []
    asked: Asked[int] = Asked(Future(), int, lambda: dropped.append(True))
    with pytest.raises(DeadlineExceeded, match="not ended within 0 s"):
        wait(asked, 0)
    assert dropped == [True]


@pytest.mark.parametrize("wait", [awaiting, blocking])
@pytest.mark.parametrize("error", [Unavailable("away"), DeadlineExceeded("nobody there")])
def test_an_error_of_the_answer_is_told_as_it_is(wait: Wait, error: Exception) -> None:
    future: Future[int] = Future()
    future.set_exception(error)
    with pytest.raises(type(error), match=str(error)):
        wait(Asked(future, int, lambda: None), 5)


def test_who_stops_waiting_takes_the_answer_from_nobody() -> None:
    future: Future[int] = Future()
    asked = Asked(future, int, lambda: None)

    async def two_wait() -> int:
        leaves = asyncio.create_task(asked.awaited())
        stays = asyncio.create_task(asked.awaited())
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.wait([leaves])
        future.set_result(7)
        return await stays

    assert asyncio.run(two_wait()) == 7


def test_answers_that_come_together_wake_the_loop_once() -> None:
    futures: list[Future[int]] = [Future() for _ in range(10)]

    async def all_wait() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        wakes: list[Any] = []
        ring = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            wakes.append(args)
            return ring(*args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        waiting = [asyncio.create_task(Asked(f, int, lambda: None).awaited()) for f in futures]
        await asyncio.sleep(0)
        for number, future in enumerate(futures):
            future.set_result(number)
        return await asyncio.gather(*waiting), len(wakes)

    assert asyncio.run(all_wait()) == (list(range(10)), 1)


def test_an_answer_after_the_end_of_the_loop_is_for_nobody() -> None:
    future: Future[int] = Future()
    with pytest.raises(DeadlineExceeded):
        awaiting(Asked(future, int, lambda: None), 0.001)
    future.set_result(1)
