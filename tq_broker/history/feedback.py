"""What follows from a sending that did not end well: a letter to its run, another try, or nothing.

Pure.
"""

from __future__ import annotations

from typing import Any

from tq_broker.exceptions import Rejected, TargetGone, TqBrokerError, Unavailable
from tq_broker.history.letters import Letter
from tq_broker.history.machine import Message as Content
from tq_broker.history.records import (
    ActivityRecord,
    EventReplyRecord,
    Parked,
    ReplyRecord,
    TaskRecord,
)
from tq_broker.history.transaction import Sending
from tq_broker.model import failure
from tq_broker.model.payload import NULL
from tq_broker.model.requests import Outcome, Refused
from tq_broker.model.tasks import ActivityOutcome, Status
from tq_broker.model.workflow_tasks import TargetMissing, TaskFailedCause, WorkflowTaskFailed


def feedback(sending: Sending, error: TqBrokerError, *, is_gone: bool) -> list[Letter] | None:
    """The letters that tell its run; ``None`` if it has to be sent again.

    Args:
        is_gone: The error is that the queue which it was for is there no more.
    """
    match sending.record:
        case ReplyRecord() | EventReplyRecord() if is_gone:
            return []  # whoever asked has left
        case TaskRecord(task) if task.sticky and is_gone:
            # As if its queue had given it up: it is there no more.
            return [_letter(sending, task, task.run.workflow_id, task.run.run_id)]
        case TaskRecord(task) if isinstance(error, TargetGone):
            missing = TargetMissing(task, str(error))
            return [_letter(sending, missing, task.run.workflow_id, task.run.run_id)]
        case _ if isinstance(error, Unavailable):
            return None
        case TaskRecord(task) if task.scheduled_event_id:
            failed = WorkflowTaskFailed(
                run=task.run,
                scheduled_event_id=task.scheduled_event_id,
                attempt=task.attempt,
                cause=TaskFailedCause.PAYLOAD,
                failure=failure.application(str(error), type(error).__name__),
            )
            return [_letter(sending, failed, task.run.workflow_id, task.run.run_id)]
        case ActivityRecord() as record:
            return [_letter(sending, _refused(record, error), "", record.run_id)]
        case Parked():
            return None  # otherwise the letter in it would be gone
        case _:
            return []


def instead(record: Any, error: TqBrokerError) -> ReplyRecord | None:
    """What tells whoever asked that the broker will never take the answer; ``None``: nothing is to
    be sent instead of ``record``."""
    if not isinstance(error, Rejected) or not isinstance(record, ReplyRecord | EventReplyRecord):
        return None
    if isinstance(record, ReplyRecord) and isinstance(record.answer, Refused):
        return None
    refused = Refused(reason="limit", message=f"the answer cannot be sent: {error}")
    return ReplyRecord(record.to, refused)


def _refused(record: ActivityRecord, error: TqBrokerError) -> Outcome:
    """The attempt has failed for good: its route says so, or the broker will never take it."""
    outcome = ActivityOutcome(
        activity_id=f"{record.run_id}/{record.scheduled_event_id}",
        activity_type="" if record.scheduled is None else record.scheduled.activity_type,
        status=Status.FAILED,
        attempt=record.attempt,
        failure=failure.application(str(error), type(error).__name__, non_retryable=True),
    )
    return Outcome(record.scheduled_event_id, record.run_id, outcome, NULL)


def _letter(sending: Sending, content: Content, workflow_id: str, run_id: str) -> Letter:
    return Letter(
        shard=sending.shard,
        message_id="",
        content=content,
        workflow_id=workflow_id,
        run_id=run_id,
    )
