"""Where the code of activities runs: an event loop of our own, or threads.

`tq_broker.worker.processes` has the third place. All keep `Executor`: they run what they are
given, tell the owner once how the code ended, and stop it when they are asked to. Limits are told
of a begin in the moment of it, not before: what never begins costs them nothing, and what waits for
its turn here is not counted too early.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from tq_broker.activity import current
from tq_broker.clock import Clock, remaining
from tq_broker.exceptions import CancelledError
from tq_broker.model.failure import Failure
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.passage import FREE
from tq_broker.worker.threads import Threads

NULL = b"null"


class Owner(Protocol):
    """Who wants to know how an attempt's code ended. Called once per attempt, on any thread."""

    def returned(self, attempt: Attempt, result: bytes) -> None:
        """It returned; ``result`` is JSON."""

    def raised(self, attempt: Attempt, error: BaseException) -> None:
        """It raised, or its arguments or its result could not be converted."""

    def failed(self, attempt: Attempt, failure: Failure) -> None:
        """It failed elsewhere, or was killed."""


class Executor(Protocol):
    """Runs the code of attempts."""

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Run the code of each; returns at once."""

    def cancel(self, attempt: Attempt) -> None:
        """Cancellation was requested, and the attempt's own signal is set: interrupt the code."""

    def abandon(self, attempt: Attempt) -> None:
        """The attempt has ended (it timed out): make the code stop, however it can be done."""

    def close(self, deadline: float) -> None:
        """No more is started; wait for what runs, at most until ``deadline``."""


def _encode(attempt: Attempt, result: Any) -> bytes:
    if result is None:
        return NULL
    return attempt.payload_converter.encode(result)


def not_started(owner: Owner, attempts: Sequence[Attempt], error: Exception) -> None:
    """``attempts`` have ended before their code began: there is no thread or file for them."""
    for attempt in attempts:
        owner.raised(attempt, error)


