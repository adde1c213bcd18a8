"""Fixtures: both faces of the client, and a hand that plays history."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.client.fake_history import SOON_S, FakeHistory
from tq_broker.client import BlockingClient, Client
from tq_broker.clock import SystemClock
from tq_broker.model.names import Names
from tq_broker.queues.memory import MemoryBroker, forget, server_for


@dataclass
class Side:
    """A kind of client, and the way to its answers."""

    kind: Any
    do: Callable[[Any], Any]
    url: str
    history: FakeHistory
    client: Any = None

    def all_of(self, iterator: Any) -> list[Any]:
        """What an iterator of either kind gives."""
        if hasattr(iterator, "__aiter__"):

            async def collect() -> list[Any]:
                return [one async for one in iterator]

            return self.do(collect())  # type: ignore[no-any-return]
        return list(iterator)


@pytest.fixture(params=[Client, BlockingClient], ids=["async", "blocking"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    """A connected client with a scripted history."""
    loop = asyncio.new_event_loop()

    def do(answer: Any) -> Any:
        return loop.run_until_complete(answer) if inspect.isawaitable(answer) else answer

    url = f"memory://workflows-{secrets.token_hex(4)}"
    clock = SystemClock()
    broker = MemoryBroker(server_for(url), clock)
    history = FakeHistory(broker, Names("default"), lambda: clock.monotonic() + SOON_S)
    side = Side(request.param, do, url, history)
    side.client = do(request.param.connect(url, identity="me"))
    yield side
    do(side.client.close())
    broker.close(clock.monotonic() + SOON_S)
    loop.close()
    forget(url)
