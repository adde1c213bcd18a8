from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
from pika import spec

from tests.queues.amqp_server import PATIENCE_S, AmqpServer, Session
from tq_broker.clock import SystemClock
from tq_broker.exceptions import Bug, DeadlineExceeded, InvalidArgument
from tq_broker.model.message import Message, Publication
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.broker import QueueStats, Receipt, SubscribeOptions
from tq_broker.queues.memory import MemoryBroker, MemoryServer


def publish(broker: AmqpBroker, deadline: float) -> Receipt:
    answered = threading.Event()
    receipts: list[Receipt] = []

    def done(receipt: Receipt) -> None:
        receipts.append(receipt)
        answered.set()

    broker.publish(Publication("e", "k", Message(body=b"", message_id="m")), deadline, done)
    assert answered.wait(PATIENCE_S)
    return receipts[0]


def test_it_is_shown_without_its_password(clock: SystemClock) -> None:
    broker = AmqpBroker("amqp://me:s3cret@host/v;amqps://other", clock)
    assert broker.url == "amqp://me@host:5672/v;amqps://guest@other:5671/%2F"
    assert "s3cret" not in repr(broker)


@pytest.mark.parametrize("heartbeat_s", [0, -1, 601, float("nan")])
def test_heartbeats_are_always_on(clock: SystemClock, heartbeat_s: float) -> None:
    with pytest.raises(InvalidArgument, match="heartbeat_s"):
        AmqpBroker("amqp://", clock, heartbeat_s=heartbeat_s)


def test_publishing_and_consuming_never_share_a_connection(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    publish(broker, soon())
    publisher, _, _ = server.wait_for(spec.Basic.Publish)
    wish = broker.subscribe("q", lambda _: None, SubscribeOptions(prefetch=1))
    consumer, _, _ = server.wait_for(spec.Basic.Consume)
    assert consumer is not publisher
    broker.wait_subscribed([wish], soon())


@pytest.mark.parametrize("prefetch", [-1, 65536])
def test_a_prefetch_has_two_bytes(broker: AmqpBroker, prefetch: int) -> None:
    with pytest.raises(InvalidArgument, match="prefetch"):
        broker.subscribe("q", lambda _: None, SubscribeOptions(prefetch=prefetch))


def test_a_purge_tells_how_many(broker: AmqpBroker, soon: Callable[[], float]) -> None:
    assert broker.purge("q", soon()) == 5


def test_what_is_missing_is_empty(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def missing(session: object, channel: int, _method: object) -> bool:
        session.close_channel(channel, 404, "NOT_FOUND - no queue")  # type: ignore[attr-defined]
        return True

    server.rules[spec.Queue.Declare] = server.rules[spec.Queue.Purge] = missing
    assert broker.stats("q", soon()) is None
    assert broker.get("q", soon()) is None
    assert broker.purge("q", soon()) == 0


class LeapingClock(SystemClock):
    """Time goes on when the test says so, too."""

    leapt_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.leapt_s


def test_a_queue_that_does_not_answer_is_not_taken_for_empty(server: AmqpServer) -> None:
    clock = LeapingClock()
    broker = AmqpBroker(server.url, clock)
    counts = [(0, 0), (0, 0), (4, 1)]

    def late(session: Session, channel: int, method: spec.Queue.Declare) -> bool:
        clock.leapt_s += 0.25
        session.send(channel, spec.Queue.DeclareOk(method.queue, *counts.pop(0)))
        return True

    server.rules[spec.Queue.Declare] = late
    assert broker.stats("q", clock.monotonic() + PATIENCE_S) == QueueStats(ready=4, consumers=1)
    counts[:] = [(0, 0)] * 100
    with pytest.raises(DeadlineExceeded):
        broker.stats("q", clock.monotonic() + 1)
    assert len(counts) >= 95
    broker.close(clock.monotonic() + PATIENCE_S)


def test_a_queue_that_says_at_once_that_it_is_empty_is_believed(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def empty(session: Session, channel: int, method: spec.Queue.Declare) -> bool:
        session.send(channel, spec.Queue.DeclareOk(method.queue, 0, 0))
        return True

    server.rules[spec.Queue.Declare] = empty
    assert broker.stats("q", soon()) == QueueStats(ready=0, consumers=0)


def test_subscriptions_of_another_broker_are_a_bug(
    broker: AmqpBroker, clock: SystemClock, soon: Callable[[], float]
) -> None:
    other = MemoryBroker(MemoryServer(), clock)
    wish = other.subscribe("q", lambda _: None, SubscribeOptions(prefetch=1))
    with pytest.raises(Bug):
        broker.wait_subscribed([wish], soon())
    other.close(soon())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_speaks_on_connections_of_its_own(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    publish(broker, soon())
    broker.server_version(soon())
    parents = server.wait_for(spec.Basic.Publish)[0]
    child = os.fork()
    if not child:
        try:
            publish(broker, soon())
            broker.server_version(soon())
            broker.close(soon())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert server.wait_for(spec.Basic.Publish)[0] is not parents
    publish(broker, soon())
    assert server.wait_for(spec.Basic.Publish)[0] is parents
