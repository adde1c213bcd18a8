"""What a worker's capabilities mean for it: which queues it serves because of them, and which tasks
of its task queues nobody serves.

Each side of a task queue has a shared queue for each set of capabilities that somebody has required
of it; the settings log tells of them. A worker serves those of which it has all, from the moment
that it reads of them. Of the others it looks now and then whether anybody does; and so it does of
what is for other deployment versions of its task queues.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import InvalidArgument, TqBrokerError
from tq_broker.model.capabilities import Niche, in_words
from tq_broker.model.names import Kind, QueueName
from tq_broker.model.settings import (
    ACTIVITY_SIDE,
    WORKFLOW_SIDE,
    CapabilitiesDeclared,
    Record,
    SettingsSnapshot,
    TaskQueueDeclared,
)
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker.attempt import Place
from tq_broker.worker.lookout import Lookout, Post
from tq_broker.worker.poller import Poller

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
LOOK_AT_VERSIONS_EVERY_S = 10.0
"""Versions are many, and hardly ever lose all their workers while tasks wait for them."""
SETS_MAX = 1_000
"""Queues that one worker serves for its capabilities, or looks at."""


class Niches:
    """Of one side of a worker; see the module. Thread-safe."""

    def __init__(
        self,
        sender: Sender,
        settings: SettingsLog,
        poller: Poller,
        place: Place,
        capabilities: Sequence[str],
        task_queues: Sequence[str],
        version: str = "",
        side: str = ACTIVITY_SIDE,
    ) -> None:
        self.capabilities = tuple(capabilities)
        self._sender = sender
        self._settings = settings
        self._poller = poller
        self._place = place
        self._task_queues = task_queues
        self._version = version
        self._side = side
        self._has_news = True
        self._others: list[tuple[str, tuple[str, ...]]] = []
        self._lookout = Lookout(sender, settings, LOOK_EVERY_S)
        self._of_versions = Lookout(sender, settings, LOOK_AT_VERSIONS_EVERY_S)

    @property
    def keys(self) -> list[str]:
        """The control keys under which it is asked to serve a niche; of activities those of its
        host and process are also those of their queues."""
        wheres = [("", "")] if self.capabilities else []
        if self._side == WORKFLOW_SIDE:
            wheres += [(self._place.host, ""), ("", self._place.worker_id)]
        return [
            Niche(name, self.capabilities, *where, side=self._side).ask_key
            for name in self._task_queues
            for where in wheres
        ]

    @property
    def unserved(self) -> dict[str, dict[str, int]]:
        """By task queue: how many tasks wait for capabilities that nobody has, by set, or for a
        version that nobody is of."""
        found: dict[str, dict[str, int]] = {}
        for lookout in (self._lookout, self._of_versions):
            for (task_queue, whom), count in lookout.found.items():
                found.setdefault(task_queue, {})[whom] = count
        return found

    def belongs_to(self, niche: Niche) -> bool:
        """Whether it may serve ``niche``; never one that no task makes."""
        try:
            niche.check()
        except InvalidArgument as error:
            log.warning("asked to serve a niche that no task makes: %s", error)
            return False
        place = self._place
        is_mine = niche.side == self._side and niche.task_queue in self._task_queues
        return is_mine and niche.fits(self.capabilities, place.host, place.worker_id, self._version)

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
        is_of_niche = isinstance(record, TaskQueueDeclared) and bool(record.requires)
        if is_of_niche or isinstance(record, SettingsSnapshot):
            self._has_news = True

    def tick(self, now: float) -> None:
        """Serve what it has read of, and look after the rest; done often."""
        if self._has_news:
            self._has_news = False
            self._serve()
        self._look(now)

    def _serve(self) -> None:
        mine, others = set(self.capabilities), []
        known = [
            (task_queue, one)
            for task_queue in self._task_queues
            for one in self._settings.capable(task_queue, self._side)
        ]
        if len(known) > SETS_MAX:
            log.warning("%d sets of capabilities are required: too many", len(known))
        for task_queue, required in known[:SETS_MAX]:
            if mine.issuperset(required):
                self._poller.serve(self._queue(task_queue, required))
            else:
                others.append((task_queue, required))
        self._others = others

    def _queue(self, task_queue: str, required: Sequence[str]) -> QueueName:
        return self._sender.names.capable(task_queue, required, Kind(self._side))

    def _look(self, now: float) -> None:
        """Look after what nobody serves, when it is time for that."""
        if self._lookout.is_due(now):
            posts = [
                Post(task_queue, in_words(required), self._queue(task_queue, required))
                for task_queue, required in self._others
            ]
            self._lookout.look(posts, now)
        if self._of_versions.is_due(now):
            self._of_versions.look(self._versions(), now)

    def _versions(self) -> list[Post]:
        """The queues of other versions of its task queues."""
        posts = [
            Post(queue.parts[-1], f"{self._side} workers of version {version}", queue)
            for version, queue in self._settings.deployments.queues(self._sender.names)
            if queue.kind is Kind.VERSION
            and queue.parts[0] == self._side
            and queue.parts[-1] in self._task_queues
            and version != self._version
        ]
        return posts[:SETS_MAX]
