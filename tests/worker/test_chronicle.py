"""Histories, cut into workflow tasks."""

from __future__ import annotations

import pytest

from tq_broker.model import events as ev
from tq_broker.model.failure import application
from tq_broker.worker.chronicle import Chronicle, OutOfStep

EVENTS: list[ev.Event] = [
    ev.WorkflowExecutionSignaled(event_id=1, time_ms=0, signal_name="a"),
    ev.WorkflowTaskScheduled(event_id=2, time_ms=0, task_queue="tq"),
    ev.WorkflowExecutionSignaled(event_id=3, time_ms=0, signal_name="b"),
    ev.WorkflowTaskStarted(event_id=4, time_ms=0, scheduled_event_id=2),
    ev.WorkflowTaskCompleted(event_id=5, time_ms=0, scheduled_event_id=2, started_event_id=4),
    ev.TimerStarted(event_id=6, time_ms=0, timer_id="1", start_to_fire_ms=1),
    ev.WorkflowExecutionSignaled(event_id=7, time_ms=0, signal_name="c"),
    ev.TimerStarted(event_id=8, time_ms=0, timer_id="2", start_to_fire_ms=1),
]


def test_a_chapter_has_what_came_before_it_and_what_it_led_to() -> None:
    chronicle = Chronicle()
    (chapter,) = chronicle.read(EVENTS)
    assert [e.event_id for e in chapter.incoming] == [1, 3]
    assert [e.event_id for e in chapter.commands] == [6, 8]
    assert [e.event_id for e in chronicle.open.incoming] == [7]
    assert chronicle.last_event_id == 8


def test_it_does_not_matter_in_how_many_pieces_it_comes() -> None:
    chronicle = Chronicle()
    assert chronicle.read(EVENTS[:2]) == []
    assert len(chronicle.read(EVENTS[2:])) == 1


def test_gaps_and_commands_of_unseen_tasks_are_out_of_step() -> None:
    chronicle = Chronicle()
    chronicle.read(EVENTS[:3])
    with pytest.raises(OutOfStep, match="event 5 follows event 3"):
        chronicle.read(EVENTS[4:])
    chronicle = Chronicle()
    chronicle.read(EVENTS[:5])
    with pytest.raises(OutOfStep, match="event 6"):
        chronicle.read(EVENTS[5:])


def test_a_void_task_is_passed_over_unless_it_ran_here() -> None:
    failed = ev.WorkflowTaskFailed(
        event_id=5, time_ms=0, scheduled_event_id=2, started_event_id=4, cause="deadlock"
    )
    for activated in (False, True):
        chronicle = Chronicle()
        chronicle.read(EVENTS[:4])
        chronicle.open.activated = activated
        if activated:
            with pytest.raises(OutOfStep, match="void"):
                chronicle.read([failed])
        else:
            assert chronicle.read([failed]) == []
            assert chronicle.open.started is None


def test_a_run_that_failed_from_outside_asks_for_no_command() -> None:
    failed = ev.WorkflowExecutionFailed(
        event_id=3, time_ms=0, failure=application("nobody", "TargetGone")
    )
    chronicle = Chronicle()
    assert chronicle.read([*EVENTS[:2], failed]) == []
    assert chronicle.open.incoming[-1] == failed
