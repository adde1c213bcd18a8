"""Commands: calls of many threads that run on one.

Rules of this file: a caller that has gone is never answered, and what was fetched for it is
discarded; a command that is put back runs again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Command(Generic[T]):
    """A call on its way to the thread and back.

    Args:
        run: What to do; gets ``deadline``.
        discard: Takes a result that came after the caller has gone.
        offline: It needs no connection.
    """

    def __init__(
        self,
        run: Callable[[float], T],
        deadline: float,
        discard: Callable[[T], None] | None = None,
        *,
        offline: bool = False,
    ) -> None:
        self.run = run
        self.deadline = deadline
        self.offline = offline
        self.abandoned = False
        self._discard = discard
        self._result: T | None = None
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._finished = threading.Event()

    def succeed(self, result: T) -> None:
        """On the thread: it is done."""
        with self._lock:
            if not self.abandoned:
                self._result = result
                self._finished.set()
                return
        if self._discard is not None:
            self._discard(result)

    def fail(self, error: BaseException) -> None:
        """On the thread: it is over."""
        with self._lock:
            self._error = error
            self._finished.set()

    def wait(self, seconds: float) -> bool:
        """By the caller: whether it is over in time. If not, it is abandoned."""
        if self._finished.wait(seconds):
            return True
        with self._lock:
            self.abandoned = not self._finished.is_set()
            return not self.abandoned

    def result(self) -> T:
        """By the caller, after `wait`.

        Raises:
            BaseException: what the command failed with.
        """
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value] # set, or T is None


class CommandQueue:
    """The commands that have not run. Only the thread takes; any thread puts."""

    def __init__(self) -> None:
        self._waiting: deque[Command[Any]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, command: Command[Any]) -> None:
        """From any thread."""
        self._waiting.append(command)

    def put_back(self, command: Command[Any]) -> None:
        """It did not get through: it is the next one again."""
        self._waiting.appendleft(command)

    def take(self) -> Iterator[Command[Any]]:
        """Those that wait now: for what comes meanwhile there is a next time."""
        for _ in range(len(self._waiting)):
            command = self._waiting.popleft()
            if not command.abandoned:
                yield command

    def take_if(self, wanted: Callable[[Command[Any]], bool]) -> list[Command[Any]]:
        """Take out those that are ``wanted``; the others keep their order."""
        taken = []
        for _ in range(len(self._waiting)):
            command = self._waiting.popleft()
            if wanted(command):
                taken.append(command)
            elif not command.abandoned:
                self._waiting.append(command)
        return taken
