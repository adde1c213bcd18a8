"""FastStream for RabbitMQ: confirms and mandatory by default, uvloop (as its command line uses)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiormq
import uvloop
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from benchmarks.order import Order, Sample, serve
from benchmarks.tally import Tally, rate

WINDOW = 1000
PREFETCH = 500


def make_broker(order: Order) -> RabbitBroker:
    """The broker; the same for clients and workers."""
    return RabbitBroker(
        order.url, default_channel=Channel(prefetch_count=PREFETCH), logger=None, log_level=50
    )


async def publish(order: Order) -> Sample:
    broker = make_broker(order)
    await broker.start()
    await broker.declare_queue(RabbitQueue(order.queue, durable=True))
    await broker.publish(0, order.queue, persist=True)
    start_s = time.perf_counter()
    left = order.count - 1
    while left:
        window = min(WINDOW, left)
        sends = (broker.publish(number, order.queue, persist=True) for number in range(window))
        await asyncio.gather(*sends)
        left -= window
    return rate(order.count - 1, time.perf_counter() - start_s, [order.queue])


async def drain(order: Order) -> Sample:
    tally = Tally(order.count)
    tally.watch_acks(aiormq.Channel, "basic_ack")
    broker = make_broker(order)

    async def noop(n: int) -> None:
        tally.executed()

    broker.subscriber(RabbitQueue(order.queue, durable=True))(noop)
    await broker.start()
    await tally.wait_on_loop()
    return tally.sample(order.queue)


def _run(operation: Any) -> Any:
    return lambda order: uvloop.run(operation(order))


if __name__ == "__main__":
    serve({"publish": _run(publish), "drain": _run(drain)})
