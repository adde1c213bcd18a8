"""Errors that workflow code meets, beside those of `tq_broker.exceptions`.

All but `ContinueAsNewError` fail the workflow task, not the workflow, unless they are listed in
``failure_exception_types``: a new release of the code can mend them.
"""

from __future__ import annotations

from tq_broker.exceptions import TqBrokerError
from tq_broker.workflow.calls import Continuation


class NondeterminismError(TqBrokerError):
    """The code does not ask for what it asked for when the history was written."""


class RestrictedWorkflowAccessError(NondeterminismError):
    """Workflow code reached for the outside world: clock, randomness, threads, files, sockets."""


class ReadOnlyContextError(TqBrokerError):
    """A query, validator or wait condition tried to change something."""


class ContinueAsNewError(BaseException):
    """Raised by `continue_as_new`; let it pass."""

    def __init__(self, continuation: Continuation) -> None:
        super().__init__("workflow continues as new")
        self.continuation = continuation


class BeingEvictedError(BaseException):
    """The run leaves the worker's cache: whatever its code still asks for is refused."""


class UnfinishedUpdateHandlersWarning(RuntimeWarning):
    """The workflow ended while update handlers were at work; see `HandlerUnfinishedPolicy`."""


class UnfinishedSignalHandlersWarning(RuntimeWarning):
    """The workflow ended while signal handlers were at work; see `HandlerUnfinishedPolicy`."""
