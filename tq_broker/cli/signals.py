"""Signals as events: a handler only notes, the main thread reads when it has time."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)

LOOK_S = 0.5
"""A wait is never longer than this in one piece.

Handlers run on the main thread, between two steps of its Python code. A signal that comes while
it is on its way into a wait, or that the kernel gives to another thread, does not end that wait:
in a wait without end, one worker in a hundred did not hear its SIGTERM on a busy machine.
``signal.set_wakeup_fd`` would hear it too, but also what is meant for forked children.
"""


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
        """The next event; ``None`` if none came within ``timeout_s``, where that is given."""
        left_s = math.inf if timeout_s is None else timeout_s
        while True:
            piece_s = min(left_s, LOOK_S)
            try:
                return self._queue.get(timeout=piece_s)
            except Empty:
                left_s -= piece_s
                if left_s <= 0:
                    return None
