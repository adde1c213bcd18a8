"""What a worker leaves behind in its sticky queue: given back to history, and history told so.

Used by a worker that shuts down, for its own queue, and by whoever executes the will of one that
has died: it may be any worker or history process of the namespace.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tq_broker.exceptions import DeadlineExceeded, TqBrokerError
from tq_broker.model import envelope
from tq_broker.model.message import Publication
from tq_broker.model.names import Exchange, QueueName
from tq_broker.model.requests import SHARDS, request_message
from tq_broker.model.workflow_tasks import StickyGone
from tq_broker.queues.broker import Delivery
from tq_broker.queues.sender import NoRoute, Sender
from tq_broker.queues.topology import DeleteQueue, Plan

CONFIRM_GRACE_S = 1.0


class StickyEstate:
    """The sticky queue of a worker that does not serve it any more."""

    def __init__(self, sender: Sender, queue: QueueName) -> None:
        self._sender = sender
        self._queue = queue

    def settle(self, deadline: float) -> bool:
        """Tell all shards, empty the queue and remove it; blocks.

        Returns False, and leaves all as it is, if somebody consumes the queue (again). When it
        fails half-way, nothing is lost: do it again.

        Raises:
            Unavailable: it was not done before ``deadline`` (monotonic seconds).
        """
        stats = self._sender.broker.stats(str(self._queue), deadline)
        if stats is not None and stats.consumers:
            return False
        self._tell(deadline)
        while stats is not None and not stats.consumers:
            self._empty(deadline)
            # Not if history has put a task there in the meantime.
            delete = Plan((DeleteQueue(str(self._queue), only_idle=True),))
            self._sender.broker.apply(delete, deadline)
            stats = self._sender.broker.stats(str(self._queue), deadline)
        return True

    def _tell(self, deadline: float) -> None:
        """First of all: from here on history puts nothing there, and puts elsewhere what is."""
        names, ids = self._sender.names, self._sender.ids
        gone = StickyGone(worker_id=self._queue.parts[0])
        exchange = names.exchange(Exchange.HISTORY)
        self._publish(
            [
                Publication(exchange, names.history(n).key, request_message(gone, ids.next()))
                for n in range(SHARDS)
            ],
            deadline,
        )

    def _empty(self, deadline: float) -> None:
        taken: list[Delivery] = []
        try:
            while (left := self._sender.broker.get(str(self._queue), deadline)) is not None:
                taken.append(left)
            self._forward(taken, deadline)
        except TqBrokerError:
            for left in taken:
                left.reject(requeue=True)
            raise
        for left in taken:
            left.ack()

    def _forward(self, taken: Sequence[Delivery], deadline: float) -> None:
        exchange = self._sender.names.exchange(Exchange.ABANDONED)
        self._publish(
            [
                Publication(exchange, left.routing_key, envelope.forwarded(left.message))
                for left in taken
            ],
            deadline,
        )

    def _publish(self, publications: Sequence[Publication], deadline: float) -> None:
        """Publish all, and wait for the confirms. A shard without a queue has no runs."""
        errors: list[TqBrokerError] = []
        ended = threading.Semaphore(0)

        def one_ended(index: int, error: TqBrokerError | None) -> None:
            if error is not None and not isinstance(error, NoRoute):
                errors.append(error)
            ended.release()

        self._sender.send_many(publications, (), deadline, one_ended)
        for _ in publications:
            left_s = deadline - self._sender.clock.monotonic()
            if not ended.acquire(timeout=max(0.0, left_s) + CONFIRM_GRACE_S):
                raise DeadlineExceeded(f"what was left in {self._queue} could not be given back")
        if errors:
            raise errors[0]
