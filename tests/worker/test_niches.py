"""Capabilities of a worker, on the broker in memory: which tasks it gets, and which are missed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.worlds import MINUTE, NAMES, SOON_S, World
from tq_broker import activity
from tq_broker.common import OnGone, Requires, Route
from tq_broker.exceptions import (
    ActivityError,
    InvalidArgument,
    TargetGone,
    UnknownCapability,
    UnknownVersion,
)
from tq_broker.model.capabilities import Niche
from tq_broker.model.limits import Limits
from tq_broker.model.names import Kind, QueueName
from tq_broker.model.parts import Part, PartKind
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import ActivityCanceled, Record, SettingsSnapshot
from tq_broker.model.snapshot import pack
from tq_broker.queues import topology
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.topology import DeclareQueue, Plan
from tq_broker.worker import Worker, niches

GPU = NAMES.capable("q", ["gpu"])


@activity.defn
def where() -> str:
    return activity.info().worker_id


@activity.defn(requires={"gpu"})
def render() -> str:
    return activity.info().worker_id


def worker(world: World, name: str, *capabilities: str, **options: Any) -> Worker:
    return world.worker(
        where, render, worker_id=name, identity=name, capabilities=capabilities, **options
    )


def run(world: World, *capabilities: str, **options: Any) -> Any:
    return world.run(where, requires=capabilities, **options)


def test_a_task_goes_only_where_all_is_present(world: World) -> None:
    worker(world, "plain")
    worker(world, "gpu", "gpu")
    worker(world, "both", "gpu", "ssd")
    assert {run(world, "gpu") for _ in range(20)} <= {"gpu", "both"}
    assert {run(world, "ssd", "gpu") for _ in range(5)} == {"both"}
    assert {world.run(render) for _ in range(20)} <= {"gpu", "both"}
    # What the call says wins over the decorator, also when it is nothing.
    assert {world.run(render, requires=()) for _ in range(30)} >= {"plain"}


def test_a_set_that_only_a_snapshot_tells_of_is_served(world: World) -> None:
    # Given a log whose beginning is dropped, and with it that tasks require a GPU
    connection = world.client.connection
    broker = connection.broker
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 1_000}
    plan = Plan((DeclareQueue(str(NAMES.queue(Kind.SETTINGS)), arguments),))
    broker.apply(topology.namespace(NAMES) + plan, world.soon())
    log = SettingsLog(broker, NAMES, world.clock)
    broker.wait_subscribed([log.follow()], world.soon())
    worker(world, "gone", "gpu").stop()
    handle = world.start(render)
    world.eventually(lambda: bool(log.capable("q")))
    append(world, ActivityCanceled("x", 1, reason="x" * 1_000))
    world.eventually(lambda: log.cancellation("x") is not None)
    gpu = worker(world, "gpu", "gpu")
    assert not gpu._settings.capable("q")
    # When a snapshot comes
    upto, state, _ = log.snapshot()
    append(world, SettingsSnapshot(upto=upto, state=pack(state), at_ms=1))
    # Then a worker serves them
    assert handle.result(SOON_S) == "gpu"
    log.stop()


def append(world: World, record: Record) -> None:
    told: Future[object] = Future()
    world.client.connection.sender.append(record, world.soon(), told.set_result)
    assert told.result(SOON_S) is None


def test_who_comes_later_finds_what_waits(world: World) -> None:
    worker(world, "gone", "gpu").stop()
    handle = world.start(render)
    worker(world, "plain")
    assert run(world) == "plain"
    assert world.count(GPU) == 1
    worker(world, "late", "gpu")
    assert handle.result(SOON_S) == "late"


def test_what_nobody_serves_is_reported_until_it_is_served(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(niches, "LOOK_EVERY_S", 0.01)
    worker(world, "gone", "gpu").stop()
    plain = worker(world, "plain")
    with caplog.at_level(logging.INFO, "tq_broker.worker"):
        world.start(render)
        world.eventually(lambda: plain.info().unserved == {"q": {"gpu": 1}})
        assert "1 tasks of task queue q wait for gpu: no living worker serves them" in caplog.text
        worker(world, "next", "gpu")
        world.eventually(lambda: plain.info().unserved == {})
        assert "no task of task queue q waits in vain for gpu any more" in caplog.text


def test_what_waits_for_a_version_of_which_nobody_is_left_is_reported(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(niches, "LOOK_AT_VERSIONS_EVERY_S", 0.01)
    gone = {"deployment": "shop", "build_id": "v1"}
    worker(world, "gone", **gone).stop()
    plain = worker(world, "plain")
    whom = "activity workers of version shop.v1"
    with caplog.at_level(logging.INFO, "tq_broker.worker"):
        world.start(where, version="shop.v1")
        world.eventually(lambda: plain.info().unserved == {"q": {whom: 1}})
        assert f"1 tasks of task queue q wait for {whom}: no living worker serves" in caplog.text
        worker(world, "next", **gone)
        world.eventually(lambda: plain.info().unserved == {})
        assert f"no task of task queue q waits in vain for {whom} any more" in caplog.text


def test_a_version_that_nobody_ever_was_of_is_refused(world: World) -> None:
    worker(world, "old", deployment="shop", build_id="v1")
    with pytest.raises(
        UnknownVersion, match=r"'shop\.v9' has ever served task queue 'q'; versions"
    ):
        world.run(where, version="shop.v9")
    with pytest.raises(UnknownVersion, match=r"versions that do: shop\.v1\. Start a worker of it"):
        world.run(where, route=Route.version("shop.v9"))
    with pytest.raises(UnknownVersion, match="versions that do: none"):
        world.run(where, version="shop.v1", task_queue="other")
    assert world.run(where, version="shop.v1") == "old"


def test_what_is_paused_is_not_missed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(niches, "LOOK_EVERY_S", 0.01)
    worker(world, "gone", "gpu").stop()
    plain = worker(world, "plain")
    world.start(render)
    world.eventually(lambda: bool(plain.info().unserved))
    world.client.pause_task_queue("q")
    world.eventually(lambda: not plain.info().unserved)


def test_what_no_worker_has_ever_had_is_refused(world: World) -> None:
    worker(world, "able", "gpu")
    with pytest.raises(UnknownCapability, match="has ever had gup; known there: gpu"):
        run(world, "gup")
    with pytest.raises(UnknownCapability, match="known there: none"):
        run(world, "gpu", task_queue="other")


def test_many_are_sent_to_the_capable(world: World) -> None:
    worker(world, "plain")
    worker(world, "able", "gpu")
    start = world.client.start_activities
    handles = start(render, [()] * 20, task_queue="q", start_to_close_timeout=MINUTE)
    assert {handle.result(SOON_S) for handle in handles} == {"able"}


@pytest.mark.parametrize("living", [True, False])
def test_each_answer_of_a_requirement_is_given(world: World, living: bool) -> None:
    worker(world, "plain")
    able = worker(world, "able", "gpu")
    if not living:
        able.stop()

    def told(on_gone: OnGone, wait: timedelta | None = None) -> str:
        try:
            return str(world.run(where, requires=Requires({"gpu"}, on_gone, wait)))
        except (TargetGone, ActivityError) as error:
            return str(error)

    if living:
        assert {told(one) for one in OnGone} == {"able"}
        return
    assert "no living worker serves task queue 'q' with gpu" in told(OnGone.FAIL)
    assert told(OnGone.FALL_BACK) == "plain"
    assert "did not within 0:00:00.100000" in told(OnGone.WAIT, timedelta(seconds=0.1))


def test_who_waits_for_so_long_gets_who_comes_meanwhile(world: World) -> None:
    worker(world, "plain")
    handle = world.start(where, requires=Requires({"gpu"}, wait=MINUTE))
    worker(world, "able", "gpu")
    assert handle.result(SOON_S) == "able"


def test_what_waited_for_a_niche_whose_only_worker_is_killed_gets_its_answer(world: World) -> None:
    worker(world, "plain")
    able = worker(world, "able", "gpu", max_concurrent_activities=1)
    assert run(world, "gpu") == "able"
    world.client.pause_task_queue("q")
    waits = Requires({"gpu"}, OnGone.FALL_BACK)
    queue = Niche("q", ("gpu",), version="").queue(NAMES)
    handles = [world.start(where, requires=waits) for _ in range(5)]
    world.eventually(lambda: world.count(queue) == 5)
    world.kill(able)
    world.eventually(lambda: not exists(world, queue))
    world.client.resume_task_queue("q")
    assert {handle.result(SOON_S) for handle in handles} == {"plain"}


def exists(world: World, queue: QueueName) -> bool:
    return world.broker.stats(str(queue), world.soon()) is not None


def test_a_route_holds_beside_a_requirement(world: World) -> None:
    worker(world, "plain", host="h1")
    worker(world, "able", "gpu", host="h1")
    worker(world, "far", "gpu", host="h2")
    here = Route.host("h1")
    assert {run(world, "gpu", route=here) for _ in range(5)} == {"able"}
    with pytest.raises((TargetGone, ActivityError), match="on process 'plain' with gpu"):
        run(world, "gpu", route=Route.process("plain"))


def test_a_rule_lends_only_to_who_is_capable(world: World) -> None:
    worker(world, "home", "gpu")
    worker(world, "plain")
    lent = worker(world, "laptop", task_queue="laptop")
    traffic = world.client.operations.traffic
    rule = TrafficRule(id="r", type="where", task_queue="q", to_task_queue="laptop")
    traffic.set(rule, force=True, wait_s=0.05)
    known = world.client.connection.traffic
    known.follow()
    world.eventually(lambda: bool(known.rules))
    assert {run(world, "gpu") for _ in range(5)} == {"home"}, "the laptop has none"
    assert run(world) == "laptop"
    lent.stop()
    worker(world, "better laptop", "gpu", task_queue="laptop")
    # Who was not there a moment ago is not asked at once.
    world.eventually(lambda: run(world, "gpu") == "better laptop")


def test_what_no_task_makes_is_not_served(world: World, caplog: pytest.LogCaptureFixture) -> None:
    able = worker(world, "able", "gpu")
    belongs: Callable[[Niche], bool] = able._niches.belongs_to
    assert belongs(Niche("q", ("gpu",)))
    assert not belongs(Niche("other", ("gpu",)))
    assert not belongs(Niche("q", ("gpu", "ssd")))
    assert not belongs(Niche("q", ("\n",)))
    assert "that no task makes" in caplog.text


def test_bad_capabilities_are_refused(world: World) -> None:
    with pytest.raises(InvalidArgument, match="capabilities must be a set of names"):
        world.worker(where, capabilities="gpu")


def test_sets_beyond_the_bound_are_not_served(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(niches, "SETS_MAX", 1)
    worker(world, "able", "gpu", "ssd")
    assert run(world, "gpu") == "able"
    world.start(where, requires={"gpu", "ssd"})
    world.eventually(lambda: "2 sets of capabilities are required: too many" in caplog.text)


def test_a_limit_of_its_type_does_not_bring_a_task_to_who_is_not_capable(world: World) -> None:
    worker(world, "plain")
    worker(world, "able", "gpu")
    world.client.operations.set_limits(
        "q", lambda limits: Limits(concurrency=2), part=Part(PartKind.TYPE, "render")
    )
    start = world.client.start_activities
    handles = start(render, [()] * 10, task_queue="q", start_to_close_timeout=MINUTE)
    assert {handle.result(SOON_S) for handle in handles} == {"able"}
