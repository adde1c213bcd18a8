"""Sessions, as workflow code sees them: created by a start, used by route, ended by a loss."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.replays import Run, types
from tq_broker import activity, workflow
from tq_broker.exceptions import ActivityError, InvalidArgument, SessionFailedError, TimeoutType
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev
from tq_broker.model.failure import application, timed_out
from tq_broker.model.tasks import WireRetryPolicy
from tq_broker.workflow import SessionInfo, SessionState

SECOND = timedelta(seconds=1)
LOST = application("the worker that had this attempt is gone", "WorkerLost")
GONE = application("nobody there", "TargetGone", non_retryable=True)


@activity.defn(task_queue="elsewhere", affinity="host", start_to_close_timeout=10 * SECOND)
async def work(number: int) -> int: ...


@workflow.defn
class Use:
    """What happens in and after its session."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @workflow.run
    async def run(self, waits: bool = False) -> list[str]:
        try:
            async with workflow.session(
                execution_timeout=60 * SECOND, creation_timeout=5 * SECOND
            ) as session:
                self.said.append(session.info.state.value)
                if waits:
                    await workflow.wait_condition(lambda: "go" in self.said)
                self.said.append(str(await session.execute_activity(work, 1)))
        except SessionFailedError as error:
            self.said.append(error.message.partition("failed: ")[2] or error.message)
        except ActivityError as error:
            self.said.append(type(error.cause).__name__)
        return self.said

    @workflow.signal
    def go(self) -> None:
        self.said.append("go")


def begun(*args: Any, flow: type = Use) -> tuple[Run, str]:
    run = Run(flow, *args)
    [command] = run.task().commands
    assert isinstance(command, cmd.ScheduleActivity)
    return run, command.activity_id


def opened(*args: Any, flow: type = Use) -> tuple[Run, str]:
    run, slot = begun(*args, flow=flow)
    run.begin(slot, "h1", "w1")
    return run, slot


def time_out(run: Run, slot: str, timeout: TimeoutType) -> None:
    scheduled = run.find(ev.ActivityTaskScheduled, activity_id=slot)
    run.add(
        ev.ActivityTaskTimedOut,
        scheduled_event_id=scheduled.event_id,
        started_event_id=0,
        failure=timed_out(timeout),
    )


def lose(run: Run, slot: str) -> None:
    scheduled = run.find(ev.ActivityTaskScheduled, activity_id=slot)
    started = run.find(ev.ActivityTaskStarted, scheduled_event_id=scheduled.event_id)
    run.add(
        ev.ActivityTaskFailed,
        scheduled_event_id=scheduled.event_id,
        started_event_id=started.event_id,
        failure=LOST,
    )


def test_a_session_is_an_activity_that_tells_of_its_start() -> None:
    [command] = Run(Use).task().commands
    assert command == cmd.ScheduleActivity(
        activity_id=command.activity_id,
        activity_type="tq.session",
        task_queue="tq__sessions",
        input=b'{"args":[]}',
        start_to_close_ms=60_000,
        schedule_to_start_ms=5_000,
        retry_policy=WireRetryPolicy(attempts=1),
        announce_start=True,
    )


def test_its_activities_go_to_its_worker_and_its_end_frees_the_slot() -> None:
    run, slot = opened()
    [command] = run.task().commands
    assert isinstance(command, cmd.ScheduleActivity)
    assert (command.task_queue, command.affinity) == ("tq", None)
    assert command.route == '{"kind":"process","target":"w1"}'
    run.complete(command.activity_id, 7)
    scheduled = run.find(ev.ActivityTaskScheduled, activity_id=slot)
    cancel, complete = run.task().commands
    assert cancel == cmd.RequestCancelActivity(scheduled_event_id=scheduled.event_id)
    assert isinstance(complete, cmd.CompleteWorkflow)
    assert run.result() == ["open", "7"]


def test_nobody_with_a_slot_is_an_error_in_time() -> None:
    run, slot = begun()
    time_out(run, slot, TimeoutType.SCHEDULE_TO_START)
    run.task()
    assert run.result() == [
        "no session was created: no worker of its task queue had a free session slot within the"
        " creation timeout (workers have some with max_concurrent_sessions)"
    ]


def test_a_lost_worker_cancels_what_is_pending_and_leaves_the_block_as_one_error() -> None:
    run, slot = opened()
    run.task()
    lose(run, slot)
    assert types(run.task()) == ["RequestCancelActivity", "CompleteWorkflow"]
    assert run.result() == ["open", LOST.message]


