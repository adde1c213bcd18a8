"""The one tree of errors, drawn by who must act.

::

    TqBrokerError
    ├── FailureError              the user's activity ended badly; travels between processes
    │   ├── ApplicationError        raised by user code
    │   │   └── DownstreamBusy        and what it calls asks to be left alone for a while
    │   │   ├── AffinityLostError     the host or process that activities were to follow is gone
    │   │   └── SessionFailedError    a session could not be created, or its worker is gone
    │   ├── CancelledError          a requested cancellation was honoured
    │   ├── TerminatedError         ended from outside
    │   ├── TimeoutError            one of the four activity timeouts
    │   ├── ActivityError           what a caller sees; its cause is one of the above
    │   ├── ChildWorkflowError      the same for a child workflow
    │   └── WorkflowAlreadyStartedError   the id of a start is taken
    ├── WorkflowFailureError      what a caller of a workflow sees; its cause says how it ended
    ├── WorkflowContinuedAsNewError   the run that was waited for goes on in another
    ├── WorkflowUpdateFailedError     an update was rejected, or its handler failed
    ├── WorkflowQueryFailedError      a query is unknown, or its handler failed
    ├── WorkflowQueryRejectedError    the run is not open, and the query wanted an open one
    ├── Rejected                  the caller's fault: do not retry unchanged
    │   ├── InvalidArgument         (a ValueError) names the argument and its bound
    │   ├── PayloadTooLarge         (a ValueError) refused before it was published
    │   ├── ActivityAlreadyStarted  the id is taken and the caller chose to be refused
    │   ├── NotFound                no such activity, workflow, worker or queue now
    │   ├── Conflict                somebody else changed it meanwhile: look, and decide anew
    │   ├── TargetGone              no living worker on the host, in the process, or capable
    │   │   ├── UnknownCapability     no worker has ever had what the activity requires
    │   │   └── UnknownVersion        no worker of the version has ever served the task queue
    │   └── AccessRefused           login, vhost or permission
    ├── Unavailable               try again later, with the retry policy
    │   ├── BrokerUnavailable       cannot connect, or the connection broke
    │   ├── BrokerBlocked           RabbitMQ blocks publishers (memory or disk alarm)
    │   └── DeadlineExceeded        not done before the caller's deadline
    ├── Malformed                 a message that cannot be understood; it is parked
    └── Bug                       our fault, please report it

Names in the first branch and of workflows are those of Temporal's Python SDK.
"""

from __future__ import annotations

import builtins
import enum
from collections.abc import Sequence
from datetime import timedelta
from typing import Any


class TqBrokerError(Exception):
    """Root of every error this library raises."""


# --- failures: they travel ------------------------------------------------------------------


class FailureError(TqBrokerError):
    """An activity ended without a result."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    @property
    def cause(self) -> BaseException | None:
        """The failure below this one, if any (the same as ``__cause__``)."""
        return self.__cause__


class ApplicationErrorCategory(enum.IntEnum):
    """How loudly a worker logs an application error."""

    UNSPECIFIED = 0
    BENIGN = 1


class ApplicationError(FailureError):
    """An error raised by user code.

    Args:
        message: What happened, for people.
        details: JSON-able values for programs.
        type: The name retry policies match on; ``None`` means the class name.
        non_retryable: ``True`` ends the activity whatever its policy says.
        next_retry_delay: Before the next attempt, at least 0, instead of the policy's own
            interval; ``None`` leaves it to the policy.
        category: ``BENIGN`` is logged at debug level only.

    Raises:
        InvalidArgument: ``next_retry_delay`` or ``category`` is something else.
    """

    def __init__(
        self,
        message: str,
        *details: Any,
        type: str | None = None,
        non_retryable: bool = False,
        next_retry_delay: timedelta | None = None,
        category: ApplicationErrorCategory = ApplicationErrorCategory.UNSPECIFIED,
    ) -> None:
        super().__init__(message)
        self.details: Sequence[Any] = details
        self.type = type
        self.non_retryable = non_retryable
        if next_retry_delay is not None and not (
            isinstance(next_retry_delay, timedelta) and next_retry_delay >= timedelta(0)
        ):
            raise InvalidArgument(
                f"next_retry_delay is {next_retry_delay!r}; it must be a timedelta of at least 0,"
                " or None"
            )
        if category not in set(ApplicationErrorCategory):
            names = " or ".join(map(str, ApplicationErrorCategory))
            raise InvalidArgument(f"category is {category!r}; it must be {names}")
        self.next_retry_delay = next_retry_delay
        self.category = category


class BackOffScope(enum.Enum):
    """What a `DownstreamBusy` slows down. The value is the word on the wire."""

    TASK_QUEUE = "task-queue"
    """Whatever is on the activity's task queue."""
    KEY = "key"
    """What is there with the same ``rate_limit_key``."""


