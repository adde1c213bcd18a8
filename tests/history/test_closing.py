"""How a run ends, and what follows it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from tests.history.stage import BEGIN_MS, Stage, an_activity
from tq_broker.common import OnGone, Requires, Route
from tq_broker.exceptions import RetryState
from tq_broker.history.effects import (
    CancelActivity,
    DispatchWorkflowTask,
    Reply,
    ReplyTo,
    ToShard,
)
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r
from tq_broker.model import workflow_tasks as w
from tq_broker.model.failure import application
from tq_broker.model.tasks import WireRetryPolicy, dump_requires, dump_route

OH = application("oh", "Oh")
PARENT = e.ParentInfo(workflow_id="p", run_id="pr", initiated_event_id=5)


def next_start(stage: Stage) -> e.WorkflowExecutionStarted:
    following = stage.last.next_run
    assert following is not None
    first = following.step.events[0]
    assert isinstance(first, e.WorkflowExecutionStarted)
    assert stage.run.closed is not None
    assert stage.run.closed.next_run_id == first.run_id == following.run.run_id
    assert (first.continued_run_id, first.first_run_id) == ("run-1", "run-1")
    return first


# --- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "fields"),
    [
        (c.CompleteWorkflow(result=b"7"), r.Status.COMPLETED, {"result": b"7"}),
        (c.FailWorkflow(failure=OH), r.Status.FAILED, {"failure": OH, "retry_state": 5}),
        (c.CancelWorkflow(details=b"[1]"), r.Status.CANCELED, {"details": b"[1]"}),
    ],
)
def test_whoever_waits_and_the_parent_are_told(
    command: Any, status: r.Status, fields: dict[str, Any]
) -> None:
    stage = Stage(parent=PARENT, want_result=True)
    stage.answer(command)
    assert stage.replies() == [r.Closed(run_id="run-1", status=status, **fields)]
    assert stage.sent() == [
        r.ChildClosed(
            parent=PARENT,
            workflow_id="order-1",
            run_id="run-1",
            workflow_type="Order",
            status=status,
            **fields,
        )
    ]
    assert (stage.run.status, stage.run.close_ms) == (status, stage.now_ms)


def test_pending_activities_are_told_that_they_are_not_wanted() -> None:
    stage = Stage()
    stage.answer(an_activity("1"), an_activity("2"), c.StartTimer(timer_id="t", start_to_fire_ms=1))
    stage.tell_signal()
    stage.answer(c.CompleteWorkflow())
    assert stage.last.effects == [CancelActivity("run-1/5"), CancelActivity("run-1/6")]
    stage.outcome(5)
    assert not stage.last.changed


def test_what_was_held_back_is_written_before_a_termination() -> None:
    stage = Stage()
    stage.tell_signal()
    stage.tell(r.Terminate(workflow_id="order-1", reason="why", details=b"[1]", identity="me"))
    assert stage.names(2) == ["WorkflowExecutionSignaled", "WorkflowExecutionTerminated"]
    event = stage.the(e.WorkflowExecutionTerminated)
    assert (event.reason, event.details, event.identity) == ("why", b"[1]", "me")


# --- continue as new -----------------------------------------------------------------------------


def test_a_continuation_inherits_what_it_does_not_change() -> None:
    stage = Stage(
        parent=PARENT,
        want_result=True,
        run_timeout_ms=50_000,
        execution_timeout_ms=500_000,
        memo={"a": b"1"},
        headers={"h": "1"},
        retry_policy=WireRetryPolicy(attempts=7),
    )
    stage.answer(c.ModifyProperties(upserted_memo={"b": b"2"}), sticky=True)
    stage.tell_signal()
    stage.now_ms += 1_000
    stage.answer(c.ContinueAsNew(input=b"[2]"), sticky=True)
    assert stage.sent() == [], "a parent is told of the last run only"
    assert stage.replies()[0].status is r.Status.CONTINUED_AS_NEW
    first = next_start(stage)
    assert (first.workflow_type, first.task_queue, first.input) == ("Order", "orders", b"[2]")
    assert (first.initiator, first.memo) == ("continue_as_new", {"a": b"1", "b": b"2"})
    assert first.execution_deadline_ms == BEGIN_MS + 500_000
    assert (first.parent, first.headers) == (PARENT, {"h": "1"})
    assert stage.last.next_run is not None
    assert stage.last.next_run.run.run_deadline_ms == stage.now_ms + 50_000
    assert stage.the(e.WorkflowExecutionContinuedAsNew).new_run_id == first.run_id
    [effect] = stage.last.next_run.step.effects
    assert isinstance(effect, DispatchWorkflowTask)
    assert effect.task.sticky == ""


def test_a_continuation_changes_what_it_says() -> None:
    stage = Stage(memo={"a": b"1"})
    stage.answer(
        c.ContinueAsNew(
            workflow_type="Other",
            task_queue="q2",
            run_timeout_ms=1_000,
            task_timeout_ms=2_000,
            backoff_ms=3_000,
            retry_policy=WireRetryPolicy(attempts=2),
            memo={},
        )
    )
    first = next_start(stage)
    assert (first.workflow_type, first.task_queue, first.memo) == ("Other", "q2", {})
    assert (first.run_timeout_ms, first.task_timeout_ms) == (1_000, 2_000)
    assert stage.last.next_run is not None
    assert stage.last.next_run.step.effects == []
    assert stage.last.next_run.run.next_ms() == stage.now_ms + 3_000


# --- retries -------------------------------------------------------------------------------------


def test_a_failed_workflow_is_tried_again_by_its_policy() -> None:
    stage = Stage(
        retry_policy=WireRetryPolicy(initial_ms=2_000, attempts=2), input=b"[1]", parent=PARENT
    )
    stage.answer(c.FailWorkflow(failure=OH))
    first = next_start(stage)
    assert (first.attempt, first.initiator, first.input) == (2, "retry", b"[1]")
    assert (first.first_task_backoff_ms, first.last_failure) == (2_000, OH)
    failed = stage.the(e.WorkflowExecutionFailed)
    assert (failed.retry_state, failed.new_run_id) == (RetryState.IN_PROGRESS, first.run_id)
    assert stage.sent() == []


@pytest.mark.parametrize(
    ("policy", "failure", "state"),
    [
        (None, OH, RetryState.RETRY_POLICY_NOT_SET),
        (WireRetryPolicy(attempts=1), OH, RetryState.MAXIMUM_ATTEMPTS_REACHED),
        (WireRetryPolicy(non_retryable=["Oh"]), OH, RetryState.NON_RETRYABLE_FAILURE),
        (WireRetryPolicy(initial_ms=9_000), OH, RetryState.TIMEOUT),
    ],
)
def test_why_a_workflow_is_not_tried_again(
    policy: WireRetryPolicy | None, failure: Any, state: RetryState
) -> None:
    stage = Stage(retry_policy=policy, execution_timeout_ms=9_000)
    stage.answer(c.FailWorkflow(failure=failure))
    assert stage.last.next_run is None
    assert stage.the(e.WorkflowExecutionFailed).retry_state == state


def test_a_run_that_timed_out_is_tried_again() -> None:
    stage = Stage(run_timeout_ms=1_000, retry_policy=WireRetryPolicy())
    stage.wait(1_000)
    assert next_start(stage).attempt == 2
    assert stage.the(e.WorkflowExecutionTimedOut).retry_state == RetryState.IN_PROGRESS


def test_nothing_follows_when_the_time_of_the_chain_is_over() -> None:
    stage = Stage(
        execution_timeout_ms=1_000, retry_policy=WireRetryPolicy(), cron_schedule="@every 1s"
    )
    stage.wait(2_000)
    assert stage.run.status is r.Status.TIMED_OUT
    assert stage.last.next_run is None
    assert stage.the(e.WorkflowExecutionTimedOut).retry_state == RetryState.TIMEOUT


# --- schedules -----------------------------------------------------------------------------------


def scheduled(**changes: Any) -> Stage:
    stage = Stage(cron_schedule="@every 60s", input=b"[1]", **changes)
    stage.wake()
    stage.now_ms += 5_000
    return stage


def test_a_completed_run_is_followed_by_the_schedule() -> None:
    stage = scheduled()
    stage.answer(c.CompleteWorkflow(result=b"7"))
    first = next_start(stage)
    assert (first.initiator, first.first_task_backoff_ms) == ("cron", 55_000)
    assert (first.last_completion_result, first.last_failure, first.input) == (b"7", None, b"[1]")


def test_a_failed_run_is_followed_by_the_schedule() -> None:
    stage = scheduled()
    stage.answer(c.FailWorkflow(failure=OH))
    first = next_start(stage)
    assert (first.last_failure, first.attempt) == (OH, 1)


def test_retries_come_before_the_schedule() -> None:
    stage = scheduled(retry_policy=WireRetryPolicy(attempts=2))
    stage.answer(c.FailWorkflow(failure=OH))
    assert next_start(stage).initiator == "retry"


def test_a_cancelled_run_ends_its_schedule() -> None:
    stage = scheduled()
    stage.answer(c.CancelWorkflow())
    assert stage.last.next_run is None


def test_a_schedule_ends_with_the_time_of_the_chain() -> None:
    stage = scheduled(execution_timeout_ms=55_000)
    stage.answer(c.CompleteWorkflow())
    assert stage.last.next_run is None


# --- nobody may have its tasks --------------------------------------------------------------------


def missing(stage: Stage, **changes: Any) -> w.TargetMissing:
    task = next(x.task for x in stage.last.effects if isinstance(x, DispatchWorkflowTask))
    return w.TargetMissing(replace(task, **changes), "no living worker on host 'h'")


def test_a_run_fails_when_nobody_lives_who_may_have_its_task() -> None:
    stage = Stage(route=dump_route(Route.host("h")), parent=PARENT, retry_policy=WireRetryPolicy())
    lost = missing(stage)
    told = stage.tell(lost, None)
    failed = stage.history[-1]
    assert isinstance(failed, e.WorkflowExecutionFailed)
    assert failed.failure.type == "TargetGone"
    assert failed.failure.message == "no living worker on host 'h'"
    assert failed.new_run_id is None  # whoever is tried again would not be there either
    assert stage.run.status is r.Status.FAILED
    (closed,) = [x.request for x in told.effects if isinstance(x, ToShard)]
    assert isinstance(closed, r.ChildClosed)
    assert not stage.tell(lost, None).changed


def test_a_task_that_is_over_misses_nobody() -> None:
    stage = Stage(route=dump_route(Route.host("h")))
    assert not stage.tell(missing(stage, attempt=2), None).changed
    assert stage.run.is_open


def test_who_has_asked_is_told_when_nobody_may_answer() -> None:
    stage = Stage(route=dump_route(Route.host("h")))
    query = w.QueryRequest("q", "tq.n.reply.c", "7")
    step = stage.tell(missing(stage, scheduled_event_id=0, queries=[query]), None)
    (reply,) = [x for x in step.effects if isinstance(x, Reply)]
    assert reply.to == ReplyTo("tq.n.reply.c", "7")
    assert isinstance(reply.answer, w.QueryAnswer)
    assert reply.answer.error == "failed"
    assert stage.run.is_open


FALLS = dump_route(Route.host("h", on_gone=OnGone.FALL_BACK))


def test_a_task_that_falls_back_is_for_others_and_its_start_tells_why() -> None:
    stage = Stage(route=FALLS)
    lost = missing(stage)
    stage.tell(lost, None)
    assert stage.run.is_open
    why = "no living worker on host 'h'"
    assert stage.dispatched().fell_back == [why]
    assert not stage.tell(lost, None).changed, "it is told again after a crash"
    stage.tell(r.Describe(workflow_id="order-1"))
    (described,) = stage.replies()
    assert described.pending_task.fell_back == why
    stage.answer()
    assert stage.the(e.WorkflowTaskStarted).fell_back == why
    # The next one looks for the host again.
    stage.tell_signal()
    assert stage.dispatched().fell_back == []
    stage.answer()
    assert stage.the(e.WorkflowTaskStarted).fell_back == ""


def test_each_attempt_looks_for_the_host_again() -> None:
    stage = Stage(route=FALLS)
    stage.tell(missing(stage), None)
    stage.fail_task()
    assert stage.the(e.WorkflowTaskStarted).fell_back
    stage.wake()
    assert stage.dispatched().fell_back == []


def test_who_falls_back_twice_tells_both_reasons() -> None:
    stage = Stage(route=FALLS, requires=dump_requires(Requires({"gpu"}, OnGone.FALL_BACK)))
    stage.tell(missing(stage), None)
    stage.tell(w.TargetMissing(stage.dispatched(), "nobody with gpu"), None)
    assert stage.dispatched().fell_back == ["no living worker on host 'h'", "nobody with gpu"]
    stage.answer()
    told = stage.the(e.WorkflowTaskStarted).fell_back
    assert told == "no living worker on host 'h'; nobody with gpu"


def test_who_falls_back_and_then_misses_what_it_requires_gets_the_answer_of_that() -> None:
    stage = Stage(route=FALLS, requires=dump_requires(Requires({"gpu"}, OnGone.FAIL)))
    stage.tell(missing(stage), None)
    stage.tell(w.TargetMissing(stage.dispatched(), "nobody with gpu"), None)
    assert isinstance(stage.history[-1], e.WorkflowExecutionFailed)


def test_questions_fall_back_with_their_task() -> None:
    stage = Stage(route=FALLS)
    query = w.QueryRequest("q", "tq.n.reply.c", "7")
    stage.tell(missing(stage, queries=[query]), None)
    assert stage.dispatched().queries == [query]


def test_the_next_run_of_a_chain_is_bound_as_this_one() -> None:
    stage = Stage(route=dump_route(Route.host("h")), requires=dump_requires(Requires({"gpu"})))
    stage.answer(c.ContinueAsNew())
    following = next_start(stage)
    assert (following.route, following.requires) == (
        stage.run.started.route,
        stage.run.started.requires,
    )
    assert following.route is not None
