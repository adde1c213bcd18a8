"""What is the same of two histories of the same journey."""

from __future__ import annotations

from typing import Any

import msgspec

from tq_broker.model.history_json import WorkflowHistory

_IDS = {"run_id", "first_run_id", "new_run_id", "continued_run_id", "update_id", "worker_id"}
_TIMES = {"time_ms", "execution_deadline_ms", "first_task_backoff_ms"}
_OF_THE_CACHE = {"sticky"}
_SIZES = {"history_bytes"}
_OTHER = _IDS | _TIMES | _OF_THE_CACHE | _SIZES

# Their values, but not what they do, hang on the run's id and on the time.
_DRAWN = ("tools.", "local-activities.")
# The order in which they come hangs on threads.
_BY_CHANCE = ("crowd.", "crowd-")


def comparable(name: str, history: WorkflowHistory) -> list[Any]:
    """``history`` without what is different in every run."""
    if name.startswith(_BY_CHANCE):
        return []
    if name.startswith(_DRAWN):
        return [type(event) for event in history.events]
    return [_without(msgspec.to_builtins(event)) for event in history.events]


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(one) for key, one in value.items() if key not in _OTHER}
    return value
