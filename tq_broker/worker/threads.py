"""Threads that run the functions of activities: as many as are needed at a time, up to a bound.

What a pool of the standard library makes for each call (a future with its condition and lock) would
cost more than the rest of a short activity, and nobody asks for it here: a batch is handed over at
once, and who runs it tells how it ended.

Nor is a thread called for each item of a batch. One is, and whoever takes an item and leaves others
calls the next, one at a time. If what they run waits for something, the next one is there in
microseconds; if it is short, a few threads run all of it, and the others stay asleep.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Threads(Generic[T]):
    """Daemon threads ``tq-activity_0`` and so on, which stay until `close`. Thread-safe.

    Args:
        most: How many there are at most; what comes beyond waits, in order.
        run: Called with each item on one of them. What it raises is logged.
    """

    def __init__(self, most: int, run: Callable[[T], None]) -> None:
        self._most = most
        self._run = run
        self._lock = threading.Lock()
        self._items: deque[T] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Rung once for each thread that is called."""
        self._count = 0
        self._asleep = 0
        self._is_one_coming = False
        self._is_short = False
        self._closed = False

    def put(self, items: Sequence[T]) -> None:
        """Run ``items``, each as soon as a thread is free; after `close` they are dropped.

        Raises:
            RuntimeError: there is no thread yet, and none can be had; ``items`` will not be run.
        """
        with self._lock:
            if self._closed:
                return
            self._items.extend(items)
            try:
                self._call_one()
            except RuntimeError:
                self._items.clear()
                raise

    def close(self) -> None:
        """Begin nothing more; each thread ends with what it runs. Does not wait for them."""
        with self._lock:
            self._closed = True
            self._items.clear()
            for _ in range(self._asleep):
                self._bell.put(None)
            self._asleep = 0

    def _call_one(self) -> None:
        """Have one more thread come, if something waits and none is on its way."""
        if self._is_one_coming or not self._items:
            return
        if self._asleep:
            self._asleep -= 1
            self._bell.put(None)
        elif self._count == self._most or not self._start_one():
            return
        self._is_one_coming = True

    def _start_one(self) -> bool:
        """Start one more, if the system has one (``ulimit -u``, ``pids.max``): otherwise those
        that there are run everything."""
        name = f"tq-activity_{self._count}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError as error:
            if not self._count:
                raise
            if not self._is_short:
                log.warning("%d threads for activities, not %d: %s", self._count, self._most, error)
            self._is_short = True
            return False
        self._count += 1
        return True

    def _serve(self) -> None:
        while self._work():
            self._bell.get()

    def _work(self) -> bool:
        """Run what there is, having been called; False if there will be nothing more."""
        with self._lock:
            self._is_one_coming = False
        while True:
            with self._lock:
                if self._closed:
                    return False
                if not self._items:
                    self._asleep += 1
                    return True
                item = self._items.popleft()
                self._call_one()
            try:
                self._run(item)
            except BaseException:  # a defect of ours costs one item, not the thread
                log.exception("a thread for activities goes on")
            del item  # a thread that sleeps holds nothing
