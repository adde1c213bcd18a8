"""Whether a start begins a new run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.history.stage import BEGIN_MS, CLIENT, Stage, a_start
from tq_broker.common import Requires, Route
from tq_broker.common import WorkflowIDConflictPolicy as Conflict
from tq_broker.common import WorkflowIDReusePolicy as Reuse
from tq_broker.history import closing, externals
from tq_broker.history.admission import Admission, admit
from tq_broker.history.effects import DispatchWorkflowTask, Reply, ReplyTo, ToShard
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r
from tq_broker.model.commands import Command
from tq_broker.model.failure import application
from tq_broker.model.tasks import WireRetryPolicy, dump_requires, dump_route
from tq_broker.model.workflow_tasks import UpdateRequest

PARENT = e.ParentInfo(workflow_id="p", run_id="pr", initiated_event_id=5)
END: dict[r.Status, Command] = {
    r.Status.COMPLETED: c.CompleteWorkflow(),
    r.Status.FAILED: c.FailWorkflow(failure=application("x", "X")),
    r.Status.CANCELED: c.CancelWorkflow(),
}


def judge(stage: Stage | None, **changes: Any) -> Admission:
    run = None if stage is None else stage.run
    return admit(run, a_start(**changes), BEGIN_MS + 1, CLIENT)


def answers(admission: Admission) -> list[Any]:
    return [x.answer for x in admission.step.effects if isinstance(x, Reply)]


def ended(status: r.Status) -> Stage:
    stage = Stage()
    if status is r.Status.TERMINATED:
        stage.tell(r.Terminate(workflow_id="order-1"))
    else:
        stage.answer(END[status])
    assert stage.run.status is status
    return stage


def test_an_id_that_was_never_used_is_free() -> None:
    assert judge(None).begin


@pytest.mark.parametrize(
    ("policy", "status", "begins"),
    [
        (Reuse.ALLOW_DUPLICATE, r.Status.COMPLETED, True),
        (Reuse.ALLOW_DUPLICATE, r.Status.FAILED, True),
        (Reuse.ALLOW_DUPLICATE_FAILED_ONLY, r.Status.COMPLETED, False),
        (Reuse.ALLOW_DUPLICATE_FAILED_ONLY, r.Status.FAILED, True),
        (Reuse.ALLOW_DUPLICATE_FAILED_ONLY, r.Status.CANCELED, True),
        (Reuse.ALLOW_DUPLICATE_FAILED_ONLY, r.Status.TERMINATED, True),
        (Reuse.REJECT_DUPLICATE, r.Status.COMPLETED, False),
        (Reuse.REJECT_DUPLICATE, r.Status.TERMINATED, False),
        (Reuse.TERMINATE_IF_RUNNING, r.Status.COMPLETED, True),
    ],
)
def test_an_id_whose_last_run_has_ended(policy: Reuse, status: r.Status, begins: bool) -> None:
    admission = judge(ended(status), id_reuse_policy=policy)
    assert admission.begin is begins
    if not begins:
        [refused] = answers(admission)
        assert (refused.reason, refused.run_id) == ("already_started", "run-1")
    assert not admission.step.changed


@pytest.mark.parametrize("policy", [Conflict.UNSPECIFIED, Conflict.FAIL])
def test_an_id_that_is_in_use_is_refused(policy: Conflict) -> None:
    admission = judge(Stage(), id_conflict_policy=policy)
    [refused] = answers(admission)
    assert (admission.begin, refused.reason, refused.run_id) == (False, "already_started", "run-1")


def test_the_running_one_may_be_what_was_wanted() -> None:
    stage = Stage()
    admission = judge(stage, id_conflict_policy=Conflict.USE_EXISTING, want_result=True)
    assert not admission.begin
    assert answers(admission) == [r.Started(run_id="run-1", first_run_id="run-1", is_new=False)]
    assert stage.run.waiters == [CLIENT]


@pytest.mark.parametrize(
    "changes",
    [
        {"id_conflict_policy": Conflict.TERMINATE_EXISTING},
        {"id_reuse_policy": Reuse.TERMINATE_IF_RUNNING},
    ],
)
def test_the_running_one_may_be_in_the_way(changes: dict[str, Any]) -> None:
    stage = Stage(want_result=True)
    admission = judge(stage, **changes)
    assert admission.begin
    assert admission.step.changed
    assert stage.run.status is r.Status.TERMINATED
    assert answers(admission)[0].status is r.Status.TERMINATED


def test_a_start_with_a_signal_signals_the_running_one() -> None:
    stage = Stage()
    stage.answer()
    admission = judge(stage, signal=r.SignalInput(signal_name="s"))
    assert not admission.begin
    assert [answer.is_new for answer in answers(admission)] == [False]
    assert isinstance(admission.step.events[0], e.WorkflowExecutionSignaled)
    assert any(isinstance(x, DispatchWorkflowTask) for x in admission.step.effects)


def test_a_start_with_a_signal_may_insist_on_a_new_run() -> None:
    signal = r.SignalInput(signal_name="s")
    admission = judge(Stage(), signal=signal, id_conflict_policy=Conflict.FAIL)
    assert answers(admission)[0].reason == "already_started"


def test_a_start_with_an_update_updates_the_running_one() -> None:
    stage = Stage()
    stage.answer()
    update = UpdateRequest(update_id="u", name="n")
    admission = judge(stage, update=update, update_wait=1)
    started, state = answers(admission)
    assert (started.is_new, state.stage) == (False, 1)
    assert "u" in stage.run.updates


def test_a_signal_too_many_is_refused_with_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(externals, "SIGNALS_MAX", 1)
    stage = Stage()
    stage.tell_signal()
    admission = judge(stage, signal=r.SignalInput(signal_name="s"), want_result=True)
    [refused] = answers(admission)
    assert (admission.begin, refused.reason, refused.run_id) == (False, "limit", "run-1")
    assert not admission.step.changed
    assert (stage.run.signals, stage.run.waiters) == (1, [])


def test_who_wants_the_result_of_the_running_one_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(closing, "WAITERS_MAX", 1)
    stage = Stage(want_result=True)
    use = {"id_conflict_policy": Conflict.USE_EXISTING, "want_result": True}
    again = judge(stage, **use)
    assert not answers(again)[0].is_new
    assert not again.step.changed
    signal = r.SignalInput(signal_name="s")
    other = a_start(signal=signal, **use)
    [refused] = answers(admit(stage.run, other, BEGIN_MS + 1, ReplyTo("q", "2")))
    assert refused.reason == "limit"
    assert (stage.run.signals, stage.run.waiters) == (0, [CLIENT])


def test_a_parent_that_asks_again_is_answered_again() -> None:
    stage = Stage(sender=None, parent=PARENT)
    told = r.ChildStarted(
        parent=PARENT, workflow_id="order-1", run_id="run-1", workflow_type="Order"
    )
    admission = judge(stage, parent=PARENT)
    assert (admission.begin, admission.step.effects) == (False, [ToShard("p", told)])


def test_a_parent_is_told_that_the_id_is_taken() -> None:
    refused = r.ChildRefused(parent=PARENT, workflow_id="order-1", workflow_type="Order")
    assert judge(Stage(), parent=PARENT).step.effects == [ToShard("p", refused)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"workflow_id": ""}, "workflow_id is empty"),
        ({"workflow_id": "x" * 1001}, "workflow_id has 1001 bytes"),
        ({"workflow_id": "\u4e2d" * 334}, "workflow_id has 1002 bytes"),
        ({"workflow_id": "a\0b"}, "workflow_id has the character"),
        ({"workflow_type": ""}, "workflow_type"),
        ({"workflow_type": "T\0"}, "workflow_type has the character"),
        ({"task_queue": ""}, "task_queue"),
        ({"task_queue": "q\n"}, "task_queue has the control or invisible character"),
        ({"task_queue": "q" * 200}, "task_queue is 200 bytes long"),
        ({"run_timeout_ms": -1}, "run_timeout_ms"),
        ({"start_delay_ms": 1 << 60}, "start_delay_ms"),
        ({"id_reuse_policy": 9}, "id_reuse_policy is 9"),
        ({"id_conflict_policy": -1}, "id_conflict_policy is -1"),
        ({"retry_policy": WireRetryPolicy(attempts=-1)}, "maximum_attempts"),
        ({"cron_schedule": "never"}, "cron_schedule"),
        ({"cron_schedule": "@daily", "start_delay_ms": 1}, "exclude each other"),
        ({"update": UpdateRequest(update_id="", name="n")}, "an update needs an id"),
    ],
)
def test_what_nobody_can_start_is_refused(changes: dict[str, Any], why: str) -> None:
    admission = judge(None, **changes)
    assert not admission.begin
    [refused] = answers(admission)
    assert refused.reason == "invalid_argument"
    assert why in refused.message


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"route": "{}"}, "header tq-route"),
        ({"route": dump_route(Route.version("a.b"))}, "bound to a version by version="),
        ({"requires": '{"capabilities":[]}'}, "requires has no capabilities"),
        ({"affinity": '{"kind":"planet"}'}, "affinity: Invalid enum value 'planet'"),
    ],
)
def test_who_can_be_nowhere_is_refused(changes: dict[str, Any], why: str) -> None:
    admission = judge(None, **changes)
    assert not admission.begin
    (refused,) = answers(admission)
    assert refused.reason == "invalid_argument"
    assert why in refused.message


def test_a_run_that_requires_what_nobody_has_ever_had_is_refused() -> None:
    request = a_start(requires=dump_requires(Requires({"gup"})))

    def judged(*known: str) -> Admission:
        return admit(None, request, BEGIN_MS, CLIENT, capabilities=lambda _: known)

    (refused,) = answers(judged("gpu"))
    assert "no worker of task queue 'orders' has ever had gup; known there: gpu" in refused.message
    assert judged("gup").begin
