"""Temporal-style task queues for the RabbitMQ you already run.

Authors write ``from tq_broker import activity, workflow``; programs that start or run what they
wrote ``from tq_broker import Client, Worker``. The latter are imported when they are first asked
for: modules that only define something must not pay for a connection library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tq_broker import activity, workflow
from tq_broker.common import (
    ActivityIDConflictPolicy,
    ActivityOptions,
    OnGone,
    RetryPolicy,
    Route,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    TimeoutError,
    TqBrokerError,
    WorkflowAlreadyStartedError,
    WorkflowFailureError,
)

if TYPE_CHECKING:
    from tq_broker.client import ActivityHandle, BlockingClient, Client, WorkflowHandle
    from tq_broker.queues.kombu_queue import kombu_queue
    from tq_broker.worker import Worker

__version__ = "0.1.0"

__all__ = [
    "ActivityError",
    "ActivityHandle",
    "ActivityIDConflictPolicy",
    "ActivityOptions",
    "ApplicationError",
    "BlockingClient",
    "CancelledError",
    "ChildWorkflowError",
    "Client",
    "OnGone",
    "RetryPolicy",
    "Route",
    "TimeoutError",
    "TqBrokerError",
    "Worker",
    "WorkflowAlreadyStartedError",
    "WorkflowFailureError",
    "WorkflowHandle",
    "WorkflowIDConflictPolicy",
    "WorkflowIDReusePolicy",
    "activity",
    "kombu_queue",
    "workflow",
]

_HOMES = {
    "ActivityHandle": "tq_broker.client",
    "BlockingClient": "tq_broker.client",
    "Client": "tq_broker.client",
    "Worker": "tq_broker.worker",
    "WorkflowHandle": "tq_broker.client",
    "kombu_queue": "tq_broker.queues.kombu_queue",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
