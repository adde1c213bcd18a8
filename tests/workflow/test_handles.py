"""Futures whose cancellation is a request."""

from __future__ import annotations

import asyncio

import pytest

from tq_broker import workflow
from tq_broker.exceptions import InvalidArgument
from tq_broker.workflow.handles import RequestingFuture, signal_name


def test_a_cancellation_asks_and_leaves_it_open() -> None:
    async def main() -> None:
        asked: list[str] = []
        future: RequestingFuture[int] = RequestingFuture(
            asyncio.get_running_loop(), 7, lambda: asked.append("asked")
        )
        assert hash(future) == 7
        assert future.cancel()
        assert asked == ["asked"]
        assert not future.done()
        future.resolve(5)
        future.resolve(6)
        future.reject(ValueError())
        assert await future == 5
        assert not future.cancel()

    asyncio.run(main())


def test_it_can_be_given_up_like_a_plain_future() -> None:
    async def main() -> None:
        future: RequestingFuture[int] = RequestingFuture(
            asyncio.get_running_loop(), 7, lambda: future.give_up()
        )
        future.cancel()
        assert future.cancelled()

    asyncio.run(main())


def test_the_name_of_a_signal() -> None:
    @workflow.signal(name="x")
    def method(self: object) -> None: ...

    assert signal_name("x") == signal_name(method) == "x"
    with pytest.raises(InvalidArgument):
        signal_name(print)
