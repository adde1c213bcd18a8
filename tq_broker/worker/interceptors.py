"""Interceptors of workers: code around activities and workflows, and around what these ask for.

Names and meanings are those of Temporal's Python SDK. An `Interceptor` puts an object of its own
before the next one of a chain: ``Inbound`` stands around what is called here, ``Outbound`` around
what it calls. Every method hands its input on to ``next``, changed or not; what is not overridden
changes nothing. Who has no interceptors has no chain.

Rules of this file: it declares, and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

from tq_broker import activity
from tq_broker.common import ParentClosePolicy, RetryPolicy, Route, WorkflowIDReusePolicy
from tq_broker.workflow.calls import (
    ActivityCall,
    ActivityCancellationType,
    ChildCall,
    ChildWorkflowCancellationType,
    Continuation,
    LocalActivityCall,
)
from tq_broker.workflow.facts import Info
from tq_broker.workflow.handles import ActivityHandle, ChildWorkflowHandle

# --- activities -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ExecuteActivityInput:
    """An attempt that is to run. ``args`` are decoded; ``headers`` are for reading."""

    fn: Callable[..., Any]
    args: Sequence[Any]
    headers: Mapping[str, str]


class ActivityInboundInterceptor:
    """Around one attempt of an activity; made anew for each.

    Of an asynchronous activity it runs on the activities' event loop, of a synchronous one in the
    thread or process of the activity, where it may block, and await nothing but ``next``.
    """

    def __init__(self, next: ActivityInboundInterceptor) -> None:
        self.next = next

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        """Called first. To intercept what the activity calls, hand an interceptor around
        ``outbound`` on."""
        self.next.init(outbound)

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        """Run the activity; what this returns or raises is the attempt's outcome."""
        return await self.next.execute_activity(input)


class ActivityOutboundInterceptor:
    """Around what an activity calls."""

    def __init__(self, next: ActivityOutboundInterceptor) -> None:
        self.next = next

    def info(self) -> activity.Info:
        """``activity.info()``."""
        return self.next.info()

    def heartbeat(self, *details: Any) -> None:
        """``activity.heartbeat()``."""
        self.next.heartbeat(*details)


# --- what comes to a workflow ---------------------------------------------------------------------


@dataclass(kw_only=True)
class ExecuteWorkflowInput:
    """A run that begins. ``run_fn`` takes the workflow's object and ``args``."""

    type: type
    run_fn: Callable[..., Any]
    args: Sequence[Any]
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class HandleSignalInput:
    """A signal that has come. Of a dynamic handler ``args`` are `RawValue`, here and below."""

    signal: str
    args: Sequence[Any]
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class HandleQueryInput:
    """A query that has come."""

    id: str
    query: str
    args: Sequence[Any]
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class HandleUpdateInput:
    """An update that has come."""

    id: str
    update: str
    args: Sequence[Any]
    headers: Mapping[str, str]


