"""The chain of interceptors around an activity, as a function in the activity's place.

Executors call it as they would call the activity: on the event loop, or in the activity's thread
or process, with the attempt as the current context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tq_broker import chain
from tq_broker.activity import ActivityDefinition, Context, Info, Signal, current
from tq_broker.converter import PayloadConverter
from tq_broker.worker.interceptors import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)


def of_activities(interceptors: Sequence[Interceptor]) -> tuple[Interceptor, ...]:
    """Those that have to do with activities."""
    idle = Interceptor.intercept_activity
    return tuple(one for one in interceptors if type(one).intercept_activity is not idle)


def intercepted(
    definition: ActivityDefinition, interceptors: Sequence[Interceptor]
) -> Callable[..., Any]:
    """The function of ``definition``, with ``interceptors`` around it; the first is outermost."""
    if definition.is_async:

        async def on_the_loop(*args: Any) -> Any:
            return await _execute(definition, interceptors, args)

        return on_the_loop

    def in_its_thread(*args: Any) -> Any:
        return chain.run(_execute(definition, interceptors, args))

    return in_its_thread


async def _execute(
    definition: ActivityDefinition, interceptors: Sequence[Interceptor], args: Sequence[Any]
) -> Any:
    context = current.get()
    inbound = chain.build(
        _InboundEnd(definition.is_async, context),
        interceptors,
        lambda interceptor, next: interceptor.intercept_activity(next),
        ActivityInboundInterceptor,
    )
    inbound.init(_OutboundEnd(context))
    headers = dict(context.info.headers)
    return await inbound.execute_activity(
        ExecuteActivityInput(fn=definition.fn, args=args, headers=headers)
    )


class _InboundEnd(ActivityInboundInterceptor):
    def __init__(self, is_async: bool, context: Context) -> None:
        self._is_async = is_async
        self._context = context

    def init(self, outbound: ActivityOutboundInterceptor) -> None:
        current.set(_Intercepted(self._context, outbound))

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        result = input.fn(*input.args)
        return await result if self._is_async else result


class _OutboundEnd(ActivityOutboundInterceptor):
    def __init__(self, context: Context) -> None:
        self._context = context

    def info(self) -> Info:
        return self._context.info

    def heartbeat(self, *details: Any) -> None:
        self._context.heartbeat(*details)


class _Intercepted:
    """The `tq_broker.activity.Context` of the activity's code."""

    def __init__(self, context: Context, outbound: ActivityOutboundInterceptor) -> None:
        self._context = context
        self._outbound = outbound

    @property
    def info(self) -> Info:
        return self._outbound.info()

    @property
    def cancelled(self) -> Signal:
        return self._context.cancelled

    @property
    def worker_shutdown(self) -> Signal:
        return self._context.worker_shutdown

    @property
    def payload_converter(self) -> PayloadConverter:
        return self._context.payload_converter

    def heartbeat(self, *details: Any) -> None:
        self._outbound.heartbeat(*details)

    def shield(self) -> AbstractContextManager[None]:
        return self._context.shield()
