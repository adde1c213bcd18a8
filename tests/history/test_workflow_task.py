"""The workflow task of a run."""

from __future__ import annotations

import pytest

from tests.history.stage import CLIENT, KEY, WORKER, Stage, an_activity
from tq_broker.common import Route
from tq_broker.history import workflow_task
from tq_broker.history.effects import DispatchQuery
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r
from tq_broker.model import workflow_tasks as w
from tq_broker.model.tasks import dump_route


def a_signal() -> r.SignalWorkflow:
    return r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="s")


def a_sticky_task() -> Stage:
    """A run whose second task is on its way to the worker that has it."""
    stage = Stage()
    stage.answer(sticky=True)
    stage.tell(a_signal())
    assert stage.dispatched().sticky == WORKER
    return stage


def given_back(stage: Stage, **changes: object) -> w.WorkflowTask:
    task = stage.run.task
    assert task is not None
    fields: dict[str, object] = {
        "scheduled_event_id": task.scheduled_event_id,
        "attempt": task.attempt,
        "sticky": task.sticky,
    }
    return w.WorkflowTask(
        run=KEY, workflow_type="Order", task_queue="orders", shard=0, **(fields | changes)
    )


# --- answers -------------------------------------------------------------------------------------


def test_an_answer_to_a_task_that_is_over_is_dropped() -> None:
    stage = Stage()
    late = stage.completed()
    stage.answer()
    stage.tell(late, None)
    assert not stage.last.changed
    stage.tell(a_signal())
    stage.tell(late, None)
    assert not stage.last.changed
    stage.answer(attempt=2)
    assert not stage.last.changed


def test_what_the_workflow_could_see_is_written_down() -> None:
    stage = Stage()
    told = stage.dispatched()
    stage.tell(a_signal())
    stage.answer()
    started = stage.the(e.WorkflowTaskStarted)
    assert started.history_events == told.last_event_id == 2
    assert started.history_bytes == told.history_bytes > 0
    assert not started.continue_as_new_suggested


def test_a_long_history_suggests_to_continue_as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_task, "SUGGEST_EVENTS", 6)
    stage = Stage()
    stage.answer()
    stage.tell(a_signal())
    assert stage.dispatched().continue_as_new_suggested
    stage.answer()
    assert stage.the(e.WorkflowTaskStarted).continue_as_new_suggested


# --- failures ------------------------------------------------------------------------------------


def test_only_the_first_failure_is_written_down() -> None:
    stage = Stage()
    pauses = []
    for _ in range(13):
        stage.fail_task()
        next_ms = stage.run.next_ms()
        assert next_ms is not None
        pauses.append(next_ms - stage.now_ms)
        stage.wake()
        assert stage.dispatched().scheduled_event_id == 5
    assert stage.names(2) == ["WorkflowTaskStarted", "WorkflowTaskFailed"]
    assert pauses == [min(1_000 << n, 600_000) for n in range(13)]
    stage.answer()
    assert stage.names(4) == [
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
    ]
    assert stage.the(e.WorkflowTaskScheduled).attempt == 14


def test_a_retry_that_knows_something_new_is_written_down() -> None:
    stage = Stage()
    stage.fail_task()
    stage.tell(a_signal())
    assert stage.names(4) == ["WorkflowExecutionSignaled"]
    stage.wake()
    assert stage.names(5) == ["WorkflowTaskScheduled"]
    assert stage.dispatched().attempt == 2
    stage.fail_task()
    assert stage.names(6) == ["WorkflowTaskStarted", "WorkflowTaskFailed"]


def test_a_failure_of_an_attempt_that_is_over_is_dropped() -> None:
    stage = Stage()
    stage.fail_task()
    stage.fail_task()
    assert not stage.last.changed


def test_a_failed_task_leaves_the_cache() -> None:
    stage = a_sticky_task()
    stage.fail_task()
    stage.wake()
    assert (stage.dispatched().sticky, stage.dispatched().first_event_id) == ("", 1)


