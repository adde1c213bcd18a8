from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from tests.model.samples import sample
from tq_broker.exceptions import Malformed
from tq_broker.model import requests, workflow_tasks
from tq_broker.model.workflow_tasks import FromWorker, WorkflowTask


def test_a_task_travels_without_a_loss() -> None:
    task = sample(WorkflowTask)
    message = workflow_tasks.task_message(task, "m1")
    assert message.message_id == "m1"
    assert workflow_tasks.read_task(message) == task


def test_the_type_of_a_task_is_told_without_reading_it() -> None:
    task = sample(WorkflowTask)
    message = workflow_tasks.task_message(task, "m1")
    assert workflow_tasks.type_of(message) == task.workflow_type
    assert workflow_tasks.type_of(msgspec.structs.replace(message, headers={})) == ""
    odd = msgspec.structs.replace(message, headers={"tq-workflow-type": 5})
    assert workflow_tasks.type_of(odd) == ""


@pytest.mark.parametrize("kind", get_args(FromWorker))
def test_what_a_worker_says_is_a_request(kind: type) -> None:
    said = sample(kind)
    assert requests.read_request(requests.request_message(said, "m1")) == said


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "activity-task"},
        {"headers": {"tq-protocol": 2}},
        {"headers": {}},
        {"body": b""},
        {"body": b"\x80"},
        {"body": b'{"run": 1}'},
        {"body": b"\x91" * 10_000},
    ],
)
def test_what_is_no_task_is_malformed(change: dict[str, object]) -> None:
    message = workflow_tasks.task_message(sample(WorkflowTask), "m1")
    with pytest.raises(Malformed):
        workflow_tasks.read_task(msgspec.structs.replace(message, **change))
