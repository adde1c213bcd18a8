"""Back-off: what a failure asks of whoever else would call the same downstream. Pure."""

from __future__ import annotations

from tq_broker.exceptions import BackOffScope
from tq_broker.model.failure import Failure
from tq_broker.model.settings import BACK_OFF_MAX_MS, BackedOff
from tq_broker.model.tasks import ActivityTask

REASON_MAX = 300
"""Characters; everybody who follows the log keeps it until the back-off is over."""
SLACK = 0.05
"""Of its length: a back-off that ends so little later than one in force is not told. Many
attempts hear the same within a moment, and the log is to have it once."""


def asked(task: ActivityTask, failure: Failure, now_ms: int, by: str) -> BackedOff | None:
    """What ``failure`` of ``task`` asks for; ``None`` if nothing, or only for the attempt itself:
    a key was meant, and the task has none."""
    delay_ms = failure.next_retry_delay_ms
    if not failure.back_off or not delay_ms:
        return None
    is_key = failure.back_off == BackOffScope.KEY.value
    if is_key and not task.rate_limit_key:
        return None
    return BackedOff(
        task_queue=task.task_queue,
        until_ms=now_ms + min(delay_ms, BACK_OFF_MAX_MS),
        at_ms=now_ms,
        by=by,
        reason=f"{task.activity_type} {task.activity_id}: {failure.message}"[:REASON_MAX],
        key=task.rate_limit_key if is_key else "",
    )


def is_news(asked: BackedOff, in_force: BackedOff | None) -> bool:
    """Whether ``asked`` is to be told, with ``in_force`` known."""
    if in_force is None:
        return True
    slack_ms = SLACK * (asked.until_ms - asked.at_ms)
    return asked.until_ms - in_force.until_ms > slack_ms
