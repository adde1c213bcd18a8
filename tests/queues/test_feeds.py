from __future__ import annotations

import struct
from types import SimpleNamespace

import amqp.serialization

from tq_broker.model.message import Message
from tq_broker.queues.feeds import AmqpDelivery, Feed, GotDelivery
from tq_broker.queues.frames import BASIC_ACK, BASIC_NACK, PublishEncoder, settle_frame

SENT = Message(body=b"body", message_id="m", headers={"a": 1})


def header_of(message: Message) -> bytes:
    data = PublishEncoder(1, 4096).encode("e", "k", message, {})
    start = 8 + struct.unpack_from(">I", data, 3)[0]
    return data[start + 7 : start + 7 + struct.unpack_from(">I", data, start + 3)[0]]


class Desk:
    """A feed with deliveries, and what it has asked for."""

    def __init__(self, count: int = 3) -> None:
        self.touches = 0
        self.feed = Feed(SimpleNamespace(channel_id=4), "q", self._touch, owner="me")
        arguments = amqp.serialization.dumps("sLbss", ("tag", 1, False, "e", "key"))
        method = b"\x00\x3c\x00\x3c" + arguments
        self.deliveries = [
            AmqpDelivery(self.feed, tag, False, method, header_of(SENT), SENT.body)
            for tag in range(1, count + 1)
        ]
        for tag in range(1, count + 1):
            self.feed.ledger.delivered(tag)

    def _touch(self, feed: Feed) -> None:
        assert feed is self.feed
        self.touches += 1


def test_a_delivery_is_decoded_when_it_is_looked_at() -> None:
    delivery = Desk().deliveries[0]
    assert delivery.message == SENT
    assert delivery.message is delivery.message
    assert (delivery.queue, delivery.routing_key, delivery.redelivered) == ("q", "key", False)
    assert repr(delivery) == "<AmqpDelivery 1 of q>"


def test_what_is_done_with_is_told_together_and_asked_for_once() -> None:
    desk = Desk()
    desk.deliveries[2].reject(requeue=True)
    for delivery in desk.deliveries:
        delivery.ack()
        delivery.ack()
    assert desk.touches == 1
    assert desk.feed.take_settled() == (
        settle_frame(4, BASIC_NACK, 3, 2) + settle_frame(4, BASIC_ACK, 2, 1)
    )
    assert desk.feed.take_settled() == b""


def test_it_is_asked_for_again_after_it_was_taken() -> None:
    desk = Desk()
    desk.deliveries[0].ack()
    desk.feed.take_settled()
    desk.deliveries[1].reject(requeue=False)
    assert desk.touches == 2


def test_after_the_channel_was_lost_nothing_is_told() -> None:
    desk = Desk()
    desk.feed.inbox.append(desk.deliveries[2])
    desk.feed.lose()
    desk.deliveries[0].ack()
    assert desk.feed.take_settled() == b""
    assert desk.feed.inbox == []


def test_one_that_was_fetched_knows_its_queue() -> None:
    desk = Desk()
    info = {"delivery_tag": 1, "redelivered": True, "routing_key": "rk"}
    content = SimpleNamespace(delivery_info=info, header=header_of(SENT), body=b"body")
    got = GotDelivery(desk.feed, "other", content)
    assert (got.queue, got.routing_key, got.redelivered) == ("other", "rk", True)
    assert got.message == SENT


def test_properties_that_cannot_be_read_make_a_message_of_no_kind() -> None:
    header = struct.pack(">HHQH", 60, 0, 4, 0x2000) + struct.pack(">I", 1000) + b"\x01a?"
    delivery = AmqpDelivery(Desk().feed, 1, False, "key", header, b"body")
    message = delivery.message
    assert (message.body, message.kind, message.message_id) == (b"body", "", "")
    assert message.headers["tq-unreadable"].startswith("the properties cannot be read")
    assert delivery.message is message
