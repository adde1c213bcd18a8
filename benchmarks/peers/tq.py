"""tq_broker itself, through its public interface.

Variants, separated by commas: ``classic`` for classic instead of quorum queues, ``sync`` for a
plain function instead of a coroutine. All orders share one namespace and have a task queue each, so
that a run leaves only what one namespace keeps.

Beside the operations of every peer it has two for its own rows, which stop between phases so that
the parent process can look at the broker: ``queues`` and ``many``. For workflows the variant says
how many activities one has, in sequence, and ``sqlite`` which store; ``history``,
``workflow_work`` and the client are a process each.
"""

# mypy: disable-error-code="no-untyped-call"
# (Kombu has no type hints.)

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from amqp.exceptions import NotFound
from kombu.connection import Connection

from benchmarks.order import FILLED, READY, Order, Sample, pause, say, serve
from benchmarks.tally import Tally, latencies, rate
from tq_broker import activity, workflow
from tq_broker.client import BlockingClient, Client
from tq_broker.history.service import HistoryService
from tq_broker.model.names import Names
from tq_broker.queues.acks import AckLedger
from tq_broker.stores.opening import open_store
from tq_broker.worker import Worker

NAMESPACE = "bench"
CONCURRENCY = 100
RESULT_TIMEOUT_S = 60.0
OPEN_WORKFLOWS = 500
"""At a time; a worker's cache has room for 1000."""
QUEUES_PER_WORKER = 500
RECLAIM_AFTER = timedelta(seconds=1)
"""The least there is: the row shows what reclaiming gives back, not how patient it is."""


@contextmanager
def connected(order: Order) -> Iterator[BlockingClient]:
    """A client."""
    queue_type = "classic" if "classic" in order.variant else "quorum"
    client = BlockingClient.connect(order.url, namespace=NAMESPACE, queue_type=queue_type)
    try:
        yield client
    finally:
        client.close()


def make_noop(order: Order, tally: Tally | None = None) -> Any:
    """The activity."""

    def noop(n: int) -> None:
        if tally is not None:
            tally.executed()

    async def anoop(n: int) -> None:
        if tally is not None:
            tally.executed()

    function: Any = noop if "sync" in order.variant else anoop
    return activity.defn(name="noop", start_to_close_timeout=timedelta(seconds=60))(function)


def make_worker(client: BlockingClient, order: Order, noop: Any) -> Worker:
    """The worker of all rows with one task queue."""
    return Worker(
        client,
        task_queue=order.queue,
        activities=[noop],
        max_concurrent_activities=CONCURRENCY,
    )


@activity.defn(name="echo")
async def echo(n: int) -> int:
    """The activity of the workflows."""
    return n


@workflow.defn(name="sequence")
class Steps:
    """Some activities, one after the other."""

    @workflow.run
    async def run(self, n: int, count: int) -> int:
        for _ in range(count):
            n = await workflow.execute_activity(
                echo, n, start_to_close_timeout=timedelta(seconds=60)
            )
        return n


@workflow.defn(name="echoing")
class Echoing:
    """Answers each signal by an update's end: the wait ends when the signal has had its effect."""

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


def history(order: Order) -> Sample:
    """The history process."""
    namespace = f"{NAMESPACE}-{order.queue}"
    with tempfile.TemporaryDirectory() as directory:
        url = order.database_url
        if "sqlite" in order.variant:
            url = f"sqlite:///{directory}/history.db"
        store = open_store(url, namespace, migrate=True)
        client = BlockingClient.connect(order.url, namespace=namespace)
        with HistoryService(client, store):
            say(READY)
            threading.Event().wait()
    raise AssertionError("a service ends only with its process")


def workflow_work(order: Order) -> Sample:
    """The worker process."""
    client = BlockingClient.connect(order.url, namespace=f"{NAMESPACE}-{order.queue}")
    worker = Worker(
        client, task_queue=order.queue, workflows=[Steps, Echoing], activities=[echo]
    )
    with worker:
        say(READY)
        threading.Event().wait()
    raise AssertionError("a worker ends only with its process")


def workflows(order: Order) -> Sample:
    """Start all, read all results."""
    return asyncio.run(_workflows(order))


async def _workflows(order: Order) -> Sample:
    client = await Client.connect(order.url, namespace=f"{NAMESPACE}-{order.queue}", timeout=60)
    steps = int(order.variant.split(",")[0])

    places = asyncio.Semaphore(OPEN_WORKFLOWS)

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


def workflow_latency(order: Order) -> Sample:
    with BlockingClient.connect(
        order.url, namespace=f"{NAMESPACE}-{order.queue}", timeout=60
    ) as client:
        if order.variant == "signal":
            return _signal_latency(client, order)

        def ask(number: int) -> None:
            client.execute_workflow(
                Steps.run, args=[number, 1], id=f"w{time.time_ns()}", task_queue=order.queue
            )

        return latencies(ask, order.count)


