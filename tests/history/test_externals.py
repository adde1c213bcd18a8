"""Signals and cancellations between runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.history.stage import KEY, Stage
from tq_broker.history import externals
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r

FIRST = 5
ORIGIN = e.ParentInfo(workflow_id=KEY.workflow_id, run_id=KEY.run_id, initiated_event_id=FIRST)
OTHER = e.ParentInfo(workflow_id="other", run_id="or", initiated_event_id=9)

SIGNAL = c.SignalExternalWorkflow(
    workflow_id="x", signal_name="s", run_id="xr", input=b"[1]", headers={"h": "1"}
)
CANCEL = c.RequestCancelExternalWorkflow(workflow_id="x", reason="why")


def test_a_signal_to_another_run() -> None:
    stage = Stage()
    stage.answer(SIGNAL)
    assert stage.sent() == [
        r.SignalWorkflow(
            workflow_id="x",
            signal_name="s",
            run_id="xr",
            input=b"[1]",
            headers={"h": "1"},
            external=ORIGIN,
        )
    ]


def test_a_cancellation_of_another_run() -> None:
    stage = Stage()
    stage.answer(CANCEL)
    assert stage.sent() == [r.RequestCancel(workflow_id="x", reason="why", external=ORIGIN)]


@pytest.mark.parametrize(
    ("command", "cause", "kind"),
    [
        (SIGNAL, "", e.ExternalWorkflowExecutionSignaled),
        (SIGNAL, "not_found", e.SignalExternalWorkflowExecutionFailed),
        (CANCEL, "", e.ExternalWorkflowExecutionCancelRequested),
        (CANCEL, "not_found", e.RequestCancelExternalWorkflowExecutionFailed),
    ],
)
def test_the_answer_comes_once(command: Any, cause: str, kind: type) -> None:
    stage = Stage()
    stage.answer(command)
    done = r.ExternalDone(origin=ORIGIN, cause=cause)
    stage.tell(done, None)
    event = stage.the(kind)
    assert (event.initiated_event_id, event.workflow_id) == (FIRST, "x")
    assert getattr(event, "cause", "") == cause
    stage.tell(done, None)
    assert not stage.last.changed


def test_a_signal_is_written_down_and_answered() -> None:
    stage = Stage()
    stage.answer()
    stage.tell(
        r.SignalWorkflow(workflow_id="order-1", signal_name="s", input=b"[1]", identity="me")
    )
    event = stage.the(e.WorkflowExecutionSignaled)
    assert (event.signal_name, event.input, event.identity) == ("s", b"[1]", "me")
    assert stage.replies() == [r.Done(run_id="run-1")]


def test_a_signal_of_another_run_is_answered_in_its_shard() -> None:
    stage = Stage()
    stage.tell(r.SignalWorkflow(workflow_id="order-1", signal_name="s", external=OTHER), None)
    assert stage.sent() == [r.ExternalDone(origin=OTHER)]
    assert stage.run.signals == 1


def test_signals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(externals, "SIGNALS_MAX", 2)
    stage = Stage()
    stage.tell_signal()
    stage.tell_signal()
    stage.tell_signal()
    assert stage.replies()[0].reason == "limit"
    stage.tell(r.SignalWorkflow(workflow_id="order-1", signal_name="s", external=OTHER), None)
    assert stage.sent() == [r.ExternalDone(origin=OTHER, cause="limit")]


def test_a_signal_to_what_has_ended_finds_nobody() -> None:
    stage = Stage()
    stage.answer(c.CompleteWorkflow())
    stage.tell(r.SignalWorkflow(workflow_id="order-1", signal_name="s", external=OTHER), None)
    assert stage.sent() == [r.ExternalDone(origin=OTHER, cause="not_found")]


@pytest.mark.parametrize(("parent_run", "is_own"), [("or", True), ("another", False)])
def test_what_is_meant_for_an_own_child_reaches_no_other(parent_run: str, is_own: bool) -> None:
    parent = e.ParentInfo(workflow_id="other", run_id=parent_run, initiated_event_id=3)
    stage = Stage(sender=None, parent=parent)
    stage.tell(r.RequestCancel(workflow_id="order-1", external=OTHER, child_only=True), None)
    assert stage.run.cancel_requested is is_own
    assert stage.sent() == [r.ExternalDone(origin=OTHER, cause="" if is_own else "not_found")]


def test_a_workflow_is_asked_once_to_end() -> None:
    stage = Stage()
    stage.answer()
    for _ in range(2):
        stage.tell(r.RequestCancel(workflow_id="order-1", reason="why"))
        assert stage.replies() == [r.Done(run_id="run-1")]
    asked = [x for x in stage.history if isinstance(x, e.WorkflowExecutionCancelRequested)]
    assert [event.reason for event in asked] == ["why"]


def test_a_cancellation_is_for_the_chain_that_is_meant() -> None:
    stage = Stage()
    stage.tell(r.RequestCancel(workflow_id="order-1", first_run_id="another"))
    assert stage.replies()[0].reason == "not_found"
    stage.tell(r.RequestCancel(workflow_id="order-1", first_run_id="run-1"))
    assert stage.run.cancel_requested
