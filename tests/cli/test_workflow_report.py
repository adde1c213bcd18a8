from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from tq_broker.cli import workflow_report as report
from tq_broker.client import WorkflowExecution, WorkflowExecutionDescription
from tq_broker.converter import DEFAULT, DataConverter, ZlibCodec
from tq_broker.exceptions import ApplicationError, TqBrokerError
from tq_broker.model import failure, payload, requests
from tq_broker.model.events import ActivityTaskFailed, ActivityTaskScheduled
from tq_broker.model.tasks import WireRetryPolicy

CODED = DataConverter(codecs=(ZlibCodec(),))


def info(**fields: Any) -> requests.RunInfo:
    return requests.RunInfo(
        workflow_id="w",
        run_id="r",
        workflow_type="T",
        task_queue="q",
        status=requests.Status.RUNNING,
        start_ms=1_767_323_045_600,
        **fields,
    )


def described(**fields: Any) -> WorkflowExecutionDescription:
    told = requests.Description(info=info(), **fields)
    return WorkflowExecutionDescription.of_description(told, "n", DEFAULT)


def test_times_are_utc() -> None:
    assert report.moment(datetime(2026, 1, 2, tzinfo=timezone.utc)) == "2026-01-02T00:00:00.000Z"
    assert report.moment(None) == "-"


def test_what_is_not_there_is_left_out_of_a_description() -> None:
    names = [name for name, _ in report.description_fields(described())]
    assert names[:5] == ["id", "run id", "type", "status", "task queue"]
    assert not {"close", "parent", "sticky worker", "memo", "workflow task"} & set(names)


def test_a_workflow_task_that_fails_is_shown() -> None:
    why = failure.application("command mismatch", "E")
    task = requests.PendingTask(
        scheduled_ms=1,
        attempt=4,
        last_failure=why,
        last_cause="non_deterministic",
        fell_back="no h",
    )
    run = described(pending_task=task, cancel_requested=True)
    lines = dict(report.description_fields(run))
    assert lines["workflow task"] == "attempt 4, non_deterministic"
    assert lines["last task failure"] == "command mismatch"
    assert lines["fell back"] == "no h"
    assert lines["cancel requested"] == "yes"
    told = report.description_data(run)["pending_workflow_task"]
    assert (told["attempt"], told["last_failure"]) == (4, "command mismatch")
    assert told["fell_back"] == "no h"


def test_a_memo_that_cannot_be_read_is_no_crash() -> None:
    sealed = info(memo={"a": payload.dump(1, CODED)})
    told = report.run_data(WorkflowExecution.of(sealed, "n", DEFAULT))
    assert "not configured here" in told["memo"][""]


def test_an_event_tells_what_is_special_about_it() -> None:
    event = ActivityTaskScheduled(
        event_id=5,
        time_ms=1_767_323_045_600,
        activity_id="1",
        activity_type="ship",
        task_queue="q",
        input=b'{"args":["' + b"x" * 100 + b'"]}',
        start_to_close_ms=5000,
        retry_policy=WireRetryPolicy(),
    )
    number, time, name, details = report.event_row(event, DEFAULT)
    assert (number, time, name) == (5, "2026-01-02T03:04:05.600Z", "ActivityTaskScheduled")
    text = str(details)
    assert text.startswith('activity_id=1 activity_type=ship task_queue=q input={"args":["xxx')
    assert text.endswith("... start_to_close_ms=5000")
    failed = ActivityTaskFailed(
        event_id=7,
        time_ms=1,
        scheduled_event_id=5,
        started_event_id=6,
        failure=failure.application("no good", "E"),
    )
    assert str(report.event_row(failed, DEFAULT)[3]).endswith("failure='no good'")


def test_what_codecs_hide_stays_hidden() -> None:
    sealed = payload.dump("secret", CODED)
    assert report.payload_text(sealed, CODED) == '"secret"'
    assert report.payload_text(sealed, DEFAULT) == f"<{len(sealed)} bytes, encoded>"


def test_an_error_is_told_with_its_causes() -> None:
    error = TqBrokerError("outer")
    error.__cause__ = ApplicationError("inner", type="E")
    assert report.error_data(error) == {
        "kind": "TqBrokerError",
        "type": None,
        "message": "outer",
        "cause": {"kind": "ApplicationError", "type": "E", "message": "inner", "cause": None},
    }
    assert report.error_data(None) is None
