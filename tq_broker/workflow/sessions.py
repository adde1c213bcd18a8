"""Sessions: a worker process that several activities of a run share, one after the other.

::

    (creating) ── a worker has a slot for it ──> OPEN ── the block is left ──> CLOSED
        │                                          │
        └── creation timeout: SessionFailedError   └── worker gone, or timeout ──> FAILED

When it fails, its block is interrupted like one that is cancelled, wherever it waits: for a timer,
a condition, a child. What a session is bound to is the start of an internal activity, which is in
the history: so all of this is plain workflow code, and the same at each replay.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from types import TracebackType
from typing import Any

from tq_broker.common import ActivityOptions, RetryPolicy, Route, check_duration
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    InvalidArgument,
    SessionFailedError,
    TimeoutError,
)
from tq_broker.model.failure import TARGET_GONE, WORKER_LOST
from tq_broker.model.names import check_task_queue
from tq_broker.model.sessions import SESSION_TYPE, session_task_queue
from tq_broker.workflow.activities import start_activity
from tq_broker.workflow.calls import UNSET, ActivityCall
from tq_broker.workflow.handles import ActivityHandle
from tq_broker.workflow.info import info
from tq_broker.workflow.randomness import uuid4
from tq_broker.workflow.runtime import current

CREATION_TIMEOUT = timedelta(minutes=1)
_ONCE = RetryPolicy(maximum_attempts=1)
_NOT_HERE = ("route", "version", "affinity", "affinity_group", "on_lost", "task_queue")


class SessionState(str, enum.Enum):
    """Where a session stands."""

    OPEN = "open"
    FAILED = "failed"
    """Its worker is gone, or its execution timeout is over."""
    CLOSED = "closed"
    """Its block was left."""


@dataclass(frozen=True)
class SessionInfo:
    """Facts of a session: plain values, which a workflow may also hand to its next run, for
    `recreate_session`.

    Attributes:
        id: Of this session.
        host: Where its worker runs.
        worker_id: Its worker.
        task_queue: That of its activities.
        state: As of now.
    """

    id: str
    host: str
    worker_id: str
    task_queue: str
    state: SessionState


class Session:
    """A session that was created; see `session`."""

    def __init__(self, info: SessionInfo, slot: ActivityHandle[Any]) -> None:
        self._info = info
        self._slot = slot
        self._why = ""
        self._pending: dict[ActivityHandle[Any], None] = {}
        self._block: asyncio.Task[Any] | None = None
        self._reason: str | None = None
        self._interrupted = False

    @property
    def info(self) -> SessionInfo:
        """Its facts."""
        return self._info

    def start_activity(
        self, activity: Any, arg: Any = UNSET, **options: Any
    ) -> ActivityHandle[Any]:
        """Start an activity on the session's worker; the rest is as for
        `tq_broker.workflow.start_activity`.

        An activity that fails does not fail the session. When the session fails or is closed,
        those that are pending are cancelled.

        Raises:
            SessionFailedError: the session has failed.
            InvalidArgument: it is closed; or an option says where the activity is to run.
        """
        if self._info.state is SessionState.FAILED:
            raise self._failure()
        if self._info.state is SessionState.CLOSED:
            raise InvalidArgument(
                f"session {self._info.id} is closed: use it within its block, or create another"
                " one (workflow.session)"
            )
        for name in _NOT_HERE:
            if options.get(name) is not None:
                raise InvalidArgument(
                    f"{name} is not for an activity of a session, which runs on the session's"
                    " worker, from the session's task queue"
                )
        handle = start_activity(
            activity,
            arg,
            task_queue=self._info.task_queue,
            route=Route.process(self._info.worker_id),
            **options,
        )
        self._pending[handle] = None
        handle.add_done_callback(self._activity_ended)
        return handle

    async def execute_activity(self, activity: Any, arg: Any = UNSET, **options: Any) -> Any:
        """Start an activity on the session's worker and wait for its result.

        Raises:
            ActivityError: it ended without one; when the session has failed or was closed its cause
                is a `CancelledError`, and what leaves the block is a `SessionFailedError`.
            SessionFailedError, InvalidArgument: as for `start_activity`.
        """
        return await self.start_activity(activity, arg, **options)

    def recreate(
        self, *, execution_timeout: timedelta, creation_timeout: timedelta = CREATION_TIMEOUT
    ) -> Opening:
        """As `recreate_session` with the facts of this one."""
        return recreate_session(
            self._info, execution_timeout=execution_timeout, creation_timeout=creation_timeout
        )

    def close(self) -> None:
        """Let the worker's slot go, and cancel what is pending. Leaving the block does it; harmless
        when the session has failed or is closed."""
        if self._info.state is SessionState.OPEN:
            self._end(SessionState.CLOSED)
            self._slot.cancel()

    # --- the block --------------------------------------------------------------------------------

    def entered(self) -> None:
        """Its block begins, in the current task. Called by the runtime."""
        self._block, self._reason = asyncio.current_task(), current().cancellation_reason
        if self._slot.done():
            self.slot_ended(self._slot)

    def left(self, error: BaseException | None) -> SessionFailedError | None:
        """Its block ends. Returns what leaves it instead of ``error``, if that came of the failure
        of the session. Called by the runtime."""
        block, self._block = self._block, None
        self.close()
        if self._interrupted and block is not None and sys.version_info >= (3, 11):
            block.uncancel()
        return self._failure() if self._is_of_failure(error) else None

    def _is_of_failure(self, error: BaseException | None) -> bool:
        if self._info.state is not SessionState.FAILED:
            return False
        if isinstance(error, asyncio.CancelledError):
            # A workflow that was cancelled within the block goes on being so.
            return self._interrupted and current().cancellation_reason == self._reason
        is_canceled_child = isinstance(error, ChildWorkflowError) and isinstance(
            error.cause, CancelledError
        )
        return isinstance(error, ActivityError) or (self._interrupted and is_canceled_child)

    def _interrupt(self) -> None:
        """Whatever the block waits for, the session has failed."""
        if self._block is not None:
            self._interrupted = True
            self._block.cancel()

    # --- ends -------------------------------------------------------------------------------------

    def slot_ended(self, slot: ActivityHandle[Any]) -> None:
        """The internal activity has ended. Called by the runtime."""
        if self._info.state is SessionState.OPEN:
            self._fail(_why(_error_of(slot)))

    def _activity_ended(self, handle: ActivityHandle[Any]) -> None:
        self._pending.pop(handle, None)
        error = _error_of(handle)
        cause = error.__cause__ if isinstance(error, ActivityError) else None
        if isinstance(cause, ApplicationError) and cause.type in (TARGET_GONE, WORKER_LOST):
            # The same news by another way, which may be the faster one.
            self._fail(cause.message)

    def _fail(self, why: str) -> None:
        if self._info.state is SessionState.OPEN:
            self._why = why
            self._end(SessionState.FAILED)
            self._slot.cancel()
            # First whoever waits for one of its activities learns of that.
            asyncio.get_running_loop().call_soon(self._interrupt)

    def _end(self, state: SessionState) -> None:
        self._info = replace(self._info, state=state)
        for handle in list(self._pending):
            handle.cancel()

    def _failure(self) -> SessionFailedError:
        return SessionFailedError(
            f"session {self._info.id} on host {self._info.host!r} has failed: {self._why}"
        )


class Opening:
    """A session to be created: the ``async with`` block is its life."""

    def __init__(self, call: ActivityCall, task_queue: str) -> None:
        self._call = call
        self._task_queue = task_queue
        self._session: Session | None = None

    async def __aenter__(self) -> Session:
        if self._session is not None:
            raise InvalidArgument("a session is created once; call workflow.session again")
        found: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

        def started(host: str, worker_id: str) -> None:
            if not found.done():
                found.set_result((host, worker_id))

        def ended(slot: ActivityHandle[Any]) -> None:
            if self._session is not None:
                self._session.slot_ended(slot)
            elif not found.done():
                why = _why(_error_of(slot))
                found.set_exception(SessionFailedError(f"no session was created: {why}"))

        slot = current().start_activity(replace(self._call, on_started=started))
        slot.add_done_callback(ended)
        try:
            host, worker_id = await found
        except asyncio.CancelledError:
            slot.cancel()
            raise
        facts = SessionInfo(
            self._call.activity_id or "", host, worker_id, self._task_queue, SessionState.OPEN
        )
        self._session = Session(facts, slot)
        self._session.entered()
        return self._session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._session is not None, "the block was entered"
        instead = self._session.left(error)
        if instead is not None:
            raise instead from error


def _error_of(handle: ActivityHandle[Any]) -> BaseException | None:
    # A run that leaves its worker's cache cancels what it holds, like plain futures.
    return asyncio.CancelledError() if handle.cancelled() else handle.exception()


def _why(error: BaseException | None) -> str:
    cause = error.__cause__ if isinstance(error, ActivityError) else error
    match cause:
        case TimeoutError() if cause.type.name == "SCHEDULE_TO_START":
            return (
                "no worker of its task queue had a free session slot within the creation timeout"
                " (workers have some with max_concurrent_sessions)"
            )
        case TimeoutError():
            return "its execution timeout is over"
        case CancelledError():
            return "its slot was cancelled"
        case ApplicationError():
            return cause.message
        case _:
            return "its slot ended"


def session(
    *,
    execution_timeout: timedelta,
    creation_timeout: timedelta = CREATION_TIMEOUT,
    task_queue: str | None = None,
) -> Opening:
    """Have several activities run on one worker process, which no more sessions come to than it has
    slots for::

        async with workflow.session(execution_timeout=timedelta(hours=1)) as s:
            path = await s.execute_activity(download, url)
            await s.execute_activity(process, path)

    Args:
        execution_timeout: Bound of the whole session; it has failed then.
        creation_timeout: How long to wait for a worker with a free slot.
        task_queue: Whose workers; the workflow's own when not given.

    Raises (when the block is entered):
        SessionFailedError: no worker had a slot for it in time.

    Raises (when it is left):
        SessionFailedError: instead of whatever came of its failure: a session that fails cancels
            its block, as a timeout of asyncio would.
    """
    return _opening(task_queue or info().task_queue, execution_timeout, creation_timeout, None)


def recreate_session(
    of: SessionInfo,
    *,
    execution_timeout: timedelta,
    creation_timeout: timedelta = CREATION_TIMEOUT,
) -> Opening:
    """Create a session on the same worker process as an earlier one, of this run or another.

    Arguments and errors are those of `session`; if that worker is gone it fails at once.
    """
    if not isinstance(of, SessionInfo):
        raise InvalidArgument("recreate_session needs the info of a session")
    route = Route.process(of.worker_id)
    return _opening(of.task_queue, execution_timeout, creation_timeout, route)


def _opening(
    task_queue: str, execution_timeout: timedelta, creation_timeout: timedelta, route: Route | None
) -> Opening:
    check_task_queue(task_queue)
    check_duration("execution_timeout", execution_timeout)
    check_duration("creation_timeout", creation_timeout)
    options = ActivityOptions(
        task_queue=session_task_queue(task_queue),
        route=route,
        start_to_close_timeout=execution_timeout,
        schedule_to_start_timeout=creation_timeout,
        # Its start is claimed from history: a session is in one place only.
        retry_policy=_ONCE,
    )
    call = ActivityCall(
        activity_type=SESSION_TYPE, args=(), options=options, activity_id=f"session-{uuid4()}"
    )
    return Opening(call, task_queue)
