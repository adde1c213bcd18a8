"""A call's arguments, checked: every refusal names the argument and its bound."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tq_broker import activity
from tq_broker.client.request import StartOptions, make_start
from tq_broker.common import ActivityIDConflictPolicy, RetryPolicy, Route
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import Names

NAMES = Names("n")
MINUTE = timedelta(minutes=1)


@activity.defn(task_queue="mail", start_to_close_timeout=MINUTE, priority=2)
def send_mail(to: str, subject: str = "") -> int:
    return 1


@activity.defn(start_to_close_timeout=MINUTE)
async def add(*numbers: int) -> int:
    return sum(numbers)


@activity.defn(dynamic=True)
def anything(args: Any) -> None:
    pass


class Greeter:
    @activity.defn(task_queue="q", start_to_close_timeout=MINUTE)
    def greet(self, name: str) -> str:
        return f"Hello, {name}"


def test_the_decorator_is_the_default_and_the_call_wins() -> None:
    start = make_start(NAMES, send_mail, {})
    assert (start.activity_type, start.task_queue) == ("send_mail", "mail")
    assert start.task["start_to_close_ms"] == 60_000
    assert start.task["priority"] == 2
    said = make_start(NAMES, send_mail, {"task_queue": "slow", "priority": 5})
    assert (said.task_queue, said.task["priority"]) == ("slow", 5)
    assert said.task["start_to_close_ms"] == 60_000


def test_an_activity_is_given_by_name_as_well() -> None:
    start = make_start(
        NAMES,
        "other",
        {"task_queue": "q", "schedule_to_close_timeout": MINUTE, "result_type": int},
    )
    assert (start.activity_type, start.definition, start.result_type) == ("other", None, int)
    start.check_args([1, 2, 3])


def test_the_result_type_is_that_of_the_function_unless_it_is_said() -> None:
    assert make_start(NAMES, send_mail, {}).result_type is int
    assert make_start(NAMES, send_mail, {"result_type": str}).result_type is str
    named = {"task_queue": "q", "start_to_close_timeout": MINUTE}
    assert make_start(NAMES, "by_name", named).result_type is Any


def test_only_an_id_is_retained() -> None:
    assert "id_retention_ms" not in make_start(NAMES, send_mail, {}).task
    start = make_start(
        NAMES,
        send_mail,
        {
            "id": "x",
            "id_retention": MINUTE,
            "id_conflict_policy": ActivityIDConflictPolicy.FAIL,
        },
    )
    assert start.task["id_retention_ms"] == 60_000
    assert start.task["id_conflict"] is ActivityIDConflictPolicy.FAIL


def test_a_delay_is_told_in_milliseconds() -> None:
    assert make_start(NAMES, send_mail, {}).delay_ms == 0
    assert make_start(NAMES, send_mail, {"start_delay": timedelta(0)}).delay_ms == 0
    assert make_start(NAMES, send_mail, {"start_delay": MINUTE}).delay_ms == 60_000


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"id": ""}, "id must not be empty"),
        ({"id": 5}, "id must be a string"),
        ({"id": "x" * 201}, "id .* the bound is 200"),
        ({"id": "a\nb"}, "id has the control"),
        ({"id_conflict_policy": "FAIL"}, "id_conflict_policy"),
        ({"id_retention": timedelta(milliseconds=10)}, "id_retention .* at least 0:00:01"),
        ({"id_retention": None}, "id_retention"),
        ({"start_delay": timedelta(days=301)}, "start_delay .* bound is 300 days"),
        ({"start_delay": -MINUTE}, "start_delay"),
        ({"start_delay": 5}, "start_delay must be a timedelta"),
        ({"reply_to": "amq.rabbitmq.reply-to"}, "reply_to must be a reply queue"),
        ({"reply_to": "tq.other.reply.x"}, "reply_to must be a reply queue"),
        ({"reply_to": "tq.n.activity.x"}, "reply_to must be a reply queue"),
        ({"reply_to": 5}, "reply_to must be a string"),
        ({"reply_to": "tq.n.reply.x", "wait_result": False}, "reply_to .* wait_result"),
        ({"priority": 6}, "priority is 6; it must be from 1"),
        ({"priority": True}, "priority"),
        ({"task_queue": ""}, "task_queue"),
        ({"task_queue": "x" * 101}, "task_queue .* 100"),
        ({"start_to_close_timeout": timedelta(0)}, "start_to_close_timeout"),
        ({"heartbeat_timeout": 5}, "heartbeat_timeout"),
        ({"schedule_to_close_timeout": timedelta(days=4000)}, "schedule_to_close_timeout"),
        ({"retry_policy": 3}, "retry_policy"),
        ({"route": "host"}, "route"),
        ({"timeout": 3}, "unknown activity option 'timeout'"),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        make_start(NAMES, send_mail, options)


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (lambda: None, "not an activity"),
        (5, "not an activity"),
        ("", "activity must not be empty"),
        ("x" * 201, "activity .* 200"),
        (anything, "dynamic activity"),
    ],
)
def test_what_is_no_activity_is_refused(what: Any, name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        make_start(NAMES, what, {"task_queue": "q", "start_to_close_timeout": MINUTE})


def test_a_task_queue_must_be_said_somewhere() -> None:
    with pytest.raises(InvalidArgument, match="task_queue is not set"):
        make_start(NAMES, add, {})


def test_a_timeout_must_be_said_somewhere() -> None:
    with pytest.raises(InvalidArgument, match="start_to_close_timeout or schedule_to_close"):
        make_start(NAMES, "by_name", {"task_queue": "q"})


@pytest.mark.parametrize(
    ("args", "error"),
    [([], "at least 1 arguments, got 0"), ([1, 2, 3], "at most 2 arguments, got 3")],
)
def test_the_number_of_arguments_is_checked(args: list[Any], error: str) -> None:
    with pytest.raises(InvalidArgument, match=error):
        make_start(NAMES, send_mail, {}).check_args(args)


@pytest.mark.parametrize("args", [["a"], ["a", "b"]])
def test_defaults_need_no_argument(args: list[Any]) -> None:
    make_start(NAMES, send_mail, {}).check_args(args)


def test_a_function_may_take_any_number() -> None:
    start = make_start(NAMES, add, {"task_queue": "q"})
    start.check_args([])
    start.check_args(range(50))


def test_a_bound_method_is_called_without_its_self() -> None:
    start = make_start(NAMES, Greeter().greet, {})
    start.check_args(["you"])
    with pytest.raises(InvalidArgument, match="at most 1"):
        start.check_args(["you", "me"])


def test_who_has_no_instance_names_the_method_of_the_class() -> None:
    """Found: ``self`` was counted as an argument."""
    start = make_start(NAMES, Greeter.greet, {})
    start.check_args(["you"])
    with pytest.raises(InvalidArgument, match="at most 1"):
        start.check_args(["you", "me"])


def test_the_same_call_is_checked_once() -> None:
    first = make_start(NAMES, "t", {"task_queue": "q", "start_to_close_timeout": MINUTE})
    second = make_start(NAMES, "t", {"task_queue": "q", "start_to_close_timeout": MINUTE})
    other = make_start(NAMES, "t", {"task_queue": "r", "start_to_close_timeout": MINUTE})

    assert first is second
    assert other.task_queue == "r"


def test_what_cannot_be_hashed_is_checked_every_time() -> None:
    policy = RetryPolicy(non_retryable_error_types=["A"])
    start = make_start(
        NAMES,
        "t",
        {"task_queue": "q", "start_to_close_timeout": MINUTE, "retry_policy": policy},
    )

    assert start.task["retry_policy"] is policy


def test_start_options_have_defaults_for_all() -> None:
    options = StartOptions()
    assert options.wait_result
    assert options.id is None


def test_route_and_policy_travel_with_the_task() -> None:
    policy = RetryPolicy(maximum_attempts=2)
    start = make_start(NAMES, send_mail, {"route": Route.host("h"), "retry_policy": policy})
    assert (start.task["route"], start.task["retry_policy"]) == (Route.host("h"), policy)


@pytest.mark.parametrize(
    "said", [{"affinity": "host"}, {"affinity_group": "g"}, {"on_lost": "wait"}]
)
def test_only_workflows_have_earlier_activities_to_follow(said: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="are for activities of workflows"):
        make_start(NAMES, "t", {"task_queue": "q", "start_to_close_timeout": MINUTE, **said})