class AsyncExecutor:
    """Coroutines on one event loop, in a daemon thread ``tq-activities``.

    User code may hold this loop up; nothing but user code depends on it.
    """

    def __init__(self, owner: Owner, clock: Clock) -> None:
        self._owner = owner
        self._clock = clock
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, attempts: Sequence[Attempt]) -> None:
        try:
            with self._lock:
                loop = self._loop or self._open()
                loop.call_soon_threadsafe(self._start, loop, attempts)
        except (OSError, RuntimeError) as error:  # the system has no files or no thread for us
            not_started(self._owner, attempts, error)

    def _open(self) -> asyncio.AbstractEventLoop:
        """Under the lock."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(
            target=self._serve, args=(loop,), name="tq-activities", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            loop.close()
            raise
        self._loop, self._thread = loop, thread
        return loop

    @staticmethod
    def _serve(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    def _start(self, loop: asyncio.AbstractEventLoop, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            attempt.handle = loop.create_task(self._run(attempt))
            attempt.handle.add_done_callback(functools.partial(self._done, attempt))
            if attempt.cancel_requested:
                attempt.handle.cancel()

    async def _run(self, attempt: Attempt) -> None:
        current.set(attempt)
        try:
            arguments = attempt.arguments()
            attempt.passage.begun()
            result = _encode(attempt, await attempt.registered.fn(*arguments))
        except BaseException as error:  # whatever user code raises is its outcome
            self._owner.raised(attempt, error)
        else:
            self._owner.returned(attempt, result)

    def _done(self, attempt: Attempt, task: asyncio.Task[None]) -> None:
        # The task knows its attempt: a cycle, which would outlive the two.
        attempt.handle = None
        # `_run` ends cancelled only if that came before its first step: then it told nobody.
        if task.cancelled():
            self._owner.raised(attempt, asyncio.CancelledError())

    def cancel(self, attempt: Attempt) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_cancel_task, attempt)

    abandon = cancel

    def close(self, deadline: float) -> None:
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(remaining(self._clock, deadline))


def _cancel_task(attempt: Attempt) -> None:
    if attempt.handle is not None:
        attempt.handle.cancel()


class ThreadExecutor:
    """Functions in threads: the worker's own, one per slot at the most, or the user's pool."""

    def __init__(
        self, owner: Owner, slots: int, pool: concurrent.futures.Executor | None = None
    ) -> None:
        self._owner = owner
        self._threads = Threads(slots, self._run)
        self._pool = pool

    def start(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            attempt.handle = interrupter = Interrupter()
            attempt.shielding = interrupter.shield
            # Whoever asked for it before had nothing to interrupt.
            if attempt.cancel_requested:
                self.cancel(attempt)
        if self._pool is not None:
            self._submit(self._pool, attempts)
            return
        try:
            self._threads.put(attempts)
        except RuntimeError as error:  # the system has no thread for us
            not_started(self._owner, attempts, error)

    def _submit(self, pool: concurrent.futures.Executor, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            try:
                future = pool.submit(self._run_submitted, attempt)
            except Exception as error:  # it takes nothing more, or is somebody's own
                not_started(self._owner, [attempt], error)
            else:
                future.add_done_callback(functools.partial(self._left, attempt))

    def _run_submitted(self, attempt: Attempt) -> None:
        # Where there is no thread for it, the standard library's pool raises and keeps it all the
        # same: another thread of the pool comes to it later.
        if attempt.code_running:
            self._run(attempt)

    def _left(self, attempt: Attempt, future: concurrent.futures.Future[None]) -> None:
        """The pool is done with it: it may have dropped it, or be broken."""
        try:
            error = future.exception()
        except concurrent.futures.CancelledError:
            error = RuntimeError("activity_executor has dropped the activity")
        if error is not None and attempt.code_running:
            self._owner.raised(attempt, error)

    def _run(self, attempt: Attempt) -> None:
        interrupter: Interrupter = attempt.handle
        token = current.set(attempt)
        try:
            try:
                interrupter.begin()
                arguments = attempt.arguments()
                passage = attempt.passage
                if passage is not FREE:
                    # An exception that is raised in here from outside must not hit halfway.
                    with interrupter.shield():
                        passage.begun()
                result = _encode(attempt, attempt.registered.fn(*arguments))
            finally:
                interrupter.end()
        except BaseException as error:  # as above
            self._owner.raised(attempt, error)
        else:
            self._owner.returned(attempt, result)
        finally:
            current.reset(token)

    def cancel(self, attempt: Attempt) -> None:
        interrupter: Interrupter | None = attempt.handle  # none before it was started
        if interrupter is not None and not attempt.registered.definition.no_thread_cancel_exception:
            interrupter.interrupt()

    abandon = cancel

    def close(self, deadline: float) -> None:
        # Threads cannot be ended from outside: those that heed no cancellation are left behind.
        self._threads.close()


class Interrupter:
    """Raises `CancelledError` in the thread that runs one activity, and only while it does.

    The interpreter delivers such an exception between two bytecodes: code that blocks in C
    (``time.sleep``, a socket) sees it only when it returns from there.
    """

    __slots__ = ("_lock", "_shields", "_thread_id", "_wanted")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread_id: int | None = None
        self._wanted = False
        self._shields = 0

    def begin(self) -> None:
        """The activity begins, on this thread. Raises if it was cancelled before."""
        with self._lock:
            if self._wanted:
                raise CancelledError
            self._thread_id = threading.get_ident()

    def end(self) -> None:
        """The activity has ended: nothing is raised in this thread any more."""
        with self._lock:
            if self._thread_id is not None and self._wanted:
                raise_in(self._thread_id, None)
            self._thread_id = None

    def interrupt(self) -> None:
        """Raise in the thread, once; after the last shield if it is shielded now."""
        with self._lock:
            if self._wanted:
                return
            self._wanted = True
            if self._thread_id is not None and not self._shields:
                raise_in(self._thread_id, CancelledError)

    @contextmanager
    def shield(self) -> Iterator[None]:
        """A block in which nothing is raised; it is raised at its end instead."""
        with self._lock:
            self._shields += 1
        try:
            yield
        finally:
            with self._lock:
                self._shields -= 1
                now = self._wanted and not self._shields
            if now:
                # Also in place of an error: whoever catches that would never be cancelled.
                raise CancelledError


def raise_in(thread_id: int, error: type[BaseException] | None) -> None:
    """Set, or with ``None`` clear, the pending exception of a thread."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread_id), ctypes.py_object(error) if error else None
    )
