"""How a run looks from outside."""

from __future__ import annotations

from tq_broker.history.state import Execution
from tq_broker.model.requests import Description, RunInfo


def info(run: Execution, now_ms: int) -> RunInfo:
    """A run as it is listed; the columns of its stored row are the fields of this."""
    raise NotImplementedError


def description(run: Execution, now_ms: int) -> Description:
    """All about a run."""
    raise NotImplementedError
