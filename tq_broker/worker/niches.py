"""What a worker's capabilities mean for it: which queues it serves because of them, and which tasks
of its task queues nobody serves.

A task queue has a shared queue for each set of capabilities that somebody has required of it; the
settings log tells of them. A worker serves those of which it has all, from the moment that it reads
of them. Of the others it looks now and then whether anybody does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import InvalidArgument, TqBrokerError
from tq_broker.model.capabilities import Niche, in_words
from tq_broker.model.settings import CapabilitiesDeclared, Record, TaskQueueDeclared
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker.attempt import Place
from tq_broker.worker.poller import Poller

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
LOOK_WITHIN_S = 10.0
SETS_MAX = 1_000
"""Queues that one worker serves for its capabilities, or looks at."""


class Niches:
    """See the module. Thread-safe."""

    def __init__(
        self,
        sender: Sender,
        settings: SettingsLog,
        poller: Poller,
        place: Place,
        capabilities: Sequence[str],
        task_queues: Sequence[str],
        version: str = "",
    ) -> None:
        self.capabilities = tuple(capabilities)
        self._sender = sender
        self._settings = settings
        self._poller = poller
        self._place = place
        self._task_queues = task_queues
        self._version = version
        self._has_news = True
        self._others: list[tuple[str, tuple[str, ...]]] = []
        self._look_at = 0.0
        self._looking = False
        self._unserved: dict[str, dict[str, int]] = {}

    @property
    def keys(self) -> list[str]:
        """The control keys under which it is asked to serve a niche."""
        if not self.capabilities:
            return []
        return [Niche(name, self.capabilities).ask_key for name in self._task_queues]

    @property
    def unserved(self) -> dict[str, dict[str, int]]:
        """By task queue: how many tasks wait for capabilities that nobody has, by set."""
        return self._unserved

    def belongs_to(self, niche: Niche) -> bool:
        """Whether it may serve ``niche``; never one that no task makes."""
        try:
            niche.check()
        except InvalidArgument as error:
            log.warning("asked to serve a niche that no task makes: %s", error)
            return False
        place = self._place
        return niche.task_queue in self._task_queues and niche.fits(
            self.capabilities, place.host, place.worker_id, self._version
        )

    def tell(self, deadline: float) -> None:
        """Have the settings log know its capabilities; blocks if they are news.

        Raises as `Sender.append`.
        """
        for task_queue in self._task_queues:
            if not self._settings.unknown(task_queue, self.capabilities):
                continue
            now_ms = epoch_ms(self._place.clock)
            record = CapabilitiesDeclared(
                task_queue, self.capabilities, now_ms, self._place.identity
            )
            told: Future[TqBrokerError | None] = Future()
            self._sender.append(record, deadline, told.set_result)
            if (error := told.result()) is not None:
                raise error

    def on_record(self, record: Record) -> None:
        """A record of the settings log has come."""
        if isinstance(record, TaskQueueDeclared) and record.requires:
            self._has_news = True

    def tick(self, now: float) -> None:
        """Serve what it has read of, and look after the rest; done often."""
        if self._has_news:
            self._has_news = False
            self._serve()
        if self._others and now >= self._look_at and not self._looking:
            self._look_at = now + LOOK_EVERY_S
            self._looking = True
            self._sender.in_background(self._look)

    def _serve(self) -> None:
        mine, names, others = set(self.capabilities), self._sender.names, []
        known = [(q, one) for q in self._task_queues for one in self._settings.capable(q)]
        if len(known) > SETS_MAX:
            log.warning("%d sets of capabilities are required: too many", len(known))
        for task_queue, required in known[:SETS_MAX]:
            if mine.issuperset(required):
                self._poller.serve(names.capable(task_queue, required))
            else:
                others.append((task_queue, required))
        self._others = others

    def _look(self) -> None:
        """Find the tasks that nobody serves; blocks."""
        try:
            found: dict[str, dict[str, int]] = {}
            for task_queue, required in self._others:
                queue = self._sender.names.capable(task_queue, required)
                deadline = self._place.clock.monotonic() + LOOK_WITHIN_S
                stats = self._sender.broker.stats(str(queue), deadline)
                is_paused = self._settings.pause_of(queue) is not None
                if stats is not None and stats.ready and not stats.consumers and not is_paused:
                    found.setdefault(task_queue, {})[in_words(required)] = stats.ready
        except TqBrokerError as error:
            log.debug("not known whether capabilities are missing: %s", error)
        else:
            self._tell_changes(found)
        finally:
            self._looking = False

    def _tell_changes(self, found: dict[str, dict[str, int]]) -> None:
        before, now = _flat(self._unserved), _flat(found)
        for what in now.keys() - before.keys():
            log.warning(
                "%d tasks of task queue %s wait for %s, which no living worker has",
                now[what],
                *what,
            )
        for what in before.keys() - now.keys():
            log.info("no task of task queue %s waits in vain for %s any more", *what)
        self._unserved = found


def _flat(found: dict[str, dict[str, int]]) -> dict[tuple[str, str], int]:
    return {(queue, what): count for queue, sets in found.items() for what, count in sets.items()}
