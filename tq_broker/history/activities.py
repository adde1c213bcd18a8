"""Activities of a run."""

from __future__ import annotations

from tq_broker.history.effects import DispatchActivity
from tq_broker.history.state import Execution
from tq_broker.model.events import ActivityTaskScheduled
from tq_broker.model.payload import Payload
from tq_broker.model.tasks import ActivityTask


def wire_id(run_id: str, scheduled_event_id: int) -> str:
    """The id by which workers know an activity of a workflow."""
    return f"{run_id}/{scheduled_event_id}"


def task(
    run: Execution, scheduled: ActivityTaskScheduled, effect: DispatchActivity
) -> tuple[ActivityTask, Payload | None]:
    """The task to publish (``reply_to`` is the caller's to fill in), and the heartbeat details that
    go into the ``tq-heartbeat`` header because codecs hide them."""
    raise NotImplementedError
