"""Workflows of tq_broker: a history process, a worker process and a client.

The first two do what ``tq-broker history`` and ``tq-broker worker`` do, also with the garbage
collector. Variants, separated by commas. The first is the number of activities of a workflow, in
sequence, or ``signal``; ``sqlite`` is another store than PostgreSQL, ``uncached`` a worker without
cache. Every measurement has a namespace of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from datetime import timedelta
from itertools import count

from benchmarks.order import READY, Order, Sample, say, serve
from benchmarks.tally import latencies, rate
from tq_broker import activity, workflow
from tq_broker.cli import garbage
from tq_broker.client import BlockingClient, Client
from tq_broker.history.service import HistoryService
from tq_broker.stores.opening import open_store
from tq_broker.worker import Worker

OPEN_AT_A_TIME = 500
"""A worker's cache has room for 1000."""

EVENTS_PER_ACTIVITY = 6
WAITING_EVENTS = 5
"""Of a run that has set its timer and waits."""

WITHIN = timedelta(seconds=60)
TIMEOUT_S = 60.0


@activity.defn(name="echo", start_to_close_timeout=WITHIN)
async def echo(n: int) -> int:
    return n


@workflow.defn(name="steps")
class Steps:
    """Some activities, one after the other."""

    @workflow.run
    async def run(self, n: int, steps: int) -> int:
        for _ in range(steps):
            n = await workflow.execute_activity(echo, n)
        return n


@workflow.defn(name="listening")
class Listening:
    """Waits for ever; `reached` ends when a signal has had its effect."""

    def __init__(self) -> None:
        self.seen = -1

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.signal
    def put(self, n: int) -> None:
        self.seen = n

    @workflow.update
    async def reached(self, n: int) -> None:
        await workflow.wait_condition(lambda: self.seen >= n)


