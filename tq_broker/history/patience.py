"""Patience with a store that cannot be reached: whoever needs it waits, for as long as it takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from tq_broker.clock import Clock
from tq_broker.exceptions import TqBrokerError
from tq_broker.queues.backoff import backoff_s
from tq_broker.stores.store import StoreUnavailable

log = logging.getLogger(__name__)

PAUSE_MAX_S = 2.0
SAID_AGAIN_S = 30.0
"""So often it is said that the store is still away."""
LOOK_S = 0.05
"""So soon it is noticed that nobody waits any more."""

T = TypeVar("T")


class Halted(Exception):
    """The process ends, and the store was not there to the last."""


class Patience:
    """Thread-safe.

    Args:
        over: Set when nobody waits any more.
    """

    def __init__(self, clock: Clock, over: threading.Event) -> None:
        self._clock = clock
        self._over = over
        self._said = threading.Lock()
        self._since_s: float | None = None
        self._say_at_s = 0.0

    def insist(self, call: Callable[[], T], *also: type[TqBrokerError]) -> T:
        """The result of ``call``, which is made again while it raises `StoreUnavailable` or one of
        ``also``.

        Raises:
            Halted: it did, and ``over`` was set.
        """
        tries = 0
        waits: tuple[type[TqBrokerError], ...] = (StoreUnavailable, *also)
        while True:
            try:
                result = call()
            except waits as error:
                self._complain(error)
            else:
                if tries:
                    self._rejoice()
                return result
            self._pause(min(PAUSE_MAX_S, backoff_s(tries)))
            tries += 1

    def _complain(self, error: TqBrokerError) -> None:
        """One of those who wait says so, from time to time."""
        with self._said:
            now_s = self._clock.monotonic()
            if self._since_s is None:
                self._since_s = self._say_at_s = now_s
            if now_s < self._say_at_s:
                return
            self._say_at_s = now_s + SAID_AGAIN_S
            waited_s = now_s - self._since_s
        log.error(
            "history: %s; nothing is lost and nothing more is taken until it is back (%.0f s so"
            " far); trying again",
            error,
            waited_s,
        )

    def _rejoice(self) -> None:
        with self._said:
            since_s, self._since_s = self._since_s, None
        if since_s is not None:
            passed_s = self._clock.monotonic() - since_s
            log.warning("history: the store is back, after %.1f s", passed_s)

    def _pause(self, seconds: float) -> None:
        passed = threading.Event()
        timer = self._clock.call_at(self._clock.monotonic() + seconds, passed.set)
        while not passed.wait(LOOK_S):
            if self._over.is_set():
                timer.cancel()
                raise Halted
