"""Other workflows, as workflow code reaches them: by signal and by cancellation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tq_broker.model.names import check_text
from tq_broker.workflow.calls import ID_BYTES_MAX, UNSET, arguments
from tq_broker.workflow.definition import definition_of
from tq_broker.workflow.handles import signal_name
from tq_broker.workflow.runtime import current


class ExternalWorkflowHandle:
    """Another workflow of the same namespace. Made by `get_external_workflow_handle`."""

    def __init__(self, workflow_id: str, run_id: str | None = None) -> None:
        self.id = check_text("workflow_id", workflow_id, bytes_max=ID_BYTES_MAX)
        self.run_id = run_id

    async def signal(
        self,
        signal: str | Callable[..., Any],
        arg: Any = UNSET,
        *,
        args: Sequence[Any] | None = None,
    ) -> None:
        """Signal it, and wait until it has the signal.

        Raises:
            ApplicationError: there is no such run (type ``ExternalWorkflowExecutionNotFound``).
        """
        await current().signal_external(
            self.id, self.run_id, signal_name(signal), arguments(arg, args)
        )

    async def cancel(self, *, reason: str = "") -> None:
        """Request its cancellation, and wait until it has the request.

        Raises:
            ApplicationError: as for `signal`.
        """
        await current().cancel_external(self.id, self.run_id, reason)


def get_external_workflow_handle(
    workflow_id: str, *, run_id: str | None = None
) -> ExternalWorkflowHandle:
    """A handle of another workflow; ``run_id`` ``None`` means its current run."""
    return ExternalWorkflowHandle(workflow_id, run_id)


def get_external_workflow_handle_for(
    workflow: Callable[..., Awaitable[Any]], workflow_id: str, *, run_id: str | None = None
) -> ExternalWorkflowHandle:
    """The same, for a workflow that is known by its run method."""
    definition_of(workflow)
    return ExternalWorkflowHandle(workflow_id, run_id)
