"""Local activities: they end within the task, and a marker tells replays how."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.replays import Backoff, Run, types
from tq_broker import activity, workflow
from tq_broker.common import RetryPolicy
from tq_broker.converter import DataConverter, ZlibCodec
from tq_broker.exceptions import ActivityError, ApplicationError
from tq_broker.model import events as ev
from tq_broker.worker.turn import LocalActivityDone
from tq_broker.workflow import ActivityCancellationType


@activity.defn(start_to_close_timeout=timedelta(seconds=5))
async def look_up(key: str) -> int: ...


@workflow.defn
class Looking:
    @workflow.run
    async def run(self) -> list[Any]:
        before = workflow.time()
        found = await asyncio.gather(*(workflow.execute_local_activity(look_up, k) for k in "abc"))
        third = await workflow.execute_local_activity(look_up, "d")
        await asyncio.sleep(1)
        return [found, third, workflow.time() - before > 1]


@pytest.mark.parametrize("codecs", [(), (ZlibCodec(),)])
def test_results_are_recorded_and_not_asked_for_again(codecs: Any) -> None:
    run = Run(Looking, local=lambda k, a, n: ord(a[0]), converter=DataConverter(codecs=codecs))
    assert types(run.task()) == ["RecordMarker"] * 4 + ["StartTimer"]
    run.fire("1")
    run.local = None
    run.task()
    assert run.result() == [[97, 98, 99], 100, True]


def test_who_runs_them_is_told_what_to_do() -> None:
    run = Run(Looking)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    first = run.cached.activate(run.events, now_ms=1)
    assert [task.arguments for task in first.local_activities] == [b'["a"]', b'["b"]', b'["c"]']
    assert not first.complete
    assert first.local_activities[0].start_to_close_ms == 5000


def test_they_may_end_in_any_order() -> None:
    run = Run(Looking)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    turn = run.cached.activate(run.events, now_ms=1)
    tasks = turn.local_activities
    for n, task in enumerate(reversed(tasks)):
        done = LocalActivityDone(seq=task.seq, result=b"%d" % n)
        turn = run.cached.local_activity_done(done, now_ms=2)
    (last,) = turn.local_activities
    turn = run.cached.local_activity_done(LocalActivityDone(seq=last.seq, result=b"9"), now_ms=3)
    assert turn.complete
    run._write(run.events[-1], turn.commands)
    run.fire("1")
    run.task()
    assert run.result() == [[2, 1, 0], 9, True]


def test_one_that_is_not_awaited_changes_nothing() -> None:
    run = Run(Looking, local=lambda *_: 1)
    run.task()
    turn = run.cached.local_activity_done(LocalActivityDone(seq=99), now_ms=1)
    assert not turn.complete
    assert not turn.commands


@workflow.defn
class Stubborn:
    @workflow.run
    async def run(self) -> list[Any]:
        try:
            return [
                await workflow.execute_local_activity(
                    look_up, "a", retry_policy=RetryPolicy(maximum_attempts=2)
                )
            ]
        except ActivityError as error:
            return [error.activity_id, error.attempt, getattr(error.cause, "type", None)]


def test_a_failure_is_recorded() -> None:
    def local(kind: str, args: list[Any], attempt: int) -> int:
        raise ApplicationError("no", type="Bad")

    run = Run(Stubborn, local=local)
    run.task()
    assert run.result() == ["local-1", 1, "Bad"]


def test_a_long_backoff_is_a_timer_of_the_workflow() -> None:
    def local(kind: str, args: list[Any], attempt: int) -> int:
        if attempt == 1:
            raise Backoff(90_000)
        return attempt

    run = Run(Stubborn, local=local)
    turn = run.task()
    assert types(turn) == ["RecordMarker", "StartTimer"]
    run.fire("1")
    assert types(run.task()) == ["RecordMarker", "CompleteWorkflow"]
    assert run.result() == [2]


@workflow.defn
class Impatient:
    @workflow.run
    async def run(self, kind: str) -> str:
        task = asyncio.create_task(self.slow(kind))
        await workflow.execute_local_activity(look_up, "fast")
        task.cancel()
        return await task

    async def slow(self, kind: str) -> str:
        try:
            await workflow.execute_local_activity(
                look_up, "slow", cancellation_type=ActivityCancellationType[kind]
            )
        except ActivityError as error:
            return type(error.cause).__name__
        return "done"


@pytest.mark.parametrize(
    ("kind", "canceled", "complete"),
    [
        ("TRY_CANCEL", 1, True),
        ("ABANDON", 0, True),
        ("WAIT_CANCELLATION_COMPLETED", 1, False),
    ],
)
def test_cancellation(kind: str, canceled: int, complete: bool) -> None:
    run = Run(Impatient, kind)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    turn = run.cached.activate(run.events, now_ms=1)
    tasks = {task.arguments: task for task in turn.local_activities}
    fast, slow = tasks[b'["fast"]'], tasks[b'["slow"]']
    turn = run.cached.local_activity_done(LocalActivityDone(seq=fast.seq, result=b"1"), now_ms=2)
    assert turn.canceled_local == [slow.seq][:canceled]
    assert turn.complete is complete
    if not complete:
        turn = run.cached.local_activity_done(
            LocalActivityDone(seq=slow.seq, result=b"1"), now_ms=3
        )
    run._write(run.events[-1], turn.commands)
    scratch = run.replay()
    assert scratch.activate(run.events, now_ms=9, live=False).failure is None
    scratch.close()


def test_one_that_was_never_handed_out_is_not_cancelled_but_forgotten() -> None:
    @workflow.defn
    class Hasty:
        @workflow.run
        async def run(self) -> None:
            workflow.start_local_activity(look_up, "a").cancel()

    turn = Run(Hasty).task()
    assert types(turn) == ["CompleteWorkflow"]
    assert not turn.local_activities


def test_a_history_without_its_marker_is_not_that_of_this_code() -> None:
    @workflow.defn(name="Looking")
    class Before:
        @workflow.run
        async def run(self) -> None:
            await asyncio.sleep(1)

    run = Run(Before)
    run.task()
    run.workflow = Looking
    turn = run.replay().activate(run.events, now_ms=1, live=False)
    assert turn.failure is not None
    assert "local activity 'local-1'" in turn.failure.failure.message
