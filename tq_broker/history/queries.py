"""Queries of a run. History cannot answer them; it knows who can, and when.

A run that is idle, or has ended, is asked at once. While a workflow task is out, the answer would
depend on who comes first: the query waits, in memory, for the end of that task.
"""

from __future__ import annotations

from tq_broker.history import workflow_task
from tq_broker.history.effects import ReplyTo
from tq_broker.history.state import Execution
from tq_broker.history.turn import Turn
from tq_broker.model.requests import QueryWorkflow, Refused
from tq_broker.model.workflow_tasks import QueryAnswer, QueryRequest

WAITING_MAX = 1_000
"""Of one run."""


def asked(turn: Turn, message: QueryWorkflow, sender: ReplyTo | None) -> None:
    """Take in a query."""
    run = turn.run
    if sender is None:
        return
    if message.reject_not_open and not run.is_open:
        turn.reply(sender, QueryAnswer(error="rejected", status=run.status.value))
        return
    refusal = _refusal(run)
    if refusal is not None:
        turn.reply(sender, refusal)
        return
    workflow_task.wait(
        run,
        QueryRequest(
            query_type=message.query_type,
            reply_to=sender.reply_to,
            correlation_id=sender.correlation_id,
            input=message.input,
            headers=message.headers,
            deadline_ms=message.deadline_ms,
            reject_not_open=message.reject_not_open,
        ),
    )


def _refusal(run: Execution) -> Refused | None:
    task = run.task
    if task is not None and task.dispatch_ms and task.attempt == 1:
        why = f"workflow {run.workflow_id!r} waits for its time to begin"
        return _refused(run, "query_failed", why)
    if len(run.memory().queries) >= WAITING_MAX:
        return _refused(run, "limit", f"{WAITING_MAX} queries are waiting")
    return None


def _refused(run: Execution, reason: str, message: str) -> Refused:
    return Refused(reason=reason, message=message, workflow_id=run.workflow_id, run_id=run.run_id)
