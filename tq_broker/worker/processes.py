"""Activities in processes of their own, which can be killed.

Rules of this file:

* everything but the inbox is touched by one thread, ``tq-processes``; the other threads post
  calls into the inbox and wake it;
* that thread never blocks on a child: pipes are non-blocking, so a child that is stuck or
  stopped holds up nobody but itself;
* the owner is told once how an attempt's code ended, by whoever takes the attempt away from
  its child (`_Child.release`).

Children are started when there is work for them, run one attempt at a time and are used again;
`tq_broker.worker.child` is their inside.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import itertools
import logging
import multiprocessing
import os
import pickle
import selectors
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from tq_broker.activity import ActivityDefinition, CompleteAsyncError
from tq_broker.clock import Clock, Timer, remaining
from tq_broker.converter import PayloadConverter
from tq_broker.exceptions import ApplicationError, InvalidArgument
from tq_broker.model import failure as failures
from tq_broker.model.failure import Failure
from tq_broker.worker import child as inside
from tq_broker.worker.attempt import Attempt, Place
from tq_broker.worker.child import Beat, Failed, Frames, Returned, ToChild, ToParent
from tq_broker.worker.executors import Owner, not_started
from tq_broker.worker.interceptors import Interceptor
from tq_broker.worker.registry import Registered

log = logging.getLogger(__name__)

PROCESS_LOST = "ProcessLost"
"""The error type of an attempt whose process died."""

REAP_S = 5.0
"""After its deadline `ProcessExecutor.close` waits so long for what it has killed to go."""

_SPAWN = multiprocessing.get_context("spawn")
_decode_failure = msgspec.json.Decoder(Failure).decode


# --- what can run in a process ------------------------------------------------------------------


def check_runnable(definition: ActivityDefinition) -> None:
    """Check that a process of its own can find the activity; called when a worker is made.

    Raises:
        InvalidArgument: its function cannot be found by import, or cannot be pickled; or this
            is itself such a process, because the main module makes workers when it is imported.
    """
    if definition.executor != "process":
        return
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise InvalidArgument(
            "a process for activities imports this main module, which makes a worker again:"
            " put that under if __name__ == '__main__'"
        )
    _pickled_function(definition.fn)
    if not _is_main_importable():
        raise InvalidArgument(
            f"activity {definition.name} has executor='process', but its processes cannot import"
            " the main module: start this program from a file or with python -m"
        )


def _is_main_importable() -> bool:
    # Children import it first of all, whether the activity is in it or not. A program without a
    # file (``python -c``, a prompt) has nothing to import, which is fine for other modules.
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    return getattr(main, "__spec__", None) is not None or file is None or Path(file).exists()


def _pickled_function(fn: Callable[..., Any]) -> bytes:
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    main = sys.modules["__main__"]
    if getattr(getattr(fn, "__self__", fn), "__module__", None) == "__main__" and not (
        getattr(main, "__spec__", None) or getattr(main, "__file__", None)
    ):
        raise InvalidArgument(
            f"activity {name} is defined at a prompt, where a process of its own cannot find it"
        )
    try:
        return pickle.dumps(fn)
    except Exception as error:  # pickling runs code of the user's
        raise InvalidArgument(
            f"activity {name} cannot run in a process of its own, which has to import it by name"
            f" (or to unpickle the object it is a method of): {error}"
        ) from error


def _pickled_interceptors(interceptors: Sequence[Interceptor]) -> bytes:
    try:
        return pickle.dumps(tuple(interceptors))
    except Exception as error:  # as above
        raise InvalidArgument(
            "interceptors cannot be pickled, which activities with executor='process' need:"
            f" {error}"
        ) from error


def _pickled_converter(converter: PayloadConverter) -> bytes:
    try:
        return pickle.dumps(converter)
    except Exception as error:  # as above
        raise InvalidArgument(
            f"payload_converter {type(converter).__name__} cannot be pickled, which activities"
            f" with executor='process' need: {error}"
        ) from error


# --- the pool -----------------------------------------------------------------------------------


class _Child:
    """A process as the thread ``tq-processes`` sees it."""

    def __init__(self, process: BaseProcess, sock: socket.socket) -> None:
        assert process.pid, "it has been started"
        self.process = process
        self.pid = process.pid
        self.sock = sock
        self.sentinel, self.is_pidfd = _sentinel(process)
        self.frames: Frames[ToParent] = Frames(ToParent)
        self.unsent = bytearray()
        self.is_open = True
        """Whether its pipe is; if not, it is only waited for."""
        self.is_dead = False
        self.is_proven = False
        """Whether it has ever answered."""
        self.number = 0
        self.attempt: Attempt | None = None
        self.timer: Timer | None = None

    def release(self) -> Attempt | None:
        """Take its attempt away from it, in order to tell the owner; ``None`` if it has none."""
        attempt, self.attempt = self.attempt, None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return attempt

    def kill(self) -> None:
        """Kill it together with what the activities have started; harmless if it is dead."""
        with contextlib.suppress(OSError):  # it had no time yet to form its group, or is gone
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError, ValueError):
            self.process.kill()


def _sentinel(process: BaseProcess) -> tuple[int, bool]:
    """What becomes readable when ``process`` ends, and whether it is ours to close."""
    # The sentinel of multiprocessing is a pipe that outlives a child which has forked.
    try:
        return getattr(os, "pidfd_open")(process.pid), True  # noqa: B009 - Linux only
    except (AttributeError, OSError):
        return process.sentinel, False


def _how_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "ended"
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


def _lost(how: str) -> Failure:
    return failures.application(f"the process of the activity {how}", PROCESS_LOST)


class ProcessExecutor:
    """Runs synchronous activities in child processes. See the module.

    Args:
        max_processes: Attempts beyond that wait here, in order.
        cancel_grace_s: How long a cancelled attempt's code may go on before it is killed.
        interceptors: Of activities; each process has copies of its own.

    Raises:
        InvalidArgument: the payload converter or an interceptor cannot be pickled.
    """

    def __init__(
        self,
        owner: Owner,
        clock: Clock,
        place: Place,
        max_processes: int,
        cancel_grace_s: float,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self._owner = owner
        self._clock = clock
        self._place = place
        self._max = max_processes
        self._grace_s = cancel_grace_s
        self._converter = _pickled_converter(place.converter.payload_converter)
        self._interceptors = _pickled_interceptors(interceptors)
        self._numbers = itertools.count(1)
        # Shared, under the lock:
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._wake: socket.socket | None = None
        # The thread's own:
        self._selector = selectors.DefaultSelector()
        self._waiting: dict[Attempt, None] = {}
        self._running: dict[Attempt, _Child] = {}
        self._idle: list[_Child] = []
        self._children: set[_Child] = set()
        """All that are not known to have ended."""
        self._functions: dict[Registered, bytes] = {}
        self._is_closing = False

    # --- Executor: any thread -------------------------------------------------------------------

    def start(self, attempts: Sequence[Attempt]) -> None:
        try:
            with self._lock:
                is_first = self._thread is None and not self._is_closed
                if is_first:
                    self._open()
        except (OSError, RuntimeError) as error:  # the system has no files or no thread for us
            not_started(self._owner, attempts, error)
            return
        if is_first:
            self._place.shutdown.on_set(functools.partial(self._post, self._announce_shutdown))
        self._post(functools.partial(self._take, tuple(attempts)))

    def cancel(self, attempt: Attempt) -> None:
        self._post(functools.partial(self._cancel, attempt))

    def abandon(self, attempt: Attempt) -> None:
        self._post(functools.partial(self._abandon, attempt))

    def close(self, deadline: float) -> None:
        """See `Executor`.

        Attempts that still wait for a process are dropped, and the owner is not told: they
        never ran. What runs at the deadline is killed, and fails with ``ProcessLost``.
        """
        with self._lock:
            self._is_closed = True
            thread = self._thread
        if thread is not None:
            self._post(functools.partial(self._close, deadline))
            thread.join(remaining(self._clock, deadline) + REAP_S)

    def _open(self) -> None:
        """Under the lock."""
        reading, wake = socket.socketpair()
        reading.setblocking(False)
        wake.setblocking(False)
        self._selector.register(
            reading, selectors.EVENT_READ, functools.partial(self._on_wake, reading)
        )
        thread = threading.Thread(
            target=self._serve, args=(reading, wake), name="tq-processes", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            self._selector.unregister(reading)
            reading.close()
            wake.close()
            raise
        # Before multiprocessing's own, which sends SIGTERM (children ignore it) and waits.
        atexit.register(self._at_exit)
        self._thread, self._wake = thread, wake

    def _post(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._wake is None:
                return  # nothing was started, or all has ended
            self._inbox.append(call)
            if len(self._inbox) == 1:
                with contextlib.suppress(BlockingIOError):  # then it is awake
                    self._wake.send(b"!")

    def _at_exit(self) -> None:
        self._is_closing = True
        for child in tuple(self._children):
            child.kill()

    # --- the thread -----------------------------------------------------------------------------

    def _serve(self, reading: socket.socket, wake: socket.socket) -> None:
        # Children inherit the mask, so that they ignore these also while they boot.
        signal.pthread_sigmask(signal.SIG_BLOCK, inside.HANDLED)
        while not (self._is_closing and not self._children):
            for key, events in self._selector.select():
                self._supervised(key.data, events)
        with self._lock:
            self._wake = None
        atexit.unregister(self._at_exit)
        self._selector.close()
        reading.close()
        wake.close()

    def _supervised(self, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except Exception:  # one attempt's trouble must not end the others
            log.exception("in the process executor")

    def _on_wake(self, reading: socket.socket, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            reading.recv(1 << 10)
        while True:
            with self._lock:
                calls = tuple(self._inbox)
                self._inbox.clear()
            if not calls:
                return
            for call in calls:
                self._supervised(call)

    def _take(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            if attempt.cancel_requested:
                self._owner.failed(attempt, failures.canceled())
            else:
                self._waiting[attempt] = None
        self._dispatch()

    def _dispatch(self) -> None:
        while self._waiting and not self._is_closing:
            child: _Child | None = None
            if self._idle:
                child = self._idle.pop()
            elif len(self._children) >= self._max:
                return
            attempt = next(iter(self._waiting))
            del self._waiting[attempt]
            try:
                run = self._run(attempt)
                child = child or self._spawn()
            except Exception as error:  # of the user's pickling, or of the operating system
                if child is not None:
                    self._idle.append(child)
                self._supervised(self._owner.raised, attempt, error)
                continue
            child.attempt = attempt
            child.number = run.number
            self._running[attempt] = child
            self._send(child, run)
            attempt.passage.begun()

    def _run(self, attempt: Attempt) -> inside.Run:
        registered = attempt.registered
        function = self._functions.get(registered)
        if function is None:
            function = self._functions[registered] = _pickled_function(registered.fn)
        return inside.Run(
            number=next(self._numbers),
            function=function,
            info=dataclasses.replace(attempt.info, heartbeat_details=()),
            args=[bytes(arg) for arg in attempt.body.args],
            heartbeat=[bytes(detail) for detail in attempt.body.heartbeat],
            interrupt=not registered.definition.no_thread_cancel_exception,
        )

    def _spawn(self) -> _Child:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _SPAWN.Process(
                    target=inside.main, args=(theirs,), name="tq-activities", daemon=True
                )
                process.start()
            except Exception as error:  # no memory, no more processes, a worker in a daemon...
                ours.close()
                raise ApplicationError(
                    f"a process for the activity could not start: {error}", type=PROCESS_LOST
                ) from error
        ours.setblocking(False)
        child = _Child(process, ours)
        self._children.add(child)
        self._selector.register(ours, selectors.EVENT_READ, functools.partial(self._on_pipe, child))
        self._selector.register(
            child.sentinel, selectors.EVENT_READ, functools.partial(self._on_end, child)
        )
        level = logging.getLogger().level
        is_shutdown = self._place.shutdown.is_set()
        self._send(child, inside.Setup(self._converter, level, is_shutdown, self._interceptors))
        return child

    def _send(self, child: _Child, message: ToChild) -> None:
        child.unsent += inside.frame(message)
        self._flush(child)

    def _flush(self, child: _Child) -> None:
        if not child.is_open:
            return
        unsent = child.unsent
        try:
            while unsent:
                del unsent[: child.sock.send(unsent)]
        except BlockingIOError:
            pass
        except OSError:
            unsent.clear()  # it has ended, as `_on_end` will hear
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if unsent else 0)
        key = self._selector.get_key(child.sock)
        if key.events != events:
            self._selector.modify(child.sock, events, key.data)

    def _on_pipe(self, child: _Child, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(child)
        if events & selectors.EVENT_READ and child.is_open and self._receive(child) is False:
            # It has ended; or it has closed what it does not know, and will be silent for ever.
            self._hang_up(child)
            child.kill()

    def _receive(self, child: _Child) -> bool | None:
        """Hear what a child says: True if it said something, None if it is silent for now,
        False if it is for ever.
        """
        try:
            data = child.sock.recv(inside.RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return False
        try:
            messages = child.frames.feed(data)
        except msgspec.DecodeError:
            log.error("a process for activities sends nonsense and is killed")
            return False
        for message, following in itertools.zip_longest(messages, messages[1:]):
            # Of heartbeats that came together only the last one matters.
            if not (isinstance(message, Beat) and isinstance(following, Beat)):
                self._hear(child, message)
        return bool(data)

    def _hear(self, child: _Child, message: ToParent) -> None:
        child.is_proven = True
        if message.number != child.number or child.attempt is None:
            return  # a thread that the code left behind, or an attempt that was killed
        if isinstance(message, Beat):
            details = [msgspec.Raw(detail) for detail in message.details]
            self._supervised(child.attempt.beat, details)
            return
        attempt = self._release(child)
        if isinstance(message, Returned):
            self._supervised(self._owner.returned, attempt, message.result)
        elif isinstance(message, Failed):
            self._supervised(self._owner.failed, attempt, _decode_failure(message.failure))
        else:
            self._supervised(self._owner.raised, attempt, CompleteAsyncError(message.message))
        if self._is_closing or child.is_dead:
            self._hang_up(child)
        else:
            self._idle.append(child)
            self._dispatch()

    def _release(self, child: _Child) -> Attempt | None:
        attempt = child.release()
        if attempt is not None:
            del self._running[attempt]
        return attempt

    def _hang_up(self, child: _Child) -> None:
        """Close the pipe: an idle child ends by itself."""
        if child.is_open:
            child.is_open = False
            self._selector.unregister(child.sock)
            child.sock.close()
        if child in self._idle:
            self._idle.remove(child)

    def _on_end(self, child: _Child, events: int) -> None:
        child.is_dead = True
        while child.is_open and child.attempt is not None and self._receive(child):
            pass  # its last words
        self._hang_up(child)
        self._children.discard(child)
        self._selector.unregister(child.sentinel)
        child.kill()  # what it has started
        child.process.join()
        how = _how_ended(child.process.exitcode)
        if child.is_pidfd:
            os.close(child.sentinel)
        with contextlib.suppress(ValueError):  # somebody else has waited for it
            child.process.close()
        attempt = self._release(child)
        if attempt is not None:
            if not child.is_proven:
                how += ", in its first attempt or before: see its standard error"
            self._supervised(self._owner.failed, attempt, _lost(how))
        self._dispatch()

    def _kill(self, child: _Child, failure: Failure) -> None:
        attempt = self._release(child)
        self._hang_up(child)
        child.kill()
        if attempt is not None:
            self._supervised(self._owner.failed, attempt, failure)

    def _cancel(self, attempt: Attempt) -> None:
        if attempt in self._waiting:
            del self._waiting[attempt]
            self._owner.failed(attempt, failures.canceled())
            return
        child = self._running.get(attempt)
        if child is None or child.timer is not None:
            return
        overdue = functools.partial(self._overdue, child, child.number)
        child.timer = self._clock.call_at(
            self._clock.monotonic() + self._grace_s, functools.partial(self._post, overdue)
        )
        self._send(child, inside.Cancel(child.number))

    def _overdue(self, child: _Child, number: int) -> None:
        if child.number == number and child.attempt is not None:
            log.warning(
                "activity %s did not heed its cancellation and is killed",
                child.attempt.task.activity_id,
            )
            self._kill(child, failures.canceled("Cancelled; the code was killed"))

    def _abandon(self, attempt: Attempt) -> None:
        # The outcome is known elsewhere; the owner waits for the slot.
        ended = failures.canceled("the attempt has ended; its code was killed")
        if attempt in self._waiting:
            del self._waiting[attempt]
            self._owner.failed(attempt, ended)
        elif (child := self._running.get(attempt)) is not None:
            self._kill(child, ended)

    def _announce_shutdown(self) -> None:
        for child in self._children:
            self._send(child, inside.Shutdown())

    def _close(self, deadline: float) -> None:
        self._is_closing = True
        self._waiting.clear()
        for child in tuple(self._idle):
            self._hang_up(child)
        if self._clock.monotonic() >= deadline:
            self._kill_all()
        else:
            self._clock.call_at(deadline, functools.partial(self._post, self._kill_all))

    def _kill_all(self) -> None:
        for child in tuple(self._children):
            self._kill(child, _lost("was killed: the worker has shut down"))
