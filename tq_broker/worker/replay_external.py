"""Signals to, and cancellations of, other workflows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Union

from tq_broker.exceptions import ApplicationError, CancelledError
from tq_broker.model import events, payload
from tq_broker.model.commands import RequestCancelExternalWorkflow, SignalExternalWorkflow
from tq_broker.worker.loop import WorkflowLoop
from tq_broker.worker.situation import Situation
from tq_broker.workflow.errors import NondeterminismError
from tq_broker.workflow.handles import RequestingFuture

NOT_FOUND = "ExternalWorkflowExecutionNotFound"
Answer = Callable[["str | None"], None]
"""Takes ``None``, or why not."""

Command = Union[SignalExternalWorkflow, RequestCancelExternalWorkflow]  # noqa: UP007
Answered = Union[  # noqa: UP007 - like the other unions of events
    events.ExternalWorkflowExecutionSignaled,
    events.SignalExternalWorkflowExecutionFailed,
    events.ExternalWorkflowExecutionCancelRequested,
    events.RequestCancelExternalWorkflowExecutionFailed,
]


class ReplayExternal:
    """What is under way to other workflows."""

    def __init__(self, situation: Situation, loop: WorkflowLoop) -> None:
        self._situation = situation
        self._loop = loop
        self._answers: dict[int, Answer] = {}

    async def signal(
        self,
        workflow_id: str,
        run_id: str | None,
        signal: str,
        args: Sequence[Any],
        *,
        headers: Mapping[str, str] | None = None,
        child_only: bool = False,
    ) -> None:
        """Raises `ApplicationError` if there is no such run."""
        self._situation.check("signal a workflow")
        command = SignalExternalWorkflow(
            workflow_id=workflow_id,
            signal_name=signal,
            run_id=run_id,
            input=payload.dump_args(args, self._situation.conversion.converter),
            headers=dict(headers or {}),
            child_only=child_only,
        )
        await self._answered(command)

    async def cancel(self, workflow_id: str, run_id: str | None, reason: str) -> None:
        """Raises as `signal` does."""
        self._situation.check("cancel a workflow")
        await self._answered(
            RequestCancelExternalWorkflow(workflow_id=workflow_id, run_id=run_id, reason=reason)
        )

    def ask(self, command: Command, answer: Answer) -> None:
        """Send ``command``; ``answer`` is told what became of it."""
        self._situation.ledger.add(command, partial(self._initiated, answer))

    async def _answered(self, command: Command) -> None:
        def answer(cause: str | None) -> None:
            if cause is None:
                future.resolve(None)
            else:
                future.reject(
                    ApplicationError(
                        f"workflow {command.workflow_id!r}: {cause.replace('_', ' ')}",
                        type=NOT_FOUND,
                        non_retryable=True,
                    )
                )

        def give_up() -> None:
            if entry.sent:
                future.give_up()
            else:
                self._situation.ledger.withdraw(entry)
                future.reject(CancelledError("cancelled before it was sent"))

        entry = self._situation.ledger.add(command, partial(self._initiated, answer))
        future: RequestingFuture[None] = RequestingFuture(self._loop, self._loop.place(), give_up)
        await future

    # --- events ---------------------------------------------------------------------------------

    def _initiated(
        self,
        answer: Answer,
        event: events.SignalExternalWorkflowExecutionInitiated
        | events.RequestCancelExternalWorkflowExecutionInitiated,
    ) -> None:
        self._answers[event.event_id] = answer

    def succeeded(
        self,
        event: events.ExternalWorkflowExecutionSignaled
        | events.ExternalWorkflowExecutionCancelRequested,
    ) -> None:
        self._find(event)(None)

    def failed(
        self,
        event: events.SignalExternalWorkflowExecutionFailed
        | events.RequestCancelExternalWorkflowExecutionFailed,
    ) -> None:
        self._find(event)(event.cause)

    def _find(self, event: Answered) -> Answer:
        answer = self._answers.pop(event.initiated_event_id, None)
        if answer is None:
            raise NondeterminismError(
                f"event {event.event_id} of the history is {type(event).__name__} of event"
                f" {event.initiated_event_id}; the code has sent no such request"
            )
        return answer
