from __future__ import annotations

import asyncio
import gc
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
