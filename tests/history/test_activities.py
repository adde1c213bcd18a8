"""Activities of a run."""

from __future__ import annotations

from copy import deepcopy

import msgspec
import pytest

from tests.history.stage import BEGIN_MS, CLIENT, KEY, Stage, an_activity
from tq_broker.common import Route
from tq_broker.exceptions import RetryState, TimeoutType
from tq_broker.history import activities, machine
from tq_broker.history.effects import CancelActivity, DispatchActivity
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import payload
from tq_broker.model.failure import Failure, FailureKind, application, canceled, timed_out
from tq_broker.model.payload import join
from tq_broker.model.tasks import Status, WireRetryPolicy, WorkflowOrigin, dump_route
from tq_broker.model.workflow_tasks import ClaimStart, StartGranted

FIRST = 5
"""The scheduled event of a run's first activity."""

OH = application("oh", "Oh")


def with_one(**changes: object) -> Stage:
    stage = Stage()
    stage.answer(an_activity(**changes))
    return stage


def a_claim(request_id: str = "r", attempt: int = 1, event_id: int = FIRST) -> ClaimStart:
    return ClaimStart(
        run=KEY,
        scheduled_event_id=event_id,
        attempt=attempt,
        request_id=request_id,
        identity="me",
        host="h",
        worker_id="w",
    )


# --- ends ----------------------------------------------------------------------------------------


def test_an_activity_completes_once() -> None:
    stage = with_one()
    stage.outcome(FIRST)
    assert stage.names(FIRST) == [
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        "WorkflowTaskScheduled",
    ]
    completed = stage.the(e.ActivityTaskCompleted)
    assert (completed.result, completed.identity) == (b'{"result":2}', "them")
    assert stage.the(e.ActivityTaskStarted).worker_id == "worker-2"
    stage.outcome(FIRST)
    assert not stage.last.changed


def test_nobody_knows_an_activity_that_is_not_pending() -> None:
    stage = with_one()
    stage.outcome(3)
    stage.outcome(99, Status.STARTED)
    assert not stage.last.changed


def test_a_failure_that_is_not_retried_ends_it() -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.FAILED, failure=application("no", "No", non_retryable=True))
    failed = stage.the(e.ActivityTaskFailed)
    assert failed.failure.type == "No"
    assert failed.retry_state == RetryState.NON_RETRYABLE_FAILURE


def test_a_failure_without_a_reason_is_a_failure() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=1))
    stage.tell(a_claim())
    stage.outcome(FIRST, Status.FAILED)
    assert stage.the(e.ActivityTaskFailed).retry_state == RetryState.MAXIMUM_ATTEMPTS_REACHED


def test_an_activity_that_ended_itself_by_cancellation_is_canceled() -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.CANCELED, failure=canceled("c", ["d"]))
    assert stage.the(e.ActivityTaskCanceled).details == b'["d"]'


# --- attempts ------------------------------------------------------------------------------------


def test_a_failed_attempt_is_tried_again_after_a_pause() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(initial_ms=1_000, attempts=3))
    stage.outcome(FIRST, Status.FAILED, failure=OH, heartbeat=b"[1]")
    assert not stage.last.events
    assert stage.run.next_ms() == stage.now_ms + 1_000
    stage.wait(999)
    assert not stage.last.changed
    stage.wait(1)
    assert stage.attempts() == [
        DispatchActivity(FIRST, 2, attempt_scheduled_ms=stage.now_ms, heartbeat=b"[1]")
    ]
    stage.outcome(FIRST, Status.FAILED, attempt=2, failure=OH)
    assert stage.run.next_ms() == stage.now_ms + 2_000
    stage.wake()
    stage.outcome(FIRST, Status.FAILED, attempt=3, failure=OH)
    started, failed = stage.the(e.ActivityTaskStarted), stage.the(e.ActivityTaskFailed)
    assert (started.attempt, started.last_failure) == (3, OH)
    assert failed.retry_state == RetryState.MAXIMUM_ATTEMPTS_REACHED


