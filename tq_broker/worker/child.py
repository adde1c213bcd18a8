"""The inside of a process that runs activities, and the frames it exchanges with its parent.

`tq_broker.worker.processes` is the other end. Rules of this file:

* the main thread runs the code, one attempt at a time; the thread ``tq-parent`` reads what the
  parent sends, and ends the process when the parent is gone;
* what the parent has pickled (functions, the converter) is unpickled here; nothing that came
  in a message of RabbitMQ ever is, and what goes back is never pickled.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from tq_broker.activity import CompleteAsyncError, Info, Signal, current, definition_of
from tq_broker.converter import PayloadConverter
from tq_broker.exceptions import ApplicationError
from tq_broker.model import failure as failures
from tq_broker.worker.executors import NULL, Interrupter
from tq_broker.worker.interceptors import Interceptor
from tq_broker.worker.registry import Registered

EXIT_S = 10.0
"""An idle child whose parent is gone may take so long for its ``atexit`` handlers."""

RECEIVE_BYTES = 1 << 16
HANDLED = {signal.SIGINT, signal.SIGTERM}
"""Sent by terminals and supervisors to whole groups; when a child ends is its parent's matter."""


# --- frames -------------------------------------------------------------------------------------


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """The first frame to a child. ``converter`` is a pickled `PayloadConverter`, ``interceptors``
    a pickled sequence of interceptors of activities."""

    converter: bytes
    log_level: int
    shutdown: bool
    interceptors: bytes = pickle.dumps(())


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Run one attempt.

    Attributes:
        number: Tells this attempt from the others of the child.
        function: The function, pickled.
        info: Without heartbeat details, which are ``heartbeat``, as JSON.
        args: As JSON.
        interrupt: Raise `CancelledError` in the code when it is cancelled.
    """

    number: int
    function: bytes
    info: Info
    args: list[bytes]
    heartbeat: list[bytes]
    interrupt: bool


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Cancellation of attempt ``number`` was requested."""

    number: int


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """The worker has begun to shut down."""


class Beat(msgspec.Struct, frozen=True, tag="beat"):
    """Attempt ``number`` lives; ``details`` are JSON."""

    number: int
    details: list[bytes]


class Returned(msgspec.Struct, frozen=True, tag="returned"):
    """The code returned; ``result`` is JSON."""

    number: int
    result: bytes


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The code raised; ``failure`` is a `tq_broker.model.failure.Failure` as JSON."""

    number: int
    failure: bytes


class Awaited(msgspec.Struct, frozen=True, tag="awaited"):
    """The code raised `CompleteAsyncError`."""

    number: int
    message: str


ToChild = Setup | Run | Cancel | Shutdown
End = Returned | Failed | Awaited
ToParent = Beat | End

_HEAD = struct.Struct("!I")
_encode = msgspec.msgpack.Encoder().encode


def frame(message: ToChild | ToParent) -> bytes:
    """The bytes of one frame."""
    body = _encode(message)
    return _HEAD.pack(len(body)) + body


T = TypeVar("T")


class Frames(Generic[T]):
    """Cuts a stream of bytes into messages of the union ``kind``."""

    def __init__(self, kind: Any) -> None:
        self._decode = msgspec.msgpack.Decoder[Any](kind).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that ``data`` completes. Raises `msgspec.DecodeError`."""
        buffer, found = self._buffer, []
        buffer += data
        while len(buffer) >= _HEAD.size:
            end = _HEAD.size + _HEAD.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            found.append(self._decode(bytes(buffer[_HEAD.size : end])))
            del buffer[:end]
        return found


# --- the child ----------------------------------------------------------------------------------


class Job:
    """One attempt in a child. It is the `tq_broker.activity.Context` of its code."""

    def __init__(self, run: Run, child: Child) -> None:
        self.run = run
        self.cancelled = Signal()
        self.worker_shutdown = child.shutdown
        self.payload_converter: PayloadConverter = child.converter
        self.interrupter = Interrupter()
        self._child = child
        self._info: Info | None = None

    @property
    def info(self) -> Info:
        if self._info is None:
            decode = self.payload_converter.decoder(Any)
            details = tuple(decode(detail) for detail in self.run.heartbeat)
            self._info = dataclasses.replace(self.run.info, heartbeat_details=details)
        return self._info

    def heartbeat(self, *details: Any) -> None:
        encode = self.payload_converter.encode
        self._child.send(Beat(self.run.number, [encode(detail) for detail in details]))

    def shield(self) -> AbstractContextManager[None]:
        return self.interrupter.shield()

    def cancel(self) -> None:
        """Tell the code that cancellation was requested, and interrupt it."""
        self.cancelled.set()
        if self.run.interrupt:
            self.interrupter.interrupt()


