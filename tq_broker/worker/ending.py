"""How a run ends, when an exception leaves its code."""

from __future__ import annotations

import asyncio

from tq_broker.common import to_ms
from tq_broker.exceptions import CancelledError, FailureError
from tq_broker.model import payload
from tq_broker.model.commands import CancelWorkflow, Command, ContinueAsNew, FailWorkflow
from tq_broker.model.tasks import wire_retry_policy
from tq_broker.worker.conversion import Conversion
from tq_broker.workflow.calls import Continuation
from tq_broker.workflow.errors import ContinueAsNewError

FailureTypes = tuple[type[BaseException], ...]


def is_failure(error: BaseException, failure_types: FailureTypes) -> bool:
    """Whether ``error`` is a result of the workflow; otherwise its code is broken."""
    return isinstance(error, (FailureError, asyncio.TimeoutError, *failure_types))


def is_cancellation(error: BaseException) -> bool:
    """Whether ``error`` is a cancellation, or that of something that was awaited."""
    if isinstance(error, FailureError) and isinstance(error.cause, CancelledError):
        return True
    return isinstance(error, (asyncio.CancelledError, CancelledError))


def ending(
    error: BaseException,
    conversion: Conversion,
    *,
    cancel_requested: bool,
    failure_types: FailureTypes,
) -> Command | None:
    """The command that ends the run; ``None`` if only the workflow task fails.

    Raises:
        PayloadTooLarge, InvalidArgument: of what the next run is to get.
    """
    if isinstance(error, ContinueAsNewError):
        return _continue(error.continuation, conversion)
    if cancel_requested and is_cancellation(error):
        return CancelWorkflow()
    if is_failure(error, failure_types):
        return FailWorkflow(failure=conversion.failure(error))
    return None


def _continue(following: Continuation, conversion: Conversion) -> ContinueAsNew:
    policy, memo = following.retry_policy, following.memo
    return ContinueAsNew(
        workflow_type=following.workflow_type or "",
        task_queue=following.task_queue or "",
        input=payload.dump_args(following.args, conversion.converter),
        run_timeout_ms=to_ms(following.run_timeout) if following.run_timeout else 0,
        task_timeout_ms=to_ms(following.task_timeout) if following.task_timeout else 0,
        backoff_ms=to_ms(following.backoff) if following.backoff else 0,
        retry_policy=None if policy is None else wire_retry_policy(policy),
        memo=None if memo is None else {key: conversion.dump(memo[key]) for key in memo},
        initial_versioning_behavior=int(following.initial_versioning_behavior),
    )
