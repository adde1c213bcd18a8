"""The event loop that workflow code runs on: asyncio without a clock, a selector or threads.

Rules of this file: callbacks run in the order in which they were asked for, and nothing else
decides about order. Time stands still unless the owner moves it; what is to happen later is a timer
of the owner's. Tasks hash by their place in the run, so that sets of them (asyncio has many)
iterate in the same order at each replay.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Protocol

from tq_broker.workflow.errors import BeingEvictedError, RestrictedWorkflowAccessError

CLOSINGS_MAX = 10
"""How often a coroutine that awaits in its ``finally`` blocks is closed again."""


class Owner(Protocol):
    """Whose loop it is."""

    @property
    def now_ms(self) -> int: ...

    def check(self, what: str) -> None:
        """Raises if ``what`` must not be done now."""

    def timer_started(self, timer: Timer, delay_ms: int) -> None:
        """Call `WorkflowLoop.fire` with it in ``delay_ms``."""

    def timer_canceled(self, timer: Timer) -> None:
        """Told once, also about one that has fired."""

    def loop_error(self, context: dict[str, Any]) -> None:
        """A callback raised, or an exception was never looked at."""


class Timer(asyncio.TimerHandle):
    """A callback that is to run later."""

    __slots__ = ("fact", "summary")

    summary: str
    fact: Any
    """For the owner's use."""


class Task(asyncio.Task[Any]):
    """A task with a place in the run."""

    def __init__(self, coro: Coroutine[Any, Any, Any], place: int, **options: Any) -> None:
        self._place = place
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._place


class WorkflowLoop(asyncio.AbstractEventLoop):
    """One run's loop. It runs on whatever thread calls `run`, one call at a time.

    Args:
        salt: Differs between runs: the interpreter keeps the tasks of all loops in one set, where
            equal hashes would get into each other's way.
    """

    def __init__(self, owner: Owner, salt: int) -> None:
        self._owner = owner
        self._ready: deque[asyncio.Handle] = deque()
        self._places = self._salt = salt
        self._tasks: list[Task] = []
        self._tasks_bound = 16
        self._evicted = False

    def place(self) -> int:
        """A number that is the same at each replay, and not given twice."""
        self._places += 1
        return self._places

    # --- running --------------------------------------------------------------------------------

    def entered(self) -> _Entered:
        """A block in which this is the running loop, and afterwards the one before."""
        return _Entered(self)

    def run(self, more: Callable[[], bool]) -> None:
        """Run what is ready until nothing is. To be called within `entered`.

        Args:
            more: Asked then whether it has made something ready.
        """
        ready = self._ready
        while True:
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
            if not more():
                return

    def fire(self, timer: Timer) -> None:
        """The time of ``timer`` has come."""
        self._ready.append(timer)

    def tasks(self) -> list[Task]:
        """All tasks that are not done, oldest first."""
        return [task for task in self._tasks if not task.done()]

    def evict(self) -> list[Task]:
        """End all tasks where they stand: their code is not cancelled but closed, so that only
        ``finally`` blocks run. To be called within `entered`.

        Returns the tasks that would not end, for ever: the caller must keep them from the garbage
        collector, which would try once more and complain.
        """
        self._evicted = True
        self._ready.clear()
        self._tasks = [task for task in self.tasks() if not _closed(task)]
        return self._tasks

    # --- what asyncio asks for --------------------------------------------------------------------

    def time(self) -> float:
        return self._owner.now_ms / 1000

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        raise RestrictedWorkflowAccessError("the event loop of a workflow has no debug mode")

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._evicted

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, **options: Any) -> asyncio.Task[Any]:
        if self._evicted:
            coro.close()
            raise BeingEvictedError
        place = self.place()
        task = Task(coro, place, loop=self, name=name or f"task-{place - self._salt}", **options)
        if len(self._tasks) >= self._tasks_bound:
            self._tasks = self.tasks()
            self._tasks_bound = max(16, 2 * len(self._tasks))
        self._tasks.append(task)
        return task

    # The type variable tuples of asyncio's signatures are not in Python 3.10.
    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._evicted:
            self._owner.check("run something later")
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> Timer:
        return self.timer(delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> Timer:
        return self.timer(when - self.time(), callback, *args, context=context)

    def timer(
        self,
        delay_s: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
        summary: str = "",
    ) -> Timer:
        """Run ``callback`` in ``delay_s``: at once if that is not positive, otherwise by a timer of
        whole milliseconds."""
        self._owner.check("start a timer")
        timer = Timer(self.time() + delay_s, callback, args, self, context)
        timer.summary, timer.fact = summary, None
        if delay_s <= 0:
            self._ready.append(timer)
        else:
            # Not rounded up: a deadline that was computed in floats may lie a hair too late.
            self._owner.timer_started(timer, max(1, round(delay_s * 1000)))
        return timer

    def _timer_handle_cancelled(self, timer: Timer) -> None:
        """Asked by `asyncio.TimerHandle.cancel`."""
        if not self._evicted:
            self._owner.timer_canceled(timer)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._evicted:
            self._owner.loop_error(context)

    def get_exception_handler(self) -> None:
        return None

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_task_factory(self) -> None:
        return None


class _Entered:
    __slots__ = ("_before", "_hooks", "_loop")

    def __init__(self, loop: WorkflowLoop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        self._before = asyncio._get_running_loop()
        # A loop around us must not adopt async generators that workflow code begins.
        self._hooks = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self._loop)
        sys.set_asyncgen_hooks(None, None)

    def __exit__(self, *_exc_info: object) -> None:
        sys.set_asyncgen_hooks(*self._hooks)
        asyncio._set_running_loop(self._before)


def _closed(task: Task) -> bool:
    # Its future is never resolved, and that is no mistake of the author's.
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    # From the inside: one that refuses would be lost if what awaits it ended first.
    return all(_coroutine_closed(coroutine) for coroutine in reversed(awaited(task.get_coro())))


def _coroutine_closed(coroutine: Any) -> bool:
    for _ in range(CLOSINGS_MAX):
        try:
            coroutine.close()
        except RuntimeError:  # it awaits again, in a finally block
            continue
        except BaseException:  # whatever it raises at its end is of no interest any more
            return True
        return True
    return False


def awaited(coroutine: Any) -> list[Any]:
    """A coroutine, the one that it awaits, and so on."""
    chain = []
    while hasattr(coroutine, "cr_await"):
        chain.append(coroutine)
        coroutine = coroutine.cr_await
    return chain


def _refused(name: str) -> Callable[..., Any]:
    def refuse(self: WorkflowLoop, *args: Any, **options: Any) -> Any:
        raise RestrictedWorkflowAccessError(
            f"{name} of the event loop was called in a workflow,"
            " which has no threads, files, sockets or processes: use an activity"
        )

    return refuse


_KEPT = vars(WorkflowLoop)
for _name in [name for name in vars(asyncio.AbstractEventLoop) if not name.startswith("_")]:
    if _name not in _KEPT:
        setattr(WorkflowLoop, _name, _refused(_name))
