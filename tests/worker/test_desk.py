"""The control desk: requests come, answers go, and bad requests do no harm."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from tests.worker.attempts import place
from tests.worker.worlds import NAMES, SOON_S, World
from tq_broker.model import control
from tq_broker.model.control import Answer, CompleteAttempt, Ping, Request
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind
from tq_broker.queues import topology
from tq_broker.queues.broker import Receipt, Verdict
from tq_broker.worker.desk import Desk, private_queues

REPLY = NAMES.queue(Kind.REPLY, "asker")


class Bench:
    def __init__(self) -> None:
        self.world = World()
        self.client = self.world.make_client("worker")
        self.broker = self.world.broker_of(self.client)
        self.requests: queue.Queue[Request] = queue.Queue()
        self.desk = Desk(
            self.broker,
            self.client.connection.sender,
            NAMES,
            place(),
            private_queues(NAMES, place(), ["q"]),
            self.handle,
        )
        self.broker.wait_subscribed([self.desk.open()], self.world.soon())
        self.world.broker.apply(topology.reply_queue(NAMES, REPLY), self.world.soon())

    def handle(self, request: Request) -> control.Reply | None:
        self.requests.put(request)
        return None if isinstance(request, control.Serve) else Answer(found=True)

    def ask(self, message: Message, key: str = control.EVERY_WORKER) -> Verdict:
        ended: Future[Receipt] = Future()
        publication = Publication(NAMES.exchange(Exchange.CONTROL), key, message)
        self.world.broker.publish(publication, self.world.soon(), ended.set_result)
        return ended.result(SOON_S).verdict

    def close(self) -> None:
        self.desk.close(self.world.soon())
        self.world.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_the_private_queues_of_a_worker_are_its_hosts_and_its_own() -> None:
    names = [str(name) for name in private_queues(NAMES, place(), ["a", "b"])]
    assert names == [
        "tq.n.host.here.a",
        "tq.n.process.worker-1.a",
        "tq.n.host.here.b",
        "tq.n.process.worker-1.b",
    ]


@pytest.mark.parametrize("key", ["worker", "worker.worker-1", "host.here.q", "process.worker-1.q"])
def test_a_worker_is_found_under_each_of_its_keys(bench: Bench, key: str) -> None:
    assert bench.ask(control.message(Ping(), "1"), key) is Verdict.CONFIRMED
    assert bench.requests.get(timeout=SOON_S) == Ping()


@pytest.mark.parametrize("key", ["worker.other", "host.there.q", "host.here.other"])
def test_nobody_is_found_under_other_keys(bench: Bench, key: str) -> None:
    assert bench.ask(control.message(Ping(), "1"), key) is Verdict.RETURNED


def test_the_answer_goes_to_whoever_asked(bench: Bench) -> None:
    request = control.message(CompleteAttempt("a", 1), "1", correlation_id="c", reply_to=str(REPLY))
    bench.ask(request)
    bench.world.eventually(lambda: bench.world.count(REPLY) == 1)
    delivery = bench.world.broker.get(str(REPLY), bench.world.soon())
    assert delivery is not None
    assert delivery.message.correlation_id == "c"
    assert control.read_reply(delivery.message) == Answer(found=True)


@pytest.mark.parametrize("reply_to", [None, "tq.other.reply.x", "tq.n.activity.q", "amq.gen"])
def test_an_answer_goes_to_no_other_queue(
    bench: Bench, reply_to: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        bench.ask(control.message(Ping(), "1", reply_to=reply_to))
        bench.requests.get(timeout=SOON_S)
        bench.broker.wait_quiet(bench.world.soon())
    assert "not answered" in caplog.text


def test_garbage_is_dropped_and_the_desk_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        bench.ask(Message(body=b"garbage", message_id="1"))
        bench.ask(control.message(Answer(found=True), "2"))
        bench.ask(control.message(control.Serve("x"), "3"))
        assert bench.requests.get(timeout=SOON_S) == control.Serve("x")
    assert caplog.text.count("control request dropped") == 2


def test_whoever_asked_and_left_is_not_missed(bench: Bench) -> None:
    gone = str(NAMES.queue(Kind.REPLY, "gone"))
    bench.ask(control.message(Ping(), "1", reply_to=gone))
    bench.ask(control.message(Ping(), "2"))
    for _ in range(2):
        assert bench.requests.get(timeout=SOON_S) == Ping()


def test_a_closed_desk_is_not_found(bench: Bench) -> None:
    for _ in range(2):
        bench.desk.close(bench.world.soon())
    assert bench.ask(control.message(Ping(), "1")) is Verdict.RETURNED


def test_a_killed_worker_is_not_found_and_its_desk_closes_all_the_same(bench: Bench) -> None:
    bench.broker.kill()
    assert bench.ask(control.message(Ping(), "1")) is Verdict.RETURNED
    bench.desk.close(bench.world.soon())


def test_a_worker_that_is_ready_to_serve_is_found_so(bench: Bench) -> None:
    host = private_queues(NAMES, place(), ["q"])[0]
    key = control.ready_key(host.key)
    assert bench.ask(control.message(control.Probe(), "1"), key) is Verdict.RETURNED
    bench.desk.ready(host, bench.world.soon())
    assert bench.ask(control.message(control.Probe(), "2"), key) is Verdict.CONFIRMED
