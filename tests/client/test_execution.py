from __future__ import annotations

from datetime import datetime, timezone

import pytest

from tq_broker.client.execution import (
    WorkflowExecution,
    WorkflowExecutionCount,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    to_time,
)
from tq_broker.common import TargetKind
from tq_broker.converter import DEFAULT, DataConverter, ZlibCodec
from tq_broker.exceptions import ApplicationError
from tq_broker.model import failure, payload, requests
from tq_broker.model.affinity import Affinity

CODED = DataConverter(codecs=(ZlibCodec(),))
START = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=timezone.utc)
START_MS = 1_767_323_045_600
INFO = requests.RunInfo(
    workflow_id="w",
    run_id="r2",
    workflow_type="T",
    task_queue="q",
    status=requests.Status.RUNNING,
    start_ms=START_MS,
    first_run_id="r1",
)


def test_every_status_has_temporal_s_number() -> None:
    assert [WorkflowExecutionStatus.of(status.value).name for status in requests.Status] == [
        status.name for status in requests.Status
    ]
    assert WorkflowExecutionStatus.of("timed_out") == 7


def test_times_have_a_zone_and_zero_is_none() -> None:
    assert to_time(START_MS) == START
    assert to_time(0) is None


def test_a_run_in_a_list() -> None:
    memo = {"a": payload.dump([1], CODED)}
    info = requests.RunInfo(
        workflow_id="w",
        run_id="r2",
        workflow_type="T",
        task_queue="q",
        status=requests.Status.COMPLETED,
        start_ms=START_MS,
        execution_ms=START_MS + 1000,
        close_ms=START_MS + 2000,
        history_length=9,
        parent_id="p",
        parent_run_id="pr",
        memo=memo,
        static_summary="s",
    )
    run = WorkflowExecution.of(info, "n", CODED)
    assert (run.id, run.run_id, run.namespace, run.status.name) == ("w", "r2", "n", "COMPLETED")
    assert run.start_time == START
    assert run.execution_time is not None
    assert (run.execution_time - START).total_seconds() == 1
    assert run.close_time is not None
    assert (run.parent_id, run.parent_run_id, run.static_summary) == ("p", "pr", "s")
    assert run.memo() == {"a": [1]}
    assert run.memo_value("a", type_hint=tuple[float, ...]) == (1.0,)
    assert run.memo_value("b", None) is None
    with pytest.raises(KeyError, match="memo has no 'b'"):
        run.memo_value("b")
    assert "_memo" not in repr(run)


def test_a_run_that_is_open_has_no_close_time() -> None:
    run = WorkflowExecution.of(INFO, "n", DEFAULT)
    assert (run.close_time, run.parent_id, run.execution_time) == (None, None, START)


def test_a_description_tells_what_is_pending() -> None:
    why = payload.seal_failure(failure.application("no good", "Trouble"), CODED)
    told = requests.Description(
        info=INFO,
        sticky_worker="worker-1",
        pending_task=requests.PendingTask(
            scheduled_ms=START_MS,
            attempt=2,
            last_failure=why,
            last_cause="non_deterministic",
            fell_back="no host",
        ),
        pending_activities=[
            requests.PendingActivity(
                activity_id="5",
                activity_type="ship",
                task_queue="q2",
                state="started",
                attempt=3,
                maximum_attempts=7,
                scheduled_ms=START_MS,
                started_ms=START_MS + 1,
                last_failure=why,
                heartbeat_details=payload.dump_args([1, "half"], CODED),
                identity="me",
            ),
            requests.PendingActivity(
                activity_id="6", activity_type="t", task_queue="q", state="scheduled", attempt=1
            ),
        ],
        pending_children=[requests.PendingChild(workflow_id="c", workflow_type="C", run_id="cr")],
        pending_timers=2,
        pending_updates=["u"],
        cancel_requested=True,
        static_details="d",
        task_timeout_ms=10_000,
    )
    description = WorkflowExecutionDescription.of_description(told, "n", CODED)
    assert (description.id, description.sticky_worker) == ("w", "worker-1")
    first, second = description.pending_activities
    assert (first.attempt, first.maximum_attempts, first.state) == (3, 7, "started")
    assert first.heartbeat_details == [1, "half"]
    assert isinstance(first.last_failure, ApplicationError)
    assert (first.last_failure.message, first.last_failure.type) == ("no good", "Trouble")
    assert (second.last_failure, second.heartbeat_details, second.last_started_time) == (
        None,
        [],
        None,
    )
    task = description.pending_workflow_task
    assert task is not None
    assert (task.attempt, task.last_failure_cause, task.scheduled_time, task.fell_back) == (
        2,
        "non_deterministic",
        START,
        "no host",
    )
    assert description.pending_children[0].workflow_id == "c"
    assert (description.pending_timers, description.pending_updates) == (2, ["u"])
    assert (description.cancel_requested, description.static_details) == (True, "d")
    assert description.raw is told


def test_a_description_tells_whom_activities_follow() -> None:
    told = requests.Description(info=INFO, affinity='{"kind":"host"}', affinity_target="h1")
    description = WorkflowExecutionDescription.of_description(told, "n", CODED)
    assert description.affinity == Affinity(TargetKind.HOST)
    assert description.affinity_target == "h1"
    plain = WorkflowExecutionDescription.of_description(requests.Description(info=INFO), "n", CODED)
    assert (plain.affinity, plain.affinity_target) == (None, None)


def test_a_count() -> None:
    count = WorkflowExecutionCount.of(requests.Count(count=3, groups={"running": 2}))
    assert (count.count, count.groups) == (3, {"running": 2})
