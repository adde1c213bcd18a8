"""To which deployment version a run belongs, and where its tasks go because of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.history.stage import BEGIN_MS, CLIENT, Stage, a_start, an_activity
from tests.model.test_deployments import NAMES, routed, serves
from tq_broker.common import Route, VersioningBehavior
from tq_broker.history import activities, admission, mailing, versions
from tq_broker.history.effects import Reply, ToShard
from tq_broker.model import commands as c
from tq_broker.model import events as e
from tq_broker.model.deployments import AUTO_UPGRADE, NO_DEPLOYMENTS, Deployments
from tq_broker.model.requests import ChildRefused, Refused, StartWorkflow
from tq_broker.model.rule_table import RuleTable
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.tasks import dump_route
from tq_broker.model.workflow_tasks import TaskFailedCause

PINNED, FOLLOWS = int(VersioningBehavior.PINNED), int(VersioningBehavior.AUTO_UPGRADE)
V1, V2 = "shop.v1", "shop.v2"


def deployments(current: str = "v1", **ramp: Any) -> Deployments:
    found = NO_DEPLOYMENTS
    for build_id in ("v1", "v2"):
        found = found.apply(serves(build_id, "orders"))
    found = found.apply(serves("v1", "payments", side="activity"))
    return found.apply(routed(0, current, **ramp))


def a_run(behavior: int = PINNED, *commands: Any, **start: Any) -> Stage:
    """It has completed its first task on version 1, which has it in its cache."""
    stage = Stage(deployments=deployments(), **start)
    stage.answer(*commands, sticky=True, version=V1, versioning_behavior=behavior)
    return stage


@pytest.mark.parametrize(
    ("start", "done", "expected"),
    [
        ({}, None, ""),
        ({"inherited_version": V2}, None, V2),
        ({}, (V1, PINNED), V1),
        ({}, (V1, FOLLOWS), ""),
        ({}, ("", 0), ""),
        ({"inherited_version": V2}, (V2, FOLLOWS), ""),
        ({"versioning_override": V2}, (V1, FOLLOWS), V2),
        ({"versioning_override": AUTO_UPGRADE}, (V1, PINNED), ""),
        ({"versioning_override": AUTO_UPGRADE, "inherited_version": V2}, None, ""),
    ],
)
def test_a_run_is_pinned_by_its_start_its_workflow_or_who_started_it(
    start: dict[str, str], done: tuple[str, int] | None, expected: str
) -> None:
    stage = Stage(**start)
    if done is not None:
        stage.answer(version=done[0], versioning_behavior=done[1])
    assert versions.pin(stage.run) == expected


def test_a_completed_task_tells_the_history_which_version_it_was() -> None:
    event = a_run().the(e.WorkflowTaskCompleted)
    assert (event.version, event.versioning_behavior) == (V1, PINNED)


def test_a_pinned_run_stays_with_its_worker_whatever_is_current() -> None:
    stage = a_run(PINNED)
    stage.deployments = deployments("v2")
    stage.tell_signal()
    task = stage.dispatched()
    assert (task.sticky, task.version) == ("worker-1", V1)


def test_a_run_that_follows_leaves_the_cache_of_what_is_not_current_any_more() -> None:
    stage = a_run(FOLLOWS)
    stage.tell_signal()
    assert stage.dispatched().sticky == "worker-1"
    stage.answer(sticky=True, version=V1, versioning_behavior=FOLLOWS)
    stage.deployments = deployments("v2")
    stage.tell_signal()
    task = stage.dispatched()
    assert (task.sticky, task.version, task.first_event_id) == ("", "", 1)


def test_it_leaves_it_for_the_ramp_as_well() -> None:
    stage = a_run(FOLLOWS)
    stage.deployments = deployments("v1", ramping="v2", percent=100.0)
    stage.tell_signal()
    assert stage.dispatched().sticky == ""


@pytest.mark.parametrize(
    ("behavior", "rule", "sticky"),
    [
        (FOLLOWS, {"to_version": V2}, ""),
        (FOLLOWS, {"to_version": V1}, "worker-1"),
        (FOLLOWS, {"to_version": V2, "type": "Other"}, "worker-1"),
        (FOLLOWS, {"to_version": V2, "kind": TaskKind.ACTIVITY}, "worker-1"),
        (FOLLOWS, {"to_version": V2, "expires_ms": 1}, "worker-1"),
        (FOLLOWS, {"to_task_queue": "laptop"}, "worker-1"),
        (PINNED, {"to_version": V2}, "worker-1"),
    ],
)
def test_a_run_that_follows_leaves_it_for_the_version_of_a_traffic_rule(
    behavior: int, rule: dict[str, Any], sticky: str
) -> None:
    stage = a_run(behavior)
    stage.rules = RuleTable([TrafficRule(id="r", **rule)])
    stage.tell_signal()
    assert stage.dispatched().sticky == sticky


def test_a_run_that_a_traffic_rule_has_sent_to_a_version_sticks_there() -> None:
    stage = a_run(FOLLOWS)
    rules = RuleTable([TrafficRule(id="r", headers={"a": "b"}, to_version=V1)])
    moved = deployments("v2")
    assert not versions.may_stick(stage.run, moved, rules, BEGIN_MS)
    tagged = Stage(deployments=moved, headers={"a": "b"})
    tagged.answer(sticky=True, version=V1, versioning_behavior=FOLLOWS)
    assert versions.may_stick(tagged.run, moved, rules, BEGIN_MS)
    assert not versions.may_stick(tagged.run, moved)


def test_such_a_rule_may_ask_for_the_fairness_key() -> None:
    rules = RuleTable([TrafficRule(id="r", fairness_key="acme", to_version=V1)])
    moved = deployments("v2")
    keyed = Stage(deployments=moved, fairness_key="acme")
    keyed.answer(sticky=True, version=V1, versioning_behavior=FOLLOWS)
    assert versions.may_stick(keyed.run, moved, rules, BEGIN_MS)


def test_a_failed_attempt_of_a_pinned_run_goes_to_its_version() -> None:
    stage = a_run(PINNED)
    stage.tell_signal()
    stage.fail_task(TaskFailedCause.UNHANDLED_FAILURE.value)
    stage.wake()
    task = stage.dispatched()
    assert (task.sticky, task.version) == ("", V1)


@pytest.mark.parametrize(
    ("version", "ramp", "queue"),
    [
        (V1, {}, NAMES.version("workflow", V1, "orders")),
        ("", {}, NAMES.workflow("orders")),
        ("", {"ramping": "v2", "percent": 100.0}, NAMES.ramping("workflow", "orders")),
        ("", {"ramping": "v2", "percent": 0.0}, NAMES.workflow("orders")),
    ],
)
def test_a_task_is_put_on_the_queue_of_its_version(
    version: str, ramp: dict[str, Any], queue: Any
) -> None:
    stage = a_run(PINNED if version else FOLLOWS)
    stage.deployments = deployments("v1", **ramp)
    stage.run.sticky_worker = ""
    stage.tell_signal()
    publication, needs = mailing.workflow_task(
        NAMES, stage.dispatched(), [], "id", stage.run.started, stage.deployments
    )
    assert (publication.routing_key, needs) == (queue.key, (queue,))


@pytest.mark.parametrize(
    ("behavior", "task_queue", "route", "expected"),
    [
        (PINNED, "payments", None, Route.version(V1)),
        (PINNED, "elsewhere", None, None),
        (FOLLOWS, "payments", None, None),
        (PINNED, "payments", '{"kind":"host","target":"h"}', Route.host("h")),
    ],
)
def test_an_activity_follows_a_pinned_run_where_its_version_serves(
    behavior: int, task_queue: str, route: str | None, expected: Route | None
) -> None:
    stage = a_run(behavior, an_activity(task_queue=task_queue, route=route))
    [effect] = stage.attempts()
    scheduled = stage.the(e.ActivityTaskScheduled)
    task, _ = activities.task(stage.run, scheduled, effect, stage.deployments)
    assert task.route == expected


def test_an_activity_may_be_free_of_the_pin_of_its_run() -> None:
    stage = a_run(PINNED, an_activity(task_queue="payments", auto_upgrade=True))
    [effect] = stage.attempts()
    scheduled = stage.the(e.ActivityTaskScheduled)
    task, _ = activities.task(stage.run, scheduled, effect, stage.deployments)
    assert task.route is None


@pytest.mark.parametrize(
    ("behavior", "task_queue", "inherited"),
    [(PINNED, "orders", V1), (PINNED, "elsewhere", ""), (FOLLOWS, "orders", "")],
)
def test_a_child_inherits_the_pin_where_the_version_serves(
    behavior: int, task_queue: str, inherited: str
) -> None:
    child = c.StartChildWorkflow(workflow_id="child", workflow_type="Child", task_queue=task_queue)
    [request] = a_run(behavior, child).sent()
    assert isinstance(request, StartWorkflow)
    assert request.inherited_version == inherited
    assert request.versioning_override == ""


def test_a_child_that_says_its_version_is_pinned_to_it() -> None:
    child = c.StartChildWorkflow(
        workflow_id="child", workflow_type="Child", task_queue="orders", versioning_override=V2
    )
    stage = a_run(PINNED, child)
    [request] = stage.sent()
    assert isinstance(request, StartWorkflow)
    assert request.versioning_override == V2
    assert stage.the(e.StartChildWorkflowExecutionInitiated).versioning_override == V2


def test_a_child_of_a_version_that_nobody_knows_is_refused_with_the_reason() -> None:
    me = e.ParentInfo(workflow_id="p", run_id="r", initiated_event_id=5)
    start = a_start(versioning_override="shop.v9", parent=me)
    [effect] = admission.admit(None, start, BEGIN_MS, None, deployments()).step.effects
    assert isinstance(effect, ToShard)
    assert isinstance(effect.request, ChildRefused)
    assert effect.request.cause == "invalid_argument"
    assert "start a worker of it first" in effect.request.message


@pytest.mark.parametrize(
    ("command", "inherited"),
    [
        (c.ContinueAsNew(), V1),
        (c.ContinueAsNew(initial_versioning_behavior=1), ""),
        (c.ContinueAsNew(task_queue="elsewhere"), ""),
    ],
)
def test_what_continues_a_pinned_run_inherits_it_unless_it_upgrades(
    command: c.ContinueAsNew, inherited: str
) -> None:
    stage = a_run(PINNED, command)
    assert stage.last.next_run is not None
    assert stage.last.next_run.run.started.inherited_version == inherited


def test_a_cron_schedule_begins_with_the_current_version() -> None:
    stage = Stage(deployments=deployments(), cron_schedule="@every 5m", inherited_version=V1)
    stage.wake()
    stage.answer(c.CompleteWorkflow(), version=V1, versioning_behavior=PINNED)
    assert stage.last.next_run is not None
    assert stage.last.next_run.run.started.inherited_version == ""


def test_a_start_that_is_pinned_to_what_nobody_knows_is_refused() -> None:
    start = a_start(versioning_override="shop.v9")
    admitted = admission.admit(None, start, BEGIN_MS, CLIENT, deployments())
    assert not admitted.begin
    [effect] = admitted.step.effects
    assert isinstance(effect, Reply)
    assert isinstance(effect.answer, Refused)
    assert (
        "'shop.v9', which the run is to be pinned to, is not known; start a worker of it first"
        in effect.answer.message
    )
    for override in (V2, AUTO_UPGRADE, ""):
        start = a_start(versioning_override=override)
        assert admission.admit(None, start, BEGIN_MS, CLIENT, deployments()).begin


def test_without_versions_a_run_sticks() -> None:
    stage = Stage()
    stage.answer(sticky=True)
    assert versions.may_stick(stage.run, NO_DEPLOYMENTS)


def test_no_rule_takes_a_run_with_a_route_from_its_worker() -> None:
    to = TrafficRule(id="r", kind=TaskKind.WORKFLOW, task_queue="orders", to_version=V2)
    rules = RuleTable([to])
    for start, sticks in (({}, False), ({"route": dump_route(Route.host("h"))}, True)):
        stage = a_run(FOLLOWS, **start)
        assert versions.may_stick(stage.run, deployments(), rules, BEGIN_MS) is sticks
