"""A lookout: which of some queues hold tasks that nobody serves, looked at now and then and told in
the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from tq_broker.exceptions import TqBrokerError
from tq_broker.model.names import QueueName
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog

log = logging.getLogger(__name__)

LOOK_WITHIN_S = 10.0


class Post(NamedTuple):
    """A queue to look at, and ``whom`` its tasks are for, in words."""

    task_queue: str
    whom: str
    queue: QueueName


class Lookout:
    """Of one worker. Thread-safe."""

    def __init__(self, sender: Sender, settings: SettingsLog, every_s: float) -> None:
        self._sender = sender
        self._settings = settings
        self._every_s = every_s
        self._look_at = 0.0
        self._looking = False
        self.found: dict[tuple[str, str], int] = {}
        """By task queue, and whom they are for: how many tasks wait that nobody serves."""

    def is_due(self, now: float) -> bool:
        """Whether it is time for another look."""
        return now >= self._look_at and not self._looking

    def look(self, posts: Sequence[Post], now: float) -> None:
        """Look at all of ``posts``, in the background; returns at once."""
        self._look_at = now + self._every_s
        if not posts and not self.found:
            return
        self._looking = True
        self._sender.in_background(lambda: self._look(posts))

    def _look(self, posts: Sequence[Post]) -> None:
        try:
            found = {}
            for task_queue, whom, queue in posts:
                deadline = self._sender.clock.monotonic() + LOOK_WITHIN_S
                stats = self._sender.broker.stats(str(queue), deadline)
                is_paused = self._settings.pause_of(queue) is not None
                if stats is not None and stats.ready and not stats.consumers and not is_paused:
                    found[task_queue, whom] = stats.ready
        except TqBrokerError as error:
            log.debug("not known whether tasks wait in vain: %s", error)
        else:
            self._tell_changes(found)
        finally:
            self._looking = False

    def _tell_changes(self, found: dict[tuple[str, str], int]) -> None:
        for what in found.keys() - self.found.keys():
            log.warning(
                "%d tasks of task queue %s wait for %s: no living worker serves them",
                found[what],
                *what,
            )
        for what in self.found.keys() - found.keys():
            log.info("no task of task queue %s waits in vain for %s any more", *what)
        self.found = found
