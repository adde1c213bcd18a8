"""What authors of activities write and call.

Outside a function::

    @activity.defn(task_queue="mail", start_to_close_timeout=timedelta(seconds=30))
    async def send(address: str, text: str) -> str: ...

Inside one: `info`, `heartbeat`, `is_cancelled`, `wait_for_cancelled`, `is_worker_shutdown`,
`logger`, `raise_complete_async`. Names and meanings are those of Temporal's Python SDK.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import typing
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeVar, overload

from tq_broker.common import (
    ActivityOptions,
    ActivityOptionsDict,
    RawValue,
    RetryPolicy,
    options_from,
)
from tq_broker.converter import PayloadConverter
from tq_broker.exceptions import InvalidArgument, TqBrokerError
from tq_broker.model.names import check_task_queue, check_text
from tq_broker.model.tasks import check_route, requires_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # it takes a parameter from Python 3.11 on

__all__ = [
    "ActivityDefinition",
    "CompleteAsyncError",
    "Info",
    "RawValue",
    "defn",
    "heartbeat",
    "in_activity",
    "info",
    "is_cancelled",
    "is_worker_shutdown",
    "logger",
    "payload_converter",
    "raise_complete_async",
    "shield_thread_cancel_exception",
    "wait_for_cancelled",
    "wait_for_cancelled_sync",
    "wait_for_worker_shutdown",
    "wait_for_worker_shutdown_sync",
]

NAME_BYTES_MAX = 200
_ATTRIBUTE = "__tq_broker_activity__"

F = TypeVar("F", bound=Callable[..., Any])
ExecutorKind = Literal["thread", "process"]


# --- definitions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ActivityDefinition:
    """A function that is an activity, with the options of its decorator.

    Attributes:
        name: The activity type; empty for the dynamic one, which serves every type that has no
            activity of its own.
        fn: What to call.
        executor: Where a synchronous one runs: a thread, or a process that is killed when the
            attempt times out or does not heed its cancellation.
    """

    name: str
    fn: Callable[..., Any]
    options: ActivityOptions
    is_async: bool
    dynamic: bool = False
    executor: ExecutorKind = "thread"
    no_thread_cancel_exception: bool = False

    @cached_property
    def needs_instance(self) -> bool:
        """Whether ``fn`` is a class, or a method of one that is not bound: good for starting it,
        but what runs needs an instance.
        """
        if isinstance(self.fn, type):
            return True
        return (
            inspect.isfunction(self.fn)
            and next(iter(inspect.signature(self.fn).parameters), "") == "self"
        )

    @cached_property
    def _parameters(self) -> tuple[inspect.Parameter, ...]:
        called = self.fn.__call__ if isinstance(self.fn, type) else self.fn
        found = tuple(inspect.signature(called).parameters.values())
        return found[1:] if self.needs_instance else found

    @cached_property
    def _hints(self) -> Mapping[str, Any]:
        target = self.fn
        if not inspect.isroutine(target):
            target = (target if isinstance(target, type) else type(target)).__call__
        try:
            return typing.get_type_hints(target)
        except Exception:  # a hint that cannot be resolved is as good as none
            return {}

    @cached_property
    def arg_types(self) -> tuple[Any, ...]:
        """The type hint of each positional parameter; `typing.Any` where there is none."""
        return tuple(
            self._hints.get(p.name, Any) for p in self._parameters if p.kind is not p.VAR_POSITIONAL
        )

    @cached_property
    def takes_more(self) -> bool:
        """Whether it takes any number of further arguments (``*args``)."""
        return any(p.kind is p.VAR_POSITIONAL for p in self._parameters)

    @cached_property
    def least_arguments(self) -> int:
        """How many arguments it cannot do without."""
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return sum(p.default is p.empty and p.kind in positional for p in self._parameters)

    @cached_property
    def result_type(self) -> Any:
        """The return type hint; `typing.Any` without one."""
        return self._hints.get("return", Any)

    def bound_to(self, fn: Callable[..., Any]) -> ActivityDefinition:
        """The same definition for a bound method or an instance of a callable class."""
        return ActivityDefinition(
            self.name,
            fn,
            self.options,
            self.is_async,
            self.dynamic,
            self.executor,
            self.no_thread_cancel_exception,
        )


@overload
def defn(fn: F, /) -> F: ...


@overload
def defn(
    *,
    name: str | None = None,
    dynamic: bool = False,
    executor: ExecutorKind = "thread",
    no_thread_cancel_exception: bool = False,
    **options: Unpack[ActivityOptionsDict],
) -> Callable[[F], F]: ...


def defn(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    dynamic: bool = False,
    executor: ExecutorKind = "thread",
    no_thread_cancel_exception: bool = False,
    **options: Any,
) -> Any:
    """Make a function, method or callable class an activity.

    Args:
        name: The activity type; the function's name when not given.
        dynamic: Serve every type that has no activity of its own; the function takes one
            argument, a ``Sequence[RawValue]``.
        executor: ``"process"`` runs a synchronous function in a process of its own kind, which
            can be killed: for CPU-bound and for stuck code.
        no_thread_cancel_exception: Do not raise `CancelledError` in the thread of a cancelled
            synchronous activity; it has to look at `is_cancelled` itself.
        **options: Defaults of `tq_broker.common.ActivityOptions`; the call's options win.

    Raises:
        InvalidArgument: an option or its value is wrong, or the function cannot be one.
    """
    if fn is not None and not callable(fn):
        raise InvalidArgument("@activity.defn takes its options by keyword")

    def decorate(target: Any) -> Any:
        definition = _define(target, name, dynamic, executor, no_thread_cancel_exception, options)
        setattr(target, _ATTRIBUTE, definition)
        return target

    return decorate if fn is None else decorate(fn)


def _define(
    target: Any,
    name: str | None,
    dynamic: bool,
    executor: ExecutorKind,
    no_thread_cancel_exception: bool,
    keywords: Mapping[str, Any],
) -> ActivityDefinition:
    function = target.__call__ if inspect.isclass(target) else target
    if inspect.isclass(target) and "__call__" not in vars(target):
        raise InvalidArgument(f"class {target.__name__} needs a __call__ method to be an activity")
    if dynamic and name is not None:
        raise InvalidArgument("a dynamic activity has no name")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidArgument(f"activity {target.__name__} must not be a generator")
    if any(
        p.kind is p.KEYWORD_ONLY and p.default is p.empty
        for p in inspect.signature(function).parameters.values()
    ):
        raise InvalidArgument(
            f"activity {target.__name__} has keyword-only parameters without a default;"
            " arguments are sent by position"
        )
    is_async = inspect.iscoroutinefunction(function)
    if executor not in ("thread", "process"):
        raise InvalidArgument(f"executor is {executor!r}; it must be 'thread' or 'process'")
    if executor == "process" and is_async:
        raise InvalidArgument(f"activity {target.__name__} is async; it cannot run in a process")
    options = options_from(keywords)
    if options.task_queue is not None:
        check_task_queue(options.task_queue)
    requires_of(options)
    check_route(options)
    type_name = (
        ""
        if dynamic
        else check_text("name", target.__name__ if name is None else name, bytes_max=NAME_BYTES_MAX)
    )
    return ActivityDefinition(
        type_name,
        target,
        options,
        is_async,
        dynamic,
        executor,
        no_thread_cancel_exception,
    )


def definition_of(fn: Any) -> ActivityDefinition:
    """The definition behind a function, bound method or instance.

    Raises:
        InvalidArgument: it is not decorated, or it is a class and not an instance of it.
    """
    found = getattr(fn, _ATTRIBUTE, None)
    if not isinstance(found, ActivityDefinition):
        name = getattr(fn, "__name__", repr(fn))
        raise InvalidArgument(f"{name} is not an activity: decorate it with @activity.defn")
    return found if found.fn is fn else found.bound_to(fn)


# --- inside an activity ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What `info` tells about the running attempt.

    ``host``, ``worker_id`` name the place it runs at, for `Route.host` and `Route.process`.
    Times are aware, in UTC. ``None`` durations are not set. The three ``workflow_`` facts are
    ``None`` for an activity that no workflow has started. ``traffic_rule`` is the id of the rule
    that has brought it here from its ``task_queue``, if one has.
    """

    activity_id: str
    activity_type: str
    attempt: int
    task_queue: str
    namespace: str
    task_token: bytes
    host: str
    worker_id: str
    identity: str
    scheduled_time: datetime
    current_attempt_scheduled_time: datetime
    started_time: datetime
    start_to_close_timeout: timedelta | None
    schedule_to_start_timeout: timedelta | None
    schedule_to_close_timeout: timedelta | None
    heartbeat_timeout: timedelta | None
    heartbeat_details: Sequence[Any]
    retry_policy: RetryPolicy
    priority: int | None
    is_local: bool = False
    workflow_id: str | None = None
    workflow_run_id: str | None = None
    workflow_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    traffic_rule: str | None = None
    fairness_key: str | None = None

    @property
    def in_workflow(self) -> bool:
        """Whether a workflow has started it."""
        return self.workflow_id is not None


