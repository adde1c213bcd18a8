"""The execution state machine: a run's state and a message in, events and effects out.

Pure: it knows no store, no queue and no clock; the time comes in. The functions here change the
`Execution` that they are given, in place. When storing that fails the caller throws the object away
and loads it again; nothing of a step that was not stored has left the process.

A message that is late, a duplicate, or about something that is over changes nothing
(`Step.changed` is False) and is only answered if somebody waits for an answer.
"""

from __future__ import annotations

from typing import Union

from tq_broker.history.effects import Effect, ReplyTo
from tq_broker.history.state import Execution
from tq_broker.history.step import Step
from tq_broker.model.requests import Outcome, Request, StartWorkflow
from tq_broker.model.workflow_tasks import WorkflowTask

Message = Union[Request, Outcome, WorkflowTask]  # noqa: UP007 - like the other unions of values
"""What `handle` takes. A `WorkflowTask` is one that a sticky queue gave back. Requests that are not
about one run (`ListWorkflows`, `CountWorkflows`, `ShardStatus`) and those that only read its events
(`FetchEvents`, `FetchHistory`) are the caller's own business."""


def start(
    request: StartWorkflow, *, run_id: str, now_ms: int, sender: ReplyTo | None = None
) -> tuple[Execution, Step]:
    """Begin a new run, after `tq_broker.history.admission.admit` has said so.

    The step has the answer to ``request`` among its effects; also that to a child's parent.
    """
    raise NotImplementedError


def handle(run: Execution, message: Message, now_ms: int, sender: ReplyTo | None = None) -> Step:
    """Take in a message about ``run``, be it open or closed.

    Args:
        sender: Who asked, if an answer is wanted.
    """
    raise NotImplementedError


def tick(run: Execution, now_ms: int) -> Step:
    """Do all that is due by now: see `Execution.next_ms`."""
    raise NotImplementedError


def missing(message: Message, sender: ReplyTo | None) -> list[Effect]:
    """The answer to a message about a run that does not exist (any more)."""
    raise NotImplementedError
