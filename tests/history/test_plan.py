"""Which commands cannot be carried out, and why."""

from __future__ import annotations

from typing import Any

import pytest

from tests.history.stage import Stage, an_activity
from tq_broker.history import plan
from tq_broker.model import commands as c
from tq_broker.model import payload
from tq_broker.model.commands import Command
from tq_broker.model.failure import application
from tq_broker.model.requests import UpdateWorkflow
from tq_broker.model.tasks import WireRetryPolicy
from tq_broker.model.workflow_tasks import UpdateRequest

NO = application("no", "No")
BIG = b"[" + b"1" * (payload.BYTES_MAX + 1) + b"]"


def a_timer(timer_id: str = "t", ms: int = 5) -> c.StartTimer:
    return c.StartTimer(timer_id=timer_id, start_to_fire_ms=ms)


def a_child(**changes: Any) -> c.StartChildWorkflow:
    fields: dict[str, Any] = {"workflow_id": "c", "workflow_type": "C", "task_queue": "q"}
    return c.StartChildWorkflow(**(fields | changes))


def waiting() -> Stage:
    """A run with an activity, a timer, and an update of each kind."""
    stage = Stage()
    stage.answer(an_activity("running"), a_timer("running"))
    for update_id in ("admitted", "accepted"):
        update = UpdateRequest(update_id=update_id, name="u")
        stage.tell(UpdateWorkflow(workflow_id="order-1", update=update))
    stage.answer(c.AcceptUpdate(update_id="accepted"))
    return stage


BAD: list[tuple[list[Command], str]] = [
    ([an_activity("running")], "an activity with the id 'running' is pending"),
    ([an_activity(), an_activity()], "command 2 of 2, ScheduleActivity: an activity with the id"),
    ([an_activity("")], "activity_id is empty"),
    ([an_activity("x" * 1001)], "activity_id has 1001 bytes; the bound is 1000"),
    ([an_activity("\u4e2d" * 334)], "activity_id has 1002 bytes; the bound is 1000"),
    ([an_activity(task_queue="q\n")], "task_queue has the control or invisible character"),
    ([an_activity(task_queue="q" * 200)], "task_queue is 200 bytes long"),
    ([a_child(task_queue="q\0")], "task_queue has the control or invisible character"),
    ([c.ContinueAsNew(task_queue="q\n")], "task_queue has the control"),
    ([c.ContinueAsNew(workflow_type="T\0")], "workflow_type has the character U+0000"),
    ([a_child(workflow_id="a\0b")], "workflow_id has the character U+0000"),
    ([a_child(workflow_type="a\0b")], "workflow_type has the character U+0000"),
    ([an_activity(affinity="host")], "affinity: JSON is malformed"),
    (
        [an_activity(affinity='{"kind":"host"}', route='{"kind":"host","target":"h"}')],
        "it has a route and an affinity",
    ),
    (
        [
            an_activity(str(n), affinity=f'{{"kind":"host","group":"{n}"}}')
            for n in range(plan.BONDS_MAX + 1)
        ],
        "the run has more than 1000 affinity groups",
    ),
    ([an_activity(announce_start=True)], "announce_start needs a retry policy with one attempt"),
    ([an_activity(activity_type="")], "activity_type is empty"),
    ([an_activity(task_queue="")], "task_queue must not be empty"),
    ([an_activity(start_to_close_ms=0)], "start_to_close_ms or schedule_to_close_ms must be set"),
    ([an_activity(heartbeat_ms=-1)], "heartbeat_ms is -1"),
    ([an_activity(schedule_to_close_ms=1 << 60)], "it must be from 0 to ten years"),
    ([an_activity(retry_policy=WireRetryPolicy(coefficient=0.5))], "backoff_coefficient"),
    ([an_activity(retry_policy=WireRetryPolicy(initial_ms=1 << 62))], "ScheduleActivity: "),
    ([an_activity(route="{")], "tq-route"),
    ([an_activity(input=b"\0zlib")], "its head is cut short"),
    ([an_activity(input=BIG)], "input of ScheduleActivity of workflow 'order-1' is 2097155 bytes"),
    ([c.CompleteWorkflow(result=BIG)], "result of CompleteWorkflow of workflow 'order-1' is"),
    ([c.ContinueAsNew(memo={"a": BIG})], "memo of ContinueAsNew of workflow 'order-1' is"),
    ([c.RequestCancelActivity(scheduled_event_id=4)], "no activity with the scheduled event 4"),
    ([a_timer("running")], "a timer with the id 'running' is running"),
    ([a_timer(""), a_timer()], "command 1 of 2, StartTimer: timer_id is empty"),
    ([a_timer(ms=-1)], "start_to_fire_ms is -1"),
    ([c.CancelTimer(timer_id="t")], "CancelTimer: no timer with the id 't' is running"),
    (
        [c.CancelTimer(timer_id="running"), c.CancelTimer(timer_id="running")],
        "command 2 of 2, CancelTimer",
    ),
    ([c.RecordMarker(marker_name="")], "marker_name is empty"),
    ([a_child(workflow_id="")], "workflow_id is empty"),
    ([a_child(run_timeout_ms=-1)], "run_timeout_ms is -1"),
    ([a_child(parent_close_policy=9)], "parent_close_policy is 9"),
    ([a_child(id_reuse_policy=0)], "id_reuse_policy is 0"),
    ([a_child(cron_schedule="never")], "cron_schedule"),
    ([c.SignalExternalWorkflow(workflow_id="", signal_name="s")], "workflow_id is empty"),
    ([c.SignalExternalWorkflow(workflow_id="x", signal_name="")], "signal_name is empty"),
    ([c.RequestCancelExternalWorkflow(workflow_id="")], "workflow_id is empty"),
    ([c.AcceptUpdate(update_id="accepted")], "no update with the id 'accepted' waits"),
    ([c.RejectUpdate(update_id="never", failure=NO)], "no update with the id 'never' waits"),
    ([c.CompleteUpdate(update_id="admitted")], "'admitted' is accepted and not completed"),
    (
        [c.AcceptUpdate(update_id="admitted"), c.RejectUpdate(update_id="admitted", failure=NO)],
        "command 2 of 2, RejectUpdate",
    ),
    ([c.ContinueAsNew(backoff_ms=-1)], "backoff_ms is -1"),
    ([c.CompleteWorkflow(), a_timer()], "CompleteWorkflow: a command follows"),
    ([c.CompleteWorkflow(), c.CompleteWorkflow()], "a command follows that ends the run"),
]

