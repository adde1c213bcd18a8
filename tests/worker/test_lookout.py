"""A lookout: looks when it is time, tells what changes, and is quiet about what it cannot know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.worlds import NAMES
from tq_broker.exceptions import BrokerUnavailable
from tq_broker.model.names import QueueName
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.lookout import Lookout, Post

POSTS = [Post("q", "gpu", NAMES.capable("q", ["gpu"])), Post("q", "ssd", NAMES.capable("q", ["s"]))]


class Stats:
    def __init__(self, ready: int, consumers: int) -> None:
        self.ready, self.consumers = ready, consumers


class Scene:
    """A sender, its broker and the settings, as a lookout needs them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = self
        self.known: dict[str, Stats] = {}
        self.paused: set[QueueName] = set()
        self.waiting: list[Callable[[], None]] = []
        self.error: Exception | None = None

    def in_background(self, work: Callable[[], None]) -> None:
        self.waiting.append(work)

    def stats(self, queue: str, deadline: float) -> Stats | None:
        if self.error is not None:
            raise self.error
        return self.known.get(queue)

    def pause_of(self, queue: QueueName) -> Any:
        return True if queue in self.paused else None


@pytest.fixture
def scene() -> Scene:
    return Scene()


def look(scene: Scene, lookout: Lookout, now: float) -> dict[tuple[str, str], int]:
    if lookout.is_due(now):
        lookout.look(POSTS, now)
    while scene.waiting:
        scene.waiting.pop()()
    return lookout.found


def lookout_of(scene: Scene) -> Lookout:
    return Lookout(scene, scene, 2.0)  # type: ignore[arg-type]


def test_only_what_waits_and_nobody_serves_is_found(scene: Scene) -> None:
    lookout = lookout_of(scene)
    assert look(scene, lookout, 1.0) == {}
    scene.known = {str(POSTS[0].queue): Stats(3, 0), str(POSTS[1].queue): Stats(3, 1)}
    assert look(scene, lookout, 2.9) == {}, "not yet"
    assert look(scene, lookout, 3.0) == {("q", "gpu"): 3}
    scene.paused = {POSTS[0].queue}
    assert look(scene, lookout, 5.0) == {}


def test_a_change_is_told_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    lookout = lookout_of(scene)
    scene.known = {str(POSTS[0].queue): Stats(3, 0)}
    with caplog.at_level(logging.INFO, "tq_broker.worker.lookout"):
        look(scene, lookout, 1.0)
        look(scene, lookout, 3.0)
        scene.known = {}
        look(scene, lookout, 5.0)
    assert [record.getMessage() for record in caplog.records] == [
        "3 tasks of task queue q wait for gpu: no living worker serves them",
        "no task of task queue q waits in vain for gpu any more",
    ]


def test_what_was_found_stays_while_nothing_can_be_seen(scene: Scene) -> None:
    lookout = lookout_of(scene)
    scene.known = {str(POSTS[0].queue): Stats(3, 0)}
    look(scene, lookout, 1.0)
    scene.error = BrokerUnavailable("gone")
    assert look(scene, lookout, 3.0) == {("q", "gpu"): 3}
    assert lookout.is_due(5.0)


def test_one_look_at_a_time(scene: Scene) -> None:
    lookout = lookout_of(scene)
    lookout.look(POSTS, 1.0)
    assert not lookout.is_due(9.0)
    look(scene, lookout, 9.0)
    assert lookout.is_due(9.0)


def test_nothing_is_asked_where_there_is_nothing_to_look_at(scene: Scene) -> None:
    lookout = lookout_of(scene)
    lookout.look([], 1.0)
    assert not scene.waiting
