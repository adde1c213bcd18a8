"""The machine as a whole: anything may happen to a run, in any order, and it stays sound."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history.stage import CLIENT, KEY, WORKER, Stage, a_start, an_activity, check
from tq_broker.history import closing, machine
from tq_broker.history.effects import Reply, ReplyTo, ToShard
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r
from tq_broker.model import workflow_tasks as w
from tq_broker.model.failure import application
from tq_broker.model.tasks import Status, WireRetryPolicy

# --- anything may happen -------------------------------------------------------------------------


class Author:
    """Writes commands: what the run can carry out now, and now and then what it cannot."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.count = 0

    def write(self, wishes: list[tuple[str, int]]) -> list[Any]:
        commands: list[Any] = []
        for wish, number in wishes:
            command = getattr(self, wish)(number)
            if command is not None and command not in commands:
                commands.append(command)
        return commands

    def activity(self, number: int) -> Any:
        self.count += 1
        policy = (None, WireRetryPolicy(attempts=1), WireRetryPolicy(attempts=3))[number % 3]
        return an_activity(
            str(self.count),
            retry_policy=policy,
            schedule_to_close_ms=(0, 20_000)[number % 2],
            schedule_to_start_ms=(0, 0, 5_000)[number % 3],
            heartbeat_ms=(0, 1_000)[number % 2],
        )

    def cancel_activity(self, number: int) -> Any:
        known = sorted(self.stage.run.activities)
        if not known:
            return None
        event_id = known[number % len(known)]
        return c.RequestCancelActivity(scheduled_event_id=event_id, wait=bool(number % 2))

    def timer(self, number: int) -> Any:
        self.count += 1
        return c.StartTimer(timer_id=str(self.count), start_to_fire_ms=number * 100)

    def cancel_timer(self, number: int) -> Any:
        run = self.stage.run
        known = sorted(run.timers)
        known += [event.timer_id for event in run.buffered if isinstance(event, e.TimerFired)]
        return c.CancelTimer(timer_id=known[number % len(known)]) if known else None

    def marker(self, number: int) -> Any:
        return c.RecordMarker(marker_name="core_patch", details={"id": b"%d" % number})

    def child(self, number: int) -> Any:
        return c.StartChildWorkflow(
            workflow_id=str(number),
            workflow_type="Child",
            task_queue="q",
            parent_close_policy=number % 3 + 1,
        )

    def signal(self, number: int) -> Any:
        return c.SignalExternalWorkflow(workflow_id=str(number), signal_name="s")

    def cancel(self, number: int) -> Any:
        return c.RequestCancelExternalWorkflow(workflow_id=str(number))

    def memo(self, number: int) -> Any:
        return c.ModifyProperties(upserted_memo={"m": None if number % 2 else b"1"})

    def accept(self, number: int) -> Any:
        known = [key for key, update in self.stage.run.updates.items() if update.request]
        return c.AcceptUpdate(update_id=known[number % len(known)]) if known else None

    def complete(self, number: int) -> Any:
        known = [key for key, update in self.stage.run.updates.items() if not update.request]
        return c.CompleteUpdate(update_id=known[number % len(known)]) if known else None

    def bad(self, number: int) -> Any:
        return (
            an_activity("1", start_to_close_ms=-1),
            c.CancelTimer(timer_id="never"),
            c.RequestCancelActivity(scheduled_event_id=number),
            c.RejectUpdate(update_id=str(number % 4 + 1), failure=application("no", "No")),
        )[number % 4]


WISHES = (
    *("activity", "activity", "activity", "timer", "timer", "cancel_activity", "cancel_timer"),
    *("marker", "child", "signal", "cancel", "memo", "accept", "accept", "complete"),
)
ENDINGS = (
    c.CompleteWorkflow(),
    c.FailWorkflow(failure=application("x", "X")),
    c.CancelWorkflow(),
    c.ContinueAsNew(input=b"[2]"),
)


def child(event_id: int) -> e.ParentInfo:
    return e.ParentInfo(workflow_id=KEY.workflow_id, run_id=KEY.run_id, initiated_event_id=event_id)


