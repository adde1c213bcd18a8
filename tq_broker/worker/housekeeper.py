"""Removing task queues that nobody has used for long, and a look for tasks that wait for a
deployment version without workers: one worker of a namespace does it for all.

The workers elect the one by a lock on the broker, which is free again when its holder is gone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from tq_broker.exceptions import DeadlineExceeded, TqBrokerError
from tq_broker.model.names import PLAIN, Kind, QueueName, requirements
from tq_broker.model.settings import SIDES, side_of
from tq_broker.queues.connection import Connection
from tq_broker.queues.settings_log import SettingsLog

log = logging.getLogger(__name__)

ROUNDS = 4
"""Looks at each queue in the time after which it counts as idle."""
ELECT_WITHIN_S = 1.0
LOOK_WITHIN_S = 60.0


TaskQueue = tuple[str, ...]
"""A side, the name of a task queue, and the capabilities that its tasks require, if any."""


class Idleness:
    """Since when each task queue has been found idle at every look. Pure."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: dict[TaskQueue, float] = {}

    def observe(self, idle: Iterable[TaskQueue], now: float) -> list[TaskQueue]:
        """These are idle now, and no others: which have been for long enough?"""
        self._since = {name: self._since.get(name, now) for name in idle}
        return [name for name, since in self._since.items() if now - since >= self._after_s]


class Housekeeper:
    """Looks for idle task queues on a daemon thread ``tq-housekeeper``, until `stop`."""

    def __init__(self, connection: Connection, settings: SettingsLog, after_s: float) -> None:
        self._broker = connection.broker
        self._clock = connection.clock
        self._settings = settings
        self._after_s = after_s
        self._names = connection.names
        self._lock_name = str(connection.names.queue(Kind.LOCK, "housekeeping"))
        self._reclaimer = connection.reclaimer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tq-housekeeper", daemon=True)

    def start(self) -> None:
        """Begin. The first look is taken after a while."""
        self._thread.start()

    def stop(self) -> None:
        """End, after what is being removed; does not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._after_s / ROUNDS):
            try:
                deadline = self._clock.monotonic() + ELECT_WITHIN_S
                with self._broker.lock(self._lock_name, deadline):
                    self._serve()
            except DeadlineExceeded:
                continue  # another worker is the one
            except TqBrokerError as error:
                log.warning("idle task queues not looked for: %s", error)
            except Exception:
                # It would end this thread, and then that of each worker elected after this one.
                log.exception("idle task queues not looked for")

    def _serve(self) -> None:
        idleness = Idleness(self._after_s)
        while True:
            self.look(idleness)
            self.warn()
            if self._stop.wait(self._after_s / ROUNDS):
                return

    def look(self, idleness: Idleness) -> list[TaskQueue]:
        """Take one look, and remove what has been idle for long enough; returns the removed.

        What is paused has no consumers although somebody serves it, so it stays.
        """
        deadline = self._clock.monotonic() + LOOK_WITHIN_S
        names = {(side, name) for side in SIDES for name in self._settings.task_queues(side)}
        names |= {(side_of(queue), queue.parts[-1]) for queue in self._settings.capable_queues()}
        idle: dict[TaskQueue, list[QueueName]] = {}
        for side, name in sorted(names):
            if self._settings.is_stopped(side, name):
                continue
            members = self._settings.composition(side, name)
            for queue in self._reclaimer.removable(members, deadline):
                idle.setdefault((side, name, *requirements(queue)), []).append(queue)
        due = idleness.observe(idle, self._clock.monotonic())
        queues = [queue for key in due for queue in idle[key]]
        gone = self._reclaimer.reclaim_queues(queues) if queues else ()
        removed: list[TaskQueue] = [
            (side_of(queue), queue.parts[-1], *requirements(queue))
            for queue in gone
            if queue.kind not in PLAIN
        ]
        if due:
            log.info("removed %d idle task queues", len(removed))
        return removed

    def warn(self) -> None:
        """Log where tasks wait for a version, and nobody consumes them."""
        deadline = self._clock.monotonic() + LOOK_WITHIN_S
        prioritized = self._settings.prioritized
        for version, queue in self._settings.deployments.queues(self._names):
            if (queue.kind.value, queue.parts[0]) in prioritized:
                queue = self._names.priority(queue)
            stats = self._broker.stats(str(queue), deadline)
            if stats is None or not stats.ready or stats.consumers:
                continue
            if self._settings.pause_of(queue) is None:
                log.warning(
                    "%d tasks wait in %s for version %s, and no worker consumes it now",
                    stats.ready,
                    queue,
                    version,
                )
