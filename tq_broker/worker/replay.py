"""One run of a workflow, in a worker: events in, commands out.

Rules of this file: it is told the time and everything else by its caller, and does nothing but
run the workflow's code on a deterministic loop. Not thread-safe; each call may come on another
thread, one at a time.
"""

from __future__ import annotations

import asyncio
import contextvars
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from tq_broker.converter import DataConverter
from tq_broker.exceptions import Malformed, PayloadTooLarge
from tq_broker.model import events as ev
from tq_broker.model.commands import CompleteWorkflow, FailWorkflow
from tq_broker.model.events import Event, MarkerRecorded, WorkflowExecutionUpdateAccepted
from tq_broker.model.workflow_tasks import (
    QueryAnswer,
    QueryRequest,
    RunKey,
    TaskFailedCause,
    UpdateRequest,
)
from tq_broker.worker import guard
from tq_broker.worker.chronicle import Chapter, Chronicle, OutOfStep
from tq_broker.worker.conversion import Conversion
from tq_broker.worker.ending import ending
from tq_broker.worker.interceptors import ExecuteWorkflowInput
from tq_broker.worker.ledger import LOCAL_ACTIVITY
from tq_broker.worker.loop import Task, awaited
from tq_broker.worker.replay_activities import ReplayActivities
from tq_broker.worker.replay_children import ReplayChildren
from tq_broker.worker.replay_external import ReplayExternal
from tq_broker.worker.replay_handlers import ReplayHandlers
from tq_broker.worker.replay_local import ReplayLocal
from tq_broker.worker.replay_patches import ReplayPatches
from tq_broker.worker.replay_runtime import ReplayRuntime
from tq_broker.worker.replay_timers import ReplayTimers
from tq_broker.worker.situation import Situation, log
from tq_broker.worker.turn import LocalActivityDone, TaskFailure, Turn
from tq_broker.worker.workflow_chain import NONE, InterceptedRuntime, WorkflowInterception
from tq_broker.workflow.definition import WorkflowDefinition
from tq_broker.workflow.errors import NondeterminismError
from tq_broker.workflow.facts import HistorySize
from tq_broker.workflow.runtime import ATTRIBUTE

__all__ = ["OutOfStep", "Replay"]

_immortal: list[Task] = []
"""Tasks of evicted runs that refused to end."""


