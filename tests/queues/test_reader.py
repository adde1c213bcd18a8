from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pika import spec

from tests.queues.amqp_server import PATIENCE_S, AmqpServer, Session
from tq_broker.clock import SystemClock
from tq_broker.exceptions import (
    AccessRefused,
    BrokerUnavailable,
    Bug,
    DeadlineExceeded,
    InvalidArgument,
    Unavailable,
)
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.broker import Delivery, QueueStats, SubscribeOptions
from tq_broker.queues.topology import DeclareQueue, Plan


def test_nothing_is_opened_before_the_first_call(broker: AmqpBroker) -> None:
    assert "tq-consumer" not in {thread.name for thread in threading.enumerate()}


def test_it_connects_at_the_first_call(broker: AmqpBroker, soon: Callable[[], float]) -> None:
    assert broker.server_version(soon()) == (3, 10, 8)
    assert broker.stats("q", soon()) == QueueStats(ready=3, consumers=1)


@pytest.mark.parametrize("what", ["threads", "descriptors"])
def test_where_the_system_has_no_more_of_something_calls_fail_until_it_has(
    broker: AmqpBroker,
    soon: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """Found: one moment without, and no call of this process ever got through again."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread") if what == "threads" else OSError(24, "EMFILE")

    with monkeypatch.context() as short:
        if what == "threads":
            short.setattr(threading.Thread, "start", fail)
        else:
            short.setattr(socket, "socketpair", fail)
        with pytest.raises(BrokerUnavailable, match=r"EMFILE|new thread"):
            broker.stats("q", soon())
        with pytest.raises(BrokerUnavailable, match=r"EMFILE|new thread"):
            broker.subscribe("q", lambda _: None, SubscribeOptions(prefetch=1))
    assert broker.stats("q", soon()) == QueueStats(ready=3, consumers=1)
    assert not broker._reader.subscriber._all, "what has failed is not done later"


def test_acks_of_a_batch_are_one_frame(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def take(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            delivery.ack()

    wish = broker.subscribe("q", take, SubscribeOptions(prefetch=10))
    session, channel, consume = server.wait_for(spec.Basic.Consume)
    broker.wait_subscribed([wish], soon())
    assert (consume.queue, consume.no_ack) == ("q", False)
    for tag in range(1, 10):
        session.deliver(channel, tag)
    told = 0
    while told < 9:
        _, _, ack = server.wait_for(spec.Basic.Ack)
        assert ack.multiple or ack.delivery_tag == told + 1
        told = ack.delivery_tag


def test_acks_of_other_threads_are_sent_too(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    held: list[Delivery] = []
    arrived = threading.Event()

    def take(deliveries: Sequence[Delivery]) -> None:
        held.extend(deliveries)
        arrived.set()

    broker.subscribe("q", take, SubscribeOptions(prefetch=10))
    session, channel, _ = server.wait_for(spec.Basic.Consume)
    session.deliver(channel, 1)
    assert arrived.wait(PATIENCE_S)
    assert held[0].message.message_id == "m1"
    held[0].ack()
    assert server.wait_for(spec.Basic.Ack)[2].delivery_tag == 1


def test_traffic_goes_on_while_a_call_waits(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    arrived = threading.Event()
    broker.subscribe("q", lambda _: arrived.set(), SubscribeOptions(prefetch=10))
    _, channel, _ = server.wait_for(spec.Basic.Consume)

    def answer_late(session: Session, admin: int, method: Any) -> bool:
        session.deliver(channel, 1)
        assert arrived.wait(PATIENCE_S), "it arrives although the call has no answer"
        session.send(admin, spec.Queue.DeclareOk("q", 0, 0))
        return True

    server.rules[spec.Queue.Declare] = answer_late
    assert broker.stats("q", soon()) == QueueStats(ready=0, consumers=0)


def test_a_call_without_an_answer_ends_at_its_deadline_and_the_next_one_works(
    server: AmqpServer, broker: AmqpBroker, clock: SystemClock, soon: Callable[[], float]
) -> None:
    broker.server_version(soon())
    server.rules[spec.Queue.Declare] = lambda *_: True
    with pytest.raises(DeadlineExceeded):
        broker.stats("q", clock.monotonic() + 0.2)
    server.rules.clear()
    assert broker.stats("q", soon()) is not None


def test_a_call_survives_a_broken_connection(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def cut_once(_session: Session, _channel: int, _method: Any) -> bool:
        server.rules.clear()
        server.cut()
        return True

    server.rules[spec.Queue.Declare] = cut_once
    assert broker.stats("q", soon()) is not None


def test_a_request_that_ends_the_connection_is_not_repeated(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def end(session: Session, _channel: int, _method: Any) -> bool:
        session.send(0, spec.Connection.Close(540, "NOT_IMPLEMENTED - no such thing", 0, 0))
        return True

    server.rules[spec.Queue.Declare] = end
    with pytest.raises(InvalidArgument, match="no such thing"):
        broker.apply(Plan((DeclareQueue("q"),)), soon())
    server.rules.clear()
    assert broker.stats("q", soon()) is not None


def test_a_refused_login_is_told_at_once(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def refuse(session: Session, _channel: int, _method: Any) -> bool:
        session.send(0, spec.Connection.Close(403, "ACCESS_REFUSED - Login was refused", 0, 0))
        return True

    server.rules[spec.Connection.StartOk] = refuse
    with pytest.raises(AccessRefused, match="check the user"):
        broker.stats("q", soon())


def test_without_a_broker_the_error_is_why(clock: SystemClock) -> None:
    broker = AmqpBroker("amqp://me:s3cret@127.0.0.1:1", clock)
    with pytest.raises(BrokerUnavailable, match="nothing listens") as raised:
        broker.stats("q", clock.monotonic() + 0.5)
    assert "s3cret" not in str(raised.value)
    broker.close(clock.monotonic() + 1)


def test_blocking_in_a_callback_is_a_bug_and_not_a_deadlock(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    raised: list[Exception] = []
    done = threading.Event()

    def take(_deliveries: Sequence[Delivery]) -> None:
        try:
            broker.stats("q", soon())
        except Bug as error:
            raised.append(error)
        done.set()

    broker.subscribe("q", take, SubscribeOptions(prefetch=10))
    session, channel, _ = server.wait_for(spec.Basic.Consume)
    session.deliver(channel, 1)
    assert done.wait(PATIENCE_S)
    assert raised


def test_get_takes_one_and_gives_back_what_nobody_waits_for_any_more(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def give(session: Session, channel: int, _method: Any) -> bool:
        got = spec.Basic.GetOk(1, True, "e", "key", 0)
        session.send_content(channel, got, b"body", message_id="m")
        return True

    assert broker.get("q", soon()) is None
    server.rules[spec.Basic.Get] = give
    got = broker.get("q", soon())
    assert got is not None
    assert (got.queue, got.routing_key, got.redelivered) == ("q", "key", True)
    assert got.message.body == b"body"
    got.reject(requeue=True)
    nack = server.wait_for(spec.Basic.Nack)[2]
    assert (nack.delivery_tag, nack.requeue) == (1, True)


def test_closing_says_goodbye_and_ends_the_thread(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    broker.server_version(soon())
    broker.close(soon())
    server.wait_for(spec.Connection.Close)
    assert "tq-consumer" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(BrokerUnavailable):
        broker.stats("q", soon())


def test_a_channel_too_many_costs_its_caller_only(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    """Found: py-amqp's own word for it was taken for RabbitMQ's, and the connection ended."""
    wish = broker.subscribe("q", lambda _: None, SubscribeOptions(prefetch=1))
    broker.wait_subscribed([wish], soon())
    reader = broker._reader
    assert reader._connection is not None
    reader._connection.channel_max = 1
    with pytest.raises(Unavailable, match="No free channel ids"):
        broker.stats("q", soon())
    assert not wish.missing
    assert reader.epoch == 1
