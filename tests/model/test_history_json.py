"""Histories in Temporal's shape: nothing is lost on the way there and back."""

from __future__ import annotations

import functools
import json
from base64 import b64encode
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tq_broker.exceptions import Malformed
from tq_broker.model import events as ev
from tq_broker.model.events import Event, ParentInfo
from tq_broker.model.failure import Failure, FailureKind
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.model.tasks import WireRetryPolicy
from tq_broker.model.workflow_tasks import TaskFailedCause

TEXTS = st.text(max_size=8)
IDS = st.integers(0, 10_000)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
SEALED = st.binary(max_size=10).map(lambda data: b"\x00zlib\x00" + data)
JSON = VALUES.map(msgspec.json.encode)
PAYLOADS = JSON | SEALED
LISTS = st.lists(VALUES, max_size=3).map(msgspec.json.encode) | SEALED | st.just(b"[ 1,\n2]")
FAILURES: st.SearchStrategy[Failure] = st.deferred(
    lambda: st.builds(
        Failure,
        kind=st.sampled_from(FailureKind),
        message=TEXTS,
        type=st.none() | TEXTS,
        details=st.lists(VALUES, max_size=2),
        non_retryable=st.booleans(),
        next_retry_delay_ms=st.none() | IDS,
        category=st.integers(0, 2),
        timeout_type=st.none() | st.integers(1, 4),
        stack_trace=TEXTS,
        cause=st.none() | FAILURES,
        about=st.sampled_from(
            [
                {},
                {"activity_id": "1", "activity_type": "a", "identity": "", "attempt": 3},
                {"workflow_id": "w", "run_id": "r", "retry_state": 4, "started_event_id": 9},
            ]
        ),
        sealed=st.none() | SEALED,
    )
)
PARENTS = st.none() | st.builds(ParentInfo, workflow_id=TEXTS, run_id=TEXTS, initiated_event_id=IDS)
POLICIES = st.none() | st.builds(
    WireRetryPolicy,
    initial_ms=IDS,
    coefficient=st.floats(1, 10),
    maximum_ms=st.none() | IDS,
    attempts=IDS,
    non_retryable=st.lists(TEXTS, max_size=2),
)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    "time_ms": st.integers(0, 4_000_000_000_000),
    "execution_deadline_ms": st.integers(0, 4_000_000_000_000),
    "initiator": st.sampled_from(["start", "child", "continue_as_new", "retry", "cron"]),
    "input": LISTS,
    "details": LISTS,
    "result": PAYLOADS,
    "last_completion_result": st.none() | PAYLOADS,
    "memo": st.dictionaries(TEXTS, PAYLOADS, max_size=2),
    "upserted_memo": st.dictionaries(TEXTS, st.none() | PAYLOADS, max_size=2),
    "headers": st.dictionaries(TEXTS, TEXTS, max_size=2),
    "failure": FAILURES,
    "last_failure": st.none() | FAILURES,
    "parent": PARENTS,
    "external": PARENTS,
    "retry_policy": POLICIES,
    "priority": st.none() | st.integers(1, 5),
    "timeout_type": st.integers(1, 4),
    "retry_state": st.integers(0, 7),
    "parent_close_policy": st.integers(1, 3),
    "id_reuse_policy": st.integers(1, 4),
}
SPECIAL: dict[tuple[type, str], st.SearchStrategy[Any]] = {
    (ev.MarkerRecorded, "details"): st.dictionaries(TEXTS, PAYLOADS, max_size=2),
    (ev.MarkerRecorded, "failure"): st.none() | FAILURES,
    (ev.WorkflowTaskFailed, "failure"): st.none() | FAILURES,
    (ev.WorkflowTaskFailed, "cause"): st.sampled_from([c.value for c in TaskFailedCause]),
    (ev.StartChildWorkflowExecutionFailed, "cause"): st.just("already_exists"),
    (ev.SignalExternalWorkflowExecutionFailed, "cause"): st.just("not_found"),
    (ev.RequestCancelExternalWorkflowExecutionFailed, "cause"): st.just("not_found"),
    (ev.WorkflowExecutionUpdateCompleted, "failure"): st.none() | FAILURES,
    (ev.ActivityTaskScheduled, "input"): LISTS.map(lambda args: b'{"args":' + args + b"}") | SEALED,
    (ev.ActivityTaskCompleted, "result"): JSON.map(lambda value: b'{"result":' + value + b"}")
    | st.just(b"{}")
    | SEALED,
}
BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    int: IDS,
    str: TEXTS,
    bool: st.booleans(),
    str | None: st.none() | TEXTS,
    float | None: st.none() | st.floats(0.001, 1000.0),
}


@functools.cache
def strategy(event_class: type) -> st.SearchStrategy[Event]:
    fields = {}
    for field in msgspec.structs.fields(event_class):
        special = SPECIAL.get((event_class, field.name), BY_NAME.get(field.name))
        fields[field.name] = BY_TYPE[field.type] if special is None else special
    return st.builds(event_class, **fields)


