"""Records: what an outbox row holds, small enough to be written for every message that is sent.

Rules of this file: a record names what is to be sent rather than holding it, where the run's state
and history tell the rest; it outlives a release, so fields are only appended, with a default.
"""

from __future__ import annotations

from typing import Union

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.history.effects import (
    CancelActivity,
    DispatchActivity,
    DispatchQuery,
    DispatchWorkflowTask,
    Effect,
    Reply,
    ReplyFromEvent,
    ReplyTo,
    ToShard,
)
from tq_broker.model.events import ActivityTaskScheduled
from tq_broker.model.message import Message
from tq_broker.model.payload import Payload
from tq_broker.model.requests import Reply as Answer
from tq_broker.model.requests import Request
from tq_broker.model.workflow_tasks import WorkflowTask


class TaskRecord(msgspec.Struct, frozen=True, array_like=True, tag="task"):
    """A workflow task, without its events; one with only queries is never stored."""

    task: WorkflowTask
    if_missing: bool = False


class ActivityRecord(msgspec.Struct, frozen=True, array_like=True, tag="activity"):
    """An attempt of an activity. ``scheduled`` is not stored: it is in the history."""

    run_id: str
    scheduled_event_id: int
    attempt: int
    attempt_scheduled_ms: int
    heartbeat: Payload | None = None
    scheduled: ActivityTaskScheduled | None = None
    if_missing: bool = False


class CancelRecord(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Word that an activity is not wanted any more."""

    activity_id: str


class ReplyRecord(msgspec.Struct, frozen=True, array_like=True, tag="reply"):
    """An answer."""

    to: ReplyTo
    answer: Answer


class EventReplyRecord(msgspec.Struct, frozen=True, array_like=True, tag="event-reply"):
    """An answer that stands in the history."""

    run_id: str
    to: ReplyTo
    event_id: int


class ShardRecord(msgspec.Struct, frozen=True, array_like=True, tag="shard"):
    """A request to another run."""

    workflow_id: str
    request: Request


class Parked(msgspec.Struct, frozen=True):
    """No record, as it is never stored: a message that goes to the parked ones."""

    message: Message


Record = Union[  # noqa: UP007 - msgspec takes the union apart once
    TaskRecord, ActivityRecord, CancelRecord, ReplyRecord, EventReplyRecord, ShardRecord
]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def record(effect: Effect, run_id: str) -> Record:
    """The record of an effect that run ``run_id`` has had."""
    match effect:
        case DispatchWorkflowTask(task, if_missing):
            return TaskRecord(task, if_missing)
        case DispatchQuery(task):
            return TaskRecord(task)
        case DispatchActivity():
            return ActivityRecord(
                run_id,
                effect.scheduled_event_id,
                effect.attempt,
                effect.attempt_scheduled_ms,
                effect.heartbeat,
                effect.scheduled,
                effect.if_missing,
            )
        case CancelActivity(activity_id):
            return CancelRecord(activity_id)
        case Reply(to, answer):
            return ReplyRecord(to, answer)
        case ReplyFromEvent(to, event_id):
            return EventReplyRecord(run_id, to, event_id)
        case ToShard(workflow_id, request):
            return ShardRecord(workflow_id, request)


def dump(record: Record) -> bytes:
    """The bytes of an outbox row."""
    if isinstance(record, ActivityRecord) and record.scheduled is not None:
        record = msgspec.structs.replace(record, scheduled=None)
    return _encode(record)


def load(data: bytes | memoryview) -> Record:
    """The inverse of `dump`. Raises `Malformed`."""
    try:
        found: Record = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"outbox row: {error}") from error
    return found
