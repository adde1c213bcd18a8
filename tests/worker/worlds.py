"""Clients and workers on one broker in memory."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from tq_broker.client import BlockingClient
from tq_broker.client.core import ClientCore
from tq_broker.clock import Clock, SystemClock
from tq_broker.converter import DEFAULT
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names, QueueName
from tq_broker.queues.broker import Delivery, Receipt
from tq_broker.queues.connection import Connection
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker import Worker

NAMES = Names("n")
QUEUE = NAMES.activity("q")
SOON_S = 20.0
"""How long a test waits for what must happen."""
MINUTE = timedelta(minutes=1)


class World:
    """One server; everybody has a connection of their own."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.server = MemoryServer()
        self._closers: list[Callable[[], object]] = []
        self.client = self.make_client("client")
        self.broker = self.broker_of(self.client)

    def make_client(self, identity: str) -> BlockingClient:
        broker = MemoryBroker(self.server, self.clock)
        connection = Connection(broker, NAMES, self.clock, DEFAULT, identity)
        client = BlockingClient(ClientCore(connection))
        self._closers.append(client.close)
        return client

    @staticmethod
    def broker_of(client: BlockingClient) -> MemoryBroker:
        broker = client.connection.broker
        assert isinstance(broker, MemoryBroker)
        return broker

    def worker(self, *activities: Callable[..., Any], **options: Any) -> Worker:
        """A worker that runs, on a connection of its own; stopped with the world."""
        client = self.make_client(f"worker-{len(self._closers)}")
        given = {
            "task_queue": None if "task_queues" in options else "q",
            "graceful_shutdown_timeout": timedelta(seconds=SOON_S),
            "reclaim_after": None,
        } | options
        worker = Worker(client, activities=activities, **given)
        worker.client = client  # type: ignore[attr-defined]
        worker.start()
        self._closers.append(worker.stop)
        return worker

    def broker_of_worker(self, worker: Worker) -> MemoryBroker:
        return self.broker_of(worker.client)  # type: ignore[attr-defined]

    def kill(self, worker: Worker) -> None:
        """As ``kill -9`` would: what it says from now on nobody hears."""
        self.broker_of_worker(worker).kill()
        worker._until = lambda condition, seconds: True  # type: ignore[method-assign]

    def soon(self) -> float:
        return self.clock.monotonic() + (1000 if isinstance(self.clock, ManualClock) else SOON_S)

    def start(self, what: Any, *args: Any, **options: Any) -> Any:
        named = {"task_queue": "q", "start_to_close_timeout": MINUTE} | options
        return self.client.start_activity(what, args=args, **named)

    def run(self, what: Any, *args: Any, **options: Any) -> Any:
        return self.start(what, *args, **options).result(SOON_S)

    def result(self, handle: Any) -> Any:
        """The result, letting the time of a manual clock pass until it is there."""
        assert isinstance(self.clock, ManualClock)
        outcome = handle._wanted()
        for _ in range(int(SOON_S / 0.005)):
            if concurrent.futures.wait([outcome], 0.005).done:
                break
            self.clock.advance(0.05)
        return handle.result(0)

    def publish(self, message: Message, queue: QueueName = QUEUE) -> None:
        """Put a message on a queue by hand."""
        self.client.connection.sender.ensure((queue,), self.soon())
        ended: concurrent.futures.Future[Receipt] = concurrent.futures.Future()
        publication = Publication(NAMES.exchange(Exchange.TASKS), queue.key, message)
        self.broker.publish(publication, self.soon(), ended.set_result)
        ended.result(SOON_S)

    def count(self, queue: QueueName = QUEUE) -> int:
        stats = self.broker.stats(str(queue), self.soon())
        return 0 if stats is None else stats.ready

    def eventually(self, is_true: Callable[[], bool]) -> None:
        """Wait for what other threads do; fails after `SOON_S`."""
        real = SystemClock()
        deadline = real.monotonic() + SOON_S
        while not is_true():
            assert real.monotonic() < deadline, "it does not happen"
            if isinstance(self.clock, ManualClock):
                self.clock.advance(0.02)
            real.sleep(0.002)

    def take_parked(self) -> Delivery:
        """The next parked message; waits for it."""
        queue = NAMES.queue(Kind.PARKED)
        self.eventually(lambda: self.count(queue) > 0)
        delivery = self.broker.get(str(queue), self.soon())
        assert delivery is not None
        delivery.ack()
        return delivery

    def close(self) -> None:
        for close in reversed(self._closers):
            close()


def reasons(deliveries: Sequence[Delivery]) -> list[str]:
    return [str(delivery.message.headers["tq-parked-reason"]) for delivery in deliveries]
