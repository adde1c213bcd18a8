"""What a workflow can know about its run: see also `tests/worker/test_replay.py`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from tq_broker.workflow.facts import HistorySize, Info

THEN = datetime(2024, 1, 1, tzinfo=timezone.utc)


def test_the_size_of_the_history_is_that_of_now() -> None:
    sizes = iter([HistorySize(3, 100), HistorySize(3, 100), HistorySize(9000, 5_000_000, True)])
    info = Info(
        namespace="default",
        workflow_id="w",
        run_id="r",
        workflow_type="W",
        task_queue="tq",
        attempt=1,
        first_execution_run_id="r",
        continued_run_id=None,
        cron_schedule=None,
        execution_timeout=None,
        run_timeout=None,
        task_timeout=timedelta(seconds=10),
        headers={},
        parent=None,
        priority=None,
        fairness_key=None,
        fairness_weight=None,
        retry_policy=None,
        start_time=THEN,
        workflow_start_time=THEN,
        history=lambda: next(sizes),
    )
    assert info.get_current_history_length() == 3
    assert info.get_current_history_size() == 100
    assert info.is_continue_as_new_suggested()
