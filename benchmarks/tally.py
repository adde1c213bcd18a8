"""Tally: counts what a worker process did and when.

The rules of this file:

- The span runs from the first task executed to the last acknowledgement sent (or the last task
  executed, where that is later).
- Counting must cost next to nothing, whatever thread or loop it is done on: one step of an
  iterator, which is atomic, and at most one look at the clock.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.order import Sample

QUIET_S = 0.3
"""No acknowledgement for so long after the last task: all are sent. A batch waits much less."""


class Tally:
    """The count of one worker. Any thread may count; one thread or loop waits."""

    def __init__(self, total: int, *, quiet_s: float = QUIET_S) -> None:
        self.total = total
        self._quiet_s = quiet_s
        self._numbers = itertools.count(1)
        self._first_s = 0.0
        self._last_s = 0.0
        self._done = threading.Event()

    def executed(self) -> None:
        """A task was executed. To be called by the task."""
        number = next(self._numbers)
        if number == 1:
            self._first_s = time.perf_counter()
        elif number >= self.total:
            self._last_s = time.perf_counter()
            self._done.set()

    def watch_acks(self, owner: Any, name: str, *, as_executed: bool = False) -> None:
        """Note when *owner*'s method *name*, the one that acknowledges, was called last.

        Args:
            owner: a class of the AMQP library in use.
            name: its method.
            as_executed: each acknowledgement counts as one task executed: for workers that run
                their tasks in other processes.
        """
        acknowledge: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(acknowledge)
        def stamped(*args: Any, **kwargs: Any) -> Any:
            self._last_s = time.perf_counter()
            if as_executed:
                self.executed()
            return acknowledge(*args, **kwargs)

        setattr(owner, name, stamped)

    def wait(self) -> None:
        """Wait until all tasks are executed and acknowledged; the parent process ends us if not."""
        while not self._is_over():
            time.sleep(0.05)

    async def wait_on_loop(self) -> None:
        """As `wait`, on an event loop that has other things to do."""
        while not self._is_over():
            await asyncio.sleep(0.05)

    def sample(self, *queues: str) -> Sample:
        """The rate."""
        return rate(self.total - 1, self._last_s - self._first_s, queues)

    def _is_over(self) -> bool:
        return self._done.is_set() and time.perf_counter() - self._last_s > self._quiet_s


def rate(count: int, span_s: float, queues: Iterable[str] = ()) -> Sample:
    """The sample of *count* things done in *span_s* seconds."""
    return Sample(figures={"per_s": count / span_s}, queues=tuple(queues))


def latencies(ask: Callable[[int], object], count: int, queues: Iterable[str] = ()) -> Sample:
    """The sample of *count* round trips, one after the other; *ask* makes one and returns after it.

    A tenth as many come before, uncounted: connections, caches and queues are then in place.
    """
    for number in range(max(count // 10, 5)):
        ask(number)
    spans_ms = []
    for number in range(count):
        start_s = time.perf_counter()
        ask(number)
        spans_ms.append((time.perf_counter() - start_s) * 1000)
    figures = {
        "median_ms": statistics.median(spans_ms),
        "p99_ms": statistics.quantiles(spans_ms, n=100)[98],
    }
    return Sample(figures=figures, queues=tuple(queues))
