"""What clients ask of workflows, as answers on their way, and how answers are read.

Rules of this file: nothing blocks; what was asked is said by values of `tq_broker.model.requests`;
an answer is decoded on the caller's thread (see `tq_broker.client.waiting.Asked`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tq_broker.client.conversations import (
    COMPLETED,
    OneAnswer,
    ResultWait,
    StartWithUpdate,
    UpdateWait,
    not_found,
)
from tq_broker.client.core import ClientCore
from tq_broker.client.execution import (
    WorkflowExecutionCount,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
)
from tq_broker.client.interceptors import OutboundInterceptor
from tq_broker.client.waiting import Asked
from tq_broker.client.workflow_start import encode_args
from tq_broker.clock import epoch_ms
from tq_broker.exceptions import (
    CancelledError,
    FailureError,
    Malformed,
    TerminatedError,
    TimeoutError,
    TimeoutType,
    WorkflowContinuedAsNewError,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from tq_broker.model import failure, payload, requests
from tq_broker.model.failure import Failure
from tq_broker.model.payload import Payload
from tq_broker.model.workflow_tasks import EventsPage, QueryAnswer

NO_WORKER = (
    "no answer to the query: no worker serves the workflow's task queue, or no history service"
    " runs (start one with tq-broker history)"
)

T = TypeVar("T")


class WorkflowCore:
    """Asks on behalf of both faces of the client. Thread-safe."""

    def __init__(self, core: ClientCore, outbound: OutboundInterceptor | None = None) -> None:
        """``outbound``: the first interceptor, which handles are to ask; ``None`` without any."""
        self._core = core
        self.outbound = outbound
        self.converter = core.converter
        self.identity = core.identity
        self.namespace = core.names.namespace

    def new_id(self) -> str:
        """An id for an update that its caller did not name."""
        return self._core.new_id()

    def args(self, args: Sequence[Any], what: str) -> Payload:
        """The payload of a call's arguments. Raises `InvalidArgument`, `PayloadTooLarge`."""
        return encode_args(args, self.converter, what)

    # --- starting -------------------------------------------------------------------------------

    def start(
        self, request: requests.StartWorkflow, read: Callable[[requests.Started], T]
    ) -> Asked[T]:
        """Start a workflow.

        Its answer raises `WorkflowAlreadyStartedError`, `InvalidArgument`, `Unavailable`.
        """
        return OneAnswer(self._core, request, requests.Started).begin(read)

    def start_with_update(
        self, request: requests.StartWorkflow
    ) -> tuple[Asked[requests.Started], Asked[requests.UpdateState]]:
        """Start a workflow, or use the one that runs, and send it ``request.update``.

        The second answer comes when the update is as far as ``request.update_wait``.
        """
        both = StartWithUpdate(self._core, request)
        update = both.begin(_same)
        return Asked(both.started, _same, _nothing), update

    def execute(self, request: requests.StartWorkflow, hint: Any) -> Asked[Any]:
        """Start a workflow and wait for the end of its chain of runs, in one round trip.

        ``request.want_result`` must be set. Until history has answered it ends as `start` does at
        the client's deadline; from then on it waits for as long as it takes. Its answer raises as
        those of `start` and `result` do.
        """
        wait = ResultWait(self._core, request, follow=True)
        return wait.begin(lambda closed: self._value(request.workflow_id, closed, hint))

    def result(
        self, workflow_id: str, run_id: str | None, hint: Any, *, follow: bool
    ) -> Asked[Any]:
        """Wait for the result of a run; with ``follow``, of the last run of its chain.

        Its answer raises:
            WorkflowFailureError: it failed, was cancelled or terminated, or timed out.
            WorkflowContinuedAsNewError: it did, and was not followed.
            NotFound: there is no such workflow or run.
        """
        request = requests.AwaitResult(workflow_id=workflow_id, run_id=run_id)
        wait = ResultWait(self._core, request, follow=follow)
        return wait.begin(lambda closed: self._value(workflow_id, closed, hint))

    # --- asking ---------------------------------------------------------------------------------

    def do(
        self, request: requests.SignalWorkflow | requests.RequestCancel | requests.Terminate
    ) -> Asked[None]:
        """Signal, cancel or terminate. Its answer raises `NotFound`, `Unavailable`."""
        return OneAnswer(self._core, request, requests.Done).begin(_nothing)

    def query(self, request: requests.QueryWorkflow, hint: Any) -> Asked[Any]:
        """Query a workflow.

        Its answer raises `WorkflowQueryFailedError`, `WorkflowQueryRejectedError`, `NotFound`, or
        `DeadlineExceeded` when no worker has answered.
        """

        def read(answer: QueryAnswer) -> Any:
            if answer.error == "rejected":
                raise WorkflowQueryRejectedError(WorkflowExecutionStatus.of(answer.status))
            if answer.error:
                cause = None if answer.failure is None else self.to_exception(answer.failure)
                raise WorkflowQueryFailedError(cause.message if cause else answer.error) from cause
            what = f"answer of workflow {request.workflow_id!r} to query {request.query_type!r}"
            return self._load(answer.result, hint, what)

        return OneAnswer(self._core, request, QueryAnswer, silence=NO_WORKER).begin(read)

    def update(self, request: requests.UpdateWorkflow) -> Asked[requests.UpdateState]:
        """Send an update; answered when it is as far as ``request.wait``.

        Its answer raises `NotFound`, `Unavailable`; of an update that failed it tells so.
        """
        if request.wait >= COMPLETED:
            return UpdateWait(self._core, request).begin(_same)
        return OneAnswer(self._core, request, requests.UpdateState).begin(_same)

    def update_result(
        self, workflow_id: str, run_id: str | None, update_id: str
    ) -> Asked[requests.UpdateState]:
        """Wait for the end of an update."""
        request = requests.AwaitUpdate(workflow_id=workflow_id, run_id=run_id, update_id=update_id)
        return UpdateWait(self._core, request).begin(_same)

    def describe(self, workflow_id: str, run_id: str | None) -> Asked[WorkflowExecutionDescription]:
        """All about a run. Its answer raises `NotFound`, `Unavailable`."""
        request = requests.Describe(workflow_id=workflow_id, run_id=run_id)
        return OneAnswer(self._core, request, requests.Description).begin(
            lambda reply: WorkflowExecutionDescription.of_description(
                reply, self.namespace, self.converter
            )
        )

    def history_page(
        self, workflow_id: str, run_id: str | None, first_event_id: int
    ) -> Asked[EventsPage]:
        """Events from ``first_event_id``, as many as fit a message; none if there is no such event
        yet. Its answer raises `NotFound`, `Unavailable`."""
        request = requests.FetchHistory(
            workflow_id=workflow_id, run_id=run_id, first_event_id=first_event_id
        )

        def read(page: EventsPage) -> EventsPage:
            if not page.found:
                raise not_found(workflow_id, run_id, self.namespace)
            return page

        return OneAnswer(self._core, request, EventsPage).begin(read)

    def list_page(self, query: str, page_size: int, page_token: str) -> Asked[requests.Listing]:
        """A page of runs. Its answer raises `InvalidArgument` for a wrong query, `Unavailable`."""
        request = requests.ListWorkflows(query=query, page_size=page_size, page_token=page_token)
        return OneAnswer(self._core, request, requests.Listing).begin(_same)

    def count(self, query: str) -> Asked[WorkflowExecutionCount]:
        """How many runs match. Raises as `list_page` does."""
        request = requests.CountWorkflows(query=query)
        return OneAnswer(self._core, request, requests.Count).begin(WorkflowExecutionCount.of)

    def query_deadline_ms(self) -> int:
        """When nobody will wait any more for the answer to a query that is sent now."""
        return epoch_ms(self._core.clock) + round(self._core.timeout_s * 1000)

    # --- reading --------------------------------------------------------------------------------

    def _value(self, workflow_id: str, closed: requests.Closed, hint: Any) -> Any:
        if closed.status is requests.Status.COMPLETED:
            return self._load(closed.result, hint, f"result of workflow {workflow_id!r}")
        if closed.status is requests.Status.CONTINUED_AS_NEW:
            raise WorkflowContinuedAsNewError(workflow_id, closed.next_run_id)
        cause = self._cause(closed)
        how = closed.status.value.replace("_", " ")
        raise WorkflowFailureError(workflow_id, closed.run_id, how, cause) from cause

    def update_value(self, state: requests.UpdateState, hint: Any) -> Any:
        """The result of an update that has ended. Raises `WorkflowUpdateFailedError`."""
        if state.failure is not None:
            cause = self.to_exception(state.failure)
            raise WorkflowUpdateFailedError(state.update_id, cause) from cause
        return self._load(state.result, hint, f"result of update {state.update_id!r}")

    def _load(self, data: Payload, hint: Any, what: str) -> Any:
        """Raises `Malformed`, which says ``what`` is not of type ``hint``."""
        try:
            return payload.load(data, self.converter, hint)
        except Malformed as error:
            raise Malformed(f"{what}: {error.reason}") from error

    def to_exception(self, told: Failure) -> FailureError:
        """The exception that a failure stands for."""
        return failure.to_exception(payload.unseal_failure(told, self.converter))

    def _cause(self, closed: requests.Closed) -> FailureError:
        if closed.status is requests.Status.TERMINATED:
            reason = closed.failure.message if closed.failure is not None else ""
            details = payload.load(closed.details, self.converter, list[Any])
            return TerminatedError(reason or "Workflow terminated", *details)
        if closed.failure is not None:
            return self.to_exception(closed.failure)
        if closed.status is requests.Status.TIMED_OUT:
            return TimeoutError("Workflow timed out", type=TimeoutType.START_TO_CLOSE)
        details = payload.load(closed.details, self.converter, list[Any])
        return CancelledError("Workflow cancelled", *details)


def _same(answer: Any) -> Any:
    return answer


def _nothing(_answer: object = None) -> None:
    """Of an answer that says no more than that it has come."""