def _signal_latency(client: BlockingClient, order: Order) -> Sample:
    """From a signal to the end of an update that waits for its effect, sent before it."""
    handle = client.start_workflow(Echoing.run, id="echoing", task_queue=order.queue)
    numbers = iter(range(10**9))

    def ask(_: int) -> None:
        number = next(numbers)
        handle.signal(Echoing.put, number)
        handle.execute_update(Echoing.reached, number)

    return latencies(ask, order.count)


def queue_of(task_queue: str) -> str:
    """RabbitMQ's queue behind *task_queue*."""
    return str(Names(NAMESPACE).activity(task_queue))


def calls(count: int) -> list[tuple[int]]:
    return [(number,) for number in range(count)]


def publish(order: Order) -> Sample:
    noop = make_noop(order)
    with connected(order) as client:
        # Connects and declares.
        client.start_activity(noop, 0, task_queue=order.queue, wait_result=False)
        start_s = time.perf_counter()
        client.start_activities(
            noop, calls(order.count - 1), task_queue=order.queue, wait_result=False
        )
        span_s = time.perf_counter() - start_s
    return rate(order.count - 1, span_s, [queue_of(order.queue)])


def drain(order: Order) -> Sample:
    tally = Tally(order.count)
    tally.watch_acks(AckLedger, "acked")
    with connected(order) as client, make_worker(client, order, make_noop(order, tally)):
        tally.wait()
    return tally.sample(queue_of(order.queue))


def work(order: Order) -> Sample:
    with connected(order) as client, make_worker(client, order, make_noop(order)):
        threading.Event().wait()
    raise AssertionError("a worker ends only with its process")


def results(order: Order) -> Sample:
    noop = make_noop(order)
    with connected(order) as client:
        handles = client.start_activities(noop, calls(order.count), task_queue=order.queue)
        say(FILLED)
        handles[0].result(RESULT_TIMEOUT_S)
        start_s = time.perf_counter()
        for handle in handles[1:]:
            handle.result(RESULT_TIMEOUT_S)
        span_s = time.perf_counter() - start_s
    return rate(order.count - 1, span_s, [queue_of(order.queue)])


def latency(order: Order) -> Sample:
    noop = make_noop(order)
    with connected(order) as client:

        def ask(number: int) -> None:
            client.execute_activity(noop, number, task_queue=order.queue)

        return latencies(ask, order.count, [queue_of(order.queue)])


def queues(order: Order) -> Sample:
    """Create ``count`` task queues by using them, serve each once, have them reclaimed."""
    noop = make_noop(order)
    names = [f"{order.queue}-{number}" for number in range(order.count)]
    with connected(order) as client:
        pause("before")
        start_s = time.perf_counter()
        handles = [client.start_activity(noop, 0, task_queue=name) for name in names]
        created_s = time.perf_counter() - start_s
        for first in range(0, order.count, QUEUES_PER_WORKER):
            last = first + QUEUES_PER_WORKER
            _serve_once(client, noop, names[first:last], handles[first:last])
        pause("peak")
        start_s = time.perf_counter()
        with Worker(client, task_queue=order.queue, activities=[noop], reclaim_after=RECLAIM_AFTER):
            _wait_gone(order, names)
        reclaimed_s = time.perf_counter() - start_s
        pause("after")
    figures = {
        "created_per_s": order.count / created_s,
        "reclaimed_per_s": order.count / reclaimed_s,
    }
    return Sample(figures=figures, queues=(queue_of(order.queue),))


def many(order: Order) -> Sample:
    """Serve ``count`` task queues with one worker."""
    noop = make_noop(order)
    names = [f"{order.queue}-{number}" for number in range(order.count)]
    with connected(order) as client:
        pause("before")
        handles = [client.start_activity(noop, 0, task_queue=name) for name in names]
        start_s = time.perf_counter()
        with Worker(client, task_queues=names, activities=[noop]):
            _wait_results(handles)
            served_s = time.perf_counter() - start_s
            pause("peak")
        pause("after")
    physical = tuple(queue_of(name) for name in names)
    return Sample(figures={"all_served_s": served_s}, queues=physical)


def _serve_once(
    client: BlockingClient, noop: Any, names: Sequence[str], handles: Sequence[Any]
) -> None:
    # It must not reclaim: what is there at the peak is to be seen.
    with Worker(client, task_queues=names, activities=[noop], reclaim_after=None):
        _wait_results(handles)


def _wait_results(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.result(RESULT_TIMEOUT_S)


def _wait_gone(order: Order, names: Sequence[str]) -> None:
    """Wait until no queue of *names* is left; the parent process ends us if that is never."""
    with Connection(order.url) as connection:
        for name in names:
            while _exists(connection, queue_of(name)):
                time.sleep(0.25)


def _exists(connection: Any, queue: str) -> bool:
    # A missing queue costs the channel: one channel per question.
    with suppress(NotFound), connection.channel() as channel:
        channel.queue_declare(queue, passive=True)
        return True
    return False


if __name__ == "__main__":
    serve(
        {
            "publish": publish,
            "drain": drain,
            "work": work,
            "results": results,
            "latency": latency,
            "history": history,
            "workflow_work": workflow_work,
            "workflows": workflows,
            "workflow_latency": workflow_latency,
            "queues": queues,
            "many": many,
        }
    )