def test_the_last_failure_is_described() -> None:
    stage = Stage()
    stage.fail_task("non_deterministic")
    task = stage.run.task
    assert task is not None
    assert (task.last_cause, task.attempt) == ("non_deterministic", 2)


# --- time ----------------------------------------------------------------------------------------


def test_a_task_that_nobody_has_taken_waits_for_ever() -> None:
    assert Stage().run.next_ms(looks=False) is None


def test_a_task_that_is_not_heard_of_any_more_is_given_out_anew() -> None:
    stage = Stage(task_timeout_ms=3_000)
    stage.tell(w.WorkflowTaskProgress(run=KEY, scheduled_event_id=2, started_ms=7), None)
    stage.wait(2_999)
    assert not stage.last.changed
    stage.tell(w.WorkflowTaskProgress(run=KEY, scheduled_event_id=2, started_ms=7), None)
    stage.wait(2_999)
    assert not stage.last.changed
    stage.wait(1)
    assert stage.names(2) == ["WorkflowTaskStarted", "WorkflowTaskTimedOut"]
    timed_out = stage.the(e.WorkflowTaskTimedOut)
    assert (timed_out.timeout_type, timed_out.started_event_id) == (1, 3)
    assert stage.the(e.WorkflowTaskStarted).time_ms == 7
    assert (stage.dispatched().attempt, stage.dispatched().scheduled_event_id) == (2, 5)


def test_a_sticky_task_that_is_not_taken_goes_to_the_task_queue() -> None:
    stage = a_sticky_task()
    stage.wait(9_999)
    assert not stage.last.changed
    stage.wait(1)
    assert stage.names(6) == ["WorkflowTaskTimedOut", "WorkflowTaskScheduled"]
    timed_out = stage.the(e.WorkflowTaskTimedOut)
    assert (timed_out.timeout_type, timed_out.started_event_id) == (2, 0)
    task = stage.dispatched()
    assert (task.sticky, task.first_event_id, task.attempt) == ("", 1, 1)


def test_no_task_times_out_before_what_was_said_earlier() -> None:
    stage = a_sticky_task()
    stage.wait(10_000, heard_ms=stage.now_ms + 9_999)
    assert not stage.last.events
    stage.answer(c.CompleteWorkflow())
    assert stage.run.status is r.Status.COMPLETED


def test_a_sticky_task_that_was_begun_times_out_as_any_other() -> None:
    stage = a_sticky_task()
    stage.tell(w.WorkflowTaskProgress(run=KEY, scheduled_event_id=6), None)
    stage.wait(10_000)
    assert stage.the(e.WorkflowTaskTimedOut).timeout_type == 1
    assert stage.dispatched().attempt == 2


# --- stickiness ----------------------------------------------------------------------------------


def test_what_a_sticky_queue_gives_back_goes_to_the_task_queue() -> None:
    stage = a_sticky_task()
    stage.tell(given_back(stage), None)
    assert not stage.last.events
    task = stage.dispatched()
    assert (task.sticky, task.first_event_id, task.scheduled_event_id) == ("", 1, 6)
    assert stage.run.next_ms(looks=False) is None
    stage.tell(given_back(stage, sticky=WORKER), None)
    assert not stage.last.changed


def test_an_old_task_that_is_given_back_is_dropped() -> None:
    stage = a_sticky_task()
    old = given_back(stage)
    stage.answer(sticky=True)
    stage.tell(a_signal())
    stage.tell(old, None)
    assert not [x for x in stage.last.effects if not isinstance(x, DispatchQuery)]


@pytest.mark.parametrize(
    "message",
    [
        w.StickyEvicted(run=KEY, worker_id=WORKER),
        w.StickyGone(worker_id=WORKER),
        r.ResetSticky(workflow_id=KEY.workflow_id),
    ],
)
def test_a_run_that_has_left_its_cache_goes_to_the_task_queue(message: object) -> None:
    stage = Stage()
    stage.answer(sticky=True)
    stage.tell(message)
    stage.tell(a_signal())
    assert stage.dispatched().sticky == ""


