"""Answers that are on their way, and the two ways to wait for them: ``await`` and blocking."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, Union
from weakref import WeakKeyDictionary

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
    if future.done():  # Without a timeout nobody would come to see it.
        return future.result()
    try:
        return await asyncio.wait_for(_followed(future), seconds)
    except asyncio.TimeoutError as error:
        if isinstance(error, DeadlineExceeded):  # of what was waited for: it has ended so
            raise
        raise DeadlineExceeded(f"not ended within {seconds} s") from None


def _followed(future: Future[T]) -> asyncio.Future[T]:
    """A future of the running loop that ends as ``future`` does. Unlike `asyncio.wrap_future` it
    does not cancel it: a caller that stops waiting must not end what others may wait for."""
    loop = asyncio.get_running_loop()
    follower: asyncio.Future[T] = loop.create_future()
    mailbox = _mailboxes.get(loop)
    if mailbox is None:
        mailbox = _mailboxes[loop] = _Mailbox()
    future.add_done_callback(partial(mailbox.put, follower))
    return follower


class _Mailbox:
    """Ends that are on their way into one loop. To wake a loop costs as much as to serve it, and
    answers come many at a time."""

    def __init__(self) -> None:
        self._ends: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._is_due = False

    def put(self, follower: asyncio.Future[Any], ended: Future[Any]) -> None:
        """``follower`` is to end as ``ended`` has; from any thread."""
        self._ends.append((follower, ended))
        # Set after the append and cleared before the read, so that none is overlooked.
        if not self._is_due:
            self._is_due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                follower.get_loop().call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._is_due = False
        for _ in range(len(self._ends)):
            follower, ended = self._ends.popleft()
            if follower.done():
                continue
            error = ended.exception()
            if error is not None:
                follower.set_exception(error)
            else:
                follower.set_result(ended.result())


_mailboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = WeakKeyDictionary()


def waited(future: Future[T], timeout: Timeout = None) -> T:
    """The same, blocking."""
    seconds = to_seconds(timeout)
    try:
        return future.result(seconds and min(seconds, threading.TIMEOUT_MAX))
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
