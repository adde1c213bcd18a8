"""Threads in which workflow code runs, and the watch over code that never comes back.

Workflow code is quick and holds the interpreter while it runs, so one thread does as much as many.
More are started only while work waits behind code that takes long. Code that blocks for longer than
its limit is given up: its thread is told to end, and another takes its place.
"""

from __future__ import annotations

import gc
import logging
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tq_broker.clock import Clock
from tq_broker.exceptions import TqBrokerError
from tq_broker.worker.executors import raise_in

log = logging.getLogger(__name__)

LONG_S = 0.02
"""Work that takes longer holds up what waits behind it; most takes a thousandth of a second."""

OnStuck = Callable[[str], None]
"""Gets the stack of the stuck thread; called on the thread that watches."""


class Abandoned(TqBrokerError):
    """Raised in a thread whose work was given up, when it comes back; let it pass."""


@dataclass(frozen=True, slots=True)
class _Watch:
    until: float
    on_stuck: OnStuck


class Seat:
    """One thread, as seen by the work that it does."""

    def __init__(self, clock: Clock, number: int) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._watch: _Watch | None = None
        self._abandoned = False
        self.number = number
        self.thread_id = 0
        self.busy_since: float | None = None

    def watched(self, limit_s: float | None, on_stuck: OnStuck) -> AbstractContextManager[None]:
        """A block that is given up after ``limit_s``; ``None`` watches nothing.

        Raises:
            Abandoned: at its end, if it was given up: nothing may be done about its outcome.
        """
        if limit_s is None:
            return nullcontext()
        return _Watched(self, _Watch(self._clock.monotonic() + limit_s, on_stuck))

    def begin(self, watch: _Watch) -> None:
        """What ``watch`` is about begins."""
        self._watch = watch

    def end(self) -> None:
        """It is back, or was given up: then this raises `Abandoned`."""
        with self._lock:
            self._watch = None
            if self._abandoned:
                raise_in(self.thread_id, None)
                raise Abandoned("it took too long")

    def give_up(self, now: float) -> OnStuck | None:
        """Give the work up if its time is over; returns whom to tell."""
        with self._lock:
            watch = self._watch
            if watch is None or now < watch.until:
                return None
            self._abandoned = True
            return watch.on_stuck

    def evict(self) -> None:
        """End what was given up, if it runs Python code: it would keep the interpreter busy. What
        blocks elsewhere ends when it comes back."""
        with self._lock:
            if self._watch is not None:
                raise_in(self.thread_id, SystemExit)


class _Watched:
    __slots__ = ("_seat", "_watch")

    def __init__(self, seat: Seat, watch: _Watch) -> None:
        self._seat = seat
        self._watch = watch

    def __enter__(self) -> None:
        self._seat.begin(self._watch)

    def __exit__(self, *_exc_info: object) -> None:
        self._seat.end()


Work = Callable[[Seat], None]


class WorkflowRunner:
    """Does work in order of arrival. Thread-safe."""

    def __init__(self, clock: Clock, threads_max: int) -> None:
        self._clock = clock
        self._threads_max = threads_max
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._seats: set[Seat] = set()
        self._started = 0
        self._is_short = False
        self._closed = False

    def submit(self, work: Work) -> None:
        """Do ``work`` soon; returns at once."""
        self._queue.put(work)
        if not self._seats:
            with self._lock:
                if not self._seats:
                    self._add_seat()

    def _add_seat(self) -> None:
        """Under the lock. Where the system has no thread (``ulimit -u``, ``pids.max``), what waits
        does so for those that there are, or for the next tick."""
        seat = Seat(self._clock, self._started + 1)
        name = f"tq-workflow-{seat.number}"
        try:
            threading.Thread(target=self._serve, args=(seat,), name=name, daemon=True).start()
        except RuntimeError as error:
            if not self._is_short:
                log.warning("%d threads for workflow code: %s", len(self._seats), error)
            self._is_short = True
            return
        self._is_short = False
        self._started += 1
        self._seats.add(seat)

    def _serve(self, seat: Seat) -> None:
        seat.thread_id = threading.get_ident()
        while not self._is_superfluous(seat):
            work = self._queue.get()
            if work is None:
                break
            seat.busy_since = self._clock.monotonic()
            try:
                work(seat)
            except Abandoned:
                return
            except BaseException:  # supervisor: a defect must not end the thread
                log.exception("workflow task: a defect")
            seat.busy_since = None
        with self._lock:
            self._seats.discard(seat)

    def _is_superfluous(self, seat: Seat) -> bool:
        if len(self._seats) < 2:  # nearly always, and then the lock would be for nothing
            return False
        with self._lock:
            if len(self._seats) < 2 or not self._queue.empty() or self._closed:
                return False
            self._seats.discard(seat)
            return True

    def tick(self, now: float) -> None:
        """Give up what is stuck, and help out where work waits behind work."""
        for seat in list(self._seats):
            on_stuck = seat.give_up(now)
            if on_stuck is not None:
                self._replace(seat)
                stack = _stack(seat.thread_id)
                seat.evict()
                on_stuck(stack)
        if self._queue.empty() or self._closed:
            return
        with self._lock:
            since = [seat.busy_since for seat in self._seats]
            is_held_up = all(begun is not None and now - begun >= LONG_S for begun in since)
            if is_held_up and len(self._seats) < self._threads_max:
                self._add_seat()

    def _replace(self, stuck: Seat) -> None:
        with self._lock:
            self._seats.discard(stuck)
            if not self._seats:
                self._add_seat()

    def close(self) -> None:
        """Let the threads end after what was submitted before; does not wait for them."""
        with self._lock:
            self._closed = True
            for _ in self._seats:
                self._queue.put(None)


def _stack(thread_id: int) -> str:
    # Before Python 3.11.9 this allocates while it holds a lock that the end of a thread's local
    # values wants, too: a collection in there stops the process for ever (python/cpython#106883).
    collects = gc.isenabled()
    gc.disable()
    try:
        frame = sys._current_frames().get(thread_id)
    finally:
        if collects:
            gc.enable()
    return "".join(traceback.format_stack(frame)) if frame is not None else ""
