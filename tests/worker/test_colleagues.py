"""Workers that start say hello, and both sides log what they do not have in common."""

from __future__ import annotations

import logging

import pytest

from tests.worker.worlds import World
from tq_broker import activity


@activity.defn
def common() -> None: ...


@activity.defn
def new() -> None: ...


def test_a_mismatch_is_logged_on_both_sides_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    said = "workers of task queue q have different activity types: new is not registered on old"
    with caplog.at_level(logging.WARNING, "tq_broker.worker.colleagues"):
        world.worker(common, identity="old", worker_id="1")
        world.worker(common, new, identity="fresh", worker_id="2")
        world.eventually(lambda: caplog.text.count(said) == 2)
        world.worker(common, new, identity="fresh", worker_id="3")
        # The old one knows by now; the third learns it.
        world.eventually(lambda: caplog.text.count(said) == 3)


def test_nothing_is_said_of_other_task_queues_versions_and_equal_types(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tq_broker.worker.colleagues"):
        world.worker(common, task_queues=["a"])
        world.worker(common, new, task_queues=["b"])
        world.worker(common, task_queues=["a"])
        for build_id, types in (("v1", [common]), ("v2", [common, new])):
            world.worker(*types, task_queues=["c"], deployment="shop", build_id=build_id)
        assert world.run(common, task_queue="a") is None
    assert not [r for r in caplog.records if r.name == "tq_broker.worker.colleagues"]
