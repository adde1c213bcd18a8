"""Throttle worker: a worker whose activities note when they began, in a file that a kill spares.

``python -m benchmarks.throttle_worker URL NAMESPACE TASK_QUEUE SLOTS FILE``
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tq_broker import activity
from tq_broker.client import BlockingClient
from tq_broker.exceptions import DownstreamBusy
from tq_broker.worker import Worker

TIMEOUT = timedelta(minutes=5)


def noting(path: str) -> list[Callable[..., Any]]:
    """Activities that write a line at their begin, and at their end if they take time."""
    # Unbuffered: what is written before a kill stays.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    @activity.defn(name="hit", start_to_close_timeout=TIMEOUT)
    async def hit() -> None:
        os.write(descriptor, b"%.6f\n" % time.time())

    @activity.defn(name="stay", start_to_close_timeout=TIMEOUT)
    def stay(seconds: float) -> None:
        os.write(descriptor, b"%.6f +\n" % time.time())
        time.sleep(seconds)
        os.write(descriptor, b"%.6f -\n" % time.time())

    @activity.defn(name="keyed", start_to_close_timeout=TIMEOUT)
    async def keyed(key: str) -> None:
        os.write(descriptor, b"%.6f %s\n" % (time.time(), key.encode()))

    @activity.defn(name="busy", start_to_close_timeout=TIMEOUT)
    async def busy(wait_s: float) -> None:
        """Whom it calls is busy for so long, the first time."""
        os.write(descriptor, b"%.6f\n" % time.time())
        if activity.info().attempt == 1:
            raise DownstreamBusy("busy", retry_after=timedelta(seconds=wait_s))

    return [hit, stay, keyed, busy]


def main(url: str, namespace: str, task_queue: str, slots: str, path: str) -> None:
    """Serve until killed."""
    with (
        BlockingClient.connect(url, namespace=namespace) as client,
        Worker(
            client,
            task_queue=task_queue,
            activities=noting(path),
            max_concurrent_activities=int(slots),
            reclaim_after=None,
        ),
    ):
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
