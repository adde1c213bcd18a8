"""The contract of `tq_broker.queues.broker.Broker`: one suite for every adapter.

A runner subclasses `BrokerContract` and gives it a fixture ``world``. The rules of this file:

* a test waits for threads through queues and events, and lets time pass through ``pass_time``
  only, which costs nothing with a manual clock;
* RabbitMQ answers some questions late (a count, an ack), so what must become true is asked with
  ``eventually``.
"""

from __future__ import annotations

import abc
import itertools
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tq_broker.clock import Clock
from tq_broker.exceptions import (
    AccessRefused,
    BrokerUnavailable,
    DeadlineExceeded,
    InvalidArgument,
)
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names, QueueName
from tq_broker.queues import topology
from tq_broker.queues.broker import (
    Broker,
    Delivery,
    QueueStats,
    Receipt,
    SubscribeOptions,
    Subscription,
    Verdict,
)
from tq_broker.queues.topology import (
    BindQueue,
    DeclareExchange,
    DeclareQueue,
    DeleteQueue,
    Plan,
    UnbindQueue,
)

PATIENCE_S = 20.0
"""How long a real thread or server may take. Reached only by a failing test."""
TTL_MS = 500
_numbers = itertools.count()


class World(abc.ABC):
    """What an adapter must lend to the suite.

    ``litter`` names durable queues that need not outlive the world.
    """

    clock: Clock

    def __init__(self) -> None:
        self.litter: list[str] = []

    @abc.abstractmethod
    def make_broker(self) -> Broker:
        """One more connection to the same vhost."""

    @abc.abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Let time pass; when it returns, all that was due has been called back (or nearly)."""

    @abc.abstractmethod
    def break_connection(self, broker: Broker) -> None:
        """Cut all that ``broker`` has open, once; it may connect again at once."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the brokers that were made."""

    def deadline(self) -> float:
        return self.clock.monotonic() + PATIENCE_S

    def eventually(self, is_true: Callable[[], bool]) -> None:
        """Wait until ``is_true()``, or fail."""
        for _ in range(int(PATIENCE_S / 0.05)):
            if is_true():
                return
            self.pass_time(0.05)
        assert is_true()


class Inbox:
    """Takes deliveries and keeps them until the test asks."""

    def __init__(self, *, acks: bool = False) -> None:
        self._arrived: queue.Queue[Delivery] = queue.Queue()
        self._acks = acks
        self.batches: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, deliveries: Sequence[Delivery]) -> None:
        self.batches.append(len(deliveries))
        self.threads.add(threading.get_ident())
        for delivery in deliveries:
            if self._acks:
                delivery.ack()
            self._arrived.put(delivery)

    def take(self) -> Delivery:
        return self._arrived.get(timeout=PATIENCE_S)

    def take_ids(self, count: int) -> list[str]:
        return [self.take().message.message_id for _ in range(count)]

    @property
    def count(self) -> int:
        return self._arrived.qsize()


def message(body: bytes = b"{}", **changes: Any) -> Message:
    changes.setdefault("message_id", f"m{next(_numbers)}")
    return Message(body=body, **changes)


def numbered(count: int) -> list[Message]:
    return [message(message_id=f"m{number}") for number in range(count)]


class Bench:
    """A fresh namespace on the world, and short words for what the tests do to it."""

    def __init__(self, world: World, broker: Broker, names: Names) -> None:
        self.world = world
        self.broker = broker
        self.names = names
        self.exchange = f"{names.exchange(Exchange.TASKS)}.x"
        self.dead_letters = f"{names.exchange(Exchange.TASKS)}.dlx"

    def deadline(self) -> float:
        return self.world.deadline()

    def apply(self, plan: Plan, broker: Broker | None = None) -> None:
        (broker or self.broker).apply(plan, self.deadline())

    def queue(self, name: str, arguments: dict[str, Any] | None = None, **more: Any) -> Plan:
        """A plan for a queue of this bench, bound under its own name."""
        full = self.full(name)
        return Plan(
            (
                DeclareExchange(self.exchange, "direct"),
                DeclareQueue(full, {"x-queue-type": "classic", **(arguments or {})}, **more),
                BindQueue(full, self.exchange, full),
            )
        )

    def declare(self, name: str, arguments: dict[str, Any] | None = None) -> str:
        """Declare and bind a queue; returns its full name."""
        self.apply(self.queue(name, arguments))
        return self.full(name)

    def dying(self, name: str, arguments: dict[str, Any]) -> tuple[str, str]:
        """A queue and the one that its dead letters go to, under their old key."""
        self.apply(Plan((DeclareExchange(self.dead_letters, "fanout"),)))
        grave = self.declare(f"{name}-grave")
        self.apply(Plan((BindQueue(grave, self.dead_letters, ""),)))
        full = self.declare(name, {"x-dead-letter-exchange": self.dead_letters, **arguments})
        return full, grave

    def full(self, name: str) -> str:
        return f"tq.{self.names.namespace}.test.{name}"

    def publish(
        self,
        key: str,
        what: Message | None = None,
        *,
        exchange: str | None = None,
        broker: Broker | None = None,
        deadline: float | None = None,
    ) -> Receipt:
        answers: queue.Queue[Receipt] = queue.Queue()
        publication = Publication(exchange or self.exchange, key, what or message())
        until = self.deadline() if deadline is None else deadline
        (broker or self.broker).publish(publication, until, answers.put)
        return answers.get(timeout=PATIENCE_S)

    def send(self, key: str, *what: Message) -> None:
        """Publish, confirmed."""
        for one in what or (message(),):
            assert self.publish(key, one).verdict is Verdict.CONFIRMED

    def post(self, key: str, *what: Message) -> None:
        """Publish without waiting, for when the thread that would tell is kept busy."""
        many = [Publication(self.exchange, key, one) for one in what or (message(),)]
        self.broker.publish_many(many, self.deadline(), lambda index, receipt: None)

    def subscribe(
        self,
        full: str,
        inbox: Callable[[Sequence[Delivery]], None],
        *,
        broker: Broker | None = None,
        prefetch: int = 100,
        **options: Any,
    ) -> Subscription:
        broker = broker or self.broker
        wish = broker.subscribe(full, inbox, SubscribeOptions(prefetch=prefetch, **options))
        broker.wait_subscribed([wish], self.deadline())
        return wish

    def get(self, full: str) -> Delivery:
        """Take a message by hand as soon as there is one."""
        found: list[Delivery] = []

        def is_there() -> bool:
            delivery = self.broker.get(full, self.deadline())
            found.extend([delivery] if delivery is not None else [])
            return bool(found)

        self.world.eventually(is_there)
        return found[0]

    def stats(self, full: str) -> QueueStats | None:
        return self.broker.stats(full, self.deadline())

    def await_ready(self, full: str, count: int) -> None:
        self.world.eventually(lambda: self.stats_ready(full) == count)

    def stats_ready(self, full: str) -> int:
        stats = self.stats(full)
        assert stats is not None
        return stats.ready

    def expect_nothing(self, *inboxes: Inbox) -> None:
        self.world.pass_time(0.3)
        assert [inbox.count for inbox in inboxes] == [0] * len(inboxes)


