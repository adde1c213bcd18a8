"""The two faces of the client: one awaits the core's futures, the other waits for them.

Rules of this file: no method here does anything but check its arguments, ask the core, and hand
the answer on.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import msgspec

from tq_broker import chain
from tq_broker.client.core import ClientCore, Pending
from tq_broker.client.interceptors import (
    CancelActivityInput,
    CompleteAsyncActivityInput,
    FailAsyncActivityInput,
    HeartbeatAsyncActivityInput,
    Interceptor,
    OutboundInterceptor,
    ReportCancellationAsyncActivityInput,
)
from tq_broker.client.outbound import Intercepted, activity_input, outbound_of
from tq_broker.client.request import Start, make_start, read_call
from tq_broker.client.verb_faces import AsyncVerbs, BlockingVerbs
from tq_broker.client.waiting import (
    UNSET,
    Answer,
    Asked,
    Chained,
    Timeout,
    all_awaited,
    all_waited,
    awaited,
    checked_calls,
    one_or_many,
    to_seconds,
    waited,
)
from tq_broker.client.workflow_faces import AsyncWorkflows, BlockingWorkflows
from tq_broker.clock import SystemClock
from tq_broker.converter import DEFAULT, DataConverter
from tq_broker.exceptions import CancelledError, InvalidArgument
from tq_broker.model import control, failure
from tq_broker.model.names import Names
from tq_broker.queues.connect import broker_for
from tq_broker.queues.connection import Connection
from tq_broker.queues.topology import QueueType

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from tq_broker.client.request import StartOptionsDict

R = TypeVar("R")


class _Handle:
    """What both kinds of handle know."""

    def __init__(
        self, core: ClientCore, pending: Pending, outbound: OutboundInterceptor | None = None
    ) -> None:
        self._core = core
        self._pending = pending
        self._outbound = outbound

    @property
    def id(self) -> str:
        """The activity's id."""
        return self._pending.activity_id

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pending.start.activity_type} {self.id}>"

    def _ask_cancel(self, reason: str) -> Answer[None]:
        return _cancel(self._core, self._outbound, self.id, reason)

    def _wanted(self) -> Future[Any]:
        options = self._pending.start.options
        if not options.wait_result or options.reply_to:
            raise InvalidArgument("this activity was started so that its outcome goes elsewhere")
        return self._pending.outcome


class ActivityHandle(_Handle, Generic[R]):
    """A started activity, for ``asyncio``."""

    async def result(self, timeout: Timeout = None) -> R:
        """Wait for the outcome.

        Raises:
            ActivityError: it failed, timed out or was cancelled; ``cause`` says how.
            ActivityAlreadyStarted: its id was taken, and the start asked to be refused.
            DeadlineExceeded: no outcome within ``timeout``; it goes on, ask again.
        """
        outcome = await awaited(self._wanted(), timeout)
        value: R = self._core.value(self._pending, outcome)
        return value

    async def cancel(self, reason: str = "") -> None:
        """Ask that it be cancelled. Returns when the request is kept: also a worker that is not
        running now will heed it."""
        await self._ask_cancel(reason).awaited()


class BlockingActivityHandle(_Handle, Generic[R]):
    """A started activity, for programs without ``asyncio``. See `ActivityHandle`."""

    def result(self, timeout: Timeout = None) -> R:
        """Wait for the outcome; raises as `ActivityHandle.result` does."""
        outcome = waited(self._wanted(), timeout)
        value: R = self._core.value(self._pending, outcome)
        return value

    def cancel(self, reason: str = "") -> None:
        """Ask that it be cancelled."""
        self._ask_cancel(reason).waited()


