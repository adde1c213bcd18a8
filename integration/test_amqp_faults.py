"""`AmqpBroker` when RabbitMQ, the network or the machine misbehaves: nothing accepted is lost, and
everything comes back by itself."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest

from tq_broker.clock import SystemClock
from tq_broker.exceptions import AccessRefused, BrokerUnavailable, DeadlineExceeded
from tq_broker.model.message import Message, Publication
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.broker import Delivery, Receipt, SubscribeOptions, Verdict
from tq_broker.queues.topology import BindQueue, DeclareExchange, DeclareQueue, DeleteQueue, Plan
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ, RabbitMQNotFound

CLOCK = SystemClock()
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def node() -> Iterator[LocalRabbitMQ]:
    """A node for this file: every test leaves it as it should be."""
    try:
        with LocalRabbitMQ() as node:
            yield node
    except RabbitMQNotFound as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


@pytest.fixture
def make_broker(node: LocalRabbitMQ) -> Iterator[Callable[..., AmqpBroker]]:
    brokers: list[AmqpBroker] = []

    def make(url: str = "", heartbeat_s: float = 10.0) -> AmqpBroker:
        brokers.append(AmqpBroker(url or node.url, CLOCK, heartbeat_s=heartbeat_s))
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.close(soon(5))


def soon(seconds: float = PATIENCE_S) -> float:
    return CLOCK.monotonic() + seconds


def plan_of(name: str, queue_type: str = "quorum") -> Plan:
    return Plan(
        (
            DeclareExchange("faults", "direct"),
            DeclareQueue(name, {"x-queue-type": queue_type}),
            BindQueue(name, "faults", name),
        )
    )


def numbered(queue: str, number: int) -> Publication:
    return Publication("faults", queue, Message(body=b"{}", message_id=str(number)))


def publish(broker: AmqpBroker, publication: Publication, deadline: float) -> Receipt:
    answered = threading.Event()
    receipts: list[Receipt] = []

    def done(receipt: Receipt) -> None:
        receipts.append(receipt)
        answered.set()

    broker.publish(publication, deadline, done)
    assert answered.wait(PATIENCE_S), "a publish is always answered"
    return receipts[0]


def wait_until(is_true: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    deadline = soon(seconds)
    while not is_true():
        assert CLOCK.monotonic() < deadline, "waited too long"
        CLOCK.sleep(0.05)


class Load:
    """Publishes and consumes until told to stop, and remembers."""

    def __init__(self, broker: AmqpBroker, queue: str) -> None:
        self.receipts: Counter[Verdict] = Counter()
        self.confirmed: set[str] = set()
        self.seen: Counter[str] = Counter()
        self._broker = broker
        self._queue = queue
        self._sent = 0
        self._stop = threading.Event()
        self._answered = threading.Semaphore(500)
        broker.apply(plan_of(queue), soon())
        options = SubscribeOptions(prefetch=100, plan=plan_of(queue))
        self.subscription = broker.subscribe(queue, self._take, options)
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _take(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.seen[delivery.message.message_id] += 1
            delivery.ack()

    def _publish(self) -> None:
        while not self._stop.is_set():
            if self._answered.acquire(timeout=0.1):
                self._sent += 1
                publication = numbered(self._queue, self._sent)
                self._broker.publish(publication, soon(), self._note(str(self._sent)))

    def _note(self, number: str) -> Callable[[Receipt], None]:
        def done(receipt: Receipt) -> None:
            self.receipts[receipt.verdict] += 1
            if receipt.verdict is Verdict.CONFIRMED:
                self.confirmed.add(number)
            self._answered.release()

        return done

    def run_on(self, count: int) -> None:
        """Wait until ``count`` more have been confirmed."""
        goal = len(self.confirmed) + count
        wait_until(lambda: len(self.confirmed) >= goal)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        wait_until(lambda: self.receipts.total() == self._sent)
        assert self.receipts == {Verdict.CONFIRMED: self._sent}
        wait_until(lambda: self.confirmed <= self.seen.keys())


def test_closed_connections_lose_nothing(
    node: LocalRabbitMQ, make_broker: Callable[..., AmqpBroker]
) -> None:
    load = Load(make_broker(), "closed")
    for _ in range(3):
        load.run_on(500)
        node.ctl("close_all_connections", "a test")
    load.run_on(500)
    load.stop()


def test_a_stopped_and_started_broker_loses_nothing(
    node: LocalRabbitMQ, make_broker: Callable[..., AmqpBroker]
) -> None:
    load = Load(make_broker(), "stopped")
    load.run_on(500)
    node.ctl("stop_app")
    CLOCK.sleep(1)
    node.ctl("start_app")
    load.run_on(500)
    load.stop()


def test_a_killed_and_restarted_broker_loses_nothing(
    node: LocalRabbitMQ, make_broker: Callable[..., AmqpBroker]
) -> None:
    load = Load(make_broker(), "killed")
    load.run_on(500)
    # RabbitMQ 3.10 forgets the term of a quorum queue that is killed within seconds of its
    # birth, and such a queue elects no leader any more.
    CLOCK.sleep(6)
    node.kill()
    CLOCK.sleep(1)
    node.start()
    load.run_on(500)
    load.stop()


def test_while_rabbitmq_blocks_publishers_consuming_goes_on(
    node: LocalRabbitMQ, make_broker: Callable[..., AmqpBroker]
) -> None:
    broker = make_broker()
    broker.apply(plan_of("blocked"), soon())
    for number in range(20):
        assert publish(broker, numbered("blocked", number), soon()).verdict is Verdict.CONFIRMED
    node.ctl("set_vm_memory_high_watermark", "0")
    try:
        wait_until(lambda: publish(broker, numbered("blocked", 20), soon(0.5)).reason != "")
        receipt = publish(broker, numbered("blocked", 21), soon(0.5))
        assert receipt.verdict is Verdict.EXPIRED
        assert "RabbitMQ blocks publishers" in receipt.reason
        seen: set[str] = set()

        def take(deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                seen.add(delivery.message.message_id)
                delivery.ack()

        broker.subscribe("blocked", take, SubscribeOptions(prefetch=1))
        wait_until(lambda: {str(number) for number in range(20)} <= seen)
    finally:
        node.ctl("set_vm_memory_high_watermark", "0.4")
    assert publish(broker, numbered("blocked", 22), soon()).verdict is Verdict.CONFIRMED


def test_a_queue_deleted_under_its_consumer_comes_back_and_the_others_notice_nothing(
    make_broker: Callable[..., AmqpBroker],
) -> None:
    broker, other = make_broker(), make_broker()
    held: list[Delivery] = []
    got: list[str] = []

    def take(deliveries: Sequence[Delivery]) -> None:
        got.extend(delivery.message.message_id for delivery in deliveries)
        for delivery in deliveries:
            delivery.ack()

    for name in ("calm", "doomed"):
        broker.apply(plan_of(name), soon())
    calm = broker.subscribe("calm", held.extend, SubscribeOptions(prefetch=10))
    options = SubscribeOptions(prefetch=10, plan=plan_of("doomed"))
    doomed = broker.subscribe("doomed", take, options)
    broker.wait_subscribed([calm, doomed], soon())
    publish(other, numbered("calm", 1), soon())
    wait_until(lambda: len(held) == 1)
    other.apply(Plan((DeleteQueue("doomed"),)), soon())

    def arrives() -> bool:
        publish(other, numbered("doomed", 2), soon())
        return "2" in got

    wait_until(arrives)
    held[0].ack()
    CLOCK.sleep(0.2)
    calm.cancel(soon())
    stats = other.stats("calm", soon())
    assert stats is not None
    assert stats.ready == 0, "the channel of the other subscription has lived on"


class Proxy:
    """A TCP proxy that can go deaf: it takes everything and passes nothing on."""

    def __init__(self, port: int) -> None:
        self.deaf = False
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            for sock in select.select([self._listener, *self._pairs], [], [], 0.05)[0]:
                if sock is self._listener:
                    near, _ = sock.accept()
                    far = socket.create_connection(("127.0.0.1", self._target))
                    self._pairs |= {near: far, far: near}
                elif sock in self._pairs:
                    self._pass_on(sock)

    def _pass_on(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            data = sock.recv(65536)
            if data and self.deaf:
                return
            if data:
                self._pairs[sock].sendall(data)
                return
        for end in (sock, self._pairs[sock]):
            self._pairs.pop(end).close()

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        for sock in (self._listener, *self._pairs):
            sock.close()


def test_a_black_hole_is_noticed_by_heartbeats_and_overcome(
    node: LocalRabbitMQ, make_broker: Callable[..., AmqpBroker]
) -> None:
    proxy = Proxy(node.port)
    try:
        broker = make_broker(f"amqp://127.0.0.1:{proxy.port}", heartbeat_s=2)
        load = Load(broker, "hole")
        load.run_on(200)
        proxy.deaf = True
        # Let the connections that are open now stay deaf, and new ones pass.
        CLOCK.sleep(1)
        with pytest.raises(DeadlineExceeded):
            broker.stats("hole", soon(0.5))
        receipt = publish(broker, numbered("hole", 0), soon(0.5))
        assert receipt.verdict is Verdict.EXPIRED
        CLOCK.sleep(8)  # More than three intervals: both have given up and try to connect.
        with pytest.raises(BrokerUnavailable):
            broker.stats("hole", soon(0.5))
        proxy.deaf = False
        load.run_on(200)
        load.stop()
    finally:
        proxy.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_child_of_a_fork_has_connections_of_its_own(
    make_broker: Callable[..., AmqpBroker],
) -> None:
    broker = make_broker()
    load = Load(broker, "forked")
    load.run_on(100)
    for _ in range(3):
        child = os.fork()
        if not child:
            try:
                receipt = publish(broker, numbered("forked", 0), soon(10))
                stats = broker.stats("forked", soon(10))
                broker.close(soon(5))
                os._exit(0 if receipt.verdict is Verdict.CONFIRMED and stats else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        load.run_on(100)
    load.stop()
    assert load.seen["1"] == 1, "no connection of the parent was lost"


def test_who_cannot_log_in_is_told_what_to_do(
    node: LocalRabbitMQ, make_broker: Callable[..., AmqpBroker]
) -> None:
    for url in (
        f"amqp://guest:s3cret@127.0.0.1:{node.port}",
        f"amqp://127.0.0.1:{node.port}/missing",
    ):
        broker = make_broker(url)
        with pytest.raises(AccessRefused, match="check") as refused:
            broker.stats("q", soon())
        wish = broker.subscribe("q", lambda _: None, SubscribeOptions(prefetch=1))
        with pytest.raises(AccessRefused):
            broker.wait_subscribed([wish], soon())
        receipt = publish(broker, numbered("q", 1), soon())
        assert receipt.verdict is Verdict.REFUSED
        assert "check" in receipt.reason
        assert "s3cret" not in f"{refused.value} {receipt} {broker!r}"


def test_who_cannot_connect_is_told_why(make_broker: Callable[..., AmqpBroker]) -> None:
    for url in ("amqp://127.0.0.1:1", "amqp://no-such-host.invalid"):
        broker = make_broker(url)
        with pytest.raises(BrokerUnavailable, match="no connection to amqp://"):
            broker.stats("q", soon(1))
        receipt = publish(broker, numbered("q", 1), soon(1))
        assert receipt.verdict is Verdict.EXPIRED
        assert "no connection to amqp://" in receipt.reason


def test_the_next_broker_in_the_list_is_taken_when_one_is_down(
    node: LocalRabbitMQ, make_broker: Callable[..., AmqpBroker]
) -> None:
    broker = make_broker(f"amqp://127.0.0.1:1;{node.url}")
    broker.apply(plan_of("failover"), soon())
    assert publish(broker, numbered("failover", 1), soon()).verdict is Verdict.CONFIRMED


def test_a_user_without_permissions_is_told_the_resource(
    node: LocalRabbitMQ, make_broker: Callable[..., AmqpBroker]
) -> None:
    make_broker().apply(plan_of("guarded"), soon())
    node.ctl("add_user", "limited", "pw")
    node.ctl("set_permissions", "limited", "^mine", "^mine", "^mine")
    broker = make_broker(f"amqp://limited:pw@127.0.0.1:{node.port}")
    with pytest.raises(AccessRefused, match="guarded"):
        broker.apply(Plan((DeclareQueue("guarded", {"x-queue-type": "quorum"}),)), soon())
    receipt = publish(broker, numbered("guarded", 1), soon())
    assert receipt.verdict is Verdict.REFUSED
    assert "faults" in receipt.reason
    wish = broker.subscribe("guarded", lambda _: None, SubscribeOptions(prefetch=1))
    with pytest.raises(AccessRefused, match="guarded"):
        broker.wait_subscribed([wish], soon())


def test_a_message_that_rabbitmq_refuses_costs_the_others_nothing(
    make_broker: Callable[..., AmqpBroker],
) -> None:
    broker = make_broker()
    broker.apply(plan_of("mixed"), soon())
    answered = threading.Event()
    receipts: dict[int, Receipt] = {}

    def done(index: int, receipt: Receipt) -> None:
        receipts[index] = receipt
        if len(receipts) == 300:
            answered.set()

    publications = [numbered("mixed", number) for number in range(300)]
    publications[100] = Publication("no-such-exchange", "k", Message(body=b"", message_id="x"))
    publications[200] = Publication("faults", "no-such-queue", Message(body=b"", message_id="y"))
    broker.publish_many(publications, soon(), done)
    assert answered.wait(PATIENCE_S)
    unlucky = {n: r.verdict for n, r in receipts.items() if r.verdict is not Verdict.CONFIRMED}
    assert unlucky == {100: Verdict.RETURNED, 200: Verdict.RETURNED}
