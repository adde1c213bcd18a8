"""Handles: a workflow, or an update of one, that a client has a hold of.

Rules of this file: what is asked, and of whom, is said once, by the methods that return an
`Asked`; both kinds of handle only wait for it, each in its way.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from tq_broker.client.conversations import COMPLETED
from tq_broker.client.execution import WorkflowExecutionDescription
from tq_broker.client.interceptors import (
    CancelWorkflowInput,
    DescribeWorkflowInput,
    FetchWorkflowHistoryEventsInput,
    QueryWorkflowInput,
    SignalWorkflowInput,
    StartWorkflowUpdateInput,
    TerminateWorkflowInput,
    UpdateWithStartUpdateWorkflowInput,
)
from tq_broker.client.waiting import UNSET, Answer, Asked, Chained, Timeout, one_or_many
from tq_broker.client.workflow_core import WorkflowCore
from tq_broker.client.workflow_start import check_id
from tq_broker.client.workflow_targets import Target, handler_target
from tq_broker.common import QueryRejectCondition, check_headers
from tq_broker.exceptions import InvalidArgument
from tq_broker.model import requests
from tq_broker.model.events import CLOSING, Event, WorkflowExecutionStarted
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.model.workflow_tasks import EventsPage, UpdateRequest

R = TypeVar("R")
NO_HEADERS: Mapping[str, str] = {}
Named = Callable[..., Any] | str
"""A decorated function, or a name."""


class WorkflowUpdateStage(enum.IntEnum):
    """How far an update has come (Temporal's numbers)."""

    ADMITTED = 1
    """History keeps it; a worker need not run."""
    ACCEPTED = 2
    """Its validator let it pass; or it was rejected."""
    COMPLETED = 3


class _UpdateHandle(Generic[R]):
    def __init__(
        self,
        core: WorkflowCore,
        id: str,
        workflow_id: str,
        workflow_run_id: str | None,
        result_type: Any = Any,
        state: requests.UpdateState | None = None,
    ) -> None:
        self._core = core
        self._id = id
        self._workflow_id = workflow_id
        self._workflow_run_id = workflow_run_id
        self._result_type = result_type
        self._state = state

    @property
    def id(self) -> str:
        """The update's id."""
        return self._id

    @property
    def workflow_id(self) -> str:
        """The workflow it was sent to."""
        return self._workflow_id

    @property
    def workflow_run_id(self) -> str | None:
        """The run it was sent to, if that is known."""
        return self._workflow_run_id

    def _known(self) -> bool:
        return self._state is not None and self._state.stage >= COMPLETED

    def _result(self) -> Asked[requests.UpdateState]:
        return self._core.update_result(self._workflow_id, self._workflow_run_id, self._id)

    def _value(self) -> R:
        assert self._state is not None, "the end of the update has been waited for"
        value: R = self._core.update_value(self._state, self._result_type)
        return value


class WorkflowUpdateHandle(_UpdateHandle[R]):
    """An update that was sent, for ``asyncio``."""

    async def result(self, *, timeout: Timeout = None) -> R:
        """Wait for its result.

        Raises:
            WorkflowUpdateFailedError: it was rejected, is unknown, or its handler failed.
            NotFound: there is no such workflow or update.
            DeadlineExceeded: it has not ended within ``timeout``; it goes on, ask again.
        """
        if not self._known():
            self._state = await self._result().awaited(timeout)
        return self._value()


class BlockingWorkflowUpdateHandle(_UpdateHandle[R]):
    """An update that was sent, for programs without ``asyncio``."""

    def result(self, *, timeout: Timeout = None) -> R:
        """Wait for its result; raises as `WorkflowUpdateHandle.result` does."""
        if not self._known():
            self._state = self._result().waited(timeout)
        return self._value()


class _Handle(Generic[R]):
    """What both kinds of handle know and ask.

    Attributes:
        _run_id: Signals, queries and the like go to this run; ``None``: to the current one.
        _result_run_id: The run whose result is waited for.
    """

    _update_type: ClassVar[Callable[..., Any]]
    _plain_events: Callable[[], Any]

    def __init__(
        self,
        core: WorkflowCore,
        id: str,
        *,
        run_id: str | None = None,
        result_run_id: str | None = None,
        first_execution_run_id: str | None = None,
        result_type: Any = Any,
    ) -> None:
        self._core = core
        self._id = id
        self._run_id = run_id
        self._result_run_id = result_run_id or run_id
        self._first_execution_run_id = first_execution_run_id
        self._result_type = result_type

    def __repr__(self) -> str:
        run = f" run {self._run_id}" if self._run_id else ""
        return f"<{type(self).__name__} {self._id}{run}>"

    @property
    def id(self) -> str:
        """The workflow's id."""
        return self._id

    @property
    def run_id(self) -> str | None:
        """The one run that this handle is about; ``None``: whatever run is the current one."""
        return self._run_id

    @property
    def result_run_id(self) -> str | None:
        """The run whose result `result` begins to wait for; ``None``: the current one."""
        return self._result_run_id

    @property
    def first_execution_run_id(self) -> str | None:
        """The first run of the chain that was started; `cancel` and `terminate` concern no other
        chain. ``None`` of a handle that did not start it."""
        return self._first_execution_run_id

    def _ask_result(self, follow_runs: bool) -> Asked[R]:
        return self._core.result(
            self._id, self._result_run_id, self._result_type, follow=follow_runs
        )

    # What is asked, by way of the interceptors if there are any ...

    def _ask_signal(self, signal: Named, arg: Any, args: Sequence[Any]) -> Answer[None]:
        target = handler_target("signal", signal)
        args = target.check_args(one_or_many(arg, args))
        if (outbound := self._core.outbound) is None:
            return self._plain_signal(target, args)
        input = SignalWorkflowInput(
            id=self._id, run_id=self._run_id, signal=target.name, args=args, headers={}
        )
        return Chained(outbound.signal_workflow(input))

    def _ask_query(
        self,
        query: Named,
        arg: Any,
        args: Sequence[Any],
        reject_condition: QueryRejectCondition | None,
        result_type: Any,
    ) -> Answer[Any]:
        target = handler_target("query", query, result_type)
        args = target.check_args(one_or_many(arg, args))
        if (outbound := self._core.outbound) is None:
            return self._plain_query(target, args, reject_condition)
        input = QueryWorkflowInput(
            id=self._id,
            run_id=self._run_id,
            query=target.name,
            args=args,
            reject_condition=reject_condition,
            headers={},
            ret_type=target.result_type,
        )
        return Chained(outbound.query_workflow(input))

    def _ask_update(
        self,
        update: Named,
        arg: Any,
        args: Sequence[Any],
        id: str | None,
        wait: WorkflowUpdateStage,
        result_type: Any,
        timeout: Timeout,
    ) -> Answer[Any]:
        target = handler_target("update", update, result_type)
        input = StartWorkflowUpdateInput(
            id=self._id,
            run_id=self._run_id,
            first_execution_run_id=self._first_execution_run_id,
            update_id=id,
            update=target.name,
            args=target.check_args(one_or_many(arg, args)),
            wait_for_stage=check_stage(wait),
            headers={},
            ret_type=target.result_type,
            timeout=timeout,
        )
        if (outbound := self._core.outbound) is None:
            return self._plain_update(input)
        return Chained(outbound.start_workflow_update(input))

    def _ask_cancel(self, reason: str) -> Answer[None]:
        if (outbound := self._core.outbound) is None:
            return self._plain_cancel(reason)
        input = CancelWorkflowInput(
            id=self._id,
            run_id=self._run_id,
            first_execution_run_id=self._first_execution_run_id,
            reason=reason,
        )
        return Chained(outbound.cancel_workflow(input))

    def _ask_terminate(self, reason: str | None, details: Sequence[Any]) -> Answer[None]:
        if (outbound := self._core.outbound) is None:
            return self._plain_terminate(reason, details)
        input = TerminateWorkflowInput(
            id=self._id,
            run_id=self._run_id,
            first_execution_run_id=self._first_execution_run_id,
            args=details,
            reason=reason,
        )
        return Chained(outbound.terminate_workflow(input))

    def _ask_description(self) -> Answer[WorkflowExecutionDescription]:
        if (outbound := self._core.outbound) is None:
            return self._plain_description()
        input = DescribeWorkflowInput(id=self._id, run_id=self._run_id)
        return Chained(outbound.describe_workflow(input))

    def _ask_events(self) -> Any:
        if (outbound := self._core.outbound) is None:
            return self._plain_events()
        input = FetchWorkflowHistoryEventsInput(id=self._id, run_id=self._run_id)
        return outbound.fetch_workflow_history_events(input)

    # ... and without them.

    def _plain_signal(
        self, target: Target, args: Sequence[Any], headers: Mapping[str, str] = NO_HEADERS
    ) -> Asked[None]:
        request = requests.SignalWorkflow(
            workflow_id=self._id,
            run_id=self._run_id,
            signal_name=target.name,
            input=self._input("signal", target.name, args),
            identity=self._core.identity,
            headers=dict(headers),
        )
        return self._core.do(request)

    def _plain_query(
        self,
        target: Target,
        args: Sequence[Any],
        reject_condition: QueryRejectCondition | None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Asked[Any]:
        request = requests.QueryWorkflow(
            workflow_id=self._id,
            run_id=self._run_id,
            query_type=target.name,
            input=self._input("query", target.name, args),
            headers=dict(headers),
            deadline_ms=self._core.query_deadline_ms(),
            reject_not_open=reject_condition is QueryRejectCondition.NOT_OPEN,
        )
        return self._core.query(request, target.result_type)

    def _plain_update(self, input: StartWorkflowUpdateInput) -> Asked[Any]:
        request = requests.UpdateWorkflow(
            workflow_id=self._id,
            run_id=self._run_id,
            first_run_id=self._first_execution_run_id,
            update=update_request(self._core, input),
            wait=check_stage(input.wait_for_stage),
        )
        asked = self._core.update(request)

        def read(state: requests.UpdateState) -> Any:
            return type(self)._update_type(
                self._core, state.update_id, self._id, state.run_id, input.ret_type, state
            )

        return replace(asked, read=read)

    def _plain_cancel(self, reason: str) -> Asked[None]:
        return self._core.do(
            requests.RequestCancel(
                workflow_id=self._id,
                run_id=self._run_id,
                first_run_id=self._first_execution_run_id,
                reason=reason,
                identity=self._core.identity,
            )
        )

    def _plain_terminate(self, reason: str | None, details: Sequence[Any]) -> Asked[None]:
        return self._core.do(
            requests.Terminate(
                workflow_id=self._id,
                run_id=self._run_id,
                first_run_id=self._first_execution_run_id,
                reason=reason or "",
                details=self._core.args(details, "the details of the termination"),
                identity=self._core.identity,
            )
        )

    def _plain_description(self) -> Asked[WorkflowExecutionDescription]:
        return self._core.describe(self._id, self._run_id)

    def _pages(self) -> Generator[Asked[EventsPage], EventsPage, None]:
        """What to ask for the whole history, page by page, each told back."""
        run_id, next_id = self._run_id, 1
        while True:
            page = yield self._core.history_page(self._id, run_id, next_id)
            if not page.events:
                return
            first, last = page.events[0], page.events[-1]
            if isinstance(first, WorkflowExecutionStarted):
                run_id = first.run_id  # the current run may be another when we ask again
            next_id = last.event_id + 1
            if next_id > page.last_event_id or isinstance(last, CLOSING):
                return

    def _input(self, kind: str, name: str, args: Sequence[Any]) -> bytes:
        return self._core.args(args, f"the input of {kind} {name!r}")


class WorkflowHandle(_Handle[R]):
    """A workflow, for ``asyncio``. Made by `Client.start_workflow` and
    `Client.get_workflow_handle`.

    Every method raises `NotFound` when there is no such workflow or run, and `Unavailable` when
    history cannot be reached within the client's ``timeout``.
    """

    _update_type = WorkflowUpdateHandle

    async def result(self, *, follow_runs: bool = True, timeout: Timeout = None) -> R:
        """Wait for the result, over restarts of whatever there is between here and there.

        Args:
            follow_runs: Go on to the next run when this one was continued as new, retried, or
                started again by its cron schedule.
            timeout: ``None``: for as long as it takes.

        Raises:
            WorkflowFailureError: it failed, was cancelled or terminated, or timed out; its
                ``cause`` says how.
            WorkflowContinuedAsNewError: it did, and was not to be followed.
            DeadlineExceeded: it has not ended within ``timeout``; it goes on, ask again.
        """
        return await self._ask_result(follow_runs).awaited(timeout)

    async def signal(self, signal: Named, arg: Any = UNSET, *, args: Sequence[Any] = ()) -> None:
        """Send a signal. Returns when history keeps it; an unknown one is kept, too.

        Args:
            signal: A method decorated with ``@workflow.signal``, or a name.
        """
        await self._ask_signal(signal, arg, args).awaited()

    async def query(
        self,
        query: Named,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        reject_condition: QueryRejectCondition | None = None,
        result_type: Any = None,
    ) -> Any:
        """Ask a worker for something about the workflow; it may have ended.

        Raises:
            WorkflowQueryFailedError: it has no such query, or the handler raised.
            WorkflowQueryRejectedError: ``reject_condition`` holds.
            DeadlineExceeded: no worker has answered within the client's ``timeout``.
        """
        return await self._ask_query(query, arg, args, reject_condition, result_type).awaited()

    async def execute_update(
        self,
        update: Named,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        id: str | None = None,
        result_type: Any = None,
        timeout: Timeout = None,
    ) -> Any:
        """Send an update and wait for its result.

        Args:
            id: Makes it idempotent: a second update with the same id joins the first.
            timeout: ``None``: for as long as it takes.

        Raises:
            WorkflowUpdateFailedError: it was rejected, is unknown, or its handler failed.
            DeadlineExceeded: it has not ended within ``timeout``; it may be under way, ask again
                with its ``id``.
        """
        handle = await self._ask_update(
            update, arg, args, id, WorkflowUpdateStage.COMPLETED, result_type, timeout
        ).awaited(timeout)
        return await handle.result()

    async def start_update(
        self,
        update: Named,
        arg: Any = UNSET,
        *,
        wait_for_stage: WorkflowUpdateStage,
        args: Sequence[Any] = (),
        id: str | None = None,
        result_type: Any = None,
        timeout: Timeout = None,
    ) -> WorkflowUpdateHandle[Any]:
        """Send an update; returns when it has come as far as ``wait_for_stage``.

        One that was rejected raises from the handle's `WorkflowUpdateHandle.result`. Raises
        `DeadlineExceeded` as `execute_update` does.
        """
        handle: WorkflowUpdateHandle[Any] = await self._ask_update(
            update, arg, args, id, wait_for_stage, result_type, timeout
        ).awaited(timeout)
        return handle

    def get_update_handle(
        self, id: str, *, workflow_run_id: str | None = None, result_type: Any = None
    ) -> WorkflowUpdateHandle[Any]:
        """An update that was sent before, by its id."""
        return WorkflowUpdateHandle(
            self._core, id, self._id, workflow_run_id or self._run_id, result_type or Any
        )

    def get_update_handle_for(
        self, update: Named, id: str, *, workflow_run_id: str | None = None
    ) -> WorkflowUpdateHandle[Any]:
        """The same; the type of the result is that of ``update``."""
        result_type = handler_target("update", update).result_type
        return self.get_update_handle(id, workflow_run_id=workflow_run_id, result_type=result_type)

    async def cancel(self, *, reason: str = "") -> None:
        """Ask that it be cancelled. Returns when history keeps the request."""
        await self._ask_cancel(reason).awaited()

    async def terminate(self, *details: Any, reason: str | None = None) -> None:
        """End it at once; its code is not told."""
        await self._ask_terminate(reason, details).awaited()

    async def describe(self) -> WorkflowExecutionDescription:
        """All about it, as of now."""
        return await self._ask_description().awaited()

    def fetch_history_events(self) -> AsyncIterator[Event]:
        """Its events so far, fetched as they are asked for."""
        events: AsyncIterator[Event] = self._ask_events()
        return events

    async def _plain_events(self) -> AsyncIterator[Event]:
        pages = self._pages()
        asked = next(pages, None)
        while asked is not None:
            page = await asked.awaited()
            for event in page.events:
                yield event
            asked = _sent(pages, page)

    async def fetch_history(self) -> WorkflowHistory:
        """Its history so far."""
        return WorkflowHistory(self._id, [event async for event in self.fetch_history_events()])


class BlockingWorkflowHandle(_Handle[R]):
    """A workflow, for programs without ``asyncio``; the methods are those of `WorkflowHandle`."""

    _update_type = BlockingWorkflowUpdateHandle

    def result(self, *, follow_runs: bool = True, timeout: Timeout = None) -> R:
        """Wait for the result. See `WorkflowHandle.result`."""
        return self._ask_result(follow_runs).waited(timeout)

    def signal(self, signal: Named, arg: Any = UNSET, *, args: Sequence[Any] = ()) -> None:
        """Send a signal. See `WorkflowHandle.signal`."""
        self._ask_signal(signal, arg, args).waited()

    def query(
        self,
        query: Named,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        reject_condition: QueryRejectCondition | None = None,
        result_type: Any = None,
    ) -> Any:
        """Ask a worker for something about the workflow. See `WorkflowHandle.query`."""
        return self._ask_query(query, arg, args, reject_condition, result_type).waited()

    def execute_update(
        self,
        update: Named,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        id: str | None = None,
        result_type: Any = None,
        timeout: Timeout = None,
    ) -> Any:
        """Send an update and wait for its result. See `WorkflowHandle.execute_update`."""
        handle = self._ask_update(
            update, arg, args, id, WorkflowUpdateStage.COMPLETED, result_type, timeout
        ).waited(timeout)
        return handle.result()

    def start_update(
        self,
        update: Named,
        arg: Any = UNSET,
        *,
        wait_for_stage: WorkflowUpdateStage,
        args: Sequence[Any] = (),
        id: str | None = None,
        result_type: Any = None,
        timeout: Timeout = None,
    ) -> BlockingWorkflowUpdateHandle[Any]:
        """Send an update. See `WorkflowHandle.start_update`."""
        handle: BlockingWorkflowUpdateHandle[Any] = self._ask_update(
            update, arg, args, id, wait_for_stage, result_type, timeout
        ).waited(timeout)
        return handle

    def get_update_handle(
        self, id: str, *, workflow_run_id: str | None = None, result_type: Any = None
    ) -> BlockingWorkflowUpdateHandle[Any]:
        """An update that was sent before, by its id."""
        return BlockingWorkflowUpdateHandle(
            self._core, id, self._id, workflow_run_id or self._run_id, result_type or Any
        )

    def get_update_handle_for(
        self, update: Named, id: str, *, workflow_run_id: str | None = None
    ) -> BlockingWorkflowUpdateHandle[Any]:
        """The same; the type of the result is that of ``update``."""
        result_type = handler_target("update", update).result_type
        return self.get_update_handle(id, workflow_run_id=workflow_run_id, result_type=result_type)

    def cancel(self, *, reason: str = "") -> None:
        """Ask that it be cancelled. Returns when history keeps the request."""
        self._ask_cancel(reason).waited()

    def terminate(self, *details: Any, reason: str | None = None) -> None:
        """End it at once; its code is not told."""
        self._ask_terminate(reason, details).waited()

    def describe(self) -> WorkflowExecutionDescription:
        """All about it, as of now."""
        return self._ask_description().waited()

    def fetch_history_events(self) -> Iterator[Event]:
        """Its events so far, fetched as they are asked for."""
        events: Iterator[Event] = self._ask_events()
        return events

    def _plain_events(self) -> Iterator[Event]:
        pages = self._pages()
        asked = next(pages, None)
        while asked is not None:
            page = asked.waited()
            yield from page.events
            asked = _sent(pages, page)

    def fetch_history(self) -> WorkflowHistory:
        """Its history so far."""
        return WorkflowHistory(self._id, list(self.fetch_history_events()))


def update_request(
    core: WorkflowCore, input: StartWorkflowUpdateInput | UpdateWithStartUpdateWorkflowInput
) -> UpdateRequest:
    """An update to send. Raises `InvalidArgument`, `PayloadTooLarge`."""
    id, name = input.update_id, check_id("update", input.update)
    return UpdateRequest(
        update_id=core.new_id() if id is None else check_id("id", id),
        name=name,
        input=core.args(input.args, f"the input of update {name!r}"),
        headers=dict(check_headers("headers", input.headers)),
        identity=core.identity,
    )


def check_stage(stage: object) -> WorkflowUpdateStage:
    """``stage``, if it is one. Raises `InvalidArgument`."""
    if not isinstance(stage, WorkflowUpdateStage):
        raise InvalidArgument("wait_for_stage must be a WorkflowUpdateStage")
    return stage


def _sent(
    pages: Generator[Asked[EventsPage], EventsPage, None], page: EventsPage
) -> Asked[EventsPage] | None:
    try:
        return pages.send(page)
    except StopIteration:
        return None
