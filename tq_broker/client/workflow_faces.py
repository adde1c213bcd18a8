"""The part of both faces of the client that is about workflows.

Rules of this file: as for `tq_broker.client.workflow_handles`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec.structs import replace

from tq_broker.chain import Pause
from tq_broker.client.core import ClientCore
from tq_broker.client.execution import WorkflowExecution, WorkflowExecutionCount
from tq_broker.client.interceptors import (
    CountWorkflowsInput,
    ListWorkflowsInput,
    OutboundInterceptor,
    StartWorkflowInput,
    StartWorkflowUpdateWithStartInput,
    UpdateWithStartUpdateWorkflowInput,
)
from tq_broker.client.outbound import workflow_input, workflow_of
from tq_broker.client.waiting import UNSET, Answer, Asked, Chained, Timeout, one_or_many
from tq_broker.client.workflow_core import WorkflowCore
from tq_broker.client.workflow_handles import (
    BlockingWorkflowHandle,
    BlockingWorkflowUpdateHandle,
    Named,
    WorkflowHandle,
    WorkflowUpdateHandle,
    WorkflowUpdateStage,
    check_stage,
    update_request,
)
from tq_broker.client.workflow_start import (
    StartWorkflowOptions,
    check_id,
    make_options,
    make_request,
)
from tq_broker.client.workflow_targets import Target, handler_target, workflow_target
from tq_broker.common import WorkflowIDConflictPolicy
from tq_broker.exceptions import InvalidArgument
from tq_broker.model import requests
from tq_broker.model.names import check_text
from tq_broker.model.precedence import completed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tq_broker.client.workflow_start import StartWorkflowOptionsDict

PAGE_SIZE_MAX = 1_000
QUERY_BYTES_MAX = 10_000


class _Operation:
    """A start that an update brings with it; used once."""

    def __init__(
        self,
        workflow: Named | type,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartWorkflowOptionsDict],
    ) -> None:
        """Nothing is sent yet.

        Args:
            workflow: As for `Client.start_workflow`; so are ``arg``, ``args`` and the options, of
                which ``id_conflict_policy`` must be given.
        """
        policy = options.get("id_conflict_policy", WorkflowIDConflictPolicy.UNSPECIFIED)
        if policy is WorkflowIDConflictPolicy.UNSPECIFIED:
            raise InvalidArgument("id_conflict_policy must be given for an update with start")
        self.workflow = workflow
        self.args = one_or_many(arg, args)
        self.options = options
        self.asked: Asked[Any] | None = None

    def _started(self) -> Asked[Any]:
        if self.asked is None:
            raise InvalidArgument("this operation has not been executed yet")
        return self.asked


class WithStartWorkflowOperation(_Operation):
    """The start in an update-with-start, for ``asyncio``."""

    async def workflow_handle(self) -> WorkflowHandle[Any]:
        """The workflow that was started, or used; raises as `Client.start_workflow` does."""
        handle: WorkflowHandle[Any] = await self._started().awaited()
        return handle


class BlockingWithStartWorkflowOperation(_Operation):
    """The start in an update-with-start, for programs without ``asyncio``."""

    def workflow_handle(self) -> BlockingWorkflowHandle[Any]:
        """The workflow that was started, or used; raises as `Client.start_workflow` does."""
        handle: BlockingWorkflowHandle[Any] = self._started().waited()
        return handle


class _Workflows:
    """What both faces ask."""

    core: ClientCore
    outbound: OutboundInterceptor | None
    _is_blocking: bool
    _handle_type: ClassVar[Callable[..., Any]]
    _update_type: ClassVar[Callable[..., Any]]
    _plain_list: Callable[..., Any]

    @cached_property
    def workflows(self) -> WorkflowCore:
        """What this client asks of workflows, as answers that are on their way."""
        return WorkflowCore(self.core, self.outbound)

    def _request(
        self, target: Target, args: Sequence[Any], options: StartWorkflowOptions
    ) -> requests.StartWorkflow:
        core = self.workflows
        return make_request(
            target.name, target.check_args(args), options, core.converter, core.identity
        )

    def _started(self, request: requests.StartWorkflow, target: Target) -> Callable[..., Any]:
        def handle(started: requests.Started) -> Any:
            return type(self)._handle_type(
                self.workflows,
                request.workflow_id,
                result_run_id=started.run_id,
                first_execution_run_id=started.first_run_id,
                result_type=target.result_type,
            )

        return handle

    def _start(
        self, workflow: Named | type, args: Sequence[Any], options: StartWorkflowOptionsDict
    ) -> Answer[Any]:
        target = workflow_target(workflow, options.get("result_type"))
        if self.outbound is None:
            return self._plain_start(target, args, _options(target, options))
        return Chained(self.outbound.start_workflow(_input(target, args, options)))

    def _plain_start(
        self, target: Target, args: Sequence[Any], options: StartWorkflowOptions
    ) -> Asked[Any]:
        request = self._request(target, args, options)
        return self.workflows.start(request, self._started(request, target))

    def _execute(
        self, workflow: Named | type, args: Sequence[Any], options: StartWorkflowOptionsDict
    ) -> Answer[Any]:
        target = workflow_target(workflow, options.get("result_type"))
        if self.outbound is not None:
            return Chained(self._executed(self.outbound, _input(target, args, options)))
        request = replace(self._request(target, args, _options(target, options)), want_result=True)
        return self.workflows.execute(request, target.result_type)

    async def _executed(self, outbound: OutboundInterceptor, input: StartWorkflowInput) -> Any:
        handle = await outbound.start_workflow(input)
        return await (Pause(handle.result) if self._is_blocking else handle.result())

    def _start_with_update(
        self,
        operation: _Operation,
        update: Named,
        args: Sequence[Any],
        id: str | None,
        wait: WorkflowUpdateStage,
        result_type: Any,
        timeout: Timeout,
    ) -> Answer[Any]:
        if operation.asked is not None:
            raise InvalidArgument("start_workflow_operation has been used; make a new one")
        target = workflow_target(operation.workflow, operation.options.get("result_type"))
        handler = handler_target("update", update, result_type)
        input = StartWorkflowUpdateWithStartInput(
            start_workflow_input=_input(target, operation.args, operation.options),
            update_workflow_input=UpdateWithStartUpdateWorkflowInput(
                update_id=id,
                update=handler.name,
                args=handler.check_args(args),
                wait_for_stage=check_stage(wait),
                headers={},
                ret_type=handler.result_type,
                timeout=timeout,
            ),
            operation=operation,
        )
        if self.outbound is None:
            return self._plain_start_with_update(input)
        return Chained(self.outbound.start_update_with_start_workflow(input))

    def _plain_start_with_update(self, input: StartWorkflowUpdateWithStartInput) -> Asked[Any]:
        target, options = workflow_of(input.start_workflow_input)
        update = input.update_workflow_input
        request = replace(
            self._request(target, input.start_workflow_input.args, options),
            update=update_request(self.workflows, update),
            update_wait=check_stage(update.wait_for_stage),
        )
        started, state = self.workflows.start_with_update(request)
        input.operation.asked = Asked(started.future, self._started(request, target), started.drop)

        def read(state: requests.UpdateState) -> Any:
            id, run_id = state.update_id, state.run_id
            return type(self)._update_type(
                self.workflows, id, options.id, run_id, update.ret_type, state
            )

        return dataclasses.replace(state, read=read)

    def _plain_handle(
        self, id: str, run_id: str | None, first_execution_run_id: str | None = None
    ) -> Any:
        return self._handle(id, run_id, first_execution_run_id, None)

    def _list(self, query: str | None, limit: int | None, page_size: int) -> Any:
        if self.outbound is None:
            return self._plain_list(query, limit, page_size)
        input = ListWorkflowsInput(query=query, limit=limit, page_size=page_size)
        return self.outbound.list_workflows(input)

    def _count(self, query: str | None) -> Answer[WorkflowExecutionCount]:
        if self.outbound is None:
            return self._plain_count(query)
        return Chained(self.outbound.count_workflows(CountWorkflowsInput(query=query)))

    def _plain_count(self, query: str | None) -> Asked[WorkflowExecutionCount]:
        return self.workflows.count(_query(query))

    def _handle(
        self,
        workflow_id: str,
        run_id: str | None,
        first_execution_run_id: str | None,
        result_type: Any,
    ) -> Any:
        return type(self)._handle_type(
            self.workflows,
            check_id("workflow_id", workflow_id),
            run_id=None if run_id is None else check_text("run_id", run_id),
            first_execution_run_id=first_execution_run_id,
            result_type=Any if result_type is None else result_type,
        )

    def _page(
        self, query: str | None, page_size: int, left: int | None, token: str
    ) -> Asked[requests.Listing]:
        if isinstance(page_size, bool) or not isinstance(page_size, int):
            raise InvalidArgument("page_size must be a number")
        if not 1 <= page_size <= PAGE_SIZE_MAX:
            raise InvalidArgument(f"page_size is {page_size}; it must be from 1 to {PAGE_SIZE_MAX}")
        size = page_size if left is None else min(page_size, left)
        return self.workflows.list_page(_query(query), size, token)

    def _execution(self, run: requests.RunInfo) -> WorkflowExecution:
        return WorkflowExecution.of(run, self.workflows.namespace, self.workflows.converter)


class AsyncWorkflows(_Workflows):
    """The methods of `Client` that are about workflows."""

    _handle_type = WorkflowHandle
    _update_type = WorkflowUpdateHandle

    async def start_workflow(
        self,
        workflow: Named | type,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartWorkflowOptionsDict],
    ) -> WorkflowHandle[Any]:
        """Start a workflow; returns when history keeps it for sure.

        Args:
            workflow: The run method of a class decorated with ``@workflow.defn``, the class, or
                the name of a workflow type.
            arg: Its one argument; use ``args`` for several.
            **options: See `StartWorkflowOptions`; ``id`` and ``task_queue`` must be given.

        Raises:
            InvalidArgument, PayloadTooLarge: nothing was started.
            WorkflowAlreadyStartedError: a run with this id is open, or was and the reuse policy
                forbids another.
            Unavailable: broker or history did not answer before the client's ``timeout``. Whether
                it was started is unknown: start it again with the same id.
        """
        handle: WorkflowHandle[Any] = await self._start(
            workflow, one_or_many(arg, args), options
        ).awaited()
        return handle

    async def execute_workflow(
        self,
        workflow: Named | type,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartWorkflowOptionsDict],
    ) -> Any:
        """Start a workflow and wait for its result; raises as `start_workflow` and
        `WorkflowHandle.result` do."""
        return await self._execute(workflow, one_or_many(arg, args), options).awaited()

    def get_workflow_handle(
        self,
        workflow_id: str,
        *,
        run_id: str | None = None,
        first_execution_run_id: str | None = None,
        result_type: Any = None,
    ) -> WorkflowHandle[Any]:
        """A workflow that was started before. Whether there is one is not asked here.

        Args:
            run_id: One of its runs; ``None``: whatever run is the current one.
            first_execution_run_id: `cancel` and `terminate` concern no other chain of runs.
            result_type: Type hint of the result.
        """
        handle: WorkflowHandle[Any] = self._handle(
            workflow_id, run_id, first_execution_run_id, result_type
        )
        return handle

    def get_workflow_handle_for(
        self,
        workflow: Named | type,
        workflow_id: str,
        *,
        run_id: str | None = None,
        first_execution_run_id: str | None = None,
    ) -> WorkflowHandle[Any]:
        """The same; the type of the result is that of ``workflow``."""
        return self.get_workflow_handle(
            workflow_id,
            run_id=run_id,
            first_execution_run_id=first_execution_run_id,
            result_type=workflow_target(workflow).result_type,
        )

    async def execute_update_with_start_workflow(
        self,
        update: Named,
        arg: Any = UNSET,
        *,
        start_workflow_operation: WithStartWorkflowOperation,
        args: Sequence[Any] = (),
        id: str | None = None,
        result_type: Any = None,
        timeout: Timeout = None,
    ) -> Any:
        """Start a workflow unless it runs, send it an update, and wait for the update's result.

        Raises as `start_workflow` and `WorkflowHandle.execute_update` do.
        """
        handle = await self._start_with_update(
            start_workflow_operation,
            update,
            one_or_many(arg, args),
            id,
            WorkflowUpdateStage.COMPLETED,
            result_type,
            timeout,
        ).awaited(timeout)
        return await handle.result()

    async def start_update_with_start_workflow(
        self,
        update: Named,
        arg: Any = UNSET,
        *,
        start_workflow_operation: WithStartWorkflowOperation,
        wait_for_stage: WorkflowUpdateStage,
        args: Sequence[Any] = (),
        id: str | None = None,
        result_type: Any = None,
        timeout: Timeout = None,
    ) -> WorkflowUpdateHandle[Any]:
        """The same, but return when the update has come as far as ``wait_for_stage``."""
        handle: WorkflowUpdateHandle[Any] = await self._start_with_update(
            start_workflow_operation,
            update,
            one_or_many(arg, args),
            id,
            wait_for_stage,
            result_type,
            timeout,
        ).awaited(timeout)
        return handle

    def list_workflows(
        self, query: str | None = None, *, limit: int | None = None, page_size: int = 200
    ) -> AsyncIterator[WorkflowExecution]:
        """Runs that match ``query``, newest start first, fetched as they are asked for.

        Args:
            query: See `tq_broker.model.listing`; ``None``: all runs of the namespace.
            limit: Not more than so many.
            page_size: How many are fetched at a time, 1 to 1000.

        Raises:
            InvalidArgument: the query is wrong; the message says where.
        """
        runs: AsyncIterator[WorkflowExecution] = self._list(query, limit, page_size)
        return runs

    async def _plain_list(
        self, query: str | None, limit: int | None, page_size: int
    ) -> AsyncIterator[WorkflowExecution]:
        left, token = limit, ""
        while left is None or left > 0:
            page = await self._page(query, page_size, left, token).awaited()
            for run in page.runs[:left]:
                yield self._execution(run)
            left = None if left is None else left - len(page.runs)
            token = page.page_token
            if not token:
                return

    async def count_workflows(self, query: str | None = None) -> WorkflowExecutionCount:
        """How many runs match ``query``. Raises as `list_workflows` does."""
        return await self._count(query).awaited()


class BlockingWorkflows(_Workflows):
    """The methods of `BlockingClient` that are about workflows; see `AsyncWorkflows`."""

    _handle_type = BlockingWorkflowHandle
    _update_type = BlockingWorkflowUpdateHandle

    def start_workflow(
        self,
        workflow: Named | type,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartWorkflowOptionsDict],
    ) -> BlockingWorkflowHandle[Any]:
        """Start a workflow; returns when history keeps it. See `Client.start_workflow`."""
        handle: BlockingWorkflowHandle[Any] = self._start(
            workflow, one_or_many(arg, args), options
        ).waited()
        return handle

    def execute_workflow(
        self,
        workflow: Named | type,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartWorkflowOptionsDict],
    ) -> Any:
        """Start a workflow and wait for its result. See `Client.execute_workflow`."""
        return self._execute(workflow, one_or_many(arg, args), options).waited()

    def get_workflow_handle(
        self,
        workflow_id: str,
        *,
        run_id: str | None = None,
        first_execution_run_id: str | None = None,
        result_type: Any = None,
    ) -> BlockingWorkflowHandle[Any]:
        """A workflow that was started before. See `Client.get_workflow_handle`."""
        handle: BlockingWorkflowHandle[Any] = self._handle(
            workflow_id, run_id, first_execution_run_id, result_type
        )
        return handle

    def get_workflow_handle_for(
        self,
        workflow: Named | type,
        workflow_id: str,
        *,
        run_id: str | None = None,
        first_execution_run_id: str | None = None,
    ) -> BlockingWorkflowHandle[Any]:
        """The same; the type of the result is that of ``workflow``."""
        return self.get_workflow_handle(
            workflow_id,
            run_id=run_id,
            first_execution_run_id=first_execution_run_id,
            result_type=workflow_target(workflow).result_type,
        )

    def execute_update_with_start_workflow(
        self,
        update: Named,
        arg: Any = UNSET,
        *,
        start_workflow_operation: BlockingWithStartWorkflowOperation,
        args: Sequence[Any] = (),
        id: str | None = None,
        result_type: Any = None,
        timeout: Timeout = None,
    ) -> Any:
        """Start a workflow unless it runs, send it an update, and wait for the update's result."""
        handle = self._start_with_update(
            start_workflow_operation,
            update,
            one_or_many(arg, args),
            id,
            WorkflowUpdateStage.COMPLETED,
            result_type,
            timeout,
        ).waited(timeout)
        return handle.result()

    def start_update_with_start_workflow(
        self,
        update: Named,
        arg: Any = UNSET,
        *,
        start_workflow_operation: BlockingWithStartWorkflowOperation,
        wait_for_stage: WorkflowUpdateStage,
        args: Sequence[Any] = (),
        id: str | None = None,
        result_type: Any = None,
        timeout: Timeout = None,
    ) -> BlockingWorkflowUpdateHandle[Any]:
        """The same, but return when the update has come as far as ``wait_for_stage``."""
        handle: BlockingWorkflowUpdateHandle[Any] = self._start_with_update(
            start_workflow_operation,
            update,
            one_or_many(arg, args),
            id,
            wait_for_stage,
            result_type,
            timeout,
        ).waited(timeout)
        return handle

    def list_workflows(
        self, query: str | None = None, *, limit: int | None = None, page_size: int = 200
    ) -> Iterator[WorkflowExecution]:
        """Runs that match ``query``, newest start first. See `Client.list_workflows`."""
        runs: Iterator[WorkflowExecution] = self._list(query, limit, page_size)
        return runs

    def _plain_list(
        self, query: str | None, limit: int | None, page_size: int
    ) -> Iterator[WorkflowExecution]:
        left, token = limit, ""
        while left is None or left > 0:
            page = self._page(query, page_size, left, token).waited()
            yield from map(self._execution, page.runs[:left])
            left = None if left is None else left - len(page.runs)
            token = page.page_token
            if not token:
                return

    def count_workflows(self, query: str | None = None) -> WorkflowExecutionCount:
        """How many runs match ``query``. See `Client.count_workflows`."""
        return self._count(query).waited()


def _options(target: Target, said: Mapping[str, Any]) -> StartWorkflowOptions:
    """What the call has said, completed by the workflow's decorator."""
    return make_options(completed(said, target.defaults))


def _input(
    target: Target, args: Sequence[Any], options: StartWorkflowOptionsDict
) -> StartWorkflowInput:
    return workflow_input(target, target.check_args(args), _options(target, options))


def _query(query: str | None) -> str:
    text = query or ""
    if not isinstance(text, str) or len(text.encode("utf-8", "replace")) > QUERY_BYTES_MAX:
        raise InvalidArgument(f"query must be a string of at most {QUERY_BYTES_MAX} bytes")
    return text
