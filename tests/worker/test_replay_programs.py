"""Programs made at random, of all that workflow code can do, with histories made at random.

After each workflow task the cache and a replay from the first event are compared: see `Run.task`.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.replays import Backoff, Run
from tq_broker import activity, workflow
from tq_broker.exceptions import ActivityError, ChildWorkflowError, FailureError
from tq_broker.model import events as ev
from tq_broker.model.failure import application
from tq_broker.workflow import ActivityCancellationType, ChildWorkflowCancellationType

Program = list[Any]
ABANDON = workflow.HandlerUnfinishedPolicy.ABANDON


@activity.defn(start_to_close_timeout=timedelta(seconds=5))
async def act(name: str) -> Any: ...


@workflow.defn
class Interpreter:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.signals = 0
        self.handles: list[asyncio.Future[Any]] = []

    @workflow.run
    async def run(self, program: Program) -> list[str]:
        await self.play(program)
        return self.log

    @workflow.signal(unfinished_policy=ABANDON)
    async def poke(self, program: Program) -> None:
        self.signals += 1
        await self.play(program)

    @workflow.update(unfinished_policy=ABANDON)
    async def change(self, program: Program) -> int:
        await self.play(program)
        return len(self.log)

    @change.validator
    def check(self, program: Program) -> None:
        if not program:
            raise ValueError("empty")

    @workflow.query
    def told(self) -> list[str]:
        return self.log

    async def play(self, program: Program) -> None:
        for step in program:
            await getattr(self, f"do_{step[0]}")(*step[1:])
            self.log.append(f"{step[0]} {workflow.random().randint(0, 99)} {workflow.time()}")

    async def do_act(self, kind: int) -> None:
        handle = workflow.start_activity(act, "a", cancellation_type=ActivityCancellationType(kind))
        self.handles.append(handle)
        await self.outcome(handle)

    async def do_local(self, kind: int) -> None:
        handle = workflow.start_local_activity(
            act, "l", cancellation_type=ActivityCancellationType(kind)
        )
        self.handles.append(handle)
        await self.outcome(handle)

    async def do_child(self, kind: int) -> None:
        try:
            handle = await workflow.start_child_workflow(
                "Child", cancellation_type=ChildWorkflowCancellationType(kind)
            )
        except FailureError as error:
            self.log.append(type(error).__name__)
            return
        self.handles.append(handle)
        await self.outcome(handle)

    async def do_start(self, kind: int) -> None:
        handle = workflow.start_activity(act, "s", cancellation_type=ActivityCancellationType(kind))
        self.handles.append(handle)

    async def outcome(self, handle: asyncio.Future[Any]) -> None:
        try:
            self.log.append(f"result {await handle}")
        except (ActivityError, ChildWorkflowError) as error:
            self.log.append(f"{type(error).__name__} {type(error.cause).__name__}")

    async def do_sleep(self, seconds: int) -> None:
        await asyncio.sleep(seconds)

    async def do_wait(self, seconds: int) -> None:
        count = self.signals
        try:
            await workflow.wait_condition(lambda: self.signals > count, timeout=seconds)
        except asyncio.TimeoutError:
            self.log.append("late")

    async def do_cancel(self, which: int) -> None:
        if self.handles:
            self.handles[which % len(self.handles)].cancel()

    async def do_patch(self, name: str) -> None:
        self.log.append(f"{name} {workflow.patched(name)}")

    async def do_memo(self, value: int) -> None:
        workflow.upsert_memo({"m": value})

    async def do_tell(self, reason: int) -> None:
        try:
            await workflow.get_external_workflow_handle("other").signal("s", reason)
        except FailureError as error:
            self.log.append(type(error).__name__)

    async def do_race(self, first: Program, second: Program) -> None:
        tasks = [asyncio.create_task(self.play(program)) for program in (first, second)]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for result in await asyncio.gather(*done, *pending, return_exceptions=True):
            self.log.append(type(result).__name__)

    async def do_both(self, first: Program, second: Program) -> None:
        await asyncio.gather(self.play(first), self.play(second))


KINDS = st.integers(0, 2)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["act", "local", "child", "start"]), KINDS),
    st.tuples(st.sampled_from(["sleep", "wait", "memo", "tell", "cancel"]), st.integers(0, 5)),
    st.tuples(st.just("patch"), st.sampled_from("xy")),
)
PROGRAMS: st.SearchStrategy[Program] = st.recursive(
    st.lists(STEPS, max_size=4),
    lambda inner: st.lists(
        STEPS | st.tuples(st.sampled_from(["race", "both"]), inner, inner), max_size=4
    ),
    max_leaves=4,
)


def local(kind: str, args: list[Any], attempt: int) -> int:
    if attempt == 1:
        raise Backoff(90_000)
    return attempt


class World:
    """What the history service might write next."""

    def __init__(self, run: Run, data: st.DataObject) -> None:
        self.run, self.data = run, data
        self.answered: set[int] = set()

    def moves(self) -> list[Any]:
        gone = {e.scheduled_event_id for e in self.run.events if type(e) is ev.ActivityTaskCanceled}
        canceled = {e.timer_id for e in self.run.events if type(e) is ev.TimerCanceled}
        found: list[Any] = [("signal",), ("update",), ("cancel",)]
        for event in self.run.events:
            if event.event_id in self.answered or event.event_id in gone:
                continue
            if type(event) in ANSWERS and getattr(event, "timer_id", None) not in canceled:
                found.append(("answer", event))
        return found

    def move(self) -> None:
        kind, *rest = self.data.draw(st.sampled_from(self.moves()))
        if kind == "answer":
            self.answered.add(rest[0].event_id)
            ANSWERS[type(rest[0])](self, rest[0])
        elif kind == "cancel":
            self.run.cancel()
        elif kind == "signal":
            self.run.signal("poke", self.data.draw(PROGRAMS))
        else:
            name = f"u{len(self.run.events)}-{len(self.run.updates)}"
            self.run.update(name, "change", self.data.draw(PROGRAMS))

    def activity(self, event: Any) -> None:
        if self.data.draw(st.booleans()):
            self.run.complete(event.activity_id, event.event_id)
        else:
            self.run.fail(event.activity_id, application("no", "Bad"))

    def timer(self, event: Any) -> None:
        self.run.fire(event.timer_id)

    def child(self, event: Any) -> None:
        common = {
            "initiated_event_id": event.event_id,
            "workflow_id": event.workflow_id,
            "run_id": "r",
            "workflow_type": "Child",
        }
        started = self.run.add(ev.ChildWorkflowExecutionStarted, **common)
        if self.data.draw(st.booleans()):
            self.run.add(
                ev.ChildWorkflowExecutionCompleted, started_event_id=started.event_id, **common
            )

    def external(self, event: Any) -> None:
        name = type(event).__name__
        signal = name.startswith("Signal")
        if self.data.draw(st.booleans()):
            answer = (
                ev.ExternalWorkflowExecutionSignaled
                if signal
                else ev.ExternalWorkflowExecutionCancelRequested
            )
        else:
            answer = (
                ev.SignalExternalWorkflowExecutionFailed
                if signal
                else ev.RequestCancelExternalWorkflowExecutionFailed
            )
        self.run.add(answer, initiated_event_id=event.event_id, workflow_id=event.workflow_id)


ANSWERS: dict[type, Any] = {
    ev.ActivityTaskScheduled: World.activity,
    ev.TimerStarted: World.timer,
    ev.StartChildWorkflowExecutionInitiated: World.child,
    ev.SignalExternalWorkflowExecutionInitiated: World.external,
    ev.RequestCancelExternalWorkflowExecutionInitiated: World.external,
}


@settings(max_examples=100)
@given(program=PROGRAMS, data=st.data())
def test_the_cache_and_a_replay_come_to_the_same(program: Program, data: st.DataObject) -> None:
    run = Run(Interpreter, program, local=local)
    world = World(run, data)
    turn = run.task()
    for _ in range(data.draw(st.integers(0, 8))):
        assert turn.failure is None, turn.failure.error
        if run.closed:
            break
        for _ in range(data.draw(st.integers(1, 3))):
            world.move()
        turn = run.task()
        run.query("told")
