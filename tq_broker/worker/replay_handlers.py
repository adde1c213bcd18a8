"""Signals, updates and queries of a run, and the handlers that take them."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Union

from tq_broker import chain
from tq_broker.common import RawValue
from tq_broker.exceptions import ApplicationError, Malformed
from tq_broker.model import payload as payloads
from tq_broker.model.commands import AcceptUpdate, CompleteUpdate, RejectUpdate
from tq_broker.model.events import (
    WorkflowExecutionSignaled,
    WorkflowExecutionUpdateAccepted,
)
from tq_broker.model.payload import Payload
from tq_broker.model.workflow_tasks import QueryRequest, UpdateRequest
from tq_broker.worker.ending import FailureTypes, is_failure
from tq_broker.worker.interceptors import (
    HandleQueryInput,
    HandleSignalInput,
    HandleUpdateInput,
    WorkflowInboundInterceptor,
)
from tq_broker.worker.loop import WorkflowLoop
from tq_broker.worker.situation import Situation, log
from tq_broker.workflow.definition import (
    Handler,
    Handlers,
    HandlerUnfinishedPolicy,
    Kind,
    WorkflowDefinition,
)
from tq_broker.workflow.errors import (
    ContinueAsNewError,
    UnfinishedSignalHandlersWarning,
    UnfinishedUpdateHandlersWarning,
)
from tq_broker.workflow.facts import UpdateInfo

update_info: ContextVar[UpdateInfo | None] = ContextVar("tq_broker_update", default=None)
"""The update that the current task handles."""

_Update = Union[UpdateRequest, WorkflowExecutionUpdateAccepted]  # noqa: UP007
TopLevel = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[Any]"]


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A handler at work."""

    what: str
    policy: HandlerUnfinishedPolicy


