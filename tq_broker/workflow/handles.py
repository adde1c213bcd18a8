"""What workflow code holds of an activity or a child: futures whose cancellation is a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from tq_broker.workflow.calls import UNSET, arguments
from tq_broker.workflow.definition import handler_of

T = TypeVar("T")


class RequestingFuture(asyncio.Future[T]):
    """A future that asks, when it is cancelled, what that means here.

    Cancelling whoever awaits it comes here too: that is how asyncio cancels.

    Args:
        seq: Its place in the run. Sets iterate in the order of hashes, and the order of addresses
            is another one at each replay.
        on_cancel: Called while it is not done; either ends it or lets it wait on.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seq: int, on_cancel: Callable[[], None]
    ) -> None:
        self._seq = seq
        # Not kept when it is done: it knows this future, which is a cycle.
        self._on_cancel: Callable[[], None] | None = on_cancel
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._seq

    def cancel(self, msg: Any = None) -> bool:
        """Request the cancellation. Returns whether it was still open."""
        if self._on_cancel is None or self.done():
            return False
        self._on_cancel()
        return True

    def give_up(self) -> None:
        """Cancel it like a plain future."""
        self._on_cancel = None
        super().cancel()

    def resolve(self, value: T) -> None:
        """End it with a result, unless it has ended."""
        if not self.done():
            self._on_cancel = None
            self.set_result(value)

    def reject(self, error: BaseException) -> None:
        """End it with an error, unless it has ended."""
        if not self.done():
            self._on_cancel = None
            self.set_exception(error)

    def forget(self) -> None:
        """That it was cancelled need not be looked at by anybody."""
        self._log_traceback = False


class ActivityHandle(RequestingFuture[T]):
    """An activity that was started. Await it for its result; ``cancel()`` it as its
    `ActivityCancellationType` says.

    Raises (when awaited):
        ActivityError: It ended without a result; the cause says how.
    """


class ChildWorkflowHandle(RequestingFuture[T]):
    """A child workflow that was started. Await it for its result.

    Raises (when awaited):
        ChildWorkflowError: It ended without a result; the cause says how.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seq: int,
        on_cancel: Callable[[], None],
        workflow_id: str,
        signaller: Callable[[str, Sequence[Any]], Awaitable[None]],
    ) -> None:
        super().__init__(loop, seq, on_cancel)
        self._id = workflow_id
        self._signaller = signaller
        self._first_run_id: str | None = None

    @property
    def id(self) -> str:
        """The child's workflow id."""
        return self._id

    @property
    def first_execution_run_id(self) -> str | None:
        """Run id of the child's first run."""
        return self._first_run_id

    def started(self, run_id: str) -> None:
        """The child runs, as ``run_id``. Called by the runtime."""
        self._first_run_id = run_id

    async def signal(
        self,
        signal: str | Callable[..., Any],
        arg: Any = UNSET,
        *,
        args: Sequence[Any] | None = None,
    ) -> None:
        """Signal the child, and wait until it has the signal.

        Raises:
            ApplicationError: the child has ended (type ``ExternalWorkflowExecutionNotFound``).
        """
        await self._signaller(signal_name(signal), arguments(arg, args))


def signal_name(signal: str | Callable[..., Any]) -> str:
    """The name behind a signal or its method. Raises `InvalidArgument`."""
    if isinstance(signal, str):
        return signal
    return handler_of("signal", signal).name or ""
