"""Ending a run so that another continues it, with a fresh history."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict

from tq_broker.common import ContinueAsNewVersioningBehavior, RetryPolicy
from tq_broker.workflow.calls import UNSET, Continuation, arguments
from tq_broker.workflow.children import workflow_about
from tq_broker.workflow.runtime import current

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ContinuationDict(TypedDict, total=False):
    """The keywords of `continue_as_new`."""

    task_queue: str | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    retry_policy: RetryPolicy | None
    memo: Mapping[str, Any] | None
    initial_versioning_behavior: ContinueAsNewVersioningBehavior


def continue_as_new(
    arg: Any = UNSET,
    *,
    args: Sequence[Any] | None = None,
    workflow: str | Callable[..., Awaitable[Any]] | None = None,
    backoff_start_interval: timedelta | None = None,
    **options: Unpack[ContinuationDict],
) -> NoReturn:
    """End this run; another with the same id begins in its place. Raises, never returns.

    Args:
        arg: The new run's only argument; or give several as ``args``.
        workflow: Another workflow type.
        backoff_start_interval: Pause before it begins.
        **options: ``task_queue``, ``run_timeout``, ``task_timeout``, ``retry_policy`` and ``memo``:
            as this run has them when not given; ``initial_versioning_behavior``: a pinned run hands
            on its deployment version unless this says to upgrade.

    Raises:
        ContinueAsNewError: always; let it pass.
    """
    continuation = Continuation(
        workflow_type=None if workflow is None else workflow_about(workflow)[0],
        args=arguments(arg, args),
        backoff=backoff_start_interval,
        **options,
    )
    current().continue_as_new(continuation)
