"""Threads that run the functions of activities: as many as are needed at a time, up to a bound.

What a pool of the standard library makes for each call (a future with its condition and lock) would
cost more than the rest of a short activity, and nobody asks for it here: a batch is handed over at
once, and who runs it tells how it ended.
"""

from __future__ import annotations

import logging
import queue
import threading
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
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._spare = 0
        """Threads that nothing runs in or waits for; below zero: so many items wait for one."""
        self._closed = False

    def put(self, items: Sequence[T]) -> None:
        """Run ``items``, each as soon as a thread is free; after `close` they are dropped."""
        with self._lock:
            if self._closed:
                return
            self._spare -= len(items)
            more = min(-self._spare, self._most - self._count)
            for _ in range(more):
                self._begin()
        for item in items:
            self._items.put(item)

    def _begin(self) -> None:
        name = f"tq-activity_{self._count}"
        threading.Thread(target=self._serve, name=name, daemon=True).start()
        self._count += 1
        self._spare += 1

    def _serve(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._run(item)
            except BaseException:  # a defect of ours costs one item, not the thread
                log.exception("a thread for activities goes on")
            del item  # a thread that waits holds nothing
            with self._lock:
                self._spare += 1

    def close(self) -> None:
        """Begin nothing more; each thread ends with what it runs. Does not wait for them."""
        with self._lock:
            self._closed = True
            count = self._count
        try:
            while True:
                self._items.get_nowait()
        except queue.Empty:
            pass
        for _ in range(count):
            self._items.put(None)
