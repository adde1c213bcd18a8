"""What workflow code asks its runtime for, as values: checked, and with all defaults filled in."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tq_broker.common import (
    ActivityOptions,
    AffinityKind,
    ContinueAsNewVersioningBehavior,
    OnLost,
    ParentClosePolicy,
    Requires,
    RetryPolicy,
    Route,
    WorkflowIDReusePolicy,
    check_duration,
    check_fairness_key,
    check_fairness_weight,
    check_headers,
    versioning_override,
)
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.affinity import AFFINITY_OPTIONS
from tq_broker.model.names import check_task_queue, check_text
from tq_broker.model.tasks import check_place

ID_BYTES_MAX = 1000


class ActivityCancellationType(enum.IntEnum):
    """What the cancellation of an activity's handle means (Temporal's numbers)."""

    TRY_CANCEL = 0
    """Ask the activity to stop, and go on as cancelled at once."""
    WAIT_CANCELLATION_COMPLETED = 1
    """Ask the activity to stop, and wait for how it ends."""
    ABANDON = 2
    """Do not ask; go on as cancelled at once."""


class ChildWorkflowCancellationType(enum.IntEnum):
    """What the cancellation of a child's handle means (Temporal's numbers)."""

    ABANDON = 0
    TRY_CANCEL = 1
    WAIT_CANCELLATION_COMPLETED = 2
    WAIT_CANCELLATION_REQUESTED = 3
    """Ask the child to stop, and go on as cancelled when the request has reached it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityCall:
    """An activity to schedule. ``options.task_queue`` and ``priority`` are ``None`` where the
    workflow's own are to be used. With ``on_started`` history writes down the start when it
    happens; it is called then, with the host and the worker's id."""

    activity_type: str
    args: Sequence[Any]
    options: ActivityOptions
    result_type: Any = Any
    cancellation_type: ActivityCancellationType = ActivityCancellationType.TRY_CANCEL
    activity_id: str | None = None
    summary: str = ""
    on_started: Callable[[str, str], None] | None = None

    def __post_init__(self) -> None:
        if self.activity_id is not None:
            check_text("activity_id", self.activity_id, bytes_max=ID_BYTES_MAX)
        if self.options.task_queue is not None:
            check_task_queue(self.options.task_queue)


LOCAL_RETRY_THRESHOLD = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalActivityCall:
    """An activity to run in the workflow's own worker, within the workflow task."""

    activity_type: str
    args: Sequence[Any]
    options: ActivityOptions
    result_type: Any = Any
    cancellation_type: ActivityCancellationType = ActivityCancellationType.TRY_CANCEL
    activity_id: str | None = None
    local_retry_threshold: timedelta = LOCAL_RETRY_THRESHOLD


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCall:
    """A child workflow to start; ``None`` and empty as in `ActivityCall`."""

    workflow_type: str
    args: Sequence[Any]
    id: str
    task_queue: str | None = None
    result_type: Any = Any
    cancellation_type: ChildWorkflowCancellationType = (
        ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED
    )
    parent_close_policy: ParentClosePolicy = ParentClosePolicy.TERMINATE
    execution_timeout: timedelta | None = None
    run_timeout: timedelta | None = None
    task_timeout: timedelta | None = None
    id_reuse_policy: WorkflowIDReusePolicy = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    retry_policy: RetryPolicy | None = None
    cron_schedule: str = ""
    memo: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    priority: int | None = None
    fairness_key: str | None = None
    fairness_weight: float | None = None
    version: object = None
    """See `tq_broker.common.versioning_override`."""
    route: Route | None = None
    requires: Collection[str] | Requires | None = None
    affinity: AffinityKind | None = None
    affinity_group: str | None = None
    on_lost: OnLost | None = None
    static_summary: str = ""
    static_details: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the decorator of the child says."""

    def __post_init__(self) -> None:
        check_text("id", self.id, bytes_max=ID_BYTES_MAX)
        if self.task_queue is not None:
            check_task_queue(self.task_queue)
        for name in ("execution_timeout", "run_timeout", "task_timeout"):
            if (value := getattr(self, name)) is not None:
                check_duration(name, value)
        check_headers("headers", self.headers)
        if self.fairness_key is not None:
            check_fairness_key("fairness_key", self.fairness_key)
        if self.fairness_weight is not None:
            check_fairness_weight("fairness_weight", self.fairness_weight)
        versioning_override("version", self.version)
        check_place(self.place)
        if self.retry_policy is not None and not isinstance(self.retry_policy, RetryPolicy):
            raise InvalidArgument("retry_policy must be a RetryPolicy")

    @property
    def place(self) -> ActivityOptions:
        """Who may have its workflow tasks: what the call says, over what the decorator does."""
        defaults = {name: self.defaults.get(name) for name in ("route", "requires")}
        said = ActivityOptions(route=self.route, requires=self.requires)
        return said.over(ActivityOptions(**defaults))

    @property
    def bond(self) -> ActivityOptions:
        """Whom its activities follow, in the same way."""
        defaults = {name: self.defaults.get(name) for name in AFFINITY_OPTIONS}
        said = {name: getattr(self, name) for name in AFFINITY_OPTIONS}
        return ActivityOptions(**said).over(ActivityOptions(**defaults))


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """The run that is to follow this one; ``None`` means "as this run has it"."""

    workflow_type: str | None
    args: Sequence[Any]
    task_queue: str | None = None
    run_timeout: timedelta | None = None
    task_timeout: timedelta | None = None
    backoff: timedelta | None = None
    retry_policy: RetryPolicy | None = None
    memo: Mapping[str, Any] | None = None
    initial_versioning_behavior: ContinueAsNewVersioningBehavior = (
        ContinueAsNewVersioningBehavior.UNSPECIFIED
    )

    def __post_init__(self) -> None:
        if not isinstance(self.initial_versioning_behavior, ContinueAsNewVersioningBehavior):
            raise InvalidArgument(
                "initial_versioning_behavior must be a ContinueAsNewVersioningBehavior"
            )
        if self.task_queue is not None:
            check_task_queue(self.task_queue)
        for name in ("run_timeout", "task_timeout", "backoff"):
            if (value := getattr(self, name)) is not None:
                check_duration(name, value)


class Unset:
    """Stands for an argument that was not given: ``None`` is one."""


UNSET = Unset()


def arguments(arg: Any, args: Sequence[Any] | None) -> Sequence[Any]:
    """The arguments of a call with either ``arg`` or ``args``.

    Raises:
        InvalidArgument: both were given, or ``args`` is no sequence.
    """
    if arg is not UNSET:
        if args:
            raise InvalidArgument("give arg or args, not both")
        return [arg]
    if args is None:
        return []
    if isinstance(args, (str, bytes)) or not isinstance(args, Sequence):
        raise InvalidArgument("args must be a sequence of arguments")
    return args


def seconds(duration: timedelta | float) -> float:
    """A duration in seconds. Raises `InvalidArgument` if it is negative or not a number."""
    value = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if not 0 <= value <= 315_360_000:
        raise InvalidArgument(f"duration is {value} s; it must be from 0 to ten years")
    return value
