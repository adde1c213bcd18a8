"""Detours: their queues, and who is asked to serve them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.detours import Detour
from tq_broker.model.names import Kind, Names
from tq_broker.model.rules import TaskKind

NAMES = Names("n" * 40)
DETOUR = Detour(TaskKind.ACTIVITY, "laptop", "", "q", 10_000)

detours = st.builds(
    Detour,
    st.sampled_from(TaskKind),
    st.text("ab.", min_size=1, max_size=100),
    st.text("ab.", max_size=20),
    st.text("ab.", min_size=1, max_size=100),
    st.integers(1_000, 3_600_000),
    st.just(()),
    st.sampled_from(["", "shop.1", "shop.2"]),
)


@given(detours, detours)
def test_each_has_a_queue_of_its_own(one: Detour, other: Detour) -> None:
    assert (one.queue(NAMES) == other.queue(NAMES)) == (one == other)
    assert len(str(one.queue(NAMES))) <= 255
    assert one.queue(NAMES).kind is Kind.DETOUR


def test_the_longest_names_fit_a_key() -> None:
    longest = Detour(TaskKind.WORKFLOW, "t" * 100, "h" * 64, "q" * 100, 3_600_000).check()
    assert len(longest.ask_key) <= 255


def test_workers_are_asked_by_task_queue_and_host_whatever_the_rest_is() -> None:
    assert DETOUR.ask_key == "detour.activity.any.laptop"
    assert Detour(TaskKind.WORKFLOW, "a.b", "h", "p", 1_000).ask_key == (
        "detour.workflow.host%3Ah.a%2Eb"
    )


def test_those_without_a_version_keep_the_names_that_they_had() -> None:
    assert str(DETOUR.queue(Names("n"))) == "tq.n.detour.61ea30271834674a8aff5cc3515770b5"


def test_a_version_asks_its_own_workers_and_heeds_its_own_pauses() -> None:
    versioned = Detour(TaskKind.WORKFLOW, "q", "", "q", 10_000, version="shop.1.4").check()
    assert versioned.ask_key == "detour.workflow.version%3Ashop%2E1%2E4.q"
    assert versioned.target_queue(NAMES) == NAMES.version("workflow", "shop.1.4", "q")
    assert versioned.home_queue(NAMES) == NAMES.workflow("q")


def test_home_is_the_same_side_of_the_task_queue_that_the_tasks_are_from() -> None:
    assert DETOUR.home_queue(NAMES) == NAMES.activity("q")
    other = Detour(TaskKind.WORKFLOW, "laptop", "", "q", 10_000)
    assert other.home_queue(NAMES) == NAMES.workflow("q")


@pytest.mark.parametrize(
    "fields",
    [
        {"task_queue": ""},
        {"home": "\n"},
        {"host": "h" * 65},
        {"version": "shop"},
        {"take_within_ms": 10},
        {"take_within_ms": 2**60},
    ],
)
def test_what_no_rule_can_have_made_is_refused(fields: dict[str, Any]) -> None:
    known = {
        "kind": TaskKind.ACTIVITY, "task_queue": "a", "host": "", "home": "q",
        "take_within_ms": 10_000,
    }  # fmt: skip
    with pytest.raises(InvalidArgument):
        Detour(**known | fields).check()
