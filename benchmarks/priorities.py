"""Priorities: whether tasks begin in their order, and what that costs.

``python -m benchmarks.priorities`` measures on one broker: a backlog of all priorities in turn,
which a worker with few slots then works off. Counted are the *inversions*: starts of a task right
after one with a worse priority. And with a backlog of the last priority, the tasks that begin
before one of the first that comes after them. The same backlog without priorities gives the rate to
compare with.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import signal
import threading
import time
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


@click.command()
@click.option("--count", default=10_000, show_default=True, help="Tasks that wait.")
@click.option("--slots", default=10, show_default=True, help="Slots of the worker.")
@click.option("--broker", metavar="URL", help="A broker that runs already. Default: a private one.")
def main(*, count: int, slots: int, broker: str | None) -> None:
    """Measure whether tasks begin in the order of their priorities, and what that costs."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with servers.started(broker) as running:
        _, plain = work_off(running.url, count, slots, prioritized=False)
        inversions, ordered = work_off(running.url, count, slots, prioritized=True)
        before = passed(running.url, count, slots)
    click.echo(f"inversions among {count} starts: {inversions}")
    click.echo(f"tasks of priority 5 that begin before a later one of priority 1: {before}")
    click.echo(f"tasks per second: {plain:.0f} without priorities, {ordered:.0f} with")


if __name__ == "__main__":
    main()
