"""Which queues a worker consumes because of its deployment version, as the settings log says.

It stands at every queue of its task queues that may become its own, and the ones that are not its
own now are as if they were paused: `Allegiance.is_closed` is asked at each look at the windows, so
a change of the current or ramping version is heeded with the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from tq_broker.clock import Clock, epoch_ms
from tq_broker.exceptions import TqBrokerError
from tq_broker.model.deployments import Deployments, Place, VersionServes
from tq_broker.model.names import REQUIRING, SHARED, Kind, Names, QueueName
from tq_broker.model.settings import side_of
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker.poller import Poller

log = logging.getLogger(__name__)


class Allegiance:
    """Of one worker. ``version`` is empty without a deployment."""

    def __init__(self, version: str, settings: SettingsLog, names: Names) -> None:
        self.version = version
        self._settings = settings
        self._names = names

    def takes(self, queue: QueueName) -> bool:
        """Whether ``queue`` is for workers of this version now."""
        return self._settings.deployments.takes(self.version, queue)

    def is_closed(self, queue: QueueName) -> bool:
        """Whether nothing is to be consumed of ``queue``: it is paused, or another version's."""
        return self._settings.pause_of(queue) is not None or not self.takes(queue)

    def home_of(self, queue: QueueName, id: str) -> QueueName | None:
        """Where an unpinned task with this id, which has come from ``queue``, is to go instead;
        ``None``: it may run here.

        It was put there before a ramp was set or changed; or it has come to a consumer that is
        being closed, because the queue is another version's now.
        """
        deployments = self._settings.deployments
        if not deployments.lines and not self.version:
            return None
        takes = deployments.takes(self.version, queue)
        if queue.kind in REQUIRING:
            return None if takes else queue  # no ramp takes what requires something
        if queue.kind not in SHARED and queue.kind is not Kind.RAMPING:
            return None
        home = deployments.queue(self._names, side_of(queue), queue.parts[-1], id)
        return None if takes and home == self._names.plain(queue) else home

    def stand(self, poller: Poller, side: str, task_queues: Sequence[str]) -> None:
        """Stand at the queues of ``task_queues`` that there are now; done often."""
        for queue in self._queues(side, task_queues):
            if not poller.serves(queue):
                poller.serve(queue)

    def _queues(self, side: str, task_queues: Sequence[str]) -> Iterator[QueueName]:
        names, deployments = self._names, self._settings.deployments
        for task_queue in task_queues:
            yield names.queue(Kind(side), task_queue)
            if self.version:
                yield names.version(side, self.version, task_queue)
            if deployments.line(side, task_queue).ramped:
                yield names.ramping(side, task_queue)

    def register(
        self,
        sender: Sender,
        places: Sequence[Place],
        clock: Clock,
        by: str,
        deadline: float,
    ) -> None:
        """Tell the settings log what workers of this version serve (``places``: sides of task
        queues), if that is news; blocks until it is read back.

        The task queues exist from now on, be they consumed or not, so that they can be paused,
        limited and listed.
        """
        if not self.version:
            return
        sender.ensure([self._names.queue(Kind(side), name) for side, name in places], deadline)

        def are_known(deployments: Deployments) -> bool:
            return all(deployments.serves(self.version, *place) for place in places)

        name, _, build_id = self.version.partition(".")
        for place in places:
            if not self._settings.deployments.serves(self.version, *place):
                record = VersionServes(name, build_id, *place, epoch_ms(clock), by)
                sender.append(record, deadline, _appended)
        if not self._settings.wait_until(are_known, deadline):
            log.warning("version %s is not in the settings log yet", self.version)


def _appended(error: TqBrokerError | None) -> None:
    if error is not None:
        log.warning("version not told to the settings log: %s", error)
