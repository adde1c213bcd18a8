"""What the machine writes, a worker can replay: the two deciding halves of a workflow, played
against each other with every delay, loss and repetition that lies between them."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history.stage import KEY, WORKER, Stage
from tq_broker import activity, workflow
from tq_broker.common import RetryPolicy
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import ActivityError, ChildWorkflowError
from tq_broker.history.effects import DispatchActivity, DispatchWorkflowTask, ToShard
from tq_broker.model import requests as r
from tq_broker.model import workflow_tasks as w
from tq_broker.model.events import Event
from tq_broker.model.failure import application
from tq_broker.model.tasks import ActivityOutcome, Status
from tq_broker.worker.chronicle import OutOfStep
from tq_broker.worker.replay import Replay
from tq_broker.workflow.definition import definition_of

PARTS = 4


@activity.defn(
    start_to_close_timeout=timedelta(seconds=30), retry_policy=RetryPolicy(maximum_attempts=3)
)
async def work(part: int) -> int:
    return part


@workflow.defn
class Busy:
    """Uses most of what there is, and ends when it has been told to and all parts are done."""

    def __init__(self) -> None:
        self.told = 0
        self.seen: list[str] = []

    @workflow.signal
    async def tell(self) -> None:
        self.told += 1
        await workflow.sleep(1)
        self.seen.append("told")

    @workflow.update
    async def ask(self, number: int) -> int:
        await workflow.execute_activity(work, number)
        self.seen.append("asked")
        return number

    @workflow.run
    async def run(self) -> str:
        parts = await asyncio.gather(*(self.part(number) for number in range(PARTS)))
        await workflow.wait_condition(lambda: self.told >= 2)
        await workflow.wait_condition(workflow.all_handlers_finished)
        assert len(parts) == PARTS
        return "done"

    async def part(self, number: int) -> str:
        workflow.patched(f"patch-{number % 2}")
        if number == 0:
            return await self.hurried()
        if number == 1:
            return await self.child()
        if number == 2:
            await workflow.get_external_workflow_handle("other").signal("hello")
        try:
            await workflow.execute_activity(work, number)
        except ActivityError:
            return "failed"
        await workflow.sleep(workflow.random().randint(1, 3))
        return "worked"

    async def hurried(self) -> str:
        try:
            await asyncio.wait_for(workflow.execute_activity(work, 9), 2)
        except asyncio.TimeoutError:
            workflow.upsert_memo({"late": True})
            return "late"
        except ActivityError:
            return "failed"
        return "in time"

    async def child(self) -> str:
        try:
            await workflow.execute_child_workflow("Child", id="child-1")
        except ChildWorkflowError:
            return "orphaned"
        return "grown"


class Play:
    """The run, its worker, and all messages that are on their way."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.tasks: list[w.WorkflowTask] = []
        self.attempts: list[DispatchActivity] = []
        self.requests: list[Any] = []
        self.cache: Replay | None = None
        self.answered = (0, 0)
        self.stage = Stage(workflow_type="Busy")
        self.take()

    def take(self) -> None:
        for effect in self.stage.last.effects:
            if isinstance(effect, DispatchWorkflowTask):
                self.tasks.append(effect.task)
            elif isinstance(effect, DispatchActivity):
                self.attempts.append(effect)
            elif isinstance(effect, ToShard):
                self.requests.append(effect.request)

    def pop(self, waiting: list[Any]) -> Any:
        """One of those that are on their way; now and then it will come again."""
        index = self.dice.randrange(len(waiting))
        return waiting[index] if self.dice.random() < 0.1 else waiting.pop(index)

    # --- what may happen ------------------------------------------------------------------------

    def workflow_task(self) -> None:
        if not self.tasks:
            return
        task = self.pop(self.tasks)
        if self.cache is not None and self.answered == (task.scheduled_event_id, task.attempt):
            return  # a copy
        events = self.events(task)
        if not events or events[-1].event_id != task.scheduled_event_id:
            return  # long over: the history has gone another way
        if self.dice.random() < 0.1:
            self.stage.tell(w.WorkflowTaskProgress(run=KEY, **self.names(task)), None)
            self.take()
        if self.dice.random() < 0.1:
            self.evict()
            self.stage.tell(w.WorkflowTaskFailed(run=KEY, cause="deadlock", **self.names(task)))
        else:
            self.answer(task, events)
        self.take()

    def names(self, task: w.WorkflowTask) -> dict[str, int]:
        return {"scheduled_event_id": task.scheduled_event_id, "attempt": task.attempt}

    def events(self, task: w.WorkflowTask) -> list[Event]:
        stage = self.stage
        return (stage.history + stage.run.unwritten())[: task.last_event_id]

    def answer(self, task: w.WorkflowTask, events: list[Event]) -> None:
        stage = self.stage
        turn = self.activate(task, events)
        assert turn.failure is None, turn.failure
        sticky = self.dice.random() < 0.8 and not turn.closed
        stage.tell(
            w.WorkflowTaskCompleted(
                run=KEY,
                commands=turn.commands,
                sticky=sticky,
                worker_id=WORKER,
                started_ms=stage.now_ms,
                **self.names(task),
            ),
            None,
        )
        self.answered = (task.scheduled_event_id, task.attempt)
        if not sticky or not stage.last.changed:
            self.evict()

    def activate(self, task: w.WorkflowTask, events: list[Event]) -> Any:
        if self.cache is not None and self.cache.last_event_id + 1 == task.first_event_id:
            try:
                return self.run(self.cache, task, events[task.first_event_id - 1 :])
            except OutOfStep:
                pass  # what it did last was for nothing
        self.evict()
        self.cache = a_replay()
        return self.run(self.cache, task, events)

    def run(self, replay: Replay, task: w.WorkflowTask, events: list[Event]) -> Any:
        return replay.activate(
            events,
            now_ms=self.stage.now_ms,
            updates=task.updates,
            history_bytes=task.history_bytes,
        )

    def evict(self) -> None:
        if self.cache is not None:
            self.cache.close()
            self.cache = None

    def worker_gone(self) -> None:
        self.evict()
        self.stage.tell(w.StickyGone(worker_id=WORKER), None)

    def given_back(self) -> None:
        for task in self.tasks:
            if task.sticky:
                self.tasks.remove(task)
                self.stage.tell(task, None)
                break

    def activity(self) -> None:
        if not self.attempts:
            return
        attempt = self.pop(self.attempts)
        roll = self.dice.random()
        status = Status.COMPLETED if roll < 0.6 else Status.FAILED
        status = Status.STARTED if roll > 0.9 else status
        told = ActivityOutcome(
            activity_id="x",
            activity_type="work",
            status=status,
            attempt=attempt.attempt,
            failure=application("oh", "Oh") if status is Status.FAILED else None,
            started_ms=self.stage.now_ms,
        )
        if status is Status.STARTED:
            self.attempts.append(attempt)
        outcome = r.Outcome(attempt.scheduled_event_id, KEY.run_id, told, b'{"result":1}')
        self.stage.tell(outcome, None)

    def other_run(self) -> None:
        if not self.requests:
            return
        request = self.pop(self.requests)
        if isinstance(request, r.StartWorkflow):
            assert request.parent is not None
            about = {
                "parent": request.parent,
                "workflow_id": "child-1",
                "run_id": "cr",
                "workflow_type": "Child",
            }
            status = self.dice.choice([r.Status.COMPLETED, r.Status.TERMINATED])
            self.requests.append(r.ChildStarted(**about))
            self.requests.append(r.ChildClosed(status=status, **about))
        elif isinstance(request, r.SignalWorkflow):
            assert request.external is not None
            self.requests.append(r.ExternalDone(origin=request.external))
        elif isinstance(request, (r.ChildStarted, r.ChildClosed, r.ExternalDone)):
            self.stage.tell(request, None)

    def signal(self) -> None:
        if self.stage.run.signals < 4:
            self.stage.tell(r.SignalWorkflow(workflow_id=KEY.workflow_id, signal_name="tell"))

    def update(self) -> None:
        run = self.stage.run
        if len(run.completed) + len(run.updates) < 3:
            request = w.UpdateRequest(
                update_id=str(self.dice.randrange(3)), name="ask", input=b"[7]"
            )
            self.stage.tell(r.UpdateWorkflow(workflow_id=KEY.workflow_id, update=request))

    def time(self) -> None:
        self.stage.wait(self.dice.choice([1, 300, 1_000, 11_000]))

    def happen(self, name: str) -> None:
        getattr(self, name)()
        self.take()


def a_replay() -> Replay:
    return Replay(definition_of(Busy), KEY, namespace="n", converter=DEFAULT)


ANYTHING = [
    *("workflow_task", "workflow_task", "activity", "activity", "other_run", "time"),
    *("signal", "update", "worker_gone", "given_back"),
]
ONWARDS = ["workflow_task", "activity", "other_run", "signal", "time"]


@settings(max_examples=40)
@given(st.integers(0, 1 << 32))
def test_a_history_can_be_replayed_at_any_moment_of_its_life(seed: int) -> None:
    dice = random.Random(seed)
    play = Play(dice)
    run = play.stage.run
    for count in range(1500):
        if not run.is_open:
            break
        play.happen(dice.choice(ANYTHING if count < 60 else ONWARDS))
    assert run.closed is not None, play.stage.names()
    assert (run.closed.status, msgspec.json.decode(run.closed.result)) == (
        r.Status.COMPLETED,
        "done",
    )
    play.evict()
    replay = a_replay()
    turn = replay.activate(play.stage.history, now_ms=play.stage.now_ms, live=False)
    assert turn.failure is None
    replay.close()