class _TokenHandle:
    """An attempt that somebody else completes."""

    def __init__(
        self,
        core: ClientCore,
        task_token: bytes | str,
        outbound: OutboundInterceptor | None = None,
    ) -> None:
        self._core = core
        self._outbound = outbound
        self._token = control.TaskToken.load(task_token)
        if self._token.namespace != core.names.namespace:
            raise InvalidArgument(
                f"task_token is of namespace {self._token.namespace!r},"
                f" this client of {core.names.namespace!r}"
            )

    def _tell(self, **end: Any) -> Asked[None]:
        token = self._token
        request = control.CompleteAttempt(token.activity_id, token.attempt, **end)
        return Asked(self._core.complete(token, request), _nothing, _nothing)

    def _encode(self, value: Any) -> msgspec.Raw:
        return msgspec.Raw(self._core.converter.payload_converter.encode(value))

    def _ask_completion(self, result: Any) -> Answer[None]:
        if self._outbound is None:
            return self._tell(result=self._encode(result))
        input = CompleteAsyncActivityInput(task_token=self._token.dump(), result=result)
        return Chained(self._outbound.complete_async_activity(input))

    def _ask_failure(self, error: BaseException) -> Answer[None]:
        if self._outbound is None:
            return self._tell(failure=failure.from_exception(error))
        input = FailAsyncActivityInput(task_token=self._token.dump(), error=error)
        return Chained(self._outbound.fail_async_activity(input))

    def _ask_heartbeat(self, details: Sequence[Any]) -> Answer[None]:
        if self._outbound is None:
            told = self._tell(heartbeat=[self._encode(detail) for detail in details])
            return Asked(told.future, _heed, told.drop)
        input = HeartbeatAsyncActivityInput(task_token=self._token.dump(), details=details)
        return Chained(self._outbound.heartbeat_async_activity(input))

    def _ask_report(self, details: Sequence[Any]) -> Answer[None]:
        if self._outbound is None:
            return self._tell(failure=failure.canceled(details=list(details)))
        input = ReportCancellationAsyncActivityInput(task_token=self._token.dump(), details=details)
        return Chained(self._outbound.report_cancellation_async_activity(input))


def _cancel(
    core: ClientCore, outbound: OutboundInterceptor | None, activity_id: str, reason: str
) -> Answer[None]:
    if outbound is None:
        return Asked(core.cancel(activity_id, reason), _nothing, _nothing)
    input = CancelActivityInput(activity_id=activity_id, reason=reason)
    return Chained(outbound.cancel_activity(input))


def _nothing(_answer: object = None) -> None:
    """Of an answer that says no more than that it has come; and nobody need be told."""


def _heed(answer: control.Answer) -> None:
    if answer.cancel_requested:
        raise CancelledError("the activity was asked to cancel")


class AsyncActivityHandle(_TokenHandle):
    """Completes an attempt that ended in ``activity.raise_complete_async()``.

    Every method raises `NotFound` when the attempt is not open any more: completed before,
    timed out, or lost with its worker (then the next attempt has a token of its own).
    """

    async def complete(self, result: Any = None) -> None:
        """It has ended well."""
        await self._ask_completion(result).awaited()

    async def fail(self, error: BaseException) -> None:
        """It has failed; the retry policy decides what follows."""
        await self._ask_failure(error).awaited()

    async def heartbeat(self, *details: Any) -> None:
        """It lives. Raises `CancelledError` when cancellation was requested."""
        await self._ask_heartbeat(details).awaited()

    async def report_cancellation(self, *details: Any) -> None:
        """It has honoured a cancellation."""
        await self._ask_report(details).awaited()


class BlockingAsyncActivityHandle(_TokenHandle):
    """`AsyncActivityHandle` for programs without ``asyncio``."""

    def complete(self, result: Any = None) -> None:
        """It has ended well."""
        self._ask_completion(result).waited()

    def fail(self, error: BaseException) -> None:
        """It has failed; the retry policy decides what follows."""
        self._ask_failure(error).waited()

    def heartbeat(self, *details: Any) -> None:
        """It lives. Raises `CancelledError` when cancellation was requested."""
        self._ask_heartbeat(details).waited()

    def report_cancellation(self, *details: Any) -> None:
        """It has honoured a cancellation."""
        self._ask_report(details).waited()