GOOD: list[list[Command]] = [
    [],
    [an_activity(), an_activity("2"), a_timer(), a_child(), a_child()],
    [c.RequestCancelActivity(scheduled_event_id=5), c.RequestCancelActivity(scheduled_event_id=5)],
    [c.CancelTimer(timer_id="running"), a_timer("running"), c.CancelTimer(timer_id="running")],
    [c.AcceptUpdate(update_id="admitted"), c.CompleteUpdate(update_id="admitted")],
    [c.RejectUpdate(update_id="admitted", failure=NO), c.CompleteUpdate(update_id="accepted")],
    [an_activity(), c.FailWorkflow(failure=NO)],
    [c.ModifyProperties(upserted_memo={"a": None}), c.ContinueAsNew()],
]


@pytest.mark.parametrize(("commands", "why"), BAD)
def test_what_cannot_be_done_is_named(commands: list[Command], why: str) -> None:
    stage = waiting()
    before = stage.run.dump()
    problem = plan.problem(stage.run, commands)
    assert problem is not None
    assert why in problem
    assert problem.startswith("command ")
    assert stage.run.dump() == before


@pytest.mark.parametrize("commands", GOOD)
def test_what_can_be_done(commands: list[Command]) -> None:
    assert plan.problem(waiting().run, commands) is None


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (an_activity("more"), "activities"),
        (a_timer("more"), "timers"),
        (a_child(), "children"),
        (c.SignalExternalWorkflow(workflow_id="x", signal_name="s"), "signals"),
        (c.RequestCancelExternalWorkflow(workflow_id="x"), "signals"),
    ],
)
def test_what_is_pending_is_bounded(
    command: Command, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PENDING_MAX", 1)
    stage = Stage()
    stage.answer(an_activity("1"), a_timer("1"), a_child(), c.SignalExternalWorkflow(
        workflow_id="x", signal_name="s"
    ))  # fmt: skip
    problem = plan.problem(stage.run, [command])
    assert problem is not None
    assert f"1 {what}" in problem


def test_every_command_is_checked() -> None:
    assert set(plan._CHECKS) == set(Command.__args__)
