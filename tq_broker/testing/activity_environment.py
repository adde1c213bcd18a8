"""An environment to call activities in, without a worker and without a broker::

    env = ActivityEnvironment()
    env.on_heartbeat = lambda *details: seen.append(details)
    assert env.run(count_words, "to be or not to be") == 6
    assert await env.run(send_mail, "you@example.org") == "sent"

Inside, the functions of `tq_broker.activity` work as they do in a worker.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta, timezone
from typing import Any

from tq_broker.activity import Info, Signal, current, definition_of
from tq_broker.common import RetryPolicy
from tq_broker.converter import JSONPayloadConverter, PayloadConverter
from tq_broker.exceptions import InvalidArgument
from tq_broker.worker.executors import Interrupter

_LONG_AGO = datetime.fromtimestamp(0, timezone.utc)


def default_info() -> Info:
    """What `ActivityEnvironment.info` is at first."""
    return Info(
        activity_id="test",
        activity_type="unknown",
        attempt=1,
        task_queue="test",
        namespace="default",
        task_token=b"test",
        host="test",
        worker_id="test",
        identity="test",
        scheduled_time=_LONG_AGO,
        current_attempt_scheduled_time=_LONG_AGO,
        started_time=_LONG_AGO,
        start_to_close_timeout=timedelta(seconds=1),
        schedule_to_start_timeout=timedelta(seconds=1),
        schedule_to_close_timeout=timedelta(seconds=1),
        heartbeat_timeout=None,
        heartbeat_details=(),
        retry_policy=RetryPolicy(),
        priority=None,
    )


class ActivityEnvironment:
    """Calls activities, decorated or not. See the module.

    `cancel` and `worker_shutdown` may be called before, and from any thread while, an activity
    runs. An environment that was cancelled stays so.

    Attributes:
        info: What `activity.info` returns; replace it to say something else:
            ``env.info = dataclasses.replace(env.info, attempt=3)``.
        on_heartbeat: Called with the details of each heartbeat.
        payload_converter: What `activity.payload_converter` returns.
    """

    def __init__(self) -> None:
        self.info = default_info()
        self.on_heartbeat: Callable[..., None] = _ignore
        self.payload_converter: PayloadConverter = JSONPayloadConverter()
        self._lock = threading.Lock()
        self._cancelled = Signal()
        self._worker_shutdown = Signal()
        self._calls: set[_Call] = set()

    def cancel(self) -> None:
        """Cancel what runs, and what is run after."""
        self._cancelled.set()
        with self._lock:
            calls = tuple(self._calls)
        for call in calls:
            call.interrupt()

    def worker_shutdown(self) -> None:
        """Tell the activities that the worker shuts down."""
        self._worker_shutdown.set()

    def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call ``fn`` and return what it returns; for an async function, a coroutine.

        When it is cancelled, `asyncio.CancelledError` is raised in a coroutine, and
        `tq_broker.exceptions.CancelledError` in a synchronous function, unless that is decorated
        with ``no_thread_cancel_exception``.
        """
        target = fn if inspect.isroutine(fn) else type(fn).__call__
        if inspect.iscoroutinefunction(target):
            return self._run_async(fn, args)
        return self._run_sync(fn, args)

    async def _run_async(self, fn: Callable[..., Coroutine[Any, Any, Any]], args: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        loop = asyncio.get_running_loop()
        call = _Call(self, lambda: loop.call_soon_threadsafe(task.cancel))
        with _Running(self, call):
            return await fn(*args)

    def _run_sync(self, fn: Callable[..., Any], args: Any) -> Any:
        interrupter = Interrupter()
        if _wants_no_exception(fn):
            call = _Call(self, _ignore)
        else:
            call = _Call(self, interrupter.interrupt, interrupter.shield)
        with _Running(self, call):
            try:
                interrupter.begin()
                return fn(*args)
            finally:
                interrupter.end()


def _wants_no_exception(fn: Callable[..., Any]) -> bool:
    try:
        return definition_of(fn).no_thread_cancel_exception
    except InvalidArgument:  # it is not decorated
        return False


def _ignore(*details: Any) -> None:
    """Nobody wants to know."""


class _Call:
    """One call of an activity. It is the `tq_broker.activity.Context` of its code."""

    def __init__(
        self,
        environment: ActivityEnvironment,
        interrupt: Callable[[], object],
        shield: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.interrupt = interrupt
        self.shield = shield
        self._environment = environment

    @property
    def info(self) -> Info:
        return self._environment.info

    @property
    def cancelled(self) -> Signal:
        return self._environment._cancelled

    @property
    def worker_shutdown(self) -> Signal:
        return self._environment._worker_shutdown

    @property
    def payload_converter(self) -> PayloadConverter:
        return self._environment.payload_converter

    def heartbeat(self, *details: Any) -> None:
        self._environment.on_heartbeat(*details)


class _Running:
    """A block in which a call is the current one, and is heard of by `cancel`."""

    def __init__(self, environment: ActivityEnvironment, call: _Call) -> None:
        self._environment = environment
        self._call = call

    def __enter__(self) -> None:
        self._token = current.set(self._call)
        with self._environment._lock:
            self._environment._calls.add(self._call)
        # After that, so that no cancellation falls between.
        if self._environment._cancelled.is_set():
            self._call.interrupt()

    def __exit__(self, *exc: object) -> None:
        with self._environment._lock:
            self._environment._calls.discard(self._call)
        current.reset(self._token)