@workflow.defn(name="waiting")
class Waiting:
    """Waits for a day, or for a signal that nobody sends."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False, timeout=timedelta(days=1))


def namespace(order: Order) -> str:
    return f"bench-{order.queue}"


def history(order: Order) -> Sample:
    """A history process; it says when it is ready."""
    with tempfile.TemporaryDirectory() as directory:
        sqlite = f"sqlite:///{directory}/history.db"
        url = sqlite if "sqlite" in order.variant else order.database_url
        store = open_store(url, namespace(order), migrate=True)
        client = BlockingClient.connect(order.url, namespace=namespace(order))
        garbage.settle()
        with HistoryService(client, store):
            say(READY)
            threading.Event().wait()
    raise AssertionError("a service ends only with its process")


def work(order: Order) -> Sample:
    """The worker process; it says when it is ready."""
    client = BlockingClient.connect(order.url, namespace=namespace(order))
    cache = 0 if "uncached" in order.variant else 1000
    worker = Worker(
        client,
        task_queue=order.queue,
        workflows=[Steps, Listening, Waiting],
        activities=[echo],
        max_cached_workflows=cache,
    )
    garbage.settle()
    with worker:
        say(READY)
        threading.Event().wait()
    raise AssertionError("a worker ends only with its process")


def workflows(order: Order) -> Sample:
    """Start all, read all results."""
    return asyncio.run(_workflows(order))


async def _workflows(order: Order) -> Sample:
    client = await Client.connect(order.url, namespace=namespace(order), timeout=TIMEOUT_S)
    steps = int(order.variant.split(",")[0])
    places = asyncio.Semaphore(OPEN_AT_A_TIME)

    async def one(number: int) -> None:
        async with places:
            done = await client.execute_workflow(
                Steps.run, args=[number, steps], id=f"w{number}", task_queue=order.queue
            )
        assert done == number

    await one(-1)
    start_s = time.perf_counter()
    await asyncio.gather(*map(one, range(order.count)))
    return rate(order.count, time.perf_counter() - start_s)


def latency(order: Order) -> Sample:
    with BlockingClient.connect(order.url, namespace=namespace(order), timeout=TIMEOUT_S) as client:
        numbers = count()

        def run_one(_: int) -> None:
            number = next(numbers)
            client.execute_workflow(
                Steps.run, args=[number, 1], id=f"w{number}", task_queue=order.queue
            )

        if order.variant != "signal":
            return latencies(run_one, order.count)
        handle = client.start_workflow(Listening.run, id="listening", task_queue=order.queue)

        def signal_one(_: int) -> None:
            number = next(numbers)
            handle.signal(Listening.put, number)
            handle.execute_update(Listening.reached, number)

        return latencies(signal_one, order.count)


def long_run(order: Order) -> Sample:
    """One run with ``count`` events."""
    steps = order.count // EVENTS_PER_ACTIVITY
    with BlockingClient.connect(order.url, namespace=namespace(order), timeout=TIMEOUT_S) as client:

        def run(number: int, steps: int) -> float:
            start_s = time.perf_counter()
            client.execute_workflow(
                Steps.run, args=[0, steps], id=f"long{number}", task_queue=order.queue
            )
            return time.perf_counter() - start_s

        run(0, 10)
        span_s = run(1, steps)
    figures = {"us_per_event": span_s / (steps * EVENTS_PER_ACTIVITY) * 1e6}
    return Sample(figures=figures)


def open_runs(order: Order) -> Sample:
    """``count`` runs that wait: the memory of the history process, and how soon a new one serves.

    It has its history and worker in processes of its own, to end and start them.
    """
    from benchmarks.inspection import peak_mib, resident_mib
    from benchmarks.process import PeerProcess

    limit_s = 3600.0
    with PeerProcess("tq_workflows", "history", order, timeout_s=limit_s) as service:
        service.wait_word(READY)
        before_mib = resident_mib(service.pid)
        with PeerProcess("tq_workflows", "work", order, timeout_s=limit_s) as worker:
            worker.wait_word(READY)
            started_s = asyncio.run(_open(order))
        full_mib, most_mib = resident_mib(service.pid), peak_mib(service.pid)
    start_s = time.perf_counter()
    with (
        PeerProcess("tq_workflows", "history", order, timeout_s=limit_s) as service,
        BlockingClient.connect(order.url, namespace=namespace(order), timeout=TIMEOUT_S) as client,
    ):
        service.wait_word(READY)
        for number in range(0, order.count, max(1, order.count // 50)):
            client.get_workflow_handle(f"open{number}").describe()
        again_s = time.perf_counter() - start_s
        again_mib = resident_mib(service.pid)
    return Sample(
        figures={
            "per_s": order.count / started_s,
            "history_mib_before": before_mib,
            "history_mib": full_mib,
            "history_mib_at_most": most_mib,
            "history_mib_after_restart": again_mib,
            "restart_s": again_s,
        }
    )


async def _open(order: Order) -> float:
    client = await Client.connect(order.url, namespace=namespace(order), timeout=TIMEOUT_S)
    places = asyncio.Semaphore(OPEN_AT_A_TIME)

    async def one(number: int) -> None:
        async with places:
            await client.start_workflow(Waiting.run, id=f"open{number}", task_queue=order.queue)

    start_s = time.perf_counter()
    await asyncio.gather(*map(one, range(order.count)))
    # Tasks are worked on in turn: where the last have set their timers, all have.
    for number in range(max(0, order.count - 100), order.count):
        handle = client.get_workflow_handle(f"open{number}")
        while (await handle.describe()).history_length < WAITING_EVENTS:
            await asyncio.sleep(0.2)
    await client.close()
    return time.perf_counter() - start_s


if __name__ == "__main__":
    serve(
        {
            "history": history,
            "work": work,
            "workflows": workflows,
            "workflow_latency": latency,
            "long_run": long_run,
            "open_runs": open_runs,
        }
    )