class ReplayHandlers:
    """The handlers of one run.

    Args:
        spawn: Starts a task whose exceptions are those of the workflow.
    """

    def __init__(
        self,
        situation: Situation,
        loop: WorkflowLoop,
        definition: WorkflowDefinition,
        failure_types: FailureTypes,
        spawn: TopLevel,
    ) -> None:
        self._situation = situation
        self._loop = loop
        self._failure_types = failure_types
        self._spawn = spawn
        self.instance: Any = None
        self.inbound: WorkflowInboundInterceptor | None = None
        """Who is told of what has come, if there are interceptors."""
        self._defined: dict[Kind, Handlers] = {
            "signal": definition.signals,
            "query": definition.queries,
            "update": definition.updates,
        }
        self._set: dict[tuple[Kind, str | None], Handler | None] = {}
        self._waiting: list[WorkflowExecutionSignaled] = []
        self._unreported: list[WorkflowExecutionSignaled] = []
        self._signals: dict[_Work, None] = {}
        self._updates: dict[_Work, None] = {}

    def serve(self, instance: Any) -> None:
        """``instance`` is the object whose methods are the handlers."""
        self.instance = instance

    # --- the tables -----------------------------------------------------------------------------

    def find(self, kind: Kind, name: str | None) -> Handler | None:
        """The handler of its own that ``name`` has."""
        key = (kind, name)
        return self._set[key] if key in self._set else self._defined[kind].get(name)

    def handler(self, kind: Kind, name: str | None) -> Callable[..., Any] | None:
        """The same, as a function."""
        found = self.find(kind, name)
        return None if found is None else self._bound(found, found.fn)

    def set_handler(self, kind: Kind, name: str | None, handler: Handler | None) -> None:
        """Set or remove one; a signal's gets what has waited for it."""
        self._situation.check(f"set a {kind} handler")
        self._set[kind, name] = handler
        if kind == "signal" and handler is not None:
            waiting, self._waiting = self._waiting, []
            for event in waiting:
                self.signal(event)

    def names(self, kind: Kind) -> list[str]:
        """What has a handler of its own."""
        known = {name for name in self._defined[kind] if name is not None}
        known |= {name for k, name in self._set if k == kind and name is not None}
        return sorted(name for name in known if self.find(kind, name) is not None)

    def _unknown(self, kind: Kind, name: str) -> str:
        return (
            f"workflow {self._situation.run.workflow_id!r} has no handler for {kind} {name!r};"
            f" known are: {', '.join(self.names(kind)) or 'none'}"
        )

    def _bound(self, handler: Handler, fn: Callable[..., Any]) -> Callable[..., Any]:
        if not handler.bound:
            return fn
        bound: Callable[..., Any] = fn.__get__(self.instance)
        return bound

    def _serving(self, kind: Kind, name: str) -> Handler | None:
        found = self.find(kind, name)
        return self.find(kind, None) if found is None else found

    def _arguments(self, handler: Handler, name: str, payload: Payload) -> list[Any]:
        if handler.name is not None:
            return self._situation.conversion.arguments(payload, handler, dynamic=False)
        converter = self._situation.conversion.converter
        raws = payloads.load_args(payload, converter)
        return [name, [RawValue(bytes(raw), converter.payload_converter) for raw in raws]]

    # --- signals --------------------------------------------------------------------------------

    def signal(self, event: WorkflowExecutionSignaled) -> None:
        """It has come: handle it, or keep it until it has a handler."""
        handler = self._serving("signal", event.signal_name)
        if handler is None:
            self._waiting.append(event)
            if not self._situation.replaying:
                self._unreported.append(event)
            return
        try:
            args = self._arguments(handler, event.signal_name, event.input)
        except Malformed as error:
            # Whoever sent it is gone, and the workflow is not to suffer for it.
            if not self._situation.replaying:
                log.error("signal %r is dropped: %s", event.signal_name, error)
            return
        work = _Work(f"signal {event.signal_name!r}", handler.unfinished_policy)
        self._signals[work] = None
        self._spawn(self._handle_signal(work, handler, args, event))

    def warn_of_unhandled(self) -> None:
        """A turn ends: say which signals have come in it that nobody handles so far."""
        events, self._unreported = self._unreported, []
        for event in events:
            if event in self._waiting:
                log.warning(
                    "signal kept until it has a handler: %s",
                    self._unknown("signal", event.signal_name),
                )

    async def _handle_signal(
        self, work: _Work, handler: Handler, args: list[Any], event: WorkflowExecutionSignaled
    ) -> None:
        try:
            if self.inbound is not None:
                await self.inbound.handle_signal(
                    HandleSignalInput(
                        signal=event.signal_name,
                        args=_intercepted(handler, args),
                        headers=dict(event.headers),
                    )
                )
                return
            result = self._bound(handler, handler.fn)(*args)
            if handler.is_async:
                await result
        finally:
            self._signals.pop(work, None)

    # --- updates --------------------------------------------------------------------------------

    def update(self, request: UpdateRequest | WorkflowExecutionUpdateAccepted) -> None:
        """One has come; or, in replay, one that was accepted when the history was written."""
        self._spawn(self._handle_update(request))

    async def _handle_update(
        self, request: UpdateRequest | WorkflowExecutionUpdateAccepted
    ) -> None:
        if isinstance(request, WorkflowExecutionUpdateAccepted):
            name, accepted = request.update_name, True
        else:
            name, accepted = request.name, False
        update_id, ledger = request.update_id, self._situation.ledger
        update_info.set(UpdateInfo(id=update_id, name=name))
        try:
            handler, args = self._admit(name, request, validate=not accepted)
        except Exception as error:  # of whatever kind: the update is refused, the run goes on
            failure = self._situation.conversion.failure(error)
            ledger.add(RejectUpdate(update_id=update_id, failure=failure))
            return
        ledger.add(AcceptUpdate(update_id=update_id))
        work = _Work(f"update {name!r} ({update_id})", handler.unfinished_policy)
        self._updates[work] = None
        try:
            if self.inbound is not None:
                input = self._update_input(name, request, handler, args)
                result = await self.inbound.handle_update_handler(input)
            else:
                result = self._bound(handler, handler.fn)(*args)
                if handler.is_async:
                    result = await result
            done = CompleteUpdate(
                update_id=update_id, result=self._situation.conversion.dump(result)
            )
        except (Exception, asyncio.CancelledError) as error:
            if not isinstance(error, asyncio.CancelledError) and not is_failure(
                error, self._failure_types
            ):
                raise
            failure = self._situation.conversion.failure(error)
            done = CompleteUpdate(update_id=update_id, failure=failure)
        except ContinueAsNewError:
            raise
        finally:
            self._updates.pop(work, None)
        ledger.add(done)

    def _admit(self, name: str, request: _Update, *, validate: bool) -> tuple[Handler, list[Any]]:
        handler = self._serving("update", name)
        if handler is None:
            raise ApplicationError(
                self._unknown("update", name),
                type="UpdateNotFound",
                non_retryable=True,
            )
        args = self._arguments(handler, name, request.input)
        if validate and handler.validator is not None:
            with self._situation.read_only("update validator"):
                if self.inbound is None:
                    self._bound(handler, handler.validator)(*args)
                else:
                    input = self._update_input(name, request, handler, args)
                    self.inbound.handle_update_validator(input)
        return handler, args

    @staticmethod
    def _update_input(
        name: str, request: _Update, handler: Handler, args: list[Any]
    ) -> HandleUpdateInput:
        return HandleUpdateInput(
            id=request.update_id,
            update=name,
            args=_intercepted(handler, args),
            headers=dict(request.headers),
        )

    # --- queries --------------------------------------------------------------------------------

    def query(self, request: QueryRequest) -> Any:
        """The answer. Raises what the handler raises, `Malformed`, or `ApplicationError` of type
        ``QueryNotFound``."""
        name = request.query_type
        handler = self._serving("query", name)
        if handler is None:
            raise ApplicationError(
                self._unknown("query", name),
                type="QueryNotFound",
                non_retryable=True,
            )
        args = self._arguments(handler, name, request.input)
        if self.inbound is None:
            return self._bound(handler, handler.fn)(*args)
        input = HandleQueryInput(
            id=request.correlation_id,
            query=name,
            args=_intercepted(handler, args),
            headers=dict(request.headers),
        )
        return chain.run(self.inbound.handle_query(input))

    # --- the end of a chain of interceptors -------------------------------------------------------

    async def call(self, kind: Kind, name: str, args: Sequence[Any]) -> Any:
        """Have a handler called. Raises `RuntimeError` if there is none of that name."""
        handler = self._existing(kind, name)
        result = self._bound(handler, handler.fn)(*_from_chain(handler, name, args))
        return await result if handler.is_async else result

    def validate(self, name: str, args: Sequence[Any]) -> None:
        """Have an update's validator called, if it has one; raises as `call` does."""
        handler = self._existing("update", name)
        if handler.validator is not None:
            self._bound(handler, handler.validator)(*_from_chain(handler, name, args))

    def _existing(self, kind: Kind, name: str) -> Handler:
        handler = self._serving(kind, name)
        if handler is None:
            raise RuntimeError(f"an interceptor asks for {kind} {name!r}, which has no handler")
        return handler

    # --- unfinished ones --------------------------------------------------------------------------

    def all_finished(self) -> bool:
        """Whether none is at work."""
        return not self._signals and not self._updates

    def warn_of_unfinished(self) -> None:
        """The run ends now: say so if it leaves work behind."""
        for kind, at_work, category in (
            ("signal", self._signals, UnfinishedSignalHandlersWarning),
            ("update", self._updates, UnfinishedUpdateHandlersWarning),
        ):
            left = [w.what for w in at_work if w.policy is HandlerUnfinishedPolicy.WARN_AND_ABANDON]
            if left:
                warnings.warn(
                    f"workflow {self._situation.run.workflow_id!r} ended while {kind} handlers were"
                    f" at work: {', '.join(left)}. Wait for workflow.all_handlers_finished, or give"
                    " the handler the policy HandlerUnfinishedPolicy.ABANDON.",
                    category,
                    stacklevel=2,
                )


def _intercepted(handler: Handler, args: list[Any]) -> list[Any]:
    """The arguments as interceptors see them: those of a dynamic handler, too, without its name."""
    return args[:] if handler.name is not None else list(args[1])


def _from_chain(handler: Handler, name: str, args: Sequence[Any]) -> Sequence[Any]:
    return args if handler.name is not None else [name, args]
