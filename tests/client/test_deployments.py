"""Deployment versions as an operator sees them, on the broker in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.worker.worlds import World
from tq_broker import activity
from tq_broker.client.deployments import DeploymentOperations
from tq_broker.client.settings_book import followed
from tq_broker.common import Route
from tq_broker.exceptions import Conflict, InvalidArgument, NotFound
from tq_broker.model.deployments import RoutingSet, VersionState
from tq_broker.worker.housekeeper import Housekeeper

QUICK = 0.2


@activity.defn(start_to_close_timeout=timedelta(minutes=1))
def noop() -> None: ...


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def shop(world: World) -> DeploymentOperations:
    for build_id in ("v1", "v2"):
        world.worker(noop, deployment="shop", build_id=build_id, identity=build_id)
    return world.client.operations.deployments


def test_a_namespace_that_nobody_uses_has_no_deployments(world: World) -> None:
    operations = world.client.operations.deployments
    assert operations.all() == []
    with pytest.raises(NotFound, match="it begins to exist with its first worker"):
        operations.describe("shop")


def test_a_version_is_made_current_and_ramps_with_author_and_reason(
    shop: DeploymentOperations,
) -> None:
    assert shop.set_current("shop", "v1", reason="first", wait_s=QUICK) == []
    assert shop.set_ramping("shop", "v2", 12.5, reason="second", wait_s=QUICK) == []
    told = shop.describe("shop", wait_s=QUICK)
    assert (told.current, told.ramping, told.percent, told.revision) == ("v1", "v2", 12.5, 2)
    assert {one.build_id: (one.state, one.percent, one.workers) for one in told.versions} == {
        "v1": (VersionState.CURRENT, 0.0, ("v1",)),
        "v2": (VersionState.RAMPING, 12.5, ("v2",)),
    }
    assert [(one.by, one.reason) for one in told.changes] == [
        ("client", "first"),
        ("client", "second"),
    ]
    shop.set_current("shop", "v2", wait_s=QUICK)
    [now] = shop.all()
    assert (now.current, now.ramping) == ("v2", None), "its ramp has ended"
    shop.set_ramping("shop", "__unversioned__", 1, force=True, wait_s=QUICK)
    shop.set_ramping("shop", None, wait_s=QUICK)
    assert shop.all()[0].ramping is None


def test_what_is_refused_changes_nothing_and_force_does_it(
    world: World, shop: DeploymentOperations
) -> None:
    with pytest.raises(InvalidArgument, match=r"no living worker.*; or say force"):
        shop.set_current("shop", "__unversioned__", wait_s=QUICK)
    assert shop.all()[0].routing is None
    [said] = shop.set_current("shop", "__unversioned__", force=True, wait_s=QUICK)
    assert "no living worker" in said.text
    routing = shop.all()[0].routing
    assert routing is not None
    assert routing.forced
    with pytest.raises(NotFound, match="has no version 'v9'"):
        shop.set_ramping("shop", "v9", 5, force=True, wait_s=QUICK)
    with pytest.raises(InvalidArgument, match="from 0 to 100"):
        shop.set_ramping("shop", "v1", 101, force=True, wait_s=QUICK)


def test_who_comes_second_is_told(shop: DeploymentOperations) -> None:
    with followed(shop._core) as log:
        late = RoutingSet(deployment="shop", current="v2", at_ms=1, change_id="late")
        shop.set_current("shop", "v1", wait_s=QUICK)
        with pytest.raises(Conflict, match="client has changed deployment 'shop' meanwhile"):
            shop._write(log, late)
    assert shop.all()[0].current == "v1"


def test_what_waits_is_told_and_speaks_against_a_deletion(world: World) -> None:
    old = world.worker(noop, deployment="shop", build_id="v1")
    shop = world.client.operations.deployments
    with pytest.raises(InvalidArgument, match="has living workers"):
        shop.delete("shop", "v1", wait_s=QUICK)
    old.stop()
    world.start(noop, route=Route.version("shop.v1"))
    [version] = shop.describe("shop", wait_s=QUICK).versions
    [queue] = version.queues
    assert (queue.pinned, queue.backlog, queue.is_stranded) == (1, 0, True)
    with pytest.raises(InvalidArgument, match="1 tasks wait in its queues"):
        shop.delete("shop", "v1", wait_s=QUICK)
    shop.delete("shop", "v1", reason="gone", force=True, wait_s=QUICK)
    [left] = shop.all()
    assert (left.versions, left.changes[-1].reason) == ({}, "gone")
    back = world.worker(noop, deployment="shop", build_id="v1")
    assert back.info().deployment_version == "shop.v1"
    world.eventually(lambda: "v1" in shop.all()[0].versions)


def test_what_waits_in_a_priority_queue_counts(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    worker = world.worker(noop, deployment="shop", build_id="v1")
    shop = world.client.operations.deployments
    shop.set_current("shop", "v1", force=True, wait_s=QUICK)
    worker.stop()
    world.start(noop, priority=1)
    [version] = shop.describe("shop", wait_s=QUICK).versions
    [queue] = version.queues
    assert (queue.pinned, queue.backlog, queue.is_stranded) == (0, 1, True)
    with followed(world.client.core) as log:
        Housekeeper(world.client.connection, log, 60.0).warn()
    assert "1 tasks wait in tq.n.priority.q for version shop.v1" in caplog.text
