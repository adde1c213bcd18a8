"""Updates of a run."""

from __future__ import annotations

import pytest

from tests.history.stage import CLIENT, Stage
from tq_broker.history import updates
from tq_broker.history.effects import Reply, ReplyFromEvent, ReplyTo
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r
from tq_broker.model.failure import application
from tq_broker.model.workflow_tasks import UpdateRequest

TWO = ReplyTo("q", "2")


def an_update(update_id: str = "u", wait: int = 3, **changes: str) -> r.UpdateWorkflow:
    update = UpdateRequest(update_id=update_id, name="add", input=b"[1]", identity="me")
    return r.UpdateWorkflow(workflow_id="order-1", update=update, wait=wait, **changes)


def state(stage_: int, **changes: object) -> r.UpdateState:
    return r.UpdateState(update_id="u", run_id="run-1", stage=stage_, **changes)


def idle() -> Stage:
    stage = Stage()
    stage.answer()
    return stage


def test_an_update_from_its_admission_to_its_end() -> None:
    stage = idle()
    stage.tell(an_update(wait=1))
    assert stage.replies() == [state(1)]
    assert [update.update_id for update in stage.dispatched().updates] == ["u"]
    stage.tell(an_update(wait=2), TWO)
    assert stage.replies() == []
    stage.answer(c.AcceptUpdate(update_id="u"))
    assert stage.last.effects == [Reply(TWO, state(2))]
    accepted = stage.the(e.WorkflowExecutionUpdateAccepted)
    assert (accepted.update_name, accepted.input, accepted.identity) == ("add", b"[1]", "me")
    assert isinstance(stage.history[accepted.sequencing_event_id - 1], e.WorkflowTaskScheduled)
    stage.tell(r.AwaitUpdate(workflow_id="order-1", update_id="u"), TWO)
    stage.tell_signal()
    assert stage.dispatched().updates == []
    stage.answer(c.CompleteUpdate(update_id="u", result=b"7"))
    assert stage.last.effects == [Reply(TWO, state(3, result=b"7"))]
    completed = stage.the(e.WorkflowExecutionUpdateCompleted)
    assert completed.accepted_event_id == accepted.event_id
    assert updates.outcome("run-1", completed) == state(3, result=b"7")


def test_an_update_may_be_accepted_and_completed_in_one_breath() -> None:
    stage = idle()
    stage.tell(an_update(wait=3))
    stage.answer(
        c.AcceptUpdate(update_id="u"),
        c.CompleteUpdate(update_id="u", failure=application("no", "No")),
        c.CompleteWorkflow(),
    )
    [answer] = stage.replies()
    assert answer.failure.type == "No"


def test_the_same_id_joins_the_first() -> None:
    stage = idle()
    stage.tell(an_update(), CLIENT)
    stage.tell(an_update(), TWO)
    stage.tell(an_update(), TWO)
    assert not stage.last.changed
    stage.answer(c.AcceptUpdate(update_id="u"), c.CompleteUpdate(update_id="u", result=b"1"))
    assert [effect.to for effect in stage.last.effects if isinstance(effect, Reply)] == [
        CLIENT,
        TWO,
    ]
    stage.tell(an_update(), TWO)
    event_id = stage.the(e.WorkflowExecutionUpdateCompleted).event_id
    assert stage.last.effects == [ReplyFromEvent(TWO, event_id)]
    assert not stage.last.changed


def test_the_outcome_is_still_known_when_the_run_has_ended() -> None:
    stage = idle()
    stage.tell(an_update())
    stage.answer(
        c.AcceptUpdate(update_id="u"), c.CompleteUpdate(update_id="u"), c.CompleteWorkflow()
    )
    stage.tell(r.AwaitUpdate(workflow_id="order-1", update_id="u"))
    assert isinstance(stage.last.effects[0], ReplyFromEvent)


def test_a_rejected_update_leaves_no_event_and_no_trace() -> None:
    stage = idle()
    stage.tell(an_update())
    no = application("no", "No")
    stage.answer(c.RejectUpdate(update_id="u", failure=no))
    assert stage.replies() == [state(3, failure=no)]
    assert not any("Update" in name for name in stage.names())
    assert stage.run.updates == stage.run.completed == {}


def test_an_update_that_came_during_a_task_rides_in_the_next() -> None:
    stage = Stage()
    stage.tell(an_update())
    assert not stage.last.effects
    stage.answer()
    assert [update.update_id for update in stage.dispatched().updates] == ["u"]
    stage.answer()
    assert stage.run.task is None, "a workflow that leaves it alone is not asked for ever"
    stage.tell_signal()
    assert len(stage.dispatched().updates) == 1


def test_an_update_rides_again_when_the_task_has_failed() -> None:
    stage = idle()
    stage.tell(an_update())
    stage.fail_task()
    stage.wake()
    assert len(stage.dispatched().updates) == 1


def test_a_task_that_is_given_back_carries_what_it_carried() -> None:
    stage = Stage()
    stage.answer(sticky=True)
    stage.tell(an_update("first"))
    task = stage.dispatched()
    stage.tell(an_update("second"))
    stage.tell(task, None)
    assert [update.update_id for update in stage.dispatched().updates] == ["first"]
    stage.answer(c.AcceptUpdate(update_id="first"))
    assert [update.update_id for update in stage.dispatched().updates] == ["second"]


def test_a_workflow_does_not_end_over_an_update_that_it_has_not_seen() -> None:
    stage = Stage()
    stage.tell(an_update())
    stage.answer(c.CompleteWorkflow())
    assert stage.run.is_open
    assert stage.the(e.WorkflowTaskFailed).cause == "unhandled_command"
    assert len(stage.dispatched().updates) == 1


def test_updates_in_flight_end_with_the_run() -> None:
    stage = idle()
    stage.tell(an_update("a"), ReplyTo("q", "a"))
    stage.tell(an_update("b"), ReplyTo("q", "b"))
    stage.answer(c.AcceptUpdate(update_id="a"))
    stage.tell(r.Terminate(workflow_id="order-1"), None)
    accepted, admitted = stage.replies()
    assert accepted.failure.type == "AcceptedUpdateCompletedWorkflow"
    assert admitted.reason == "closed"
    stage.tell(an_update("c"))
    assert stage.replies()[0].reason == "closed"


def test_updates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = idle()
    for number in range(updates.IN_FLIGHT_MAX):
        stage.tell(an_update(str(number)))
    stage.tell(an_update("more"))
    assert stage.replies()[0].reason == "limit"
    monkeypatch.setattr(updates, "TOTAL_MAX", 1)
    stage = idle()
    stage.tell(an_update())
    stage.answer(c.AcceptUpdate(update_id="u"), c.CompleteUpdate(update_id="u"))
    stage.tell(an_update("more"))
    assert stage.replies()[0].reason == "limit"


def test_an_update_needs_an_id() -> None:
    stage = idle()
    stage.tell(an_update(""))
    assert stage.replies()[0].reason == "invalid_argument"


def test_an_update_is_for_the_chain_that_is_meant() -> None:
    stage = idle()
    stage.tell(an_update(first_run_id="another"))
    assert stage.replies()[0].reason == "not_found"


def test_an_update_that_nobody_made_cannot_be_waited_for() -> None:
    stage = idle()
    stage.tell(r.AwaitUpdate(workflow_id="order-1", update_id="u"))
    assert stage.replies()[0].reason == "not_found"
