"""`MemoryBroker` keeps the contract, under a clock that is told the time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest

from tests.contracts.broker import PATIENCE_S, Bench, BrokerContract, Inbox, World, message
from tq_broker.exceptions import BrokerUnavailable, Bug, DeadlineExceeded, InvalidArgument
from tq_broker.model.message import Publication
from tq_broker.model.names import Names
from tq_broker.queues.broker import Broker, Delivery, Receipt, SubscribeOptions, Verdict
from tq_broker.queues.memory import MemoryBroker, MemoryServer, forget, server_for
from tq_broker.testing.manual_clock import ManualClock


class MemoryWorld(World):
    """One server under a manual clock.

    Deadlines under such a clock never come by themselves: a guard lets them come when a test
    hangs, so that it fails instead.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = self.manual = ManualClock()
        self._server = MemoryServer()
        self._brokers: list[MemoryBroker] = []
        self._closed = threading.Event()
        threading.Thread(target=self._guard, name="guard", daemon=True).start()

    def make_broker(self) -> MemoryBroker:
        self._brokers.append(MemoryBroker(self._server, self.clock))
        return self._brokers[-1]

    def pass_time(self, seconds: float) -> None:
        self.manual.advance(seconds)
        for broker in self._brokers:
            broker.wait_quiet(self.deadline())

    def break_connection(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.break_connection()

    def close(self) -> None:
        for broker in self._brokers:
            broker.close(self.deadline())
        self._closed.set()

    def _guard(self) -> None:
        patience_s = 2 * PATIENCE_S
        while not self._closed.wait(patience_s):
            self.manual.advance(3600)
            patience_s = 0.1


class TestMemoryBroker(BrokerContract):
    @pytest.fixture
    def world(self) -> Iterator[MemoryWorld]:
        world = MemoryWorld()
        yield world
        world.close()


@pytest.fixture
def world() -> Iterator[MemoryWorld]:
    world = MemoryWorld()
    yield world
    world.close()


@pytest.fixture
def bench(world: MemoryWorld) -> Bench:
    return Bench(world, world.make_broker(), Names("n"))


def start_publish(bench: Bench, broker: Broker, key: str, deadline: float) -> Queue[Receipt]:
    answers: Queue[Receipt] = Queue()
    broker.publish(Publication(bench.exchange, key, message()), deadline, answers.put)
    return answers


def test_brokers_with_the_same_url_share_a_server_until_it_is_forgotten() -> None:
    url = f"memory://{os.urandom(8).hex()}"
    server = server_for(url)
    assert server_for(url) is server
    assert MemoryBroker.connect(url).url == url
    forget(url)
    assert server_for(url) is not server
    forget(url)
    forget(url)


@pytest.mark.parametrize("url", ["", "memory", "memory://", "amqp://host"])
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="memory://"):
        server_for(url)


def test_what_is_published_while_the_connection_is_away_arrives_when_it_is_back(
    world: MemoryWorld, bench: Bench
) -> None:
    full = bench.declare("q")
    broker = world.make_broker()
    broker.break_connection(away_s=5)
    answers = start_publish(bench, broker, full, world.clock.monotonic() + 10)
    world.pass_time(4)
    assert answers.empty()
    assert bench.stats_ready(full) == 0
    world.pass_time(1)
    assert answers.get(timeout=PATIENCE_S).verdict is Verdict.CONFIRMED
    assert bench.stats_ready(full) == 1


def test_what_is_published_while_the_connection_is_away_expires_at_its_deadline(
    world: MemoryWorld, bench: Bench
) -> None:
    full = bench.declare("q")
    broker = world.make_broker()
    broker.break_connection(away_s=20)
    answers = start_publish(bench, broker, full, world.clock.monotonic() + 10)
    world.pass_time(10)
    assert answers.get(timeout=PATIENCE_S).verdict is Verdict.EXPIRED
    world.pass_time(20)
    assert answers.empty()
    assert bench.stats_ready(full) == 0


def test_a_question_waits_for_a_connection_that_is_away(world: MemoryWorld, bench: Bench) -> None:
    full = bench.declare("q")
    broker = world.make_broker()
    broker.break_connection(away_s=5)
    found: Queue[object] = Queue()
    asking = threading.Thread(
        target=lambda: found.put(broker.stats(full, world.clock.monotonic() + 10))
    )
    asking.start()
    world.pass_time(5)
    assert found.get(timeout=PATIENCE_S) is not None
    asking.join(PATIENCE_S)


