"""A run on stage: drives the machine by hand, keeps its history, and holds it to its invariants
after every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tq_broker.history import machine
from tq_broker.history.effects import (
    DispatchActivity,
    DispatchWorkflowTask,
    Reply,
    ReplyTo,
    ToShard,
)
from tq_broker.history.state import Execution, Live
from tq_broker.history.step import Step
from tq_broker.model import events as e
from tq_broker.model import workflow_tasks as w
from tq_broker.model.commands import Command, ScheduleActivity
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.events import CLOSING, Event, load_events
from tq_broker.model.failure import Failure, application
from tq_broker.model.requests import Outcome, SignalWorkflow, StartWorkflow
from tq_broker.model.rule_table import NO_RULES
from tq_broker.model.tasks import ActivityOutcome, Status
from tq_broker.model.workflow_tasks import RunKey, WorkflowTask, WorkflowTaskCompleted

KEY = RunKey("order-1", "run-1")
CLIENT = ReplyTo("tq.n.replies.c", "question-1")
BEGIN_MS = 1_700_000_000_000
WORKER = "worker-1"

ENDS: dict[str, tuple[tuple[type, ...], tuple[type, ...]]] = {
    # what begins it, what ends it
    "activity": (
        (e.ActivityTaskScheduled,),
        (
            e.ActivityTaskCompleted,
            e.ActivityTaskFailed,
            e.ActivityTaskTimedOut,
            e.ActivityTaskCanceled,
        ),
    ),
    "timer": ((e.TimerStarted,), (e.TimerFired, e.TimerCanceled)),
    "child": (
        (e.StartChildWorkflowExecutionInitiated,),
        (
            e.StartChildWorkflowExecutionFailed,
            e.ChildWorkflowExecutionCompleted,
            e.ChildWorkflowExecutionFailed,
            e.ChildWorkflowExecutionCanceled,
            e.ChildWorkflowExecutionTimedOut,
            e.ChildWorkflowExecutionTerminated,
        ),
    ),
    "external": (
        (
            e.SignalExternalWorkflowExecutionInitiated,
            e.RequestCancelExternalWorkflowExecutionInitiated,
        ),
        (
            e.SignalExternalWorkflowExecutionFailed,
            e.ExternalWorkflowExecutionSignaled,
            e.RequestCancelExternalWorkflowExecutionFailed,
            e.ExternalWorkflowExecutionCancelRequested,
        ),
    ),
}


def a_start(**changes: Any) -> StartWorkflow:
    fields: dict[str, Any] = {
        "workflow_id": KEY.workflow_id,
        "workflow_type": "Order",
        "task_queue": "orders",
    }
    return StartWorkflow(**(fields | changes))


def an_activity(activity_id: str = "1", **changes: Any) -> ScheduleActivity:
    fields: dict[str, Any] = {
        "activity_id": activity_id,
        "activity_type": "charge",
        "task_queue": "payments",
        "input": b'{"args":[1]}',
        "start_to_close_ms": 10_000,
    }
    return ScheduleActivity(**(fields | changes))


class Stage:
    """One run, its whole history, and the time."""

    def __init__(
        self,
        sender: ReplyTo | None = CLIENT,
        deployments: Deployments = NO_DEPLOYMENTS,
        **start: Any,
    ) -> None:
        self.now_ms = BEGIN_MS
        self.deployments = deployments
        self.rules = NO_RULES
        self.history: list[Event] = []
        self.run, step = machine.start(
            a_start(**start), run_id=KEY.run_id, now_ms=self.now_ms, sender=sender
        )
        self.last = self._taken(step)

    # --- what happens ---------------------------------------------------------------------------

    def tell(self, message: Any, sender: ReplyTo | None = CLIENT) -> Step:
        """Hand a message to the run; the same must come of it after the state was stored."""
        before = self.run.dump()
        twin = self._twin()
        known = self.deployments, self.rules
        step = machine.handle(self.run, message, self.now_ms, sender, *known)
        assert machine.handle(twin, message, self.now_ms, sender, *known) == step
        return self._checked(step, before, twin)

    def wait(self, ms: int, heard_ms: int | None = None) -> Step:
        """Let time pass, and wake the run; ``heard_ms`` is as for `machine.tick`."""
        self.now_ms += ms
        before = self.run.dump()
        twin = self._twin()
        known = self.deployments, self.rules
        step = machine.tick(self.run, self.now_ms, *known, heard_ms)
        assert machine.tick(twin, self.now_ms, *known, heard_ms) == step
        next_ms = self.run.next_ms()
        assert next_ms is None or next_ms > self.now_ms or step.changed
        return self._checked(step, before, twin)

    def wake(self) -> Step:
        """Let time pass until the run wants to be woken."""
        next_ms = self.run.next_ms()
        assert next_ms is not None
        return self.wait(max(0, next_ms - self.now_ms))

    def answer(self, *commands: Command, sticky: bool = False, **changes: Any) -> Step:
        """A worker completes the workflow task that is out."""
        return self.tell(self.completed(*commands, sticky=sticky, **changes), None)

    def completed(
        self, *commands: Command, sticky: bool = False, **changes: Any
    ) -> WorkflowTaskCompleted:
        task = self.run.task
        assert task is not None
        fields: dict[str, Any] = {
            "scheduled_event_id": task.scheduled_event_id,
            "attempt": task.attempt,
        }
        return WorkflowTaskCompleted(
            run=KEY,
            worker_id=WORKER,
            identity="me",
            commands=list(commands),
            sticky=sticky,
            started_ms=self.now_ms,
            **(fields | changes),
        )

    def fail_task(self, cause: str = "unhandled_failure") -> Step:
        task = self.run.task
        assert task is not None
        return self.tell(
            w.WorkflowTaskFailed(
                run=KEY,
                scheduled_event_id=task.scheduled_event_id,
                attempt=task.attempt,
                cause=cause,
                failure=application("oh", "Oh"),
            ),
            None,
        )

    def tell_signal(self, name: str = "s") -> Step:
        """Something new, so that there is a workflow task."""
        return self.tell(SignalWorkflow(workflow_id=KEY.workflow_id, signal_name=name))

    def outcome(
        self,
        event_id: int,
        status: Status = Status.COMPLETED,
        *,
        attempt: int = 1,
        failure: Failure | None = None,
        heartbeat: bytes | None = None,
        body: bytes = b'{"result":2}',
        host: str = "h",
    ) -> Step:
        """A worker tells of an activity."""
        told = ActivityOutcome(
            activity_id=f"{KEY.run_id}/{event_id}",
            activity_type="charge",
            status=status,
            attempt=attempt,
            failure=failure,
            identity="them",
            host=host,
            worker_id="worker-2",
            started_ms=self.now_ms,
        )
        return self.tell(Outcome(event_id, KEY.run_id, told, body, heartbeat), None)

    # --- what is seen ---------------------------------------------------------------------------

    def names(self, since: int = 0) -> list[str]:
        """The types of the events after event ``since``."""
        return [type(event).__name__ for event in self.history[since:]]

    def the(self, kind: type) -> Any:
        """The last event of a type."""
        return next(event for event in reversed(self.history) if isinstance(event, kind))

    def dispatched(self) -> WorkflowTask:
        """The workflow task that the last step has published."""
        [effect] = [x for x in self.last.effects if isinstance(x, DispatchWorkflowTask)]
        return effect.task

    def attempts(self) -> list[DispatchActivity]:
        return [x for x in self.last.effects if isinstance(x, DispatchActivity)]

    def replies(self) -> list[Any]:
        return [x.answer for x in self.last.effects if isinstance(x, Reply)]

    def sent(self) -> list[Any]:
        """The requests to other runs that the last step has sent."""
        return [x.request for x in self.last.effects if isinstance(x, ToShard)]

    # --- what always holds ----------------------------------------------------------------------

    def _twin(self) -> Execution:
        twin = Execution.load(self.run.dump())
        live = self.run.memory()
        twin.live = Live(
            tail=list(live.tail), tail_bytes=live.tail_bytes, queries=list(live.queries)
        )
        return twin

    def _checked(self, step: Step, before: bytes, twin: Execution) -> Step:
        assert step.changed or self.run.dump() == before
        assert self.run == twin
        return self._taken(step)

    def _taken(self, step: Step) -> Step:
        self.last = step
        if not step.changed:
            assert not step.events
            assert step.next_run is None
        self.history += step.events
        assert load_events(step.data) == step.events if step.data else not step.events
        check(self.run, self.history, self.now_ms)
        for effect in step.effects:
            if isinstance(effect, DispatchWorkflowTask):
                self._check_task(effect.task)
        return step

    def _check_task(self, task: WorkflowTask) -> None:
        seen = self.run.events_from(task.first_event_id)
        stored = self.history[task.first_event_id - 1 :] + self.run.unwritten()
        assert seen in (None, stored)
        assert stored[-1].event_id == task.last_event_id == task.scheduled_event_id
        assert isinstance(stored[-1], e.WorkflowTaskScheduled)


def check(run: Execution, history: Sequence[Event], now_ms: int) -> None:
    """The invariants of a run."""
    assert [event.event_id for event in history] == list(range(1, len(history) + 1))
    assert run.next_event_id == len(history) + 1
    assert all(event.event_id == 0 for event in run.buffered)
    assert isinstance(history[0], e.WorkflowExecutionStarted)
    _check_references(history)
    pending = {
        "activity": set(run.activities),
        "timer": {timer.started_event_id for timer in run.timers.values()},
        "child": set(run.children),
        "external": set(run.externals),
    }
    for noun, (begins, ends) in ENDS.items():
        begun = {event.event_id for event in history if isinstance(event, begins)}
        ended = [_about(x) for x in [*history, *run.buffered] if isinstance(x, ends)]
        assert len(ended) == len(set(ended)), f"{noun}: ended twice"
        assert begun.issuperset(ended)
        if run.is_open:
            assert pending[noun] == begun - set(ended), noun
        else:
            assert not pending[noun]
    closings = [event for event in history if isinstance(event, CLOSING)]
    if run.is_open:
        assert not closings
        next_ms = run.next_ms()
        assert next_ms is None or next_ms > 0
    else:
        assert closings == [history[-1]]
        assert run.next_ms() is None
        assert run.task is None
        assert not any((run.buffered, run.waiters, run.updates))


def _check_references(history: Sequence[Event]) -> None:
    kinds = {
        "ActivityTask": e.ActivityTaskStarted,
        "ChildWorkflowExecution": e.ChildWorkflowExecutionStarted,
        "WorkflowTask": e.WorkflowTaskStarted,
        "Timer": e.TimerStarted,
    }
    for event in history:
        started = getattr(event, "started_event_id", 0)
        if started:
            assert started < event.event_id
            name = type(event).__name__
            kind = next(kind for begin, kind in kinds.items() if name.startswith(begin))
            before = history[started - 1]
            assert isinstance(before, kind)
            if not isinstance(before, e.TimerStarted):
                assert _about(before) == _about(event)
    for index, event in enumerate(history):
        if isinstance(event, e.WorkflowTaskCompleted):
            scheduled, started_event = history[event.scheduled_event_id - 1], history[index - 1]
            assert isinstance(scheduled, e.WorkflowTaskScheduled)
            assert isinstance(started_event, e.WorkflowTaskStarted)
            assert event.scheduled_event_id == event.event_id - 2, "nothing comes in between"


def _about(event: Any) -> int:
    if isinstance(event, (e.TimerFired, e.TimerCanceled)):
        return event.started_event_id
    about = getattr(event, "scheduled_event_id", 0) or getattr(event, "initiated_event_id", 0)
    return int(about)
