"""Kombu messages as deliveries. Whole programs are in integration/test_interop.py."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tq_broker.clock import SystemClock
from tq_broker.model.names import Kind, Names
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.sender import Sender
from tq_broker.worker.hosting import PUT_OFF_MS, HostedDelivery, HostedSource, put_off

NAMES = Names("default")
clock = SystemClock()


class FakeClient:
    connection_errors = (ConnectionError,)


class FakeConnection:
    client = FakeClient()


class FakeChannel:
    connection = FakeConnection()

    def __init__(self, broken: bool = False) -> None:
        self.written: list[tuple[str, int]] = []
        self.broken = broken

    def basic_ack(self, tag: int) -> None:
        if self.broken:
            raise ConnectionResetError
        self.written.append(("ack", tag))

    def basic_reject(self, tag: int, requeue: bool) -> None:
        self.written.append(("requeue" if requeue else "reject", tag))


class FakeKombuMessage:
    """What the code reads of a `kombu.Message`."""

    delivery_tag = 7
    delivery_info = {"redelivered": True, "routing_key": "activity.q"}  # noqa: RUF012
    properties = {"correlation_id": "a", "message_id": "m", "reply_to": "r"}  # noqa: RUF012
    headers = {"tq-activity-type": "t"}  # noqa: RUF012
    content_type = "application/json"
    content_encoding = "utf-8"

    def __init__(self, channel: FakeChannel, body: Any = b"{}") -> None:
        self.channel = channel
        self.body = body


def delivery(message: FakeKombuMessage) -> HostedDelivery:
    return HostedDelivery(message, "tq.default.activity.q", threading.Lock())


def test_a_kombu_message_is_a_delivery():
    given = delivery(FakeKombuMessage(FakeChannel()))

    assert given.redelivered
    assert given.routing_key == "activity.q"
    assert given.message.correlation_id == "a"
    assert given.message.headers == {"tq-activity-type": "t"}
    assert given.message.body == b"{}"


def test_a_body_that_kombu_has_decoded_is_bytes_again():
    assert delivery(FakeKombuMessage(FakeChannel(), "{}")).message.body == b"{}"


def test_it_is_acknowledged_on_the_channel_that_it_came_on():
    channel = FakeChannel()

    delivery(FakeKombuMessage(channel)).ack()
    delivery(FakeKombuMessage(channel)).reject(requeue=True)

    assert channel.written == [("ack", 7), ("requeue", 7)]


def test_an_acknowledgement_after_the_connection_broke_does_nothing():
    delivery(FakeKombuMessage(FakeChannel(broken=True))).ack()


def test_only_queues_of_task_queues_are_hosted():
    assert HostedSource(NAMES.activity("q")).task_queue == "q"
    with pytest.raises(AssertionError):
        HostedSource(NAMES.queue(Kind.PARKED))


def test_a_task_of_a_paused_task_queue_goes_round_by_the_delay_ladder():
    broker = MemoryBroker(MemoryServer(), clock)
    sender = Sender(broker, NAMES, clock, identity="test")
    channel = FakeChannel()
    acknowledged = threading.Event()
    channel.basic_ack = lambda tag: acknowledged.set()  # type: ignore[method-assign]

    put_off(delivery(FakeKombuMessage(channel)), NAMES.activity("q"), sender)
    assert acknowledged.wait(20), "only when its copy is safe"

    def waiting() -> int:
        levels = [str(NAMES.queue(Kind.DELAY, str(level))) for level in range(8)]
        found = [broker.stats(level, clock.monotonic() + 10) for level in levels]
        return sum(one.ready for one in found if one is not None)

    assert PUT_OFF_MS >= 1000, "or it would go round too fast"
    assert waiting() == 1
    sender.close()
    broker.close(clock.monotonic() + 10)
