"""What becomes of a workflow's answer."""

from __future__ import annotations

import pytest

from tests.history.stage import Stage, an_activity
from tq_broker.history import completion
from tq_broker.history.effects import DispatchActivity
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model.commands import Command
from tq_broker.model.failure import application


def test_commands_become_events_in_their_order() -> None:
    stage = Stage()
    stage.answer(
        c.RecordMarker(marker_name="core_patch", details={"id": b'"p"'}),
        an_activity("1"),
        c.StartTimer(timer_id="t", start_to_fire_ms=5),
        an_activity("2"),
        c.ModifyProperties(upserted_memo={"a": b"1"}),
    )
    assert stage.names(4) == [
        "MarkerRecorded",
        "ActivityTaskScheduled",
        "TimerStarted",
        "ActivityTaskScheduled",
        "WorkflowPropertiesModified",
    ]
    effects = stage.last.effects
    assert [x.scheduled_event_id for x in effects if isinstance(x, DispatchActivity)] == [6, 8]
    for event in stage.history[4:]:
        assert event.workflow_task_completed_event_id == 4


def test_a_bad_command_fails_the_task_and_leaves_nothing_else() -> None:
    stage = Stage()
    stage.answer(an_activity("1"), c.CancelTimer(timer_id="never"), sticky=True)
    assert stage.names(2) == ["WorkflowTaskStarted", "WorkflowTaskFailed"]
    failed = stage.the(e.WorkflowTaskFailed)
    assert failed.cause == "bad_command"
    assert failed.failure.message.startswith("command 2 of 2, CancelTimer: no timer")
    assert not stage.run.activities
    stage.wake()
    assert stage.dispatched().attempt == 2


@pytest.mark.parametrize(
    "command",
    [
        c.CompleteWorkflow(),
        c.FailWorkflow(failure=application("x", "X")),
        c.CancelWorkflow(),
        c.ContinueAsNew(),
    ],
)
def test_a_workflow_does_not_end_over_what_it_has_not_seen(command: Command) -> None:
    stage = Stage()
    stage.tell_signal()
    stage.answer(an_activity("1"), command, sticky=True)
    assert stage.names(2) == [
        "WorkflowTaskStarted",
        "WorkflowTaskFailed",
        "WorkflowExecutionSignaled",
        "WorkflowTaskScheduled",
    ]
    assert stage.the(e.WorkflowTaskFailed).cause == "unhandled_command"
    assert (stage.dispatched().sticky, stage.dispatched().first_event_id) == ("", 1)
    stage.answer(an_activity("1"), command)
    assert not stage.run.is_open


def test_what_came_meanwhile_is_the_next_task() -> None:
    stage = Stage()
    stage.answer(an_activity("1"))
    stage.tell_signal()
    stage.outcome(5)
    stage.answer(c.RecordMarker(marker_name="m"), sticky=True)
    assert stage.names(9) == [
        "MarkerRecorded",
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        "WorkflowTaskScheduled",
    ]
    assert stage.dispatched().first_event_id == 8


def test_a_memo_is_changed_and_shortened() -> None:
    stage = Stage(memo={"a": b"1", "b": b"2"})
    stage.answer(c.ModifyProperties(upserted_memo={"a": None, "c": b"3", "d": None}))
    assert stage.run.memo == {"b": b"2", "c": b"3"}


def test_details_of_the_moment_are_kept() -> None:
    stage = Stage()
    stage.answer(current_details="half way")
    assert stage.run.current_details == "half way"


def test_every_command_is_carried_out() -> None:
    assert set(completion._DO) == set(Command.__args__)
