"""tq_broker itself, through its public interface.

Variants, separated by commas: ``classic`` for classic instead of quorum queues, ``sync`` for a
plain function instead of a coroutine. All orders share one namespace and have a task queue each, so
that a run leaves only what one namespace keeps.

Beside the operations of every peer it has two for its own rows, which stop between phases so that
the parent process can look at the broker: ``queues`` and ``many``. Its workflows are in
`benchmarks.peers.tq_workflows`.
"""

# mypy: disable-error-code="no-untyped-call"
# (Kombu has no type hints.)

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from amqp.exceptions import NotFound
from kombu.connection import Connection

from benchmarks.order import FILLED, Order, Sample, pause, say, serve
from benchmarks.tally import Tally, latencies, rate
from tq_broker import activity
from tq_broker.cli import garbage
from tq_broker.client import BlockingClient
from tq_broker.model.names import Names
from tq_broker.queues.acks import AckLedger
from tq_broker.worker import Worker

NAMESPACE = "bench"
CONCURRENCY = 100
RESULT_TIMEOUT_S = 60.0
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
    garbage.settle()  # as `tq-broker worker` does
    tally = Tally(order.count)
    tally.watch_acks(AckLedger, "acked")
    with connected(order) as client, make_worker(client, order, make_noop(order, tally)):
        tally.wait()
    return tally.sample(queue_of(order.queue))


def work(order: Order) -> Sample:
    garbage.settle()
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
            "queues": queues,
            "many": many,
        }
    )
