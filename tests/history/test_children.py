"""Children of a run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.history.stage import KEY, Stage
from tq_broker.common import ParentClosePolicy
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r
from tq_broker.model.failure import application

FIRST = 5
PARENT = e.ParentInfo(workflow_id=KEY.workflow_id, run_id=KEY.run_id, initiated_event_id=FIRST)


def a_child(**changes: Any) -> c.StartChildWorkflow:
    fields: dict[str, Any] = {
        "workflow_id": "child-1",
        "workflow_type": "Child",
        "task_queue": "q",
    }
    return c.StartChildWorkflow(**(fields | changes))


def with_one(**changes: Any) -> Stage:
    stage = Stage()
    stage.answer(a_child(**changes))
    return stage


def started(run_id: str = "cr") -> r.ChildStarted:
    return r.ChildStarted(
        parent=PARENT, workflow_id="child-1", run_id=run_id, workflow_type="Child"
    )


def closed(status: r.Status, **changes: Any) -> r.ChildClosed:
    return r.ChildClosed(
        parent=PARENT,
        workflow_id="child-1",
        run_id="cr-2",
        workflow_type="Child",
        status=status,
        **changes,
    )


def test_a_child_is_started_by_its_own_shard() -> None:
    stage = with_one(input=b"[1]", run_timeout_ms=9, memo={"m": b"1"}, id_reuse_policy=3)
    [request] = stage.sent()
    assert request == r.StartWorkflow(
        workflow_id="child-1",
        workflow_type="Child",
        task_queue="q",
        input=b"[1]",
        run_timeout_ms=9,
        memo={"m": b"1"},
        id_reuse_policy=3,
        parent=PARENT,
    )


def test_a_child_starts_once_and_ends_once() -> None:
    stage = with_one()
    stage.tell(started(), None)
    assert stage.names(5) == ["ChildWorkflowExecutionStarted", "WorkflowTaskScheduled"]
    stage.tell(started("another"), None)
    assert not stage.last.changed
    stage.answer()
    stage.tell(closed(r.Status.COMPLETED, result=b"7"), None)
    completed = stage.the(e.ChildWorkflowExecutionCompleted)
    assert (completed.result, completed.started_event_id) == (b"7", 6)
    stage.tell(closed(r.Status.COMPLETED), None)
    assert not stage.last.changed


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (r.Status.COMPLETED, e.ChildWorkflowExecutionCompleted),
        (r.Status.FAILED, e.ChildWorkflowExecutionFailed),
        (r.Status.CANCELED, e.ChildWorkflowExecutionCanceled),
        (r.Status.TIMED_OUT, e.ChildWorkflowExecutionTimedOut),
        (r.Status.TERMINATED, e.ChildWorkflowExecutionTerminated),
    ],
)
def test_each_end_of_a_child_has_its_event(status: r.Status, kind: type) -> None:
    stage = with_one()
    stage.tell(started(), None)
    stage.tell(closed(status, failure=application("x", "X")), None)
    stage.answer()
    assert stage.the(kind).started_event_id == 6


@pytest.mark.parametrize("status", [r.Status.RUNNING, r.Status.CONTINUED_AS_NEW])
def test_what_is_no_end_is_dropped(status: r.Status) -> None:
    stage = with_one()
    stage.tell(closed(status), None)
    assert not stage.last.changed


def test_an_end_that_overtakes_the_start_brings_it_along() -> None:
    stage = with_one()
    stage.tell_signal()
    stage.tell(closed(r.Status.COMPLETED), None)
    stage.tell(started(), None)
    assert not stage.last.changed
    stage.answer()
    assert stage.names(9) == [
        "ChildWorkflowExecutionStarted",
        "ChildWorkflowExecutionCompleted",
        "WorkflowTaskScheduled",
    ]
    assert stage.the(e.ChildWorkflowExecutionCompleted).started_event_id == 10


def test_a_child_whose_id_is_taken_has_not_started() -> None:
    stage = with_one()
    refused = r.ChildRefused(parent=PARENT, workflow_id="child-1", workflow_type="Child")
    stage.tell(refused, None)
    assert stage.the(e.StartChildWorkflowExecutionFailed).cause == "already_exists"
    stage.tell(refused, None)
    assert not stage.last.changed


def test_a_child_that_is_refused_is_told_why() -> None:
    stage = with_one()
    stage.tell(
        r.ChildRefused(
            parent=PARENT, workflow_id="child-1", workflow_type="Child",
            cause="invalid_argument", message="because",
        ),
        None,
    )  # fmt: skip
    event = stage.the(e.StartChildWorkflowExecutionFailed)
    assert (event.cause, event.message) == ("invalid_argument", "because")


def test_a_child_that_runs_cannot_be_refused_any_more() -> None:
    stage = with_one()
    stage.tell(started(), None)
    stage.tell(r.ChildRefused(parent=PARENT, workflow_id="child-1", workflow_type="Child"), None)
    assert not stage.last.changed


def test_children_are_treated_by_their_policies_when_the_parent_ends() -> None:
    stage = Stage()
    stage.answer(*(a_child(workflow_id=f"c{n}", parent_close_policy=n) for n in (1, 2, 3)))
    stage.tell_signal()
    stage.answer(c.CompleteWorkflow())
    terminate, cancel = stage.sent()
    assert isinstance(terminate, r.Terminate)
    assert (terminate.workflow_id, terminate.reason) == ("c1", "by parent close policy")
    assert terminate.parent == PARENT
    assert isinstance(cancel, r.RequestCancel)
    assert (cancel.workflow_id, cancel.child_only) == ("c3", True)
    assert len(ParentClosePolicy) == 3


def test_children_that_have_ended_are_left_alone() -> None:
    stage = with_one()
    stage.tell(closed(r.Status.COMPLETED), None)
    stage.answer(c.CompleteWorkflow())
    assert stage.sent() == []
