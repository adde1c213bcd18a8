from __future__ import annotations

import pytest

from tq_broker.exceptions import Malformed
from tq_broker.history import records
from tq_broker.history.effects import (
    CancelActivity,
    DispatchActivity,
    DispatchQuery,
    DispatchWorkflowTask,
    Effect,
    Reply,
    ReplyFromEvent,
    ReplyTo,
    ToShard,
)
from tq_broker.model.events import ActivityTaskScheduled
from tq_broker.model.requests import Closed, SignalWorkflow, Status
from tq_broker.model.workflow_tasks import RunKey, WorkflowTask

TO = ReplyTo("tq.n.reply.c", "7")
TASK = WorkflowTask(
    run=RunKey("w", "r"), workflow_type="T", task_queue="q", shard=3, scheduled_event_id=2
)
SCHEDULED = ActivityTaskScheduled(
    event_id=5, time_ms=1, activity_id="1", activity_type="a", task_queue="q", input=b"{}"
)
EFFECTS: list[Effect] = [
    DispatchWorkflowTask(TASK),
    DispatchQuery(TASK),
    DispatchActivity(5, 1, 100, heartbeat=b"[1]"),
    CancelActivity("r/5"),
    Reply(TO, Closed(run_id="r", status=Status.COMPLETED, result=b"1")),
    ReplyFromEvent(TO, 9),
    ToShard("other", SignalWorkflow(workflow_id="other", signal_name="s")),
]


@pytest.mark.parametrize("effect", EFFECTS, ids=lambda effect: type(effect).__name__)
def test_a_row_says_what_the_effect_said(effect: Effect) -> None:
    record = records.record(effect, "r")
    assert records.load(records.dump(record)) == record


def test_what_the_history_tells_is_not_stored() -> None:
    record = records.record(DispatchActivity(5, 1, 100, SCHEDULED), "r")
    assert isinstance(record, records.ActivityRecord)
    assert record.scheduled is SCHEDULED
    loaded = records.load(records.dump(record))
    assert isinstance(loaded, records.ActivityRecord)
    assert loaded.scheduled is None


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\xa4none\x01"])
def test_a_row_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(Malformed, match="outbox row"):
        records.load(data)
