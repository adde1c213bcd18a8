"""The ledger of a run: what its code has asked for, checked against what its history says.

Pure. Commands are entered while the code runs; at the end of a workflow task they are sent, and
must then be found again, in the same order, as events of the history. A difference means that the
code is not the one that wrote the history, or that it does not do the same each time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tq_broker.model import commands, events
from tq_broker.model.commands import Command
from tq_broker.model.events import Event, MarkerRecorded
from tq_broker.workflow.errors import NondeterminismError

PATCH = "core_patch"
LOCAL_ACTIVITY = "core_local_activity"

_MATCHES: dict[type, tuple[type, tuple[str, ...]]] = {
    events.ActivityTaskScheduled: (commands.ScheduleActivity, ("activity_id", "activity_type")),
    events.ActivityTaskCancelRequested: (commands.RequestCancelActivity, ("scheduled_event_id",)),
    events.TimerStarted: (commands.StartTimer, ("timer_id",)),
    events.TimerCanceled: (commands.CancelTimer, ("timer_id",)),
    events.MarkerRecorded: (commands.RecordMarker, ("marker_name",)),
    events.StartChildWorkflowExecutionInitiated: (
        commands.StartChildWorkflow,
        ("workflow_id", "workflow_type"),
    ),
    events.SignalExternalWorkflowExecutionInitiated: (
        commands.SignalExternalWorkflow,
        ("workflow_id", "signal_name"),
    ),
    events.RequestCancelExternalWorkflowExecutionInitiated: (
        commands.RequestCancelExternalWorkflow,
        ("workflow_id",),
    ),
    events.WorkflowPropertiesModified: (commands.ModifyProperties, ()),
    events.WorkflowExecutionUpdateAccepted: (commands.AcceptUpdate, ("update_id",)),
    events.WorkflowExecutionUpdateCompleted: (commands.CompleteUpdate, ("update_id",)),
    events.WorkflowExecutionCompleted: (commands.CompleteWorkflow, ()),
    events.WorkflowExecutionFailed: (commands.FailWorkflow, ()),
    events.WorkflowExecutionCanceled: (commands.CancelWorkflow, ()),
    events.WorkflowExecutionContinuedAsNew: (commands.ContinueAsNew, ()),
}
"""Which event a command becomes, and the fields that must be the same in both."""

COMMAND_EVENTS = frozenset(_MATCHES)
"""Events that a command has led to; but see `is_of_a_command`."""


def is_of_a_command(event: Event) -> bool:
    """Whether a command of the code has become ``event``. A run also fails from outside, when
    nobody lives who may have its tasks."""
    if isinstance(event, events.WorkflowExecutionFailed):
        return event.workflow_task_completed_event_id > 0
    return type(event) in COMMAND_EVENTS


_MAY_LEAVE_NO_EVENT = (
    commands.RejectUpdate,
    # These two may cross with the end of what they are about.
    commands.RequestCancelActivity,
    commands.CancelTimer,
)

_MARKER_KEYS = {PATCH: ("id",), LOCAL_ACTIVITY: ("activity_id", "activity_type")}


class Entry:
    """A command in the ledger.

    Attributes:
        sent: It has gone to history: too late to take it back.
    """

    __slots__ = ("command", "on_event", "sent")

    def __init__(self, command: Command, on_event: Callable[[Any], None] | None) -> None:
        self.command = command
        self.on_event = on_event
        self.sent = False


class Ledger:
    """The commands of the current workflow task, and those that are not matched yet."""

    def __init__(self) -> None:
        self._entries: dict[Entry, None] = {}
        self._unmatched: deque[Entry] = deque()

    def add(self, command: Command, on_event: Callable[[Any], None] | None = None) -> Entry:
        """Enter a command; ``on_event`` gets the event that it has become."""
        entry = Entry(command, on_event)
        self._entries[entry] = None
        return entry

    def withdraw(self, entry: Entry) -> None:
        """Take back a command that was not sent."""
        del self._entries[entry]

    def send(self) -> list[Command]:
        """The workflow task is done: all its commands, in order."""
        sent = list(self._entries)
        self._entries.clear()
        for entry in sent:
            entry.sent = True
        self._unmatched.extend(sent)
        return [entry.command for entry in sent]

    def settle(self, found: Sequence[Event], completed_event_id: int) -> None:
        """Match what was sent with ``found``, the events that history made of it.

        Raises:
            NondeterminismError: names the event, and what the code asked for.
        """
        for event in found:
            entry = self._take(event)
            if entry is not None and entry.on_event is not None:
                entry.on_event(event)
                entry.on_event = None  # it knows the entry: a cycle
        for entry in self._unmatched:
            if not _may_leave_no_event(entry.command):
                raise NondeterminismError(
                    f"the code asks for {_described(entry.command)}; the history has nothing of"
                    f" the kind after event {completed_event_id} (WorkflowTaskCompleted)"
                )
        self._unmatched.clear()

    def _take(self, event: Event) -> Entry | None:
        unmatched = self._unmatched
        while unmatched:
            command = unmatched[0].command
            if _matches(command, event):
                return unmatched.popleft()
            if not _may_leave_no_event(command):
                break
            unmatched.popleft()
        if _is_deprecated(event):  # the code need not ask for it any more
            return None
        asked = f"asks for {_described(unmatched[0].command)}" if unmatched else "ends before it"
        raise NondeterminismError(
            f"event {event.event_id} of the history is {_described(event)}; the code {asked}"
        )


def _matches(command: Command, event: Event) -> bool:
    kind, fields = _MATCHES[type(event)]
    if type(command) is not kind:
        return False
    if isinstance(command, commands.RecordMarker) and isinstance(event, MarkerRecorded):
        return _marker_key(command) == _marker_key(event)
    if isinstance(command, commands.ModifyProperties):
        assert isinstance(event, events.WorkflowPropertiesModified), "see the table"
        return command.upserted_memo.keys() == event.upserted_memo.keys()
    return all(getattr(command, field) == getattr(event, field) for field in fields)


def _marker_key(marker: commands.RecordMarker | MarkerRecorded) -> tuple[Any, ...]:
    keys = _MARKER_KEYS.get(marker.marker_name, ())
    return (marker.marker_name, *(marker.details.get(key) for key in keys))


def _is_deprecated(marker: Any) -> bool:
    return (
        isinstance(marker, (MarkerRecorded, commands.RecordMarker))
        and marker.marker_name == PATCH
        and marker.details.get("deprecated") == b"true"
    )


def _may_leave_no_event(command: Command) -> bool:
    return isinstance(command, _MAY_LEAVE_NO_EVENT) or _is_deprecated(command)


def _described(value: Command | Event) -> str:
    """Name and telling fields of a command or an event."""
    name = type(value).__name__
    if isinstance(value, (MarkerRecorded, commands.RecordMarker)):
        keys = _MARKER_KEYS.get(value.marker_name, ())
        told = [f"{key}={_text(value.details.get(key))}" for key in keys]
        return f"{name}({', '.join([value.marker_name, *told])})"
    kinds = dict(_MATCHES.values())
    fields = kinds.get(type(value)) or _MATCHES.get(type(value), (None, ()))[1]
    told = [f"{field}={getattr(value, field)!r}" for field in fields]
    return f"{name}({', '.join(told)})" if told else name


def _text(payload: bytes | None) -> str:
    try:
        return repr(msgspec.json.decode(payload or b"null"))
    except msgspec.DecodeError:
        return "?"
