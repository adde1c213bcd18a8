"""A worker whose tasks begin in an order that can be read, and wait where they are until then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tq_broker import activity
from tq_broker.client import BlockingClient
from tq_broker.worker import Worker

SLOTS = 10
MANY = 10_000
FORGOTTEN: dict[str, Any] = {
    "task_queue": "q",
    "start_to_close_timeout": timedelta(minutes=5),
    "wait_result": False,
}
"""How its tasks are started: there are too many to wait for each."""


class Line:
    """Activities that say in which order they begin, and wait until the line is free."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.free = threading.Event()

    @activity.defn(name="note")
    async def note(self, key: Any) -> None:
        self.begun.append(key)
        while not self.free.is_set():
            await asyncio.sleep(0.01)


class Lined:
    """Tests with a client, and a worker of `SLOTS` slots that serves ``line``."""

    @pytest.fixture
    def client(self, url: str, namespace: str) -> Iterator[BlockingClient]:
        with BlockingClient.connect(url, namespace=namespace, timeout=60) as client:
            yield client

    @pytest.fixture
    def line(self, client: BlockingClient) -> Iterator[Line]:
        line = Line()
        options: dict[str, Any] = {"activities": [line.note], "max_concurrent_activities": SLOTS}
        with Worker(client, task_queue="q", **options):
            yield line
            line.free.set()
