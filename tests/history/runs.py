"""Runs for tests, as the machine begins them."""

from __future__ import annotations

from typing import Any

from tq_broker.history import machine
from tq_broker.history.effects import ReplyTo
from tq_broker.history.state import Execution
from tq_broker.history.step import Step
from tq_broker.model.requests import StartWorkflow

NOW_MS = 1_700_000_000_000
ASKER = ReplyTo("tq.n.reply.c", "7")


def begin(workflow_id: str = "w", run_id: str = "r", **fields: Any) -> tuple[Execution, Step]:
    request = StartWorkflow(workflow_id=workflow_id, workflow_type="T", task_queue="q", **fields)
    return machine.start(request, run_id=run_id, now_ms=NOW_MS, sender=ASKER)
