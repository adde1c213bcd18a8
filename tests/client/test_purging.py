"""Purging what an usher has let in, or has in sight."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.worker.worlds import NAMES, QUEUE, SOON_S, World
from tq_broker import activity
from tq_broker.client.purging import aside, purged
from tq_broker.exceptions import DeadlineExceeded
from tq_broker.model import envelope, passes
from tq_broker.model.composition import Member
from tq_broker.model.limits import Limits
from tq_broker.model.message import Message
from tq_broker.model.names import Kind
from tq_broker.model.parts import EACH_KEY
from tq_broker.model.passes import News, What
from tq_broker.queues.broker import SubscribeOptions

ROSTER = NAMES.queue(Kind.ROSTER, "q")
ADMITTED = NAMES.queue(Kind.ADMITTED, "q")
ANTEROOM = NAMES.queue(Kind.ANTEROOM, "q")


GO = threading.Event()


@activity.defn(name="stay")
def stay() -> None:
    assert GO.wait(SOON_S)


@activity.defn(name="note")
def note() -> None: ...


@pytest.fixture
def world() -> Iterator[World]:
    GO.clear()
    world = World()
    yield world
    GO.set()
    world.close()


def test_a_plain_queue_is_emptied_at_once(world: World) -> None:
    for _ in range(3):
        world.publish(Message(body=b"not even a task", message_id="m"))
    assert purged(world.client.core, Member(QUEUE), has_usher=True) == 3
    assert purged(world.client.core, Member(QUEUE), has_usher=True) == 0
    assert purged(world.client.core, Member(ADMITTED), has_usher=True) == 0


def test_the_usher_is_told_of_what_it_had_let_in(world: World) -> None:
    headers = {"tq-activity-type": "note"}
    plain = Message(body=b"{}", message_id="m", kind="activity-task", headers=headers)
    world.publish(envelope.with_pass(plain, passes.mark("p1", "q")), ADMITTED)
    world.publish(plain, ADMITTED)
    assert purged(world.client.core, Member(ADMITTED), has_usher=True) == 2
    assert world.count(ADMITTED) == 0
    told = world.broker.get(str(ROSTER), world.soon())
    assert told is not None
    assert passes.read(told.message) == News("p1", What.UNUSED)


def test_what_an_usher_has_in_sight_is_purged_and_what_comes_next_begins(world: World) -> None:
    world.client.connection.sender.ensure([QUEUE], world.soon())
    world.client.operations.set_limits("q", lambda _: Limits(concurrency=1), part=EACH_KEY)
    worker = world.worker(note, stay)
    first = world.start("stay", rate_limit_key="k")
    world.eventually(lambda: worker.running == 1)
    for _ in range(5):
        world.start("note", rate_limit_key="k", wait_result=False)
    world.eventually(lambda: worker.info().waiting == {"q": 5})
    (line,) = worker.info().held_back
    assert (line.activity_type, line.key, line.count) == ("note", "k", 5)
    assert line.oldest_age_s is not None
    told = world.client.describe_task_queue("q")
    assert (told.summary.backlog, told.waiting) == (5, 5)
    (part,) = [one for one in told.figures[0].parts if one.key == "k"]
    assert (part.backlog, part.begun) == (5, 1)
    assert part.limit is not None
    assert (part.limit.concurrency, part.limit.is_limiting) == (1, True)
    assert world.client.purge_task_queue("q") == 5
    assert worker.info().waiting == {"q": 0}
    # The usher is back, and does its work.
    assert world.start("note", rate_limit_key="other").result(SOON_S) is None
    last = world.start("note", rate_limit_key="k")
    GO.set()
    assert (first.result(SOON_S), last.result(SOON_S)) == (None, None)


def test_who_does_not_stand_aside_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = world.client.core
    world.client.connection.sender.ensure([ANTEROOM], world.soon())
    wish = world.broker.subscribe(str(ANTEROOM), lambda _: None, SubscribeOptions(prefetch=1))
    world.broker.wait_subscribed([wish], world.soon())
    monkeypatch.setattr(core, "deadline", lambda: core.clock.monotonic() + 0.2)
    with (
        pytest.raises(DeadlineExceeded, match="who has tasks of 'q' did not stand aside in time"),
        aside(core, "q", [Member(ANTEROOM)]),
    ):
        raise AssertionError("not entered")
    wish.cancel(world.soon())
    with aside(core, "q", [Member(ANTEROOM)]):
        assert world.count(ANTEROOM) == 0
    with aside(core, "q", [Member(QUEUE)]):
        assert world.count() == 0
