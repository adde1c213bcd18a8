"""Turns: a thread that does what is due, again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""The longest pause: slots may become free without a word."""
RETRY_S = 0.25


class Turns:
    """A daemon thread that takes turns: after so long as the last one said, or when woken."""

    def __init__(self, name: str, turn: Callable[[], float]) -> None:
        self._name = name
        self._turn = turn
        self._woken = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Harmless if it runs."""
        if self._thread is None and not self._stopped:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """The next turn is to be taken now."""
        self._woken.set()

    def stop(self) -> None:
        """Take no more turns; waits for the one that is being taken."""
        self._stopped = True
        self._woken.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped:
            self._woken.clear()
            try:
                wait_s = self._turn()
            except Exception:  # supervisor: a defect must not stop what it does for others
                log.exception("%s: a defect", self._name)
                wait_s = RETRY_S
            if not self._stopped:
                self._woken.wait(max(0.001, min(wait_s, LOOK_S)))