def test_a_block_that_waits_for_something_else_is_interrupted() -> None:
    run, slot = opened(True)
    run.task()
    lose(run, slot)
    assert types(run.task()) == ["CompleteWorkflow"]
    assert run.result() == ["open", LOST.message]


@workflow.defn
class Idle:
    """Waits in its session for something other than its activities."""

    @workflow.run
    async def run(self, what: str) -> list[str]:
        said = []
        try:
            async with workflow.session(execution_timeout=60 * SECOND) as session:
                try:
                    await self.wait(what, session)
                except asyncio.CancelledError:
                    said.append("interrupted")
                    if what == "swallow":
                        await workflow.sleep(3)
                        session.start_activity(work, 1)
                    raise
        except SessionFailedError:
            said.append("failed")
        await workflow.sleep(1)
        return [*said, "after"]

    async def wait(self, what: str, session: workflow.Session) -> None:
        if what in ("timer", "swallow", "cancel"):
            await workflow.sleep(100)
        elif what == "child":
            await workflow.execute_child_workflow("Child", id="child")
        elif what == "activity":
            await workflow.execute_activity(work, 1, task_queue="q")
        elif what == "gather":
            await asyncio.gather(workflow.sleep(100), session.execute_activity(work, 1))
        elif what == "caught":
            try:
                await session.execute_activity(work, 1)
            except ActivityError:
                await workflow.sleep(100)
        elif what == "inner":
            async with session.recreate(execution_timeout=60 * SECOND):
                await workflow.sleep(100)


def ended(run: Run) -> list[str]:
    """What it says after the timer that follows the block has fired."""
    found = [c for c in run.task().commands if isinstance(c, cmd.StartTimer)]
    while found:
        run.fire(found[-1].timer_id)
        found = [c for c in run.task().commands if isinstance(c, cmd.StartTimer)]
    said: list[str] = run.result()
    return said


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("timer", ["interrupted", "failed", "after"]),
        ("activity", ["failed", "after"]),
        ("gather", ["failed", "after"]),
        ("caught", ["interrupted", "failed", "after"]),
        ("swallow", ["interrupted", "failed", "after"]),
    ],
)
def test_whatever_a_block_waits_for_ends_with_its_session(what: str, said: list[str]) -> None:
    run, slot = opened(what, flow=Idle)
    run.task()
    lose(run, slot)
    assert ended(run) == said


def test_a_child_that_a_block_waits_for_is_cancelled_with_it() -> None:
    run, slot = opened("child", flow=Idle)
    run.task()
    initiated = run.find(ev.StartChildWorkflowExecutionInitiated)
    about = {
        "initiated_event_id": initiated.event_id, "workflow_id": "child", "run_id": "c",
        "workflow_type": "Child",
    }  # fmt: skip
    started = run.add(ev.ChildWorkflowExecutionStarted, **about)
    run.task()
    lose(run, slot)
    assert types(run.task()) == ["RequestCancelExternalWorkflow"]
    asked = run.find(ev.RequestCancelExternalWorkflowExecutionInitiated)
    run.add(
        ev.ExternalWorkflowExecutionCancelRequested,
        initiated_event_id=asked.event_id, workflow_id="child",
    )  # fmt: skip
    run.add(ev.ChildWorkflowExecutionCanceled, started_event_id=started.event_id, **about)
    assert ended(run) == ["failed", "after"]


def test_of_two_sessions_the_outer_one_s_failure_is_not_taken_for_the_inner_one_s() -> None:
    run, slot = opened("inner", flow=Idle)
    inner = run.task().commands[-1]
    assert isinstance(inner, cmd.ScheduleActivity)
    run.begin(inner.activity_id, "h1", "w1")
    run.task()
    lose(run, slot)
    assert ended(run) == ["interrupted", "failed", "after"]


def test_a_workflow_that_is_cancelled_in_a_block_is_cancelled_although_the_session_fails() -> None:
    run, slot = opened("cancel", flow=Idle)
    run.task()
    run.cancel()
    lose(run, slot)
    assert types(run.task())[-1] == "CancelWorkflow"


def test_a_later_call_fails_at_once() -> None:
    run, slot = opened("swallow", flow=Idle)
    run.task()
    lose(run, slot)
    timer = run.task().commands[-1]
    assert isinstance(timer, cmd.StartTimer)
    run.fire(timer.timer_id)
    assert "ScheduleActivity" not in types(run.task())


