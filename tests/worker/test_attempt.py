"""One attempt: its state, its deadlines, what its code sees of it."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.attempts import attempt_of, place
from tq_broker import activity
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import Malformed, TimeoutType
from tq_broker.model.control import TaskToken
from tq_broker.testing import ManualClock
from tq_broker.worker.attempt import Attempt, State

NOW_MS = 1_700_000_000_000


@activity.defn
def work(number: int = 0, text: str = "") -> None: ...


@activity.defn(dynamic=True)
def anything(args: list[activity.RawValue]) -> None: ...


@given(st.lists(st.sampled_from(State)))
def test_an_attempt_ends_once_and_never_goes_back(moves: list[State]) -> None:
    attempt = attempt_of(work)
    order = list(State)
    for to in moves:
        before = attempt.state
        moved = attempt.move(to)
        assert moved == (order.index(to) > order.index(before))
        assert attempt.state is (to if moved else before)


@pytest.mark.parametrize(
    ("fields", "close_s", "kind"),
    [
        ({"start_to_close_ms": 3000}, 3, TimeoutType.START_TO_CLOSE),
        ({"start_to_close_ms": 0}, None, TimeoutType.START_TO_CLOSE),
        (
            {"start_to_close_ms": 3000, "schedule_to_close_ms": 9000},
            3,
            TimeoutType.START_TO_CLOSE,
        ),
        (
            {"start_to_close_ms": 3000, "schedule_to_close_ms": 2000},
            2,
            TimeoutType.SCHEDULE_TO_CLOSE,
        ),
        ({"start_to_close_ms": 0, "schedule_to_close_ms": 2000}, 2, TimeoutType.SCHEDULE_TO_CLOSE),
        # It waited for 1.5 s of them in its queue.
        (
            {"schedule_to_close_ms": 2000, "scheduled_ms": NOW_MS - 1500},
            0.5,
            TimeoutType.SCHEDULE_TO_CLOSE,
        ),
        ({"schedule_to_close_ms": 1, "scheduled_ms": 0}, None, TimeoutType.SCHEDULE_TO_CLOSE),
    ],
)
def test_the_earlier_deadline_closes_an_attempt(
    fields: dict[str, Any], close_s: float | None, kind: TimeoutType
) -> None:
    attempt = attempt_of(work, now=1000.0, now_ms=NOW_MS, **fields)
    if fields.get("scheduled_ms") == 0:
        assert attempt.close_at is not None
        assert attempt.close_at < 1000.0
    else:
        assert attempt.close_at == (None if close_s is None else 1000.0 + close_s)
    assert attempt.close_type is kind


def test_a_heartbeat_puts_its_deadline_off_and_is_told() -> None:
    clock = ManualClock()
    told: list[Attempt] = []
    attempt = attempt_of(
        work, at=place(clock), now=clock.monotonic(), heartbeat_ms=2000, on_heartbeat=told.append
    )
    assert attempt.heartbeat_at == 1002.0
    assert attempt.details is None
    clock.advance(1.5)
    attempt.heartbeat("half", [1])
    assert attempt.heartbeat_at == 1003.5
    assert attempt.details == [msgspec.Raw(b'"half"'), msgspec.Raw(b"[1]")]
    assert told == [attempt]


def test_without_a_heartbeat_timeout_there_is_no_deadline() -> None:
    attempt = attempt_of(work)
    attempt.heartbeat()
    assert (attempt.heartbeat_at, attempt.details) == (None, [])


@pytest.mark.parametrize("looks_first", [True, False])
def test_a_requested_cancellation_is_seen_whenever_the_code_looks(looks_first: bool) -> None:
    attempt = attempt_of(work)
    if looks_first:
        assert not attempt.cancelled.is_set()
    attempt.request_cancel()
    assert attempt.cancelled.is_set()
    assert attempt.cancel_requested


def test_arguments_are_decoded_by_their_hints() -> None:
    assert attempt_of(work, "3", "x").arguments() == [3, "x"]
    assert attempt_of(work).arguments() == []
    with pytest.raises(Malformed):
        attempt_of(work, "three").arguments()


def test_a_dynamic_activity_gets_all_its_arguments_as_one() -> None:
    assert attempt_of(anything).arguments() == [[]]
    ((first, second),) = attempt_of(anything, 1, "x").arguments()
    assert (first.decode(), second.decode(str)) == (1, "x")


def test_info_tells_what_is_known() -> None:
    at = place()
    policy = RetryPolicy(maximum_attempts=3)
    attempt = attempt_of(
        work,
        at=at,
        now_ms=NOW_MS + 3000,
        attempt=2,
        attempt_scheduled_ms=NOW_MS + 1000,
        schedule_to_start_ms=5000,
        heartbeat_ms=100,
        retry_policy=policy,
        priority=1,
        heartbeat=[msgspec.Raw(b'"half"'), msgspec.Raw(b"2")],
    )
    info = attempt.info
    scheduled = datetime.fromtimestamp(NOW_MS / 1000, timezone.utc)
    assert (info.activity_id, info.activity_type, info.attempt) == ("a-1", "work", 2)
    assert (info.task_queue, info.namespace) == ("work", "default")
    assert (info.host, info.worker_id, info.identity) == ("here", "worker-1", "me@here")
    assert info.scheduled_time == scheduled
    assert info.current_attempt_scheduled_time == scheduled + timedelta(seconds=1)
    assert info.started_time == scheduled + timedelta(seconds=3)
    assert info.start_to_close_timeout == timedelta(minutes=1)
    assert info.schedule_to_start_timeout == timedelta(seconds=5)
    assert info.schedule_to_close_timeout is None
    assert info.heartbeat_timeout == timedelta(milliseconds=100)
    assert info.heartbeat_details == ("half", 2)
    assert (info.retry_policy, info.priority, info.is_local) == (policy, 1, False)
    assert TaskToken.load(info.task_token) == TaskToken("default", "worker-1", "a-1", 2)
    assert base64.urlsafe_b64decode(info.task_token)
    assert attempt.info is info


def test_the_first_attempt_was_scheduled_with_its_activity() -> None:
    info = attempt_of(work).info
    assert info.current_attempt_scheduled_time == info.scheduled_time


@pytest.mark.parametrize("field", ["scheduled_ms", "attempt_scheduled_ms"])
def test_a_time_that_no_calendar_has_is_the_last_one(field: str) -> None:
    fields: dict[str, Any] = {field: 2**53}
    info = attempt_of(work, **fields).info
    assert info.current_attempt_scheduled_time.year == 9999


def test_what_the_worker_shares_is_seen() -> None:
    at = place()
    attempt = attempt_of(work, at=at)
    assert attempt.worker_shutdown is at.shutdown
    assert attempt.payload_converter is at.converter.payload_converter
    with attempt.shield():
        pass
