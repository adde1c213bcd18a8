"""The wills of a worker: held while it lives, executed when it does not."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest

from tests.worker.attempts import place
from tests.worker.worlds import NAMES, SOON_S, World
from tq_broker.model import envelope
from tq_broker.model.message import Message
from tq_broker.model.names import Kind
from tq_broker.queues import topology
from tq_broker.worker.wills import Wills

HOST = str(NAMES.queue(Kind.HOST, "here", "q"))
UNROUTED = NAMES.queue(Kind.UNROUTED)
WILLS = NAMES.queue(Kind.WILL, "worker-1")


class Bench:
    def __init__(self) -> None:
        self.world = World()
        self.client = self.world.make_client("worker")
        self.made: queue.Queue[str] = queue.Queue()
        self.wills = Wills(self.client.connection.sender, place(), self.made.put)
        self.world.broker.apply(topology.namespace(NAMES), self.world.soon())

    def make(self, queue: str = HOST) -> None:
        self.wills.make(queue)
        assert self.made.get(timeout=SOON_S) == queue

    def executed(self) -> list[str]:
        """The queues whose wills have come to be executed."""
        found = []
        while (will := self.world.broker.get(str(UNROUTED), self.world.soon())) is not None:
            found.append(envelope.read_will(will.message))
            will.ack()
        return found

    def close(self) -> None:
        self.wills.close()
        self.world.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_a_will_is_in_place_when_that_is_said_and_stays_as_long_as_the_worker(
    bench: Bench,
) -> None:
    bench.make()

    assert bench.world.count(WILLS) == 0, "it is held, not waiting"
    assert bench.executed() == []


def test_the_will_of_a_killed_worker_is_executed(bench: Bench) -> None:
    bench.make()

    bench.world.broker_of(bench.client).kill()

    bench.world.eventually(lambda: bench.world.count(UNROUTED) == 1)
    assert bench.executed() == [HOST]


def test_a_worker_that_stops_has_its_wills_executed(bench: Bench) -> None:
    other = str(NAMES.queue(Kind.PROCESS, "worker-1", "q"))
    bench.make()
    bench.make(other)

    bench.wills.close()

    bench.world.eventually(lambda: bench.world.count(UNROUTED) == 2)
    assert sorted(bench.executed()) == [HOST, other]


def test_a_will_made_again_takes_the_place_of_the_one_before(bench: Bench) -> None:
    bench.make()
    bench.make()

    bench.wills.close()

    bench.world.eventually(lambda: bench.world.count(UNROUTED) == 1)
    assert bench.executed() == [HOST]


def test_a_will_that_is_revoked_is_not_executed(bench: Bench) -> None:
    bench.make()

    bench.wills.revoke(HOST)
    bench.wills.revoke("never made")
    bench.wills.close()

    assert bench.executed() == []


def test_a_restored_connection_has_its_wills_made_again(bench: Bench) -> None:
    bench.make()

    bench.world.broker_of(bench.client).break_connection()

    assert bench.made.get(timeout=SOON_S) == HOST
    bench.wills.close()
    bench.world.eventually(lambda: HOST in bench.executed())


def test_garbage_in_the_will_queue_is_dropped(bench: Bench) -> None:
    bench.make()

    bench.world.publish(Message(body=b"", message_id="x"), WILLS)
    bench.make()

    assert bench.executed() == []
