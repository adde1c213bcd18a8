"""Tasks as values, and the two small values that travel in headers."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import (
    ERROR_TYPES_CHARS_MAX,
    ActivityOptions,
    OnGone,
    RetryPolicy,
    Route,
    TargetKind,
)
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model import envelope
from tq_broker.model.tasks import (
    ActivityTask,
    dump_retry_policy,
    dump_route,
    load_retry_policy,
    load_route,
    task_fields,
)

SECOND = timedelta(seconds=1)
milliseconds = st.integers(1, 10**9).map(lambda ms: timedelta(milliseconds=ms))
policies = st.builds(
    lambda initial, coefficient, extra, attempts, types: RetryPolicy(
        initial_interval=initial,
        backoff_coefficient=coefficient,
        maximum_interval=None if extra is None else initial + extra,
        maximum_attempts=attempts,
        non_retryable_error_types=tuple(types),
    ),
    milliseconds,
    st.floats(1, 1000),
    st.none() | milliseconds,
    st.integers(0, 10**6),
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
routes = st.builds(
    lambda kind, target, on_gone, wait: Route(
        kind, target, on_gone, wait if on_gone is OnGone.WAIT else None
    ),
    st.sampled_from([TargetKind.HOST, TargetKind.PROCESS]),
    texts,
    st.sampled_from(OnGone),
    milliseconds,
)


@given(policies)
def test_a_retry_policy_comes_back_as_it_went(policy: RetryPolicy) -> None:
    assert load_retry_policy(dump_retry_policy(policy)) == policy


@pytest.mark.parametrize("name", ["T" * 26, "\x01" * 26, "\U0001f40b" * 26])
def test_as_many_error_types_as_a_policy_may_have_can_be_sent(name: str) -> None:
    most = ERROR_TYPES_CHARS_MAX // (len(json.dumps(name)) + 2)
    policy = RetryPolicy(non_retryable_error_types=(name,) * most)
    task = ActivityTask(
        activity_id="a", activity_type="t", task_queue="q", body=b"{}", retry_policy=policy
    )
    message = envelope.task_message(task)
    assert len(message.headers["tq-retry-policy"].encode()) <= ERROR_TYPES_CHARS_MAX + 100
    assert envelope.read_task(message, "q") == task
    with pytest.raises(InvalidArgument, match="bound is 16000"):
        RetryPolicy(non_retryable_error_types=(name,) * (most + 1))


@given(routes)
def test_a_route_comes_back_as_it_went(route: Route) -> None:
    assert load_route(dump_route(route)) == route


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        '{"initial-ms": "1"}',
        '{"initial-ms": 0}',
        '{"initial-ms": -1}',
        '{"initial-ms": 1e400}',
        '{"initial-ms": 9223372036854775807}',
        '{"coefficient": 0.5}',
        '{"coefficient": NaN}',
        '{"attempts": -1}',
        '{"maximum-ms": 1}',
        '{"non-retryable": "ValueError"}',
        "[" * 10_000,
    ],
)
def test_a_bad_retry_policy_is_refused_with_the_name_of_its_header(text: str) -> None:
    with pytest.raises(Malformed, match=r"^header tq-retry-policy: "):
        load_retry_policy(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"kind": "host"}',
        '{"kind": "planet", "target": "earth"}',
        '{"kind": "host", "target": ""}',
        '{"kind": "host", "target": "a", "on-gone": "panic"}',
        '{"kind": "host", "target": "a", "on-gone": "wait"}',
        '{"kind": "host", "target": "a", "wait-ms": 5}',
        '{"kind": "host", "target": "a", "on-gone": "wait", "wait-ms": 9223372036854775807}',
        "[" * 10_000,
    ],
)
def test_a_bad_route_is_refused_with_the_name_of_its_header(text: str) -> None:
    with pytest.raises(Malformed, match=r"^header tq-route: "):
        load_route(text)


def test_fields_of_later_versions_are_ignored() -> None:
    assert load_retry_policy('{"attempts": 3, "jitter": 1}').maximum_attempts == 3
    assert load_route('{"kind": "host", "target": "a", "rack": 7}') == Route.host("a")


def test_one_of_the_two_closing_timeouts_must_be_set() -> None:
    with pytest.raises(InvalidArgument, match="start_to_close_timeout or schedule_to_close"):
        task_fields(ActivityOptions(heartbeat_timeout=SECOND))


@given(st.none() | milliseconds, st.none() | milliseconds, st.none() | milliseconds)
def test_inner_timeouts_never_exceed_outer_ones(
    start: timedelta | None, close: timedelta | None, heartbeat: timedelta | None
) -> None:
    if start is None and close is None:
        return
    fields = task_fields(
        ActivityOptions(
            start_to_close_timeout=start,
            schedule_to_close_timeout=close,
            heartbeat_timeout=heartbeat,
        )
    )
    assert fields["start_to_close_ms"] > 0
    assert fields["heartbeat_ms"] <= fields["start_to_close_ms"]
    if close is not None:
        assert fields["start_to_close_ms"] <= fields["schedule_to_close_ms"]
    if start is None:
        assert fields["start_to_close_ms"] == fields["schedule_to_close_ms"]
    if heartbeat is None:
        assert fields["heartbeat_ms"] == 0


def test_options_not_said_are_not_fields() -> None:
    fields = task_fields(ActivityOptions(start_to_close_timeout=SECOND))
    assert "retry_policy" not in fields
    assert (fields["route"], fields["priority"], fields["schedule_to_start_ms"]) == (None, None, 0)


def test_what_is_left_counts_from_the_start_of_the_activity() -> None:
    task = ActivityTask(activity_id="a", activity_type="t", task_queue="q", body=b"")
    assert task.left(10**12) is None
    timed = ActivityTask(
        activity_id="a",
        activity_type="t",
        task_queue="q",
        body=b"",
        scheduled_ms=1000,
        schedule_to_close_ms=500,
    )
    assert timed.left(1200) == timedelta(milliseconds=300)
    assert timed.left(2000) == timedelta(milliseconds=-500)
