"""The chains of interceptors around one run: around what comes to its code, and what this asks for.

Rules of this file: it is a part of the replay. All of it runs on the run's loop, in the order in
which the code runs, and so does the same at each replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from tq_broker import chain
from tq_broker.exceptions import InvalidArgument
from tq_broker.worker.interceptors import (
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    HandleQueryInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    SignalChildWorkflowInput,
    SignalExternalWorkflowInput,
    StartActivityInput,
    StartChildWorkflowInput,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)
from tq_broker.worker.replay_activities import ReplayActivities
from tq_broker.worker.replay_children import ReplayChildren
from tq_broker.worker.replay_external import ReplayExternal
from tq_broker.worker.replay_handlers import ReplayHandlers
from tq_broker.worker.replay_local import ReplayLocal
from tq_broker.worker.replay_runtime import ReplayRuntime
from tq_broker.worker.situation import Situation
from tq_broker.workflow.calls import ActivityCall, ChildCall, Continuation, LocalActivityCall
from tq_broker.workflow.errors import ContinueAsNewError
from tq_broker.workflow.facts import Info
from tq_broker.workflow.handles import ActivityHandle, ChildWorkflowHandle

Classes = tuple[type[WorkflowInboundInterceptor], ...]


@dataclass(frozen=True, slots=True)
class WorkflowInterception:
    """What the interceptors of a worker have for workflows.

    Attributes:
        classes: An interceptor of each is made for each run, the first outermost; empty: none.
        extern_functions: What ``workflow.extern_functions`` returns.
    """

    classes: Classes = ()
    extern_functions: Mapping[str, Callable[..., Any]] | None = None

    @classmethod
    def of(cls, interceptors: Sequence[Interceptor]) -> WorkflowInterception:
        """Ask each of them. Raises `InvalidArgument` if one gives no class of interceptors."""
        given = WorkflowInterceptorClassInput()
        found = []
        for interceptor in interceptors:
            kind = interceptor.workflow_interceptor_class(given)
            if kind is None:
                continue
            if not (isinstance(kind, type) and issubclass(kind, WorkflowInboundInterceptor)):
                raise InvalidArgument(
                    f"interceptors: {type(interceptor).__name__}.workflow_interceptor_class gave"
                    f" {kind!r:.80}; it must be a subclass of WorkflowInboundInterceptor, or None"
                )
            found.append(kind)
        return cls(tuple(found), given.unsafe_extern_functions)


NONE = WorkflowInterception()


class InterceptedRuntime(ReplayRuntime):
    """The runtime of a run whose code asks through a chain."""

    def __init__(
        self,
        situation: Situation,
        *,
        activities: ReplayActivities,
        local: ReplayLocal,
        external: ReplayExternal,
        children: ReplayChildren,
        handlers: ReplayHandlers,
        **parts: Any,
    ) -> None:
        super().__init__(
            situation,
            activities=activities,
            local=local,
            external=external,
            children=children,
            handlers=handlers,
            **parts,
        )
        self._namespace = situation.namespace
        self.outbound: WorkflowOutboundInterceptor = _OutboundEnd(
            self, activities, local, external, children
        )
        self.start_activity = self._start_activity
        self.start_local_activity = self._start_local_activity
        self.start_child = self._start_child
        children.signaller = self._signal_child

    def intercept(self, interception: WorkflowInterception) -> WorkflowInboundInterceptor:
        """Make the chains; from here on the code asks through them. Returns what is to be told
        of all that comes to the code."""
        self.extern_functions = interception.extern_functions or {}
        first = chain.build(
            _InboundEnd(self, self._handlers),
            interception.classes,
            lambda kind, next: kind(next),
            WorkflowInboundInterceptor,
        )
        first.init(self.outbound)
        return first

    @property
    def info(self) -> Info:
        return self.outbound.info()

    @property
    def own_info(self) -> Info:
        """What the end of the chain says."""
        return super().info

    def _start_activity(self, call: ActivityCall) -> ActivityHandle[Any]:
        return self.outbound.start_activity(_activity_input(StartActivityInput, call))

    def _start_local_activity(self, call: LocalActivityCall) -> ActivityHandle[Any]:
        return self.outbound.start_local_activity(_activity_input(StartLocalActivityInput, call))

    async def _start_child(self, call: ChildCall) -> ChildWorkflowHandle[Any]:
        input = chain.filled(
            StartChildWorkflowInput,
            call,
            workflow=call.workflow_type,
            ret_type=call.result_type,
            headers=dict(call.headers),
            call=call,
        )
        return await self.outbound.start_child_workflow(input)

    async def _signal_child(self, workflow_id: str, signal: str, args: Sequence[Any]) -> None:
        await self.outbound.signal_child_workflow(
            SignalChildWorkflowInput(
                signal=signal, args=args, child_workflow_id=workflow_id, headers={}
            )
        )

    async def signal_external(
        self, workflow_id: str, run_id: str | None, signal: str, args: Sequence[Any]
    ) -> None:
        await self.outbound.signal_external_workflow(
            SignalExternalWorkflowInput(
                signal=signal,
                args=args,
                namespace=self._namespace,
                workflow_id=workflow_id,
                workflow_run_id=run_id,
                headers={},
            )
        )

    def continue_as_new(self, continuation: Continuation) -> NoReturn:
        self._situation.check("continue as new")
        self.outbound.continue_as_new(
            chain.filled(
                ContinueAsNewInput,
                continuation,
                workflow=continuation.workflow_type,
                call=continuation,
            )
        )


def _activity_input(kind: type[Any], call: ActivityCall | LocalActivityCall) -> Any:
    return chain.filled(
        kind,
        call,
        call.options,
        activity=call.activity_type,
        ret_type=call.result_type,
        headers=dict(call.options.headers or {}),
        call=call,
    )


def _activity_call(input: StartActivityInput | StartLocalActivityInput) -> Any:
    return replace(
        chain.changed(input.call, input),
        activity_type=input.activity,
        result_type=input.ret_type,
        options=chain.changed(input.call.options, input),
    )


class _OutboundEnd(WorkflowOutboundInterceptor):
    def __init__(
        self,
        runtime: InterceptedRuntime,
        activities: ReplayActivities,
        local: ReplayLocal,
        external: ReplayExternal,
        children: ReplayChildren,
    ) -> None:
        self._runtime = runtime
        self._activities = activities
        self._local = local
        self._external = external
        self._children = children

    def info(self) -> Info:
        return self._runtime.own_info

    def start_activity(self, input: StartActivityInput) -> ActivityHandle[Any]:
        return self._activities.start(_activity_call(input))

    def start_local_activity(self, input: StartLocalActivityInput) -> ActivityHandle[Any]:
        return self._local.start(_activity_call(input))

    async def start_child_workflow(
        self, input: StartChildWorkflowInput
    ) -> ChildWorkflowHandle[Any]:
        call = chain.changed(input.call, input)
        return await self._children.start(
            replace(call, workflow_type=input.workflow, result_type=input.ret_type)
        )

    async def signal_child_workflow(self, input: SignalChildWorkflowInput) -> None:
        await self._children.signal(
            input.child_workflow_id, input.signal, input.args, headers=input.headers
        )

    async def signal_external_workflow(self, input: SignalExternalWorkflowInput) -> None:
        await self._external.signal(
            input.workflow_id,
            input.workflow_run_id,
            input.signal,
            input.args,
            headers=input.headers,
        )

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:
        following = chain.changed(input.call, input)
        raise ContinueAsNewError(replace(following, workflow_type=input.workflow))


class _InboundEnd(WorkflowInboundInterceptor):
    def __init__(self, runtime: InterceptedRuntime, handlers: ReplayHandlers) -> None:
        self._runtime = runtime
        self._handlers = handlers

    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        if not isinstance(outbound, WorkflowOutboundInterceptor):
            raise InvalidArgument(
                f"interceptors: init got {outbound!r:.80}; it must be a WorkflowOutboundInterceptor"
            )
        self._runtime.outbound = outbound

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        return await input.run_fn(self._handlers.instance, *input.args)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        await self._handlers.call("signal", input.signal, input.args)

    async def handle_query(self, input: HandleQueryInput) -> Any:
        return await self._handlers.call("query", input.query, input.args)

    def handle_update_validator(self, input: HandleUpdateInput) -> None:
        self._handlers.validate(input.update, input.args)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:
        return await self._handlers.call("update", input.update, input.args)
