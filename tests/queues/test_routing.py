"""The router: which queue a task takes, what becomes of it when nobody lives there, and why."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.model.test_deployments import fold, routed, serves
from tq_broker.common import OnGone, RetryPolicy, Route
from tq_broker.model.deployments import NO_DEPLOYMENTS
from tq_broker.model.detours import Detour
from tq_broker.model.names import Names
from tq_broker.model.rule_table import Facts, RuleTable
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.tasks import ActivityTask, WorkflowOrigin
from tq_broker.queues.routing import (
    WAIT_STEP_MS,
    Destination,
    Fail,
    LookAgain,
    by_rule,
    destination,
    explain,
    explain_version,
    facts,
    may_be_moved,
    when_gone,
)

NAMES = Names("n")
WAIT = timedelta(seconds=10)


def task(route: Route | None = None, **fields: Any) -> ActivityTask:
    return ActivityTask(
        activity_id="a", activity_type="t", task_queue="q", body=b"", route=route, **fields
    )


def test_without_a_route_a_task_takes_its_task_queue() -> None:
    to = destination(NAMES, task())
    assert str(to.queue) == "tq.n.activity.q"
    assert not to.private
    assert to.why == "task queue 'q'"


@pytest.mark.parametrize(
    ("route", "name"),
    [(Route.host("h"), "tq.n.host.h.q"), (Route.process("w"), "tq.n.process.w.q")],
)
def test_a_route_takes_the_private_queue_of_its_target(route: Route, name: str) -> None:
    to = destination(NAMES, task(route))
    assert str(to.queue) == name
    assert to.private
    assert repr(route.target) in to.why


def test_by_default_a_task_fails_when_its_target_is_gone() -> None:
    answer = when_gone(NAMES, task(Route.host("h")), 0)
    assert answer == Fail("no living worker serves task queue 'q' on host 'h'")


def test_falling_back_takes_the_task_queue() -> None:
    answer = when_gone(NAMES, task(Route.process("w", on_gone=OnGone.FALL_BACK)), 0)
    assert isinstance(answer, Destination)
    assert answer.queue == NAMES.activity("q")
    assert not answer.private
    assert "process 'w'" in answer.why


@given(st.integers(0, 20_000))
def test_waiting_looks_again_until_the_wait_is_over(passed_ms: int) -> None:
    waits = task(Route.host("h", on_gone=OnGone.WAIT, wait=WAIT), scheduled_ms=5_000)
    answer = when_gone(NAMES, waits, 5_000 + passed_ms)
    if passed_ms < 10_000:
        assert isinstance(answer, LookAgain)
        assert 0 < answer.delay_ms <= WAIT_STEP_MS
        assert passed_ms + answer.delay_ms <= 10_000, "the last look is when the wait is over"
    else:
        assert isinstance(answer, Fail)
        assert "did not within" in answer.why


def test_only_a_routed_task_can_lose_its_target() -> None:
    with pytest.raises(AssertionError):
        when_gone(NAMES, task(), 0)


# --- traffic rules --------------------------------------------------------------------------------


def by(rule: TrafficRule, of: Facts | None = None) -> Destination | None:
    return by_rule(NAMES, of or facts(task()), RuleTable([rule]), 0)


def a_rule(**fields: Any) -> TrafficRule:
    return TrafficRule(**{"id": "r", "to_task_queue": "there"} | fields)


def test_a_rule_leads_to_a_detour_that_leads_home() -> None:
    to = by(a_rule(take_within_ms=5_000))
    assert to is not None
    assert to.detour == Detour(TaskKind.ACTIVITY, "there", "", "q", 5_000)
    assert to.queue == to.detour.queue(NAMES)
    assert to.private
    assert to.why == "traffic rule 'r' sends it to task queue 'there'"


def test_a_rule_may_name_a_host_only() -> None:
    to = by(a_rule(to_task_queue="", to_host="h"))
    assert to is not None
    assert to.detour == Detour(TaskKind.ACTIVITY, "q", "h", "q", 10_000)


def test_without_fallback_a_rule_leads_to_the_shared_queue() -> None:
    to = by(a_rule(fallback=False))
    assert to is not None
    assert (to.queue, to.private, to.detour) == (NAMES.activity("there"), False, None)
    of = Facts(kind=TaskKind.WORKFLOW, type="W", task_queue="q", id="w")
    to = by(a_rule(fallback=False), of)
    assert to is not None
    assert to.queue == NAMES.workflow("there")


def test_who_is_there_already_is_not_moved() -> None:
    assert by(a_rule(to_task_queue="q")) is None
    assert by(a_rule(type="other")) is None


def test_what_must_run_where_it_says_or_has_come_back_is_not_asked_about() -> None:
    assert may_be_moved(task())
    assert not may_be_moved(task(Route.host("h")))
    assert not may_be_moved(task(rule="r"))
    assert not may_be_moved(task(fell_back="r"))


def test_rules_may_ask_what_a_task_tells() -> None:
    once = RetryPolicy(maximum_attempts=1)
    told = facts(task(headers={"h": "x"}, priority=1, retry_policy=once), {"m": b"1"})
    assert told == Facts(
        kind=TaskKind.ACTIVITY, type="t", task_queue="q", id="a", headers={"h": "x"}, priority=1,
        memo={"m": b"1"}, once=True,
    )  # fmt: skip


def test_an_explanation_ends_with_where_it_goes() -> None:
    def last(rule: TrafficRule) -> str:
        return explain(NAMES, facts(task()), RuleTable([rule]), 0)[-1]

    assert last(a_rule(to_task_queue="q")) == "which is where it is; it goes there"
    assert last(a_rule(type="x")) == "no rule decides; it goes to 'q'"
    assert last(a_rule()).startswith("if nobody is there, or takes it within 10 s, it comes back")
    assert "queue tq.n.activity.there" in last(a_rule(fallback=False))


def test_a_version_has_a_queue_of_its_own_and_a_ramp_goes_by_the_workflow() -> None:
    found = fold(
        serves("v1", side="activity"),
        serves("v2", side="activity"),
        routed(0, "v1", ramping="v2", percent=50.0),
    )
    pinned = task(Route.version("shop.v1"))
    assert destination(NAMES, pinned, found).queue == NAMES.version("activity", "shop.v1", "q")
    queues = set()
    for number in range(50):
        workflow_id = f"w{number}"
        ramps = found.line("activity", "q").ramps(workflow_id)
        queue = NAMES.ramping("activity", "q") if ramps else NAMES.activity("q")
        origin = WorkflowOrigin(
            workflow_id=workflow_id,
            run_id="r",
            workflow_type="W",
            activity_id="1",
            scheduled_event_id=5,
        )
        for one in (replace(task(), activity_id=workflow_id), task(workflow=origin)):
            assert destination(NAMES, one, found).queue == queue
        queues.add(queue)
    assert len(queues) == 2


def test_the_version_that_takes_a_task_is_told_in_words() -> None:
    facts = Facts(kind=TaskKind.WORKFLOW, type="W", task_queue="q", id="w1")
    assert explain_version(facts, "q", NO_DEPLOYMENTS) == []
    found = fold(serves("v1"), serves("v2"), routed(0, "v1", ramping="v2", percent=100.0))
    [step] = explain_version(facts, "q", found)
    assert "'shop.v1' is current, and 'shop.v2' takes 100 %" in step
    assert "so it goes to 'shop.v2'" in step
    assert explain_version(facts, "elsewhere", found) == []
