"""Answers that are on their way, and the two ways to wait for them: ``await`` and blocking."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, Union

from tq_broker import chain
from tq_broker.exceptions import DeadlineExceeded, InvalidArgument

T = TypeVar("T")
UNSET: Any = object()

Timeout = timedelta | float | None
"""A bound of a wait: a duration, seconds, or ``None`` for no bound."""


def to_seconds(timeout: Timeout) -> float | None:
    """``timeout`` in seconds. Raises `InvalidArgument` if it is negative."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is not None and not seconds >= 0:
        raise InvalidArgument(f"timeout is {timeout}; it must not be negative")
    return seconds


def one_or_many(arg: Any, args: Sequence[Any]) -> Sequence[Any]:
    """The arguments of a call that may be given as one or as several."""
    if arg is not UNSET and args:
        raise InvalidArgument("give either arg or args, not both")
    return _check_args("args", args) if arg is UNSET else (arg,)


def checked_calls(calls: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    """The arguments of many calls. Raises `InvalidArgument`."""
    for position, args in enumerate(calls):
        _check_args(f"calls[{position}]", args)
    return calls


def _check_args(name: str, args: Any) -> Sequence[Any]:
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise InvalidArgument(f"{name} is {args!r:.40}; it must be a sequence of arguments")
    return args


async def awaited(future: Future[T], timeout: Timeout = None) -> T:
    """What ``future`` ends with. Raises `DeadlineExceeded` if it has not within ``timeout``."""
    seconds = to_seconds(timeout)
    wrapped = asyncio.wrap_future(future)
    # So that asyncio does not complain when it fails after the caller has stopped waiting.
    wrapped.add_done_callback(_heard)
    try:
        # Shielded: a caller that stops waiting must not cancel what others may wait for.
        return await asyncio.wait_for(asyncio.shield(wrapped), seconds)
    except asyncio.TimeoutError as error:
        if isinstance(error, DeadlineExceeded):  # of what was waited for: it has ended so
            raise
        raise DeadlineExceeded(f"not ended within {seconds} s") from None


def _heard(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def waited(future: Future[T], timeout: Timeout = None) -> T:
    """The same, blocking."""
    seconds = to_seconds(timeout)
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError as error:
        if isinstance(error, DeadlineExceeded):  # as above
            raise
        raise DeadlineExceeded(f"not ended within {seconds} s") from error


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """An answer that is on its way.

    Attributes:
        future: Ends with the answer as it came.
        read: Makes of it what the caller gets, or raises. Called on the caller's thread, because
            it may run a converter of the user's.
        drop: Nobody waits any more. Harmless when the answer has come.
    """

    future: Future[Any]
    read: Callable[[Any], T]
    drop: Callable[[], None]

    async def awaited(self, timeout: Timeout = None) -> T:
        """Wait for it, in ``asyncio``."""
        try:
            return self.read(await awaited(self.future, timeout))
        finally:
            self.drop()

    def waited(self, timeout: Timeout = None) -> T:
        """Wait for it, blocking."""
        try:
            return self.read(waited(self.future, timeout))
        finally:
            self.drop()


@dataclass(frozen=True, slots=True)
class Chained(Generic[T]):
    """An answer that a chain of interceptors sees to. They have been told of a timeout, if there
    is one."""

    coroutine: Coroutine[Any, Any, T]

    async def awaited(self, timeout: Timeout = None) -> T:
        """Wait for it, in ``asyncio``."""
        return await self.coroutine

    def waited(self, timeout: Timeout = None) -> T:
        """Wait for it, blocking."""
        return chain.run(self.coroutine)


async def all_awaited(answers: Sequence[Chained[T]]) -> list[T]:
    """All of them, begun at once; the first error is raised when all have ended."""
    ended = await asyncio.gather(*(one.awaited() for one in answers), return_exceptions=True)
    return _values(ended)


def all_waited(answers: Sequence[Chained[T]]) -> list[T]:
    """The same, blocking."""
    begun = [_caught(partial(chain.Driven, one.coroutine)) for one in answers]
    ended = [one if isinstance(one, BaseException) else _caught(one.result) for one in begun]
    return _values(ended)


def _caught(call: Callable[[], T]) -> T | BaseException:
    try:
        return call()
    except Exception as error:
        return error


def _values(ended: Sequence[T | BaseException]) -> list[T]:
    values: list[T] = []
    for one in ended:
        if isinstance(one, BaseException):
            raise one
        values.append(one)
    return values


Answer = Union[Asked[T], Chained[T]]  # noqa: UP007 - generic
"""What may be waited for, with interceptors and without."""