BACK_OFF_MAX = timedelta(days=1)


class DownstreamBusy(ApplicationError):
    """What an activity calls asks to be left alone for a while.

    Nothing of the activity's whole task queue, or of its ``rate_limit_key``, begins on any worker
    until then; what runs goes on. This attempt has failed, and the next one is not made before.

    Args:
        message: What happened, for people.
        details: JSON-able values for programs.
        retry_after: For how long; more than 0, at most `BACK_OFF_MAX`.
        scope: Whom it is for.
        type: As of `ApplicationError`.

    Raises:
        InvalidArgument: ``retry_after`` is out of bounds, or there is no such ``scope``.
    """

    def __init__(
        self,
        message: str,
        *details: Any,
        retry_after: timedelta,
        scope: BackOffScope = BackOffScope.TASK_QUEUE,
        type: str | None = None,
    ) -> None:
        if not isinstance(retry_after, timedelta) or not timedelta(0) < retry_after <= BACK_OFF_MAX:
            raise InvalidArgument(
                f"retry_after is {retry_after!r}; it must be a timedelta of more than 0, at most"
                f" {BACK_OFF_MAX}"
            )
        try:
            self.scope = BackOffScope(scope)
        except ValueError:
            names = " or ".join(map(str, BackOffScope))
            raise InvalidArgument(f"scope is {scope!r}; it must be {names}") from None
        super().__init__(message, *details, type=type, next_retry_delay=retry_after)
        self.retry_after = retry_after


AFFINITY_LOST = "AffinityLost"


class AffinityLostError(ApplicationError):
    """The host or process where earlier activities of the same affinity ran is gone, and the
    activity was to fail then (``on_lost``)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, type=AFFINITY_LOST, non_retryable=True)


SESSION_FAILED = "SessionFailed"


class SessionFailedError(ApplicationError):
    """A session of a workflow could not be created, or has failed: its worker is gone, or its
    execution timeout is over. Create another one (`tq_broker.workflow.session`)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, type=SESSION_FAILED)


class CancelledError(FailureError):
    """A requested cancellation was honoured."""

    def __init__(self, message: str = "Cancelled", *details: Any) -> None:
        super().__init__(message)
        self.details: Sequence[Any] = details


class TerminatedError(FailureError):
    """Ended from outside, without a chance to clean up."""

    def __init__(self, message: str = "Terminated", *details: Any) -> None:
        super().__init__(message)
        self.details: Sequence[Any] = details


class TimeoutType(enum.IntEnum):
    """Which of the four timeouts fired (Temporal's numbers); START_TO_CLOSE for a workflow."""

    START_TO_CLOSE = 1
    SCHEDULE_TO_START = 2
    SCHEDULE_TO_CLOSE = 3
    HEARTBEAT = 4


class TimeoutError(FailureError):
    """One of the four activity timeouts fired.

    ``last_heartbeat_details`` are those of the attempt that timed out.
    """

    def __init__(
        self, message: str, *, type: TimeoutType, last_heartbeat_details: Sequence[Any] = ()
    ) -> None:
        super().__init__(message)
        self.type = type
        self.last_heartbeat_details = last_heartbeat_details


class RetryState(enum.IntEnum):
    """Why an activity was not tried again (Temporal's numbers)."""

    IN_PROGRESS = 1
    NON_RETRYABLE_FAILURE = 2
    TIMEOUT = 3
    MAXIMUM_ATTEMPTS_REACHED = 4
    RETRY_POLICY_NOT_SET = 5
    CANCEL_REQUESTED = 7


class ActivityError(FailureError):
    """What ``result()`` raises: the activity ended badly; ``cause`` says how."""

    def __init__(
        self,
        message: str,
        *,
        activity_id: str,
        activity_type: str,
        identity: str = "",
        attempt: int = 1,
        retry_state: RetryState | None = None,
    ) -> None:
        super().__init__(message)
        self.activity_id = activity_id
        self.activity_type = activity_type
        self.identity = identity
        self.attempt = attempt
        self.retry_state = retry_state


