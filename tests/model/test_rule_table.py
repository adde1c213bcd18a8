"""Which rule decides about a task: the index says what asking one by one would."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model import rule_table
from tq_broker.model.rule_table import NO_RULES, Facts, RuleTable, place_of
from tq_broker.model.rules import TaskKind, TrafficRule

NOW_MS = 1_000


def rule(id: str = "r", **fields: Any) -> TrafficRule:
    return TrafficRule(**{"id": id, "to_task_queue": "there"} | fields)


def facts(**fields: Any) -> Facts:
    known = {"kind": TaskKind.ACTIVITY, "type": "charge", "task_queue": "q", "id": "a"}
    return Facts(**known | fields)


texts = st.dictionaries(st.sampled_from("hk"), st.sampled_from("xy"), max_size=2)
rules = st.builds(
    TrafficRule,
    id=st.uuids().map(str),
    order=st.integers(0, 3),
    kind=st.none() | st.sampled_from(TaskKind),
    type=st.sampled_from(["*", "a", "b", "a*", "?", "[ab]"]),
    task_queue=st.sampled_from(["", "q", "p"]),
    headers=texts,
    memo=texts,
    priority=st.none() | st.sampled_from([1, 3]),
    fairness_key=st.sampled_from(["", "k"]),
    percent=st.sampled_from([100.0, 50.0]),
    to_task_queue=st.just("there"),
    fallback=st.booleans(),
    expires_ms=st.sampled_from([0, NOW_MS, NOW_MS + 1]),
)
tasks = st.builds(
    Facts,
    kind=st.sampled_from(TaskKind),
    type=st.sampled_from(["a", "b", "ab"]),
    task_queue=st.sampled_from(["q", "p"]),
    id=st.uuids().map(str),
    headers=texts,
    priority=st.none() | st.sampled_from([1, 3]),
    memo=texts.map(lambda found: {name: f'"{text}"'.encode() for name, text in found.items()}),
    once=st.booleans(),
    fairness_key=st.sampled_from(["", "k", "l"]),
)


def matches(rule: TrafficRule, task: Facts) -> bool:
    """The same, by the words of the rule's own description."""
    memo = {name: text.decode().strip('"') for name, text in task.memo.items()}
    part = ((place_of(task.id) ^ place_of(rule.id)) * 0x9E3779B97F4A7C15 % 2**64) >> 32
    return (
        rule.kind in (None, task.kind)
        and fnmatchcase(task.type, rule.type)
        and rule.task_queue in ("", task.task_queue)
        and rule.headers.items() <= task.headers.items()
        and rule.memo.items() <= memo.items()
        and rule.priority in (None, task.priority or 3)
        and rule.fairness_key in ("", task.fairness_key)
        and not rule.is_over(NOW_MS)
        and not (task.once and rule.fallback)
        and part < rule.percent / 100 * 2**32
    )


@given(st.lists(rules, max_size=8), st.lists(tasks, max_size=5))
def test_the_first_rule_that_matches_decides_and_the_explanation_agrees(
    written: list[TrafficRule], found: list[Facts]
) -> None:
    table = RuleTable(written)
    in_order = sorted(written, key=lambda rule: (rule.order, rule.id))
    for task in found:
        expected = next((rule for rule in in_order if matches(rule, task)), None)
        assert table.choose(task, NOW_MS) == expected
        verdicts = table.explain(task, NOW_MS)
        assert [verdict.rule for verdict in verdicts if verdict.matches] == (
            [] if expected is None else [expected]
        )
        assert table.concerns(task.kind, task.type, task.task_queue) or expected is None


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.text(max_size=20))
def test_a_greater_percentage_takes_what_a_smaller_one_did_and_more(
    one: float, other: float, id: str
) -> None:
    small, great = sorted((one, other))
    task = facts(id=id or "a")
    if RuleTable([rule(percent=small)]).choose(task, 0):
        assert RuleTable([rule(percent=great)]).choose(task, 0)


@pytest.mark.parametrize("percent", [5.0, 50.0])
def test_a_percentage_is_one_of_all_ids_and_each_rule_takes_its_own(percent: float) -> None:
    tables = [RuleTable([rule(id, percent=percent)]) for id in ("r", "s")]
    ids = [f"order-{number}" for number in range(4_000)]
    first, second = ([id for id in ids if table.choose(facts(id=id), 0)] for table in tables)
    for taken in (first, second):
        assert abs(len(taken) / len(ids) - percent / 100) < 0.02
    both = len(set(first) & set(second)) / len(ids)
    assert abs(both - (percent / 100) ** 2) < 0.02


@pytest.mark.parametrize(
    ("fields", "task", "why"),
    [
        ({"kind": TaskKind.WORKFLOW}, {}, "it is for the kind workflow"),
        ({"task_queue": "p"}, {}, "it is for task queue 'p'"),
        ({"type": "refund*"}, {}, "it is for types like 'refund*'"),
        ({"expires_ms": 1}, {}, "its time is over"),
        ({}, {"once": True}, "must not run twice"),
        ({"headers": {"h": "x"}}, {}, "header 'h' is missing, not 'x'"),
        ({"headers": {"h": "x"}}, {"headers": {"h": "y"}}, "header 'h' is 'y', not 'x'"),
        ({"priority": 1}, {}, "the priority is 3, not 1"),
        ({"memo": {"m": "x"}}, {}, "memo 'm' is missing"),
        ({"memo": {"m": "x"}}, {"memo": {"m": b"\0zlib\0??"}}, "another, or hidden by codecs"),
        ({"percent": 0.0001}, {}, "and it takes those below 0.0001 %"),
        ({"percent": 50.0}, {"id": ""}, "it takes 50 % of such tasks"),
    ],
)
def test_an_explanation_names_the_first_thing_that_differs(
    fields: dict[str, Any], task: dict[str, Any], why: str
) -> None:
    table = RuleTable([rule(**fields)])
    verdict = table.explain(facts(**task), NOW_MS)[0]
    assert not verdict.matches
    assert why in verdict.why
    assert table.choose(facts(**task), NOW_MS) is None


def test_a_memo_is_compared_as_text_or_as_json() -> None:
    table = RuleTable([rule(memo={"n": "5"})])
    for value, found in ((b'"5"', True), (b"5", True), (b"55", False)):
        assert bool(table.choose(facts(memo={"n": value}), 0)) is found


def test_what_is_remembered_of_types_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_table, "REMEMBERED", 3)
    table = RuleTable([rule(type="t1*")])
    for number in range(20):
        found = table.choose(facts(type=f"t{number}"), 0)
        assert bool(found) is f"t{number}".startswith("t1")
        assert len(table._found) <= 3


def test_without_rules_nothing_is_asked() -> None:
    assert not NO_RULES
    assert NO_RULES.choose(facts(), 0) is None
    assert not NO_RULES.concerns(TaskKind.ACTIVITY, "charge", "q")


def test_a_fairness_key_is_asked_for_and_explained() -> None:
    table = RuleTable([rule(fairness_key="acme")])
    assert table.choose(facts(fairness_key="acme"), NOW_MS) is not None
    assert table.choose(facts(fairness_key="other"), NOW_MS) is None
    (one,) = table.explain(facts(fairness_key="other"), NOW_MS)
    assert one.why == "no: the fairness key is 'other', not 'acme'"
    (one,) = table.explain(facts(), NOW_MS)
    assert one.why == "no: the fairness key is missing, not 'acme'"
