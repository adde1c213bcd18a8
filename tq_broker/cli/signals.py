"""Signals as events: a handler only notes, the main thread reads when it has time."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Events:
    """A box for what happens: signals, and what other threads put in.

    ``SimpleQueue`` is made for this: a signal handler may put while the same thread gets.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._before: dict[int, Any] = {}

    def listen(self, numbers: Iterable[int]) -> None:
        """Take these signals from now on. Main thread only."""
        for number in numbers:
            self._before[number] = signal.signal(number, self._note)

    def unlisten(self) -> None:
        """Give them back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._queue.put(signal.Signals(number))

    def put(self, event: Any) -> None:
        """Note an event; from any thread."""
        self._queue.put(event)

    def next(self, timeout_s: float | None = None) -> Any:
        """The next event; ``None`` if none came within ``timeout_s``."""
        try:
            return self._queue.get(timeout=timeout_s)
        except Empty:
            return None
