"""Priorities: whether tasks begin in their order, and what that costs.

``python -m benchmarks.priorities`` measures on one broker: a backlog of all priorities in turn,
which a worker with few slots then works off. Counted are the *inversions*: starts of a task right
after one with a worse priority. And with a backlog of the last priority, the tasks that begin
before one of the first that comes after them. The same backlog without priorities gives the rate to
compare with.

And fair shares: the *fairness error* over a thousand starts of keys of several weights, which is
the largest part of all starts by which a key has more or less than its share; and with a backlog of
one key, the tasks that begin before the last of ten of another key that come after them.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import click

from benchmarks import servers
from tq_broker import activity
from tq_broker.client import BlockingClient
from tq_broker.worker import Worker

QUEUE = "ordered"
BATCH = 100
WEIGHTS = (1.0, 1.0, 3.0, 5.0)
PATIENCE_S = 300.0
OPTIONS = {
    "task_queue": QUEUE,
    "start_to_close_timeout": timedelta(minutes=5),
    "wait_result": False,
}


class Line:
    """Activities that say in which order they begin, and wait until the line is free."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.free = threading.Event()

    @activity.defn(name="note")
    async def note(self, key: int) -> None:
        self.begun.append(key)
        while not self.free.is_set():
            await asyncio.sleep(0.01)


@contextmanager
def served(url: str, slots: int) -> Iterator[tuple[BlockingClient, Line]]:
    """A worker whose slots are full, in a namespace of its own."""
    line = Line()
    with BlockingClient.connect(url, namespace=f"b{secrets.token_hex(4)}", timeout=60) as client:
        worker = Worker(
            client, task_queue=QUEUE, activities=[line.note], max_concurrent_activities=slots
        )
        with worker:
            client.start_activities("note", [(0,)] * slots, **OPTIONS)
            _wait(lambda: len(line.begun) == slots)
            line.begun.clear()
            yield client, line
            line.free.set()


def _wait(is_true: Callable[[], bool]) -> float:
    begun = time.monotonic()
    while not is_true():
        if time.monotonic() - begun > PATIENCE_S:
            raise click.ClickException(f"not within {PATIENCE_S:g} s")
        time.sleep(0.002)
    return time.monotonic() - begun


def work_off(url: str, count: int, slots: int, *, prioritized: bool) -> tuple[int, float]:
    """Inversions, and tasks begun per second, of a backlog of ``count``."""
    with served(url, slots) as (client, line):
        for number in range(count // BATCH):
            priority = number % 5 + 1
            options = OPTIONS | ({"priority": priority} if prioritized else {})
            client.start_activities("note", [(priority,)] * BATCH, **options)
        wanted = count // BATCH * BATCH
        time.sleep(1.0)  # until all that was put elsewhere at first is in order
        line.free.set()
        taken_s = _wait(lambda: len(line.begun) == wanted)
        inversions = sum(one > other for one, other in itertools.pairwise(line.begun))
        return inversions, wanted / taken_s


def passed(url: str, count: int, slots: int) -> int:
    """Tasks of the last priority that begin before one of the first that comes later."""
    with served(url, slots) as (client, line):
        for _ in range(count // BATCH):
            client.start_activities("note", [(5,)] * BATCH, priority=5, **OPTIONS)
        client.start_activity("note", 1, priority=1, **OPTIONS)
        line.free.set()
        _wait(lambda: 1 in line.begun)
        return line.begun.index(1)


def shared(url: str, count: int, slots: int) -> tuple[float, float]:
    """The fairness error over a tenth of a backlog of ``count``, and tasks begun per second."""
    total, starts = sum(WEIGHTS), count // 10
    with served(url, slots) as (client, line):
        for key, weight in enumerate(WEIGHTS, 1):
            for _ in range(count // len(WEIGHTS) // BATCH):
                client.start_activities(
                    "note",
                    [(key,)] * BATCH,
                    fairness_key=f"key {key}",
                    fairness_weight=weight,
                    **OPTIONS,
                )
        wanted = count // len(WEIGHTS) // BATCH * BATCH * len(WEIGHTS)
        _wait_seen(client)
        line.free.set()
        taken_s = _wait(lambda: len(line.begun) == wanted)
        begun = Counter(line.begun[:starts])
        shares = {key: weight / total for key, weight in enumerate(WEIGHTS, 1)}
        error = max(abs(begun[key] / starts - share) for key, share in shares.items())
        return error, wanted / taken_s


def not_flooded(url: str, count: int, slots: int) -> int:
    """Tasks that begin before the last of ten of a key, which come after ``count`` of another."""
    with served(url, slots) as (client, line):
        for _ in range(count // BATCH):
            client.start_activities("note", [(1,)] * BATCH, fairness_key="flood", **OPTIONS)
        client.start_activities("note", [(2,)] * 10, fairness_key="few", **OPTIONS)
        _wait_seen(client)
        line.free.set()
        _wait(lambda: line.begun.count(2) == 10)
        return max(n for n, key in enumerate(line.begun) if key == 2)


def _wait_seen(client: BlockingClient) -> None:
    """Until the dealer has seen all that was started."""
    core = client.core
    fair = str(core.names.fair(core.names.activity(QUEUE)))

    def is_seen() -> bool:
        stats = core.broker.stats(fair, core.deadline())
        return stats is not None and not stats.ready

    _wait(is_seen)
    time.sleep(1.0)  # until what it has seen is in order


@click.command()
@click.option("--count", default=10_000, show_default=True, help="Tasks that wait.")
@click.option("--slots", default=10, show_default=True, help="Slots of the worker.")
@click.option("--broker", metavar="URL", help="A broker that runs already. Default: a private one.")
def main(*, count: int, slots: int, broker: str | None) -> None:
    """Measure whether tasks begin in the order of priorities and shares, and what that costs."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with servers.started(broker) as running:
        _, plain = work_off(running.url, count, slots, prioritized=False)
        inversions, ordered = work_off(running.url, count, slots, prioritized=True)
        before = passed(running.url, count, slots)
        error, fair = shared(running.url, count, slots)
        flooded = not_flooded(running.url, count, slots)
    click.echo(f"inversions among {count} starts: {inversions}")
    click.echo(f"tasks of priority 5 that begin before a later one of priority 1: {before}")
    click.echo(f"fairness error over {count // 10} starts: {100 * error:.1f} %")
    click.echo(f"tasks that begin before the last of ten of another key: {flooded}")
    click.echo(
        f"tasks per second: {plain:.0f} without priorities, {ordered:.0f} with;"
        f" {fair:.0f} with fair shares"
    )


if __name__ == "__main__":
    main()