def test_an_outcome_of_an_attempt_that_is_over_is_dropped() -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.FAILED, failure=OH)
    stage.outcome(FIRST, Status.FAILED, failure=OH)
    assert not stage.last.changed
    stage.wake()
    stage.outcome(FIRST, attempt=1)
    assert not stage.last.changed
    stage.outcome(FIRST, attempt=3)
    assert not stage.last.changed


def test_a_lost_attempt_that_completes_counts_until_the_next_has_begun() -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.FAILED, failure=OH)
    stage.outcome(FIRST, attempt=1)
    assert stage.the(e.ActivityTaskStarted).attempt == 1
    assert isinstance(stage.the(e.ActivityTaskCompleted), e.ActivityTaskCompleted)


def test_retries_end_with_schedule_to_close() -> None:
    stage = with_one(schedule_to_close_ms=1_000)
    stage.outcome(FIRST, Status.FAILED, failure=OH)
    assert stage.the(e.ActivityTaskFailed).retry_state == RetryState.TIMEOUT


def test_an_attempt_that_timed_out_at_its_worker_ends_as_timed_out() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=2))
    late = timed_out(TimeoutType.HEARTBEAT)
    stage.outcome(FIRST, Status.TIMED_OUT, failure=late)
    stage.wake()
    stage.outcome(FIRST, Status.TIMED_OUT, attempt=2, failure=late)
    assert stage.the(e.ActivityTaskTimedOut).failure == late


LARGE = 10**20
"""JSON holds it, MessagePack does not."""


def test_details_that_cannot_be_kept_lose_no_outcome() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=2))
    failure = Failure(kind=FailureKind.APPLICATION, message="too poor", details=[{"wei": LARGE}])
    stage.outcome(FIRST, Status.FAILED, failure=failure)
    stage.wake()
    stage.outcome(FIRST, Status.FAILED, attempt=2, failure=failure)
    ended, started = stage.the(e.ActivityTaskFailed), stage.the(e.ActivityTaskStarted)
    assert ended.failure.details == ["{'wei': 100000000000000000000}"]
    assert started.last_failure == ended.failure


def test_heartbeats_that_cannot_be_kept_let_an_attempt_time_out() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=1), heartbeat_ms=1_000)
    stage.tell(a_claim())
    stage.outcome(FIRST, Status.HEARTBEAT, heartbeat=b"[%d]" % LARGE)
    stage.wake()
    assert stage.the(e.ActivityTaskTimedOut).failure.details == [str(LARGE)]


# --- notices -------------------------------------------------------------------------------------


def test_notices_are_kept_for_whoever_asks() -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.STARTED)
    stage.now_ms += 5
    stage.outcome(FIRST, Status.HEARTBEAT, heartbeat=b'["half"]')
    activity = stage.run.activities[FIRST]
    assert (activity.started_ms, activity.heard_ms) == (BEGIN_MS, BEGIN_MS + 5)
    assert (activity.heartbeat, activity.host) == (b'["half"]', "h")
    assert not stage.last.events


@pytest.mark.parametrize("heartbeat", [b"no", b"1", b"\0zlib", b"\xff"])
def test_details_that_are_none_are_dropped(heartbeat: bytes) -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.HEARTBEAT, heartbeat=heartbeat)
    assert stage.run.activities[FIRST].heartbeat is None


@pytest.mark.parametrize("status", [Status.JOINED, Status.REFUSED])
def test_notices_that_are_not_for_history_are_dropped(status: Status) -> None:
    stage = with_one()
    stage.outcome(FIRST, status)
    assert not stage.last.changed


# --- timeouts ------------------------------------------------------------------------------------


def test_schedule_to_start_is_never_retried() -> None:
    stage = with_one(schedule_to_start_ms=500)
    stage.wait(500)
    ended = stage.the(e.ActivityTaskTimedOut)
    assert (ended.failure.timeout_type, ended.started_event_id) == (2, 0)
    assert ended.retry_state == RetryState.TIMEOUT
    assert CancelActivity(f"run-1/{FIRST}") in stage.last.effects


def test_schedule_to_start_ends_with_the_start() -> None:
    stage = with_one(schedule_to_start_ms=500)
    stage.outcome(FIRST, Status.STARTED)
    stage.wait(500)
    assert not stage.last.changed


