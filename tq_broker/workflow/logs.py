"""A logger that says which run speaks, and says each thing once: it is silent in replay."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from tq_broker.activity import FactLine
from tq_broker.workflow.runtime import find

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # it takes a parameter from Python 3.11 on


class _WorkflowLogger(_Adapter):
    """Adds the run's ids, type and task queue to each record."""

    def isEnabledFor(self, level: int) -> bool:
        runtime = find()
        if runtime is not None and runtime.replaying:
            return False
        return super().isEnabledFor(level)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        runtime = find()
        if runtime is None:
            return msg, kwargs
        about = runtime.info
        facts = {
            "workflow_id": about.workflow_id,
            "run_id": about.run_id,
            "workflow_type": about.workflow_type,
            "task_queue": about.task_queue,
            "attempt": about.attempt,
        }
        kwargs["extra"] = {**(kwargs.get("extra") or {}), "tq_workflow": facts}
        return FactLine(msg, f" ({about.workflow_type} {about.workflow_id})"), kwargs


logger = _WorkflowLogger(logging.getLogger("tq_broker.workflow"), {})
"""A logger for workflow code: adds ``record.tq_workflow``, and says nothing in replay."""