class Replay:
    """One run in the cache of a worker.

    Args:
        failure_exception_types: Of the worker, beside those of the definition: exceptions that
            fail the workflow; others, unless `FailureError`, fail only the workflow task.
        interception: What stands around the workflow's code.
    """

    def __init__(
        self,
        definition: WorkflowDefinition,
        run: RunKey,
        *,
        namespace: str,
        converter: DataConverter,
        failure_exception_types: Sequence[type[BaseException]] = (),
        interception: WorkflowInterception = NONE,
    ) -> None:
        guard.install()
        self._definition = definition
        self._interception = interception
        self._failure_types = (*failure_exception_types, *definition.failure_exception_types)
        self._chronicle = Chronicle()
        self._situation = Situation(run, namespace, Conversion.of(converter))
        # Of nobody else's context variables may anything be seen.
        self._context = contextvars.Context()
        self._main: asyncio.Task[Any] | None = None
        self._closed = False
        self._assemble()

    def _assemble(self) -> None:
        situation = self._situation
        self._timers = timers = ReplayTimers(situation)
        self._loop = loop = timers.loop
        self._patches = ReplayPatches(situation)
        self._local = ReplayLocal(situation, loop)
        self._activities = ReplayActivities(situation, loop)
        self._external = ReplayExternal(situation, loop)
        self._children = ReplayChildren(situation, loop, self._external)
        self._handlers = ReplayHandlers(
            situation, loop, self._definition, self._failure_types, self._spawn
        )
        runtime = InterceptedRuntime if self._interception.classes else ReplayRuntime
        self._runtime = runtime(
            situation,
            timers=timers,
            activities=self._activities,
            local=self._local,
            external=self._external,
            children=self._children,
            handlers=self._handlers,
            patches=self._patches,
        )
        setattr(loop, ATTRIBUTE, self._runtime)

    @property
    def last_event_id(self) -> int:
        """The last event it has been given; the next ones begin after it."""
        return self._chronicle.last_event_id

    # --- what its runner calls --------------------------------------------------------------------

    def activate(
        self,
        events: Sequence[Event],
        *,
        now_ms: int,
        updates: Sequence[UpdateRequest] = (),
        live: bool = True,
        history_bytes: int = 0,
        continue_as_new_suggested: bool = False,
    ) -> Turn:
        """Take in events, and run the workflow's code as far as it comes.

        Completed workflow tasks among the events are replayed first, each in its own turn.

        Args:
            events: All from ``last_event_id + 1`` to `WorkflowTask.last_event_id`.
            now_ms: The worker's time, and with that the workflow's, unless that would go back.
                Answer with the same ``started_ms``.
            live: There is a workflow task to be answered; False for a query-only task and for
                a replay test: then only completed tasks are replayed.

        Raises:
            OutOfStep: see there. All other errors are in the turn's ``failure``.
        """
        chapters = self._chronicle.read(events)
        try:
            for chapter in chapters:
                self._replay(chapter)
            if not live:
                return Turn(commands=[], local_activities=[], canceled_local=[])
            length = self._chronicle.scheduled_event_id
            size = HistorySize(length, history_bytes, continue_as_new_suggested)
            self._play(self._chronicle.open, updates, now_ms, size)
            return self._turn()
        except BaseException as error:  # whatever user code, or its history, leads to
            return self._failed(error, may_end=live)

    def local_activity_done(self, done: LocalActivityDone, *, now_ms: int) -> Turn:
        """Go on after a local activity has ended. One that is not awaited changes nothing, and
        its turn is not complete."""
        try:
            awaited = self._local.done(done, now_ms)
            if awaited:
                self._run()
                return self._turn()
        except BaseException as error:  # as above
            return self._failed(error, may_end=True)
        return Turn(commands=[], local_activities=[], canceled_local=[], complete=False)

    def query(self, request: QueryRequest) -> QueryAnswer:
        """Answer a query; between turns, also after the end of the run."""
        self._situation.replaying = False
        conversion = self._situation.conversion
        try:
            with self._situation.read_only("query"):
                answer = self._within(self._query, request)
            return QueryAnswer(result=conversion.dump(answer))
        except BaseException as error:  # also the cancellation of a task that it looks at
            return QueryAnswer(error="failed", failure=conversion.failure(error))

    def close(self) -> None:
        """Throw it away: the workflow's code ends without effects. May be called twice."""
        if not self._closed:
            self._closed = self._situation.evicted = True
            stuck = self._within(self._loop.evict)
            if stuck:
                log.warning("run %s: %d tasks refuse to end", self._situation.run, len(stuck))
                _immortal.extend(stuck)
            else:
                self._fall_apart()

    def _fall_apart(self) -> None:
        """Its parts know each other. In such cycles all that the run has in memory would wait for
        the garbage collector, which takes longer the more there is."""
        delattr(self._loop, ATTRIBUTE)
        del self._timers.loop, self._handlers, self._runtime

    # --- chapters ---------------------------------------------------------------------------------

    def _replay(self, chapter: Chapter) -> None:
        """What the history tells of one workflow task comes to pass again."""
        assert chapter.completed is not None, "the chronicle gives completed ones"
        if not chapter.activated:
            self._patches.note(chapter.commands)
            accepted = [e for e in chapter.commands if type(e) is WorkflowExecutionUpdateAccepted]
            self._situation.replaying = True
            try:
                started = chapter.started
                if started is None:
                    raise NondeterminismError(
                        f"event {chapter.completed.event_id} of the history is"
                        " WorkflowTaskCompleted of a task that was not started"
                    )
                size = HistorySize(
                    started.event_id - 1, started.history_bytes, started.continue_as_new_suggested
                )
                self._play(chapter, accepted, started.time_ms, size)
                self._replay_local(chapter)
            finally:
                self._situation.replaying = False
            self._raise_error()
            self._close_ledger()
        self._situation.ledger.settle(chapter.commands, chapter.completed.event_id)

    def _replay_local(self, chapter: Chapter) -> None:
        self._local.take()  # as it was done then: from here on they had begun
        for event in chapter.commands:
            if isinstance(event, MarkerRecorded) and event.marker_name == LOCAL_ACTIVITY:
                self._local.replayed(event)
                self._run()
                self._local.take()
        if self._local.awaited and self._situation.closing is None:
            raise NondeterminismError(
                f"the code starts local activity {self._local.awaited[0]!r}; the history has no"
                " marker of its end"
            )

    def _play(
        self,
        chapter: Chapter,
        updates: Sequence[UpdateRequest | WorkflowExecutionUpdateAccepted],
        now_ms: int,
        size: HistorySize,
    ) -> None:
        """Tell the code what has come in, and run it until it waits again."""
        chapter.activated = True
        situation = self._situation
        # Each worker tells the time by its own clock; for the code it never goes back.
        situation.now_ms, situation.size = max(now_ms, situation.now_ms), size
        incoming, chapter.incoming = chapter.incoming, []
        self._within(self._tell, incoming, updates)

    def _tell(
        self,
        incoming: Sequence[Event],
        updates: Sequence[UpdateRequest | WorkflowExecutionUpdateAccepted],
    ) -> None:
        others = deque(incoming)
        begins = self._main is None and bool(others)
        if begins:
            self._begin(others.popleft())
        # Before the main task begins, and before what it has waited for: as Temporal does.
        for event in incoming:
            if type(event) is ev.WorkflowExecutionSignaled:
                self._handlers.signal(event)
        for update in updates:
            self._handlers.update(update)
        if begins and self._situation.closing is None:
            self._main = self._spawn(self._run_main())
        for event in others:
            if type(event) is not ev.WorkflowExecutionSignaled:
                self._apply(event)
        self._loop.run(self._timers.wake)

    def _apply(self, event: Event) -> None:
        try:
            apply = _APPLIERS[type(event)]
        except KeyError:
            raise NondeterminismError(
                f"event {event.event_id} of the history, {type(event).__name__}, has no place there"
            ) from None
        apply(self, event)

    # --- the code ---------------------------------------------------------------------------------

    def _begin(self, event: Event) -> None:
        """Make the author's object."""
        if not isinstance(event, ev.WorkflowExecutionStarted):
            raise NondeterminismError(
                f"event {event.event_id}, the history's first, is {type(event).__name__}"
            )
        situation, definition = self._situation, self._definition
        situation.started, situation.first_task_ms = event, situation.now_ms
        arguments = situation.conversion.arguments(
            event.input, definition.run, dynamic=definition.dynamic
        )
        if isinstance(self._runtime, InterceptedRuntime):
            self._handlers.inbound = self._runtime.intercept(self._interception)
        try:
            given = arguments if definition.init_takes_input else []
            self._instance = definition.cls(*given)
        except Exception as error:
            self._end(error)
        else:
            self._arguments = arguments
            self._handlers.serve(self._instance)

    async def _run_main(self) -> None:
        run, inbound = self._definition.run.fn, self._handlers.inbound
        if inbound is None:
            result = await run.__get__(self._instance)(*self._arguments)
        else:
            input = ExecuteWorkflowInput(
                type=self._definition.cls,
                run_fn=run,
                args=self._arguments,
                headers=dict(self._situation.started.headers),
            )
            result = await inbound.execute_workflow(input)
        self._situation.closing = CompleteWorkflow(result=self._situation.conversion.dump(result))

    def _cancel(self, event: ev.WorkflowExecutionCancelRequested) -> None:
        self._situation.cancel_requested = True
        self._situation.cancellation_reason = event.reason
        if self._main is not None:
            # Not at once: a task that has not begun would never do so, and could not clean up.
            self._loop.call_soon(self._main.cancel)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[Any]:
        """Start a task whose exceptions are those of the workflow."""
        return self._loop.create_task(self._top_level(coroutine))

    async def _top_level(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except BaseException as error:
            if self._situation.evicted:
                raise
            self._end(error)

    def _end(self, error: BaseException) -> None:
        """``error`` has left the workflow's code."""
        situation = self._situation
        if situation.closing is not None:
            return
        try:
            situation.closing = ending(
                error,
                situation.conversion,
                cancel_requested=situation.cancel_requested,
                failure_types=self._failure_types,
            )
        except Exception as unsendable:
            situation.fail(unsendable)
        else:
            if situation.closing is None:
                situation.fail(error)

    def _run(self) -> None:
        self._within(self._loop.run, self._timers.wake)

    def _within(self, code: Callable[..., Any], *args: Any) -> Any:
        """Run workflow code: guarded, on its loop, in its context."""
        with self._loop.entered(), guard.Engaged(self._definition.sandboxed):
            return self._context.run(code, *args)

    # --- answers ----------------------------------------------------------------------------------

    def _turn(self) -> Turn:
        self._raise_error()
        self._handlers.warn_of_unhandled()
        closed = self._situation.closing is not None
        if closed:
            self._handlers.warn_of_unfinished()
        complete = closed or not self._local.awaited
        to_start, to_cancel = self._local.take()
        return Turn(
            commands=self._close_ledger() if complete else [],
            local_activities=[] if closed else to_start,
            canceled_local=to_cancel,
            complete=complete,
            closed=closed,
            current_details=self._runtime.current_details(),
        )

    def _close_ledger(self) -> list[Any]:
        # After everything else that was asked for, whatever was the order.
        if self._situation.closing is not None:
            self._situation.ledger.add(self._situation.closing)
        return self._situation.ledger.send()

    def _raise_error(self) -> None:
        if self._situation.error is not None:
            raise self._situation.error

    def _failed(self, error: BaseException, *, may_end: bool) -> Turn:
        """``may_end``: there is a workflow task, with which the run can fail."""
        if may_end and isinstance(error, self._failure_types):
            command = FailWorkflow(failure=self._situation.conversion.failure(error))
            return Turn(commands=[command], local_activities=[], canceled_local=[], closed=True)
        failure = self._situation.conversion.failure(error)
        return Turn(
            commands=[],
            local_activities=[],
            canceled_local=[],
            failure=TaskFailure(cause=_cause(error), failure=failure, error=error),
        )

    # --- queries ----------------------------------------------------------------------------------

    def _query(self, request: QueryRequest) -> Any:
        if self._main is None:
            raise RuntimeError("the workflow has not begun")
        if request.query_type == "__stack_trace":
            return self._stacks()
        if request.query_type == "__temporal_workflow_metadata":
            return self._metadata()
        return self._handlers.query(request)

    def _stacks(self) -> str:
        """Where the code waits."""
        return "\n".join(
            f"{task.get_name()}\n{''.join(_stack(task))}" for task in self._loop.tasks()
        )

    def _metadata(self) -> dict[str, Any]:
        """In the shape that Temporal's tools know."""
        named = {
            f"{kind}Definitions": [{"name": name} for name in self._handlers.names(kind)]
            for kind in ("signal", "query", "update")
        }
        definition = {"type": self._definition.name, **named}
        return {"definition": definition, "currentDetails": self._runtime.current_details()}


def _stack(task: Task) -> list[str]:
    """Where a task waits; of frames, only those of the author."""
    frames = [c.cr_frame for c in awaited(task.get_coro()) if c.cr_frame is not None]
    own = [f for f in frames if not f.f_globals.get("__name__", "").startswith("tq_broker.worker.")]
    return traceback.StackSummary.extract((frame, frame.f_lineno) for frame in own).format()


_APPLIERS: dict[type, Callable[[Replay, Any], None]] = {
    ev.WorkflowExecutionCancelRequested: Replay._cancel,
    ev.ActivityTaskStarted: lambda replay, event: replay._activities.started(event),
    ev.ActivityTaskCompleted: lambda replay, event: replay._activities.completed(event),
    ev.ActivityTaskFailed: lambda replay, event: replay._activities.failed(event),
    ev.ActivityTaskTimedOut: lambda replay, event: replay._activities.timed_out(event),
    ev.ActivityTaskCanceled: lambda replay, event: replay._activities.canceled(event),
    ev.TimerFired: lambda replay, event: replay._timers.fired(event),
    ev.StartChildWorkflowExecutionFailed: lambda replay, event: replay._children.start_failed(
        event
    ),
    ev.ChildWorkflowExecutionStarted: lambda replay, event: replay._children.started(event),
    ev.ChildWorkflowExecutionCompleted: lambda replay, event: replay._children.completed(event),
    ev.ChildWorkflowExecutionFailed: lambda replay, event: replay._children.failed(event),
    ev.ChildWorkflowExecutionCanceled: lambda replay, event: replay._children.canceled(event),
    ev.ChildWorkflowExecutionTimedOut: lambda replay, event: replay._children.timed_out(event),
    ev.ChildWorkflowExecutionTerminated: lambda replay, event: replay._children.terminated(event),
    ev.ExternalWorkflowExecutionSignaled: lambda replay, event: replay._external.succeeded(event),
    ev.SignalExternalWorkflowExecutionFailed: lambda replay, event: replay._external.failed(event),
    ev.ExternalWorkflowExecutionCancelRequested: lambda replay, event: replay._external.succeeded(
        event
    ),
    ev.RequestCancelExternalWorkflowExecutionFailed: lambda replay, event: replay._external.failed(
        event
    ),
    # Ended from outside: nothing to be told to code that will not run again.
    ev.WorkflowExecutionTerminated: lambda replay, event: None,
    ev.WorkflowExecutionTimedOut: lambda replay, event: None,
    ev.WorkflowExecutionFailed: lambda replay, event: None,
}
"""What is told to the code, beside the first event, signals and updates; and how."""


def _cause(error: BaseException) -> TaskFailedCause:
    if isinstance(error, NondeterminismError):
        return TaskFailedCause.NON_DETERMINISTIC
    if isinstance(error, (PayloadTooLarge, Malformed)):
        return TaskFailedCause.PAYLOAD
    return TaskFailedCause.UNHANDLED_FAILURE
