"""The settings of a namespace: records of a log, and the state that they add up to.

Rules of this file: a record is a fact with its time and author; `Settings.apply` folds records
in log order into a state, and every process that has read as far has the same state. A record
that cannot be read is skipped and reported, and the last good state stays.

Today the log tells which task queues exist and which activities are cancelled. Limits, rules,
versions and pauses are further records of the same log.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model import envelope
from tq_broker.model.message import Message

CANCELLED_MAX = 100_000
"""Cancelled ids remembered; the oldest is forgotten first, so memory has a bound."""


class TaskQueueDeclared(msgspec.Struct, frozen=True, tag="task-queue-declared"):
    """Somebody declared the shared queue of a task queue."""

    task_queue: str
    at_ms: int
    by: str = ""


class TaskQueueReclaimed(msgspec.Struct, frozen=True, tag="task-queue-reclaimed"):
    """The shared queue of a task queue was idle and empty, and was removed."""

    task_queue: str
    at_ms: int
    by: str = ""


class ActivityCanceled(msgspec.Struct, frozen=True, tag="activity-canceled"):
    """The activity is not wanted any more: do not start it, stop it if it runs."""

    activity_id: str
    at_ms: int
    by: str = ""
    reason: str = ""


Record = TaskQueueDeclared | TaskQueueReclaimed | ActivityCanceled

_decoder = msgspec.json.Decoder(Record)


def record_message(record: Record, message_id: str) -> Message:
    """The message that carries ``record``."""
    return Message(
        body=msgspec.json.encode(record),
        message_id=message_id,
        kind=envelope.SETTING,
        headers={"tq-protocol": envelope.PROTOCOL},
    )


def read_record(message: Message) -> Record:
    """The record in ``message``. Raises `Malformed`."""
    if message.headers.get("tq-protocol") != envelope.PROTOCOL:
        raise Malformed("setting of an unknown protocol version")
    try:
        record: Record = _decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"setting: {error}") from error
    return record


class Settings:
    """The state that the records read so far add up to. Not thread-safe: it has one owner."""

    def __init__(self) -> None:
        self.task_queues: dict[str, int] = {}
        """Task queues that exist, with the time (epoch ms) of their last declaration."""
        self.cancelled: OrderedDict[str, ActivityCanceled] = OrderedDict()

    def apply(self, record: Record) -> None:
        """Take one record into account."""
        match record:
            case TaskQueueDeclared():
                self.task_queues[record.task_queue] = record.at_ms
            case TaskQueueReclaimed():
                self.task_queues.pop(record.task_queue, None)
            case ActivityCanceled():
                self.cancelled[record.activity_id] = record
                if len(self.cancelled) > CANCELLED_MAX:
                    self.cancelled.popitem(last=False)
