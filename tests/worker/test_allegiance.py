"""Which queues a worker stands at because of its deployment version."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.worker.worlds import NAMES, SOON_S, World
from tq_broker import activity
from tq_broker.common import OnGone, Requires, Route, VersioningBehavior
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.limits import Limits
from tq_broker.model.names import Kind, QueueName
from tq_broker.model.parts import Part, PartKind
from tq_broker.worker import Worker
from tq_broker.worker.options import WorkerOptions

MINE = NAMES.version("activity", "shop.v1", "q")


@activity.defn(start_to_close_timeout=timedelta(minutes=1))
def who() -> str:
    return activity.info().worker_id


def worker(world: World, build_id: str = "v1", **options: Any) -> Worker:
    given = {"deployment": "shop", "build_id": build_id, "worker_id": build_id} | options
    return world.worker(who, **given)


def route(world: World, **changes: Any) -> None:
    """Set the routing, and wait until client and workers know it."""
    operations = world.client.operations.deployments
    if "ramping" in changes:
        operations.set_ramping("shop", changes["ramping"], changes["percent"], force=True, wait_s=0)
    else:
        operations.set_current("shop", changes["current"], force=True, wait_s=0)
    world.client.connection.traffic.follow()
    [wanted] = operations.all()
    world.eventually(
        lambda: (
            world.client.connection.traffic.deployments.by_name["shop"].revision == wanted.revision
        )
    )


def consumers(world: World, queue: QueueName) -> int:
    stats = world.broker.stats(str(queue), world.soon())
    return 0 if stats is None else stats.consumers


def test_a_worker_tells_the_log_what_its_version_serves_once(world: World) -> None:
    worker(world, task_queues=["q", "r"])
    worker(world, task_queues=["q"], worker_id="second")
    [shop] = world.client.operations.deployments.all()
    assert shop.versions["v1"].serves == {("activity", "q"), ("activity", "r")}
    assert shop.revision == 0


def test_only_the_current_version_takes_what_is_not_pinned(world: World) -> None:
    worker(world)
    handle = world.start(who)
    world.eventually(lambda: world.count(NAMES.activity("q")) == 1)
    assert world.run(who, route=Route.version("shop.v1")) == "v1"
    assert world.count(NAMES.activity("q")) == 1
    route(world, current="v1")
    assert handle.result(10) == "v1"


def test_workers_without_a_version_leave_it_to_them(world: World) -> None:
    world.worker(who, worker_id="plain")
    assert world.run(who) == "plain"
    worker(world)
    assert world.run(who) == "plain"
    route(world, current="v1")
    assert [world.run(who) for _ in range(5)] == ["v1"] * 5
    route(world, current="__unversioned__")
    assert [world.run(who) for _ in range(5)] == ["plain"] * 5


def test_what_was_put_in_the_wrong_queue_is_brought_to_the_ramp(world: World) -> None:
    worker(world)
    route(world, current="v1")
    worker(world, "v2")
    handles = [world.start(who, start_delay=timedelta(seconds=0.5)) for _ in range(3)]
    route(world, ramping="v2", percent=100.0)
    assert {handle.result(10) for handle in handles} == {"v2"}
    assert world.run(who) == "v2"
    route(world, ramping="v2", percent=0.0)
    assert world.run(who) == "v1"


def test_what_is_pinned_waits_for_its_version(world: World) -> None:
    world.kill(worker(world))
    route(world, current="__unversioned__")
    handle = world.start(who, route=Route.version("shop.v1"))
    world.eventually(lambda: world.count(MINE) == 1)
    worker(world)
    assert handle.result(10) == "v1"


def test_a_pause_is_one_of_every_version(world: World) -> None:
    worker(world)
    world.client.pause_task_queue("q")
    world.eventually(lambda: consumers(world, MINE) == 0)
    handle = world.start(who, route=Route.version("shop.v1"))
    world.eventually(lambda: world.count(MINE) == 1)
    world.client.resume_task_queue("q")
    assert handle.result(10) == "v1"


def test_limits_count_what_is_pinned_as_well(world: World) -> None:
    worker(world)
    world.client.operations.set_limits("q", lambda limits: type(limits)(concurrency=1))
    assert world.run(who, route=Route.version("shop.v1")) == "v1"
    route(world, current="v1")
    assert world.run(who) == "v1"


def test_a_host_programs_worker_has_no_version(world: World) -> None:
    made = Worker(world.client, task_queue="q", activities=[who], deployment="shop", build_id="v1")
    with pytest.raises(InvalidArgument, match="a worker with a deployment cannot be hosted"):
        made.get_consumers(None, None)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"deployment": "shop"}, "must be given together"),
        ({"build_id": "v1"}, "must be given together"),
        ({"deployment": "a.b", "build_id": "v1"}, "must be without a dot"),
        ({"deployment": "shop", "build_id": ""}, "must be a non-empty string"),
        ({"deployment": "shop", "build_id": "v" * 80}, "the bound is 80"),
        ({"deployment": "__shop", "build_id": "v1"}, "reserved"),
        ({"default_versioning_behavior": "pinned"}, "must be a VersioningBehavior"),
    ],
)
def test_a_worker_with_half_a_version_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        WorkerOptions(**options)


def test_options_make_one_text() -> None:
    behavior = VersioningBehavior.PINNED
    options = WorkerOptions(deployment="shop", build_id="1.4", default_versioning_behavior=behavior)
    assert (options.version, WorkerOptions().version) == ("shop.1.4", "")
    assert NAMES.version("activity", options.version, "q").kind is Kind.VERSION


def test_a_priority_queue_is_the_current_versions(world: World) -> None:
    worker(world)
    worker(world, "v2")
    for current in ("v1", "v2"):
        route(world, current=current)
        assert [world.run(who, priority=priority) for priority in (1, 3, 5)] == [current] * 3
    route(world, ramping="v1", percent=100.0)
    assert [world.run(who, priority=priority) for priority in (1, 3, 5)] == ["v1"] * 3


def test_whom_a_limit_of_its_type_lets_in_goes_to_the_right_version(world: World) -> None:
    worker(world)
    worker(world, "v2")
    route(world, current="v1")
    part = Part(PartKind.TYPE, "who")
    world.client.operations.set_limits("q", lambda _: Limits(rate=1000.0, burst=99), part=part)
    assert [world.run(who) for _ in range(5)] == ["v1"] * 5
    assert world.run(who, route=Route.version("shop.v2")) == "v2"
    route(world, ramping="v2", percent=100.0)
    assert [world.run(who) for _ in range(5)] == ["v2"] * 5


def test_what_requires_something_goes_to_who_has_it_and_is_of_the_right_version(
    world: World,
) -> None:
    worker(world, capabilities={"gpu"})
    worker(world, "v2", capabilities={"gpu"})
    answers = [{"gpu"}, Requires({"gpu"}, OnGone.FAIL), Requires({"gpu"}, OnGone.FALL_BACK)]
    for current, other in (("v1", "v2"), ("v2", "v1")):
        route(world, current=current)
        assert [world.run(who, requires=one) for one in answers] == [current] * 3
        pin = Route.version(f"shop.{other}")
        assert [world.run(who, requires=one, route=pin) for one in answers] == [other] * 3


def test_what_is_pinned_waits_for_capable_workers_of_its_version(world: World) -> None:
    worker(world, capabilities={"gpu"}, worker_id="able")
    worker(world, "v2")
    pin = Route.version("shop.v2")
    handle = world.start(who, requires={"gpu"}, route=pin)
    wish = Requires({"gpu"}, OnGone.FALL_BACK)
    assert world.run(who, requires=wish, route=pin) == "v2"
    worker(world, "v2", capabilities={"gpu"}, worker_id="both")
    assert handle.result(SOON_S) == "both"