class WorkflowInboundInterceptor:
    """Around one run; made anew for each, and for each replay of it.

    It is workflow code: deterministic, on the run's event loop, under the same guard. What is for
    the world outside (a log line, a metric) is not to be done when
    ``workflow.unsafe.is_replaying()``.
    """

    def __init__(self, next: WorkflowInboundInterceptor) -> None:
        self.next = next

    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        """Called first. To intercept what the workflow calls, hand an interceptor around
        ``outbound`` on."""
        self.next.init(outbound)

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        """Run the workflow; what this returns or raises is how the run ends."""
        return await self.next.execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        """Handle a signal for which there is a handler."""
        await self.next.handle_signal(input)

    async def handle_query(self, input: HandleQueryInput) -> Any:
        """Answer a query; it may await nothing but ``next``, and must change nothing."""
        return await self.next.handle_query(input)

    def handle_update_validator(self, input: HandleUpdateInput) -> None:
        """Refuse an update by raising. Only called for handlers with a validator, and not when an
        update that was accepted is replayed."""
        self.next.handle_update_validator(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:
        """Handle an update that was accepted."""
        return await self.next.handle_update_handler(input)


# --- what a workflow asks for ---------------------------------------------------------------------


@dataclass(kw_only=True)
class StartActivityInput:
    """An activity to schedule. ``headers`` are those of the call; the workflow's own go with it,
    too. Options without a field here are in ``call``, and travel on unchanged."""

    activity: str
    args: Sequence[Any]
    activity_id: str | None
    task_queue: str | None
    route: Route | None
    priority: int | None
    retry_policy: RetryPolicy | None
    start_to_close_timeout: timedelta | None
    schedule_to_start_timeout: timedelta | None
    schedule_to_close_timeout: timedelta | None
    heartbeat_timeout: timedelta | None
    rate_limit_key: str | None
    cancellation_type: ActivityCancellationType
    headers: Mapping[str, str]
    summary: str
    ret_type: Any
    call: ActivityCall = field(repr=False)


@dataclass(kw_only=True)
class StartLocalActivityInput:
    """A local activity to run; as `StartActivityInput`."""

    activity: str
    args: Sequence[Any]
    activity_id: str | None
    retry_policy: RetryPolicy | None
    start_to_close_timeout: timedelta | None
    schedule_to_start_timeout: timedelta | None
    schedule_to_close_timeout: timedelta | None
    local_retry_threshold: timedelta
    cancellation_type: ActivityCancellationType
    headers: Mapping[str, str]
    ret_type: Any
    call: LocalActivityCall = field(repr=False)


@dataclass(kw_only=True)
class StartChildWorkflowInput:
    """A child to start; ``headers`` and ``call`` as of `StartActivityInput`."""

    workflow: str
    args: Sequence[Any]
    id: str
    task_queue: str | None
    cancellation_type: ChildWorkflowCancellationType
    parent_close_policy: ParentClosePolicy
    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    id_reuse_policy: WorkflowIDReusePolicy
    retry_policy: RetryPolicy | None
    cron_schedule: str
    memo: Mapping[str, Any]
    priority: int | None
    headers: Mapping[str, str]
    static_summary: str
    static_details: str
    ret_type: Any
    call: ChildCall = field(repr=False)


@dataclass(kw_only=True)
class SignalChildWorkflowInput:
    """A signal to a child."""

    signal: str
    args: Sequence[Any]
    child_workflow_id: str
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class SignalExternalWorkflowInput:
    """A signal to another workflow; ``workflow_run_id`` ``None``: to its current run."""

    signal: str
    args: Sequence[Any]
    namespace: str
    workflow_id: str
    workflow_run_id: str | None
    headers: Mapping[str, str]


@dataclass(kw_only=True)
class ContinueAsNewInput:
    """The run that is to follow; ``None``: as this one has it. It has this one's headers."""

    workflow: str | None
    args: Sequence[Any]
    task_queue: str | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    backoff: timedelta | None
    retry_policy: RetryPolicy | None
    memo: Mapping[str, Any] | None
    call: Continuation = field(repr=False)


class WorkflowOutboundInterceptor:
    """Around what a workflow asks for; it is workflow code, too."""

    def __init__(self, next: WorkflowOutboundInterceptor) -> None:
        self.next = next

    def info(self) -> Info:
        """``workflow.info()``."""
        return self.next.info()

    def start_activity(self, input: StartActivityInput) -> ActivityHandle[Any]:
        """``workflow.start_activity`` and ``execute_activity``."""
        return self.next.start_activity(input)

    def start_local_activity(self, input: StartLocalActivityInput) -> ActivityHandle[Any]:
        """``workflow.start_local_activity`` and ``execute_local_activity``."""
        return self.next.start_local_activity(input)

    async def start_child_workflow(
        self, input: StartChildWorkflowInput
    ) -> ChildWorkflowHandle[Any]:
        """``workflow.start_child_workflow`` and ``execute_child_workflow``."""
        return await self.next.start_child_workflow(input)

    async def signal_child_workflow(self, input: SignalChildWorkflowInput) -> None:
        """``signal`` of a child's handle."""
        await self.next.signal_child_workflow(input)

    async def signal_external_workflow(self, input: SignalExternalWorkflowInput) -> None:
        """``signal`` of an external workflow's handle."""
        await self.next.signal_external_workflow(input)

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:
        """``workflow.continue_as_new``."""
        self.next.continue_as_new(input)


# --- the interceptor ------------------------------------------------------------------------------


@dataclass(kw_only=True)
class WorkflowInterceptorClassInput:
    """``unsafe_extern_functions``: put functions here that workflow interceptors are to find in
    ``workflow.extern_functions()``."""

    unsafe_extern_functions: MutableMapping[str, Callable[..., Any]] = field(default_factory=dict)


class Interceptor:
    """Given to a worker (``interceptors=``), or to a client whose workers are to have it, too."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        """An interceptor around ``next``, for one attempt; ``next`` itself to leave it alone."""
        return next

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor] | None:
        """The class to make an interceptor of for each run; ``None`` to leave workflows alone.

        Called once, when the worker is made.
        """
        return None
