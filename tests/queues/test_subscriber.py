from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from pika import spec

from tests.queues.amqp_server import PATIENCE_S, AmqpServer, Session
from tq_broker.clock import SystemClock
from tq_broker.exceptions import AccessRefused, DeadlineExceeded
from tq_broker.queues import subscriber
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.broker import Delivery, SubscribeOptions
from tq_broker.queues.topology import DeclareQueue, Plan

PLAN = Plan((DeclareQueue("q", {"x-queue-type": "quorum"}),))


class Inbox:
    def __init__(self) -> None:
        self.held: list[Delivery] = []
        self._arrived = threading.Semaphore(0)

    def __call__(self, deliveries: Sequence[Delivery]) -> None:
        self.held += deliveries
        for _ in deliveries:
            self._arrived.release()

    def wait(self) -> Delivery:
        assert self._arrived.acquire(timeout=PATIENCE_S)
        return self.held[-1]


def test_the_plan_comes_before_and_the_options_are_passed_on(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    options = SubscribeOptions(
        prefetch=7, plan=PLAN, exclusive=True, arguments={"x-stream-offset": "first"}
    )
    wish = broker.subscribe("q", Inbox(), options)
    broker.wait_subscribed([wish], soon())
    assert server.wait_for(spec.Queue.Declare)[2].arguments == {"x-queue-type": "quorum"}
    qos = server.wait_for(spec.Basic.Qos)[2]
    assert (qos.prefetch_count, qos.global_qos) == (7, False)
    consume = server.wait_for(spec.Basic.Consume)[2]
    assert (consume.exclusive, consume.arguments) == (True, {"x-stream-offset": "first"})
    assert repr(wish) == "<AmqpSubscription to q>"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_plan_is_not_taken_again_while_another_consumes_the_queue(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float], leaves: bool
) -> None:
    options = SubscribeOptions(prefetch=7, plan=PLAN)
    first = broker.subscribe("q", Inbox(), options)
    broker.wait_subscribed([first], soon())
    server.wait_for(spec.Queue.Declare)
    server.wait_for(spec.Basic.Consume)
    if leaves:
        first.cancel_nowait()  # it lingers
    broker.wait_subscribed([broker.subscribe("q", Inbox(), options)], soon())
    methods = []
    while spec.Basic.Consume not in methods:
        methods.append(type(server.seen.get(timeout=PATIENCE_S)[2]))
    assert spec.Queue.Declare not in methods


