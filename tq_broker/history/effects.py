"""What the execution state machine answers with: values, for the shard's owner to carry out.

Nothing here is done by the machine itself. Effects are carried out in their order, and only after
the state and the events of the same step are stored.
"""

from __future__ import annotations

from typing import Union

import msgspec

from tq_broker.model.events import ActivityTaskScheduled
from tq_broker.model.payload import Payload
from tq_broker.model.requests import Reply as Answer
from tq_broker.model.requests import Request
from tq_broker.model.workflow_tasks import WorkflowTask


class ReplyTo(msgspec.Struct, frozen=True, array_like=True):
    """Where an answer goes: a reply queue's full name, and the asker's own id of the question."""

    reply_to: str
    correlation_id: str


class DispatchWorkflowTask(msgspec.Struct, frozen=True):
    """Publish a workflow task: to the sticky queue of ``task.sticky``, or with "" there to the
    workflow task queue ``task.task_queue``.

    ``task.events`` is empty: fill it in with the events from ``task.first_event_id`` on
    (`tq_broker.history.state.Execution.events_from`, or else the store).

    Attributes:
        if_missing: It was published before: do so again only if nothing is ready in its queue.
    """

    task: WorkflowTask
    if_missing: bool = False


class DispatchQuery(msgspec.Struct, frozen=True):
    """Publish a workflow task that has only queries. As `DispatchWorkflowTask`; on a sticky queue
    it goes without events (its ``first_event_id`` is beyond its ``last_event_id``)."""

    task: WorkflowTask


class DispatchActivity(msgspec.Struct, frozen=True):
    """Publish an attempt of an activity: `tq_broker.history.activities.task` makes the task of it.

    Attributes:
        scheduled: Its event, if this step wrote it; otherwise it has to be read from the store.
        heartbeat: The last details of the attempt before, if there are any.
        if_missing: As of `DispatchWorkflowTask`.
    """

    scheduled_event_id: int
    attempt: int
    attempt_scheduled_ms: int
    scheduled: ActivityTaskScheduled | None = None
    heartbeat: Payload | None = None
    if_missing: bool = False


class CancelActivity(msgspec.Struct, frozen=True):
    """Tell whoever runs the activity of this wire id that it is not wanted any more."""

    activity_id: str


class Reply(msgspec.Struct, frozen=True):
    """Answer a client or a worker."""

    to: ReplyTo
    answer: Answer


class ReplyFromEvent(msgspec.Struct, frozen=True):
    """Answer with what a stored WorkflowExecutionUpdateCompleted says
    (`tq_broker.history.updates.outcome` makes the answer of it)."""

    to: ReplyTo
    event_id: int


class ToShard(msgspec.Struct, frozen=True):
    """Send ``request`` to the shard of ``workflow_id``; nobody waits for a direct answer."""

    workflow_id: str
    request: Request


Effect = Union[  # noqa: UP007 - like the other unions of values
    DispatchWorkflowTask,
    DispatchQuery,
    DispatchActivity,
    CancelActivity,
    Reply,
    ReplyFromEvent,
    ToShard,
]