def test_a_task_that_is_out_goes_elsewhere_when_its_worker_is_gone() -> None:
    stage = Stage()
    stage.answer(sticky=True)
    stage.tell(a_signal())
    assert stage.dispatched().sticky == WORKER
    stage.tell(w.StickyGone(worker_id=WORKER), None)
    again = stage.dispatched()
    assert (again.sticky, again.first_event_id, again.attempt) == ("", 1, 1)
    stage.tell(w.StickyGone(worker_id=WORKER), None)
    assert not stage.last.changed


def test_a_task_that_is_out_stays_there_when_its_run_was_only_evicted() -> None:
    stage = Stage()
    stage.answer(sticky=True)
    stage.tell(a_signal())
    stage.tell(w.StickyEvicted(run=KEY, worker_id=WORKER), None)
    assert not stage.last.effects


def test_another_worker_has_no_say() -> None:
    stage = Stage()
    stage.answer(sticky=True)
    stage.tell(w.StickyGone(worker_id="worker-9"), None)
    assert not stage.last.changed


def test_a_worker_without_a_cache_gets_the_whole_history() -> None:
    stage = Stage()
    stage.answer(sticky=False)
    stage.tell(a_signal())
    assert stage.dispatched().first_event_id == 1


# --- too much ------------------------------------------------------------------------------------


def test_too_much_that_is_held_back_is_given_out_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_task, "BUFFERED_MAX", 3)
    stage = Stage()
    for _ in range(3):
        stage.tell(a_signal())
    assert stage.the(e.WorkflowTaskFailed).cause == "too_many_events"
    assert stage.dispatched().attempt == 2
    for _ in range(5):
        stage.tell(a_signal())
    assert not stage.last.events, "a busy run must come to an end of its task"
    stage.tell(a_signal())
    assert stage.dispatched().attempt == 3


def test_events_that_are_large_are_held_back_in_small_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workflow_task, "BUFFERED_BYTES_MAX", 500)
    stage = Stage()
    stage.tell(a_signal())
    assert not stage.last.events
    large = r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="s", input=b"x" * 400)
    stage.tell(large)
    assert stage.the(e.WorkflowTaskFailed).cause == "too_many_events"
    assert stage.run.buffered_bytes == 0


def test_a_late_answer_of_the_task_before_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_task, "BUFFERED_MAX", 1)
    stage = Stage()
    late = stage.completed(an_activity())
    stage.tell(a_signal())
    stage.tell(late, None)
    assert not stage.last.changed


# --- queries -------------------------------------------------------------------------------------


def test_queries_that_a_sticky_queue_gives_back_go_to_the_task_queue() -> None:
    stage = Stage()
    stage.answer(sticky=True)
    stage.tell(r.QueryWorkflow(workflow_id=KEY.workflow_id, query_type="q"), CLIENT)
    [effect] = stage.last.effects
    assert isinstance(effect, DispatchQuery)
    stage.tell(effect.task, None)
    [again] = stage.last.effects
    assert isinstance(again, DispatchQuery)
    assert (again.task.sticky, again.task.first_event_id) == ("", 1)
    assert again.task.queries == effect.task.queries


def test_a_task_that_ends_a_run_takes_waiting_queries_along() -> None:
    stage = Stage()
    stage.tell(r.QueryWorkflow(workflow_id=KEY.workflow_id, query_type="q"), CLIENT)
    assert not stage.last.effects
    stage.answer(c.CompleteWorkflow())
    assert any(isinstance(effect, DispatchQuery) for effect in stage.last.effects)


def test_what_comes_back_from_workers_that_are_gone_goes_where_it_may_now() -> None:
    stage = Stage(route=dump_route(Route.host("h")))
    task = stage.dispatched()
    assert task.is_bound
    stage.tell(task, None)
    assert not stage.last.events
    assert stage.dispatched() == task
    stage.answer()
    stage.tell(task, None)
    assert not stage.last.changed