def test_schedule_to_close_ends_all_attempts() -> None:
    stage = with_one(schedule_to_close_ms=5_000)
    stage.outcome(FIRST, Status.FAILED, failure=OH)
    stage.wake()
    stage.outcome(FIRST, Status.HEARTBEAT, attempt=2, heartbeat=b"[7]")
    stage.wait(4_000)
    failure = stage.the(e.ActivityTaskTimedOut).failure
    assert (failure.timeout_type, failure.cause, failure.details) == (3, OH, [7])
    assert CancelActivity(f"run-1/{FIRST}") in stage.last.effects


def test_what_its_worker_does_not_measure_any_more_is_measured_here() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=2), heartbeat_ms=1_000)
    stage.outcome(FIRST, Status.STARTED)
    stage.wait(2_999)
    assert not stage.last.changed
    stage.wait(1)
    assert stage.run.activities[FIRST].attempt == 2
    stage.wake()
    stage.outcome(FIRST, Status.STARTED, attempt=2)
    for _ in range(5):
        stage.wait(2_000)
        stage.outcome(FIRST, Status.HEARTBEAT, attempt=2)
    stage.wait(2_000)
    assert stage.the(e.ActivityTaskTimedOut).failure.timeout_type == 1


@pytest.mark.parametrize(
    "bounds",
    [
        {"heartbeat_ms": 1_000},
        {"start_to_close_ms": 1_000},
        {"schedule_to_close_ms": 1_000},
        {"schedule_to_start_ms": 1_000},
    ],
    ids=lambda bounds: next(iter(bounds)),
)
def test_no_timeout_comes_before_what_was_said_earlier(bounds: dict[str, int]) -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=1), **bounds)
    if "schedule_to_start_ms" not in bounds:
        stage.outcome(FIRST, Status.STARTED)
    end_ms = stage.run.next_ms()
    assert end_ms is not None
    stage.wait(end_ms + 99 - stage.now_ms, heard_ms=end_ms - 1)
    assert not stage.last.events
    assert stage.run.next_ms() == stage.now_ms + machine.PATIENCE_MS
    following = deepcopy(stage)
    stage.outcome(FIRST)
    assert stage.the(e.ActivityTaskCompleted).result == b'{"result":2}'
    following.wait(0, heard_ms=end_ms)
    assert following.the(e.ActivityTaskTimedOut).scheduled_event_id == FIRST


def test_a_heartbeat_that_was_late_to_be_read_is_in_time() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=1), heartbeat_ms=1_000)
    stage.outcome(FIRST, Status.STARTED)
    stage.wait(5_000, heard_ms=0)
    stage.outcome(FIRST, Status.HEARTBEAT)
    stage.wait(0, heard_ms=stage.now_ms)
    assert not stage.last.events
    assert stage.run.next_ms() == stage.now_ms + 3_000


def test_the_next_attempt_waits_for_nothing() -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.FAILED, failure=OH)
    stage.wait(1_000, heard_ms=0)
    assert stage.attempts()
    assert stage.run.patient_ms == 0


def test_an_attempt_that_nobody_spoke_of_has_no_timeout_of_its_own() -> None:
    assert with_one(heartbeat_ms=1_000).run.next_ms(looks=False) is None


def test_a_result_that_is_too_large_fails_the_activity_for_good(
    caplog: pytest.LogCaptureFixture,
) -> None:
    large = b'{"result":"' + b"x" * payload.BYTES_WARN + b'"}'
    stage = with_one()
    stage.outcome(FIRST, body=large)
    assert "the result of activity '1' of workflow 'order-1' is 5243" in caplog.text
    assert stage.the(e.ActivityTaskCompleted).result == large
    stage = with_one()
    stage.outcome(FIRST, body=large * 4)
    failed = stage.the(e.ActivityTaskFailed).failure
    assert (failed.type, failed.non_retryable) == ("PayloadTooLarge", True)
    assert "the bound is 2097152" in failed.message


# --- cancellation --------------------------------------------------------------------------------


