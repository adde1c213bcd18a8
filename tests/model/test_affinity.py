"""Affinities: what options say, and how that travels."""

from __future__ import annotations

from typing import Any

import pytest

from tq_broker.common import ActivityOptions, Route, TargetKind
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model.affinity import (
    Affinity,
    OnLost,
    affinity_of,
    affinity_under,
    dump_affinity,
    explain,
    load_affinity,
)


@pytest.mark.parametrize(
    ("said", "affinity", "text"),
    [
        ({}, None, ""),
        ({"affinity": "host"}, Affinity(TargetKind.HOST), '{"kind":"host"}'),
        (
            {"affinity": "process", "affinity_group": "g", "on_lost": "restart_affinity"},
            Affinity(TargetKind.PROCESS, "g", OnLost.RESTART),
            '{"kind":"process","group":"g","on-lost":"restart_affinity"}',
        ),
        (
            {"affinity": "host", "on_lost": "wait"},
            Affinity(TargetKind.HOST, "", OnLost.WAIT),
            '{"kind":"host","on-lost":"wait"}',
        ),
    ],
)
def test_what_options_say_travels_as_text(
    said: dict[str, Any], affinity: Affinity | None, text: str
) -> None:
    assert affinity_of(ActivityOptions(**said)) == affinity
    if affinity is not None:
        assert dump_affinity(affinity) == text
        assert load_affinity(text) == affinity


@pytest.mark.parametrize("said", [{"on_lost": "wait"}, {"affinity_group": "g"}])
def test_how_it_is_to_be_needs_that_it_is(said: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="need an affinity"):
        affinity_of(ActivityOptions(**said))


FAMILY = Affinity(TargetKind.PROCESS, "g", OnLost.WAIT)


@pytest.mark.parametrize(
    ("said", "affinity"),
    [
        ({}, FAMILY),
        ({"on_lost": "fail"}, Affinity(TargetKind.PROCESS, "g", OnLost.FAIL)),
        ({"affinity_group": "h"}, Affinity(TargetKind.PROCESS, "h", OnLost.WAIT)),
        ({"affinity": "process"}, Affinity(TargetKind.PROCESS)),
        ({"affinity": "host", "on_lost": "wait"}, Affinity(TargetKind.HOST, "", OnLost.WAIT)),
        ({"route": Route.host("h")}, None),
        ({"version": "shop.1"}, None),
        ({"version": "auto_upgrade"}, None),
        ({"requires": {"gpu"}, "priority": 1}, FAMILY),
    ],
)
def test_who_says_nowhere_has_that_of_its_run(
    said: dict[str, Any], affinity: Affinity | None
) -> None:
    assert affinity_under(ActivityOptions(**said), FAMILY) == affinity


def test_where_nothing_is_inherited_it_counts_what_is_said() -> None:
    assert affinity_under(ActivityOptions(), None) is None
    assert affinity_under(ActivityOptions(affinity="host"), None) == Affinity(TargetKind.HOST)
    with pytest.raises(InvalidArgument, match="need an affinity"):
        affinity_under(ActivityOptions(on_lost="wait"), None)


@pytest.mark.parametrize("on_lost", list(OnLost))
@pytest.mark.parametrize("of_workflow", [True, False])
def test_it_is_told_to_people(on_lost: OnLost, of_workflow: bool) -> None:
    affinity = Affinity(TargetKind.HOST, "left", on_lost)
    first, last = explain(affinity, of_workflow=of_workflow)
    assert "host of group 'left'" in first
    assert ("does not bind the workflow itself" in first) == of_workflow
    assert "the first one of its run" in first
    first, _ = explain(affinity, of_workflow=of_workflow, target="h1")
    assert first.endswith("follows to host 'h1'")
    ends = {OnLost.FAIL: "fails", OnLost.RESTART: "goes to the task queue", OnLost.WAIT: "waits"}
    assert ends[on_lost] in last


def test_kinds_and_groups_have_keys_of_their_own() -> None:
    made = [Affinity(kind, group) for kind in TargetKind for group in ("", "a", "b")]
    assert len({affinity.key for affinity in made}) == len(made)


@pytest.mark.parametrize("text", ["", "{}", '{"kind":"planet"}', '{"kind":"host","on-lost":"x"}'])
def test_what_is_none_is_malformed(text: str) -> None:
    with pytest.raises(Malformed, match="affinity"):
        load_affinity(text)
