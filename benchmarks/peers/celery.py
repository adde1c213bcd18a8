"""Celery: confirms through ``broker_transport_options``, late acks, the ``rpc://`` result backend.

Variants of the worker are its pools: ``solo``, ``threads``, ``prefork``.
"""

# mypy: disable-error-code="no-untyped-call"
# (Kombu has no type hints.)

from __future__ import annotations

import os
import threading
import time
from typing import Any

import amqp
import celery
from kombu.entity import Queue

from benchmarks.order import FILLED, Order, Sample, say, serve, tell
from benchmarks.tally import Tally, latencies, rate

CONCURRENCY = {"solo": 1, "threads": 8, "prefork": 2}
PREFETCH = 512

LATE_ACKS_S = 15.0
"""Without traffic, the solo pool sends its last acknowledgements only some 10 s later.

That wait is no work, so that it is not counted: its span ends with the last task executed.
"""


def application(order: Order, *, results: bool = False) -> Any:
    """The Celery application; the same for clients and workers."""
    app = celery.Celery("bench", broker=order.url, backend="rpc://" if results else None)
    app.conf.update(
        broker_transport_options={"confirm_publish": True},
        broker_connection_retry_on_startup=True,
        task_default_queue=order.queue,
        task_queues=[Queue(order.queue, durable=True)],
        task_acks_late=True,
        task_ignore_result=not results,
        worker_prefetch_multiplier=PREFETCH // CONCURRENCY.get(order.variant, 1),
        worker_disable_rate_limits=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        result_persistent=False,
    )
    return app


def declare_noop(app: Any, tally: Tally | None = None) -> Any:
    """The task."""

    def noop(n: int) -> None:
        if tally is not None:
            tally.executed()

    return app.task(noop, name="noop")


def publish(order: Order) -> Sample:
    app = application(order)
    noop = declare_noop(app)
    with app.producer_pool.acquire(block=True) as producer:
        noop.apply_async((0,), producer=producer)  # Connects and declares.
        start_s = time.perf_counter()
        for number in range(order.count - 1):
            noop.apply_async((number,), producer=producer)
        span_s = time.perf_counter() - start_s
    return rate(order.count - 1, span_s, [order.queue])


def drain(order: Order) -> Sample:
    app = application(order)
    in_children, is_late = order.variant == "prefork", order.variant == "solo"
    tally = Tally(order.count, quiet_s=LATE_ACKS_S) if is_late else Tally(order.count)
    declare_noop(app, None if in_children else tally)
    if not is_late:
        tally.watch_acks(amqp.Channel, "basic_ack", as_executed=in_children)
    # The worker wants the main thread; the waiting thread ends the process.
    worker = make_worker(app, order.variant)
    threading.Thread(target=_end_when_over, args=(tally, worker, order.queue), daemon=True).start()
    worker.start()
    return tally.sample(order.queue)


def make_worker(app: Any, pool: str) -> Any:
    """A worker as ``celery worker -P POOL --without-gossip --without-mingle`` makes it."""
    # Not WorkController: only this class sets up the optimised tracing of tasks.
    return app.Worker(
        pool=pool,
        concurrency=CONCURRENCY[pool],
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel="ERROR",
        quiet=True,
    )


def work(order: Order) -> Sample:
    app = application(order, results=True)
    declare_noop(app)
    make_worker(app, order.variant).start()
    raise AssertionError("a worker ends only with its process")


def results(order: Order) -> Sample:
    app = application(order, results=True)
    noop = declare_noop(app)
    with app.producer_pool.acquire(block=True) as producer:
        sent = [noop.apply_async((number,), producer=producer) for number in range(order.count)]
    say(FILLED)
    sent[0].get(timeout=60)
    start_s = time.perf_counter()
    for result in sent[1:]:
        result.get(timeout=60)
    return rate(order.count - 1, time.perf_counter() - start_s, [order.queue])


def latency(order: Order) -> Sample:
    app = application(order, results=True)
    noop = declare_noop(app)
    return latencies(lambda n: noop.delay(n).get(timeout=30), order.count, [order.queue])


def _end_when_over(tally: Tally, worker: Any, queue: str) -> None:
    tally.wait()
    tell(tally.sample(queue))
    os._exit(0)


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
