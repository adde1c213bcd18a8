"""What may be done in which situation."""

from __future__ import annotations

import pytest

from tq_broker.converter import DEFAULT
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.workflow_tasks import RunKey
from tq_broker.worker.conversion import Conversion
from tq_broker.worker.situation import Situation
from tq_broker.workflow.errors import BeingEvictedError, ReadOnlyContextError


def situation(run_id: str = "r") -> Situation:
    made = Situation(RunKey("w", run_id), "default", Conversion.of(DEFAULT))
    made.started = WorkflowExecutionStarted(
        event_id=1,
        time_ms=0,
        workflow_type="W",
        task_queue="tq",
        workflow_id="w",
        run_id=run_id,
        first_run_id=run_id,
    )
    return made


def test_nothing_is_changed_where_nothing_may_be() -> None:
    now = situation()
    now.check("anything")
    with now.read_only("query"):
        with now.read_only("wait condition"), pytest.raises(ReadOnlyContextError, match="wait"):
            now.check("start a timer")
        with pytest.raises(ReadOnlyContextError, match="cannot start a timer in a query"):
            now.check("start a timer")
    now.check("anything")


def test_an_evicted_run_gets_nothing() -> None:
    now = situation()
    now.evicted = True
    with pytest.raises(BeingEvictedError):
        now.check("anything")


def test_the_first_error_counts() -> None:
    now, first = situation(), KeyError()
    now.fail(first)
    now.fail(ValueError())
    assert now.error is first


def test_the_seed_is_that_of_the_run() -> None:
    assert situation().seed == situation().seed != situation("other").seed


def test_what_nobody_looked_at_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    now = situation()
    now.loop_error({"message": "alas"})
    now.replaying = True
    now.loop_error({"message": "alas"})
    assert caplog.messages == ["workflow W w: alas"]
