"""What follows an attempt that has ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ApplicationError, CancelledError, RetryState, TimeoutType
from tq_broker.model import failure as failures
from tq_broker.model.failure import Failure, FailureKind
from tq_broker.model.tasks import ActivityTask, Status, TaskBody, WorkflowOrigin
from tq_broker.queues.delay import DELAY_MAX_MS
from tq_broker.worker.conclusion import (
    Final,
    Retry,
    after_failure,
    claim_token,
    failure_of,
    shut_down,
    twin_tokens,
)

NOW_MS = 1_000_000
BODY = TaskBody(args=[msgspec.Raw(b"1")], heartbeat=[msgspec.Raw(b'"old"')])
BAD = failures.application("bad", "Bad")


def task(**fields: Any) -> ActivityTask:
    return ActivityTask(
        **(
            {
                "activity_id": "a",
                "activity_type": "t",
                "task_queue": "q",
                "body": b"",
                "scheduled_ms": NOW_MS - 1000,
            }
            | fields
        )
    )


def after(one: ActivityTask, failure: Failure = BAD, heartbeat: Any = None) -> Retry | Final:
    return after_failure(one, BODY, failure, heartbeat, NOW_MS)


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (BAD, Status.FAILED),
        (failures.canceled(), Status.CANCELED),
        (failures.timed_out(TimeoutType.HEARTBEAT), Status.TIMED_OUT),
        (shut_down(), Status.FAILED),
    ],
)
@pytest.mark.parametrize("attempts", [0, 1, 5])
def test_what_follows_an_attempt_of_a_workflow_is_for_history_to_say(
    failure: Failure, status: Status, attempts: int
) -> None:
    of_workflow = task(
        workflow=WorkflowOrigin("w", "r", "W", "a", 5),
        retry_policy=RetryPolicy(maximum_attempts=attempts),
    )
    assert after(of_workflow, failure) == Final(status, failure, None)


def test_the_next_attempt_is_due_after_the_policys_pause() -> None:
    following = after(task(attempt=2, resent=3, lease="w"))
    assert isinstance(following, Retry)
    assert following.delay_ms == 2000
    assert following.task.attempt == 3
    assert following.task.attempt_scheduled_ms == NOW_MS + 2000
    assert following.task.scheduled_ms == NOW_MS - 1000
    assert (following.task.resent, following.task.lease) == (0, "")


def test_it_gets_the_arguments_the_failure_and_the_latest_details() -> None:
    traced = msgspec.structs.replace(BAD, stack_trace="long", cause=BAD)
    following = after(task(), traced, [msgspec.Raw(b'"new"')])
    assert isinstance(following, Retry)
    assert following.body == TaskBody(
        args=BODY.args, heartbeat=[msgspec.Raw(b'"new"')], failure=BAD
    )


def test_without_new_details_it_gets_the_old_ones() -> None:
    following = after(task())
    assert isinstance(following, Retry)
    assert following.body.heartbeat == BODY.heartbeat


def test_details_may_be_withdrawn() -> None:
    following = after(task(), heartbeat=[])
    assert isinstance(following, Retry)
    assert following.body.heartbeat == []


@pytest.mark.parametrize(
    ("fields", "failure", "status", "state"),
    [
        (
            {"retry_policy": RetryPolicy(maximum_attempts=1)},
            BAD,
            Status.FAILED,
            RetryState.MAXIMUM_ATTEMPTS_REACHED,
        ),
        (
            {},
            failures.application("bad", "Bad", non_retryable=True),
            Status.FAILED,
            RetryState.NON_RETRYABLE_FAILURE,
        ),
        ({}, failures.canceled(), Status.CANCELED, RetryState.CANCEL_REQUESTED),
        (
            {},
            Failure(kind=FailureKind.TERMINATED, message="x"),
            Status.FAILED,
            RetryState.CANCEL_REQUESTED,
        ),
        (
            {},
            failures.timed_out(TimeoutType.SCHEDULE_TO_START),
            Status.TIMED_OUT,
            RetryState.TIMEOUT,
        ),
    ],
)
def test_an_end_for_good_has_its_status_and_its_reason(
    fields: dict[str, Any], failure: Failure, status: Status, state: RetryState
) -> None:
    assert after(task(**fields), failure) == Final(status, failure, state)


def test_retries_that_ran_out_of_time_are_told_as_a_timeout_with_the_failure_as_its_cause() -> None:
    final = after(task(schedule_to_close_ms=1500))
    assert isinstance(final, Final)
    assert final.state is RetryState.TIMEOUT
    assert final.failure.timeout_type == int(TimeoutType.SCHEDULE_TO_CLOSE)
    assert final.failure.cause == BAD


@given(st.integers(1, 1_000_000), st.integers(1, 10**9), st.none() | st.integers(0, 10**18))
def test_every_pause_fits_the_ladder(attempt: int, initial_ms: int, wish_ms: int | None) -> None:
    """Found: the ladder refused a longer one, and the attempt was never reported."""
    policy = RetryPolicy(initial_interval=timedelta(milliseconds=initial_ms))
    failure = msgspec.structs.replace(BAD, next_retry_delay_ms=wish_ms)
    following = after(task(attempt=attempt, retry_policy=policy), failure)
    assert isinstance(following, Retry)
    assert 0 <= following.delay_ms <= DELAY_MAX_MS


def test_a_copy_that_was_sent_again_claims_for_itself_and_its_retries_for_it() -> None:
    assert claim_token(task()) == ""
    assert claim_token(task(resent=2)) == ""
    assert claim_token(task(start_token="s")) == "s"
    resent = task(start_token="s", resent=2)
    assert claim_token(resent) == "s.2"
    following = after(resent)
    assert isinstance(following, Retry)
    assert claim_token(following.task) == "s.2"


@pytest.mark.parametrize("cancelled", [CancelledError("x"), asyncio.CancelledError("x")])
def test_a_cancellation_counts_only_if_it_was_requested(cancelled: BaseException) -> None:
    asked = failure_of(cancelled, cancel_requested=True, closing=False)
    assert asked.kind is FailureKind.CANCELED
    assert failure_of(cancelled, cancel_requested=True, closing=True).kind is FailureKind.CANCELED
    assert failure_of(cancelled, cancel_requested=False, closing=True) == shut_down()
    out_of_the_blue = failure_of(cancelled, cancel_requested=False, closing=False)
    assert (out_of_the_blue.kind, out_of_the_blue.type) == (
        FailureKind.APPLICATION,
        "CancelledError",
    )


def test_other_errors_are_told_as_they_are() -> None:
    error = ApplicationError("bad", type="Bad")
    for closing in (False, True):
        told = failure_of(error, cancel_requested=False, closing=closing)
        assert (told.kind, told.type, told.message) == (FailureKind.APPLICATION, "Bad", "bad")


def test_the_copies_of_one_start_know_each_others_claims() -> None:
    task = ActivityTask(activity_id="a", activity_type="t", task_queue="q", body=b"",
                        start_token="x")  # fmt: skip
    copies = [msgspec.structs.replace(task, resent=number) for number in range(3)]
    for copy in copies:
        others = {claim_token(other) for other in copies if other is not copy}
        assert others <= set(twin_tokens(copy))
        assert claim_token(copy) not in twin_tokens(copy)


def test_a_number_of_copies_that_cannot_be_is_not_counted_up_to() -> None:
    task = ActivityTask(activity_id="a", activity_type="t", task_queue="q", body=b"",
                        start_token="x", resent=2**53)  # fmt: skip
    assert len(twin_tokens(task)) < 20
