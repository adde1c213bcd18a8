from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from tests.model.samples import sample
from tq_broker.model import commands, events
from tq_broker.model.commands import Command

BECOMES = {
    commands.ScheduleActivity: events.ActivityTaskScheduled,
    commands.StartTimer: events.TimerStarted,
    commands.RecordMarker: events.MarkerRecorded,
    commands.StartChildWorkflow: events.StartChildWorkflowExecutionInitiated,
    commands.SignalExternalWorkflow: events.SignalExternalWorkflowExecutionInitiated,
    commands.RequestCancelExternalWorkflow: events.RequestCancelExternalWorkflowExecutionInitiated,
    commands.ModifyProperties: events.WorkflowPropertiesModified,
}


@pytest.mark.parametrize("kind", get_args(Command))
def test_a_command_travels_without_a_loss(kind: type) -> None:
    value = sample(kind)
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=Command)
    assert decoded == value
    assert type(decoded) is kind


@pytest.mark.parametrize(("command", "event"), BECOMES.items())
def test_a_command_shares_its_fields_with_the_event_that_it_becomes(
    command: type, event: type
) -> None:
    of_command = {f.name: f.type for f in msgspec.structs.fields(command)}
    of_event = {f.name: f.type for f in msgspec.structs.fields(event)}
    assert of_command.items() <= of_event.items()


def test_the_closing_commands_are_commands() -> None:
    assert set(commands.CLOSING) < set(get_args(Command))
