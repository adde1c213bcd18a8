"""A tiny history around a workflow's code, and two workers of which it asks each task: one that
keeps the run in its cache, and one that replays it from the first event. They must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tq_broker.converter import DEFAULT, DataConverter
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev
from tq_broker.model import payload
from tq_broker.model.commands import Command
from tq_broker.model.events import Event
from tq_broker.model.failure import Failure, application, from_exception
from tq_broker.model.workflow_tasks import QueryAnswer, QueryRequest, RunKey, UpdateRequest
from tq_broker.worker.interceptors import Interceptor
from tq_broker.worker.replay import Replay
from tq_broker.worker.turn import LocalActivityDone, Turn
from tq_broker.worker.workflow_chain import WorkflowInterception
from tq_broker.workflow.definition import definition_of

KEY = RunKey("wf", "run")

_BECOMES: dict[type, type] = {
    cmd.ScheduleActivity: ev.ActivityTaskScheduled,
    cmd.RequestCancelActivity: ev.ActivityTaskCancelRequested,
    cmd.StartTimer: ev.TimerStarted,
    cmd.RecordMarker: ev.MarkerRecorded,
    cmd.StartChildWorkflow: ev.StartChildWorkflowExecutionInitiated,
    cmd.SignalExternalWorkflow: ev.SignalExternalWorkflowExecutionInitiated,
    cmd.RequestCancelExternalWorkflow: ev.RequestCancelExternalWorkflowExecutionInitiated,
    cmd.ModifyProperties: ev.WorkflowPropertiesModified,
    cmd.CompleteWorkflow: ev.WorkflowExecutionCompleted,
    cmd.FailWorkflow: ev.WorkflowExecutionFailed,
    cmd.CancelWorkflow: ev.WorkflowExecutionCanceled,
}
LocalAnswer = Callable[[str, list[Any], int], Any]


class Run:
    """One run, driven by its test.

    Args:
        local: Answers a local activity: type, arguments and attempt to result; raise to fail.
    """

    def __init__(
        self,
        workflow: type,
        *args: Any,
        converter: DataConverter = DEFAULT,
        local: LocalAnswer | None = None,
        failure_exception_types: Sequence[type[BaseException]] = (),
        interceptors: Sequence[Interceptor] = (),
        **started: Any,
    ) -> None:
        self.workflow = workflow
        self.converter = converter
        self.local = local
        self.failure_exception_types = failure_exception_types
        self.interception = WorkflowInterception.of(interceptors)
        self.now_ms = 1_000_000
        self.events: list[Event] = []
        self.updates: dict[str, UpdateRequest] = {}
        self.closed = False
        self.cached = self.replay()
        self.add(
            ev.WorkflowExecutionStarted,
            workflow_type=definition_of(workflow).name,
            task_queue="tq",
            workflow_id=KEY.workflow_id,
            run_id=KEY.run_id,
            first_run_id=KEY.run_id,
            input=payload.dump_args(args, converter),
            **started,
        )

    def replay(self) -> Replay:
        return Replay(
            definition_of(self.workflow),
            KEY,
            namespace="default",
            converter=self.converter,
            failure_exception_types=self.failure_exception_types,
            interception=self.interception,
        )

    def __del__(self) -> None:
        self.cached.close()

    # --- writing --------------------------------------------------------------------------------

    def add(self, event_class: type, **fields: Any) -> Any:
        """Write an event."""
        event = event_class(event_id=len(self.events) + 1, time_ms=self.now_ms, **fields)
        self.events.append(event)
        return event

    def find(self, event_class: type, **fields: Any) -> Any:
        """The latest event of a class with these fields."""
        for event in reversed(self.events):
            if type(event) is event_class and all(
                getattr(event, name) == value for name, value in fields.items()
            ):
                return event
        raise LookupError(f"{event_class.__name__} {fields}")

    # --- a workflow task --------------------------------------------------------------------------

    def task(self, *, now_ms: int | None = None) -> Turn:
        """Schedule a workflow task, have it done, write what it led to."""
        self.now_ms = self.now_ms + 1000 if now_ms is None else now_ms
        scheduled = self.add(ev.WorkflowTaskScheduled, task_queue="tq")
        updates = list(self.updates.values())
        turn = self._done(self.cached, updates)
        scratch = self.replay()
        try:
            again = self._done(scratch, updates)
        finally:
            scratch.close()
        assert seen(again) == seen(turn), "a replay comes to what the cache came to"
        if turn.failure is None:
            self._write(scheduled, turn.commands)
        return turn

    def _done(self, replay: Replay, updates: list[UpdateRequest]) -> Turn:
        events = self.events[replay.last_event_id :]
        turn = replay.activate(events, now_ms=self.now_ms, updates=updates)
        waiting = list(turn.local_activities)
        while not turn.complete and turn.failure is None:
            assert waiting, "something is awaited"
            task = waiting.pop(0)
            done = self._local(task)
            turn = replay.local_activity_done(done, now_ms=self.now_ms + 7)
            waiting = [w for w in waiting if w.seq not in turn.canceled_local]
            waiting += turn.local_activities
        return turn

    def _local(self, task: Any) -> LocalActivityDone:
        assert self.local is not None, "a test with local activities says what they do"
        try:
            arguments = msgspec.json.decode(task.arguments)
            result = self.local(task.activity_type, arguments, task.attempt)
        except Backoff as backoff:
            failure = application("not yet", "Backoff")
            return LocalActivityDone(
                seq=task.seq, attempt=task.attempt, failure=failure, backoff_ms=backoff.ms
            )
        except Exception as error:
            return LocalActivityDone(
                seq=task.seq, attempt=task.attempt, failure=from_exception(error)
            )
        return LocalActivityDone(
            seq=task.seq, attempt=task.attempt, result=msgspec.json.encode(result)
        )

    def _write(self, scheduled: Event, commands: list[Command]) -> None:
        started = self.add(
            ev.WorkflowTaskStarted,
            scheduled_event_id=scheduled.event_id,
            history_events=scheduled.event_id,
        )
        completed = self.add(
            ev.WorkflowTaskCompleted,
            scheduled_event_id=scheduled.event_id,
            started_event_id=started.event_id,
        )
        for command in commands:
            self._become(command, completed.event_id)

    def _become(self, command: Command, completed: int) -> None:
        if isinstance(command, cmd.RejectUpdate):
            self.updates.pop(command.update_id)
        elif isinstance(command, cmd.AcceptUpdate):
            request = self.updates.pop(command.update_id)
            self.add(
                ev.WorkflowExecutionUpdateAccepted,
                update_id=request.update_id,
                update_name=request.name,
                input=request.input,
                headers=request.headers,
            )
        elif isinstance(command, cmd.CompleteUpdate):
            accepted = self.find(ev.WorkflowExecutionUpdateAccepted, update_id=command.update_id)
            self.add(
                ev.WorkflowExecutionUpdateCompleted,
                accepted_event_id=accepted.event_id,
                **msgspec.structs.asdict(command),
            )
        elif isinstance(command, cmd.CancelTimer):
            timer = self.find(ev.TimerStarted, timer_id=command.timer_id)
            self.add(ev.TimerCanceled, timer_id=command.timer_id, started_event_id=timer.event_id)
        elif isinstance(command, cmd.ContinueAsNew):
            self.closed = True
            self.add(
                ev.WorkflowExecutionContinuedAsNew,
                new_run_id="next",
                workflow_type="",
                task_queue="",
                input=command.input,
            )
        else:
            fields = msgspec.structs.asdict(command)
            wait = fields.pop("wait", None)
            event = self.add(
                _BECOMES[type(command)], workflow_task_completed_event_id=completed, **fields
            )
            if wait is False:
                self.add(
                    ev.ActivityTaskCanceled,
                    scheduled_event_id=event.scheduled_event_id,
                    started_event_id=0,
                )
            self.closed = self.closed or type(command) in cmd.CLOSING

    # --- what comes in ----------------------------------------------------------------------------

    def signal(self, name: str, *args: Any, headers: dict[str, str] | None = None) -> None:
        self.add(
            ev.WorkflowExecutionSignaled,
            signal_name=name,
            input=payload.dump_args(args, self.converter),
            headers=headers or {},
        )

    def update(
        self, update_id: str, name: str, *args: Any, headers: dict[str, str] | None = None
    ) -> None:
        self.updates[update_id] = UpdateRequest(
            update_id, name, payload.dump_args(args, self.converter), headers or {}
        )

    def cancel(self, reason: str = "") -> None:
        self.add(ev.WorkflowExecutionCancelRequested, reason=reason)

    def complete(self, activity_id: str, result: Any) -> None:
        scheduled = self.find(ev.ActivityTaskScheduled, activity_id=activity_id)
        started = self.add(ev.ActivityTaskStarted, scheduled_event_id=scheduled.event_id)
        body = b'{"result":' + msgspec.json.encode(result) + b"}"
        self.add(
            ev.ActivityTaskCompleted,
            scheduled_event_id=scheduled.event_id,
            started_event_id=started.event_id,
            result=payload.seal(body, self.converter),
        )

    def fail(self, activity_id: str, failure: Failure, **fields: Any) -> None:
        scheduled = self.find(ev.ActivityTaskScheduled, activity_id=activity_id)
        started = self.add(ev.ActivityTaskStarted, scheduled_event_id=scheduled.event_id, attempt=3)
        self.add(
            ev.ActivityTaskFailed,
            scheduled_event_id=scheduled.event_id,
            started_event_id=started.event_id,
            failure=payload.seal_failure(failure, self.converter),
            **fields,
        )

    def begin(self, activity_id: str, host: str = "h", worker_id: str = "w") -> None:
        """An activity whose start is announced has started."""
        scheduled = self.find(ev.ActivityTaskScheduled, activity_id=activity_id)
        self.add(
            ev.ActivityTaskStarted,
            scheduled_event_id=scheduled.event_id,
            host=host,
            worker_id=worker_id,
        )

    def fire(self, timer_id: str) -> None:
        started = self.find(ev.TimerStarted, timer_id=timer_id)
        self.now_ms = max(self.now_ms, started.time_ms + started.start_to_fire_ms)
        self.add(ev.TimerFired, timer_id=timer_id, started_event_id=started.event_id)

    def query(self, name: str, *args: Any, headers: dict[str, str] | None = None) -> QueryAnswer:
        """Asked of the cache and of a worker that has to replay first."""
        input = payload.dump_args(args, self.converter)
        request = QueryRequest(name, "", "query-1", input, headers or {})
        answer = self.cached.query(request)
        scratch = self.replay()
        turn = scratch.activate(self.events, now_ms=self.now_ms, live=False)
        assert turn.failure is None, turn.failure
        again = scratch.query(request)
        scratch.close()
        assert again.result == answer.result
        assert again.error == answer.error
        return answer

    def result(self) -> Any:
        """Of a completed run."""
        completed = self.find(ev.WorkflowExecutionCompleted)
        return payload.load(completed.result, self.converter)


class Backoff(Exception):
    """A local activity is to be tried again after ``ms``."""

    def __init__(self, ms: int) -> None:
        super().__init__(ms)
        self.ms = ms


def seen(turn: Turn) -> Any:
    """What of a turn must be the same at each replay."""
    failure = None if turn.failure is None else (turn.failure.cause, turn.failure.failure.message)
    return [_plain(command) for command in turn.commands], failure, turn.closed, turn.complete


def _plain(command: Command) -> Any:
    # Stack traces name lines of the library, which differ by the way that led there.
    fields = msgspec.structs.asdict(command)
    failure = fields.get("failure")
    if failure is not None:
        fields["failure"] = (failure.kind, failure.message, failure.type)
    return type(command).__name__, fields


def types(turn: Turn) -> list[str]:
    """The commands of a turn, by name."""
    return [type(command).__name__ for command in turn.commands]


def steps(run: Run, *moves: Callable[[Run], None]) -> list[list[str]]:
    """A first task, then one after each move; the commands of each."""
    told = [types(run.task())]
    for move in moves:
        move(run)
        told.append(types(run.task()))
    return told
