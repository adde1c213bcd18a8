from __future__ import annotations

from typing import Any

import pytest

from tq_broker.client.parked import fresh, read_parked, renewed
from tq_broker.common import TIME_MS_MAX
from tq_broker.model.message import Message

OURS = {
    "tq-protocol": 1,
    "tq-activity-type": "send",
    "tq-attempt": 3,
    "tq-parked-reason": "poison",
    "tq-parked-from": "tq.shop.activity.mail",
    "tq-parked-ms": 1_700_000_000_000,
    "tq-parked-by": "w1@here",
}
THEIRS = {
    "tq-activity-type": "send",
    "x-first-death-queue": "tq.shop.activity.mail",
    "x-delivery-count": 21,
    "x-death": [
        {
            "queue": "tq.shop.activity.mail",
            "reason": "delivery_limit",
            "time": 1_700_000_000,
            "routing-keys": ["activity.mail"],
            "exchange": "tq.shop.tasks",
            "count": 1,
        }
    ],
}


def message(headers: dict[str, Any], body: bytes = b"{}") -> Message:
    return Message(body=body, message_id="m1", kind="activity-task", headers=headers)


def test_a_worker_says_why_it_parked() -> None:
    one = read_parked(message(OURS), "shop", "parked")
    assert (one.type, one.attempt, one.task_queue) == ("send", 3, "mail")
    assert (one.reason, one.parked_by) == ("poison", "w1@here")
    assert one.parked_ms == 1_700_000_000_000
    assert one.origin == "tq.shop.activity.mail"


def test_rabbitmq_says_it_in_x_death() -> None:
    one = read_parked(message(THEIRS), "shop", "activity.mail")
    assert (one.task_queue, one.parked_by) == ("mail", "RabbitMQ")
    assert one.reason == "handed out too often without an end (x-delivery-limit)"
    assert one.parked_ms == 1_700_000_000_000


@pytest.mark.parametrize(
    ("headers", "parked_ms"),
    [
        ({"tq-parked-ms": 1_780_000_000_000_000_000}, TIME_MS_MAX),
        ({"x-death": [{"time": 2**63}]}, TIME_MS_MAX),
        ({"tq-parked-ms": -1}, 0),
    ],
)
def test_a_time_that_no_calendar_has_is_brought_into_one(
    headers: dict[str, Any], parked_ms: int
) -> None:
    assert read_parked(message(headers), "shop", "parked").parked_ms == parked_ms


@pytest.mark.parametrize(
    ("headers", "key", "task_queue"),
    [
        ({}, "activity.mail", "mail"),
        ({}, "host.web.mail", "mail"),
        ({}, ".".join("0" * 27) + ".1.activity.mail", "mail"),
        ({"tq-parked-from": "tq.shop.unrouted"}, "parked", None),
        ({"tq-parked-from": "tq.shop.unrouted", "tq-task-queue": "mail"}, "parked", "mail"),
        ({"tq-parked-from": "tq.other.activity.mail"}, "parked", None),
        ({"tq-parked-from": 3, "x-death": 3, "tq-parked-ms": "x"}, "#", None),
        ({"x-death": [{"queue": "tq.shop.unrouted", "routing-keys": ["activity.a"]}]}, "", "a"),
    ],
)
def test_the_task_queue_is_told_by_one_clue_or_another(
    headers: dict[str, Any], key: str, task_queue: str | None
) -> None:
    one = read_parked(message(headers), "shop", key)
    assert one.task_queue == task_queue
    assert one.type == "activity-task"


def test_a_fresh_copy_has_no_marks() -> None:
    assert fresh(message(OURS)).headers == {
        "tq-protocol": 1,
        "tq-activity-type": "send",
        "tq-attempt": 3,
    }
    assert fresh(message(THEIRS)).headers == {"tq-activity-type": "send"}


@pytest.mark.parametrize("headers", [OURS, THEIRS])
def test_a_renewed_copy_is_known_by_the_same_key(headers: dict[str, Any]) -> None:
    before = read_parked(message(headers), "shop", "activity.mail")
    copy = renewed(before)
    after = read_parked(copy, "shop", "parked")
    assert "x-delivery-count" not in copy.headers
    assert "x-death" not in copy.headers
    for name in ("key", "reason", "parked_ms", "parked_by", "task_queue", "origin"):
        assert getattr(after, name) == getattr(before, name)


def test_keys_tell_messages_apart() -> None:
    later = {**OURS, "tq-parked-ms": 1}
    keys = {
        read_parked(message(headers, body), "shop", "parked").key
        for headers in (OURS, later)
        for body in (b"1", b"2")
    }
    assert len(keys) == 4