def test_try_cancel_ends_it_at_once() -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.STARTED)
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST))
    assert CancelActivity(f"run-1/{FIRST}") in stage.last.effects
    assert stage.names(9) == [
        "ActivityTaskCancelRequested",
        "ActivityTaskStarted",
        "ActivityTaskCanceled",
        "WorkflowTaskScheduled",
    ]
    stage.outcome(FIRST, Status.CANCELED)
    assert not stage.last.changed


def test_a_cancellation_may_wait_for_the_activity() -> None:
    stage = with_one()
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST, wait=True))
    assert stage.last.effects == [CancelActivity(f"run-1/{FIRST}")]
    stage.outcome(FIRST, Status.CANCELED, failure=canceled())
    assert isinstance(stage.the(e.ActivityTaskCanceled), e.ActivityTaskCanceled)


@pytest.mark.parametrize("status", [Status.FAILED, Status.COMPLETED])
def test_a_cancelled_activity_may_end_as_it_likes(status: Status) -> None:
    stage = with_one()
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST, wait=True))
    stage.outcome(FIRST, status, failure=OH)
    assert not stage.run.activities
    if status is Status.FAILED:
        assert stage.the(e.ActivityTaskFailed).retry_state == RetryState.CANCEL_REQUESTED


def test_a_cancellation_between_attempts_need_not_wait() -> None:
    stage = with_one()
    stage.outcome(FIRST, Status.FAILED, failure=OH)
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST, wait=True))
    assert not stage.run.activities
    assert CancelActivity(f"run-1/{FIRST}") not in stage.last.effects


def test_a_cancellation_that_crosses_the_result_comes_too_late() -> None:
    stage = with_one()
    stage.tell_signal()
    stage.outcome(FIRST)
    stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST))
    assert stage.names(9) == [
        "ActivityTaskCancelRequested",
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        "WorkflowTaskScheduled",
    ]


def test_cancelling_and_ending_in_one_breath() -> None:
    stage = with_one()
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST), c.CancelWorkflow())
    assert stage.names(9) == ["ActivityTaskCancelRequested", "WorkflowExecutionCanceled"]


# --- claims --------------------------------------------------------------------------------------


def test_one_attempt_is_granted_to_one_request() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=1))
    for request_id, granted in [("r1", True), ("r2", False), ("r1", True), ("r2", False)]:
        stage.tell(a_claim(request_id))
        [answer] = stage.replies()
        assert answer.granted is granted
    assert stage.run.activities[FIRST].worker_id == "w"


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        (a_claim(event_id=4), "the activity is not pending"),
        (a_claim(attempt=2), "attempt 1 is the current one"),
    ],
)
def test_a_claim_for_what_is_not_there_is_refused(claim: ClaimStart, why: str) -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=1))
    stage.tell(claim)
    assert stage.replies() == [StartGranted(granted=False, why=why)]
    assert not stage.last.changed


def test_an_activity_that_nobody_has_claimed_is_cancelled_at_once() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=1))
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST, wait=True))
    assert not stage.run.activities
    stage.tell(a_claim(), CLIENT)
    assert not stage.replies()[0].granted


def test_an_activity_that_was_claimed_is_waited_for() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(attempts=1))
    stage.tell(a_claim())
    stage.tell_signal()
    stage.answer(c.RequestCancelActivity(scheduled_event_id=FIRST, wait=True))
    assert FIRST in stage.run.activities


# --- the task ------------------------------------------------------------------------------------


def test_a_task_has_what_the_event_says() -> None:
    route = Route.host("h1")
    stage = with_one(
        route=dump_route(route),
        priority=2,
        heartbeat_ms=99_000,
        schedule_to_close_ms=5_000,
        retry_policy=WireRetryPolicy(attempts=1),
    )
    [effect] = stage.attempts()
    assert effect.scheduled is not None
    task, heartbeat = activities.task(stage.run, effect.scheduled, effect)
    assert heartbeat is None
    assert (task.activity_id, task.body, task.codecs) == ("run-1/5", b'{"args":[1]}', "")
    assert (task.route, task.priority) == (route, 2)
    assert (task.start_to_close_ms, task.heartbeat_ms) == (5_000, 5_000)
    assert task.scheduled_ms == task.attempt_scheduled_ms == stage.now_ms
    assert task.workflow == WorkflowOrigin(
        workflow_id="order-1",
        run_id="run-1",
        workflow_type="Order",
        activity_id="1",
        scheduled_event_id=FIRST,
        claim=True,
    )


