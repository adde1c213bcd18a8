"""Other workers of the same task queues: a worker that starts says hello, and they answer.

Both then compare their registered types, because a task goes to any worker of its task queue. A
mismatch is logged, once for each pair of sets, and tolerated.
"""

from __future__ import annotations

import logging

from tq_broker.clock import Clock
from tq_broker.exceptions import TqBrokerError
from tq_broker.model import control, registrations
from tq_broker.model.control import WorkerInfo
from tq_broker.model.message import Publication
from tq_broker.model.names import Exchange
from tq_broker.model.settings import SIDES
from tq_broker.queues.sender import Sender

log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 10.0
REMEMBERED = 100
"""Different mismatches that are logged at most: many workers may come and go."""


class Colleagues:
    """What one worker knows of the others. Used on the broker's reading thread."""

    def __init__(self, sender: Sender, clock: Clock) -> None:
        self._sender = sender
        self._clock = clock
        self._logged: set[str] = set()

    def greet(self, me: WorkerInfo, deadline: float) -> None:
        """Say hello to all workers of the namespace; returns at once."""
        self._send(control.EVERY_WORKER, control.Hello(me), deadline)

    def met(self, who: control.Hello | control.Present, me: WorkerInfo) -> None:
        """Another worker has started, or has answered."""
        other = who.info
        if other.worker_id == me.worker_id or not set(other.task_queues) & set(me.task_queues):
            return
        if other.deployment_version == me.deployment_version:  # versions differ on purpose
            self._compare(me, other)
        if isinstance(who, control.Hello):
            deadline = self._clock.monotonic() + ANSWER_WITHIN_S
            self._send(control.worker_key(other.worker_id), control.Present(me), deadline)

    def _compare(self, me: WorkerInfo, other: WorkerInfo) -> None:
        for task_queue in sorted(set(me.task_queues) & set(other.task_queues)):
            for side in SIDES:
                serving = registrations.serving((me, other), task_queue, side)
                found = registrations.compare(serving, side).mismatches
                text = "; ".join(
                    f"{type_} is not registered on {', '.join(who)}" for type_, who in found
                )
                if text and text not in self._logged and len(self._logged) < REMEMBERED:
                    self._logged.add(text)
                    log.warning(
                        "workers of task queue %s have different %s types: %s",
                        task_queue,
                        side,
                        text,
                    )

    def _send(self, key: str, request: control.Request, deadline: float) -> None:
        message = control.message(request, self._sender.ids.next())
        publication = Publication(self._sender.names.exchange(Exchange.CONTROL), key, message)
        self._sender.send(publication, (), deadline, _sent)


def _sent(error: TqBrokerError | None) -> None:
    if error is not None:
        log.debug("other workers not told: %s", error)
