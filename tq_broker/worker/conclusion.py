"""What follows an attempt that has ended: another attempt, or an outcome for the caller. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tq_broker import retry
from tq_broker.exceptions import RetryState, TimeoutType
from tq_broker.model import failure as failures
from tq_broker.model.failure import Failure, FailureKind
from tq_broker.model.tasks import ActivityTask, Status, TaskBody
from tq_broker.queues.delay import DELAY_MAX_MS


@dataclass(frozen=True, slots=True)
class Retry:
    """The next attempt, due after ``delay_ms``; its body still has to be made of ``body``."""

    task: ActivityTask
    body: TaskBody
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Final:
    """The activity has ended without a result; or, without a ``state``, an attempt of a workflow's
    activity has, and history decides what follows."""

    status: Status
    failure: Failure
    state: RetryState | None


WORKER_SHUTDOWN = "WorkerShutdown"

RESENT_MAX = 10
"""No publisher sends a start again more often."""


def shut_down() -> Failure:
    """The retryable failure of an attempt that a worker had to leave behind."""
    return failures.application("the worker has shut down", WORKER_SHUTDOWN)


def failure_of(error: BaseException, *, cancel_requested: bool, closing: bool) -> Failure:
    """What an exception that left an activity means.

    A cancellation counts as one only if it was requested: raised because the worker shuts down
    it is a failure to be retried elsewhere, and out of the blue it is an error like any other.
    """
    failure = failures.from_exception(error)
    if failure.kind is not FailureKind.CANCELED or cancel_requested:
        return failure
    if closing:
        return shut_down()
    return msgspec.structs.replace(failure, kind=FailureKind.APPLICATION, type=type(error).__name__)


def after_failure(
    task: ActivityTask,
    body: TaskBody,
    failure: Failure,
    heartbeat: Sequence[msgspec.Raw] | None,
    now_ms: int,
) -> Retry | Final:
    """What follows when attempt ``task`` ended with ``failure``.

    Args:
        heartbeat: The last details that the attempt reported; ``None`` hands on those that it
            was given itself.
    """
    if task.workflow is not None:
        return Final(_status(failure), failure, None)
    decision = retry.decide(task.retry_policy, failure.attempt(task.attempt), task.left(now_ms))
    if isinstance(decision, retry.GiveUp):
        return Final(_status(failure), _told(failure, decision.state), decision.state)
    # The delay ladder has an end, after most of a year.
    delay_ms = min(round(decision.delay.total_seconds() * 1000), DELAY_MAX_MS)
    following = msgspec.structs.replace(
        task,
        attempt=task.attempt + 1,
        attempt_scheduled_ms=now_ms + delay_ms,
        start_token=claim_token(task),
        resent=0,
        lease="",
        rule="",
        fell_back="",
        pass_mark="",
    )
    left_behind = TaskBody(
        args=body.args,
        heartbeat=body.heartbeat if heartbeat is None else list(heartbeat),
        # The stack trace has been logged here; it need not travel with every attempt.
        failure=msgspec.structs.replace(failure, stack_trace="", cause=None),
    )
    return Retry(following, left_behind, delay_ms)


def _status(failure: Failure) -> Status:
    if failure.kind is FailureKind.CANCELED:
        return Status.CANCELED
    return Status.TIMED_OUT if failure.kind is FailureKind.TIMEOUT else Status.FAILED


def _told(failure: Failure, state: RetryState) -> Failure:
    """The failure as the caller sees it: retries that ran out of time are a timeout."""
    if state is not RetryState.TIMEOUT or failure.kind is FailureKind.TIMEOUT:
        return failure
    out_of_time = failures.timed_out(TimeoutType.SCHEDULE_TO_CLOSE)
    return msgspec.structs.replace(out_of_time, cause=failure)


def claim_token(task: ActivityTask) -> str:
    """What this copy of a start claims its id with: a copy that was sent again is another."""
    if not task.resent or not task.start_token:
        return task.start_token
    return f"{task.start_token}.{task.resent}"


def twin_tokens(task: ActivityTask) -> list[str]:
    """What the other copies of the same start claim its id with, as far as they are likely.

    A publisher sends again after a broken connection; more than two further times is rare, and a
    number that only somebody else can have written is not counted up to.
    """
    copies = range(min(task.resent, RESENT_MAX) + 3)
    tokens = [claim_token(msgspec.structs.replace(task, resent=number)) for number in copies]
    return [token for token in tokens if token != claim_token(task)]
