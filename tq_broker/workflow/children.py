"""Child workflows, as workflow code starts them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, overload

from tq_broker.common import (
    AffinityKind,
    OnLost,
    ParentClosePolicy,
    Requires,
    RetryPolicy,
    Route,
    VersioningOverride,
    WorkerDeploymentVersion,
    WorkflowIDReusePolicy,
)
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import check_text
from tq_broker.workflow.calls import UNSET, ChildCall, ChildWorkflowCancellationType, arguments
from tq_broker.workflow.definition import NAME_BYTES_MAX, definition_of
from tq_broker.workflow.handles import ChildWorkflowHandle
from tq_broker.workflow.randomness import uuid4
from tq_broker.workflow.runtime import current

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar("R")


class ChildCallDict(TypedDict, total=False):
    """The keywords of a child's start, see `start_child_workflow`."""

    args: Sequence[Any]
    id: str | None
    task_queue: str | None
    result_type: Any
    cancellation_type: ChildWorkflowCancellationType
    parent_close_policy: ParentClosePolicy
    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    id_reuse_policy: WorkflowIDReusePolicy
    retry_policy: RetryPolicy | None
    cron_schedule: str
    memo: Mapping[str, Any] | None
    headers: Mapping[str, str] | None
    priority: int | None
    fairness_key: str | None
    fairness_weight: float | None
    version: VersioningOverride | WorkerDeploymentVersion | str | None
    route: Route | None
    requires: Collection[str] | Requires | None
    affinity: AffinityKind | None
    affinity_group: str | None
    on_lost: OnLost | None
    static_summary: str | None
    static_details: str | None


@overload
async def start_child_workflow(
    workflow: Callable[..., Awaitable[R]], arg: Any = ..., **options: Unpack[ChildCallDict]
) -> ChildWorkflowHandle[R]: ...


@overload
async def start_child_workflow(
    workflow: str, arg: Any = ..., **options: Unpack[ChildCallDict]
) -> ChildWorkflowHandle[Any]: ...


async def start_child_workflow(
    workflow: Any,
    arg: Any = UNSET,
    *,
    args: Sequence[Any] | None = None,
    id: str | None = None,
    result_type: Any = None,
    **options: Any,
) -> ChildWorkflowHandle[Any]:
    """Start a child workflow and wait until it has been started; await the handle for its result.

    Args:
        workflow: A run method (``Order.run``), a workflow class, or a type's name.
        arg: Its only argument; or give several as ``args``.
        id: The child's workflow id; a new UUID when not given.
        task_queue: Its task queue; this workflow's own when not given.
        result_type: What its result is; known for run methods with a hint.
        cancellation_type: What a cancellation of the handle means.
        parent_close_policy: What becomes of the child when this workflow ends.
        execution_timeout: Bound of all its runs together.
        run_timeout: Bound of one run.
        task_timeout: Bound of one workflow task.
        id_reuse_policy: Whether the id may have been used before.
        retry_policy: Of the child as a whole; without one it is not tried again.
        cron_schedule: Run it again and again.
        memo: Values that are shown with it.
        headers: Texts that travel with it, beside this workflow's own.
        priority, fairness_key, fairness_weight: This workflow's own when not given.
        version: The deployment version (``shop.1.4``) that its runs are pinned to, or
            ``auto_upgrade``. When not given it begins with this workflow's version if this one is
            pinned.
        route: The host or process whose workers have its workflow tasks, and what becomes of it
            when they are gone. This workflow's own is not handed on.
        requires: Capabilities that they must have, in the same way.
        affinity, affinity_group, on_lost: Whom its activities follow that do not say where they
            run: see `tq_broker.common.ActivityOptions`. This workflow's own when not given, unless
            the child is on another task queue. They follow on from where activities of this
            workflow with the same affinity have run, if that is known now.
        static_summary, static_details: Text for people.

    Raises:
        WorkflowAlreadyStartedError: the id is taken.
        ChildWorkflowError: it was refused; the cause says why.
        InvalidArgument: names the argument.
    """
    workflow_type, hint = workflow_about(workflow)
    defaults = {} if isinstance(workflow, str) else definition_of(workflow).defaults
    said = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(set(said) - ChildCallDict.__annotations__.keys())
    if unknown:
        raise InvalidArgument(f"unknown option {unknown[0]!r} of a child workflow")
    call = ChildCall(
        workflow_type=workflow_type,
        args=arguments(arg, args),
        id=str(uuid4()) if id is None else id,
        result_type=hint if result_type is None else result_type,
        defaults=defaults,
        **said,
    )
    return await current().start_child(call)


@overload
async def execute_child_workflow(
    workflow: Callable[..., Awaitable[R]], arg: Any = ..., **options: Unpack[ChildCallDict]
) -> R: ...


@overload
async def execute_child_workflow(
    workflow: str, arg: Any = ..., **options: Unpack[ChildCallDict]
) -> Any: ...


async def execute_child_workflow(workflow: Any, arg: Any = UNSET, **options: Any) -> Any:
    """Start a child workflow and wait for its result: see `start_child_workflow`.

    Raises:
        ChildWorkflowError: it ended without a result; the cause says how.
    """
    return await (await start_child_workflow(workflow, arg, **options))


def workflow_about(workflow: Any) -> tuple[str, Any]:
    """Type and type of the result of a workflow, its run method or its name."""
    if isinstance(workflow, str):
        return check_text("workflow", workflow, bytes_max=NAME_BYTES_MAX), Any
    definition = definition_of(workflow)
    if definition.dynamic:
        raise InvalidArgument("a dynamic workflow is started by the name of a type")
    return definition.name, definition.result_type
