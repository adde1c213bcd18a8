"""DBOS Transact: workflows of no-op steps through its own queue, in PostgreSQL.

The variant is the number of steps. The client enqueues from 16 threads, with which it is quickest.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dbos import DBOS, DBOSClient

from benchmarks.order import READY, Order, Sample, say, serve
from benchmarks.tally import latencies, rate

CLIENT_THREADS = 16
WORKFLOW = "steps"


def address(order: Order) -> str:
    """The database, as this library writes it."""
    return order.database_url.replace("postgresql+psycopg:", "postgresql:")


def work(order: Order) -> Sample:
    """The worker process; it says when it is ready."""
    DBOS(
        config={
            "name": "bench",
            "system_database_url": address(order),
            "log_level": "ERROR",
        }
    )
    count = int(order.variant)

    @DBOS.step(name="noop")
    def noop(n: int) -> int:
        return n

    @DBOS.workflow(name=WORKFLOW)
    def steps(n: int) -> int:
        for _ in range(count):
            n = noop(n)
        return n

    DBOS.launch()
    DBOS.register_queue(order.queue)
    say(READY)
    threading.Event().wait()
    raise AssertionError("a worker ends only with its process")


def enqueue(client: DBOSClient, order: Order, number: int) -> Any:
    return client.enqueue({"workflow_name": WORKFLOW, "queue_name": order.queue}, number)


def workflows(order: Order) -> Sample:
    """Start all, read all results."""
    client = DBOSClient(system_database_url=address(order))
    enqueue(client, order, 0).get_result()
    start_s = time.perf_counter()
    with ThreadPoolExecutor(CLIENT_THREADS) as pool:
        handles = list(pool.map(lambda n: enqueue(client, order, n), range(order.count)))
    for handle in handles:
        handle.get_result()
    return rate(order.count, time.perf_counter() - start_s)


def latency(order: Order) -> Sample:
    client = DBOSClient(system_database_url=address(order))
    return latencies(lambda number: enqueue(client, order, number).get_result(), order.count)


if __name__ == "__main__":
    serve({"work": work, "workflows": workflows, "workflow_latency": latency})
