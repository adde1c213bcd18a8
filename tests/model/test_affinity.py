"""Affinities: what options say, and how that travels."""

from __future__ import annotations

from typing import Any

import pytest

from tq_broker.common import ActivityOptions, TargetKind
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model.affinity import (
    Affinity,
    OnLost,
    affinity_of,
    dump_affinity,
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


def test_kinds_and_groups_have_keys_of_their_own() -> None:
    made = [Affinity(kind, group) for kind in TargetKind for group in ("", "a", "b")]
    assert len({affinity.key for affinity in made}) == len(made)


@pytest.mark.parametrize("text", ["", "{}", '{"kind":"planet"}', '{"kind":"host","on-lost":"x"}'])
def test_what_is_none_is_malformed(text: str) -> None:
    with pytest.raises(Malformed, match="affinity"):
        load_affinity(text)
