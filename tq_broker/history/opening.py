"""How a run begins, be it the first of its chain or not."""

from __future__ import annotations

import hashlib
import uuid

import msgspec

from tq_broker.history import bonds, workflow_task
from tq_broker.history.state import Execution
from tq_broker.history.turn import Turn
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.events import NO_ARGS, WorkflowExecutionStarted
from tq_broker.model.payload import Payload


def begin(started: WorkflowExecutionStarted, deployments: Deployments = NO_DEPLOYMENTS) -> Turn:
    """Make the run that ``started`` describes. The caller may let it learn more, and then calls
    `tq_broker.history.workflow_task.finish`."""
    begin_ms = started.time_ms + started.first_task_backoff_ms
    run = Execution(
        started=_remembered(started),
        start_ms=started.time_ms,
        memo=dict(started.memo),
        bonds=bonds.inherited(started),
        run_deadline_ms=begin_ms + started.run_timeout_ms if started.run_timeout_ms else 0,
    )
    turn = Turn(run, started.time_ms, deployments)
    turn.append(started)
    turn.wants_task = True
    if started.first_task_backoff_ms:
        turn.wants_task = False
        workflow_task.delay(turn, started.first_task_backoff_ms)
    return turn


def _remembered(started: WorkflowExecutionStarted) -> WorkflowExecutionStarted:
    """What the state keeps of it: arguments only if another run may be begun with them."""
    needed: Payload = NO_ARGS
    if started.retry_policy is not None or started.cron_schedule:
        needed = started.input
    return msgspec.structs.replace(started, input=needed, memo={})


def next_run_id(run_id: str) -> str:
    """The id of the run that follows, the same whenever it is asked."""
    digest = hashlib.blake2b(run_id.encode(), digest_size=16, person=b"next run").digest()
    return str(uuid.UUID(bytes=digest, version=4))
