"""Interceptors of clients: code around everything that a client asks for.

Names and meanings are those of Temporal's Python SDK. An `Interceptor` puts an
`OutboundInterceptor` of its own before the next one; every method hands its input on to ``next``,
changed or not. The same interceptors serve both kinds of client. With a `BlockingClient` the
coroutines run on the caller's thread, without an event loop: they may block, and await nothing but
``next``.

Rules of this file: it declares, and does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tq_broker.client.request import Said
from tq_broker.client.waiting import Timeout
from tq_broker.client.workflow_start import StartWorkflowOptions
from tq_broker.client.workflow_targets import Target
from tq_broker.common import (
    ActivityIDConflictPolicy,
    QueryRejectCondition,
    RetryPolicy,
    Route,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)

# --- activities -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class StartActivityInput:
    """An activity to start, with what its decorator says. Options without a field here are in
    ``said``, and travel on unchanged."""

    activity_type: str
    args: Sequence[Any]
    id: str | None
    task_queue: str | None
    route: Route | None
    priority: int | None
    retry_policy: RetryPolicy | None
    start_to_close_timeout: timedelta | None
    schedule_to_start_timeout: timedelta | None
    schedule_to_close_timeout: timedelta | None
    heartbeat_timeout: timedelta | None
    rate_limit_key: str | None
    id_conflict_policy: ActivityIDConflictPolicy
    id_retention: timedelta
    start_delay: timedelta | None
    reply_to: str | None
    wait_result: bool
    headers: Mapping[str, str]
    result_type: Any
    said: Said = field(repr=False)


@dataclass(kw_only=True)
class CancelActivityInput:
    """An activity to cancel."""

    activity_id: str
    reason: str


@dataclass(kw_only=True)
class CompleteAsyncActivityInput:
    """An attempt that has ended well."""

    task_token: bytes
    result: Any


@dataclass(kw_only=True)
class FailAsyncActivityInput:
    """An attempt that has failed."""

    task_token: bytes
    error: BaseException


@dataclass(kw_only=True)
class HeartbeatAsyncActivityInput:
    """An attempt that lives."""

    task_token: bytes
    details: Sequence[Any]


@dataclass(kw_only=True)
class ReportCancellationAsyncActivityInput:
    """An attempt that has honoured a cancellation."""

    task_token: bytes
    details: Sequence[Any]


# --- workflows ------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class StartWorkflowInput:
    """A workflow to start. Options without a field here are in ``options``, and travel on
    unchanged."""

    workflow: str
    args: Sequence[Any]
    id: str
    task_queue: str
    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    id_reuse_policy: WorkflowIDReusePolicy
    id_conflict_policy: WorkflowIDConflictPolicy
    retry_policy: RetryPolicy | None
    cron_schedule: str
    memo: Mapping[str, Any] | None
    static_summary: str | None
    static_details: str | None
    start_delay: timedelta | None
    start_signal: str | None
    start_signal_args: Sequence[Any]
    priority: int | None
    headers: Mapping[str, str]
    ret_type: Any
    options: StartWorkflowOptions = field(repr=False)
    target: Target = field(repr=False)


@dataclass(kw_only=True)
class CancelWorkflowInput:
    """A workflow to cancel."""

    id: str
    run_id: str | None
    first_execution_run_id: str | None
    reason: str


@dataclass(kw_only=True)
class TerminateWorkflowInput:
    """A workflow to terminate; ``args`` are the details."""

    id: str
    run_id: str | None
    first_execution_run_id: str | None
    args: Sequence[Any]
    reason: str | None


@dataclass(kw_only=True)
class DescribeWorkflowInput:
    """A workflow to describe."""

    id: str
    run_id: str | None


@dataclass(kw_only=True)
class FetchWorkflowHistoryEventsInput:
    """A workflow whose history is to be fetched."""

    id: str
    run_id: str | None


@dataclass(kw_only=True)
class QueryWorkflowInput:
    """A query to send."""

    id: str
    run_id: str | None
    query: str
    args: Sequence[Any]
    reject_condition: QueryRejectCondition | None
    headers: Mapping[str, str]
    ret_type: Any


@dataclass(kw_only=True)
class SignalWorkflowInput:
    """A signal to send."""

    id: str
    run_id: str | None
    signal: str
    args: Sequence[Any]
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class StartWorkflowUpdateInput:
    """An update to send; ``wait_for_stage`` is a `WorkflowUpdateStage`."""

    id: str
    run_id: str | None
    first_execution_run_id: str | None
    update_id: str | None
    update: str
    args: Sequence[Any]
    wait_for_stage: int
    headers: Mapping[str, str]
    ret_type: Any
    timeout: Timeout


@dataclass(kw_only=True)
class UpdateWithStartUpdateWorkflowInput:
    """The update of an update-with-start."""

    update_id: str | None
    update: str
    args: Sequence[Any]
    wait_for_stage: int
    headers: Mapping[str, str]
    ret_type: Any
    timeout: Timeout


@dataclass(kw_only=True)
class StartWorkflowUpdateWithStartInput:
    """An update, and the workflow to start for it unless it runs. ``operation`` is the caller's."""

    start_workflow_input: StartWorkflowInput
    update_workflow_input: UpdateWithStartUpdateWorkflowInput
    operation: Any = field(repr=False)