class Signal:
    """Something that happens once, awaited by threads and by coroutines. Thread-safe."""

    __slots__ = ("_callbacks", "_event", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._callbacks: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        with self._lock:
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_set(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when it happens; at once if it has."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback()

    def wait_sync(self, timeout_s: float | None = None) -> bool:
        """Block until it happens, at most ``timeout_s``; ``None`` waits for ever."""
        return self._event.wait(timeout_s)

    async def wait(self) -> None:
        """Wait until it happens."""
        loop = asyncio.get_running_loop()
        happened = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # a loop that has been closed waits for nothing
                loop.call_soon_threadsafe(happened.set)

        self.on_set(tell)
        try:
            await happened.wait()
        finally:
            # Signals live as long as the worker; whoever gives up waiting is forgotten.
            with self._lock, suppress(ValueError):
                self._callbacks.remove(tell)


class Context(Protocol):
    """What stands behind the functions of this module while an activity runs."""

    @property
    def info(self) -> Info: ...
    @property
    def cancelled(self) -> Signal: ...
    @property
    def worker_shutdown(self) -> Signal: ...
    @property
    def payload_converter(self) -> PayloadConverter: ...
    def heartbeat(self, *details: Any) -> None: ...
    def shield(self) -> AbstractContextManager[None]: ...


current: contextvars.ContextVar[Context] = contextvars.ContextVar("tq_broker_activity")
"""The running activity's context; set by whoever runs it."""


class CompleteAsyncError(TqBrokerError):
    """Raised by `raise_complete_async`; let it pass."""


def _context() -> Context:
    try:
        return current.get()
    except LookupError:
        raise RuntimeError("not in an activity") from None


def in_activity() -> bool:
    """Whether the caller runs inside an activity."""
    return current.get(None) is not None


def info() -> Info:
    """About the running attempt. Raises `RuntimeError` outside an activity, as do all below."""
    return _context().info


def heartbeat(*details: Any) -> None:
    """Say that the attempt lives, and how far it has come.

    The details go to the next attempt, also when this worker is killed. Calls are cheap: they
    are thinned out before anything is sent.
    """
    _context().heartbeat(*details)


def is_cancelled() -> bool:
    """Whether cancellation was requested (or the attempt has timed out)."""
    return _context().cancelled.is_set()


async def wait_for_cancelled() -> None:
    """Wait until cancellation is requested.

    The request interrupts a coroutine where it waits, so here as well: with
    `asyncio.CancelledError`, unless this is awaited in a task of its own or under `asyncio.shield`.
    """
    await _context().cancelled.wait()


def wait_for_cancelled_sync(timeout: timedelta | float | None = None) -> None:
    """Block until cancellation is requested, or ``timeout`` (seconds if a number) is over."""
    _context().cancelled.wait_sync(_seconds(timeout))


def is_worker_shutdown() -> bool:
    """Whether the worker has begun to shut down."""
    return _context().worker_shutdown.is_set()


async def wait_for_worker_shutdown() -> None:
    """Wait until the worker begins to shut down."""
    await _context().worker_shutdown.wait()


def wait_for_worker_shutdown_sync(timeout: timedelta | float | None = None) -> None:
    """Block until the worker begins to shut down, or ``timeout`` is over."""
    _context().worker_shutdown.wait_sync(_seconds(timeout))


def _seconds(timeout: timedelta | float | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


def shield_thread_cancel_exception() -> AbstractContextManager[None]:
    """A block in which no `CancelledError` is raised into this thread; it is raised after."""
    return _context().shield()


def payload_converter() -> PayloadConverter:
    """The worker's payload converter."""
    return _context().payload_converter


def raise_complete_async() -> NoReturn:
    """End the function without an outcome: somebody else completes it by ``info().task_token``.

    The attempt's timeouts go on; its slot is free.
    """
    _context()
    raise CompleteAsyncError("to be completed by its task token")


class FactLine(str):
    """A message and the facts behind it. Arguments are for the message only: facts are text
    of others, in which a percent sign means nothing.
    """

    _message: str
    _facts: str

    def __new__(cls, message: object, facts: str) -> FactLine:
        line = super().__new__(cls, f"{message}{facts}")
        line._message, line._facts = str(message), facts
        return line

    def __str__(self) -> str:
        return self  # what logging formats is ``str(line) % arguments``

    def __mod__(self, arguments: Any) -> str:
        return f"{self._message % arguments}{self._facts}"


class _ActivityLogger(_Adapter):
    """Adds the activity's id, type, attempt and task queue to each record."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        context = current.get(None)
        if context is None:
            return msg, kwargs
        about = context.info
        facts = {
            "activity_id": about.activity_id,
            "activity_type": about.activity_type,
            "attempt": about.attempt,
            "task_queue": about.task_queue,
        }
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "tq_activity": facts}
        line = FactLine(msg, f" ({about.activity_type} {about.activity_id} #{about.attempt})")
        return line, kwargs


logger = _ActivityLogger(logging.getLogger(__name__), {})
"""A logger that says which attempt speaks: in the text, and as ``record.tq_activity``."""