class _Face:
    """Construction and the chain of interceptors, which both faces share.

    Attributes:
        interceptors: As given; workers made with this client take those that are for workers.
        outbound: The first interceptor; ``None`` without any.
    """

    _is_blocking: bool
    _activity_handle: ClassVar[Callable[..., Any]]
    _token_handle: ClassVar[Callable[..., Any]]

    def __init__(self, core: ClientCore, interceptors: Sequence[Interceptor] = ()) -> None:
        self.core = core
        self.interceptors = chain.check("interceptors", interceptors, Interceptor)
        # Which it is together with the parts of either client that are about workflows.
        self.outbound = outbound_of(cast(Intercepted, self), self.interceptors)

    def _begin(
        self,
        outbound: OutboundInterceptor,
        activity: Callable[..., Any] | str,
        calls: Sequence[Sequence[Any]],
        options: StartOptionsDict,
        *,
        waits: bool = False,
    ) -> list[Chained[Any]]:
        """Starts by way of the interceptors; all arguments are checked before one is begun."""
        said = read_call(activity, options)
        if waits:
            said.start.check_waits()
        for args in calls:
            said.check_args(args)
        return [Chained(outbound.start_activity(activity_input(said, args))) for args in calls]

    def _plain_activity(self, start: Start, args: Sequence[Any]) -> Asked[Any]:
        def read(pending: Pending) -> Any:
            return type(self)._activity_handle(self.core, pending, self.outbound)

        return Asked(self.core.start(start, args), read, _nothing)

    def _plain_cancel(self, activity_id: str, reason: str) -> Asked[None]:
        return Asked(self.core.cancel(activity_id, reason), _nothing, _nothing)

    def _plain_token(self, task_token: bytes) -> Any:
        return type(self)._token_handle(self.core, task_token)

    @property
    def connection(self) -> Connection:
        """What a worker made with this client shares with it."""
        return self.core.connection

    @property
    def namespace(self) -> str:
        """The namespace that this client works in."""
        return self.core.names.namespace

    @property
    def identity(self) -> str:
        """Who this client says it is."""
        return self.core.identity

    @classmethod
    def _core(
        cls,
        url: str,
        namespace: str,
        data_converter: DataConverter,
        identity: str | None,
        queue_type: str,
        timeout: Timeout,
    ) -> ClientCore:
        clock = SystemClock()
        try:
            kind = QueueType(queue_type)
        except ValueError:
            raise InvalidArgument("queue_type must be 'quorum' or 'classic'") from None
        if not isinstance(data_converter, DataConverter):
            raise InvalidArgument(f"data_converter is {data_converter!r}; see tq_broker.converter")
        seconds = to_seconds(timeout)
        if not seconds:
            raise InvalidArgument("timeout must be positive")
        connection = Connection(
            broker_for(url, clock),
            Names(namespace),
            clock,
            data_converter,
            identity or f"{os.getpid()}@{socket.gethostname()}",
            kind,
        )
        return ClientCore(connection, timeout_s=seconds)