@dataclass(kw_only=True)
class ListWorkflowsInput:
    """Workflows to list."""

    query: str | None
    limit: int | None
    page_size: int


@dataclass(kw_only=True)
class CountWorkflowsInput:
    """Workflows to count."""

    query: str | None


# --- the chain ------------------------------------------------------------------------------------


class OutboundInterceptor:
    """Around what a client asks for. Handles and iterators are of the client's kind."""

    def __init__(self, next: OutboundInterceptor) -> None:
        self.next = next

    async def start_activity(self, input: StartActivityInput) -> Any:
        """``start_activity``, ``execute_activity``, and each one of ``start_activities``; returns
        a handle."""
        return await self.next.start_activity(input)

    async def cancel_activity(self, input: CancelActivityInput) -> None:
        """``cancel_activity``, and ``cancel`` of a handle."""
        await self.next.cancel_activity(input)

    async def complete_async_activity(self, input: CompleteAsyncActivityInput) -> None:
        """``complete`` of the handle of a task token."""
        await self.next.complete_async_activity(input)

    async def fail_async_activity(self, input: FailAsyncActivityInput) -> None:
        """``fail`` of the handle of a task token."""
        await self.next.fail_async_activity(input)

    async def heartbeat_async_activity(self, input: HeartbeatAsyncActivityInput) -> None:
        """``heartbeat`` of the handle of a task token."""
        await self.next.heartbeat_async_activity(input)

    async def report_cancellation_async_activity(
        self, input: ReportCancellationAsyncActivityInput
    ) -> None:
        """``report_cancellation`` of the handle of a task token."""
        await self.next.report_cancellation_async_activity(input)

    async def start_workflow(self, input: StartWorkflowInput) -> Any:
        """``start_workflow`` and ``execute_workflow``; returns a handle."""
        return await self.next.start_workflow(input)

    async def cancel_workflow(self, input: CancelWorkflowInput) -> None:
        """``cancel`` of a workflow's handle."""
        await self.next.cancel_workflow(input)

    async def terminate_workflow(self, input: TerminateWorkflowInput) -> None:
        """``terminate`` of a workflow's handle."""
        await self.next.terminate_workflow(input)

    async def describe_workflow(self, input: DescribeWorkflowInput) -> Any:
        """``describe`` of a workflow's handle."""
        return await self.next.describe_workflow(input)

    def fetch_workflow_history_events(self, input: FetchWorkflowHistoryEventsInput) -> Any:
        """``fetch_history_events`` and ``fetch_history`` of a workflow's handle; returns an
        iterator."""
        return self.next.fetch_workflow_history_events(input)

    async def query_workflow(self, input: QueryWorkflowInput) -> Any:
        """``query`` of a workflow's handle."""
        return await self.next.query_workflow(input)

    async def signal_workflow(self, input: SignalWorkflowInput) -> None:
        """``signal`` of a workflow's handle."""
        await self.next.signal_workflow(input)

    async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> Any:
        """``start_update`` and ``execute_update`` of a workflow's handle; returns a handle."""
        return await self.next.start_workflow_update(input)

    async def start_update_with_start_workflow(
        self, input: StartWorkflowUpdateWithStartInput
    ) -> Any:
        """``start_update_with_start_workflow`` and ``execute_update_with_start_workflow``; returns
        a handle."""
        return await self.next.start_update_with_start_workflow(input)

    def list_workflows(self, input: ListWorkflowsInput) -> Any:
        """``list_workflows``; returns an iterator."""
        return self.next.list_workflows(input)

    async def count_workflows(self, input: CountWorkflowsInput) -> Any:
        """``count_workflows``."""
        return await self.next.count_workflows(input)


class Interceptor:
    """Given to a client (``interceptors=``). One that is an interceptor of workers, too
    (`tq_broker.worker.Interceptor`), also serves the workers made with the client."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        """An interceptor around ``next``; called once, when the client is made."""
        return next
