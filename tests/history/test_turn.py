"""How events get their numbers."""

from __future__ import annotations

import pytest

from tests.history.stage import KEY, Stage, an_activity
from tq_broker.history import turn
from tq_broker.history.turn import Turn
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r


def a_signal(name: str = "s") -> r.SignalWorkflow:
    return r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name=name)


def test_what_comes_during_a_task_is_numbered_after_it() -> None:
    stage = Stage()
    stage.tell(a_signal())
    assert not stage.last.events
    stage.answer(c.RecordMarker(marker_name="m"))
    assert stage.names(2) == [
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
        "MarkerRecorded",
        "WorkflowExecutionSignaled",
        "WorkflowTaskScheduled",
    ]


@pytest.mark.parametrize(
    ("end_ms", "is_over", "is_patient"),
    [(0, False, False), (5, True, False), (6, False, True), (8, False, True), (9, False, False)],
)
def test_what_is_over_and_heard(end_ms: int, is_over: bool, is_patient: bool) -> None:
    one = Turn(Stage().run, now_ms=8)
    one.heard_ms = 5
    assert (one.is_over(end_ms), one.is_patient) == (is_over, is_patient)


def test_what_comes_to_an_idle_run_is_numbered_at_once() -> None:
    stage = Stage()
    stage.answer()
    stage.tell(a_signal())
    assert stage.names(4) == ["WorkflowExecutionSignaled", "WorkflowTaskScheduled"]


def test_what_is_held_back_refers_to_the_right_events() -> None:
    stage = Stage()
    stage.answer(an_activity("1"), an_activity("2"))
    stage.outcome(6)
    stage.outcome(5)
    stage.answer()
    ends = [event for event in stage.history if isinstance(event, e.ActivityTaskCompleted)]
    assert [(end.scheduled_event_id, end.started_event_id) for end in ends] == [(6, 7), (5, 12)]
    assert isinstance(stage.history[11], e.ActivityTaskStarted)


def test_times_of_events_are_now_if_nobody_says_otherwise() -> None:
    stage = Stage()
    work = Turn(stage.run, stage.now_ms + 5)
    work.write(e.MarkerRecorded, marker_name="m")
    work.write(e.MarkerRecorded, marker_name="m", time_ms=1)
    assert [event.time_ms for event in work.events] == [stage.now_ms + 5, 1]
    assert work.changed


def test_the_size_of_the_history_is_that_of_its_events() -> None:
    stage = Stage()
    first = len(stage.last.data)
    stage.answer()
    assert stage.run.history_bytes == first + len(stage.last.data)


def test_a_run_in_a_cache_keeps_what_its_worker_has_not_seen() -> None:
    stage = Stage()
    stage.answer(sticky=True)
    assert [event.event_id for event in stage.run.memory().tail] == [3, 4]


def test_a_run_in_no_cache_keeps_only_a_short_history_in_memory() -> None:
    stage = Stage()
    while stage.run.history_length < turn.TAIL_MAX:
        stage.answer()
        stage.tell(a_signal())
    stage.answer()
    assert len(stage.run.memory().tail) < 10
    assert stage.run.events_from(1) is None


def test_a_run_in_no_cache_keeps_only_few_bytes_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "TAIL_BYTES_MAX", 1_000)
    stage = Stage()
    live = stage.run.memory()
    assert live.tail_bytes == len(stage.last.data)
    stage.answer()
    assert live.tail_bytes == stage.run.history_bytes
    while live.tail:
        assert stage.run.history_bytes <= 1_000
        stage.tell(a_signal("s" * 100))
        stage.answer()
    assert live.tail_bytes == 0
    assert stage.run.events_from(1) is None


def test_a_run_in_a_cache_counts_only_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "TAIL_BYTES_MAX", 1_000)
    stage = Stage()
    for _ in range(20):
        stage.answer(sticky=True)
        assert stage.run.memory().tail_bytes == len(stage.last.data)
        stage.tell(a_signal())
        assert stage.run.memory().tail
    stage.tell(a_signal("s" * 1_000))
    stage.answer(sticky=True)
    assert not stage.run.memory().tail
    assert stage.run.events_from(stage.run.seen_event_id + 1) is None


def test_a_run_that_has_ended_keeps_nothing() -> None:
    stage = Stage()
    stage.answer(c.CompleteWorkflow())
    live = stage.run.memory()
    assert (live.tail, live.tail_bytes) == ([], 0)
