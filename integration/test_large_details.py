"""What an attempt leaves behind reaches the next one through RabbitMQ, or is left out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta

import pytest

from integration.journey import PATIENCE_S
from tq_broker import activity, workflow
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.common import RetryPolicy
from tq_broker.converter import DataConverter, ZlibCodec
from tq_broker.exceptions import ApplicationError
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker


@activity.defn(
    start_to_close_timeout=timedelta(seconds=60),
    heartbeat_timeout=timedelta(seconds=30),
    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=3),
)
async def remember(size: int) -> int:
    """Fails once, and then tells how much of ``size`` bytes of noise it has got back."""
    info = activity.info()
    if info.attempt > 1:
        return sum(map(len, info.heartbeat_details))
    activity.heartbeat(random.Random(1).randbytes(size // 2).hex())
    raise ApplicationError("not yet")


@workflow.defn
class Remember:
    @workflow.run
    async def run(self, size: int) -> int:
        return await workflow.execute_activity(remember, size)


@pytest.fixture
def client(broker_url: str, namespace: str) -> Iterator[BlockingClient]:
    converter = DataConverter(codecs=[ZlibCodec()])
    system = EmbeddedSystem(
        SystemClock(), broker_url, namespace=namespace, data_converter=converter
    )
    system.start()
    client = BlockingClient(system.core)
    with Worker(client, task_queue="q", workflows=[Remember], activities=[remember]):
        yield client
    system.close()


@pytest.mark.parametrize(("size", "left"), [(80_000, 80_000), (300_000, 0)])
def test_sealed_details_that_no_header_can_hold_cost_nothing_else(
    client: BlockingClient, size: int, left: int
) -> None:
    """Noise in hexadecimal digits is half as long when it is compressed."""
    handle = client.start_workflow(Remember.run, size, id="w", task_queue="q")
    assert handle.result(timeout=PATIENCE_S) == left