def pick(wanted: Any, number: int) -> int:
    """One of the ids that are pending, or one that is not."""
    known = sorted(wanted)
    return known[number % len(known)] if known and number % 5 else number % 40


class Actor:
    """Does to a stage what the numbers say."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.granted: dict[tuple[int, int], str] = {}

    def signal(self, number: int) -> None:
        self.stage.tell(r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="s"))

    def update(self, number: int) -> None:
        update = w.UpdateRequest(update_id=str(number % 4 + 1), name="u")
        wait = number % 3 + 1
        self.stage.tell(r.UpdateWorkflow(workflow_id=KEY.workflow_id, update=update, wait=wait))

    def await_update(self, number: int) -> None:
        self.stage.tell(r.AwaitUpdate(workflow_id=KEY.workflow_id, update_id=str(number % 4 + 1)))

    def query(self, number: int) -> None:
        self.stage.tell(r.QueryWorkflow(workflow_id=KEY.workflow_id, query_type="q"))

    def await_result(self, number: int) -> None:
        self.stage.tell(r.AwaitResult(workflow_id=KEY.workflow_id), ReplyTo("q", str(number)))

    def describe(self, number: int) -> None:
        self.stage.tell(r.Describe(workflow_id=KEY.workflow_id))
        assert len(self.stage.replies()) == 1

    def cancel(self, number: int) -> None:
        self.stage.tell(r.RequestCancel(workflow_id=KEY.workflow_id))

    def terminate(self, number: int) -> None:
        if number % 100 == 13:
            self.stage.tell(r.Terminate(workflow_id=KEY.workflow_id, reason="enough"))

    def reset_sticky(self, number: int) -> None:
        self.stage.tell(r.ResetSticky(workflow_id=KEY.workflow_id))

    def evict(self, number: int) -> None:
        self.stage.tell(w.StickyEvicted(run=KEY, worker_id=WORKER), None)

    def gone(self, number: int) -> None:
        self.stage.tell(w.StickyGone(worker_id=WORKER), None)

    def give_back(self, number: int) -> None:
        task = self.stage.run.task
        if task is not None:
            self.stage.tell(
                w.WorkflowTask(
                    run=KEY,
                    workflow_type="Order",
                    task_queue="orders",
                    shard=0,
                    scheduled_event_id=task.scheduled_event_id,
                    attempt=task.attempt,
                    sticky=task.sticky,
                ),
                None,
            )

    def progress(self, number: int) -> None:
        task = self.stage.run.task
        if task is not None:
            self.stage.tell(
                w.WorkflowTaskProgress(
                    run=KEY, scheduled_event_id=task.scheduled_event_id, attempt=number % 2 + 1
                ),
                None,
            )

    def fail_task(self, number: int) -> None:
        if self.stage.run.task is not None:
            self.stage.fail_task()

    def wait(self, number: int) -> None:
        heard_ms = None if number % 4 else self.stage.now_ms
        self.stage.wait((0, 1, 500, 1_000, 4_000, 12_000)[number % 6], heard_ms)

    def wake(self, number: int) -> None:
        if self.stage.run.next_ms() is not None:
            self.stage.wake()

    def outcome(self, number: int) -> None:
        pending = self.stage.run.activities
        event_id = pick(pending, number)
        statuses = list(Status)
        attempt = number % 3 + 1
        if event_id in pending and number % 4:
            attempt = pending[event_id].attempt
        status = statuses[number % len(statuses)]
        failure = application("x", "X") if number % 2 else None
        heartbeat = (None, b"[1]", b"no", b"\0zlib\0x")[number % 4]
        self.stage.outcome(event_id, status, attempt=attempt, failure=failure, heartbeat=heartbeat)

    def claim(self, number: int) -> None:
        event_id = pick(self.stage.run.activities, number)
        activity = self.stage.run.activities.get(event_id)
        attempt = activity.attempt if activity is not None else 1
        request_id = str(number % 3)
        self.stage.tell(
            w.ClaimStart(
                run=KEY, scheduled_event_id=event_id, attempt=attempt, request_id=request_id
            )
        )
        [answer] = self.stage.replies()
        if answer.granted:
            assert self.granted.setdefault((event_id, attempt), request_id) == request_id

    def child_started(self, number: int) -> None:
        parent = child(pick(self.stage.run.children, number))
        self.stage.tell(
            r.ChildStarted(parent=parent, workflow_id="1", run_id="cr", workflow_type="C"), None
        )

    def child_refused(self, number: int) -> None:
        parent = child(pick(self.stage.run.children, number))
        self.stage.tell(r.ChildRefused(parent=parent, workflow_id="1", workflow_type="C"), None)

    def child_closed(self, number: int) -> None:
        parent = child(pick(self.stage.run.children, number))
        status = list(r.Status)[number % len(r.Status)]
        self.stage.tell(
            r.ChildClosed(
                parent=parent, workflow_id="1", run_id="cr", workflow_type="C", status=status
            ),
            None,
        )

    def external_done(self, number: int) -> None:
        origin = child(pick(self.stage.run.externals, number))
        self.stage.tell(r.ExternalDone(origin=origin, cause="not_found" * (number % 2)), None)


ACTIONS = sorted(name for name in vars(Actor) if not name.startswith("_"))
STEPS = 120


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_whatever_happens_the_run_is_sound(seed: int) -> None:
    dice = random.Random(seed)
    stage = Stage(
        retry_policy=dice.choice([None, WireRetryPolicy(attempts=2)]),
        cron_schedule=dice.choice(["", "", "@every 30s"]),
        execution_timeout_ms=dice.choice([0, 0, 300_000]),
        want_result=True,
    )
    actor, author = Actor(stage), Author(stage)
    for _ in range(STEPS):
        if dice.random() < 0.3 and stage.run.is_out:
            wishes = [(dice.choice(WISHES), dice.randrange(1000)) for _ in range(dice.randrange(5))]
            if dice.random() < 0.1:
                wishes.append(("bad", dice.randrange(1000)))
            stage.answer(*author.write(wishes), sticky=dice.random() < 0.7)
        else:
            getattr(actor, dice.choice(ACTIONS))(dice.randrange(1000))
    if stage.run.is_out:
        stage.answer(dice.choice(ENDINGS))
    following = stage.last.next_run
    if following is not None:
        assert stage.run.closed is not None
        check(following.run, following.step.events, stage.now_ms)
        assert following.run.run_id == stage.run.closed.next_run_id


# --- the shortest life ---------------------------------------------------------------------------


def test_a_workflow_of_one_activity() -> None:
    stage = Stage(want_result=True)
    assert stage.replies() == [r.Started(run_id="run-1", first_run_id="run-1")]
    assert stage.dispatched().first_event_id == 1
    stage.answer(an_activity(), sticky=True)
    [attempt] = stage.attempts()
    assert attempt.scheduled is stage.the(e.ActivityTaskScheduled)
    stage.outcome(attempt.scheduled_event_id)
    assert (stage.dispatched().sticky, stage.dispatched().first_event_id) == (WORKER, 3)
    stage.answer(c.CompleteWorkflow(result=b"7"), sticky=True)
    [closed] = stage.replies()
    assert (closed.status, closed.result) == (r.Status.COMPLETED, b"7")
    assert stage.names() == [
        "WorkflowExecutionStarted",
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
        "ActivityTaskScheduled",
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
        "WorkflowExecutionCompleted",
    ]


# --- start ---------------------------------------------------------------------------------------


def test_a_start_with_a_signal_has_the_signal_before_the_first_task() -> None:
    stage = Stage(signal=r.SignalInput(signal_name="s"))
    assert stage.names()[1:] == ["WorkflowExecutionSignaled", "WorkflowTaskScheduled"]


def test_a_start_with_an_update_carries_it_in_the_first_task() -> None:
    stage = Stage(update=w.UpdateRequest(update_id="u", name="n"))
    assert [update.update_id for update in stage.dispatched().updates] == ["u"]


def test_a_childs_parent_is_told_that_it_has_started() -> None:
    parent = e.ParentInfo(workflow_id="p", run_id="pr", initiated_event_id=5)
    stage = Stage(sender=None, parent=parent)
    assert stage.sent() == [
        r.ChildStarted(parent=parent, workflow_id="order-1", run_id="run-1", workflow_type="Order")
    ]
    assert stage.run.started.initiator == "child"


def test_a_delayed_start_has_its_first_task_later() -> None:
    stage = Stage(start_delay_ms=5_000, signal=r.SignalInput(signal_name="s"))
    assert stage.names()[1:] == ["WorkflowExecutionSignaled"]
    assert stage.run.next_ms() == stage.now_ms + 5_000
    stage.wait(5_000)
    assert stage.dispatched().last_event_id == 3


def test_a_signal_ends_the_delay_of_a_start() -> None:
    stage = Stage(start_delay_ms=5_000)
    stage.tell(r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="s"))
    assert stage.names()[1:] == ["WorkflowExecutionSignaled", "WorkflowTaskScheduled"]


def test_a_scheduled_start_keeps_its_time_whatever_comes() -> None:
    stage = Stage(cron_schedule="@every 60s")
    stage.tell(r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="s"))
    assert stage.run.next_ms() == stage.now_ms + 60_000
    stage.wake()
    assert stage.dispatched().last_event_id == 3


def test_a_cancellation_does_not_wait_for_the_schedule() -> None:
    stage = Stage(cron_schedule="@every 60s")
    stage.tell(r.RequestCancel(workflow_id=KEY.workflow_id))
    assert stage.names()[1:] == ["WorkflowExecutionCancelRequested", "WorkflowTaskScheduled"]


# --- ends from outside ---------------------------------------------------------------------------


def test_a_run_is_terminated_with_all_that_it_has() -> None:
    stage = Stage(want_result=True)
    stage.answer(an_activity(), c.StartTimer(timer_id="t", start_to_fire_ms=1))
    stage.tell(r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="s"))
    stage.tell(r.Terminate(workflow_id=KEY.workflow_id, reason="enough"), ReplyTo("q", "2"))
    closed, done = stage.replies()
    assert (closed.status, closed.failure.message) == (r.Status.TERMINATED, "enough")
    assert done == r.Done(run_id="run-1")
    assert any(not isinstance(effect, Reply) for effect in stage.last.effects)


def test_terminate_is_for_the_chain_that_is_meant() -> None:
    stage = Stage()
    stage.tell(r.Terminate(workflow_id=KEY.workflow_id, first_run_id="another"))
    assert stage.replies()[0].reason == "not_found"
    assert stage.run.is_open


def test_what_has_ended_cannot_be_ended_again() -> None:
    stage = Stage()
    stage.answer(c.CompleteWorkflow())
    for request in (
        r.Terminate(workflow_id=KEY.workflow_id),
        r.RequestCancel(workflow_id=KEY.workflow_id),
        r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="s"),
    ):
        stage.tell(request)
        assert [answer.reason for answer in stage.replies()] == ["closed"]


def test_a_parent_ends_only_its_own_child() -> None:
    parent = e.ParentInfo(workflow_id="p", run_id="pr", initiated_event_id=5)
    another = e.ParentInfo(workflow_id="p", run_id="other", initiated_event_id=5)
    stage = Stage(sender=None, parent=parent)
    stage.tell(r.Terminate(workflow_id=KEY.workflow_id, parent=another), None)
    assert stage.run.is_open
    stage.tell(r.Terminate(workflow_id=KEY.workflow_id, parent=parent), None)
    assert [type(request) for request in stage.sent()] == [r.ChildClosed]


def test_the_result_is_told_to_all_who_wait_and_to_all_who_come_later() -> None:
    stage = Stage()
    for number in range(3):
        stage.tell(r.AwaitResult(workflow_id=KEY.workflow_id), ReplyTo("q", str(number)))
        stage.tell(r.AwaitResult(workflow_id=KEY.workflow_id), ReplyTo("q", str(number)))
        assert not stage.last.changed
    stage.answer(c.CompleteWorkflow(result=b"1"))
    assert [answer.result for answer in stage.replies()] == [b"1"] * 3
    stage.tell(r.AwaitResult(workflow_id=KEY.workflow_id))
    assert [answer.result for answer in stage.replies()] == [b"1"]


def test_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "WAITERS_MAX", 1)
    stage = Stage(want_result=True)
    stage.tell(r.AwaitResult(workflow_id=KEY.workflow_id), ReplyTo("q", "2"))
    assert stage.replies()[0].reason == "limit"


def test_a_history_that_is_too_long_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "EVENTS_MAX", 10)
    stage = Stage()
    for _ in range(6):
        if stage.run.is_open:
            stage.tell(r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="s"))
            if stage.run.is_open:
                stage.answer()
    assert stage.run.status is r.Status.TERMINATED
    assert "the bounds are 10 and" in stage.the(e.WorkflowExecutionTerminated).reason


def test_a_run_times_out() -> None:
    stage = Stage(run_timeout_ms=5_000, want_result=True)
    stage.wait(5_000)
    assert stage.run.status is r.Status.TIMED_OUT
    assert stage.replies()[0].status is r.Status.TIMED_OUT


def test_a_run_does_not_time_out_before_what_was_said_earlier() -> None:
    stage = Stage(run_timeout_ms=5_000, want_result=True)
    stage.wait(6_000, heard_ms=stage.now_ms + 4_999)
    assert stage.run.is_open
    assert stage.run.next_ms() == stage.now_ms + machine.PATIENCE_MS
    stage.answer(c.CompleteWorkflow(result=b"7"))
    assert (stage.run.status, stage.run.patient_ms) == (r.Status.COMPLETED, 0)


def test_a_run_times_out_once_all_is_heard() -> None:
    stage = Stage(run_timeout_ms=5_000)
    end_ms = stage.now_ms + 5_000
    stage.wait(6_000, heard_ms=0)
    stage.wait(1, heard_ms=end_ms)
    assert stage.run.status is r.Status.TIMED_OUT


# --- nobody there --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (r.SignalWorkflow(workflow_id="x", signal_name="s"), "not_found"),
        (r.AwaitResult(workflow_id="x", run_id="y"), "not_found"),
        (r.Terminate(workflow_id="x"), "not_found"),
    ],
)
def test_whoever_asks_about_nobody_is_told(message: Any, reason: str) -> None:
    [effect] = machine.missing(message, CLIENT)
    assert isinstance(effect, Reply)
    assert isinstance(effect.answer, r.Refused)
    assert (effect.answer.reason, effect.answer.workflow_id) == (reason, "x")


def test_a_run_that_signals_nobody_is_told_in_its_own_shard() -> None:
    origin = child(7)
    message = r.SignalWorkflow(workflow_id="x", signal_name="s", external=origin)
    [effect] = machine.missing(message, None)
    assert effect == ToShard(KEY.workflow_id, r.ExternalDone(origin=origin, cause="not_found"))


def test_a_claim_for_nobody_is_refused() -> None:
    message = w.ClaimStart(run=KEY, scheduled_event_id=5, attempt=1, request_id="r")
    [effect] = machine.missing(message, CLIENT)
    assert isinstance(effect, Reply)
    assert effect.answer == w.StartGranted(granted=False, why="no such run")


def test_what_needs_no_answer_gets_none() -> None:
    message = w.StickyEvicted(run=KEY, worker_id=WORKER)
    assert machine.missing(message, None) == []


def test_every_message_about_a_run_has_a_handler() -> None:
    elsewhere = {
        r.StartWorkflow,
        r.FetchHistory,
        r.ListWorkflows,
        r.CountWorkflows,
        r.ShardStatus,
        r.Echo,
        w.FetchEvents,
    }
    every = set(r.Request.__args__) | {r.Outcome, w.WorkflowTask, w.TargetMissing}
    assert set(machine._HANDLERS) == every - elsewhere


def test_the_same_start_makes_the_same_run() -> None:
    one, two = (machine.start(a_start(), run_id="r", now_ms=1) for _ in range(2))
    assert one == two
