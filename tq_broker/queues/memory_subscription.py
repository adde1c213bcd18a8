"""A subscription of the in-memory broker: a wish, and the consumer that it is on the server now.

Rules of this file: what a wish knows is guarded by the server's lock; it decides nothing, its
`Keeper` does.
"""

from __future__ import annotations

from typing import Protocol

from tq_broker.exceptions import Rejected
from tq_broker.queues.broker import DeliveriesCallback, SubscribeOptions
from tq_broker.queues.memory_mail import Mailbox, MemoryDelivery, Settler
from tq_broker.queues.memory_queue import Consumer, Stored
from tq_broker.queues.memory_vhost import Connection


class Keeper(Settler, Protocol):
    """Who carries out a wish: the broker."""

    def end_wish(self, subscription: MemorySubscription) -> None: ...

    def end_wish_and_wait(self, subscription: MemorySubscription, deadline: float) -> None: ...

    def restore_wish(self, subscription: MemorySubscription) -> None: ...


class MemorySubscription:
    """A standing wish for the messages of one queue.

    Attributes:
        connection: Where ``consumer`` is.
        consumer: What the wish is on the server now; ``None`` while it is not accepted.
        error: Why it is not accepted.
        is_wanted: False once it is cancelled.
    """

    def __init__(
        self,
        keeper: Keeper,
        mail: Mailbox,
        queue: str,
        on_deliveries: DeliveriesCallback,
        options: SubscribeOptions,
    ) -> None:
        self._keeper = keeper
        self._mail = mail
        self._queue = queue
        self._on_deliveries = on_deliveries
        self.options = options
        self.connection: Connection | None = None
        self.consumer: Consumer | None = None
        self.error: Rejected | None = None
        self.is_wanted = True

    def __repr__(self) -> str:
        return f"<MemorySubscription to {self._queue}>"

    @property
    def queue(self) -> str:
        return self._queue

    def cancel(self, deadline: float) -> None:
        self._keeper.end_wish_and_wait(self, deadline)

    def cancel_nowait(self) -> None:
        self._keeper.end_wish(self)

    def make_consumer(self, connection: Connection) -> Consumer:
        """The consumer that this wish is to be on ``connection``."""
        self.connection = connection
        self.consumer = Consumer(
            self,
            connection=connection,
            prefetch=self.options.prefetch,
            exclusive=self.options.exclusive,
            once=self.options.once,
        )
        return self.consumer

    def deliver(self, tag: int, stored: Stored, queue: str) -> None:
        """The vhost hands something out."""
        assert self.connection is not None, "only a connected consumer is handed something"
        self._mail.deliver(
            MemoryDelivery(self._keeper, self.connection, tag, stored, queue, self._on_deliveries)
        )
        consumer = self.consumer
        if consumer is not None and consumer.once and consumer.taken >= consumer.prefetch:
            self._mail.call(self._keeper.end_wish, self)

    def cancelled(self) -> None:
        """The vhost lost the queue: try to come back, on the thread that may do so."""
        self.consumer = None
        if self.options.on_lost is not None:
            self._mail.call(self.options.on_lost)
        self._mail.call(self._keeper.restore_wish, self)
