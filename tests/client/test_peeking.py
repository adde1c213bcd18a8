"""Peeking beside `tests/client/test_operations.py`: what a look leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from tests.worker.worlds import NAMES, QUEUE, World
from tq_broker.client.peeking import peeked, preview, taken
from tq_broker.common import Route
from tq_broker.model import envelope
from tq_broker.model.composition import Member
from tq_broker.model.message import Message
from tq_broker.model.names import Kind
from tq_broker.model.tasks import ActivityTask


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def task(**fields: object) -> Message:
    named = {"activity_id": "a", "activity_type": "t", "task_queue": "q", "body": b'{"args":[1]}'}
    return envelope.task_message(ActivityTask(**{**named, **fields}))  # type: ignore[arg-type]


def left(world: World, member: Member) -> list[Message]:
    found = taken(world.client.core, member.queue, 10, world.soon())
    return [one.message for one in found]


def test_what_a_rule_or_an_usher_has_written_stays(world: World) -> None:
    marked = envelope.with_pass(envelope.diverted(task(), "r1", "q"), "p1:q")
    world.publish(marked)
    (told,) = peeked(world.client.core, Member(QUEUE), "q", 5, world.soon())
    assert (told.type, told.arguments, told.kind) == ("t", "[1]", "activity")
    (after,) = left(world, Member(QUEUE))
    assert after.headers == marked.headers


def test_who_is_meant_and_its_key_are_told(world: World) -> None:
    version = Member(NAMES.version("activity", "shop.1", "q"), "shop.1")
    world.publish(task(rate_limit_key="k", route=Route.version("shop.1")), version.queue)
    (told,) = peeked(world.client.core, version, "q", 5, world.soon())
    assert (told.kind, told.target, told.key) == ("version", "shop.1", "k")


def test_a_queue_that_has_gone_with_its_worker_does_not_come_back(world: World) -> None:
    world.publish(task())
    gone = Member(NAMES.queue(Kind.HOST, "h1", "q"))
    assert peeked(world.client.core, gone, "q", 5, world.soon()) == []
    assert world.broker.stats(str(gone.queue), world.soon()) is None


def test_arguments_are_shortened(world: World) -> None:
    told = ActivityTask(activity_id="a", activity_type="t", task_queue="q", body=b'{"args":[123]}')
    assert preview(world.client.core, told, 4) == "[..."
    broken = msgspec.structs.replace(told, body=b"{oops")
    assert preview(world.client.core, broken).startswith("unreadable: ")