@pytest.mark.parametrize("event_class", get_args(Event))
@settings(max_examples=25)
@given(data=st.data())
def test_every_event_comes_back_as_it_was(event_class: type, data: st.DataObject) -> None:
    event = data.draw(strategy(event_class))
    text = WorkflowHistory("w", [event]).to_json()
    assert WorkflowHistory.from_json("w", text).events == [event]


STARTED = ev.WorkflowExecutionStarted(
    event_id=1,
    time_ms=1_700_000_000_123,
    workflow_type="Order",
    task_queue="orders",
    workflow_id="w",
    run_id="r",
    first_run_id="r",
    input=b'[{"a":1},null]',
    run_timeout_ms=90_500,
)


def encoded(text: str) -> str:
    return b64encode(text.encode()).decode()


def test_the_shape_is_that_of_temporals_exports() -> None:
    (event,) = WorkflowHistory("w", [STARTED]).to_json_dict()["events"]
    assert event == {
        "eventId": "1",
        "eventTime": "2023-11-14T22:13:20.123Z",
        "eventType": "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED",
        "workflowExecutionStartedEventAttributes": {
            "workflowType": {"name": "Order"},
            "taskQueue": {"name": "orders", "kind": "TASK_QUEUE_KIND_NORMAL"},
            "workflowId": "w",
            "originalExecutionRunId": "r",
            "firstExecutionRunId": "r",
            "input": {
                "payloads": [
                    {"metadata": {"encoding": encoded("json/plain")}, "data": encoded('{"a":1}')},
                    {"metadata": {"encoding": encoded("binary/null")}},
                ]
            },
            "workflowRunTimeout": "90.500s",
        },
    }


def test_a_failure_has_temporals_shape_and_causes() -> None:
    failure = Failure(
        kind=FailureKind.ACTIVITY,
        message="activity failed",
        about={"activity_id": "7", "activity_type": "pay", "retry_state": 4},
        cause=Failure(kind=FailureKind.APPLICATION, message="no", type="Declined", details=[1]),
    )
    event = ev.WorkflowExecutionFailed(event_id=5, time_ms=0, failure=failure)
    shape = WorkflowHistory("w", [event]).to_json_dict()["events"][0]
    told = shape["workflowExecutionFailedEventAttributes"]["failure"]
    assert told["activityFailureInfo"] == {
        "activityId": "7",
        "activityType": {"name": "pay"},
        "retryState": "RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED",
    }
    assert told["cause"]["applicationFailureInfo"]["type"] == "Declined"


def test_an_export_of_temporal_is_understood() -> None:
    exported = {
        "events": [
            {
                "eventId": "1",
                "eventTime": "2024-02-29T23:59:59.123456789Z",
                "eventType": "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED",
                "taskId": "1048587",
                "workflowExecutionStartedEventAttributes": {
                    "workflowType": {"name": "Order"},
                    "taskQueue": {"name": "orders", "kind": "TASK_QUEUE_KIND_NORMAL"},
                    "input": {
                        "payloads": [
                            {
                                "metadata": {"encoding": encoded("json/plain")},
                                "data": encoded("5"),
                            }
                        ]
                    },
                    "originalExecutionRunId": "run",
                    "attempt": 1,
                    "header": {},
                },
            },
            {
                "eventId": "2",
                "eventTime": "2024-03-01T00:00:00Z",
                "eventType": "EVENT_TYPE_WORKFLOW_TASK_SCHEDULED",
                "workflowTaskScheduledEventAttributes": {
                    "taskQueue": {
                        "name": "host-1234",
                        "kind": "TASK_QUEUE_KIND_STICKY",
                        "normalName": "orders",
                    },
                    "startToCloseTimeout": "10s",
                    "attempt": 1,
                },
            },
        ]
    }
    history = WorkflowHistory.from_json("w", json.dumps(exported))
    started, scheduled = history.events
    assert isinstance(started, ev.WorkflowExecutionStarted)
    assert (started.workflow_id, started.run_id, started.input) == ("w", "run", b"[5]")
    assert started.time_ms % 1000 == 123
    assert isinstance(scheduled, ev.WorkflowTaskScheduled)
    assert (scheduled.task_queue, scheduled.start_to_close_ms) == ("orders", 10_000)
    assert history.run_id == "run"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "history"),
        ("[]", "no list of events"),
        ('{"events": 3}', "no list of events"),
        ('{"events": [{"eventType": "EVENT_TYPE_UNHEARD_OF"}]}', "event 1 is of no known type"),
        ('{"events": [null]}', "event 1 is of no known type"),
        ('{"events": [{"eventType": "EVENT_TYPE_TIMER_FIRED"}]}', "event 1 .*TIMER_FIRED"),
        (
            '{"events": [{"eventId": "1", "eventTime": "yesterday",'
            ' "eventType": "EVENT_TYPE_TIMER_FIRED", "timerFiredEventAttributes":'
            ' {"timerId": "1", "startedEventId": "1"}}]}',
            "yesterday",
        ),
    ],
)
def test_what_cannot_be_understood_is_named(text: str, told: str) -> None:
    with pytest.raises(Malformed, match=told):
        WorkflowHistory.from_json("w", text)
