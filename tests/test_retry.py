"""The retry policy, for all policies and failures."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import DURATION_MAX, RetryPolicy
from tq_broker.exceptions import RetryState, TimeoutType
from tq_broker.retry import FailedAttempt, GiveUp, RetryAfter, decide, interval

SECOND = timedelta(seconds=1)
durations = st.timedeltas(timedelta(milliseconds=1), DURATION_MAX)


@st.composite
def policies(draw: st.DrawFn) -> RetryPolicy:
    initial = draw(durations)
    return RetryPolicy(
        initial_interval=initial,
        backoff_coefficient=draw(st.floats(1, 1000)),
        maximum_interval=draw(st.none() | st.timedeltas(initial, DURATION_MAX)),
        maximum_attempts=draw(st.integers(0, 10)),
        non_retryable_error_types=draw(st.lists(st.sampled_from(["A", "B"]))),
    )


failed_attempts = st.builds(
    FailedAttempt,
    attempt=st.integers(1, 1 << 31),
    error_type=st.none() | st.sampled_from(["A", "B", "C"]),
    timeout=st.none() | st.sampled_from(TimeoutType),
    non_retryable=st.booleans(),
    cancelled=st.booleans(),
    next_delay=st.none() | st.timedeltas(timedelta(0), DURATION_MAX),
)


@given(policies(), st.integers(1, 1 << 31))
def test_the_pause_stays_within_the_policys_bounds(policy: RetryPolicy, attempt: int) -> None:
    longest = policy.maximum_interval or 100 * policy.initial_interval
    assert policy.initial_interval <= interval(policy, attempt) <= longest


@given(policies(), st.integers(1, 1000))
def test_the_pause_never_gets_shorter(policy: RetryPolicy, attempt: int) -> None:
    assert interval(policy, attempt) <= interval(policy, attempt + 1)


def test_the_pause_doubles_up_to_a_hundred_times_the_first_one() -> None:
    pauses = [interval(RetryPolicy(), attempt) / SECOND for attempt in range(1, 10)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 100, 100]


@given(policies(), failed_attempts, st.none() | st.timedeltas())
def test_a_retry_begins_in_time_and_never_in_the_past(
    policy: RetryPolicy, failed: FailedAttempt, left: timedelta | None
) -> None:
    decision = decide(policy, failed, left)
    if isinstance(decision, RetryAfter):
        assert decision.delay >= timedelta(0)
        assert left is None or decision.delay < left
        assert not failed.cancelled
        assert not failed.non_retryable
        assert not policy.maximum_attempts or failed.attempt < policy.maximum_attempts


@given(policies(), failed_attempts)
def test_the_errors_own_delay_wins(policy: RetryPolicy, failed: FailedAttempt) -> None:
    decision = decide(policy, failed)
    if isinstance(decision, RetryAfter):
        assert decision.delay == (
            interval(policy, failed.attempt) if failed.next_delay is None else failed.next_delay
        )


ONCE = RetryPolicy(maximum_attempts=1)
PICKY = RetryPolicy(
    non_retryable_error_types=["Fatal", "TemporalTimeout:StartToClose", "TemporalTimeout:Heartbeat"]
)


@pytest.mark.parametrize(
    ("policy", "failed", "state"),
    [
        (RetryPolicy(), {"cancelled": True, "non_retryable": True}, RetryState.CANCEL_REQUESTED),
        (RetryPolicy(), {"timeout": TimeoutType.SCHEDULE_TO_START}, RetryState.TIMEOUT),
        (RetryPolicy(), {"timeout": TimeoutType.SCHEDULE_TO_CLOSE}, RetryState.TIMEOUT),
        (RetryPolicy(), {"non_retryable": True}, RetryState.NON_RETRYABLE_FAILURE),
        (PICKY, {"error_type": "Fatal"}, RetryState.NON_RETRYABLE_FAILURE),
        (PICKY, {"timeout": TimeoutType.START_TO_CLOSE}, RetryState.NON_RETRYABLE_FAILURE),
        (PICKY, {"timeout": TimeoutType.HEARTBEAT}, RetryState.NON_RETRYABLE_FAILURE),
        (ONCE, {}, RetryState.MAXIMUM_ATTEMPTS_REACHED),
        (ONCE, {"next_delay": SECOND}, RetryState.MAXIMUM_ATTEMPTS_REACHED),
    ],
)
def test_some_failures_are_final(
    policy: RetryPolicy, failed: dict[str, object], state: RetryState
) -> None:
    attempt = FailedAttempt(attempt=1, **failed)  # type: ignore[arg-type]
    assert decide(policy, attempt) == GiveUp(state)


@pytest.mark.parametrize(
    "failed",
    [
        {"error_type": "Other"},
        {"error_type": None},
        {"timeout": TimeoutType.START_TO_CLOSE},
        {"timeout": TimeoutType.HEARTBEAT, "error_type": "Fatal"},
    ],
)
def test_other_failures_are_tried_again(failed: dict[str, object]) -> None:
    policy = RetryPolicy(non_retryable_error_types=["Fatal"])
    attempt = FailedAttempt(attempt=1, **failed)  # type: ignore[arg-type]
    assert decide(policy, attempt) == RetryAfter(SECOND)


def test_a_retry_that_would_begin_when_all_is_over_is_not_made() -> None:
    failed = FailedAttempt(attempt=1)
    assert decide(RetryPolicy(), failed, SECOND) == GiveUp(RetryState.TIMEOUT)
    just_in_time = SECOND + timedelta(microseconds=1)
    assert decide(RetryPolicy(), failed, just_in_time) == RetryAfter(SECOND)
