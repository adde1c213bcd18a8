"""What is called back, one after the other, on one thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from tq_broker.model.message import Message
from tq_broker.queues.broker import Delivery
from tq_broker.queues.memory_mail import BATCH_MAX, Mailbox, MemoryDelivery
from tq_broker.queues.memory_queue import Stored
from tq_broker.queues.memory_vhost import Connection

PATIENCE_S = 20.0


class Nobody:
    def settle_ack(self, connection: Connection, tag: int) -> None: ...

    def settle_reject(self, connection: Connection, tag: int, *, requeue: bool) -> None: ...


class Batches:
    def __init__(self) -> None:
        self.found: list[list[str]] = []

    def __call__(self, deliveries: Sequence[Delivery]) -> None:
        self.found.append([delivery.message.message_id for delivery in deliveries])


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    mailbox = Mailbox()
    yield mailbox
    mailbox.start()
    mailbox.stop()


def delivery(
    name: str, callback: Callable[[Sequence[Delivery]], None], connection: Connection
) -> MemoryDelivery:
    stored = Stored(Message(body=b"", message_id=name), "exchange", "key")
    return MemoryDelivery(Nobody(), connection, 1, stored, "q", callback)


def read_all(mailbox: Mailbox) -> None:
    """Start the thread and wait until it has read what is there."""
    read = threading.Event()
    mailbox.call(read.set)
    mailbox.start()
    assert read.wait(PATIENCE_S)


def test_mail_is_read_in_order_on_one_thread_of_its_own(mailbox: Mailbox) -> None:
    seen: list[tuple[int, bool]] = []
    for number in range(3):
        mailbox.call(lambda number: seen.append((number, mailbox.is_mine)), number)
    assert not mailbox.is_started
    read_all(mailbox)
    mailbox.start()
    assert seen == [(0, True), (1, True), (2, True)]
    assert mailbox.is_empty
    assert not mailbox.is_mine


def test_deliveries_that_follow_each_other_are_handed_over_together(mailbox: Mailbox) -> None:
    left, right, connection = Batches(), Batches(), Connection()
    for name, callback in (("a", left), ("b", left), ("c", right), ("d", left)):
        mailbox.deliver(delivery(name, callback, connection))
    mailbox.call(lambda: None)
    mailbox.deliver(delivery("e", left, connection))
    read_all(mailbox)
    assert left.found == [["a", "b"], ["d"], ["e"]]
    assert right.found == [["c"]]


def test_a_batch_has_a_bound(mailbox: Mailbox) -> None:
    batches, connection = Batches(), Connection()
    for _ in range(BATCH_MAX + 1):
        mailbox.deliver(delivery("m", batches, connection))
    read_all(mailbox)
    assert [len(batch) for batch in batches.found] == [BATCH_MAX, 1]


def test_what_a_lost_connection_brought_is_not_handed_over(mailbox: Mailbox) -> None:
    batches, lost, alive = Batches(), Connection(), Connection()
    lost.is_open = False
    for name, connection in (("a", lost), ("b", alive), ("c", lost)):
        mailbox.deliver(delivery(name, batches, connection))
    read_all(mailbox)
    assert batches.found == [["b"]]


def test_a_callback_that_raises_is_logged_and_the_next_one_called(
    mailbox: Mailbox, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("told in the log")

    with caplog.at_level(logging.ERROR):
        mailbox.call(fail)
        read_all(mailbox)
    assert "told in the log" in caplog.text


def test_it_stops_after_what_is_there(mailbox: Mailbox) -> None:
    seen: list[str] = []
    done = threading.Event()
    mailbox.call(seen.append, "before")
    mailbox.call(done.set)
    mailbox.stop()
    mailbox.call(seen.append, "after")
    mailbox.start()
    assert done.wait(PATIENCE_S)
    assert seen == ["before"]


def test_a_delivery_shows_what_it_is() -> None:
    assert "m of q" in repr(delivery("m", Batches(), Connection()))
