from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.queues.amqp_server import PATIENCE_S, AmqpServer
from tq_broker.clock import SystemClock
from tq_broker.queues.amqp import AmqpBroker


@pytest.fixture
def server() -> Iterator[AmqpServer]:
    server = AmqpServer()
    yield server
    server.close()


@pytest.fixture
def clock() -> SystemClock:
    return SystemClock()


@pytest.fixture
def soon(clock: SystemClock) -> Callable[[], float]:
    return lambda: clock.monotonic() + PATIENCE_S


@pytest.fixture
def broker(server: AmqpServer, clock: SystemClock) -> Iterator[AmqpBroker]:
    broker = AmqpBroker(server.url, clock)
    yield broker
    broker.close(clock.monotonic() + 5)
