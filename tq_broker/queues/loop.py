"""The loop under pika's connection: one thread's, who lends its turn to others while it waits.

To hand a message to a thread that sleeps takes longer than to write it: the thread has to wake up
and to get the interpreter. So who finds the loop waiting may do a turn's work in its place. One at
a time has the *baton*, and with it all that otherwise belongs to the thread.

Rules of this file:

* nobody waits for the baton but the loop's own thread, so that no lock which a caller holds can be
  in the way;
* with the baton everything may be done that may be done on the thread; what the wait under way does
  not know of wakes the thread;
* a turn that ended halfway has left who knows what behind: it ends the loop with `Interrupted`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from pika.adapters.utils.selector_ioloop_adapter import AbstractSelectorIOLoop

from tq_broker.clock import Clock


class Interrupted(Exception):
    """An exception came out of a turn that was lent: a signal's, or a bug's."""


class Timer:
    """A callback that is booked; ``None`` when it is not to be called any more."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback: Callable[[], Any] | None = callback


class Loop(AbstractSelectorIOLoop):  # type: ignore[misc]
    """See the module. The methods of pika's interface need the baton, which `start` holds on the
    thread; `add_callback` and `lend` may be called from any thread."""

    READ = selectors.EVENT_READ
    WRITE = selectors.EVENT_WRITE
    ERROR = 0
    """`selectors` tells errors as both of the others."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        # Not epoll: the child of a fork would share it with us.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._selector.register(self._near, selectors.EVENT_READ)
        self._watched: dict[int, int] = {}
        self._polled: dict[int, int] = {}
        self._until = -math.inf
        """When the wait under way ends by itself; in the past if there is none."""
        self._handlers: dict[int, Callable[[int, int], None]] = {}
        self._callbacks: deque[Callable[[], Any]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        # Only of this kind one can say afterwards whether one has it.
        self._baton = threading.RLock()
        self._is_lent = False
        self._ident = 0
        self._woken = False
        self._stopping = False
        self._broken: BaseException | None = None

    # --- from any thread ---

    def add_callback(self, callback: Callable[[], Any]) -> None:
        """Call ``callback`` on the thread, soon."""
        self._callbacks.append(callback)
        if threading.get_ident() != self._ident:
            self._wake()

    add_callback_threadsafe = add_callback

    def lend(self, work: Callable[[], bool]) -> bool:
        """Do ``work`` here and now, in place of the thread, if that is waiting.

        Returns:
            What ``work`` returns; False if it was not done.
        """
        if self._is_lent or threading.get_ident() == self._ident:
            return False  # the work itself, or a signal's handler in the midst of it
        try:
            return self._baton.acquire(blocking=False) and self._lent(work)
        finally:
            # An exception out of nowhere (a signal's) may have come at any point: only this tells
            # whether the baton is here, and nothing can come before it.
            try:  # noqa: SIM105 - a context manager would be called before it
                self._baton.release()
            except RuntimeError:
                pass

    def _lent(self, work: Callable[[], bool]) -> bool:
        self._is_lent = True
        try:
            if self._until == -math.inf or self._broken is not None:
                return False  # it does not run, or not any more
            done = work()
        except BaseException as error:
            self._broken = error
            self._wake()
            raise
        finally:
            self._is_lent = False
        if self._watched != self._polled:
            self._wake()
        return done

    def _wake(self) -> None:
        # Set before the bytes are sent, and cleared after they were read: none is overlooked.
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # Closed: the thread has ended.
                self._far.send(b"w")

    # --- with the baton: what pika asks for ---

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Timer:
        """Call ``callback`` in ``delay`` seconds."""
        timer = Timer(callback)
        due = self._clock.monotonic() + delay
        heapq.heappush(self._timers, (due, next(self._numbers), timer))
        if due < self._until:
            self._wake()
        return timer

    def remove_timeout(self, timeout_handle: Timer) -> None:
        """Do not make a call that is booked."""
        timeout_handle.callback = None

    def add_handler(self, fd: int, handler: Callable[[int, int], None], events: int) -> None:
        """Call ``handler`` with ``fd`` and what is up there, whenever one of ``events`` is."""
        self._selector.register(fd, events)
        self._handlers[fd] = handler
        self._watched[fd] = events

    def update_handler(self, fd: int, events: int) -> None:
        """From now on look for ``events``."""
        self._selector.modify(fd, events)
        self._watched[fd] = events

    def remove_handler(self, fd: int) -> None:
        """Look at ``fd`` no more."""
        self._selector.unregister(fd)
        del self._handlers[fd], self._watched[fd]

    def start(self) -> None:
        """Run, on the calling thread, until `stop`.

        Raises:
            Interrupted: a turn that was lent did not get to its end.
        """
        self._ident = threading.get_ident()
        with self._baton:
            while not self._stopping:
                self._dispatch(self._wait())
                self._call_back()
        self._stopping = False

    def stop(self) -> None:
        """End `start` after this turn."""
        self._stopping = True

    def close(self) -> None:
        """Let go of everything; after `start` has returned."""
        self._selector.close()
        self._near.close()
        self._far.close()

    # --- the thread ---

    def _wait(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Without the baton, until something is up or due."""
        now = self._clock.monotonic()
        self._until = now if self._callbacks else self._timers[0][0] if self._timers else math.inf
        wait_s = None if self._until == math.inf else max(0.0, self._until - now)
        if self._polled != self._watched:
            self._polled = dict(self._watched)
        self._baton.release()
        try:
            ready: list[tuple[selectors.SelectorKey, int]] = self._selector.select(wait_s)
        finally:
            self._baton.acquire()
            self._until = -math.inf
        if self._broken is not None:
            error, self._broken = self._broken, None
            raise Interrupted(f"a thread that published was interrupted: {error!r}") from error
        return ready

    def _dispatch(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, events in ready:
            if key.fileobj is self._near:
                self._near.recv(4096)
                self._woken = False
            # Others may have changed what is looked for since.
            elif events := events & self._watched.get(key.fd, 0):
                self._handlers[key.fd](key.fd, events)

    def _call_back(self) -> None:
        # What these add is for the next turn, so that the socket is looked at between.
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()
        if self._timers:
            now = self._clock.monotonic()
            while self._timers and self._timers[0][0] <= now:
                callback = heapq.heappop(self._timers)[2].callback
                if callback is not None:
                    callback()
