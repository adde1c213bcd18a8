"""Activities, as workflow code starts them.

Options are those of `tq_broker.common.ActivityOptions`: what the call says wins over what the
activity's decorator says, and that over what the workflow has (its task queue and priority).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, overload

from tq_broker.activity import definition_of
from tq_broker.common import ActivityOptions, ActivityOptionsDict, options_from
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import check_text
from tq_broker.workflow.calls import (
    LOCAL_RETRY_THRESHOLD,
    UNSET,
    ActivityCall,
    ActivityCancellationType,
    LocalActivityCall,
    arguments,
)
from tq_broker.workflow.definition import NAME_BYTES_MAX
from tq_broker.workflow.handles import ActivityHandle
from tq_broker.workflow.runtime import current

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar("R")
NO_OPTIONS = ActivityOptions()


class ActivityCallDict(ActivityOptionsDict, total=False):
    """The keywords of a call."""

    args: Sequence[Any]
    result_type: Any
    cancellation_type: ActivityCancellationType
    activity_id: str | None
    summary: str | None


class LocalActivityCallDict(ActivityOptionsDict, total=False):
    """The keywords of a call of a local activity; task queue, route, priority and heartbeat
    timeout have no meaning there."""

    args: Sequence[Any]
    result_type: Any
    cancellation_type: ActivityCancellationType
    activity_id: str | None
    local_retry_threshold: timedelta | None


@overload
def start_activity(
    activity: Callable[..., Awaitable[R]], arg: Any = ..., **options: Unpack[ActivityCallDict]
) -> ActivityHandle[R]: ...


@overload
def start_activity(
    activity: Callable[..., R], arg: Any = ..., **options: Unpack[ActivityCallDict]
) -> ActivityHandle[R]: ...


@overload
def start_activity(
    activity: str, arg: Any = ..., **options: Unpack[ActivityCallDict]
) -> ActivityHandle[Any]: ...


def start_activity(
    activity: Any,
    arg: Any = UNSET,
    *,
    args: Sequence[Any] | None = None,
    result_type: Any = None,
    cancellation_type: ActivityCancellationType = ActivityCancellationType.TRY_CANCEL,
    activity_id: str | None = None,
    summary: str | None = None,
    **options: Any,
) -> ActivityHandle[Any]:
    """Schedule an activity, and go on; await the handle for its result.

    Args:
        activity: A function, method or callable class with ``@activity.defn``, or a type's name.
        arg: Its only argument; or give several as ``args``.
        result_type: What its result is; known for functions with a hint.
        cancellation_type: What a cancellation of the handle means.
        activity_id: Unique in this run; numbered when not given.
        summary: One line for people.
        **options: Of `tq_broker.common.ActivityOptions`.

    Raises:
        InvalidArgument: names the argument; also when neither start-to-close nor
            schedule-to-close timeout is set.
        PayloadTooLarge: the arguments are.
    """
    activity_type, defaults, hint = _about(activity)
    call = ActivityCall(
        activity_type=activity_type,
        args=arguments(arg, args),
        options=_merged(options, defaults),
        result_type=hint if result_type is None else result_type,
        cancellation_type=ActivityCancellationType(cancellation_type),
        activity_id=activity_id,
        summary=summary or "",
    )
    return current().start_activity(call)


@overload
async def execute_activity(
    activity: Callable[..., Awaitable[R]], arg: Any = ..., **options: Unpack[ActivityCallDict]
) -> R: ...


@overload
async def execute_activity(
    activity: Callable[..., R], arg: Any = ..., **options: Unpack[ActivityCallDict]
) -> R: ...


@overload
async def execute_activity(
    activity: str, arg: Any = ..., **options: Unpack[ActivityCallDict]
) -> Any: ...


async def execute_activity(activity: Any, arg: Any = UNSET, **options: Any) -> Any:
    """Schedule an activity and wait for its result: see `start_activity`.

    Raises:
        ActivityError: it ended without a result; the cause says how.
    """
    return await start_activity(activity, arg, **options)


@overload
def start_local_activity(
    activity: Callable[..., Awaitable[R]], arg: Any = ..., **options: Unpack[LocalActivityCallDict]
) -> ActivityHandle[R]: ...


@overload
def start_local_activity(
    activity: Callable[..., R], arg: Any = ..., **options: Unpack[LocalActivityCallDict]
) -> ActivityHandle[R]: ...


@overload
def start_local_activity(
    activity: str, arg: Any = ..., **options: Unpack[LocalActivityCallDict]
) -> ActivityHandle[Any]: ...


def start_local_activity(
    activity: Any,
    arg: Any = UNSET,
    *,
    args: Sequence[Any] | None = None,
    result_type: Any = None,
    cancellation_type: ActivityCancellationType = ActivityCancellationType.TRY_CANCEL,
    activity_id: str | None = None,
    local_retry_threshold: timedelta | None = None,
    **options: Any,
) -> ActivityHandle[Any]:
    """Run an activity in this worker, within the workflow task: for short and idempotent work.

    Args:
        local_retry_threshold: A retry that is due later than this (one minute when not given) is
            waited for by a timer of the workflow, not by the worker.

    The rest is as for `start_activity`.
    """
    activity_type, defaults, hint = _about(activity)
    call = LocalActivityCall(
        activity_type=activity_type,
        args=arguments(arg, args),
        options=_merged(options, defaults),
        result_type=hint if result_type is None else result_type,
        cancellation_type=ActivityCancellationType(cancellation_type),
        activity_id=activity_id,
        local_retry_threshold=local_retry_threshold or LOCAL_RETRY_THRESHOLD,
    )
    return current().start_local_activity(call)


@overload
async def execute_local_activity(
    activity: Callable[..., Awaitable[R]], arg: Any = ..., **options: Unpack[LocalActivityCallDict]
) -> R: ...


@overload
async def execute_local_activity(
    activity: Callable[..., R], arg: Any = ..., **options: Unpack[LocalActivityCallDict]
) -> R: ...


@overload
async def execute_local_activity(
    activity: str, arg: Any = ..., **options: Unpack[LocalActivityCallDict]
) -> Any: ...


async def execute_local_activity(activity: Any, arg: Any = UNSET, **options: Any) -> Any:
    """Run an activity in this worker and wait for its result: see `start_local_activity`."""
    return await start_local_activity(activity, arg, **options)


def _about(activity: Any) -> tuple[str, ActivityOptions, Any]:
    """Type, options of the decorator and type of the result."""
    if isinstance(activity, str):
        return check_text("activity", activity, bytes_max=NAME_BYTES_MAX), NO_OPTIONS, Any
    # The definition of a bound method is a new one each time; that of its function is kept.
    definition = definition_of(getattr(activity, "__func__", activity))
    if definition.dynamic:
        raise InvalidArgument("a dynamic activity is called by the name of a type")
    return definition.name, definition.options, definition.result_type


def _merged(options: dict[str, Any], defaults: ActivityOptions) -> ActivityOptions:
    if not options:
        return defaults
    said = options_from(options)
    return said if defaults is NO_OPTIONS else said.over(defaults)


# The names that Temporal has for methods and callable classes: the same functions here.
start_activity_method = start_activity_class = start_activity
execute_activity_method = execute_activity_class = execute_activity
start_local_activity_method = start_local_activity_class = start_local_activity
execute_local_activity_method = execute_local_activity_class = execute_local_activity