class Client(AsyncWorkflows, AsyncVerbs, _Face):
    """Starts activities and workflows, for ``asyncio``.

    Made by `connect`; safe to use after a fork.
    """

    _is_blocking = False
    _activity_handle = ActivityHandle
    _token_handle = AsyncActivityHandle

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        namespace: str = "default",
        data_converter: DataConverter = DEFAULT,
        interceptors: Sequence[Interceptor] = (),
        identity: str | None = None,
        queue_type: str = "quorum",
        timeout: Timeout = 10.0,
        lazy: bool = False,
    ) -> Self:
        """Connect to ``url``.

        Args:
            url: ``amqp://user:password@host:port/vhost``, ``amqps://...``, several of them
                separated by ``;``, or ``memory://name`` for a broker inside this process.
            namespace: Keeps the queues of different applications on one vhost apart.
            data_converter: Must be the same for client and workers.
            interceptors: Around all that it asks for, the first outermost; those that are for
                workers, too, also serve the workers made with it. See
                `tq_broker.client.interceptors`.
            identity: How this client signs; ``pid@host`` by default.
            queue_type: ``quorum`` or ``classic``: for task queues that this client is the
                first to use.
            timeout: Bound of every operation but waiting for a result.
            lazy: Connect with the first operation only.

        Raises:
            InvalidArgument: an argument is wrong.
            AccessRefused, BrokerUnavailable: why it cannot be connected.
        """
        core = cls._core(url, namespace, data_converter, identity, queue_type, timeout)
        client = cls(core, interceptors)
        if not lazy:
            await asyncio.to_thread(core.connect, core.deadline())
        return client

    async def start_activity(
        self,
        activity: Callable[..., Any] | str,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartOptionsDict],
    ) -> ActivityHandle[Any]:
        """Start an activity; returns when the broker has it for sure.

        Args:
            activity: A decorated function, or the name of an activity type.
            arg: Its one argument; use ``args`` for several.
            **options: `ActivityOptions` and `StartOptions`; they win over the decorator's.

        Raises:
            InvalidArgument, PayloadTooLarge: nothing was sent.
            TargetGone: the route's target is gone, and the route says to fail.
            Unavailable: the broker did not take it before the client's ``timeout``.
        """
        args = one_or_many(arg, args)
        if self.outbound is not None:
            (begun,) = self._begin(self.outbound, activity, [args], options)
            handle: ActivityHandle[Any] = await begun.awaited()
            return handle
        start = make_start(self.core.names, activity, options)
        return ActivityHandle(self.core, await awaited(self.core.start(start, args)))

    async def execute_activity(
        self,
        activity: Callable[..., Any] | str,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartOptionsDict],
    ) -> Any:
        """Start an activity and wait for its result."""
        args = one_or_many(arg, args)
        if self.outbound is not None:
            (begun,) = self._begin(self.outbound, activity, [args], options, waits=True)
            return await (await begun.awaited()).result()
        start = make_start(self.core.names, activity, options)
        pending = self.core.execute(start, args)
        return self.core.value(pending, await awaited(pending.outcome))

    async def start_activities(
        self,
        activity: Callable[..., Any] | str,
        calls: Sequence[Sequence[Any]],
        **options: Unpack[StartOptionsDict],
    ) -> list[ActivityHandle[Any]]:
        """Start one activity for each entry of ``calls`` (its arguments), pipelined.

        Returns when the broker has all of them. If it did not take some, the first error is
        raised, and the others run.
        """
        calls, options = checked_calls(calls), _without_id(options)
        if self.outbound is not None:
            return await all_awaited(self._begin(self.outbound, activity, calls, options))
        start = make_start(self.core.names, activity, options)
        pendings = await awaited(self.core.start_many(start, calls))
        return [ActivityHandle(self.core, pending) for pending in pendings]

    def get_async_activity_handle(self, *, task_token: bytes | str) -> AsyncActivityHandle:
        """The attempt that ``task_token`` (of ``activity.info()``) stands for."""
        return AsyncActivityHandle(self.core, task_token, self.outbound)

    async def cancel_activity(self, activity_id: str, reason: str = "") -> None:
        """Ask that the activity with this id be cancelled, whoever started it."""
        await _cancel(self.core, self.outbound, activity_id, reason).awaited()

    async def close(self) -> None:
        """Close the connection. Who waits for an outcome gets `Unavailable`."""
        await asyncio.to_thread(self.core.close, self.core.deadline())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class BlockingClient(BlockingWorkflows, BlockingVerbs, _Face):
    """Starts activities and workflows, for programs without ``asyncio``.

    See `Client` for the arguments.
    """

    _is_blocking = True
    _activity_handle = BlockingActivityHandle
    _token_handle = BlockingAsyncActivityHandle

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        namespace: str = "default",
        data_converter: DataConverter = DEFAULT,
        interceptors: Sequence[Interceptor] = (),
        identity: str | None = None,
        queue_type: str = "quorum",
        timeout: Timeout = 10.0,
        lazy: bool = False,
    ) -> Self:
        """Connect to ``url``; arguments and errors as in `Client.connect`."""
        core = cls._core(url, namespace, data_converter, identity, queue_type, timeout)
        client = cls(core, interceptors)
        if not lazy:
            core.connect(core.deadline())
        return client

    def start_activity(
        self,
        activity: Callable[..., Any] | str,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartOptionsDict],
    ) -> BlockingActivityHandle[Any]:
        """Start an activity; returns when the broker has it. See `Client.start_activity`."""
        args = one_or_many(arg, args)
        if self.outbound is not None:
            (begun,) = self._begin(self.outbound, activity, [args], options)
            handle: BlockingActivityHandle[Any] = begun.waited()
            return handle
        start = make_start(self.core.names, activity, options)
        return BlockingActivityHandle(self.core, waited(self.core.start(start, args)))

    def execute_activity(
        self,
        activity: Callable[..., Any] | str,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        **options: Unpack[StartOptionsDict],
    ) -> Any:
        """Start an activity and wait for its result."""
        args = one_or_many(arg, args)
        if self.outbound is not None:
            (begun,) = self._begin(self.outbound, activity, [args], options, waits=True)
            return begun.waited().result()
        start = make_start(self.core.names, activity, options)
        pending = self.core.execute(start, args)
        return self.core.value(pending, waited(pending.outcome))

    def start_activities(
        self,
        activity: Callable[..., Any] | str,
        calls: Sequence[Sequence[Any]],
        **options: Unpack[StartOptionsDict],
    ) -> list[BlockingActivityHandle[Any]]:
        """Start one activity for each entry of ``calls``. See `Client.start_activities`."""
        calls, options = checked_calls(calls), _without_id(options)
        if self.outbound is not None:
            return all_waited(self._begin(self.outbound, activity, calls, options))
        start = make_start(self.core.names, activity, options)
        pendings = waited(self.core.start_many(start, calls))
        return [BlockingActivityHandle(self.core, pending) for pending in pendings]

    def get_async_activity_handle(self, *, task_token: bytes | str) -> BlockingAsyncActivityHandle:
        """The attempt that ``task_token`` (of ``activity.info()``) stands for."""
        return BlockingAsyncActivityHandle(self.core, task_token, self.outbound)

    def cancel_activity(self, activity_id: str, reason: str = "") -> None:
        """Ask that the activity with this id be cancelled, whoever started it."""
        _cancel(self.core, self.outbound, activity_id, reason).waited()

    def close(self) -> None:
        """Close the connection. Who waits for an outcome gets `Unavailable`."""
        self.core.close(self.core.deadline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _without_id(options: StartOptionsDict) -> StartOptionsDict:
    if options.get("id") is not None:
        raise InvalidArgument("id names one activity; start_activities starts many")
    return options
