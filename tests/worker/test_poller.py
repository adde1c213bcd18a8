"""The poller: consumers opened and closed as the windows say."""

from __future__ import annotations

import queue
from collections.abc import Sequence

import pytest

from tests.worker.worlds import NAMES, QUEUE, SOON_S, World
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, QueueName
from tq_broker.queues.broker import Delivery
from tq_broker.worker.poller import Poller, Source

OTHER = NAMES.activity("other")


class Bench:
    def __init__(self, world: World, slots: int = 4) -> None:
        self.world = world
        self.taken: queue.Queue[tuple[Source, Delivery]] = queue.Queue()
        client = world.make_client("worker")
        self.broker = world.broker_of(client)
        client.connection.sender.ensure((), world.soon())
        self.poller = Poller(
            client.connection.broker,
            client.connection.sender,
            slots,
            self.on_deliveries,
            lambda queue: queue in self.paused,
        )
        self.paused: set[QueueName] = set()

    def on_deliveries(self, source: Source, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.taken.put((source, delivery))

    def publish(self, count: int = 1) -> None:
        for number in range(count):
            self.world.publish(Message(body=b"", message_id=str(number)))

    def next(self) -> tuple[Source, Delivery]:
        return self.taken.get(timeout=SOON_S)

    def wait(self) -> None:
        self.broker.wait_subscribed(self.poller.subscriptions(), self.world.soon())

    def in_hand(self) -> tuple[int, int]:
        window = self.poller._windows[str(QUEUE)]
        return window.in_hand, window.draining


@pytest.fixture
def bench(world: World) -> Bench:
    return Bench(world)


def test_one_queue_gets_one_consumer_with_all_slots(bench: Bench) -> None:
    bench.poller.serve(QUEUE)
    bench.poller.serve(QUEUE)
    bench.poller.adjust(0)
    bench.poller.adjust(0)
    assert [s.queue for s in bench.poller.subscriptions()] == [str(QUEUE)]
    bench.publish(6)
    for _ in range(4):
        bench.next()
    bench.broker.wait_quiet(bench.world.soon())
    assert bench.taken.empty(), "no more than can be run"
    assert bench.world.count() == 2


def test_windows_follow_the_number_of_slots(bench: Bench) -> None:
    bench.poller.serve(QUEUE)
    bench.poller.adjust(0, 0)
    assert bench.poller.subscriptions() == []
    bench.poller.adjust(0, 2)
    bench.publish(6)
    for _ in range(2):
        bench.next()
    bench.broker.wait_quiet(bench.world.soon())
    assert (bench.taken.empty(), bench.world.count()) == (True, 4)
    bench.poller.adjust(0, 5)
    for _ in range(3):
        bench.next()
    bench.broker.wait_quiet(bench.world.soon())
    assert (bench.taken.empty(), bench.world.count()) == (True, 1)


def test_a_source_says_where_a_delivery_came_from(bench: Bench) -> None:
    bench.poller.serve(QUEUE)
    bench.poller.adjust(0)
    bench.publish()
    source, delivery = bench.next()
    assert (source.queue, source.name, source.task_queue) == (QUEUE, str(QUEUE), "q")
    assert delivery.queue == str(QUEUE)
    assert bench.in_hand() == (1, 0)
    delivery.ack()
    source.released()
    assert bench.in_hand() == (0, 0)


def test_what_comes_from_a_closed_consumer_is_counted_as_draining(bench: Bench) -> None:
    bench.poller.serve(QUEUE)
    bench.poller.adjust(0)
    bench.publish(2)
    source, _ = bench.next()
    bench.next()
    bench.poller.adjust(4)  # all slots are occupied: the consumer is closed
    assert bench.poller.subscriptions() == []
    assert bench.in_hand() == (0, 2)
    source.released()
    assert bench.in_hand() == (0, 1)
    bench.poller.adjust(0)
    bench.publish()
    again, _ = bench.next()
    assert bench.in_hand() == (1, 1)
    again.released()
    source.released()
    assert bench.in_hand() == (0, 0)


def test_several_queues_are_served_together(bench: Bench) -> None:
    for name in (QUEUE, OTHER):
        bench.poller.serve(name)
    bench.poller.adjust(0)
    bench.wait()
    bench.world.publish(Message(body=b"", message_id="1"), OTHER)
    assert bench.next()[0].queue == OTHER


def test_after_stopping_nothing_comes_and_nothing_is_opened(bench: Bench) -> None:
    bench.poller.serve(QUEUE)
    bench.poller.adjust(0)
    bench.wait()
    bench.poller.stop(bench.world.soon())
    bench.poller.adjust(0)
    bench.publish()
    assert bench.poller.subscriptions() == []
    assert bench.taken.empty()
    assert bench.world.count() == 1


def test_deliveries_held_at_the_stop_can_still_be_released(bench: Bench) -> None:
    bench.poller.serve(QUEUE)
    bench.poller.adjust(0)
    bench.publish()
    source, delivery = bench.next()
    bench.poller.stop(bench.world.soon())
    delivery.ack()
    source.released()
    assert bench.in_hand() == (0, 0)


def test_only_queues_of_task_queues_are_polled(bench: Bench) -> None:
    bench.poller.serve(NAMES.queue(Kind.PARKED))
    with pytest.raises(AssertionError, match="only queues of task queues"):
        bench.poller.adjust(0)


def test_a_paused_queue_is_not_consumed_and_what_is_in_hand_can_end(bench: Bench) -> None:
    bench.poller.serve(QUEUE)
    bench.poller.serve(OTHER)
    bench.poller.adjust(0)
    bench.publish()
    source, delivery = bench.next()
    bench.paused.add(QUEUE)
    bench.poller.adjust(0)
    assert [s.queue for s in bench.poller.subscriptions()] == [str(OTHER)]
    assert bench.poller.serves(QUEUE)
    delivery.ack()
    source.released()
    bench.publish(2)
    bench.broker.wait_quiet(bench.world.soon())
    assert (bench.taken.empty(), bench.world.count()) == (True, 2)
    bench.paused.clear()
    bench.poller.adjust(0)
    assert {bench.next()[1].message.message_id for _ in range(2)} == {"0", "1"}
