"""The demo's workers. They work in ``test_demo.py`` and in ``integration/test_demo.py``."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tq_broker.cli.demo_stage import EmbeddedStage, ProcessStage, Scene, stage_for
from tq_broker.exceptions import Unavailable
from tq_broker.queues.memory import forget


@pytest.fixture
def scene() -> Iterator[Scene]:
    url = f"memory://{secrets.token_hex(4)}"
    yield Scene(url, "demo", "files")
    forget(url)


def consumers(scene: Scene) -> int:
    with scene.client() as client:
        connection = client.connection
        queue = str(connection.names.activity(scene.task_queue))
        stats = connection.broker.stats(queue, connection.clock.monotonic() + 10)
    return 0 if stats is None else stats.consumers


def test_the_stage_fits_the_broker() -> None:
    assert isinstance(stage_for(Scene("memory://x", "demo", "files")), EmbeddedStage)
    assert isinstance(stage_for(Scene("amqp://x", "demo", "files")), ProcessStage)


def test_embedded_workers_serve_until_they_are_killed_or_closed(scene: Scene) -> None:
    stage = EmbeddedStage(scene)
    stage.start(["host-1", "host-2"])
    try:
        assert consumers(scene) == 2
        stage.kill("host-1")
        assert consumers(scene) == 1
    finally:
        stage.close()
    assert consumers(scene) == 0
    stage.close()


def test_a_process_that_cannot_connect_says_why() -> None:
    stage = ProcessStage(Scene("ftp://secret@host", "demo", "files"))
    try:
        with pytest.raises(Unavailable, match="the worker on host-1 does not start: url must"):
            stage.start(["host-1"])
    finally:
        stage.close()
