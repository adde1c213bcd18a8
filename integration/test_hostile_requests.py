"""Journey: a program that speaks plain AMQP sends history what no client of ours would."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pika
import pytest

from integration.journey import wait_until
from integration.journey_workflows import ACTIVITIES, WORKFLOWS, Double
from integration.test_interop import pika_url
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.converter import DEFAULT
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.model.requests import shard_of
from tq_broker.stores.opening import migrate_store
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker

START = {"type": "start", "workflow_type": "Double", "task_queue": "q"}
# Repeated characters would be compressed, and fit an index after all.
LONG = "".join(chr(0x4E00 + secrets.randbelow(0x5000)) for _ in range(999))
HOSTILE: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({**START, "workflow_id": "a\0b"}, {}),
    ({**START, "workflow_id": "h1", "workflow_type": "T\0"}, {}),
    ({**START, "workflow_id": "h2", "task_queue": "q\n"}, {}),
    ({**START, "workflow_id": "h3", "task_queue": "q" * 2000}, {}),
    ({**START, "workflow_id": LONG}, {}),
    ({**START, "workflow_id": "h4"}, {"message_id": "m\0"}),
    ({"type": "describe", "workflow_id": "w", "run_id": "\0"}, {}),
    ({"type": "list", "query": "id = 'a\0b'"}, {}),
    ({"type": "signal", "workflow_id": "w", "signal_name": "s"}, {"message_id": "\0"}),
    ({"type": "nonsense", "workflow_id": "w"}, {}),
]


class Stranger:
    """A pika program."""

    def __init__(self, url: str, names: Names) -> None:
        self._names = names
        self._connection = pika.BlockingConnection(pika.URLParameters(pika_url(url)))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def send(self, request: dict[str, Any], **properties: str) -> None:
        shard = shard_of(request.get("workflow_id", ""))
        known = {"message_id": secrets.token_hex(8), "type": "history-request"}
        self._channel.basic_publish(
            self._names.exchange(Exchange.HISTORY),
            self._names.history(shard).key,
            msgspec.msgpack.encode(request),
            pika.BasicProperties(headers={"tq-protocol": 1}, **(known | properties)),
            mandatory=True,
        )

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'history.sqlite'}"
    else:
        url = request.getfixturevalue("postgresql").url
    migrate_store(url)
    return url


@pytest.fixture
def client(broker_url: str, namespace: str, store: str) -> Iterator[BlockingClient]:
    """Of a system that runs."""
    system = EmbeddedSystem(
        SystemClock(), broker_url, store, namespace=namespace, data_converter=DEFAULT
    )
    system.start()
    client = BlockingClient(system.core)
    worker = Worker(client, task_queue="q", workflows=WORKFLOWS, activities=ACTIVITIES)
    worker.start()
    yield client
    worker.stop()
    system.close()


def test_what_strangers_send_harms_nobody(
    client: BlockingClient,
    broker_url: str,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = Names(namespace)
    stranger = Stranger(broker_url, names)
    with caplog.at_level(logging.WARNING):
        for request, properties in HOSTILE:
            stranger.send(request, **properties)
        for number in range(10):  # of all shards, in the same batches as far as may be
            done = client.execute_workflow(Double.run, number, id=f"good{number}", task_queue="q")
            assert done == 2 * number
        parked = str(names.queue(Kind.PARKED))
        soon = client.connection.clock.monotonic() + 60
        wait_until(
            lambda: client.connection.broker.stats(parked, soon).ready == 5,  # type: ignore[union-attr]
            "what nobody can answer is parked",
        )
    stranger.close()
    assert "internal error" not in caplog.text
    assert "Traceback" not in caplog.text
    assert client.count_workflows().count == 10
    client.start_workflow(
        Double.run, 1, id="later", task_queue="q", run_timeout=timedelta(seconds=60)
    ).result()