def test_details_that_can_be_read_go_into_the_body() -> None:
    stage = with_one()
    scheduled = stage.the(e.ActivityTaskScheduled)
    effect = DispatchActivity(FIRST, 2, 7, heartbeat=b'["half"]')
    task, heartbeat = activities.task(stage.run, scheduled, effect)
    assert msgspec.json.decode(task.body) == {"args": [1], "heartbeat": ["half"]}
    assert heartbeat is None
    assert (task.attempt, task.attempt_scheduled_ms) == (2, 7)


def test_details_that_codecs_hide_go_beside_it() -> None:
    stage = with_one(input=join("zlib", b"secret"))
    scheduled = stage.the(e.ActivityTaskScheduled)
    sealed = join("zlib", b"details")
    task, heartbeat = activities.task(
        stage.run, scheduled, DispatchActivity(FIRST, 2, 7, heartbeat=sealed)
    )
    assert (task.body, task.codecs, heartbeat) == (b"secret", "zlib", sealed)


def test_a_failure_that_codecs_hide_is_retried_by_what_is_known() -> None:
    stage = with_one(retry_policy=WireRetryPolicy(non_retryable=["Bad"]))
    hidden = Failure(
        kind=FailureKind.APPLICATION, message="encoded failure", type="Bad", sealed=b"\0z\0x"
    )
    stage.outcome(FIRST, Status.FAILED, failure=hidden)
    assert stage.the(e.ActivityTaskFailed).failure.sealed == b"\0z\0x"


# --- announced starts ----------------------------------------------------------------------------

ANNOUNCED = {"announce_start": True, "retry_policy": WireRetryPolicy(attempts=1)}


def test_a_start_is_announced_when_it_is_claimed() -> None:
    stage = with_one(**ANNOUNCED)
    stage.tell(a_claim())
    assert stage.names(FIRST) == ["ActivityTaskStarted", "WorkflowTaskScheduled"]
    assert stage.the(e.ActivityTaskStarted).worker_id == "w"
    stage.answer()
    stage.outcome(FIRST)
    assert stage.names(9) == ["ActivityTaskCompleted", "WorkflowTaskScheduled"]
    assert stage.the(e.ActivityTaskCompleted).started_event_id == FIRST + 1


@pytest.mark.parametrize("answers", [False, True])
def test_an_announced_start_and_the_end_may_be_held_back(answers: bool) -> None:
    stage = with_one(**ANNOUNCED)
    stage.tell_signal()
    stage.tell(a_claim())
    if answers:
        stage.answer()
    stage.outcome(FIRST)
    stage.answer()
    started, completed = stage.the(e.ActivityTaskStarted), stage.the(e.ActivityTaskCompleted)
    assert completed.started_event_id == started.event_id


def test_an_announced_activity_that_fails_is_told_to_end() -> None:
    """Its worker may only have been cut off, and hold it still."""
    stage = with_one(**ANNOUNCED)
    stage.tell(a_claim())
    stage.answer()
    stage.outcome(FIRST, Status.FAILED, failure=application("gone", "WorkerLost"))
    assert CancelActivity(f"run-1/{FIRST}") in stage.last.effects
    assert stage.the(e.ActivityTaskFailed).failure.type == "WorkerLost"


def test_an_announced_activity_that_was_lost_before_its_start_is_put_back() -> None:
    stage = with_one(**ANNOUNCED)
    stage.outcome(FIRST, Status.FAILED, failure=application("gone", "WorkerLost"))
    assert stage.attempts() == [DispatchActivity(FIRST, 2, attempt_scheduled_ms=stage.now_ms)]
    stage.tell(a_claim(attempt=2))
    assert stage.replies()[0].granted
