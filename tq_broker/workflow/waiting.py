"""Waiting: for a while, for a condition, for some of many.

What asyncio has works too, and means timers of the workflow; `wait` and `as_completed` are here
because asyncio's own put what they are given into sets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from tq_broker.workflow.calls import seconds
from tq_broker.workflow.runtime import current

T = TypeVar("T")


async def sleep(duration: timedelta | float, *, summary: str | None = None) -> None:
    """Wait for ``duration`` (seconds if a number), by a timer that outlives every worker."""
    await current().sleep(seconds(duration), summary or "")


async def wait_condition(
    fn: Callable[[], bool],
    *,
    timeout: timedelta | float | None = None,
    timeout_summary: str | None = None,
) -> None:
    """Wait until ``fn()`` is true, which it also is when this returns.

    Args:
        fn: Looked at whenever something has happened; it must change nothing.
        timeout: How long at most (seconds if a number); ``None`` waits for ever.
        timeout_summary: One line for people, about the timer.

    Raises:
        asyncio.TimeoutError: the time is over.
    """
    timeout_s = None if timeout is None else seconds(timeout)
    await current().wait_condition(fn, timeout_s, timeout_summary or "")


async def wait(
    fs: Iterable[Awaitable[Any]],
    *,
    timeout: float | None = None,
    return_when: str = asyncio.ALL_COMPLETED,
) -> tuple[list[asyncio.Future[Any]], list[asyncio.Future[Any]]]:
    """`asyncio.wait`, with lists in the order of ``fs`` instead of sets."""
    futures = [asyncio.ensure_future(each) for each in fs]
    done, _ = await asyncio.wait(futures, timeout=timeout, return_when=return_when)
    return [f for f in futures if f in done], [f for f in futures if f not in done]


def as_completed(
    fs: Iterable[Awaitable[T]], *, timeout: float | None = None
) -> Iterator[Awaitable[T]]:
    """`asyncio.as_completed`, in the same order at each replay."""
    futures = [asyncio.ensure_future(each) for each in fs]
    return iter(asyncio.as_completed(futures, timeout=timeout))
