"""The end of a client's chain of interceptors: it asks what a client without any asks at once.

Rules of this file: one implementation for both kinds of client. They differ in how they wait, which
is said once, by `OutboundEnd._do`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from tq_broker import chain
from tq_broker.client.core import ClientCore
from tq_broker.client.interceptors import (
    CancelActivityInput,
    CancelWorkflowInput,
    CompleteAsyncActivityInput,
    CountWorkflowsInput,
    DescribeWorkflowInput,
    FailAsyncActivityInput,
    FetchWorkflowHistoryEventsInput,
    HeartbeatAsyncActivityInput,
    Interceptor,
    ListWorkflowsInput,
    OutboundInterceptor,
    QueryWorkflowInput,
    ReportCancellationAsyncActivityInput,
    SignalWorkflowInput,
    StartActivityInput,
    StartWorkflowInput,
    StartWorkflowUpdateInput,
    StartWorkflowUpdateWithStartInput,
    TerminateWorkflowInput,
)
from tq_broker.client.request import Said, Start, start_of
from tq_broker.client.waiting import Asked, Timeout
from tq_broker.client.workflow_start import StartWorkflowOptions
from tq_broker.client.workflow_targets import Target, handler_target
from tq_broker.common import check_headers


class Intercepted(Protocol):
    """Either kind of client, as the end of its chain sees it: what it asks without the chain."""

    core: ClientCore
    _is_blocking: bool

    def _plain_activity(self, start: Start, args: Sequence[Any]) -> Asked[Any]: ...
    def _plain_cancel(self, activity_id: str, reason: str) -> Asked[None]: ...
    def _plain_token(self, task_token: bytes) -> Any: ...
    def _plain_handle(
        self, id: str, run_id: str | None, first_execution_run_id: str | None = None
    ) -> Any: ...
    def _plain_start(
        self, target: Target, args: Sequence[Any], options: StartWorkflowOptions
    ) -> Asked[Any]: ...
    def _plain_start_with_update(self, input: StartWorkflowUpdateWithStartInput) -> Asked[Any]: ...
    def _plain_list(self, query: str | None, limit: int | None, page_size: int) -> Any: ...
    def _plain_count(self, query: str | None) -> Asked[Any]: ...


def outbound_of(
    client: Intercepted, interceptors: Sequence[Interceptor]
) -> OutboundInterceptor | None:
    """The first of the chain; ``None`` without interceptors.

    Raises:
        InvalidArgument: an interceptor gave something that is no `OutboundInterceptor`.
    """
    if not interceptors:
        return None
    return chain.build(
        OutboundEnd(client),
        interceptors,
        lambda interceptor, next: interceptor.intercept_client(next),
        OutboundInterceptor,
    )


def activity_input(said: Said, args: Sequence[Any]) -> StartActivityInput:
    """What interceptors are told of a start."""
    headers = dict(said.options.headers or {})
    return chain.filled(
        StartActivityInput, said, said.options, said.start, args=args, headers=headers, said=said
    )


def workflow_input(
    target: Target, args: Sequence[Any], options: StartWorkflowOptions
) -> StartWorkflowInput:
    """The same of a workflow."""
    return chain.filled(
        StartWorkflowInput,
        options,
        workflow=target.name,
        args=args,
        headers=dict(options.headers or {}),
        ret_type=target.result_type,
        options=options,
        target=target,
    )


def workflow_of(input: StartWorkflowInput) -> tuple[Target, StartWorkflowOptions]:
    """The inverse: what is to be started. Raises `InvalidArgument`."""
    target = input.target
    if input.workflow != target.name:
        target = Target(input.workflow, input.ret_type)
    target = replace(target, result_type=input.ret_type)
    return target, chain.changed(input.options, input)


class OutboundEnd(OutboundInterceptor):
    """See the module."""

    def __init__(self, client: Intercepted) -> None:
        self._client = client

    async def _do(self, asked: Any, timeout: Timeout = None) -> Any:
        if self._client._is_blocking:
            return await chain.Pause(partial(asked.waited, timeout))
        return await asked.awaited(timeout)

    async def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        """The same of a method of a handle, which waits by itself."""
        if self._client._is_blocking:
            return await chain.Pause(partial(method, *args))
        return await method(*args)

    # --- activities -------------------------------------------------------------------------------

    async def start_activity(self, input: StartActivityInput) -> Any:
        said = input.said
        is_same = input.activity_type == said.activity_type
        said = Said(
            input.activity_type,
            chain.changed(said.options, input),
            chain.changed(said.start, input),
            said.definition if is_same else None,
        )
        start = start_of(self._client.core.names, said)
        return await self._do(self._client._plain_activity(start, input.args))

    async def cancel_activity(self, input: CancelActivityInput) -> None:
        await self._do(self._client._plain_cancel(input.activity_id, input.reason))

    async def complete_async_activity(self, input: CompleteAsyncActivityInput) -> None:
        await self._call(self._client._plain_token(input.task_token).complete, input.result)

    async def fail_async_activity(self, input: FailAsyncActivityInput) -> None:
        await self._call(self._client._plain_token(input.task_token).fail, input.error)

    async def heartbeat_async_activity(self, input: HeartbeatAsyncActivityInput) -> None:
        await self._call(self._client._plain_token(input.task_token).heartbeat, *input.details)

    async def report_cancellation_async_activity(
        self, input: ReportCancellationAsyncActivityInput
    ) -> None:
        handle = self._client._plain_token(input.task_token)
        await self._call(handle.report_cancellation, *input.details)

    # --- workflows --------------------------------------------------------------------------------

    async def start_workflow(self, input: StartWorkflowInput) -> Any:
        target, options = workflow_of(input)
        return await self._do(self._client._plain_start(target, input.args, options))

    async def start_update_with_start_workflow(
        self, input: StartWorkflowUpdateWithStartInput
    ) -> Any:
        asked = self._client._plain_start_with_update(input)
        return await self._do(asked, input.update_workflow_input.timeout)

    def list_workflows(self, input: ListWorkflowsInput) -> Any:
        return self._client._plain_list(input.query, input.limit, input.page_size)

    async def count_workflows(self, input: CountWorkflowsInput) -> Any:
        return await self._do(self._client._plain_count(input.query))

    # --- one workflow -----------------------------------------------------------------------------

    async def cancel_workflow(self, input: CancelWorkflowInput) -> None:
        handle = self._client._plain_handle(input.id, input.run_id, input.first_execution_run_id)
        await self._do(handle._plain_cancel(input.reason))

    async def terminate_workflow(self, input: TerminateWorkflowInput) -> None:
        handle = self._client._plain_handle(input.id, input.run_id, input.first_execution_run_id)
        await self._do(handle._plain_terminate(input.reason, input.args))

    async def describe_workflow(self, input: DescribeWorkflowInput) -> Any:
        handle = self._client._plain_handle(input.id, input.run_id)
        return await self._do(handle._plain_description())

    def fetch_workflow_history_events(self, input: FetchWorkflowHistoryEventsInput) -> Any:
        return self._client._plain_handle(input.id, input.run_id)._plain_events()

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:
        handle = self._client._plain_handle(input.id, input.run_id)
        target = handler_target("query", input.query, input.ret_type)
        headers = check_headers("headers", input.headers)
        condition = input.reject_condition
        return await self._do(handle._plain_query(target, input.args, condition, headers))

    async def signal_workflow(self, input: SignalWorkflowInput) -> None:
        handle = self._client._plain_handle(input.id, input.run_id)
        target = handler_target("signal", input.signal)
        headers = check_headers("headers", input.headers)
        await self._do(handle._plain_signal(target, input.args, headers))

    async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> Any:
        handle = self._client._plain_handle(input.id, input.run_id, input.first_execution_run_id)
        return await self._do(handle._plain_update(input), input.timeout)
