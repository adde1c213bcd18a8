"""The logger of workflow code: see also `tests/worker/test_replay.py`."""

from __future__ import annotations

import pytest

from tests.worker.replays import Run
from tq_broker import workflow
from tq_broker.model.events import WorkflowTaskScheduled


@workflow.defn
class Talking:
    @workflow.run
    async def run(self) -> None:
        workflow.logger.warning("%d%% done", 5, extra={"more": 1})


def test_ids_with_percent_signs_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(Talking)
    run.add(WorkflowTaskScheduled, task_queue="tq")
    run.cached.activate(run.events, now_ms=1)
    (record,) = caplog.records
    assert record.getMessage() == "5% done (Talking wf)"
    assert record.more == 1  # type: ignore[attr-defined]
    assert record.tq_workflow["workflow_type"] == "Talking"  # type: ignore[attr-defined]


def test_outside_a_workflow_it_is_a_plain_logger(caplog: pytest.LogCaptureFixture) -> None:
    workflow.logger.warning("plain")
    assert caplog.records[0].getMessage() == "plain"
