"""What RabbitMQ writes on a dead letter."""

from __future__ import annotations

import pytest

from tq_broker.model.message import Message
from tq_broker.queues.memory_deaths import Death, Reason, deaths_of, is_cycle, with_death


def death(queue: str, reason: Reason = Reason.EXPIRED, time_s: int = 1) -> Death:
    return Death(queue, reason, "exchange", "key", time_s)


def after(*deaths: Death) -> Message:
    message = Message(body=b"", message_id="m", headers={"mine": 1})
    for one in deaths:
        message = with_death(message, one)
    return message


def test_a_first_death_tells_where_why_and_how_it_had_come_there() -> None:
    message = after(death("q", time_s=7))
    assert message.headers == {
        "mine": 1,
        "x-death": [
            {
                "count": 1,
                "reason": "expired",
                "queue": "q",
                "time": 7,
                "exchange": "exchange",
                "routing-keys": ["key"],
            }
        ],
        "x-first-death-queue": "q",
        "x-first-death-reason": "expired",
        "x-first-death-exchange": "exchange",
    }


def test_the_latest_death_comes_first_and_the_first_one_is_remembered() -> None:
    message = after(death("q"), death("r", Reason.REJECTED))
    assert [entry["queue"] for entry in deaths_of(message)] == ["r", "q"]
    assert message.headers["x-first-death-queue"] == "q"


def test_the_same_death_again_is_counted_and_moves_to_the_front() -> None:
    message = after(death("q"), death("r"), death("q", time_s=9))
    found = [(entry["queue"], entry["count"], entry["time"]) for entry in deaths_of(message)]
    assert found == [("q", 2, 9), ("r", 1, 1)]


def test_the_same_queue_for_another_reason_is_another_death() -> None:
    message = after(death("q"), death("q", Reason.REJECTED))
    assert [entry["count"] for entry in deaths_of(message)] == [1, 1]


def test_the_headers_of_the_original_are_left_alone() -> None:
    message = after(death("q"))
    with_death(message, death("r"))
    assert len(deaths_of(message)) == 1


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        ([], False),
        ([death("r")], False),
        ([death("q")], True),
        ([death("q"), death("r")], True),
        ([death("q"), death("r", Reason.REJECTED)], False),
        ([death("q", Reason.REJECTED)], False),
        ([death("r", Reason.REJECTED), death("q"), death("s")], True),
    ],
)
def test_a_cycle_is_a_way_back_without_a_rejection(deaths: list[Death], expected: bool) -> None:
    assert is_cycle(after(*deaths), "q") is expected


@pytest.mark.parametrize("value", ["text", 7, None, {"queue": "q"}, [1, "x", None]])
def test_a_header_that_a_client_made_up_is_no_harm(value: object) -> None:
    message = Message(body=b"", message_id="m", headers={"x-death": value})
    assert deaths_of(message) == []
    assert not is_cycle(message, "q")
    assert len(deaths_of(with_death(message, death("q")))) == 1


def test_a_count_that_a_client_made_up_is_no_harm() -> None:
    entry = {"queue": "q", "reason": "expired", "count": "many"}
    message = Message(body=b"", message_id="m", headers={"x-death": [entry]})
    assert deaths_of(with_death(message, death("q")))[0]["count"] == 1
