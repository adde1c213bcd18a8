"""Journey: an operator purges or deletes a task queue, and the workflows go on all the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.journey import wait_until
from integration.journey_workflows import ACTIVITIES, WORKFLOWS, Double
from integration.test_shard_inbox import channel_of
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.converter import DEFAULT
from tq_broker.history import looks
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker


@pytest.fixture
def client(
    broker_url: str, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BlockingClient]:
    """Of a history service that does not wait for 40 minutes before it looks."""
    monkeypatch.setattr(looks, "FIRST_MS", 1_000)
    monkeypatch.setattr(looks, "PAUSE_MAX_MS", 1_000)
    monkeypatch.setattr(looks, "GRAIN_MS", 100)
    store = f"sqlite:///{tmp_path / 'history.sqlite'}"
    system = EmbeddedSystem(
        SystemClock(), broker_url, store, namespace=namespace, data_converter=DEFAULT
    )
    with system:
        yield BlockingClient(system.core)


@pytest.mark.parametrize("is_deleted", [False, True], ids=["purged", "deleted"])
@pytest.mark.parametrize("side", ["workflow", "activity"])
def test_what_was_in_a_queue_comes_again(
    client: BlockingClient, broker_url: str, side: str, is_deleted: bool
) -> None:
    names = client.connection.names
    queue = names.workflow("q") if side == "workflow" else names.activity("q")
    stats = client.connection.broker.stats

    def depth() -> int:
        found = stats(str(queue), client.connection.clock.monotonic() + 60)
        return 0 if found is None else found.ready

    def worker(**served: object) -> Worker:
        return Worker(client, task_queue="q", reclaim_after=None, **served)  # type: ignore[arg-type]

    handle = client.start_workflow(Double.run, 4, id="w", task_queue="q")
    if side == "activity":
        with worker(workflows=WORKFLOWS):
            wait_until(depth, "the activity's task is there")
    wait_until(depth, "the task is there")
    channel = channel_of(broker_url)
    if is_deleted:
        channel.queue_delete(str(queue))
    else:
        channel.queue_purge(str(queue))
    channel.connection.close()
    wait_until(depth, "the task is there again")
    with worker(workflows=WORKFLOWS, activities=ACTIVITIES):
        assert handle.result(timeout=60) == 8
