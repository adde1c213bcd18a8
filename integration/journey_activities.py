"""Activities of the journeys, and the program of a worker that serves them.

``python -m integration.journey_activities '{...}'`` is that program: see `Program`. It says
``ready`` on its standard output, and ends in order on SIGTERM. What the activities do they write
into the ledger that the environment names.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from integration.ledger import Ledger
from tq_broker import activity
from tq_broker.cli.signals import Events
from tq_broker.client import BlockingClient
from tq_broker.client.core import ClientCore
from tq_broker.clock import SystemClock
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import ApplicationError, CancelledError
from tq_broker.model.names import Names
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.connection import Connection
from tq_broker.worker import Worker

LEDGER = "TQ_BROKER_JOURNEY_LEDGER"
MINUTE = timedelta(minutes=1)

defn = functools.partial(activity.defn, start_to_close_timeout=MINUTE)


@functools.cache
def ledger() -> Ledger:
    """The ledger of this process."""
    return Ledger(os.environ[LEDGER])


def note(word: str, key: str, text: str = "") -> None:
    """Write what the running attempt has come to."""
    info = activity.info()
    ledger().write(word, key, attempt=info.attempt, worker=info.worker_id, note=text)


# --- under load -----------------------------------------------------------------------------------


@defn()
def work_in_thread(key: str, seconds: float) -> str:
    note("start", key)
    time.sleep(seconds)
    note("effect", key)
    return key


@defn()
async def work_on_loop(key: str, seconds: float) -> str:
    note("start", key)
    await asyncio.sleep(seconds)
    note("effect", key)
    return key


@defn(executor="process")
def work_in_process(key: str, seconds: float) -> str:
    note("start", key)
    time.sleep(seconds)
    note("effect", key)
    return key


@defn()
async def linger_once(key: str, seconds: float) -> int:
    """Its first attempt takes its time."""
    note("start", key)
    if activity.info().attempt == 1:
        await asyncio.sleep(seconds)
    note("effect", key)
    return activity.info().attempt


@defn()
def die_after_effect(key: str) -> str:
    """The worst moment: the first attempt takes its process with it, its work done, not told."""
    note("start", key)
    note("effect", key)
    if activity.info().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


# --- one by one -----------------------------------------------------------------------------------


@defn()
async def tell() -> dict[str, Any]:
    info = activity.info()
    return {
        "host": info.host,
        "worker": info.worker_id,
        "attempt": info.attempt,
        "pid": os.getpid(),
    }


@defn()
def fail_until(key: str, attempt: int) -> int:
    note("start", key)
    if activity.info().attempt < attempt:
        raise ApplicationError("not yet", type="NotYet")
    return activity.info().attempt


@defn()
async def climb(key: str, goal: int, step_s: float) -> list[int]:
    """Counts to ``goal``, from where the attempt before had come; returns where it began."""
    details = activity.info().heartbeat_details
    first = details[0] if details else 0
    note("start", key, str(first))
    for step in range(first + 1, goal + 1):
        activity.heartbeat(step)
        await asyncio.sleep(step_s)
    return [activity.info().attempt, first]


@defn()
async def hold_on_loop(key: str) -> None:
    note("start", key)
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        note("effect", key, "cancelled")
        raise


@defn()
def hold_in_thread(key: str) -> None:
    note("start", key)
    try:
        while True:
            time.sleep(0.01)
    except CancelledError:
        note("effect", key, "cancelled")
        raise


@defn(executor="process")
def hold_in_process(key: str) -> None:
    note("start", key)
    try:
        while True:
            time.sleep(0.01)
    except CancelledError:
        note("effect", key, "cancelled")
        raise


@defn(executor="process")
def stuck_in_process(key: str) -> None:
    """Heeds nothing: one long call that holds the interpreter."""
    note("start", key, str(os.getpid()))
    sum(range(10**12))


@defn()
async def leave_open(key: str) -> Any:
    """Somebody else completes it, by the token in the ledger."""
    note("start", key, activity.info().task_token.decode())
    activity.raise_complete_async()


@defn(dynamic=True)
async def anything(args: list[activity.RawValue]) -> str:
    return f"{activity.info().activity_type}({', '.join(str(arg.decode()) for arg in args)})"


class Shop:
    """Its method and its instances are activities."""

    def __init__(self, name: str) -> None:
        self.name = name

    @defn()
    def sell(self, item: str) -> str:
        return f"{self.name} sells {item}"


@defn(name="close-shop")
class CloseShop:
    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self) -> str:
        return f"{self.name} is closed"


ALL = [
    work_in_thread,
    work_on_loop,
    work_in_process,
    linger_once,
    die_after_effect,
    tell,
    fail_until,
    climb,
    hold_on_loop,
    hold_in_thread,
    hold_in_process,
    stuck_in_process,
    leave_open,
    anything,
    Shop("corner").sell,
    CloseShop("corner"),
]


# --- the program ----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Program:
    """What the worker's program is told.

    ``options`` are `WorkerOptions`, their durations as seconds (floats); ``activities`` are the
    names of the only ones to serve, if any are given.
    """

    url: str
    namespace: str
    task_queues: list[str]
    activities: list[str] = field(default_factory=list)
    heartbeat_s: float = 10.0
    options: dict[str, Any] = field(default_factory=dict)


def client_with(url: str, namespace: str, heartbeat_s: float) -> BlockingClient:
    """A client that misses a dead peer after another time than usual."""
    clock = SystemClock()
    broker = AmqpBroker(url, clock, heartbeat_s=heartbeat_s)
    return BlockingClient(
        ClientCore(Connection(broker, Names(namespace), clock, DEFAULT, f"{os.getpid()}@journey"))
    )


def main() -> None:
    program = Program(**json.loads(sys.argv[1]))
    logging.basicConfig(
        level="INFO", format="%(asctime)s %(process)d %(threadName)s %(name)s %(message)s"
    )
    options = {
        name: timedelta(seconds=value) if isinstance(value, float) else value
        for name, value in program.options.items()
    }
    events = Events()
    events.listen([signal.SIGTERM])
    with client_with(program.url, program.namespace, program.heartbeat_s) as client:
        names = program.activities
        served = [one for one in ALL if not names or getattr(one, "__name__", "") in names]
        with Worker(
            client, task_queues=program.task_queues, activities=served, **options
        ) as worker:
            print("ready", worker.worker_id, flush=True)
            events.next()


if __name__ == "__main__":
    main()
