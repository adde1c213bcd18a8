"""How a run looks from outside."""

from __future__ import annotations

from tests.history.stage import BEGIN_MS, WORKER, Stage, an_activity
from tq_broker.common import Route
from tq_broker.history import describe
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model import requests as r
from tq_broker.model.failure import application
from tq_broker.model.tasks import Status, WireRetryPolicy, load_route


def test_a_run_in_a_list() -> None:
    parent = e.ParentInfo(workflow_id="p", run_id="pr", initiated_event_id=5)
    stage = Stage(memo={"a": b"1"}, parent=parent, static_summary="sum", start_delay_ms=5)
    info = describe.info(stage.run)
    assert info == r.RunInfo(
        workflow_id="order-1",
        run_id="run-1",
        workflow_type="Order",
        task_queue="orders",
        status=r.Status.RUNNING,
        start_ms=BEGIN_MS,
        execution_ms=BEGIN_MS + 5,
        history_length=1,
        history_bytes=stage.run.history_bytes,
        first_run_id="run-1",
        parent_id="p",
        parent_run_id="pr",
        memo={"a": b"1"},
        static_summary="sum",
    )


def test_a_run_that_has_ended() -> None:
    stage = Stage()
    stage.now_ms += 9
    stage.answer(c.CompleteWorkflow())
    info = describe.info(stage.run)
    assert (info.status, info.close_ms) == (r.Status.COMPLETED, BEGIN_MS + 9)


def test_what_is_pending_is_described() -> None:
    oh = application("oh", "Oh")
    stage = Stage(static_details="static", identity="me", run_timeout_ms=90_000)
    stage.answer(
        an_activity("retried", retry_policy=WireRetryPolicy(attempts=3)),
        an_activity("running"),
        an_activity("unwanted"),
        c.StartTimer(timer_id="t", start_to_fire_ms=5_000),
        c.StartChildWorkflow(workflow_id="c", workflow_type="C", task_queue="q"),
        current_details="now",
        sticky=True,
    )
    stage.outcome(5, Status.FAILED, failure=oh)
    stage.outcome(6, Status.HEARTBEAT, heartbeat=b"[1]")
    stage.tell(r.RequestCancel(workflow_id="order-1"))
    stage.answer(c.RequestCancelActivity(scheduled_event_id=7, wait=True), sticky=True)
    stage.tell_signal()
    stage.fail_task()
    stage.tell(r.Describe(workflow_id="order-1"))
    [described] = stage.replies()
    assert described.info.history_length == len(stage.history)
    retried, running, unwanted = described.pending_activities
    assert (retried.state, retried.attempt, retried.maximum_attempts) == ("scheduled", 2, 3)
    assert (retried.last_failure, retried.next_ms) == (oh, BEGIN_MS + 1_000)
    assert (running.state, running.heartbeat_details, running.host) == ("started", b"[1]", "h")
    assert running.heartbeat_ms == running.started_ms == BEGIN_MS
    assert unwanted.state == "cancel_requested"
    [child] = described.pending_children
    assert (child.workflow_id, child.initiated_event_id, child.run_id) == ("c", 9, "")
    task = described.pending_task
    assert (task.attempt, task.last_cause, task.next_ms) == (
        2,
        "unhandled_failure",
        BEGIN_MS + 1_000,
    )
    assert (described.pending_timers, described.cancel_requested) == (1, True)
    assert (described.identity, described.static_details) == ("me", "static")


def test_the_worker_that_has_it_is_described() -> None:
    stage = Stage()
    stage.answer(sticky=True, current_details="now")
    described = describe.description(stage.run)
    assert (described.sticky_worker, described.current_details) == (WORKER, "now")
    assert described.pending_task is None


def test_what_a_pending_activity_asks_for_is_described() -> None:
    stage = Stage(headers={"tenant": "acme"})
    stage.answer(
        an_activity("plain", headers={"tenant": "acme"}),
        an_activity("asks", headers={"x": "y"}, route='{"kind":"host","target":"h"}',
                    requires='{"capabilities":["gpu"]}', priority=1, auto_upgrade=True),
    )  # fmt: skip
    plain, asks = describe.description(stage.run).pending_activities
    assert (plain.headers, plain.route, plain.requires) == ({"tenant": "acme"}, None, None)
    assert plain.task_id == "run-1/5"
    assert asks.headers == {"x": "y"}
    assert asks.route == '{"kind":"host","target":"h"}'
    assert asks.requires == '{"capabilities":["gpu"]}'
    assert (plain.priority, plain.auto_upgrade) == (None, False)
    assert (asks.priority, asks.auto_upgrade) == (1, True)


def test_whom_an_activity_follows_is_told() -> None:
    stage = Stage()
    affinity = '{"kind":"host"}'
    stage.answer(an_activity("first", affinity=affinity), an_activity("then", affinity=affinity))
    stage.outcome(5, Status.HEARTBEAT, heartbeat=b"[1]")
    first, then = describe.description(stage.run).pending_activities
    assert first.route is None
    assert then.route is not None
    assert load_route(then.route) == Route.host("h")


def test_the_affinity_of_a_run_is_told_and_where_it_is_by_now() -> None:
    affinity = '{"kind":"host"}'
    stage = Stage(affinity=affinity)
    stage.answer(an_activity("first", affinity=affinity))
    described = describe.description(stage.run)
    assert (described.affinity, described.affinity_target) == (affinity, "")
    stage.outcome(5, host="h1")
    assert describe.description(stage.run).affinity_target == "h1"
    assert describe.description(Stage().run).affinity is None
