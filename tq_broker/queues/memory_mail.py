"""The mail of an in-memory broker: what is called back, one after the other, on one thread.

Rules of this file:

* anybody puts something in, with any lock held; only the thread takes it out, with none held;
* deliveries that follow each other for one subscription are handed over together;
* a delivery of a connection that is lost is not handed over: it has gone back to its queue.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from tq_broker.model.message import Message
from tq_broker.queues.broker import DeliveriesCallback
from tq_broker.queues.memory_queue import Stored
from tq_broker.queues.memory_vhost import Connection

BATCH_MAX = 500
"""Deliveries per callback at most, so that receipts need not wait behind a long backlog."""

_log = logging.getLogger(__name__)
_numbers = itertools.count(1)


class Settler(Protocol):
    """Who carries out what is decided about a delivery."""

    def settle_ack(self, connection: Connection, tag: int) -> None: ...

    def settle_reject(self, connection: Connection, tag: int, *, requeue: bool) -> None: ...


class MemoryDelivery:
    """One message in our hands.

    ``callback`` gets it; ``None`` for a message that was taken by hand.
    """

    __slots__ = (
        "_settler",
        "_tag",
        "callback",
        "connection",
        "message",
        "queue",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        settler: Settler,
        connection: Connection,
        tag: int,
        stored: Stored,
        queue: str,
        callback: DeliveriesCallback | None = None,
    ) -> None:
        self._settler = settler
        self._tag = tag
        self.connection = connection
        self.callback = callback
        # Copied: what is stored changes when it goes back to its queue.
        self.message: Message = stored.message
        self.queue: str = queue
        self.redelivered: bool = stored.redelivered
        self.routing_key: str = stored.routing_key

    def ack(self) -> None:
        self._settler.settle_ack(self.connection, self._tag)

    def reject(self, *, requeue: bool) -> None:
        self._settler.settle_reject(self.connection, self._tag, requeue=requeue)

    def __repr__(self) -> str:
        return f"<MemoryDelivery {self.message.message_id} of {self.queue}>"


_Item = MemoryDelivery | tuple[Callable[..., object], tuple[object, ...]] | None


class Mailbox:
    """Mail and the thread that reads it."""

    def __init__(self) -> None:
        self._items: SimpleQueue[_Item] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def is_empty(self) -> bool:
        return self._items.empty()

    @property
    def is_started(self) -> bool:
        return self._thread is not None

    @property
    def is_mine(self) -> bool:
        """Whether the caller is the thread that reads."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Start the thread, once. The caller sees to it that nobody else does so now."""
        if self._thread is None:
            name = f"tq-memory-{next(_numbers)}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def deliver(self, delivery: MemoryDelivery) -> None:
        """Hand ``delivery`` to its callback."""
        self._items.put(delivery)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call ``function``."""
        self._items.put((function, arguments))

    def stop(self) -> None:
        """End the thread when it has read what is here now."""
        self._items.put(None)

    def _run(self) -> None:
        item = self._items.get()
        while item is not None:
            if isinstance(item, MemoryDelivery):
                item = self._hand_over(item)
            else:
                _supervised(item[0], *item[1])
                item = self._items.get()

    def _hand_over(self, first: MemoryDelivery) -> _Item:
        """Call back with ``first`` and what follows it; returns the next item."""
        items, callback, batch = self._items, first.callback, [first]
        following: _Item = None
        has_following = False
        while not has_following and len(batch) < BATCH_MAX and not items.empty():
            following = items.get()
            if isinstance(following, MemoryDelivery) and following.callback is callback:
                batch.append(following)
            else:
                has_following = True
        batch = [delivery for delivery in batch if delivery.connection.is_open]
        if batch and callback is not None:
            _supervised(callback, batch)
        return following if has_following else items.get()


def _supervised(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except Exception:
        # One bad callback must not end the connection of all the others.
        _log.exception("a callback of the in-memory broker raised")
