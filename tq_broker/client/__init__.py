"""Programs that start activities and workflows, ask about them, and wait for their outcomes.

`Client` is for ``asyncio``; `BlockingClient` for everything else (Django, Flask, Celery tasks,
scripts). Both are thin faces of one core and take the same arguments. What workflows are asked is
said in `tq_broker.client.workflow_handles` and `tq_broker.client.workflow_faces`; it goes to a
history service through the broker, and is asked again until it is answered
(`tq_broker.client.calls`), so that a wait for a result survives restarts of both.
"""

from tq_broker.client.broadcast import WorkerResult
from tq_broker.client.execution import (
    PendingActivity,
    PendingChild,
    PendingWorkflowTask,
    WorkflowExecution,
    WorkflowExecutionCount,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
)
from tq_broker.client.faces import (
    ActivityHandle,
    AsyncActivityHandle,
    BlockingActivityHandle,
    BlockingAsyncActivityHandle,
    BlockingClient,
    Client,
)
from tq_broker.client.finding import ActivityDescription, ActivityState
from tq_broker.client.interceptors import (
    CancelActivityInput,
    CancelWorkflowInput,
    CompleteAsyncActivityInput,
    CountWorkflowsInput,
    DescribeWorkflowInput,
    FailAsyncActivityInput,
    FetchWorkflowHistoryEventsInput,
    HeartbeatAsyncActivityInput,
    Interceptor,
    ListWorkflowsInput,
    OutboundInterceptor,
    QueryWorkflowInput,
    ReportCancellationAsyncActivityInput,
    SignalWorkflowInput,
    StartActivityInput,
    StartWorkflowInput,
    StartWorkflowUpdateInput,
    StartWorkflowUpdateWithStartInput,
    TerminateWorkflowInput,
    UpdateWithStartUpdateWorkflowInput,
)
from tq_broker.client.operations import TaskQueueDescription, TaskQueueSummary
from tq_broker.client.peeking import PeekedTask
from tq_broker.client.transfer import Transferred
from tq_broker.client.workflow_faces import (
    BlockingWithStartWorkflowOperation,
    WithStartWorkflowOperation,
)
from tq_broker.client.workflow_handles import (
    BlockingWorkflowHandle,
    BlockingWorkflowUpdateHandle,
    WorkflowHandle,
    WorkflowUpdateHandle,
    WorkflowUpdateStage,
)
from tq_broker.client.workflow_start import StartWorkflowOptions
from tq_broker.common import QueryRejectCondition
from tq_broker.exceptions import (
    WorkflowContinuedAsNewError,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from tq_broker.model.history_json import WorkflowHistory

__all__ = [
    "ActivityDescription",
    "ActivityHandle",
    "ActivityState",
    "AsyncActivityHandle",
    "BlockingActivityHandle",
    "BlockingAsyncActivityHandle",
    "BlockingClient",
    "BlockingWithStartWorkflowOperation",
    "BlockingWorkflowHandle",
    "BlockingWorkflowUpdateHandle",
    "CancelActivityInput",
    "CancelWorkflowInput",
    "Client",
    "CompleteAsyncActivityInput",
    "CountWorkflowsInput",
    "DescribeWorkflowInput",
    "FailAsyncActivityInput",
    "FetchWorkflowHistoryEventsInput",
    "HeartbeatAsyncActivityInput",
    "Interceptor",
    "ListWorkflowsInput",
    "OutboundInterceptor",
    "PeekedTask",
    "PendingActivity",
    "PendingChild",
    "PendingWorkflowTask",
    "QueryRejectCondition",
    "QueryWorkflowInput",
    "ReportCancellationAsyncActivityInput",
    "SignalWorkflowInput",
    "StartActivityInput",
    "StartWorkflowInput",
    "StartWorkflowOptions",
    "StartWorkflowUpdateInput",
    "StartWorkflowUpdateWithStartInput",
    "TaskQueueDescription",
    "TaskQueueSummary",
    "TerminateWorkflowInput",
    "Transferred",
    "UpdateWithStartUpdateWorkflowInput",
    "WithStartWorkflowOperation",
    "WorkerResult",
    "WorkflowContinuedAsNewError",
    "WorkflowExecution",
    "WorkflowExecutionCount",
    "WorkflowExecutionDescription",
    "WorkflowExecutionStatus",
    "WorkflowFailureError",
    "WorkflowHandle",
    "WorkflowHistory",
    "WorkflowQueryFailedError",
    "WorkflowQueryRejectedError",
    "WorkflowUpdateFailedError",
    "WorkflowUpdateHandle",
    "WorkflowUpdateStage",
]