class ChildWorkflowError(FailureError):
    """A child workflow ended badly; ``cause`` says how."""

    def __init__(
        self,
        message: str,
        *,
        workflow_id: str,
        run_id: str,
        workflow_type: str,
        namespace: str = "",
        initiated_event_id: int = 0,
        started_event_id: int = 0,
        retry_state: RetryState | None = None,
    ) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.workflow_type = workflow_type
        self.namespace = namespace
        self.initiated_event_id = initiated_event_id
        self.started_event_id = started_event_id
        self.retry_state = retry_state


class WorkflowAlreadyStartedError(FailureError):
    """A workflow with this id runs, or has run and the reuse policy forbids another."""

    def __init__(self, workflow_id: str, workflow_type: str, *, run_id: str | None = None) -> None:
        super().__init__(f"Workflow execution already started: {workflow_type} {workflow_id!r}")
        self.workflow_id = workflow_id
        self.workflow_type = workflow_type
        self.run_id = run_id


# --- what callers of workflows are told ------------------------------------------------------


class WorkflowFailureError(TqBrokerError):
    """A workflow ended badly; ``cause`` says how: `ApplicationError`, `CancelledError`,
    `TerminatedError`, `TimeoutError`, `ActivityError` or `ChildWorkflowError`."""

    def __init__(self, workflow_id: str, run_id: str, how: str, cause: FailureError) -> None:
        super().__init__(f"Workflow {workflow_id!r} {how}: {cause.message}")
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.__cause__ = cause

    @property
    def cause(self) -> FailureError:
        """How it ended."""
        assert isinstance(self.__cause__, FailureError), "the constructor has set it"
        return self.__cause__


class WorkflowContinuedAsNewError(TqBrokerError):
    """The run has continued as new, and its caller did not want to follow it."""

    def __init__(self, workflow_id: str, new_execution_run_id: str) -> None:
        super().__init__(f"Workflow {workflow_id!r} continued as new: run {new_execution_run_id}")
        self.workflow_id = workflow_id
        self.new_execution_run_id = new_execution_run_id


class WorkflowUpdateFailedError(TqBrokerError):
    """An update was rejected by its validator, is unknown, or its handler failed."""

    def __init__(self, update_id: str, cause: FailureError) -> None:
        super().__init__(f"Workflow update {update_id!r} failed: {cause.message}")
        self.update_id = update_id
        self.__cause__ = cause

    @property
    def cause(self) -> FailureError:
        """What the validator or the handler raised."""
        assert isinstance(self.__cause__, FailureError), "the constructor has set it"
        return self.__cause__


class WorkflowQueryFailedError(TqBrokerError):
    """The workflow has no such query, or its handler raised."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class WorkflowQueryRejectedError(TqBrokerError):
    """The workflow is not open, and the query was to be answered by an open one only.

    ``status`` is a `tq_broker.client.WorkflowExecutionStatus`.
    """

    def __init__(self, status: Any) -> None:
        super().__init__(f"Query rejected, the workflow is {getattr(status, 'name', status)}")
        self.status = status


# --- rejected: the caller must change something -----------------------------------------------


class Rejected(TqBrokerError):
    """The request as it stands will never be accepted."""


class InvalidArgument(Rejected, ValueError):
    """An argument is wrong; the message names it and its bound."""


class PayloadTooLarge(Rejected, ValueError):
    """The encoded message is over the limit; nothing was published."""


class ActivityAlreadyStarted(Rejected):
    """An activity with this id was started before, within its idempotency time."""


class NotFound(Rejected):
    """There is no such activity, worker or queue now."""


class Conflict(Rejected):
    """Somebody else has changed the same thing meanwhile."""


class TargetGone(Rejected):
    """No living worker is on the host or in the process that the route names, or has what is
    required."""


class UnknownCapability(TargetGone):
    """The activity requires what no worker of its task queue has ever had."""


class UnknownVersion(TargetGone):
    """The activity is bound to a deployment version that has never served its task queue."""


class AccessRefused(Rejected):
    """The broker refused the login, the vhost or an operation."""


# --- unavailable: try again later ---------------------------------------------------------------


class Unavailable(TqBrokerError):
    """It may work later; nothing is known to be accepted."""


class BrokerUnavailable(Unavailable):
    """The broker cannot be reached, or the connection broke."""


class BrokerBlocked(Unavailable):
    """RabbitMQ has blocked publishers because of a memory or disk alarm."""


class DeadlineExceeded(Unavailable, builtins.TimeoutError):
    """It was not done before the caller's deadline; whether it happened is unknown."""


class Malformed(TqBrokerError):
    """A message that cannot be understood. ``reason`` is what the parked copy says."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Bug(TqBrokerError):
    """A state that the code holds impossible. Please report it."""
