"""What authors of workflows write and call. Names and meanings are those of Temporal's Python SDK.

Outside a function::

    @workflow.defn
    class Order:
        @workflow.run
        async def run(self, number: int) -> str:
            return await workflow.execute_activity(
                ship, number, start_to_close_timeout=timedelta(minutes=5)
            )

Workflow code must do the same at each replay of its history. It runs on an event loop of its own,
on which plain asyncio works (``gather``, ``create_task``, ``TaskGroup``, ``wait_for``, ``timeout``,
``Lock``, ``Event``, ``Queue``); time, randomness and the world outside come from this module and
from activities.
"""

from __future__ import annotations

from tq_broker.common import ParentClosePolicy, RawValue
from tq_broker.workflow import unsafe
from tq_broker.workflow.activities import (
    execute_activity,
    execute_activity_class,
    execute_activity_method,
    execute_local_activity,
    execute_local_activity_class,
    execute_local_activity_method,
    start_activity,
    start_activity_class,
    start_activity_method,
    start_local_activity,
    start_local_activity_class,
    start_local_activity_method,
)
from tq_broker.workflow.calls import ActivityCancellationType, ChildWorkflowCancellationType
from tq_broker.workflow.children import execute_child_workflow, start_child_workflow
from tq_broker.workflow.continuation import continue_as_new
from tq_broker.workflow.definition import (
    HandlerUnfinishedPolicy,
    WorkflowDefinition,
    defn,
    init,
    query,
    run,
    signal,
    update,
)
from tq_broker.workflow.errors import (
    ContinueAsNewError,
    NondeterminismError,
    ReadOnlyContextError,
    RestrictedWorkflowAccessError,
    UnfinishedSignalHandlersWarning,
    UnfinishedUpdateHandlersWarning,
)
from tq_broker.workflow.external import (
    ExternalWorkflowHandle,
    get_external_workflow_handle,
    get_external_workflow_handle_for,
)
from tq_broker.workflow.facts import Info, ParentInfo, UpdateInfo
from tq_broker.workflow.handlers import (
    all_handlers_finished,
    current_update_info,
    get_dynamic_query_handler,
    get_dynamic_signal_handler,
    get_dynamic_update_handler,
    get_query_handler,
    get_signal_handler,
    get_update_handler,
    set_dynamic_query_handler,
    set_dynamic_signal_handler,
    set_dynamic_update_handler,
    set_query_handler,
    set_signal_handler,
    set_update_handler,
)
from tq_broker.workflow.handles import ActivityHandle, ChildWorkflowHandle
from tq_broker.workflow.info import (
    cancellation_reason,
    extern_functions,
    get_current_details,
    get_last_completion_result,
    get_last_failure,
    has_last_completion_result,
    info,
    memo,
    memo_value,
    payload_converter,
    set_current_details,
    upsert_memo,
)
from tq_broker.workflow.logs import logger
from tq_broker.workflow.patching import deprecate_patch, patched
from tq_broker.workflow.randomness import new_random, random, random_seed, uuid4, uuid7
from tq_broker.workflow.runtime import in_workflow
from tq_broker.workflow.sessions import (
    Session,
    SessionInfo,
    SessionState,
    recreate_session,
    session,
)
from tq_broker.workflow.time import now, time, time_ns
from tq_broker.workflow.waiting import as_completed, sleep, wait, wait_condition

__all__ = [
    "ActivityCancellationType",
    "ActivityHandle",
    "ChildWorkflowCancellationType",
    "ChildWorkflowHandle",
    "ContinueAsNewError",
    "ExternalWorkflowHandle",
    "HandlerUnfinishedPolicy",
    "Info",
    "NondeterminismError",
    "ParentClosePolicy",
    "ParentInfo",
    "RawValue",
    "ReadOnlyContextError",
    "RestrictedWorkflowAccessError",
    "Session",
    "SessionInfo",
    "SessionState",
    "UnfinishedSignalHandlersWarning",
    "UnfinishedUpdateHandlersWarning",
    "UpdateInfo",
    "WorkflowDefinition",
    "all_handlers_finished",
    "as_completed",
    "cancellation_reason",
    "continue_as_new",
    "current_update_info",
    "defn",
    "deprecate_patch",
    "execute_activity",
    "execute_activity_class",
    "execute_activity_method",
    "execute_child_workflow",
    "execute_local_activity",
    "execute_local_activity_class",
    "execute_local_activity_method",
    "extern_functions",
    "get_current_details",
    "get_dynamic_query_handler",
    "get_dynamic_signal_handler",
    "get_dynamic_update_handler",
    "get_external_workflow_handle",
    "get_external_workflow_handle_for",
    "get_last_completion_result",
    "get_last_failure",
    "get_query_handler",
    "get_signal_handler",
    "get_update_handler",
    "has_last_completion_result",
    "in_workflow",
    "info",
    "init",
    "logger",
    "memo",
    "memo_value",
    "new_random",
    "now",
    "patched",
    "payload_converter",
    "query",
    "random",
    "random_seed",
    "recreate_session",
    "run",
    "session",
    "set_current_details",
    "set_dynamic_query_handler",
    "set_dynamic_signal_handler",
    "set_dynamic_update_handler",
    "set_query_handler",
    "set_signal_handler",
    "set_update_handler",
    "signal",
    "sleep",
    "start_activity",
    "start_activity_class",
    "start_activity_method",
    "start_child_workflow",
    "start_local_activity",
    "start_local_activity_class",
    "start_local_activity_method",
    "time",
    "time_ns",
    "unsafe",
    "update",
    "upsert_memo",
    "uuid4",
    "uuid7",
    "wait",
    "wait_condition",
]
