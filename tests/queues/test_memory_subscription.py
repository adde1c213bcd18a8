"""A wish, and the consumer that it is now. (What it does is in the contract suite.)"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tq_broker.model.message import Message
from tq_broker.queues.broker import Delivery, SubscribeOptions
from tq_broker.queues.memory_mail import Mailbox
from tq_broker.queues.memory_queue import Stored
from tq_broker.queues.memory_subscription import MemorySubscription
from tq_broker.queues.memory_vhost import Connection

PATIENCE_S = 20.0


class Notes:
    """A keeper that only notes what it is asked for."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.restored = threading.Event()

    def settle_ack(self, connection: Connection, tag: int) -> None:
        self.told.append(("ack", tag))

    def settle_reject(self, connection: Connection, tag: int, *, requeue: bool) -> None:
        self.told.append(("reject", tag, requeue))

    def end_wish(self, subscription: MemorySubscription) -> None:
        self.told.append(("end", subscription.queue))

    def end_wish_and_wait(self, subscription: MemorySubscription, deadline: float) -> None:
        self.told.append(("end", subscription.queue, deadline))

    def restore_wish(self, subscription: MemorySubscription) -> None:
        self.restored.set()


def nothing(deliveries: Sequence[Delivery]) -> None:
    pass


def test_it_passes_on_to_its_keeper() -> None:
    keeper = Notes()
    wish = MemorySubscription(keeper, Mailbox(), "q", nothing, SubscribeOptions(prefetch=1))
    wish.cancel_nowait()
    wish.cancel(5.0)
    assert keeper.told == [("end", "q"), ("end", "q", 5.0)]
    assert repr(wish) == "<MemorySubscription to q>"


def test_its_consumer_is_as_the_options_want_it() -> None:
    options = SubscribeOptions(prefetch=7, exclusive=True)
    wish = MemorySubscription(Notes(), Mailbox(), "q", nothing, options)
    connection = Connection()
    consumer = wish.make_consumer(connection)
    assert (consumer.prefetch, consumer.exclusive) == (7, True)
    assert wish.consumer is consumer
    assert wish.connection is connection


def test_what_the_vhost_tells_is_done_on_the_thread_of_the_mail() -> None:
    keeper, mail = Notes(), Mailbox()
    arrived: list[str] = []

    def take(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            arrived.append(delivery.message.message_id)
            delivery.ack()
            delivery.reject(requeue=True)

    wish = MemorySubscription(keeper, mail, "q", take, SubscribeOptions(prefetch=1))
    wish.make_consumer(Connection())
    wish.deliver(3, Stored(Message(body=b"", message_id="m"), "exchange", "key"), "q")
    wish.cancelled()
    assert wish.consumer is None
    assert arrived == []
    mail.start()
    assert keeper.restored.wait(PATIENCE_S)
    mail.stop()
    assert arrived == ["m"]
    assert keeper.told == [("ack", 3), ("reject", 3, True)]
