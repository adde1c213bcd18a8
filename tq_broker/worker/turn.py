"""A turn: what one activation of a workflow's code led to.

Values only, between the replay (`tq_broker.worker.replay`) and whoever runs it.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tq_broker.common import RetryPolicy
from tq_broker.model.commands import Command
from tq_broker.model.failure import Failure
from tq_broker.model.workflow_tasks import TaskFailedCause


class LocalActivity(msgspec.Struct, frozen=True, kw_only=True):
    """An activity to run right here, within the workflow task.

    Attributes:
        seq: Names it towards the replay; grows within a run.
        arguments: JSON list, without codecs.
        attempt: The first one to make; more than 1 after a backoff that was a timer.
        retry_policy: The runner retries by it, until an interval is longer than
            ``local_retry_threshold_ms``: then it reports a backoff.
        scheduled_ms: When its first attempt was scheduled: schedule-to-close counts from here.
    """

    seq: int
    activity_id: str
    activity_type: str
    arguments: bytes
    scheduled_ms: int
    attempt: int = 1
    schedule_to_close_ms: int = 0
    schedule_to_start_ms: int = 0
    start_to_close_ms: int = 0
    retry_policy: RetryPolicy
    local_retry_threshold_ms: int = 60_000
    headers: dict[str, str] = {}


class LocalActivityDone(msgspec.Struct, frozen=True, kw_only=True):
    """How a `LocalActivity` ended: with a ``result`` (JSON, without codecs), with a ``failure``,
    or with a failure of attempt ``attempt`` that is to be followed by another after ``backoff_ms``.
    """

    seq: int
    attempt: int = 1
    result: bytes = b"null"
    failure: Failure | None = None
    backoff_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailure:
    """The workflow task failed; the workflow goes on with the next attempt."""

    cause: TaskFailedCause
    failure: Failure
    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What an activation led to.

    Attributes:
        commands: All commands of the workflow task; only of meaning when ``complete``.
        local_activities: To be started now.
        canceled_local: `LocalActivity.seq` of those that are to be cancelled now.
        complete: The workflow task can be answered: no local activity is awaited (or the workflow
            has ended, or ``failure`` is set). False: call ``local_activity_done`` for the awaited.
        failure: Answer with WorkflowTaskFailed and throw the replay away (``close`` it).
        closed: The commands end the run.
        current_details: What `workflow.set_current_details` was last given.
    """

    commands: list[Command]
    local_activities: list[LocalActivity]
    canceled_local: list[int]
    complete: bool = True
    failure: TaskFailure | None = None
    closed: bool = False
    current_details: str = ""