@pytest.mark.parametrize("failure", [GONE, LOST])
def test_an_activity_may_bring_the_news_first(failure: Any) -> None:
    run, _slot = opened()
    [command] = run.task().commands
    run.fail(command.activity_id, failure)
    assert types(run.task()) == ["RequestCancelActivity", "CompleteWorkflow"]
    assert run.result() == ["open", failure.message]


def test_an_activity_that_fails_does_not_fail_the_session() -> None:
    run, _slot = opened()
    [command] = run.task().commands
    run.fail(command.activity_id, application("no", "No"))
    run.task()
    assert run.result() == ["open", "ApplicationError"]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (lambda run, slot: time_out(run, slot, TimeoutType.START_TO_CLOSE), "timeout is over"),
        (lambda run, slot: run.complete(slot, None), "its slot ended"),
    ],
)
def test_a_session_may_end_by_itself(end: Callable[[Run, str], None], why: str) -> None:
    run, slot = opened()
    run.task()
    end(run, slot)
    run.task()
    assert why in run.result()[1]


def test_start_and_loss_may_come_together() -> None:
    run, slot = opened()
    lose(run, slot)
    run.task()
    assert run.result() == ["failed", LOST.message]


def test_a_workflow_that_is_cancelled_frees_its_slot() -> None:
    run, _slot = opened()
    run.task()
    run.cancel()
    assert types(run.task())[:2] == ["RequestCancelActivity"] * 2


def test_a_workflow_that_is_cancelled_before_it_has_a_session_wants_none() -> None:
    run, _slot = begun()
    run.cancel()
    assert types(run.task()) == ["RequestCancelActivity", "CancelWorkflow"]


@workflow.defn
class Misuse:
    @workflow.run
    async def run(self, how: str) -> str:
        opening = workflow.session(execution_timeout=SECOND)
        async with opening as session:
            if how == "option":
                session.start_activity(work, 1, task_queue="elsewhere")
            if how == "unawaited":
                session.start_activity(work, 1)
        if how == "closed":
            await session.execute_activity(work, 1)
        if how == "twice":
            async with opening:
                pass
        session.close()
        return session.info.state.value


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("option", "task_queue is not for an activity of a session"),
        ("closed", "is closed: use it within its block, or create another one"),
        ("twice", "a session is created once"),
    ],
)
def test_what_cannot_be_done_with_a_session_is_refused(how: str, why: str) -> None:
    run, _slot = opened(how, flow=Misuse)
    turn = run.task()
    assert turn.failure is not None
    assert why in turn.failure.failure.message


def test_what_nobody_waits_for_ends_with_the_session() -> None:
    run, _slot = opened("unawaited", flow=Misuse)
    run.task()
    assert run.result() == "closed"


@workflow.defn
class Again:
    """Two sessions on one worker, the second by what is known of the first."""

    @workflow.run
    async def run(self) -> list[Any]:
        async with workflow.session(execution_timeout=SECOND, task_queue="files") as first:
            pass
        async with first.recreate(execution_timeout=SECOND) as second:
            await asyncio.sleep(0)
        return [first.info, second.info.state, second.info.id != first.info.id]


def test_a_session_is_created_anew_on_the_same_worker() -> None:
    run, _slot = opened(flow=Again)
    command = run.task().commands[-1]
    assert isinstance(command, cmd.ScheduleActivity)
    assert command.task_queue == "files__sessions"
    assert command.route == '{"kind":"process","target":"w1"}'
    run.begin(command.activity_id, "h1", "w1")
    run.task()
    info, state, is_another = run.result()
    assert info == {
        "id": info["id"],
        "host": "h1",
        "worker_id": "w1",
        "task_queue": "files",
        "state": "closed",
    }
    assert (state, is_another) == ("closed", True)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: workflow.session(execution_timeout=SECOND * 0, task_queue="q"), "execution_timeo"),
        (
            lambda: workflow.session(
                execution_timeout=SECOND, creation_timeout=-SECOND, task_queue="q"
            ),
            "creation_timeout",
        ),
        (lambda: workflow.session(execution_timeout=SECOND, task_queue="a\n"), "task_queue"),
        (
            lambda: workflow.recreate_session("x", execution_timeout=SECOND),  # type: ignore[arg-type]
            "needs the info of a session",
        ),
    ],
)
def test_arguments_are_checked(make: Callable[[], Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        make()


def test_the_states_have_names() -> None:
    assert {state.value for state in SessionState} == {"open", "failed", "closed"}
    assert SessionInfo("i", "h", "w", "q", SessionState.OPEN).state == "open"
