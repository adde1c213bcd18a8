"""The queues of a task queue: each one that a task of it may wait in, once, and nobody else's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model import composition
from tq_broker.model.capabilities import Niche
from tq_broker.model.composition import Known, Member, Way, begin_first, counterpart, members
from tq_broker.model.control import Serve
from tq_broker.model.deployments import (
    NO_DEPLOYMENTS,
    Deployments,
    RoutingSet,
    VersionServes,
)
from tq_broker.model.detours import Detour
from tq_broker.model.names import _OF_TASK_QUEUES, Kind, Names, QueueName
from tq_broker.model.rules import TaskKind
from tq_broker.model.settings import SIDES, side_of

NAMES = Names("default")
DETOUR = Detour(TaskKind.ACTIVITY, "laptop", "h9", "q", 10_000)
NICHE = Niche("q", ("gpu",), host="h1")


def deployments(*, ramp: bool = True) -> Deployments:
    found = NO_DEPLOYMENTS
    for build_id in ("1", "2"):
        for side in SIDES:
            found = found.apply(VersionServes("shop", build_id, side, "q", 1, "ann"))
    ramping = {"ramping": "2", "percent": 10.0} if ramp else {}
    routing = RoutingSet(deployment="shop", current="1", at_ms=1, change_id="c", **ramping)
    return found.apply(routing)


ALL = Known(
    prioritized={("activity", "q")},
    capable=[("gpu",), ("gpu", "ssd")],
    deployments=deployments(),
    has_parts=True,
    served=[
        Serve(str(NAMES.queue(Kind.HOST, "h1", "q"))),
        Serve(str(NAMES.queue(Kind.HOST, "h1", "q"))),
        Serve(str(NAMES.queue(Kind.PROCESS, "w1", "other"))),
        Serve(str(NICHE.queue(NAMES)), niche=NICHE),
        Serve(str(DETOUR.queue(NAMES)), detour=DETOUR),
    ],
)


def told(found: list[Member]) -> list[tuple[str, str]]:
    return [(one.kind, one.target) for one in found]


def test_all_queues_of_a_side_are_found() -> None:
    assert told(members(NAMES, "activity", "q", ALL)) == [
        ("activity", ""),
        ("priority", ""),
        ("admitted", ""),
        ("admitted-priority", ""),
        ("anteroom", ""),
        ("ramping", "shop.2"),
        ("version", "shop.1"),
        ("version", "shop.2"),
        ("capable", "gpu"),
        ("capable", "gpu, ssd"),
        ("detour", "laptop on host h9"),
        ("host", "h1"),
        ("niche", str(NICHE)),
    ]
    assert told(members(NAMES, "workflow", "q", ALL)) == [
        ("workflow", ""),
        ("ramping", "shop.2"),
        ("version", "shop.1"),
        ("version", "shop.2"),
        ("workflow-capable", "gpu"),
        ("workflow-capable", "gpu, ssd"),
    ]


def test_without_any_of_it_there_is_the_plain_queue() -> None:
    for side in SIDES:
        assert members(NAMES, side, "q", Known()) == [Member(NAMES.queue(Kind(side), "q"))]


@pytest.mark.parametrize("side", SIDES)
def test_none_is_found_for_another_task_queue(side: str) -> None:
    queues = {one.queue for one in members(NAMES, side, "q", ALL)}
    others = {one.queue for one in members(NAMES, side, "other", ALL)}
    assert not queues & others
    assert all(side_of(one) == side for one in queues if one.kind is not Kind.DETOUR)


def test_every_kind_that_workers_take_tasks_from_has_its_way() -> None:
    """Whoever adds a kind of queue adds it here as well."""
    assert set(composition._WAYS) == _OF_TASK_QUEUES | {Kind.DETOUR, Kind.ANTEROOM}
    assert composition.way_of(NAMES.sticky("w")) is None


def test_what_lives_with_its_workers_is_fleeting() -> None:
    fleeting = [one.kind for one in members(NAMES, "activity", "q", ALL) if one.is_fleeting]
    assert fleeting == ["detour", "host", "niche"]


def test_passes_are_where_an_usher_sends_tasks() -> None:
    without = [one.kind for one in members(NAMES, "activity", "q", ALL) if not one.has_passes]
    assert without == ["activity", "priority", "anteroom"]


@given(st.permutations(members(NAMES, "activity", "q", ALL)))
def test_what_begins_first_comes_first(found: list[Member]) -> None:
    in_order = begin_first(found)
    assert set(in_order) == set(found)
    kinds = [one.kind for one in in_order]
    assert set(kinds[:3]) == {"priority", "admitted", "admitted-priority"}
    assert kinds[-1] == "anteroom"


@pytest.mark.parametrize(
    ("queue", "there"),
    [
        (NAMES.activity("q"), NAMES.activity("t")),
        (NAMES.priority(NAMES.workflow("q")), NAMES.workflow("t")),
        (NAMES.queue(Kind.ADMITTED, "q"), NAMES.activity("t")),
        (NAMES.queue(Kind.ANTEROOM, "q"), NAMES.activity("t")),
        (NAMES.capable("q", ["gpu"]), NAMES.capable("t", ["gpu"])),
        (NAMES.version("workflow", "shop.1", "q"), NAMES.version("workflow", "shop.1", "t")),
        (NAMES.version("workflow", "shop.2", "q"), None),
        (NAMES.ramping("workflow", "q"), NAMES.workflow("t")),
        (NAMES.queue(Kind.PROCESS, "w", "q"), None),
        (DETOUR.queue(NAMES), None),
    ],
)
def test_a_task_waits_for_the_same_elsewhere(queue: QueueName, there: QueueName | None) -> None:
    served = deployments().apply(VersionServes("shop", "1", "workflow", "t", 1, "ann"))
    assert counterpart(NAMES, Member(queue), "t", served) == there


def test_a_version_that_ramps_no_more_leaves_its_queue_to_the_current_one() -> None:
    known = Known(deployments=deployments().apply(_unramped(deployments())))
    assert ("ramping", "shop.1") in told(members(NAMES, "workflow", "q", known))
    never = Known(deployments=deployments(ramp=False))
    assert Way.VERSION in {one.way for one in members(NAMES, "workflow", "q", never)}
    assert "ramping" not in dict(told(members(NAMES, "workflow", "q", never)))


def _unramped(now: Deployments) -> RoutingSet:
    revision = now.by_name["shop"].revision
    return RoutingSet(deployment="shop", current="1", at_ms=2, change_id="d", revision=revision)