class Child:
    """Serves one parent over ``sock`` until that closes it."""

    def __init__(self, sock: socket.socket, setup: Setup) -> None:
        self.converter: PayloadConverter = pickle.loads(setup.converter)
        self._interceptors: Sequence[Interceptor] = pickle.loads(setup.interceptors)
        self.shutdown = Signal()
        if setup.shutdown:
            self.shutdown.set()
        self._sock = sock
        self._sending = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._job: Job | None = None
        self._functions: dict[bytes, Registered] = {}

    def serve(self) -> None:
        """Run what comes out of the queue; returns when the parent has closed the pipe."""
        while (job := self._jobs.get()) is not None:
            end = self._run(job)
            # First: a parent that has the end may close the pipe, and nothing runs any more.
            self._job = None
            self.send(end)

    def take(self, message: ToChild) -> None:
        """Do what the parent says; on the reading thread."""
        if isinstance(message, Run):
            self._job = Job(message, self)
            self._jobs.put(self._job)
        elif isinstance(message, Cancel):
            job = self._job
            if job is not None and job.run.number == message.number:
                job.cancel()
        elif isinstance(message, Shutdown):
            self.shutdown.set()

    def hang_up(self) -> None:
        """The parent has closed the pipe: end, at once if the code of an attempt runs."""
        if self._job is not None:
            die()
        self._jobs.put(None)

    def send(self, message: ToParent) -> None:
        """Send to the parent, from any thread; ends this process if there is no parent."""
        data = frame(message)
        try:
            with self._sending:
                self._sock.sendall(data)
        except OSError:
            die()

    def _run(self, job: Job) -> End:
        number = job.run.number
        token = current.set(job)
        try:
            try:
                job.interrupter.begin()
                registered = self._registered(job.run.function)
                args = registered.arguments([msgspec.Raw(arg) for arg in job.run.args])
                value = registered.fn(*args)
                result = NULL if value is None else self.converter.encode(value)
            finally:
                job.interrupter.end()
        except CompleteAsyncError as error:
            return Awaited(number, str(error))
        except BaseException as error:  # whatever user code raises is its outcome
            return Failed(number, msgspec.json.encode(failures.from_exception(error)))
        finally:
            current.reset(token)
        return Returned(number, result)

    def _registered(self, function: bytes) -> Registered:
        found = self._functions.get(function)
        if found is None:
            try:
                definition = definition_of(pickle.loads(function))
                found = Registered(definition, self.converter, self._interceptors)
            except Exception as error:
                raise ApplicationError(
                    f"the activity's process cannot import the activity: {error}",
                    type="NotFoundError",
                ) from error
            self._functions[function] = found
        return found


def main(sock: socket.socket) -> None:
    """What a child process runs."""
    # Handlers, and not SIG_IGN, which programs started by activities would inherit.
    for number in HANDLED:
        signal.signal(number, _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    # A group of its own, so that what the activities start is killed together with it.
    os.setpgid(0, 0)
    # Only the parent needs to hold us for a daemon; daemons may not have children.
    multiprocessing.current_process().daemon = False
    frames: Frames[ToChild] = Frames(ToChild)
    early: list[ToChild] = []
    while not early:
        data = sock.recv(RECEIVE_BYTES)
        if not data:
            return
        early = frames.feed(data)
    setup = early.pop(0)
    assert isinstance(setup, Setup), "the parent begins with it"
    logging.basicConfig(level=setup.log_level, stream=sys.stderr)
    child = Child(sock, setup)
    for message in early:
        child.take(message)
    threading.Thread(
        target=_read, args=(sock, frames, child), name="tq-parent", daemon=True
    ).start()
    child.serve()


def _read(sock: socket.socket, frames: Frames[ToChild], child: Child) -> None:
    try:
        while data := sock.recv(RECEIVE_BYTES):
            for message in frames.feed(data):
                child.take(message)
    except OSError:
        pass  # a reset pipe is a closed one
    child.hang_up()
    threading.Event().wait(EXIT_S)
    die()


def _ignore(number: int, stack: object) -> None:
    """The handler of signals that are not for us."""


def die() -> NoReturn:
    """End this process at once, together with what the activities have started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
