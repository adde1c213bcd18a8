"""Traffic rules as values: valid by construction."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.rules import TaskKind, TrafficRule


def rule(**fields: Any) -> TrafficRule:
    return TrafficRule(**{"id": "r", "to_task_queue": "there"} | fields)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"id": ""}, "rule id must not be empty"),
        ({"id": "a\nb"}, "rule id has the control"),
        ({"type": "x" * 201}, "type is longer than 200"),
        ({"percent": 0}, "must be above 0 and at most 100"),
        ({"percent": 100.1}, "must be above 0 and at most 100"),
        ({"percent": float("nan")}, "must be above 0 and at most 100"),
        ({"order": -1}, "order is -1; it must be from 0"),
        ({"take_within_ms": 999}, "take_within_ms is 999; it must be from 1000 to 3600000"),
        ({"expires_ms": -1}, "expires_ms is -1"),
        ({"expires_ms": 2**53}, "expires_ms is 9007199254740992; it must be from 0 to 2500000000"),
        ({"priority": 6}, "priority is 6; it must be from 1"),
        ({"fairness_key": "x" * 201}, "fairness_key is 201 bytes long"),
        ({"fairness_key": "a\nb"}, "fairness_key has the control"),
        ({"headers": {"": "x"}}, "headers must be strings by name"),
        ({"headers": {"a": "x" * 5_000}}, "headers are 5009 characters long"),
        ({"memo": {"a": "\ud800"}}, "memo must be Unicode"),
        ({"reason": "x" * 1_001}, "reason is longer"),
        ({"to_task_queue": ""}, "says nowhere to go"),
        ({"task_queue": "there"}, "is a loop"),
        ({"to_host": "h", "fallback": False}, "needs its fallback"),
        ({"to_version": "shop.1", "fallback": False}, "set it current or ramping, or start them"),
        ({"to_version": "shop"}, "must be a deployment's name, a dot and a build id"),
        ({"to_version": "shop.1", "to_host": "h"}, "names a host and a version; name one"),
        ({"to_task_queue": "x" * 200}, "task_queue is 200 bytes long"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_with_its_bound(
    fields: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        rule(**fields)


def test_a_host_of_the_same_task_queue_is_no_loop() -> None:
    assert rule(task_queue="there", to_host="h").target == "task queue 'there' on host 'h'"
    assert rule(to_task_queue="", to_host="h").target == "their task queue on host 'h'"
    assert rule().target == "task queue 'there'"


def test_a_version_of_the_same_task_queue_is_no_loop() -> None:
    versioned = rule(task_queue="there", to_version="shop.1.4")
    assert versioned.target == "task queue 'there', version 'shop.1.4'"
    own = rule(to_task_queue="", to_version="shop.1.4")
    assert own.target == "their task queue, version 'shop.1.4'"


def test_a_rule_comes_back_as_it_went() -> None:
    full = rule(kind=TaskKind.WORKFLOW, headers={"a": "b"}, percent=12.5, expires_ms=7)
    assert msgspec.json.decode(msgspec.json.encode(full), type=TrafficRule) == full


def test_a_rule_is_over_when_its_time_has_come() -> None:
    assert not rule().is_over(2**60)
    assert [rule(expires_ms=10).is_over(ms) for ms in (9, 10)] == [False, True]
