"""What a workflow can know about its own run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tq_broker.common import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentInfo:
    """The run that started this one as its child."""

    namespace: str
    workflow_id: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateInfo:
    """The update whose handler or validator runs."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class HistorySize:
    """The history as it was when the current workflow task was made."""

    events: int = 0
    bytes: int = 0
    continue_as_new_suggested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """About this run. Times are aware, in UTC; ``None`` durations are not set.

    Attributes:
        workflow_start_time: When this run was started.
        start_time: Workflow time of its first workflow task.
    """

    namespace: str
    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    attempt: int
    first_execution_run_id: str
    continued_run_id: str | None
    cron_schedule: str | None
    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta
    headers: Mapping[str, str]
    parent: ParentInfo | None
    priority: int | None
    fairness_key: str | None
    fairness_weight: float | None
    retry_policy: RetryPolicy | None
    start_time: datetime
    workflow_start_time: datetime
    history: Callable[[], HistorySize]

    def get_current_history_length(self) -> int:
        """Events in the history, up to the current workflow task."""
        return self.history().events

    def get_current_history_size(self) -> int:
        """Bytes in the history, up to the current workflow task."""
        return self.history().bytes

    def is_continue_as_new_suggested(self) -> bool:
        """Whether the history is so long that it is time to `continue_as_new`."""
        return self.history().continue_as_new_suggested
