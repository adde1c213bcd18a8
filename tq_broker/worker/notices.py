"""What is told about an attempt before it ends: that it has begun, and that it lives.

A caller is told of the start when a schedule-to-start timeout hangs on it. History is told of the
start of every attempt that is not over in a moment, and of heartbeats with their details: they are
where the next attempt gets them from.
"""

from __future__ import annotations

from collections.abc import Iterable

from tq_broker.model.tasks import Status
from tq_broker.worker.attempt import Attempt, Place
from tq_broker.worker.reporter import Reporter
from tq_broker.worker.throttle import Throttle

MOMENT_S = 0.1
"""An attempt that is over sooner is told about once, when it ends."""


class Notices:
    """The notices of a worker. Thread-safe."""

    def __init__(self, reporter: Reporter, place: Place, throttle: Throttle) -> None:
        self._reporter = reporter
        self._clock = place.clock
        self._throttle = throttle

    def begun(self, attempt: Attempt) -> None:
        """Tell that ``attempt`` has begun, unless that is known."""
        if not attempt.announced:
            attempt.announced = True
            self._reporter.notice(
                attempt.task, Status.STARTED, _nothing, started_ms=attempt.started_ms
            )

    def beat(self, attempt: Attempt) -> None:
        """An attempt for a workflow has sent a heartbeat: tell, if none was told of lately."""
        now = self._clock.monotonic()
        if self._throttle.is_due(attempt, now):
            self._tell_beat(attempt, now)

    def tick(self, attempts: Iterable[Attempt], now: float) -> None:
        """Tell history of what has begun by now, and of heartbeats that had to wait."""
        for attempt in attempts:
            if attempt.task.workflow is None:
                continue
            if not attempt.announced and now - attempt.begun_at >= MOMENT_S:
                self.begun(attempt)
            if self._throttle.is_due(attempt, now):
                self._tell_beat(attempt, now)

    def _tell_beat(self, attempt: Attempt, now: float) -> None:
        self.begun(attempt)
        details = attempt.details
        attempt.saved, attempt.saved_at = details, now
        self._reporter.notice(
            attempt.task,
            Status.HEARTBEAT,
            _nothing,
            started_ms=attempt.started_ms,
            heartbeat=details,
        )


def _nothing() -> None:
    """A notice needs no acknowledgement."""
