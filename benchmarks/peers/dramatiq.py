"""Dramatiq: ``confirm_delivery``, threads, results in Redis.

The variant is the number of threads; 8 is the default of its command line.
"""

# mypy: disable-error-code="no-untyped-call"
# (Dramatiq has no type hints.)

from __future__ import annotations

import os
import time
from typing import Any

# Read by the library when it is imported; its default is two messages per thread.
os.environ["dramatiq_queue_prefetch"] = "500"  # noqa: SIM112

import dramatiq
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.order import FILLED, Order, Sample, say, serve
from benchmarks.tally import Tally, latencies, rate


def connect(order: Order, *, results: bool = False) -> RabbitmqBroker:
    """The broker; the same for clients and workers."""
    broker = RabbitmqBroker(url=order.url, confirm_delivery=True)
    if results:
        broker.add_middleware(Results(backend=RedisBackend(url=order.redis_url)))
    dramatiq.set_broker(broker)
    return broker


def declare_noop(order: Order, *, results: bool = False, tally: Tally | None = None) -> Any:
    """The actor."""

    def noop(n: int) -> None:
        if tally is not None:
            tally.executed()

    options = {"store_results": True} if results else {}
    decorate: Any = dramatiq.actor
    return decorate(noop, queue_name=order.queue, **options)


def names(queue: str) -> list[str]:
    """The three queues that the library keeps for one: tasks, delayed, dead."""
    return [queue, f"{queue}.DQ", f"{queue}.XQ"]


def publish(order: Order) -> Sample:
    connect(order)
    noop = declare_noop(order)
    noop.send(0)  # Connects and declares.
    start_s = time.perf_counter()
    for number in range(order.count - 1):
        noop.send(number)
    return rate(order.count - 1, time.perf_counter() - start_s, names(order.queue))


def drain(order: Order) -> Sample:
    tally = Tally(order.count)
    tally.watch_acks(pika.channel.Channel, "basic_ack")
    broker = connect(order)
    declare_noop(order, tally=tally)
    dramatiq.Worker(broker, worker_threads=int(order.variant)).start()
    tally.wait()
    return tally.sample(*names(order.queue))


def work(order: Order) -> Sample:
    broker = connect(order, results=True)
    declare_noop(order, results=True)
    dramatiq.Worker(broker, worker_threads=int(order.variant)).start()
    while True:
        time.sleep(1)


def results(order: Order) -> Sample:
    connect(order, results=True)
    noop = declare_noop(order, results=True)
    sent = [noop.send(number) for number in range(order.count)]
    say(FILLED)
    sent[0].get_result(block=True, timeout=60_000)
    start_s = time.perf_counter()
    for message in sent[1:]:
        message.get_result(block=True, timeout=60_000)
    return rate(order.count - 1, time.perf_counter() - start_s, names(order.queue))


def latency(order: Order) -> Sample:
    connect(order, results=True)
    noop = declare_noop(order, results=True)

    def ask(number: int) -> None:
        noop.send(number).get_result(block=True, timeout=30_000)

    return latencies(ask, order.count, names(order.queue))


if __name__ == "__main__":
    serve(
        {
            "publish": publish,
            "drain": drain,
            "work": work,
            "results": results,
            "latency": latency,
        }
    )