def test_a_closed_channel_is_replaced_and_its_deliveries_are_forgotten(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    inbox, other = Inbox(), Inbox()
    wish = broker.subscribe("q", inbox, SubscribeOptions(prefetch=7, plan=PLAN))
    session, channel, _ = server.wait_for(spec.Basic.Consume)
    broker.subscribe("other", other, SubscribeOptions(prefetch=7))
    _, calm, _ = server.wait_for(spec.Basic.Consume)
    session.deliver(channel, 1)
    old = inbox.wait()
    session.close_channel(channel, 406, "PRECONDITION_FAILED - delivery acknowledgement timed out")
    _, declared, _ = server.wait_for(spec.Queue.Declare)
    _, again, consume = server.wait_for(spec.Basic.Consume)
    assert consume.queue == "q"
    broker.wait_subscribed([wish], soon())
    old.ack()  # must not be taken for the first delivery of the new channel
    session.deliver(again, 1)
    inbox.wait()
    session.deliver(calm, 1)
    other.wait().ack()
    _, acked_on, ack = server.wait_for(spec.Basic.Ack)
    assert (acked_on, ack.delivery_tag) == (calm, 1)
    assert declared not in (channel, calm)


def test_a_cancel_by_rabbitmq_leads_to_a_new_consumer(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    inbox = Inbox()
    broker.subscribe("q", inbox, SubscribeOptions(prefetch=7, plan=PLAN))
    session, channel, consume = server.wait_for(spec.Basic.Consume)
    session.send(channel, spec.Basic.Cancel(consume.consumer_tag, nowait=True))
    server.wait_for(spec.Queue.Declare)
    session, channel, _ = server.wait_for(spec.Basic.Consume)
    session.deliver(channel, 1)
    inbox.wait()


def test_a_cancel_by_rabbitmq_of_what_nobody_wants_is_no_news(
    server: AmqpServer,
    broker: AmqpBroker,
    soon: Callable[[], float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found: each worker that stopped warned of its control queue, which it had deleted itself."""
    wish = broker.subscribe("q", Inbox(), SubscribeOptions(prefetch=7))
    session, channel, consume = server.wait_for(spec.Basic.Consume)
    broker.wait_subscribed([wish], soon())
    wish.cancel_nowait()
    session.send(channel, spec.Basic.Cancel(consume.consumer_tag, nowait=True))
    server.wait_for(spec.Channel.Close)
    assert "subscribing again" not in caplog.text


def test_it_comes_back_after_the_connection_broke(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    inbox = Inbox()
    broker.subscribe("q", inbox, SubscribeOptions(prefetch=7, plan=PLAN))
    server.wait_for(spec.Basic.Consume)
    server.cut()
    server.wait_for(spec.Queue.Declare)
    session, channel, _ = server.wait_for(spec.Basic.Consume)
    session.deliver(channel, 1)
    inbox.wait()


def test_it_waits_for_a_queue_that_is_missing(
    server: AmqpServer, broker: AmqpBroker, clock: SystemClock, soon: Callable[[], float]
) -> None:
    def miss(session: Session, channel: int, _method: Any) -> bool:
        session.close_channel(channel, 404, "NOT_FOUND - no queue 'q' in vhost '/'")
        return True

    server.rules[spec.Basic.Consume] = miss
    wish = broker.subscribe("q", Inbox(), SubscribeOptions(prefetch=7))
    server.wait_for(spec.Basic.Consume)
    with pytest.raises(DeadlineExceeded, match="no queue 'q'"):
        broker.wait_subscribed([wish], clock.monotonic() + 0.3)
    server.rules.clear()
    broker.wait_subscribed([wish], soon())


def test_a_missing_permission_is_told_at_once(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def refuse(session: Session, channel: int, _method: Any) -> bool:
        session.close_channel(channel, 403, "ACCESS_REFUSED - access to queue 'q' refused")
        return True

    server.rules[spec.Basic.Consume] = refuse
    wish = broker.subscribe("q", Inbox(), SubscribeOptions(prefetch=7))
    with pytest.raises(AccessRefused, match="queue 'q'"):
        broker.wait_subscribed([wish], soon())


def test_a_cancelled_one_keeps_its_channel_until_all_is_settled(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    inbox = Inbox()
    wish = broker.subscribe("q", inbox, SubscribeOptions(prefetch=7))
    session, channel, _ = server.wait_for(spec.Basic.Consume)
    session.deliver(channel, 1)
    held = inbox.wait()
    wish.cancel(soon())
    server.wait_for(spec.Basic.Cancel)
    held.ack()
    assert server.wait_for(spec.Basic.Ack)[1] == channel
    assert server.wait_for(spec.Channel.Close)[1] == channel
    wish.cancel(soon())
    wish.cancel_nowait()


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that is cancelled lingers no longer than it must."""
    monkeypatch.setattr(subscriber, "LINGER_S", subscriber.QUIET_S)


@pytest.mark.usefixtures("brisk")
def test_while_a_cancel_is_under_way_nothing_makes_room_for_more(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    inbox = Inbox()
    wish = broker.subscribe("q", inbox, SubscribeOptions(prefetch=7))
    session, channel, _ = server.wait_for(spec.Basic.Consume)
    session.deliver(channel, 1)
    held = inbox.wait()
    wish.cancel_nowait()
    # Only a command that comes after that one tells that it has been taken.
    broker.stats("q", soon())
    held.ack()
    kinds: list[type] = []
    while not kinds or kinds[-1] is not spec.Channel.Close:
        kinds.append(type(server.seen.get(timeout=PATIENCE_S)[2]))
    settling = [kind for kind in kinds if kind in (spec.Basic.Cancel, spec.Basic.Ack)]
    assert settling == [spec.Basic.Cancel, spec.Basic.Cancel, spec.Basic.Ack]


@pytest.mark.usefixtures("brisk")
def test_what_is_given_back_while_the_reader_is_busy_does_not_come_again_and_again(
    server: AmqpServer, broker: AmqpBroker
) -> None:
    """RabbitMQ counts how often it has delivered a message, and takes it for poison."""

    def give_back(deliveries: Sequence[Delivery]) -> None:
        wish.cancel_nowait()
        for delivery in deliveries:
            delivery.reject(requeue=True)

    wish = broker.subscribe("q", give_back, SubscribeOptions(prefetch=7))
    _, channel, _ = server.wait_for(spec.Basic.Consume)

    def deliver_meanwhile(session: Session, other: int, _method: Any) -> bool:
        session.deliver(channel, 1)
        # A question that keeps the reader longer than the callback.
        threading.Timer(0.1, session.send, (other, spec.Queue.DeclareOk("q", 0, 0))).start()
        return True

    server.rules[spec.Queue.Declare] = deliver_meanwhile
    broker.subscribe("other", Inbox(), SubscribeOptions(prefetch=7, plan=PLAN))
    kinds: list[type] = []
    while spec.Basic.Nack not in kinds:
        kinds.append(type(server.seen.get(timeout=PATIENCE_S)[2]))
    assert spec.Basic.Cancel in kinds


def test_a_consumer_lingers_until_it_is_full_or_somebody_waits(
    server: AmqpServer,
    broker: AmqpBroker,
    monkeypatch: pytest.MonkeyPatch,
    soon: Callable[[], float],
) -> None:
    monkeypatch.setattr(subscriber, "LINGER_S", 2 * PATIENCE_S)
    inbox = Inbox()
    filled, awaited, other = (
        broker.subscribe(name, inbox, SubscribeOptions(prefetch=2)) for name in ("a", "b", "c")
    )
    (session, first, _), (_, second, _), (_, third, _) = (
        server.wait_for(spec.Basic.Consume) for _ in range(3)
    )
    for wish in (filled, awaited, other):
        wish.cancel_nowait()
    # Only a command that comes after those tells that they have been taken.
    broker.stats("q", soon())
    session.deliver(first, 1)
    inbox.wait().ack()  # which is held back, and makes no room
    session.deliver(first, 2)
    assert server.wait_for(spec.Basic.Cancel)[1] == first
    awaited.cancel(soon())
    told = [server.wait_for(spec.Basic.Cancel)[1] for _ in range(5)]
    assert set(told) == {first, second, third}, "one that is waited for hurries all"


@pytest.mark.usefixtures("brisk")
def test_what_is_on_its_way_when_cancelling_nowait_still_arrives(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    def deliver_first(session: Session, channel: int, _method: Any) -> bool:
        session.deliver(channel, 1)
        return False

    server.rules[spec.Basic.Cancel] = deliver_first
    inbox = Inbox()
    wish = broker.subscribe("q", inbox, SubscribeOptions(prefetch=7))
    broker.wait_subscribed([wish], soon())
    wish.cancel_nowait()
    inbox.wait().ack()
    server.wait_for(spec.Channel.Close)


def test_a_cancel_without_an_answer_drops_the_wish_all_the_same(
    server: AmqpServer, broker: AmqpBroker, clock: SystemClock, soon: Callable[[], float]
) -> None:
    server.rules[spec.Basic.Cancel] = lambda *_: True
    inbox = Inbox()
    wish = broker.subscribe("q", inbox, SubscribeOptions(prefetch=7))
    session, channel, _ = server.wait_for(spec.Basic.Consume)
    broker.wait_subscribed([wish], soon())
    with pytest.raises(DeadlineExceeded):
        wish.cancel(clock.monotonic() + 0.2)
    session.deliver(channel, 1)
    nack = server.wait_for(spec.Basic.Nack)[2]
    assert (nack.delivery_tag, nack.requeue) == (1, True)
    assert not inbox.held


def test_what_ends_the_connection_is_not_asked_for_again_on_the_next_one(
    server: AmqpServer, broker: AmqpBroker, soon: Callable[[], float]
) -> None:
    """Found: each new connection forgot the pause, and ended for the same reason."""

    def end(session: Session, _channel: int, method: Any) -> bool:
        if method.queue == "bad":
            session.send(0, spec.Connection.Close(530, "NOT_ALLOWED - number of channels", 0, 0))
        return bool(method.queue == "bad")

    server.rules[spec.Basic.Consume] = end
    bad = broker.subscribe("bad", Inbox(), SubscribeOptions(prefetch=7))
    server.wait_for(spec.Basic.Consume)
    broker.subscribe("good", Inbox(), SubscribeOptions(prefetch=7))
    assert server.wait_for(spec.Basic.Consume)[2].queue == "good"
    server.cut()
    assert server.wait_for(spec.Basic.Consume)[2].queue == "good"
    with pytest.raises(AccessRefused, match="number of channels"):
        broker.wait_subscribed([bad], soon())
