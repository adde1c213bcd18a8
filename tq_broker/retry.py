"""Whether a failed attempt is followed by another: a pure policy, asked by everybody.

Rules of this file: it knows no clock and no queue, and it never sees an exception, only what
matters about one (`FailedAttempt`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from tq_broker.common import RetryPolicy
from tq_broker.exceptions import RetryState, TimeoutType

_TIMEOUT_NAMES = {
    TimeoutType.START_TO_CLOSE: "TemporalTimeout:StartToClose",
    TimeoutType.HEARTBEAT: "TemporalTimeout:Heartbeat",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """What a retry decision depends on.

    Attributes:
        attempt: The one that failed, from 1.
        error_type: `ApplicationError.type`, if it is one.
        timeout: Which timeout, if it is one.
        non_retryable: The error itself forbids a retry.
        cancelled: The activity was cancelled or terminated.
        next_delay: The error's own wish for the next interval.
    """

    attempt: int
    error_type: str | None = None
    timeout: TimeoutType | None = None
    non_retryable: bool = False
    cancelled: bool = False
    next_delay: timedelta | None = None


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Try again after ``delay``."""

    delay: timedelta


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not try again; ``state`` says why."""

    state: RetryState


def decide(
    policy: RetryPolicy, failed: FailedAttempt, left: timedelta | None = None
) -> RetryAfter | GiveUp:
    """Answer whether and when the next attempt is made.

    Args:
        left: Until the schedule-to-close timeout; ``None`` means no such timeout. A retry that
            would begin later is not made.
    """
    if failed.cancelled:
        return GiveUp(RetryState.CANCEL_REQUESTED)
    if failed.timeout in (TimeoutType.SCHEDULE_TO_START, TimeoutType.SCHEDULE_TO_CLOSE):
        return GiveUp(RetryState.TIMEOUT)
    if failed.non_retryable or _listed(policy, failed):
        return GiveUp(RetryState.NON_RETRYABLE_FAILURE)
    if policy.maximum_attempts and failed.attempt >= policy.maximum_attempts:
        return GiveUp(RetryState.MAXIMUM_ATTEMPTS_REACHED)
    delay = interval(policy, failed.attempt) if failed.next_delay is None else failed.next_delay
    if left is not None and delay >= left:
        return GiveUp(RetryState.TIMEOUT)
    return RetryAfter(delay)


def _listed(policy: RetryPolicy, failed: FailedAttempt) -> bool:
    name = failed.error_type if failed.timeout is None else _TIMEOUT_NAMES.get(failed.timeout)
    return name is not None and name in policy.non_retryable_error_types


def interval(policy: RetryPolicy, attempt: int) -> timedelta:
    """The policy's own pause after attempt ``attempt`` has failed."""
    longest = policy.maximum_interval or 100 * policy.initial_interval
    try:
        pause = policy.initial_interval * policy.backoff_coefficient ** (attempt - 1)
    except OverflowError:
        return longest
    return min(pause, longest)
