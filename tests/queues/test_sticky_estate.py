"""What is left of a worker: its tasks go back to their shards, and all shards learn of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from tests.worker.worlds import NAMES, SOON_S, World
from tq_broker.exceptions import Unavailable
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, sticky_key
from tq_broker.model.requests import SHARDS, read_request
from tq_broker.model.workflow_tasks import RunKey, StickyGone, WorkflowTask, read_task, task_message
from tq_broker.queues import topology
from tq_broker.queues.broker import Receipt, SubscribeOptions
from tq_broker.queues.sticky_estate import StickyEstate

STICKY = NAMES.sticky("w")


class Bench:
    def __init__(self) -> None:
        self.world = World()
        self.broker = self.world.broker
        self.sender = self.world.client.connection.sender
        for shard in range(SHARDS):
            self.sender.ensure((NAMES.history(shard),), self.world.soon())
        self.broker.apply(topology.sticky_queue(NAMES, STICKY, 10_000), self.world.soon())

    def put(self, run_id: str, shard: int) -> None:
        task = WorkflowTask(
            run=RunKey("w", run_id),
            workflow_type="W",
            task_queue="q",
            shard=shard,
            scheduled_event_id=7,
        )
        ended: Future[Receipt] = Future()
        publication = Publication(
            NAMES.exchange(Exchange.STICKY), sticky_key(STICKY, shard), task_message(task, "m")
        )
        self.broker.publish(publication, self.world.soon(), ended.set_result)
        ended.result(SOON_S)

    def settle(self) -> bool:
        return StickyEstate(self.sender, STICKY).settle(self.world.soon())

    def inbox(self, shard: int) -> list[Message]:
        found = []
        queue = str(NAMES.history(shard))
        while (delivery := self.broker.get(queue, self.world.soon())) is not None:
            delivery.ack()
            found.append(delivery.message)
        return found

    def is_gone(self) -> bool:
        return self.broker.stats(str(STICKY), self.world.soon()) is None


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.world.close()


def test_every_shard_is_told_and_the_queue_is_gone(bench: Bench) -> None:
    assert bench.settle()
    for shard in range(SHARDS):
        (message,) = bench.inbox(shard)
        assert read_request(message) == StickyGone(worker_id="w")
    assert bench.is_gone()


def test_tasks_go_back_to_the_shards_that_sent_them(bench: Bench) -> None:
    bench.put("a", 3)
    bench.put("b", 5)
    bench.put("c", 3)
    assert bench.settle()
    found = {
        shard: [read_task(m).run.run_id for m in bench.inbox(shard) if m.kind == "workflow-task"]
        for shard in (3, 5)
    }
    assert found == {3: ["a", "c"], 5: ["b"]}
    assert bench.is_gone()


def test_a_queue_that_somebody_serves_again_is_left_alone(bench: Bench) -> None:
    subscription = bench.broker.subscribe(
        str(STICKY), lambda deliveries: None, SubscribeOptions(prefetch=1)
    )
    bench.broker.wait_subscribed([subscription], bench.world.soon())
    assert not bench.settle()
    assert bench.inbox(0) == []
    assert not bench.is_gone()


def test_a_queue_that_is_gone_is_told_of_all_the_same(bench: Bench) -> None:
    assert bench.settle()
    for shard in range(SHARDS):
        bench.inbox(shard)
    assert bench.settle()
    assert len(bench.inbox(0)) == 1


def test_what_could_not_be_given_back_stays_in_the_queue(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: nobody had it as long as the connection lived."""
    bench.put("a", 3)
    bench.put("b", 5)
    send_many = bench.sender.send_many

    def fail(publications: Sequence[Publication], *others: Any) -> None:
        if publications[0].exchange == NAMES.exchange(Exchange.ABANDONED):
            raise Unavailable("not now")
        send_many(publications, *others)

    with monkeypatch.context() as trouble:
        trouble.setattr(bench.sender, "send_many", fail)
        with pytest.raises(Unavailable, match="not now"):
            bench.settle()
    stats = bench.broker.stats(str(STICKY), bench.world.soon())
    assert stats is not None
    assert stats.ready == 2
    assert bench.settle()
    assert bench.is_gone()