def test_a_killed_broker_gives_back_what_it_held_and_never_answers(
    world: MemoryWorld, bench: Bench
) -> None:
    full = bench.declare("q")
    killed = world.make_broker()
    inbox = Inbox()
    bench.subscribe(full, inbox, broker=killed)
    bench.send(full)
    inbox.take()
    killed.kill()
    killed.kill()
    assert bench.get(full).redelivered
    answers = start_publish(bench, killed, full, world.clock.monotonic() + 10)
    world.pass_time(9.9)
    assert answers.empty()
    world.pass_time(0.1)
    assert answers.get(timeout=PATIENCE_S).verdict is Verdict.EXPIRED
    assert bench.stats_ready(full) == 0
    with pytest.raises(BrokerUnavailable):
        killed.stats(full, bench.deadline())
    with pytest.raises(BrokerUnavailable):
        killed.apply(bench.queue("q"), bench.deadline())
    wish = killed.subscribe(full, inbox, SubscribeOptions(prefetch=1))
    with pytest.raises(BrokerUnavailable):
        killed.wait_subscribed([wish], bench.deadline())


def test_a_publish_to_a_closed_broker_raises(world: MemoryWorld, bench: Bench) -> None:
    full = bench.declare("q")
    closed = world.make_broker()
    closed.close(bench.deadline())
    with pytest.raises(BrokerUnavailable):
        start_publish(bench, closed, full, bench.deadline())
    with pytest.raises(BrokerUnavailable):
        closed.subscribe(full, Inbox(), SubscribeOptions(prefetch=1))


def test_closing_ends_the_publishes_of_a_connection_that_is_away(
    world: MemoryWorld, bench: Bench
) -> None:
    broker = world.make_broker()
    broker.break_connection(away_s=100)
    answers = start_publish(bench, broker, "q", bench.deadline())
    broker.close(bench.deadline())
    assert answers.get(timeout=PATIENCE_S).verdict is Verdict.EXPIRED


def test_a_blocking_call_from_a_callback_is_a_bug(world: MemoryWorld, bench: Bench) -> None:
    full = bench.declare("q")
    errors: Queue[BaseException] = Queue()

    def ask(deliveries: Sequence[Delivery]) -> None:
        try:
            bench.broker.stats(full, bench.deadline())
        except Bug as error:
            errors.put(error)

    bench.subscribe(full, ask)
    bench.send(full)
    assert "callback" in str(errors.get(timeout=PATIENCE_S))


def test_cancelling_gives_up_at_its_deadline_on_a_callback_that_does_not_end(
    world: MemoryWorld, bench: Bench
) -> None:
    full = bench.declare("q")
    entered, leave = threading.Event(), threading.Event()

    def stuck(deliveries: Sequence[Delivery]) -> None:
        entered.set()
        assert leave.wait(PATIENCE_S)

    wish = bench.subscribe(full, stuck)
    bench.post(full)
    assert entered.wait(PATIENCE_S)
    with ThreadPoolExecutor(1) as pool:
        cancelling = pool.submit(wish.cancel, world.clock.monotonic() + 5)
        world.manual.advance(5)
        assert isinstance(cancelling.exception(PATIENCE_S), DeadlineExceeded)
    leave.set()


def test_a_stream_cannot_be_consumed_without_prefetch(bench: Bench) -> None:
    full = bench.declare("s", {"x-queue-type": "stream"})
    with pytest.raises(InvalidArgument, match="prefetch"):
        bench.subscribe(full, Inbox(), prefetch=0)
    with pytest.raises(InvalidArgument, match="NOT_IMPLEMENTED"):
        bench.broker.get(full, bench.deadline())


def test_deliveries_that_come_fast_are_handed_over_together(bench: Bench) -> None:
    full = bench.declare("q")
    entered, leave = threading.Event(), threading.Event()
    sizes: list[int] = []
    done = threading.Event()

    def slow(deliveries: Sequence[Delivery]) -> None:
        entered.set()
        assert leave.wait(PATIENCE_S)
        sizes.append(len(deliveries))
        if sum(sizes) == 101:
            done.set()

    bench.subscribe(full, slow, prefetch=0)
    bench.post(full)
    assert entered.wait(PATIENCE_S)
    bench.post(full, *(message() for _ in range(100)))
    leave.set()
    assert done.wait(PATIENCE_S)
    assert sizes[0] == 1
    assert max(sizes) > 1
