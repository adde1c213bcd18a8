"""Journey: the inbox of a history shard keeps its messages through lost connections, and an inbox
that an earlier release has declared goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pika
import pytest

from integration.journey_workflows import ACTIVITIES, WORKFLOWS, Double
from integration.test_interop import pika_url
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.converter import DEFAULT
from tq_broker.model.names import Exchange, Names
from tq_broker.model.requests import SHARDS
from tq_broker.queues import topology
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker

LOSSES = 25
"""More than RabbitMQ's own limit."""


def channel_of(url: str) -> pika.adapters.blocking_connection.BlockingChannel:
    return pika.BlockingConnection(pika.URLParameters(pika_url(url))).channel()


def test_a_message_outlives_many_lost_connections(broker_url: str, namespace: str) -> None:
    names = Names(namespace)
    inbox = names.history(0)
    with BlockingClient.connect(broker_url, namespace=namespace) as client:
        soon = client.connection.clock.monotonic() + 60
        plan = topology.namespace(names) + topology.history_shard(names, inbox)
        client.connection.broker.apply(plan, soon)
    channel = channel_of(broker_url)
    channel.confirm_delivery()
    channel.basic_publish(names.exchange(Exchange.HISTORY), inbox.key, b"?", mandatory=True)
    channel.connection.close()
    for _ in range(LOSSES + 1):
        channel = channel_of(broker_url)
        _, _, body = next(channel.consume(str(inbox), inactivity_timeout=30))
        assert body == b"?", "it was parked"
        channel.connection.close()


def test_inboxes_of_an_earlier_release_are_used_as_they_are(
    broker_url: str, namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = Names(namespace)
    channel = channel_of(broker_url)
    for shard in range(SHARDS):
        channel.queue_declare(
            str(names.history(shard)),
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-dead-letter-exchange": names.exchange(Exchange.PARKED),
                "x-delivery-limit": 20,
                "x-single-active-consumer": True,
            },
        )
    channel.connection.close()
    store = f"sqlite:///{tmp_path / 'history.sqlite'}"
    system = EmbeddedSystem(
        SystemClock(), broker_url, store, namespace=namespace, data_converter=DEFAULT
    )
    with caplog.at_level(logging.WARNING):
        system.start()
        client = BlockingClient(system.core)
        with Worker(client, task_queue="q", workflows=WORKFLOWS, activities=ACTIVITIES):
            for number in range(8):
                wanted = {"id": f"w{number}", "task_queue": "q"}
                assert client.execute_workflow(Double.run, number, **wanted) == 2 * number
        system.close()
    warnings = [one for one in caplog.messages if "exists with other arguments" in one]
    assert 0 < len(warnings) <= 2 * SHARDS  # of each inbox, each connection once at the most
