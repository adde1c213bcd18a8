"""The router: which queue a task takes, what becomes of it when nobody lives there, and why."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.model.test_deployments import fold, routed, serves
from tq_broker.common import OnGone, Requires, RetryPolicy, Route
from tq_broker.model.capabilities import Niche
from tq_broker.model.deployments import NO_DEPLOYMENTS
from tq_broker.model.detours import Detour
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.rule_table import NO_RULES, Facts, RuleTable
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.sessions import SESSION_TYPE
from tq_broker.model.tasks import ActivityTask, WorkflowOrigin, dump_requires, dump_route
from tq_broker.model.workflow_tasks import RunKey, WorkflowTask
from tq_broker.queues.routing import (
    WAIT_STEP_MS,
    Asked,
    Destination,
    Fail,
    FallBack,
    LookAgain,
    by_rule,
    destination,
    explain,
    explain_version,
    facts,
    in_order,
    may_be_moved,
    refused_unknown,
    still_asked,
    when_gone,
    workflow_destination,
    workflow_gone,
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


def test_sessions_are_created_where_their_slots_are() -> None:
    session = msgspec.structs.replace(task(), activity_type=SESSION_TYPE)
    assert may_be_moved(task())
    assert not may_be_moved(session)


def test_a_rule_may_name_a_host_only() -> None:
    to = by(a_rule(to_task_queue="", to_host="h"))
    assert to is not None
    assert to.detour == Detour(TaskKind.ACTIVITY, "q", "h", "q", 10_000)


def test_a_rule_may_name_a_version_also_of_another_task_queue() -> None:
    to = by(a_rule(to_task_queue="", to_version="shop.2"))
    assert to is not None
    assert to.detour == Detour(TaskKind.ACTIVITY, "q", "", "q", 10_000, version="shop.2")
    to = by(a_rule(to_version="shop.2"))
    assert to is not None
    assert to.detour == Detour(TaskKind.ACTIVITY, "there", "", "q", 10_000, version="shop.2")


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


# --- priorities -----------------------------------------------------------------------------------

Q = NAMES.activity("q")


@given(st.none() | st.integers(0, 9), st.none() | st.booleans())
def test_what_has_a_priority_queue_waits_there_whatever_the_priority(
    priority: int | None, is_ordered: bool | None
) -> None:
    assert str(in_order(NAMES, Q, priority, {("activity", "q")}, is_ordered)) == "tq.n.priority.q"


@pytest.mark.parametrize(
    ("priority", "is_ordered", "expected"),
    [
        (None, None, "tq.n.activity.q"),
        (4, None, "tq.n.activity.q"),
        (4, False, "tq.n.activity.q"),
        (6, True, "tq.n.activity.q"),
        (6, False, "tq.n.priority.q"),
        (2, False, "tq.n.priority.q"),
        (2, None, "None"),
    ],
)
def test_only_the_first_other_priority_asks_for_a_priority_queue(
    priority: int | None, is_ordered: bool | None, expected: str
) -> None:
    assert str(in_order(NAMES, Q, priority, {("workflow", "q")}, is_ordered)) == expected


@pytest.mark.parametrize("is_ordered", [None, False, True])
def test_who_has_a_key_waits_for_its_share_and_then_all_do(is_ordered: bool | None) -> None:
    fair = NAMES.fair(Q)
    assert in_order(NAMES, Q, None, set(), is_ordered, has_key=True) == fair
    known = {("activity", "q")}
    assert in_order(NAMES, Q, 6, known, is_ordered, fair=known) == fair
    assert in_order(NAMES, Q, 4, set(), True, fair={("workflow", "q")}) == Q
    host = NAMES.queue(Kind.HOST, "h", "q")
    assert in_order(NAMES, host, 4, known, True, has_key=True, fair=known) == host


def test_a_fairness_key_is_explained() -> None:
    of = facts(task(fairness_key="acme"))
    steps = explain(NAMES, of, NO_RULES, 0)
    assert steps[1] == (
        "its fairness key is 'acme': on its task queue it waits for its share of what begins, in"
        " queue tq.n.fair.q"
    )


@pytest.mark.parametrize("queue", [NAMES.priority(Q), NAMES.queue(Kind.HOST, "h", "q")])
def test_other_queues_stay_as_they_are(queue: QueueName) -> None:
    assert in_order(NAMES, queue, 6, {("activity", "q")}, False) is queue


# --- capabilities ---------------------------------------------------------------------------------

GPU = Requires(("gpu", "ssd"))


def test_who_waits_for_a_capable_worker_does_so_on_a_shared_queue() -> None:
    to = destination(NAMES, task(requires=GPU))
    assert (to.queue, to.private) == (NAMES.capable("q", ["ssd", "gpu"]), False)
    assert to.why == "task queue 'q', workers with gpu, ssd"


@pytest.mark.parametrize(
    ("route", "requires", "niche"),
    [
        (None, Requires(("gpu",), OnGone.FAIL), Niche("q", ("gpu",), version="")),
        (None, Requires(("gpu",), wait=WAIT), Niche("q", ("gpu",), version="")),
        (Route.host("h"), GPU, Niche("q", ("gpu", "ssd"), "h")),
        (Route.process("w"), GPU, Niche("q", ("gpu", "ssd"), "", "w")),
        (Route.version("shop.2"), GPU, Niche("q", ("gpu", "ssd"), version="shop.2")),
    ],
)
def test_who_does_not_wait_or_has_a_route_is_for_a_niche(
    route: Route | None, requires: Requires, niche: Niche
) -> None:
    to = destination(NAMES, task(route, requires=requires))
    assert (to.niche, to.queue, to.private) == (niche, niche.queue(NAMES), True)


def test_each_requirement_has_its_stated_answer() -> None:
    def gone(requires: Requires, route: Route | None = None) -> Destination | Fail | LookAgain:
        return when_gone(NAMES, task(route, requires=requires), 0)

    assert gone(Requires(("gpu",), OnGone.FAIL)) == Fail(
        "no living worker serves task queue 'q' with gpu"
    )
    falls = gone(Requires(("gpu",), OnGone.FALL_BACK))
    assert isinstance(falls, Destination)
    assert falls.queue == NAMES.activity("q"), "then it was a wish"
    assert isinstance(gone(Requires(("gpu",), wait=WAIT)), LookAgain)
    # The answer of the route counts first; who falls back from a host needs a GPU still.
    falls = gone(Requires(("gpu",), OnGone.FAIL), Route.host("h", on_gone=OnGone.FALL_BACK))
    assert isinstance(falls, Destination)
    assert falls.queue == NAMES.capable("q", ["gpu"])


def test_a_rule_may_move_what_waits_and_only_to_those_who_are_capable() -> None:
    assert may_be_moved(task(requires=GPU))
    assert not may_be_moved(task(requires=Requires(("gpu",), OnGone.FAIL)))
    to = by(a_rule(), facts(task(requires=GPU)))
    assert to is not None
    assert to.detour is not None
    assert to.detour.capabilities == ("gpu", "ssd")
    assert to.detour.home_queue(NAMES) == NAMES.capable("q", ["gpu", "ssd"])
    to = by(a_rule(fallback=False), facts(task(requires=GPU)))
    assert to is not None
    assert to.queue == NAMES.capable("there", ["gpu", "ssd"])


@pytest.mark.parametrize(
    ("requires", "refused"),
    [
        (GPU, True),
        (Requires(("gpu",), OnGone.FAIL), True),
        (Requires(("gpu",), OnGone.FALL_BACK), False),
        (Requires(("gpu",), wait=WAIT), False),
    ],
)
def test_what_nobody_has_ever_had_is_refused_unless_it_has_another_answer(
    requires: Requires, refused: bool
) -> None:
    why = refused_unknown("q", requires, {"ssd"})
    assert bool(why) is refused
    if why:
        assert "has ever had gpu; known there: ssd" in why
    assert not refused_unknown("q", requires, {*requires.names})
    assert not refused_unknown("q", None, ())


def explained(asked: Asked, rules: RuleTable = NO_RULES) -> str:
    return "\n".join(explain(NAMES, facts(task()), rules, 0, asked))


def test_requirements_and_routes_are_explained() -> None:
    rules = RuleTable([a_rule()])
    told = explained(Asked(requires=GPU), rules)
    assert "it requires gpu, ssd: only workers that have all of it get it" in told
    assert f"its own queue is {NAMES.capable('q', ['gpu', 'ssd'])}" in told
    assert "rule 'r' (order 100): matches" in told
    assert "tq.n.detour." in told
    told = explained(Asked(route=Route.host("h")), rules)
    assert "its route says host 'h'" in told
    assert "queue tq.n.host.h.q" in told
    assert told.endswith("if nobody is there: it fails at once")
    assert "rule 'r'" not in told
    wait = Requires(("gpu",), wait=WAIT)
    assert "looked at again every 0.5 s" in explained(Asked(requires=wait))
    fall = Requires(("gpu",), OnGone.FALL_BACK)
    assert explained(Asked(requires=fall)).endswith("falls back to queue tq.n.activity.q")


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


def test_what_is_pinned_and_requires_something_keeps_to_both() -> None:
    pin = Route.version("shop.v2")

    def gone(requires: Requires) -> Destination | Fail | LookAgain:
        return when_gone(NAMES, task(pin, requires=requires), 0)

    assert isinstance(gone(GPU), LookAgain), "a version is waited for"
    assert isinstance(gone(Requires(("gpu",), OnGone.FAIL)), Fail)
    falls = gone(Requires(("gpu",), OnGone.FALL_BACK))
    assert isinstance(falls, Destination)
    assert falls.queue == NAMES.version("activity", "shop.v2", "q")
    told = explained(Asked(route=pin))
    assert "queue tq.n.version.activity.shop%2Ev2.q" in told
    assert told.endswith("if nobody is there: it waits")


def test_a_niche_is_of_the_version_that_is_current_or_ramping() -> None:
    deployments = fold(
        serves("v1", side="activity"), serves("v2", side="activity"), routed(0, "v1")
    )
    needy = task(requires=Requires(("gpu",), OnGone.FAIL))
    to = destination(NAMES, needy, deployments)
    assert to.niche == Niche("q", ("gpu",), version="shop.v1")
    ramped = deployments.apply(routed(1, "v1", ramping="v2", percent=100.0))
    assert destination(NAMES, needy, ramped).niche == Niche("q", ("gpu",), version="shop.v2")
    at_home = replace(needy, route=Route.host("h"))
    assert destination(NAMES, at_home, ramped).niche == Niche("q", ("gpu",), "h")


# --- workflow tasks -------------------------------------------------------------------------------


def turn(**fields: Any) -> WorkflowTask:
    run = RunKey("w", "r")
    return WorkflowTask(
        run=run, workflow_type="T", task_queue="q", shard=1, scheduled_event_id=2, **fields
    )


def niche(*capabilities: str, **fields: Any) -> Niche:
    return Niche("q", capabilities, **({"version": "", "side": "workflow"} | fields))


def test_each_fallback_leaves_less_that_is_asked_for() -> None:
    fall, gpu = Route.host("h", on_gone=OnGone.FALL_BACK), Requires({"gpu"}, OnGone.FALL_BACK)
    started = WorkflowExecutionStarted(
        event_id=1, time_ms=1, workflow_type="T", task_queue="q", workflow_id="w", run_id="r",
        first_run_id="r", route=dump_route(fall), requires=dump_requires(gpu),
    )  # fmt: skip
    left = [still_asked(turn(fell_back=["no"] * times), started) for times in range(3)]
    assert [(asked.route, asked.requires and asked.requires.names) for asked in left] == [
        (fall, ("gpu",)), (None, ("gpu",)), (None, None),
    ]  # fmt: skip


def test_a_run_that_asks_for_nothing_takes_its_task_queue_or_its_version() -> None:
    assert workflow_destination(NAMES, turn(), Asked()).queue == NAMES.workflow("q")
    to = workflow_destination(NAMES, turn(version="shop.1"), Asked())
    assert to.queue == NAMES.version("workflow", "shop.1", "q")


@pytest.mark.parametrize(
    ("asked", "version", "meant"),
    [
        (Asked(Route.host("h")), "", niche(host="h")),
        (Asked(Route.process("p")), "", niche(worker_id="p")),
        (Asked(Route.host("h"), GPU), "", niche("gpu", "ssd", host="h")),
        (Asked(requires=Requires(("gpu",), OnGone.FAIL)), "", niche("gpu")),
        # Code of another version cannot replay it.
        (Asked(Route.host("h")), "shop.1", niche(host="h", version="shop.1")),
        (Asked(requires=GPU), "shop.1", niche("gpu", "ssd", version="shop.1")),
    ],
)
def test_a_run_may_be_for_a_few_workers(asked: Asked, version: str, meant: Niche) -> None:
    to = workflow_destination(NAMES, turn(version=version), asked)
    assert (to.niche, to.queue, to.private) == (meant, meant.queue(NAMES), True)
    assert to.queue.kind is Kind.WORKFLOW_NICHE


def test_a_run_waits_for_capable_workers_on_a_shared_queue() -> None:
    to = workflow_destination(NAMES, turn(), Asked(requires=GPU))
    assert to.queue == NAMES.capable("q", ["ssd", "gpu"], Kind.WORKFLOW)
    assert not to.private


def test_a_run_that_a_ramp_takes_needs_capable_workers_of_that_version() -> None:
    ramp = routed(0, "v1", ramping="v2", percent=100.0)
    deployments = fold(serves("v1"), serves("v2"), ramp)
    to = workflow_destination(NAMES, turn(), Asked(requires=GPU), deployments)
    assert to.niche == niche("gpu", "ssd", version="shop.v2")


def test_a_run_has_its_stated_answer_when_its_target_is_gone() -> None:
    started = turn(scheduled_ms=1_000)
    gone = "no living worker serves task queue 'q' on host 'h'"
    assert workflow_gone(started, Asked(Route.host("h")), 2_000) == Fail(gone)
    wait = Asked(Route.host("h", on_gone=OnGone.WAIT, wait=WAIT))
    answer = workflow_gone(started, wait, 2_000)
    assert answer == LookAgain(WAIT_STEP_MS, f"{gone}; waits 9000 ms more")
    assert workflow_gone(started, wait, 11_000) == Fail(f"{gone}, and did not within {WAIT}")
    fall = Asked(Route.host("h", on_gone=OnGone.FALL_BACK), GPU)
    assert workflow_gone(started, fall, 2_000) == FallBack(f"{gone} with gpu, ssd")


def test_who_falls_back_from_a_host_still_needs_what_it_requires() -> None:
    assert Asked(Route.host("h"), GPU).fallen == Asked(requires=GPU)
    assert Asked(requires=GPU).fallen == Asked()


def test_where_a_run_goes_is_explained() -> None:
    of = Facts(kind=TaskKind.WORKFLOW, type="T", task_queue="q", id="w")

    def told(asked: Asked) -> str:
        return "\n".join(explain(NAMES, of, NO_RULES, 0, asked))

    assert "its own queue is tq.n.workflow-capable." in told(Asked(requires=GPU))
    routed_to = told(Asked(Route.host("h")))
    assert "workers of task queue 'q' on host 'h'" in routed_to
    assert routed_to.endswith("if nobody is there: it fails at once")
    fall = told(Asked(Route.host("h", on_gone=OnGone.FALL_BACK), GPU))
    assert "if nobody is there: it falls back to queue tq.n.workflow-capable." in fall
    assert "queue tq.n.version.workflow.shop%2E1.q" in told(Asked(Route.version("shop.1")))
