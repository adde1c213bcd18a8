"""Activities of a run: options, results, failures, cancellation."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.replays import Run, types
from tq_broker import activity, workflow
from tq_broker.common import RetryPolicy, Route
from tq_broker.exceptions import ActivityError, ApplicationError, CancelledError, TimeoutError
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev
from tq_broker.model import failure as failures
from tq_broker.model.tasks import WireRetryPolicy
from tq_broker.workflow import ActivityCancellationType

SECOND = timedelta(seconds=1)


@activity.defn(
    task_queue="gpu",
    priority=2,
    route=Route.host("h1"),
    retry_policy=RetryPolicy(maximum_attempts=3),
    start_to_close_timeout=10 * SECOND,
    heartbeat_timeout=2 * SECOND,
)
def render(name: str) -> int: ...


@activity.defn
async def plain() -> None: ...


@workflow.defn
class Options:
    @workflow.run
    async def run(self) -> None:
        workflow.start_activity(render, "a")
        workflow.start_activity(render, "b", task_queue="cpu", priority=5, activity_id="mine")
        workflow.start_activity(plain, start_to_close_timeout=SECOND, summary="plainly")
        workflow.start_activity("other", args=[1, 2], schedule_to_close_timeout=SECOND)
        await asyncio.Event().wait()


def test_what_the_call_says_wins_over_the_decorator_and_that_over_the_workflow() -> None:
    first, second, third, fourth = Run(Options, priority=4).task().commands
    common: dict[str, Any] = {
        "activity_type": "render",
        "start_to_close_ms": 10_000,
        "heartbeat_ms": 2000,
        "retry_policy": WireRetryPolicy(attempts=3),
        "route": '{"kind":"host","target":"h1"}',
    }
    assert first == cmd.ScheduleActivity(
        activity_id="1", task_queue="gpu", priority=2, input=b'{"args":["a"]}', **common
    )
    assert second == cmd.ScheduleActivity(
        activity_id="mine", task_queue="cpu", priority=5, input=b'{"args":["b"]}', **common
    )
    assert third == cmd.ScheduleActivity(
        activity_id="3",
        activity_type="plain",
        task_queue="tq",
        priority=4,
        input=b'{"args":[]}',
        start_to_close_ms=1000,
        summary="plainly",
    )
    assert fourth == cmd.ScheduleActivity(
        activity_id="4",
        activity_type="other",
        task_queue="tq",
        priority=4,
        input=b'{"args":[1,2]}',
        start_to_close_ms=1000,
        schedule_to_close_ms=1000,
    )


@workflow.defn
class Wrong:
    @workflow.run
    async def run(self, kind: str) -> None:
        if kind == "timeouts":
            workflow.start_activity(plain)
        elif kind == "id":
            workflow.start_activity(render, "a", activity_id="x")
            workflow.start_activity(render, "a", activity_id="x")
        elif kind == "both":
            workflow.start_activity(render, "a", args=["b"])
        else:
            workflow.start_activity(render, "a", colour="red")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("timeouts", "start_to_close_timeout or schedule_to_close_timeout must be set"),
        ("id", "'x' is that of another"),
        ("both", "not both"),
        ("option", "unknown activity option 'colour'"),
    ],
)
def test_a_wrong_call_fails_the_task_and_names_the_argument(kind: str, told: str) -> None:
    turn = Run(Wrong, kind).task()
    assert turn.failure is not None
    assert told in turn.failure.failure.message


@workflow.defn
class Catching:
    """Tells how its activity ended."""

    @workflow.run
    async def run(self, kind: str = "TRY_CANCEL") -> list[Any]:
        self.handle = workflow.start_activity(
            render, "a", cancellation_type=ActivityCancellationType[kind]
        )
        try:
            return ["result", await self.handle]
        except ActivityError as error:
            cause = error.cause
            assert cause is not None
            return [
                type(cause).__name__,
                str(cause),
                error.activity_id,
                error.activity_type,
                error.attempt,
                error.retry_state,
            ]

    @workflow.signal
    def stop(self) -> None:
        self.handle.cancel()


def test_a_failed_activity_raises_activity_error_with_its_cause() -> None:
    run = Run(Catching)
    run.task()
    failure = failures.from_exception(ApplicationError("no"))
    run.fail("1", failure, retry_state=4, identity="me")
    run.task()
    assert run.result() == ["ApplicationError", "no", "1", "render", 3, 4]


def test_a_timed_out_activity() -> None:
    run = Run(Catching)
    run.task()
    event = run.find(ev.ActivityTaskScheduled)
    run.add(
        ev.ActivityTaskTimedOut,
        scheduled_event_id=event.event_id,
        started_event_id=0,
        failure=failures.timed_out(failures.TimeoutType.SCHEDULE_TO_START),
    )
    run.task()
    assert run.result()[0] == TimeoutError.__name__


def test_a_result_that_does_not_fit_fails_the_task() -> None:
    run = Run(Catching)
    run.task()
    run.complete("1", "many")
    turn = run.task()
    assert turn.failure is not None
    assert turn.failure.cause == "payload"


def test_try_cancel_asks_and_goes_on() -> None:
    run = Run(Catching)
    run.task()
    event = run.find(ev.ActivityTaskScheduled)
    run.signal("stop")
    turn = run.task()
    assert turn.commands[0] == cmd.RequestCancelActivity(scheduled_event_id=event.event_id)
    assert run.result()[0] == CancelledError.__name__


def test_wait_cancellation_completed_asks_and_waits() -> None:
    run = Run(Catching, "WAIT_CANCELLATION_COMPLETED")
    run.task()
    event = run.find(ev.ActivityTaskScheduled)
    run.signal("stop")
    run.signal("stop")
    wanted = cmd.RequestCancelActivity(scheduled_event_id=event.event_id, wait=True)
    assert run.task().commands == [wanted]
    run.add(ev.ActivityTaskCanceled, scheduled_event_id=event.event_id, started_event_id=0)
    run.task()
    assert run.result()[0] == CancelledError.__name__


def test_who_waits_may_get_the_result_all_the_same() -> None:
    run = Run(Catching, "WAIT_CANCELLATION_COMPLETED")
    run.task()
    run.signal("stop")
    run.task()
    run.complete("1", 5)
    run.task()
    assert run.result() == ["result", 5]


def test_abandon_asks_nobody() -> None:
    run = Run(Catching, "ABANDON")
    run.task()
    run.signal("stop")
    assert types(run.task()) == ["CompleteWorkflow"]
    assert run.result()[0] == CancelledError.__name__


def test_an_activity_that_ends_after_it_was_given_up_changes_nothing() -> None:
    @workflow.defn
    class GivesUp:
        @workflow.run
        async def run(self) -> None:
            handle = workflow.start_activity(
                render, "a", cancellation_type=ActivityCancellationType.ABANDON
            )
            await asyncio.sleep(1)
            handle.cancel()
            await asyncio.sleep(1)

    run = Run(GivesUp)
    run.task()
    run.fire("1")
    run.task()
    run.complete("1", 5)
    assert types(run.task()) == []


def test_one_that_is_cancelled_in_the_task_that_started_it_was_never_asked_for() -> None:
    @workflow.defn
    class Hasty:
        @workflow.run
        async def run(self) -> str:
            handle = workflow.start_activity(
                render,
                "a",
                cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            )
            handle.cancel()
            try:
                await handle
            except ActivityError as error:
                return type(error.cause).__name__
            return ""

    run = Run(Hasty)
    assert types(run.task()) == ["CompleteWorkflow"]
    assert run.result() == "CancelledError"


def test_cancelling_who_awaits_is_cancelling_the_activity() -> None:
    run = Run(Catching)
    run.task()
    run.cancel()
    assert types(run.task()) == ["RequestCancelActivity", "CompleteWorkflow"]


def test_a_cancelled_activity_ends_a_cancelled_workflow() -> None:
    @workflow.defn
    class Direct:
        @workflow.run
        async def run(self) -> int:
            return await workflow.execute_activity(render, "a")

    run = Run(Direct)
    run.task()
    run.cancel()
    assert types(run.task()) == ["RequestCancelActivity", "CancelWorkflow"]


def test_the_result_of_an_unknown_activity_is_no_history_of_this_code() -> None:
    run = Run(Catching)
    run.task()
    run.add(ev.ActivityTaskCompleted, scheduled_event_id=2, started_event_id=3, result=b"{}")
    turn = run.task()
    assert turn.failure is not None
    assert "ActivityTaskCompleted of event 2" in turn.failure.failure.message


# --- affinity ------------------------------------------------------------------------------------


@activity.defn(affinity="host", affinity_group="g", start_to_close_timeout=SECOND)
def follow() -> None: ...


@workflow.defn
class Follow:
    @workflow.run
    async def run(self) -> str:
        workflow.start_activity(follow)
        workflow.start_activity(follow, affinity="process", on_lost="wait")
        workflow.start_activity(follow, route=Route.host("h"))
        workflow.start_activity(follow, version="shop.1")
        workflow.start_activity(follow, version="auto_upgrade")
        try:
            await workflow.execute_activity(follow)
        except ActivityError as error:
            return type(error.cause).__name__
        return ""


def test_what_is_said_of_an_affinity_travels_and_its_loss_is_typed() -> None:
    run = Run(Follow)
    commands = [c for c in run.task().commands if isinstance(c, cmd.ScheduleActivity)]
    assert [(c.affinity, c.route, c.auto_upgrade) for c in commands] == [
        ('{"kind":"host","group":"g"}', None, False),
        ('{"kind":"process","group":"g","on-lost":"wait"}', None, False),
        (None, '{"kind":"host","target":"h"}', False),
        (None, '{"kind":"version","target":"shop.1","on-gone":"wait"}', False),
        (None, None, True),
        ('{"kind":"host","group":"g"}', None, False),
    ]
    lost = failures.application("gone", "AffinityLost", non_retryable=True)
    run.fail(commands[-1].activity_id, lost)
    run.task()
    assert run.result() == "AffinityLostError"


@activity.defn(task_queue="tq", start_to_close_timeout=SECOND)
def at_home() -> None: ...


@workflow.defn
class Family:
    @workflow.run
    async def run(self) -> None:
        options: list[Any] = [
            {}, {"on_lost": "fail"}, {"affinity_group": "g"}, {"affinity": "process"},
            {"task_queue": "tq"}, {"task_queue": "else"}, {"route": Route.host("h")},
            {"version": "shop.1"}, {"version": "auto_upgrade"},
        ]  # fmt: skip
        for one in options:
            workflow.start_activity(plain, start_to_close_timeout=SECOND, **one)
        workflow.start_activity(at_home)
        await asyncio.Event().wait()


def test_the_affinity_of_a_run_is_that_of_its_activities_that_say_nowhere() -> None:
    own = '{"kind":"host","on-lost":"wait"}'
    commands = Run(Family, affinity=own).task().commands
    assert [c.affinity for c in commands if isinstance(c, cmd.ScheduleActivity)] == [
        own, '{"kind":"host"}', '{"kind":"host","group":"g","on-lost":"wait"}',
        '{"kind":"process"}', own, None, None, None, None, own,
    ]  # fmt: skip


def test_what_a_run_does_not_say_needs_an_affinity() -> None:
    turn = Run(Family).task()
    assert turn.failure is not None
    assert "on_lost and affinity_group need an affinity" in str(turn.failure.failure)
