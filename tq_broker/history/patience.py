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
                if not tries:
                    log.warning("history: %s; trying again", error)
            else:
                if tries:
                    log.info("history: the store is back")
                return result
            self._pause(min(PAUSE_MAX_S, backoff_s(tries)))
            tries += 1

    def _pause(self, seconds: float) -> None:
        passed = threading.Event()
        timer = self._clock.call_at(self._clock.monotonic() + seconds, passed.set)
        while not passed.wait(LOOK_S):
            if self._over.is_set():
                timer.cancel()
                raise Halted
