"""Child workflows of a run, as its code sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Union

from tq_broker.common import inherited_headers, to_ms, versioning_override
from tq_broker.exceptions import (
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    Malformed,
    TerminatedError,
    TimeoutError,
    TimeoutType,
    WorkflowAlreadyStartedError,
)
from tq_broker.model import events, payload
from tq_broker.model.affinity import affinity_under, dump_affinity
from tq_broker.model.commands import RequestCancelExternalWorkflow, StartChildWorkflow
from tq_broker.model.failure import retry_state
from tq_broker.model.precedence import settle
from tq_broker.model.tasks import check_place, wire_retry_policy
from tq_broker.worker.ledger import Entry
from tq_broker.worker.loop import WorkflowLoop
from tq_broker.worker.replay_external import ReplayExternal
from tq_broker.worker.situation import Situation
from tq_broker.workflow.calls import ChildCall, ChildWorkflowCancellationType
from tq_broker.workflow.errors import NondeterminismError
from tq_broker.workflow.handles import ChildWorkflowHandle, RequestingFuture

TASK_TIMEOUT_MS = 10_000

Unsuccessful = Union[  # noqa: UP007 - like the other unions of events
    events.ChildWorkflowExecutionFailed,
    events.ChildWorkflowExecutionCanceled,
    events.ChildWorkflowExecutionTimedOut,
    events.ChildWorkflowExecutionTerminated,
]
Closed = Union[events.ChildWorkflowExecutionCompleted, Unsuccessful]  # noqa: UP007
OfAChild = Union[  # noqa: UP007
    events.ChildWorkflowExecutionStarted, events.StartChildWorkflowExecutionFailed, Closed
]


@dataclass(slots=True, eq=False)
class _Child:
    call: ChildCall
    entry: Entry
    handle: ChildWorkflowHandle[Any]
    start: RequestingFuture[None]
    run_id: str = ""
    initiated: int = 0
    cancel_sent: bool = False


class ReplayChildren:
    """The children that have not ended."""

    def __init__(self, situation: Situation, loop: WorkflowLoop, external: ReplayExternal) -> None:
        self._situation = situation
        self._loop = loop
        self._external = external
        self._by_event: dict[int, _Child] = {}
        self.signaller: Callable[[str, str, Sequence[Any]], Awaitable[None]] | None = None
        """What a child's handle signals it by, if not by `signal`."""

    async def start(self, call: ChildCall) -> ChildWorkflowHandle[Any]:
        """See `tq_broker.workflow.start_child_workflow`."""
        self._situation.check("start a child workflow")
        child = _Child(call, None, None, None)  # type: ignore[arg-type]
        child.entry = self._situation.ledger.add(
            self._command(call), partial(self._initiated, child)
        )
        cancel = partial(self._cancel, child)
        signal = partial(self.signaller or self.signal, call.id)
        child.handle = ChildWorkflowHandle(self._loop, self._loop.place(), cancel, call.id, signal)
        child.start = RequestingFuture(self._loop, self._loop.place(), cancel)
        await child.start
        return child.handle

    async def signal(
        self,
        workflow_id: str,
        signal: str,
        args: Sequence[Any],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Signal a child, and wait until it has the signal."""
        await self._external.signal(
            workflow_id, None, signal, args, headers=headers, child_only=True
        )

    def _command(self, call: ChildCall) -> StartChildWorkflow:
        run, conversion = self._situation.started, self._situation.conversion
        policy, task_timeout, defaults = call.retry_policy, call.task_timeout, call.defaults
        route, requires = check_place(call.place)
        task_queue = settle(
            "task_queue", call.task_queue, defaults.get("task_queue"), run.task_queue
        )
        affinity = affinity_under(call.bond, self._situation.affinity_on(task_queue))
        return StartChildWorkflow(
            workflow_id=call.id,
            workflow_type=call.workflow_type,
            task_queue=task_queue,
            input=payload.dump_args(call.args, conversion.converter),
            execution_timeout_ms=to_ms(call.execution_timeout) if call.execution_timeout else 0,
            run_timeout_ms=to_ms(call.run_timeout) if call.run_timeout else 0,
            task_timeout_ms=to_ms(task_timeout) if task_timeout else TASK_TIMEOUT_MS,
            parent_close_policy=int(call.parent_close_policy),
            id_reuse_policy=int(call.id_reuse_policy),
            retry_policy=None if policy is None else wire_retry_policy(policy),
            cron_schedule=call.cron_schedule,
            memo={key: conversion.dump(value) for key, value in call.memo.items()},
            headers=inherited_headers(run.headers, call.headers),
            priority=settle("priority", call.priority, defaults.get("priority"), run.priority),
            fairness_key=settle(
                "fairness_key", call.fairness_key, defaults.get("fairness_key"), run.fairness_key
            ),
            fairness_weight=settle(
                "fairness_weight",
                call.fairness_weight,
                defaults.get("fairness_weight"),
                run.fairness_weight,
            ),
            # Without one history knows what it inherits.
            versioning_override=versioning_override(
                "version", settle("version", call.version, defaults.get("version"), None)
            ),
            static_summary=call.static_summary,
            static_details=call.static_details,
            route=route,
            requires=requires,
            affinity=None if affinity is None else dump_affinity(affinity),
        )

    # --- events ---------------------------------------------------------------------------------

    def _initiated(self, child: _Child, event: events.StartChildWorkflowExecutionInitiated) -> None:
        child.initiated = event.event_id
        self._by_event[event.event_id] = child

    def start_failed(self, event: events.StartChildWorkflowExecutionFailed) -> None:
        child = self._find(event)
        del self._by_event[event.initiated_event_id]
        if event.cause == "already_exists":
            taken = WorkflowAlreadyStartedError(event.workflow_id, event.workflow_type)
            child.start.reject(taken)
        else:
            cause = ApplicationError(event.message, type=event.cause, non_retryable=True)
            self._reject(child, "child workflow refused", cause)

    def started(self, event: events.ChildWorkflowExecutionStarted) -> None:
        child = self._find(event)
        child.run_id = event.run_id
        child.handle.started(event.run_id)
        child.start.resolve(None)

    def completed(self, event: events.ChildWorkflowExecutionCompleted) -> None:
        child = self._closed(event)
        try:
            value = self._situation.conversion.load(event.result, child.call.result_type)
        except Malformed as error:
            child.handle.reject(error)
        else:
            child.handle.resolve(value)

    def failed(self, event: events.ChildWorkflowExecutionFailed) -> None:
        cause = self._situation.conversion.exception(event.failure)
        self._reject(self._closed(event), "child workflow failed", cause, event)

    def canceled(self, event: events.ChildWorkflowExecutionCanceled) -> None:
        details = self._situation.conversion.load(event.details, list[Any])
        cause = CancelledError("Cancelled", *details)
        self._reject(self._closed(event), "child workflow cancelled", cause, event)

    def timed_out(self, event: events.ChildWorkflowExecutionTimedOut) -> None:
        cause = TimeoutError("workflow timed out", type=TimeoutType.START_TO_CLOSE)
        self._reject(self._closed(event), "child workflow timed out", cause, event)

    def terminated(self, event: events.ChildWorkflowExecutionTerminated) -> None:
        cause = TerminatedError("workflow terminated")
        self._reject(self._closed(event), "child workflow terminated", cause, event)

    def _find(self, event: OfAChild) -> _Child:
        try:
            return self._by_event[event.initiated_event_id]
        except KeyError:
            raise NondeterminismError(
                f"event {event.event_id} of the history is {type(event).__name__} of event"
                f" {event.initiated_event_id}; the code has started no such child"
            ) from None

    def _closed(self, event: Closed) -> _Child:
        child = self._find(event)
        del self._by_event[event.initiated_event_id]
        return child

    def _reject(
        self,
        child: _Child,
        message: str,
        cause: BaseException,
        event: Unsuccessful | None = None,
    ) -> None:
        error = ChildWorkflowError(
            message,
            workflow_id=child.call.id,
            run_id=event.run_id if event else child.run_id,
            workflow_type=child.call.workflow_type,
            namespace=self._situation.namespace,
            initiated_event_id=child.initiated,
            started_event_id=event.started_event_id if event else 0,
            retry_state=retry_state(getattr(event, "retry_state", 0)),
        )
        error.__cause__ = cause
        if child.start.done():
            child.handle.reject(error)
        else:  # nobody has the handle yet
            child.start.reject(error)

    # --- cancellation -----------------------------------------------------------------------------

    def _cancel(self, child: _Child) -> None:
        self._situation.check("cancel a child workflow")
        kind = child.call.cancellation_type
        if not child.entry.sent:
            self._situation.ledger.withdraw(child.entry)
            return self._give_up(child)
        if kind is not ChildWorkflowCancellationType.ABANDON and not child.cancel_sent:
            child.cancel_sent = True
            request = RequestCancelExternalWorkflow(workflow_id=child.call.id, child_only=True)
            self._external.ask(request, partial(self._cancel_answered, child))
        if kind in (
            ChildWorkflowCancellationType.ABANDON,
            ChildWorkflowCancellationType.TRY_CANCEL,
        ):
            self._give_up(child)
        return None

    def _cancel_answered(self, child: _Child, why_not: str | None) -> None:
        # A child that could not be asked has ended, and its own event says how.
        waits = ChildWorkflowCancellationType.WAIT_CANCELLATION_REQUESTED
        if why_not is None and child.call.cancellation_type is waits:
            self._give_up(child)

    def _give_up(self, child: _Child) -> None:
        self._reject(child, "child workflow cancelled", CancelledError())
        child.handle.forget()
