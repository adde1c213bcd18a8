"""Taskiq over taskiq-aio-pika: quorum queues (its default), uvloop (as its command line uses).

Variants: ``async`` and ``sync`` say what kind of function the task is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiormq
import uvloop
from taskiq.api import run_receiver_task
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue
from taskiq_redis import RedisAsyncResultBackend

from benchmarks.order import FILLED, Order, Sample, say, serve
from benchmarks.tally import Tally, rate

WINDOW = 1000
QOS = 500
ASYNC_TASKS = 100
THREADS = 4


def make_broker(order: Order, *, results: bool = False) -> AioPikaBroker:
    """The broker; the same for clients and workers."""
    backend: Any = RedisAsyncResultBackend(order.redis_url) if results else None
    return AioPikaBroker(
        order.url,
        result_backend=backend,
        qos=QOS,
        exchange=Exchange(name=f"{order.queue}.exchange"),
        task_queues=[Queue(name=order.queue)],
        dead_letter_queue=Queue(name=f"{order.queue}.dead"),
    )


def names(queue: str) -> list[str]:
    """The queues that the library keeps for one: tasks and dead."""
    return [queue, f"{queue}.dead"]


def declare_noop(broker: AioPikaBroker, order: Order, tally: Tally | None = None) -> Any:
    """The task."""

    def noop(n: int) -> None:
        if tally is not None:
            tally.executed()

    async def anoop(n: int) -> None:
        if tally is not None:
            tally.executed()

    function: Any = noop if order.variant == "sync" else anoop
    return broker.task(task_name="noop")(function)


async def send(noop: Any, count: int) -> list[Any]:
    """Send *count* tasks, a window of them at a time."""
    sent: list[Any] = []
    while len(sent) < count:
        window = range(min(WINDOW, count - len(sent)))
        sent += await asyncio.gather(*(noop.kiq(number) for number in window))
    return sent


async def publish(order: Order) -> Sample:
    broker = make_broker(order)
    noop = declare_noop(broker, order)
    await broker.startup()
    await noop.kiq(0)
    start_s = time.perf_counter()
    await send(noop, order.count - 1)
    return rate(order.count - 1, time.perf_counter() - start_s, names(order.queue))


async def drain(order: Order) -> Sample:
    tally = Tally(order.count)
    tally.watch_acks(aiormq.Channel, "basic_ack")
    broker = make_broker(order)
    declare_noop(broker, order, tally)
    async with working(broker):
        await tally.wait_on_loop()
    return tally.sample(*names(order.queue))


@asynccontextmanager
async def working(broker: AioPikaBroker) -> AsyncIterator[None]:
    """A receiver with the settings of ``taskiq worker --max-async-tasks --max-prefetch``."""
    receiver = run_receiver_task(
        broker,
        run_startup=True,
        sync_workers=THREADS,
        max_async_tasks=ASYNC_TASKS,
        max_prefetch=QOS - ASYNC_TASKS,
    )
    task = asyncio.create_task(receiver)
    yield
    task.cancel()
    await asyncio.wait([task], timeout=5)


async def work(order: Order) -> Sample:
    broker = make_broker(order, results=True)
    declare_noop(broker, order)
    async with working(broker):
        await asyncio.Event().wait()
    raise AssertionError("a worker ends only with its process")


async def results(order: Order) -> Sample:
    broker = make_broker(order, results=True)
    noop = declare_noop(broker, order)
    await broker.startup()
    sent = await send(noop, order.count)
    say(FILLED)
    await sent[0].wait_result(check_interval=0.001, timeout=60)
    start_s = time.perf_counter()
    # One after the other: polls of many at a time are load on Redis and gained nothing here.
    for task in sent[1:]:
        await task.wait_result(check_interval=0.005, timeout=60)
    return rate(order.count - 1, time.perf_counter() - start_s, names(order.queue))


def _run(operation: Any) -> Any:
    return lambda order: uvloop.run(operation(order))


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    serve(
        {
            "publish": _run(publish),
            "drain": _run(drain),
            "work": _run(work),
            "results": _run(results),
        }
    )
