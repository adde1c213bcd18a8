"""An inbox: what other threads want done by the one thread that owns something."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class Inbox:
    """Calls in the order in which they were asked for.

    `later` may be called from any thread; `work_off` and `close` by the owner's.

    Args:
        wake: Called when `work_off` has something to do.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._calls: deque[Callable[[], None]] = deque()
        self.is_closed = False

    def later(self, call: Callable[[], None]) -> None:
        """Have ``call`` made by the owner; at once if the owner has gone."""
        self._calls.append(call)
        if self.is_closed:
            self.work_off()  # nobody else does
        self._wake()

    def work_off(self) -> None:
        """Make all calls that were asked for."""
        while True:
            try:
                call = self._calls.popleft()
            except IndexError:
                return
            call()

    def close(self) -> None:
        """The owner goes; what is asked for from now on is done by who asks."""
        self.is_closed = True
        self.work_off()