class BrokerContract:
    """The suite. A subclass has a fixture ``world`` that makes a `World` and closes it."""

    @pytest.fixture
    def make_broker(self, world: World) -> Callable[[], Broker]:
        return world.make_broker

    @pytest.fixture
    def other(self, make_broker: Callable[[], Broker]) -> Broker:
        return make_broker()

    @pytest.fixture
    def names(self) -> Names:
        return Names(f"c{secrets.token_hex(4)}")

    @pytest.fixture
    def pass_time(self, world: World) -> Callable[[float], None]:
        return world.pass_time

    @pytest.fixture
    def bench(self, world: World, names: Names) -> Bench:
        bench = Bench(world, world.make_broker(), names)
        world.litter += [bench.full(name) for name in ("q", "r", "s", "q-grave")]
        return bench

    # --- publishing ---

    def test_it_tells_the_url_without_a_password(self, bench: Bench) -> None:
        assert "://" in bench.broker.url
        assert "guest:guest" not in bench.broker.url

    def test_it_tells_the_version_of_the_server(self, bench: Bench) -> None:
        assert bench.broker.server_version(bench.deadline()) >= (3, 10)

    def test_a_publish_that_reaches_a_queue_is_confirmed(self, bench: Bench) -> None:
        full = bench.declare("q")
        assert bench.publish(full) == Receipt(Verdict.CONFIRMED)
        bench.await_ready(full, 1)

    def test_a_publish_that_no_queue_is_bound_for_is_returned(self, bench: Bench) -> None:
        bench.declare("q")
        receipt = bench.publish("nobody")
        assert receipt.verdict is Verdict.RETURNED
        assert receipt.reason

    def test_a_publish_to_a_missing_exchange_is_returned(self, bench: Bench) -> None:
        receipt = bench.publish("q", exchange=bench.full("no-exchange"))
        assert receipt.verdict is Verdict.RETURNED
        assert "NOT_FOUND" in receipt.reason

    def test_a_missing_exchange_does_not_harm_the_publishes_beside_it(self, bench: Bench) -> None:
        full = bench.declare("q")
        exchanges = [bench.exchange if number % 7 else bench.full("x") for number in range(50)]
        answers: queue.Queue[tuple[int, Receipt]] = queue.Queue()
        bench.broker.publish_many(
            [Publication(exchange, full, message()) for exchange in exchanges],
            bench.deadline(),
            lambda index, receipt: answers.put((index, receipt)),
        )
        found = dict(answers.get(timeout=PATIENCE_S) for _ in exchanges)
        for index, exchange in enumerate(exchanges):
            expected = Verdict.CONFIRMED if exchange == bench.exchange else Verdict.RETURNED
            assert found[index].verdict is expected

    def test_a_publish_to_a_full_queue_that_refuses_is_refused(self, bench: Bench) -> None:
        full = bench.declare("q", {"x-max-length": 1, "x-overflow": "reject-publish"})
        bench.send(full)
        bench.await_ready(full, 1)
        assert bench.publish(full).verdict is Verdict.REFUSED

    def test_a_publish_whose_deadline_is_over_expires(self, bench: Bench) -> None:
        full = bench.declare("q")
        late = bench.world.clock.monotonic() - 1
        assert bench.publish(full, deadline=late).verdict is Verdict.EXPIRED
        bench.world.pass_time(0.2)
        assert bench.stats_ready(full) == 0

    def test_a_receipt_comes_on_the_thread_of_the_adapter(self, bench: Bench) -> None:
        full = bench.declare("q")
        threads: queue.Queue[int] = queue.Queue()
        publication = Publication(bench.exchange, full, message())
        bench.broker.publish(
            publication, bench.deadline(), lambda _: threads.put(threading.get_ident())
        )
        assert threads.get(timeout=PATIENCE_S) != threading.get_ident()

    def test_each_of_many_publishes_has_its_own_answer(self, bench: Bench) -> None:
        full = bench.declare("q")
        keys = [full if number % 2 else "nobody" for number in range(100)]
        answers: queue.Queue[tuple[int, Receipt]] = queue.Queue()
        bench.broker.publish_many(
            [Publication(bench.exchange, key, message()) for key in keys],
            bench.deadline(),
            lambda index, receipt: answers.put((index, receipt)),
        )
        found = dict(answers.get(timeout=PATIENCE_S) for _ in keys)
        assert len(found) == len(keys)
        for index, key in enumerate(keys):
            expected = Verdict.CONFIRMED if key == full else Verdict.RETURNED
            assert found[index].verdict is expected

    def test_no_publishes_at_all_are_no_harm(self, bench: Bench) -> None:
        bench.broker.publish_many([], bench.deadline(), lambda index, receipt: None)

    def test_messages_of_one_publisher_stay_in_order(self, bench: Bench) -> None:
        full = bench.declare("q")
        inbox = Inbox(acks=True)
        bench.subscribe(full, inbox, prefetch=10)
        answers: queue.Queue[int] = queue.Queue()
        many = [Publication(bench.exchange, full, what) for what in numbered(200)]
        bench.broker.publish_many(many, bench.deadline(), lambda index, _: answers.put(index))
        assert inbox.take_ids(200) == [f"m{number}" for number in range(200)]

    def test_publishing_from_a_delivery_callback_works(self, bench: Bench) -> None:
        first, second = bench.declare("q"), bench.declare("r")
        answers: queue.Queue[Receipt] = queue.Queue()

        def pass_on(deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                publication = Publication(bench.exchange, second, delivery.message)
                bench.broker.publish(publication, bench.deadline(), answers.put)
                delivery.ack()

        bench.subscribe(first, pass_on)
        bench.send(first, message(message_id="passed"))
        assert answers.get(timeout=PATIENCE_S).verdict is Verdict.CONFIRMED
        assert bench.get(second).message.message_id == "passed"

    def test_a_message_arrives_as_it_was_sent(self, bench: Bench) -> None:
        full = bench.declare("q")
        sent = message(
            b'{"x": 1}',
            kind="task",
            headers={"text": "ä", "number": 7, "flag": True, "list": ["a", 1], "table": {"k": "v"}},
            correlation_id="c",
            reply_to="r",
            content_type="application/json",
            content_encoding="utf-8",
            priority=3,
            timestamp=1_700_000_000,
        )
        bench.send(full, sent)
        got = bench.get(full)
        assert got.message == sent
        assert (got.queue, got.routing_key, got.redelivered) == (full, full, False)

    def test_properties_that_were_not_set_stay_so(self, bench: Bench) -> None:
        full = bench.declare("q")
        sent = message(content_type=None, content_encoding=None)
        bench.send(full, sent)
        assert bench.get(full).message == sent

    def test_a_topic_exchange_and_one_bound_to_another_route_by_pattern(self, bench: Bench) -> None:
        full, rest = bench.declare("q"), bench.declare("r")
        outer, inner = f"{bench.exchange}.outer", f"{bench.exchange}.inner"
        bench.apply(
            Plan(
                (
                    DeclareExchange(inner, "topic"),
                    DeclareExchange(outer, "topic"),
                    topology.BindExchange(inner, outer, "in.#"),
                    BindQueue(full, inner, "#.*.end"),
                    BindQueue(rest, outer, "*.word"),
                )
            )
        )
        verdicts = {
            key: bench.publish(key, exchange=outer).verdict is Verdict.CONFIRMED
            for key in ("in.a.end", "in.end", "in.a.b.end", "in.a.b", "out.a.end", "x.word", "word")
        }
        assert verdicts == {
            "in.a.end": True,
            "in.end": True,
            "in.a.b.end": True,
            "in.a.b": False,
            "out.a.end": False,
            "x.word": True,
            "word": False,
        }

    def test_what_an_alternate_exchange_rescues_counts_as_routed(self, bench: Bench) -> None:
        full = bench.declare("q")
        rescue, front = f"{bench.exchange}.rescue", f"{bench.exchange}.front"
        bench.apply(
            Plan(
                (
                    DeclareExchange(rescue, "fanout"),
                    DeclareExchange(front, "topic", {"alternate-exchange": rescue}),
                    BindQueue(full, rescue, ""),
                )
            )
        )
        assert bench.publish("any.key", exchange=front).verdict is Verdict.CONFIRMED
        assert bench.get(full).routing_key == "any.key"

    # --- consuming ---

    def test_an_acknowledged_message_never_comes_back(self, bench: Bench, world: World) -> None:
        full = bench.declare("q")
        bench.send(full)
        inbox = Inbox()
        bench.subscribe(full, inbox)
        delivery = inbox.take()
        delivery.ack()
        delivery.ack()
        # An ack travels in a batch: give it the time.
        world.pass_time(0.3)
        world.break_connection(bench.broker)
        bench.expect_nothing(inbox)
        assert bench.stats_ready(full) == 0

    def test_redelivered_is_false_at_first_and_true_after_a_requeue(self, bench: Bench) -> None:
        full = bench.declare("q")
        bench.send(full)
        inbox = Inbox()
        bench.subscribe(full, inbox)
        first = inbox.take()
        assert not first.redelivered
        first.reject(requeue=True)
        second = inbox.take()
        assert second.redelivered
        assert not first.redelivered
        assert second.message.message_id == first.message.message_id

    @pytest.mark.parametrize("queue_type", ["classic", "quorum"])
    def test_a_broken_connection_gives_back_what_it_held(
        self, bench: Bench, other: Broker, world: World, queue_type: str
    ) -> None:
        limit = {"x-delivery-limit": 20} if queue_type == "quorum" else {}
        full = bench.declare("q", {"x-queue-type": queue_type, **limit})
        bench.send(full, *numbered(3))
        held = Inbox()
        doomed = world.make_broker()
        bench.subscribe(full, held, broker=doomed, prefetch=2)
        assert held.take_ids(2) == ["m0", "m1"]
        inbox = Inbox(acks=True)
        bench.subscribe(full, inbox, broker=other)
        assert inbox.take().message.message_id == "m2"
        world.break_connection(doomed)
        # Whoever is quicker has them, the other broker or the same one come back.
        world.eventually(lambda: inbox.count + held.count == 2)
        back = [box.take() for box in (inbox, held) for _ in range(box.count)]
        assert {delivery.message.message_id for delivery in back} == {"m0", "m1"}
        assert all(delivery.redelivered for delivery in back)

    def test_a_delivery_of_a_lost_connection_can_be_acknowledged_without_effect(
        self, bench: Bench, world: World
    ) -> None:
        full = bench.declare("q")
        bench.send(full)
        inbox = Inbox()
        bench.subscribe(full, inbox)
        lost = inbox.take()
        world.break_connection(bench.broker)
        again = inbox.take()
        lost.ack()
        lost.reject(requeue=False)
        assert again.redelivered
        again.reject(requeue=True)
        assert inbox.take().message.message_id == lost.message.message_id

    def test_a_requeued_message_goes_back_to_its_old_place(self, bench: Bench) -> None:
        full = bench.declare("q")
        bench.send(full, *numbered(3))
        first = bench.get(full)
        first.reject(requeue=True)
        bench.await_ready(full, 3)
        assert [bench.get(full).message.message_id for _ in range(3)] == ["m0", "m1", "m2"]

    @pytest.mark.parametrize("queue_type", ["classic", "quorum"])
    def test_never_more_than_prefetch_are_held(self, bench: Bench, queue_type: str) -> None:
        full = bench.declare("q", {"x-queue-type": queue_type})
        inbox = Inbox()
        bench.subscribe(full, inbox, prefetch=3)
        bench.send(full, *numbered(10))
        held = [inbox.take() for _ in range(3)]
        bench.expect_nothing(inbox)
        held[1].ack()
        assert inbox.take().message.message_id == "m3"
        bench.expect_nothing(inbox)
        held[0].reject(requeue=False)
        assert inbox.take().message.message_id == "m4"
        bench.expect_nothing(inbox)

    def test_prefetch_0_has_no_bound(self, bench: Bench) -> None:
        full = bench.declare("q")
        bench.send(full, *numbered(50))
        inbox = Inbox()
        bench.subscribe(full, inbox, prefetch=0)
        assert len(inbox.take_ids(50)) == 50

    def test_two_subscriptions_share_a_queue_in_turn(self, bench: Bench, other: Broker) -> None:
        full = bench.declare("q")
        left, right = Inbox(acks=True), Inbox(acks=True)
        bench.subscribe(full, left, prefetch=10)
        bench.subscribe(full, right, broker=other, prefetch=10)
        bench.send(full, *numbered(20))
        bench.world.eventually(lambda: left.count + right.count == 20)
        assert min(left.count, right.count) >= 5
        ids = left.take_ids(left.count) + right.take_ids(right.count)
        assert sorted(ids) == sorted(f"m{number}" for number in range(20))

    def test_one_broker_may_subscribe_twice_to_one_queue(self, bench: Bench) -> None:
        full = bench.declare("q")
        left, right = Inbox(), Inbox()
        bench.subscribe(full, left, prefetch=1)
        bench.subscribe(full, right, prefetch=1)
        bench.send(full, *numbered(2))
        assert {*left.take_ids(1), *right.take_ids(1)} == {"m0", "m1"}

    def test_a_consumer_with_credit_gets_what_a_saturated_one_cannot_take(
        self, bench: Bench, other: Broker
    ) -> None:
        full = bench.declare("q")
        busy, idle = Inbox(), Inbox(acks=True)
        bench.subscribe(full, busy, prefetch=1)
        bench.send(full)
        busy.take()
        bench.subscribe(full, idle, broker=other, prefetch=1)
        bench.send(full, *numbered(5))
        assert idle.take_ids(5) == [f"m{number}" for number in range(5)]

    def test_callbacks_come_on_one_thread_that_is_not_the_callers(self, bench: Bench) -> None:
        first, second = bench.declare("q"), bench.declare("r")
        inbox = Inbox(acks=True)
        bench.subscribe(first, inbox)
        bench.subscribe(second, inbox)
        bench.send(first)
        bench.send(second)
        inbox.take_ids(2)
        assert len(inbox.threads) == 1
        assert threading.get_ident() not in inbox.threads

    def test_a_callback_that_raises_does_not_stop_the_others(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second = bench.declare("q"), bench.declare("r")

        def fail(deliveries: Sequence[Delivery]) -> None:
            raise RuntimeError("the callback's fault")

        inbox = Inbox(acks=True)
        with caplog.at_level(logging.CRITICAL):
            bench.subscribe(first, fail)
            bench.subscribe(second, inbox)
            bench.send(first)
            bench.send(second, message(message_id="after"))
            assert inbox.take().message.message_id == "after"

    def test_after_cancel_nothing_more_is_handed_over(self, bench: Bench) -> None:
        full = bench.declare("q")
        inbox = Inbox()
        wish = bench.subscribe(full, inbox, prefetch=1)
        bench.send(full, *numbered(2))
        held = inbox.take()
        wish.cancel(bench.deadline())
        held.ack()
        bench.expect_nothing(inbox)
        bench.await_ready(full, 1)

    def test_a_delivery_held_over_a_cancel_is_still_ours(self, bench: Bench, world: World) -> None:
        full = bench.declare("q")
        inbox = Inbox()
        wish = bench.subscribe(full, inbox)
        bench.send(full)
        held = inbox.take()
        wish.cancel(bench.deadline())
        bench.expect_nothing(inbox)
        assert bench.stats_ready(full) == 0
        held.reject(requeue=True)
        bench.await_ready(full, 1)

    def test_cancel_waits_for_a_callback_that_is_running(self, bench: Bench) -> None:
        full = bench.declare("q")
        entered, leave = threading.Event(), threading.Event()
        ended: list[bool] = []

        def slow(deliveries: Sequence[Delivery]) -> None:
            entered.set()
            assert leave.wait(PATIENCE_S)
            ended.append(True)

        wish = bench.subscribe(full, slow, prefetch=1)
        bench.post(full)
        assert entered.wait(PATIENCE_S)
        with ThreadPoolExecutor(1) as pool:
            cancelling = pool.submit(wish.cancel, bench.deadline())
            leave.set()
            cancelling.result(PATIENCE_S)
        assert ended == [True]

    def test_cancel_nowait_may_be_called_from_a_callback(self, bench: Bench) -> None:
        full = bench.declare("q")
        wishes: list[Subscription] = []
        inbox = Inbox()

        def once(deliveries: Sequence[Delivery]) -> None:
            wishes[0].cancel_nowait()
            inbox(deliveries)

        wishes.append(bench.subscribe(full, once, prefetch=1))
        bench.send(full, *numbered(2))
        inbox.take().ack()
        bench.world.eventually(lambda: bench.stats(full) == QueueStats(ready=1, consumers=0))
        wishes[0].cancel(bench.deadline())
        wishes[0].cancel_nowait()

    def test_it_is_told_what_was_lost_before_anything_comes_anew(
        self, bench: Bench, world: World
    ) -> None:
        full = bench.declare("q")
        told: queue.Queue[str] = queue.Queue()
        bench.subscribe(
            full,
            lambda many: told.put(many[0].message.message_id),
            on_lost=lambda: told.put("lost"),
        )
        bench.send(full, message(message_id="m0"))
        assert told.get(timeout=PATIENCE_S) == "m0"
        world.break_connection(bench.broker)
        assert [told.get(timeout=PATIENCE_S) for _ in range(2)] == ["lost", "m0"]

    def test_it_is_told_when_its_queue_is_deleted(self, bench: Bench) -> None:
        full = bench.declare("q")
        told: queue.Queue[str] = queue.Queue()
        bench.subscribe(
            full,
            lambda many: told.put(many[0].message.message_id),
            plan=bench.queue("q"),
            on_lost=lambda: told.put("lost"),
        )
        bench.send(full, message(message_id="m0"))
        assert told.get(timeout=PATIENCE_S) == "m0"
        bench.apply(Plan((DeleteQueue(full),)))
        assert told.get(timeout=PATIENCE_S) == "lost"
        bench.world.eventually(lambda: bench.stats(full) == QueueStats(ready=0, consumers=1))
        bench.send(full, message(message_id="m1"))
        assert told.get(timeout=PATIENCE_S) == "m1"

    @pytest.mark.parametrize("is_end_of_all", [False, True])
    def test_what_was_acknowledged_last_does_not_come_again(
        self, bench: Bench, world: World, *, is_end_of_all: bool
    ) -> None:
        full, other, count = (
            bench.declare("q", {"x-queue-type": "quorum"}),
            world.make_broker(),
            200,
        )
        inbox, lost = Inbox(), threading.Event()
        bench.send(full, *numbered(count))
        options = SubscribeOptions(prefetch=count, on_lost=lost.set)
        wish = other.subscribe(full, inbox, options)
        deliveries = [inbox.take() for _ in range(count)]
        wish.cancel(bench.deadline())
        # Backwards, so each with a frame of its own, which RabbitMQ does not write as fast
        for delivery in reversed(deliveries):
            delivery.ack()
        if is_end_of_all:
            other.close(bench.deadline())
        world.pass_time(1.5)
        assert is_end_of_all or not lost.is_set(), "nothing was taken back"
        other.close(bench.deadline())
        world.pass_time(0.2)
        assert bench.stats_ready(full) == 0

    def test_a_subscription_for_once_takes_so_many_and_ends(self, bench: Bench) -> None:
        full = bench.declare("q", {"x-queue-type": "quorum"})
        inbox, over = Inbox(acks=True), threading.Event()
        bench.send(full, *numbered(2))
        bench.subscribe(full, inbox, prefetch=3, once=True, on_over=over.set)
        assert inbox.take_ids(2) == ["m0", "m1"]
        assert not over.is_set(), "one is still to come"
        bench.send(full, message(message_id="m2"), message(message_id="m3"))
        assert inbox.take_ids(1) == ["m2"]
        assert over.wait(PATIENCE_S)
        bench.expect_nothing(inbox)
        bench.world.eventually(lambda: bench.stats(full) == QueueStats(ready=1, consumers=0))
        last = Inbox()
        bench.subscribe(full, last)
        assert not last.take().redelivered, "nothing was taken that was not handed over"

    def test_a_subscription_for_once_ends_with_its_connection(
        self, bench: Bench, world: World
    ) -> None:
        full = bench.declare("q")
        inbox, over = Inbox(), threading.Event()
        bench.subscribe(full, inbox, prefetch=2, once=True, on_over=over.set)
        bench.send(full)
        inbox.take()
        world.break_connection(bench.broker)
        assert over.wait(PATIENCE_S)
        bench.await_ready(full, 1)
        bench.expect_nothing(inbox)

    def test_a_subscription_for_once_that_is_cancelled_ends(self, bench: Bench) -> None:
        full = bench.declare("q")
        over = threading.Event()
        wish = bench.subscribe(full, Inbox(), prefetch=2, once=True, on_over=over.set)
        wish.cancel(bench.deadline())
        assert over.wait(PATIENCE_S)

    def test_what_two_queues_reject_to_each_other_goes_to_and_fro(self, bench: Bench) -> None:
        keys = {"x-dead-letter-exchange": bench.exchange}
        left, right = bench.full("left"), bench.full("right")
        bench.declare("left", keys | {"x-dead-letter-routing-key": right})
        bench.declare("right", keys | {"x-dead-letter-routing-key": left})
        bench.send(left, *numbered(3))
        for full in (left, right) * 5:
            taken = [bench.get(full) for _ in range(3)]
            assert sorted(one.message.message_id for one in taken) == ["m0", "m1", "m2"]
            for one in taken:
                one.reject(requeue=False)
        bench.await_ready(left, 3)
        assert bench.stats_ready(right) == 0

    def test_a_subscription_comes_back_after_its_queue_was_deleted(self, bench: Bench) -> None:
        plan = bench.queue("q")
        inbox = Inbox(acks=True)
        full = bench.full("q")
        bench.subscribe(full, inbox, plan=plan)
        bench.apply(Plan((DeleteQueue(full),)))
        bench.world.eventually(lambda: bench.publish(full).verdict is Verdict.CONFIRMED)
        assert inbox.take().queue == full

    def test_a_subscription_comes_back_after_the_connection_broke(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        full = bench.full("q")
        inbox = Inbox(acks=True)
        bench.subscribe(full, inbox, plan=bench.queue("q"), broker=other)
        for _ in range(2):
            world.break_connection(other)
            bench.send(full)
            inbox.take()

    def test_a_subscriber_is_told_of_each_acceptance(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        told = threading.Semaphore(0)
        full = bench.declare("q")
        bench.subscribe(full, Inbox(), broker=other, on_accepted=told.release)
        assert told.acquire(timeout=PATIENCE_S)
        world.break_connection(other)
        assert told.acquire(timeout=PATIENCE_S)

    def test_a_cancelled_subscription_does_not_come_back(self, bench: Bench, world: World) -> None:
        full = bench.declare("q")
        inbox = Inbox()
        bench.subscribe(full, inbox).cancel(bench.deadline())
        world.break_connection(bench.broker)
        bench.send(full)
        bench.expect_nothing(inbox)

    def test_a_subscription_waits_for_a_queue_that_does_not_exist_yet(self, bench: Bench) -> None:
        full = bench.full("q")
        inbox = Inbox(acks=True)
        bench.broker.subscribe(full, inbox, SubscribeOptions(prefetch=1))
        bench.world.pass_time(0.2)
        bench.declare("q")
        bench.send(full)
        bench.world.eventually(lambda: inbox.count == 1)

    @pytest.mark.parametrize("prefetch", [-1, 65536])
    def test_a_prefetch_that_amqp_cannot_say_is_an_invalid_argument(
        self, bench: Bench, prefetch: int
    ) -> None:
        with pytest.raises(InvalidArgument, match="prefetch"):
            bench.broker.subscribe("q", Inbox(), SubscribeOptions(prefetch=prefetch))

    # --- who may consume ---

    def test_an_exclusive_consumer_keeps_others_out_until_it_leaves(
        self, bench: Bench, other: Broker
    ) -> None:
        full = bench.declare("q")
        first, second = Inbox(acks=True), Inbox(acks=True)
        holder = bench.subscribe(full, first, exclusive=True)
        waiting = other.subscribe(full, second, SubscribeOptions(prefetch=1, exclusive=True))
        with pytest.raises(AccessRefused):
            other.wait_subscribed([waiting], bench.deadline())
        bench.send(full)
        first.take()
        assert second.count == 0
        holder.cancel(bench.deadline())
        bench.send(full)
        bench.world.eventually(lambda: second.count == 1)

    def test_an_exclusive_queue_goes_with_its_connection(
        self, bench: Bench, make_broker: Callable[[], Broker]
    ) -> None:
        owner = make_broker()
        bench.apply(bench.queue("q", exclusive=True), owner)
        full = bench.full("q")
        assert bench.publish(full).verdict is Verdict.CONFIRMED
        owner.close(bench.deadline())
        bench.world.eventually(lambda: bench.publish(full).verdict is Verdict.RETURNED)

    def test_an_exclusive_queue_is_back_with_its_subscription(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        inbox = Inbox(acks=True)
        full = bench.full("q")
        bench.subscribe(full, inbox, broker=other, plan=bench.queue("q", exclusive=True))
        world.break_connection(other)
        bench.world.eventually(lambda: bench.publish(full).verdict is Verdict.CONFIRMED)
        assert inbox.take().queue == full

    def test_an_exclusive_queue_is_closed_to_others_while_it_is_there(
        self, bench: Bench, make_broker: Callable[[], Broker]
    ) -> None:
        owner, heir = make_broker(), make_broker()
        plan = bench.queue("q", exclusive=True)
        bench.apply(plan, owner)
        with pytest.raises(AccessRefused):
            heir.apply(plan, bench.deadline())
        owner.close(bench.deadline())

        def is_free() -> bool:
            try:
                heir.apply(plan, bench.deadline())
            except AccessRefused:
                return False
            return True

        bench.world.eventually(is_free)

    @pytest.mark.parametrize("queue_type", ["classic", "quorum"])
    def test_of_single_active_consumers_one_is_served_and_the_next_takes_over(
        self, bench: Bench, make_broker: Callable[[], Broker], queue_type: str
    ) -> None:
        full = bench.declare("q", {"x-queue-type": queue_type, "x-single-active-consumer": True})
        owner, heir = make_broker(), make_broker()
        active, waiting = Inbox(), Inbox()
        bench.subscribe(full, active, broker=owner, prefetch=10)
        bench.subscribe(full, waiting, broker=heir, prefetch=10)
        bench.send(full, *numbered(4))
        assert active.take_ids(4) == ["m0", "m1", "m2", "m3"]
        bench.expect_nothing(waiting)
        owner.close(bench.deadline())
        taken = [waiting.take() for _ in range(4)]
        assert sorted(delivery.message.message_id for delivery in taken) == ["m0", "m1", "m2", "m3"]
        assert all(delivery.redelivered for delivery in taken)

    # --- time ---

    @pytest.mark.parametrize("queue_type", ["classic", "quorum"])
    def test_an_expired_message_is_dead_lettered_under_its_old_key(
        self, bench: Bench, pass_time: Callable[[float], None], queue_type: str
    ) -> None:
        full, grave = bench.dying("q", {"x-queue-type": queue_type, "x-message-ttl": TTL_MS})
        bench.send(full, message(message_id="late", headers={"mine": 1}))
        assert bench.broker.get(grave, bench.deadline()) is None
        pass_time(TTL_MS / 1000)
        dead = bench.get(grave)
        assert (dead.message.message_id, dead.routing_key) == ("late", full)
        assert not dead.redelivered
        assert dead.message.headers["mine"] == 1
        [death] = dead.message.headers["x-death"]
        assert (death["queue"], death["reason"], death["count"]) == (full, "expired", 1)
        assert (death["exchange"], death["routing-keys"]) == (bench.exchange, [full])
        assert dead.message.headers["x-first-death-queue"] == full

    def test_messages_expire_in_order_each_at_its_time(
        self, bench: Bench, pass_time: Callable[[float], None]
    ) -> None:
        full, grave = bench.dying("q", {"x-message-ttl": 2000})
        bench.send(full, message(message_id="m0"))
        pass_time(1.2)
        bench.send(full, message(message_id="m1"))
        pass_time(1.0)
        assert bench.get(grave).message.message_id == "m0"
        assert bench.broker.get(grave, bench.deadline()) is None
        pass_time(1.0)
        assert bench.get(grave).message.message_id == "m1"

    def test_a_held_message_never_expires_but_dies_at_once_when_given_back(
        self, bench: Bench, pass_time: Callable[[float], None]
    ) -> None:
        full, grave = bench.dying("q", {"x-message-ttl": TTL_MS})
        inbox = Inbox()
        bench.subscribe(full, inbox)
        bench.send(full)
        held = inbox.take()
        pass_time(2 * TTL_MS / 1000)
        assert bench.broker.get(grave, bench.deadline()) is None
        held.reject(requeue=True)
        [death] = bench.get(grave).message.headers["x-death"]
        assert death["reason"] == "expired"
        bench.expect_nothing(inbox)

    def test_what_a_lost_connection_held_beyond_its_time_dies_at_once(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        full, grave = bench.dying("q", {"x-message-ttl": TTL_MS})
        inbox = Inbox()
        bench.subscribe(full, inbox, broker=other)
        bench.send(full)
        inbox.take()
        world.pass_time(2 * TTL_MS / 1000)
        world.break_connection(other)
        assert bench.get(grave).routing_key == full
        bench.expect_nothing(inbox)

    def test_a_rejected_message_is_dead_lettered_under_the_key_of_its_queue(
        self, bench: Bench
    ) -> None:
        full, grave = bench.dying("q", {"x-dead-letter-routing-key": "other.key"})
        bench.send(full)
        bench.get(full).reject(requeue=False)
        dead = bench.get(grave)
        assert dead.routing_key == "other.key"
        [death] = dead.message.headers["x-death"]
        assert (death["reason"], death["routing-keys"]) == ("rejected", [full])

    def test_a_rejected_message_without_dead_letters_is_gone(self, bench: Bench) -> None:
        full = bench.declare("q")
        bench.send(full)
        bench.get(full).reject(requeue=False)
        bench.world.pass_time(0.2)
        assert bench.stats_ready(full) == 0

    def test_what_is_over_the_length_leaves_at_the_head(self, bench: Bench) -> None:
        full, grave = bench.dying("q", {"x-max-length": 2})
        bench.send(full, *numbered(4))
        dead = [bench.get(grave) for _ in range(2)]
        assert [delivery.message.message_id for delivery in dead] == ["m0", "m1"]
        assert dead[0].message.headers["x-death"][0]["reason"] == "maxlen"
        bench.await_ready(full, 2)

    def test_a_quorum_queue_gives_up_a_message_beyond_its_delivery_limit(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        full, grave = bench.dying("q", {"x-queue-type": "quorum", "x-delivery-limit": 2})
        bench.send(full)
        inbox = Inbox()
        bench.subscribe(full, inbox, broker=other, prefetch=1)
        for number in range(3):
            assert inbox.take().redelivered is (number > 0)
            # Not a reject: from 4.3 what is given back in order does not count.
            world.break_connection(other)
        [death] = bench.get(grave).message.headers["x-death"]
        assert death["reason"] == "delivery_limit"

    def test_a_message_that_expires_in_a_cycle_is_dropped(
        self, bench: Bench, pass_time: Callable[[float], None]
    ) -> None:
        there = bench.full("r")
        full = bench.declare(
            "q",
            {
                "x-message-ttl": TTL_MS,
                "x-dead-letter-exchange": bench.exchange,
                "x-dead-letter-routing-key": there,
            },
        )
        bench.declare(
            "r",
            {
                "x-message-ttl": TTL_MS,
                "x-dead-letter-exchange": bench.exchange,
                "x-dead-letter-routing-key": full,
            },
        )
        bench.send(full)
        pass_time(1.25 * TTL_MS / 1000)
        bench.await_ready(there, 1)
        pass_time(2.5 * TTL_MS / 1000)
        assert (bench.stats_ready(full), bench.stats_ready(there)) == (0, 0)

    def test_a_rejection_breaks_the_cycle(
        self, bench: Bench, pass_time: Callable[[float], None]
    ) -> None:
        waiting = bench.full("r")
        dead_letters = {"x-dead-letter-exchange": bench.exchange}
        full = bench.declare("q", {**dead_letters, "x-dead-letter-routing-key": waiting})
        bench.declare(
            "r", {**dead_letters, "x-dead-letter-routing-key": full, "x-message-ttl": TTL_MS}
        )
        bench.send(full)
        for number in range(3):
            delivery = bench.get(full)
            deaths = delivery.message.headers.get("x-death", [])
            assert [death["count"] for death in deaths] == ([number] * 2 if number else [])
            delivery.reject(requeue=False)
            pass_time(1.25 * TTL_MS / 1000)

    def test_a_queue_that_nobody_uses_expires_and_drops_its_messages(
        self, bench: Bench, pass_time: Callable[[float], None]
    ) -> None:
        full, grave = bench.dying("q", {"x-expires": 1000})
        bench.send(full)
        # A look at it would renew it.
        pass_time(2.5)
        assert bench.publish(full).verdict is Verdict.RETURNED
        assert bench.stats(full) is None
        assert bench.broker.get(grave, bench.deadline()) is None

    def test_declares_and_consumers_keep_a_classic_queue_from_expiring(
        self, bench: Bench, pass_time: Callable[[float], None]
    ) -> None:
        full = bench.declare("q", {"x-expires": 2000})
        for _ in range(2):
            pass_time(1.2)
            bench.declare("q", {"x-expires": 2000})
        pass_time(1.2)
        assert bench.stats(full) is not None
        wish = bench.subscribe(full, Inbox(), prefetch=1)
        pass_time(3.0)
        wish.cancel(bench.deadline())
        pass_time(1.0)
        assert bench.publish(full).verdict is Verdict.CONFIRMED
        pass_time(2.5)
        assert bench.publish(full).verdict is Verdict.RETURNED

    def test_a_classic_queue_with_priorities_hands_out_the_highest_first(
        self, bench: Bench
    ) -> None:
        full = bench.declare("q", {"x-max-priority": 5})
        for priority in (None, 1, 5, 1, 9):
            bench.send(full, message(message_id=f"p{priority}", priority=priority))
        taken = [bench.get(full).message.message_id for _ in range(5)]
        assert taken == ["p5", "p9", "p1", "p1", "pNone"]

    # --- streams ---

    def stream(self, bench: Bench) -> str:
        return bench.declare("s", {"x-queue-type": "stream"})

    def read(
        self, bench: Bench, full: str, offset: str | int, broker: Broker | None = None
    ) -> Inbox:
        inbox = Inbox(acks=True)
        arguments = {"x-stream-offset": offset}
        bench.subscribe(full, inbox, broker=broker, prefetch=2, arguments=arguments)
        return inbox

    def test_a_stream_is_read_from_its_start_and_followed_live_by_all(
        self, bench: Bench, other: Broker
    ) -> None:
        full = self.stream(bench)
        bench.send(full, *numbered(5))
        inboxes = [self.read(bench, full, "first"), self.read(bench, full, "first", other)]
        for inbox in inboxes:
            assert inbox.take_ids(5) == [f"m{number}" for number in range(5)]
        bench.send(full, message(message_id="live"))
        for inbox in inboxes:
            assert inbox.take_ids(1) == ["live"]

    def test_a_stream_tells_offsets_and_can_be_read_from_one(self, bench: Bench) -> None:
        full = self.stream(bench)
        bench.send(full, *numbered(5))
        first = self.read(bench, full, "first")
        offsets = [first.take().message.headers["x-stream-offset"] for _ in range(5)]
        assert offsets == [0, 1, 2, 3, 4]
        assert self.read(bench, full, 3).take_ids(2) == ["m3", "m4"]

    def test_a_stream_read_from_next_tells_only_what_comes(self, bench: Bench) -> None:
        full = self.stream(bench)
        bench.send(full, *numbered(3))
        inbox = self.read(bench, full, "next")
        bench.send(full, message(message_id="new"))
        assert inbox.take_ids(1) == ["new"]

    def test_a_stream_read_from_last_tells_the_last_message(self, bench: Bench) -> None:
        full = self.stream(bench)
        bench.send(full, *numbered(3))
        # It begins at the last chunk, which may hold messages before the last one.
        inbox = self.read(bench, full, "last")
        bench.world.eventually(lambda: inbox.count > 0)
        assert inbox.take_ids(inbox.count)[-1] == "m2"

    def test_a_stream_hands_out_no_more_than_prefetch(self, bench: Bench) -> None:
        full = self.stream(bench)
        bench.send(full, *numbered(5))
        inbox = Inbox()
        bench.subscribe(full, inbox, prefetch=2, arguments={"x-stream-offset": "first"})
        held = [inbox.take(), inbox.take()]
        bench.expect_nothing(inbox)
        held[0].ack()
        held[1].ack()
        assert inbox.take_ids(2) == ["m2", "m3"]

    # --- topology ---

    def test_a_queue_that_exists_otherwise_is_used_with_one_warning(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        full = bench.declare("q", {"x-message-ttl": 60_000})
        with caplog.at_level(logging.WARNING):
            bench.declare("q", {"x-message-ttl": 5_000})
            bench.declare("q", {"x-message-ttl": 5_000})
        assert bench.publish(full).verdict is Verdict.CONFIRMED
        told = [record.getMessage() for record in caplog.records if full in record.getMessage()]
        assert len(told) == 1
        assert "x-message-ttl" in told[0]

    def test_an_exchange_that_exists_otherwise_is_used_with_one_warning(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        full = bench.declare("q")
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                bench.apply(Plan((DeclareExchange(bench.exchange, "topic"),)))
        assert bench.publish(full).verdict is Verdict.CONFIRMED
        told = [record for record in caplog.records if bench.exchange in record.getMessage()]
        assert len(told) == 1

    def test_drift_does_not_disturb_traffic(self, bench: Bench) -> None:
        full = bench.declare("q", {"x-message-ttl": 60_000})
        inbox = Inbox()
        bench.subscribe(full, inbox)
        bench.send(full)
        held = inbox.take()
        bench.declare("q", {"x-message-ttl": 5_000})
        held.ack()
        bench.send(full)
        assert not inbox.take().redelivered

    def test_unbinding_and_deleting_what_is_not_there_is_harmless(self, bench: Bench) -> None:
        full = bench.declare("q")
        bench.apply(Plan((UnbindQueue(full, bench.exchange, full),)))
        assert bench.publish(full).verdict is Verdict.RETURNED
        bench.apply(Plan((UnbindQueue(full, bench.exchange, full), DeleteQueue(full))))
        bench.apply(Plan((DeleteQueue(full),)))
        assert bench.stats(full) is None

    def test_only_one_of_two_tokens_claims(self, bench: Bench, other: Broker) -> None:
        names = bench.names
        bench.apply(topology.namespace(names))
        claimed = names.queue(Kind.CLAIM, "digest")
        plans = [topology.claim_queue(names, claimed, token, 60_000) for token in ("one", "two")]
        assert bench.broker.claim(plans[0], bench.deadline())
        assert not other.claim(plans[1], bench.deadline())
        assert other.claim(plans[0], bench.deadline())
        assert bench.broker.claim(plans[0], bench.deadline())

    def test_of_claims_at_the_same_time_one_wins(
        self, bench: Bench, make_broker: Callable[[], Broker]
    ) -> None:
        names = bench.names
        bench.apply(topology.namespace(names))
        claimed = names.queue(Kind.CLAIM, "digest")
        brokers = [make_broker() for _ in range(2)]
        start = threading.Barrier(4)

        def claim(number: int) -> bool:
            plan = topology.claim_queue(names, claimed, f"token{number}", 60_000)
            start.wait(PATIENCE_S)
            return brokers[number % 2].claim(plan, bench.deadline())

        with ThreadPoolExecutor(4) as pool:
            assert sorted(pool.map(claim, range(4))) == [False, False, False, True]

    def test_a_lock_has_one_holder_among_brokers_and_threads(
        self, bench: Bench, other: Broker
    ) -> None:
        name = str(bench.names.queue(Kind.LOCK, "digest"))
        inside: list[int] = []
        most: list[int] = []

        def work(number: int) -> None:
            broker = (bench.broker, other)[number % 2]
            for _ in range(3):
                with broker.lock(name, bench.deadline()):
                    inside.append(number)
                    most.append(len(inside))
                    # Of two brokers and two threads each: a question to the server is slow
                    # enough for the others to come in, if they could.
                    broker.stats(bench.full("missing"), bench.deadline())
                    inside.remove(number)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert most == [1] * 12

    def test_a_lock_is_not_given_before_the_deadline_of_the_waiter(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        name = str(bench.names.queue(Kind.LOCK, "digest"))
        with bench.broker.lock(name, bench.deadline()):
            for broker in (bench.broker, other):
                soon = world.clock.monotonic() + 0.3
                with ThreadPoolExecutor(1) as pool:
                    waiting = pool.submit(enter, broker, name, soon)
                    world.eventually(waiting.done)
                    assert isinstance(waiting.exception(), DeadlineExceeded)
        enter(other, name, bench.deadline())

    def test_a_lock_is_free_when_its_holder_breaks(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        name = str(bench.names.queue(Kind.LOCK, "digest"))
        with bench.broker.lock(name, bench.deadline()):
            world.break_connection(bench.broker)
            enter(other, name, bench.deadline())
        enter(bench.broker, name, bench.deadline())

    def test_a_plan_with_a_lock_waits_for_its_holder(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        name = str(bench.names.queue(Kind.LOCK, "digest"))
        plan = Plan(bench.queue("q").steps, lock=name)
        with bench.broker.lock(name, bench.deadline()):
            for broker in (bench.broker, other):
                soon = world.clock.monotonic() + 0.3
                with ThreadPoolExecutor(1) as pool:
                    waiting = pool.submit(broker.apply, plan, soon)
                    world.eventually(waiting.done)
                    assert isinstance(waiting.exception(), DeadlineExceeded)
            assert bench.stats(bench.full("q")) is None
        other.apply(plan, bench.deadline())
        assert bench.stats(bench.full("q")) is not None
        enter(bench.broker, name, bench.deadline())

    def test_a_subscription_whose_plan_has_a_lock_waits_for_its_holder(
        self, bench: Bench, other: Broker, world: World
    ) -> None:
        name = str(bench.names.queue(Kind.LOCK, "digest"))
        full = bench.full("q")
        inbox = Inbox(acks=True)
        options = SubscribeOptions(prefetch=1, plan=Plan(bench.queue("q").steps, lock=name))
        with bench.broker.lock(name, bench.deadline()):
            wish = other.subscribe(full, inbox, options)
            world.pass_time(0.2)
            assert bench.stats(full) is None
        other.wait_subscribed([wish], bench.deadline())
        bench.send(full)
        inbox.take()

    def test_looking_at_a_missing_queue_is_no_error(self, bench: Bench) -> None:
        full = bench.full("missing")
        assert bench.stats(full) is None
        assert bench.broker.get(full, bench.deadline()) is None
        assert bench.broker.purge(full, bench.deadline()) == 0

    def test_stats_tell_what_is_ready_and_who_consumes(self, bench: Bench) -> None:
        full = bench.declare("q")
        bench.send(full, *numbered(3))
        bench.world.eventually(lambda: bench.stats(full) == QueueStats(ready=3, consumers=0))
        bench.subscribe(full, Inbox(), prefetch=1)
        bench.world.eventually(lambda: bench.stats(full) == QueueStats(ready=2, consumers=1))

    def test_a_purge_drops_what_is_ready_and_not_what_is_held(self, bench: Bench) -> None:
        full, grave = bench.dying("q", {})
        bench.send(full, *numbered(3))
        held = bench.get(full)
        bench.await_ready(full, 2)
        assert bench.broker.purge(full, bench.deadline()) == 2
        held.reject(requeue=True)
        assert bench.get(full).message.message_id == "m0"
        assert bench.stats_ready(grave) == 0

    def test_get_takes_one_that_is_ours_until_it_is_acknowledged(self, bench: Bench) -> None:
        full = bench.declare("q")
        assert bench.broker.get(full, bench.deadline()) is None
        bench.send(full, *numbered(2))
        first = bench.get(full)
        first.ack()
        second = bench.get(full)
        assert [first.message.message_id, second.message.message_id] == ["m0", "m1"]
        assert bench.broker.get(full, bench.deadline()) is None

    def test_what_must_block_raises_when_its_deadline_is_over(self, bench: Bench) -> None:
        full = bench.declare("q")
        late = bench.world.clock.monotonic() - 1
        calls: list[Callable[[], object]] = [
            lambda: bench.broker.apply(bench.queue("q"), late),
            lambda: bench.broker.claim(bench.queue("q"), late),
            lambda: bench.broker.stats(full, late),
            lambda: bench.broker.get(full, late),
            lambda: bench.broker.purge(full, late),
            lambda: enter(bench.broker, full, late),
        ]
        for call in calls:
            with pytest.raises(DeadlineExceeded):
                call()

    def test_waiting_for_a_subscription_ends_at_its_deadline(
        self, bench: Bench, world: World
    ) -> None:
        wish = bench.broker.subscribe(bench.full("q"), Inbox(), SubscribeOptions(prefetch=1))
        with ThreadPoolExecutor(1) as pool:
            soon = world.clock.monotonic() + 0.3
            waiting = pool.submit(bench.broker.wait_subscribed, [wish], soon)
            world.eventually(waiting.done)
            assert isinstance(waiting.exception(), DeadlineExceeded)

    # --- our own topology ---

    def test_every_plan_of_ours_can_be_taken_twice(self, bench: Bench) -> None:
        names = bench.names
        task, lock = names.activity("t"), names.queue(Kind.LOCK, "digest")
        plans = [
            topology.namespace(names),
            topology.task_queue(names, task, lock),
            topology.private_queue(names, names.queue(Kind.PROCESS, "w", "t")),
            topology.private_queue(names, names.queue(Kind.HOST, "h", "t")),
            topology.held_queue(names, names.queue(Kind.LEASE, "w")),
            topology.reply_queue(names, names.queue(Kind.REPLY, "c")),
            topology.control_queue(names, names.queue(Kind.CONTROL, "w"), ("one", "two")),
            topology.settings_log(names),
            topology.unbind_task_queue(names, task),
        ]
        for plan in [*plans, *plans]:
            bench.apply(plan)
        stats = bench.stats(str(names.queue(Kind.CONTROL, "w")))
        assert stats == QueueStats(ready=0, consumers=0)

    def test_a_worker_that_is_gone_cannot_be_asked(
        self, bench: Bench, make_broker: Callable[[], Broker]
    ) -> None:
        names, worker = bench.names, make_broker()
        bench.apply(topology.namespace(names))
        control = names.queue(Kind.CONTROL, "w")
        bench.apply(topology.control_queue(names, control, ("key",)), worker)
        exchange = names.exchange(Exchange.CONTROL)
        assert bench.publish("key", exchange=exchange).verdict is Verdict.CONFIRMED
        worker.close(bench.deadline())
        bench.world.eventually(
            lambda: bench.publish("key", exchange=exchange).verdict is Verdict.RETURNED
        )

    def ladder(self, bench: Bench) -> QueueName:
        names = bench.names
        bench.apply(topology.namespace(names))
        bench.apply(topology.delay_ladder(names))
        return names.activity("t")

    def delay(self, bench: Bench, task: QueueName, units: int, what: Message) -> None:
        bits = ".".join(f"{units:0{topology.DELAY_LEVELS}b}")
        top = bench.names.delay_exchange(topology.DELAY_LEVELS - 1)
        receipt = bench.publish(f"{bits}.{task.key}", what, exchange=top)
        assert receipt.verdict is Verdict.CONFIRMED

    def test_the_delay_ladder_holds_a_message_for_its_time(
        self, bench: Bench, pass_time: Callable[[float], None]
    ) -> None:
        task = self.ladder(bench)
        lock = bench.names.queue(Kind.LOCK, "digest")
        bench.apply(topology.task_queue(bench.names, task, lock))
        # 21 units: levels 4, 2 and 0 hold it, the others pass it by.
        self.delay(bench, task, 21, message(message_id="long"))
        self.delay(bench, task, 1, message(message_id="short"))
        self.delay(bench, task, 0, message(message_id="none"))
        assert bench.get(str(task)).message.message_id == "none"
        pass_time(0.2)
        assert bench.get(str(task)).message.message_id == "short"
        pass_time(1.4)
        assert bench.broker.get(str(task), bench.deadline()) is None
        pass_time(0.6)
        late = bench.get(str(task))
        assert late.message.message_id == "long"
        deaths = [death["queue"] for death in late.message.headers["x-death"]]
        levels = [str(bench.names.queue(Kind.DELAY, level)) for level in ("0", "2", "4")]
        # The latest is the first one; 3.10 mixes up the others.
        assert deaths[0] == levels[0]
        assert sorted(deaths) == sorted(levels)
        assert late.routing_key.endswith(task.key)

    def test_what_the_ladder_finds_no_queue_for_is_unrouted(
        self, bench: Bench, pass_time: Callable[[float], None]
    ) -> None:
        task = self.ladder(bench)
        self.delay(bench, task, 2, message(message_id="homeless"))
        pass_time(0.3)
        unrouted = str(bench.names.queue(Kind.UNROUTED))
        found = bench.get(unrouted)
        assert found.message.message_id == "homeless"
        assert found.routing_key.endswith(task.key)

    # --- the end ---

    def test_a_closed_broker_has_given_back_what_it_held(
        self, bench: Bench, make_broker: Callable[[], Broker]
    ) -> None:
        closing = make_broker()
        full = bench.declare("q")
        bench.send(full, *numbered(2))
        inbox = Inbox()
        bench.subscribe(full, inbox, broker=closing)
        inbox.take().ack()
        inbox.take()
        closing.close(bench.deadline())
        closing.close(bench.deadline())
        bench.await_ready(full, 1)
        assert bench.get(full).message.message_id == "m1"

    def test_a_broker_that_was_never_used_can_be_closed(self, world: World) -> None:
        broker = world.make_broker()
        broker.close(world.deadline())
        broker.close(world.deadline())

    def test_a_closed_broker_answers_every_publish_it_took(
        self, bench: Bench, make_broker: Callable[[], Broker]
    ) -> None:
        closing = make_broker()
        full = bench.declare("q")
        answers: queue.Queue[Receipt] = queue.Queue()
        many = [Publication(bench.exchange, full, what) for what in numbered(100)]
        closing.publish_many(many, bench.deadline(), lambda _, receipt: answers.put(receipt))
        closing.close(bench.deadline())
        found = {answers.get(timeout=PATIENCE_S).verdict for _ in many}
        assert found == {Verdict.CONFIRMED}

    def test_nothing_can_be_asked_of_a_closed_broker(
        self, bench: Bench, make_broker: Callable[[], Broker]
    ) -> None:
        closed = make_broker()
        closed.apply(bench.queue("q"), bench.deadline())
        closed.close(bench.deadline())
        with pytest.raises(BrokerUnavailable):
            closed.stats(bench.full("q"), bench.deadline())


def enter(broker: Broker, name: str, deadline: float) -> None:
    """Take a lock and let go of it."""
    with broker.lock(name, deadline):
        pass
