"""A history as a worker takes it in: cut into workflow tasks. Pure.

For each completed workflow task a chapter tells what had come in before it, and which events its
commands became. The last chapter is open: what has come in since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tq_broker.exceptions import TqBrokerError
from tq_broker.model.events import (
    Event,
    WorkflowTaskCompleted,
    WorkflowTaskFailed,
    WorkflowTaskScheduled,
    WorkflowTaskStarted,
    WorkflowTaskTimedOut,
)
from tq_broker.worker.ledger import is_of_a_command


class OutOfStep(TqBrokerError):
    """The events do not follow what this replay has seen: throw it away, begin at event 1."""


@dataclass(slots=True)
class Chapter:
    """One workflow task.

    Attributes:
        incoming: What the workflow is told in it.
        commands: Events that its commands became.
        activated: Its code has run here already, when it was new.
    """

    incoming: list[Event] = field(default_factory=list)
    started: WorkflowTaskStarted | None = None
    completed: WorkflowTaskCompleted | None = None
    commands: list[Event] = field(default_factory=list)
    activated: bool = False


class Chronicle:
    """The chapters of one run.

    Attributes:
        last_event_id: Of the events taken in so far.
        open: The chapter that is not completed.
    """

    def __init__(self) -> None:
        self.last_event_id = 0
        self._scheduled = 0
        self.open = Chapter()

    @property
    def scheduled_event_id(self) -> int:
        """Of the current task's WorkflowTaskScheduled. That of a further attempt is written only
        when it has succeeded: then it is the event to come."""
        last = self.last_event_id
        return last if self._scheduled == last else last + 1

    def read(self, events: Iterable[Event]) -> list[Chapter]:
        """Take in the next events; returns the chapters that they complete.

        Raises:
            OutOfStep: they are not the next ones, or a task that has run here did not count.
        """
        chapters: list[Chapter] = []
        for event in events:
            if event.event_id != self.last_event_id + 1:
                raise OutOfStep(f"event {event.event_id} follows event {self.last_event_id}")
            self.last_event_id = event.event_id
            self._take(event, chapters)
        return chapters

    def _take(self, event: Event, chapters: list[Chapter]) -> None:
        if isinstance(event, WorkflowTaskScheduled):
            self._scheduled = event.event_id
        elif isinstance(event, WorkflowTaskStarted):
            self.open.started = event
        elif isinstance(event, WorkflowTaskCompleted):
            self.open.completed = event
            chapters.append(self.open)
            self.open = Chapter()
        elif isinstance(event, (WorkflowTaskFailed, WorkflowTaskTimedOut)):
            if self.open.activated:
                raise OutOfStep(f"event {event.event_id}: a workflow task that ran here is void")
            self.open.started = None
        elif is_of_a_command(event):
            if not chapters:
                raise OutOfStep(f"event {event.event_id} belongs to a task that was not seen")
            chapters[-1].commands.append(event)
        else:
            self.open.incoming.append(event)
