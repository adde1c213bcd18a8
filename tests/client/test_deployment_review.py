"""What is said against changes of a deployment, and what would make them acceptable."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model.test_deployments import fold, routed, serves
from tq_broker.client import deployment_review as review
from tq_broker.exceptions import InvalidArgument, NotFound
from tq_broker.model.control import WorkerInfo
from tq_broker.model.rules import TrafficRule


def worker(version: str = "shop.v1", **changes: Any) -> WorkerInfo:
    fields: dict[str, Any] = {
        "worker_id": version,
        "identity": f"{version}@here",
        "host": "here",
        "pid": 1,
        "started_ms": 1,
        "task_queues": ["q", "r"],
        "activities": [],
        "workflows": ["W"],
        "slots": 1,
        "running": 0,
        "deployment_version": version,
    }
    return WorkerInfo(**(fields | changes))


KNOWN = (serves("v1"), serves("v1", "r"), serves("v2"))
ALL = (worker("shop.v1"), worker("shop.v2"), worker(""))


def said(wanted: Any, *before: Any, workers: Any = ALL) -> list[str]:
    found = review.routing(fold(*KNOWN, *before), wanted, workers)
    assert all(one.refuses for one in found)
    return [one.text for one in found]


def test_a_version_with_workers_that_serves_as_much_is_fine() -> None:
    assert said(routed(0, "v1")) == []
    assert said(routed(1, "v1"), routed(0, "v2")) == []
    assert said(routed(1, "v2", ramping="v1", percent=5.0), routed(0, "v2")) == []


def test_a_version_that_serves_less_is_not() -> None:
    for wanted in (routed(1, "v2"), routed(1, "v1", ramping="v2", percent=5.0)):
        [text] = said(wanted, routed(0, "v1"))
        assert "does not serve workflow task queue 'r'" in text
        assert "start workers of it for them before it is" in text


@pytest.mark.parametrize(
    "workers",
    [
        (),
        (worker("shop.v2"), worker("")),
        (worker(shutting_down=True),),
        (worker(task_queues=["q"]),),
        (worker(workflows=[]),),
    ],
)
def test_a_version_without_workers_somewhere_is_not(workers: Any) -> None:
    [text] = said(routed(0, "v1"), workers=workers)
    assert "no living worker of version 'shop.v1' serves" in text
    assert "start one before it is current" in text


def test_so_it_is_with_workers_without_a_version() -> None:
    [text] = said(routed(1, ""), routed(0, "v1"), workers=ALL[:2])
    assert "no living worker of workers without a version" in text
    assert said(routed(1, ""), routed(0, "v1")) == []


def test_what_stays_as_it_is_is_not_asked_for_workers() -> None:
    before = routed(0, "v1", ramping="v2", percent=5.0)
    assert said(routed(1, "v1"), before, workers=()) == []
    assert said(routed(1, "v1", ramping="v2", percent=0.0), before, workers=()) == []


def test_another_deployment_is_not_robbed_in_silence() -> None:
    other = serves("v1", deployment="cart")
    [text] = said(routed(0, "v1"), other, routed(0, "v1", deployment="cart"))
    assert "deployment 'cart' has workflow task queue 'q', and would lose it" in text


def test_names_that_nobody_knows_are_told_with_those_that_there_are() -> None:
    found = fold(*KNOWN)
    with pytest.raises(NotFound, match="there are: shop"):
        review.find(found, "cart")
    with pytest.raises(NotFound, match="there are: v1, v2"):
        review.check_known(review.find(found, "shop"), "v9")


def test_what_is_in_use_is_not_deleted() -> None:
    deployment = fold(*KNOWN, routed(0, "v1", ramping="v2", percent=1.0)).by_name["shop"]
    for build_id, why in (("v1", "is current"), ("v2", "is ramping")):
        with pytest.raises(InvalidArgument, match=why):
            review.check_unused(deployment, build_id)


def test_what_would_wait_for_ever_speaks_against_a_deletion() -> None:
    deployment = fold(*KNOWN, routed(0, "v1")).by_name["shop"]
    review.check_unused(deployment, "v2")
    assert review.deletion(deployment, "v2", 0, 0, ()) == []
    runs, tasks = review.deletion(deployment, "v2", 3, 2, ())
    assert "3 open runs are pinned to it" in runs.text
    assert "2 tasks wait in its queues" in tasks.text
    sends, other = (TrafficRule(id=v, to_version=f"shop.{v}") for v in ("v2", "v1"))
    [rule] = review.deletion(deployment, "v2", 0, 0, (), [sends, other])
    assert "traffic rules send tasks to it: 'v2'; remove them first" in rule.text
    with pytest.raises(InvalidArgument, match="has living workers: w@h; stop them first"):
        review.deletion(deployment, "v2", 0, 0, ("w@h",))
