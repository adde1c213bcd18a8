"""What is said about a rule before it is set: targets, loops and overlaps."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.client import rule_review
from tq_broker.client.rule_review import globs_meet, review
from tq_broker.model.control import WorkerInfo
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.settings import RULES_MAX


def worker(*task_queues: str, **fields: Any) -> WorkerInfo:
    known = {
        "worker_id": "w", "identity": "w", "host": "h1", "pid": 1, "started_ms": 1, "slots": 1,
        "running": 0, "task_queues": list(task_queues), "activities": ["charge"],
    }  # fmt: skip
    return WorkerInfo(**known | fields)


WORKERS = [worker("q", "there", "b", "c")]
VERSIONED = worker("there", deployment_version="s.1")


def rule(id: str = "r", **fields: Any) -> TrafficRule:
    return TrafficRule(**{"id": id, "task_queue": "q", "to_task_queue": "there"} | fields)


def refused(new: TrafficRule, *others: TrafficRule, workers: Any = WORKERS) -> list[str]:
    return [one.text for one in review(new, others, workers, 100) if one.refuses]


def noted(new: TrafficRule, *others: TrafficRule) -> list[str]:
    return [one.text for one in review(new, others, WORKERS, 100) if not one.refuses]


def test_a_plain_rule_needs_no_words() -> None:
    assert review(rule(), [], WORKERS, 100) == []
    assert review(rule(), [rule(percent=5)], WORKERS, 100) == [], "it takes its own place"


@pytest.mark.parametrize(
    ("fields", "workers", "why"),
    [
        ({}, [], "no living worker serves task queue 'there' (activity or workflow)"),
        ({}, [worker("q")], "no living worker serves task queue 'there'"),
        ({}, [worker("there", shutting_down=True)], "no living worker"),
        ({"kind": TaskKind.WORKFLOW}, WORKERS, "serves task queue 'there' (workflow)"),
        ({"to_host": "h2"}, WORKERS, "no living worker on host 'h2'"),
        ({"to_host": "h2"}, WORKERS, "hosts that do: h1; start a worker there first"),
        ({"to_version": "s.2"}, WORKERS, "no living worker of version 's.2' serves task queue"),
        ({"to_version": "s.2"}, [VERSIONED], "versions that do: s.1; start a worker of it first"),
        ({"to_version": "s.1", "type": "x"}, [VERSIONED], "has registered 'x', only: charge"),
        ({"type": "refund"}, WORKERS, "has registered 'refund', only: charge"),
        ({"expires_ms": 100}, WORKERS, "its time is over already"),
    ],
)
def test_a_target_that_cannot_serve_is_told(
    fields: dict[str, Any], workers: list[WorkerInfo], why: str
) -> None:
    [text] = refused(rule(**fields), workers=workers)
    assert why in text


BOTH = worker("q", workflows=["Order"])


@pytest.mark.parametrize(
    ("fields", "target", "why"),
    [
        ({"fallback": False}, worker("there"), "no living worker of task queue 'there' has any wo"),
        ({"fallback": False}, worker("there", activities=[], workflows=["Order"]), "any activity,"),
        ({"fallback": False, "type": "O*"}, worker("there"), "match the kind 'activity' only"),
        ({"fallback": False, "type": "c*"}, worker("there"), ""),
        ({"fallback": False, "kind": TaskKind.ACTIVITY}, worker("there"), ""),
        ({"fallback": False}, worker("there", workflows=["Other"]), ""),
        ({}, worker("there"), ""),
    ],
)
def test_without_a_fallback_the_target_has_to_serve_both_kinds(
    fields: dict[str, Any], target: WorkerInfo, why: str
) -> None:
    told = refused(rule(**fields), workers=[BOTH, target])
    assert [why in one for one in told] == [True] * bool(why)


def test_a_host_of_any_task_queue_needs_a_worker_of_some() -> None:
    assert refused(rule(task_queue="", to_task_queue="", to_host="h1")) == []
    [text] = refused(rule(task_queue="", to_task_queue="", to_host="h2"))
    assert "serves any task queue" in text


def test_a_version_needs_a_worker_of_it() -> None:
    assert refused(rule(to_version="s.1"), workers=[VERSIONED]) == []
    assert (
        refused(rule(task_queue="", to_task_queue="", to_version="s.1"), workers=[VERSIONED]) == []
    )


def test_rules_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_review, "RULES_MAX", 1)
    assert "the most there may be" in refused(rule(type="charge"), rule("o", task_queue="x"))[0]


@pytest.mark.parametrize(
    "others",
    [
        [rule("back", task_queue="there", to_task_queue="q")],
        [rule("any", task_queue="", to_task_queue="q", type="charge", order=200)],
        [
            rule("one", task_queue="there", to_task_queue="b"),
            rule("two", task_queue="b", to_task_queue="q"),
        ],
    ],
)
def test_a_way_back_is_a_loop(others: list[TrafficRule]) -> None:
    text = next(text for text in refused(rule(), *others) if "loop" in text)
    assert "back" in text
    assert all(repr(one.id) in text for one in others)


def test_the_shortest_way_back_is_told() -> None:
    others = [
        rule("on", task_queue="there", to_task_queue="b"),
        rule("back", task_queue="b", to_task_queue="q"),
        rule("straight", task_queue="there", to_task_queue="q"),
    ]
    text = next(text for text in refused(rule(), *others) if "loop" in text)
    assert "send them back: 'straight' to 'q';" in text


@pytest.mark.parametrize("lead", [True, False])
def test_many_rules_of_any_task_queue_are_looked_through_at_once(lead: bool) -> None:
    others = [
        rule(f"r{k}", task_queue="", to_task_queue=f"orders-{k}", headers={f"h{k}": "x"})
        for k in range(50)
    ]
    back = rule("back", task_queue="orders-49", to_task_queue="q", headers={"h": "x"})
    told = [one for one in refused(rule(), *others, *[back] * lead) if "loop" in one]
    assert [("'r49' to 'orders-49', 'back' to 'q'" in one) for one in told] == [True] * lead


@pytest.mark.parametrize("back", [True, False])
def test_the_longest_chain_is_followed(back: bool) -> None:
    others = [
        rule(f"r{k}", task_queue=f"q{k}", to_task_queue=f"q{k + 1}") for k in range(RULES_MAX - 1)
    ]
    new = rule(to_task_queue="q0", task_queue=f"q{RULES_MAX - 1}" if back else "q")
    assert any("loop" in text for text in refused(new, *others)) is back


def test_what_leads_elsewhere_or_is_about_other_tasks_is_no_loop() -> None:
    assert refused(rule(), rule("on", task_queue="there", to_task_queue="b")) == []
    back = rule("back", task_queue="there", to_task_queue="q", headers={"a": "x"})
    assert refused(rule(headers={"a": "y"}), back) == []
    assert refused(rule(), rule("host", task_queue="there", to_task_queue="", to_host="h1")) == []


def test_a_rule_that_another_hides_is_refused() -> None:
    assert "comes first and takes all" in refused(rule(type="charge"), rule("all", order=1))[0]
    [text] = refused(rule(), rule("some", order=200, percent=5))
    assert "takes all that rule 'some' (order 200) matches" in text


@pytest.mark.parametrize(
    "first",
    [
        {"percent": 50},
        {"headers": {"a": "x"}},
        {"expires_ms": 1_000},
        {"type": "ch*"},
        {"priority": 1},
        {"kind": TaskKind.ACTIVITY},
        {"memo": {"a": "x"}},
    ],
)
def test_an_overlap_is_told_but_not_refused(first: dict[str, Any]) -> None:
    other = rule("first", order=1, **first)
    assert refused(rule(), other) == []
    assert noted(rule(), other) == [
        "rules 'first' and 'r' can match the same task; 'first' decides then"
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"type": "a"}, {"type": "b"}),
        ({"priority": 1}, {"priority": 2}),
        ({"headers": {"a": "x"}}, {"headers": {"a": "y"}}),
        ({"kind": TaskKind.ACTIVITY}, {"kind": TaskKind.WORKFLOW}),
        ({"task_queue": "q"}, {"task_queue": "b"}),
        ({}, {"expires_ms": 50}),
    ],
)
def test_rules_about_different_tasks_do_not_overlap(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    workers = [worker("q", "there", "b", activities=["a", "b"], workflows=["w"])]
    assert review(rule(**one), [rule("o", **other)], workers, 100) == []


@given(st.text("ab*?", max_size=5), st.text("ab*?", max_size=5), st.text("ab", max_size=5))
def test_globs_that_both_match_something_meet(one: str, other: str, text: str) -> None:
    if fnmatchcase(text, one) and fnmatchcase(text, other):
        assert globs_meet(one, other)
    assert globs_meet(one, other) == globs_meet(other, one)


def test_globs_that_cannot_meet_are_known() -> None:
    assert not globs_meet("order-*", "charge-*")
    assert not globs_meet("*-a", "*-b")
    assert globs_meet("order-*", "*-paid")
    assert globs_meet("[ab]x", "?x")
    assert not globs_meet("a", "b")


def test_fairness_keys_tell_rules_apart_and_one_without_covers_one_with() -> None:
    acme, other = rule("a", fairness_key="acme"), rule("b", fairness_key="other")
    assert review(acme, [other], WORKERS, 100) == []
    partly = rule("b", fairness_key="acme", headers={"h": "x"}, order=50)
    assert "rules 'b' and 'a' can match the same task" in noted(acme, partly)[0]
    assert "comes first and takes all" in refused(acme, rule("all", order=1))[0]
