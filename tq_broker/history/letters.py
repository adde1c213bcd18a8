"""Letters: what has come for a shard, read and checked. Pure.

Rules of this file: what nobody can make sense of, or what is not for the shard that it was sent
to, raises `Malformed`, and whoever holds the message parks it with that reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.history.effects import ReplyTo
from tq_broker.history.machine import Message as Content
from tq_broker.model import envelope, requests, workflow_tasks
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, Names, check_storable
from tq_broker.model.requests import Outcome, shard_of
from tq_broker.model.workflow_tasks import WorkflowTask

ONCE = (
    requests.StartWorkflow,
    requests.SignalWorkflow,
    requests.RequestCancel,
    requests.Terminate,
)
"""Requests that must be remembered by their message ids, because doing them twice would show. All
others name what they answer or ask for, so that a second copy changes nothing."""

OUTSIDE = (
    requests.FetchHistory,
    requests.ListWorkflows,
    requests.CountWorkflows,
    requests.ShardStatus,
    workflow_tasks.FetchEvents,
)
"""Requests that ask the store, and no run."""


class Letter(msgspec.Struct, frozen=True):
    """A message for a shard.

    Attributes:
        workflow_id: Whom it is for; "" if only the run's id is known, or it is for nobody's run.
        run_id: "" for the current run of the workflow id, or for none.
        once: Its ``message_id`` must be remembered.
    """

    shard: int
    message_id: str
    content: Content
    sender: ReplyTo | None = None
    workflow_id: str = ""
    run_id: str = ""
    once: bool = False


def read(message: Message, shard: int, names: Names) -> Letter:
    """The letter in ``message``, which has come for ``shard``. Raises `Malformed`."""
    reader = _READERS.get(message.kind)
    if reader is None:
        raise Malformed(f"a message of type {message.kind!r:.40} is not for a history shard")
    content: Content = reader(message)
    workflow_id, run_id = _TARGETS.get(type(content), _of_request)(content)
    _check_texts(message, workflow_id, run_id)
    if workflow_id and shard_of(workflow_id) != shard:
        raise Malformed(f"it is for shard {shard_of(workflow_id)}, not for {shard}")
    once = isinstance(content, ONCE)
    if once and not message.message_id:
        raise Malformed("message_id is not set")
    return Letter(
        shard=shard,
        message_id=message.message_id,
        content=content,
        sender=None if reader is _read_outcome else _sender(message, names),
        workflow_id=workflow_id,
        run_id=run_id,
        once=once,
    )


def _check_texts(message: Message, workflow_id: str, run_id: str) -> None:
    """What is looked up or kept is what a store can keep: else the whole batch that it gets into
    would fail."""
    try:
        check_storable("message_id", message.message_id)
        check_storable("correlation_id", message.correlation_id or "")
        check_storable("workflow_id", workflow_id)
        check_storable("run_id", run_id)
    except InvalidArgument as error:
        raise Malformed(str(error)) from None


def _sender(message: Message, names: Names) -> ReplyTo | None:
    if message.reply_to is None:
        return None
    if not names.owns(message.reply_to, Kind.REPLY):
        raise Malformed("reply_to is not a reply queue of this namespace")
    return ReplyTo(message.reply_to, message.correlation_id or "")


def _read_outcome(message: Message) -> Outcome:
    outcome, body, heartbeat = envelope.read_report(message)
    run_id, _, event_id = outcome.activity_id.rpartition("/")
    if not run_id or not event_id.isdecimal() or len(event_id) > len(str(envelope.NUMBER_MAX)):
        raise Malformed(f"{outcome.activity_id!r:.80} is not the id of a workflow's activity")
    return Outcome(int(event_id), run_id, outcome, body, heartbeat)


_READERS: dict[str, Callable[[Message], Any]] = {
    requests.REQUEST: requests.read_request,
    workflow_tasks.WORKFLOW_TASK: workflow_tasks.read_task,
    envelope.OUTCOME: _read_outcome,
}


def _of_request(request: Any) -> tuple[str, str]:
    return request.workflow_id, getattr(request, "run_id", None) or ""


def _of_run(content: Any) -> tuple[str, str]:
    return content.run.workflow_id, content.run.run_id


def _of_parent(content: Any) -> tuple[str, str]:
    return content.parent.workflow_id, content.parent.run_id


def _of_nobody(_content: Any) -> tuple[str, str]:
    return "", ""


_TARGETS: dict[type, Callable[[Any], tuple[str, str]]] = {
    Outcome: lambda outcome: ("", outcome.run_id),
    WorkflowTask: _of_run,
    workflow_tasks.WorkflowTaskCompleted: _of_run,
    workflow_tasks.WorkflowTaskFailed: _of_run,
    workflow_tasks.WorkflowTaskProgress: _of_run,
    workflow_tasks.StickyEvicted: _of_run,
    workflow_tasks.ClaimStart: _of_run,
    workflow_tasks.FetchEvents: _of_run,
    workflow_tasks.StickyGone: _of_nobody,
    requests.ListWorkflows: _of_nobody,
    requests.CountWorkflows: _of_nobody,
    requests.ShardStatus: _of_nobody,
    requests.Echo: _of_nobody,
    requests.ChildStarted: _of_parent,
    requests.ChildRefused: _of_parent,
    requests.ChildClosed: _of_parent,
    requests.ExternalDone: lambda done: (done.origin.workflow_id, done.origin.run_id),
}
