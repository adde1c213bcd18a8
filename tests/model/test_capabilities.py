"""Capabilities: what may be required, and who belongs to a niche."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import OnGone, Requires
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.capabilities import (
    Niche,
    check_capabilities,
    check_requires,
    in_words,
)
from tq_broker.model.names import Kind, Names

NAMES = Names("n" * 40)
names = st.text("ab.+é", min_size=1, max_size=4)
sets = st.sets(names, min_size=1, max_size=3).map(lambda found: tuple(sorted(found)))
niches = st.builds(
    Niche, st.sampled_from(["q", "r"]), sets, st.sampled_from(["", "h"]), st.sampled_from(["", "w"])
)


def test_a_worker_has_each_capability_once_and_in_order() -> None:
    assert check_capabilities("capabilities", ["ssd", "gpu", "ssd"]) == ("gpu", "ssd")
    assert check_capabilities("capabilities", ()) == ()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("gpu", "capabilities must be a set of names"),
        ([""], "capabilities must not be empty"),
        ([1], "capabilities must be a string, not int"),
        (["a\nb"], "invisible character"),
        (["x" * 46], "the bound is 45"),
        ([str(number) for number in range(65)], "65 names; the bound is 64"),
    ],
)
def test_what_no_worker_can_have_is_refused(value: list[str], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        check_capabilities("capabilities", value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ((), "requires has no capabilities"),
        (("a\nb",), "invisible character"),
        (("x" * 88,), "91 bytes long .* the bound is 90"),
    ],
)
def test_what_cannot_name_a_queue_is_refused(value: tuple[str, ...], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        check_requires(Requires(value))


def test_what_is_checked_has_its_names_in_order() -> None:
    checked = check_requires(Requires({"ssd", "gpu"}, OnGone.FAIL))
    assert checked == Requires(("gpu", "ssd"), OnGone.FAIL)


@given(niches, niches)
def test_each_niche_has_a_private_queue_of_its_own(one: Niche, other: Niche) -> None:
    queue = one.check().queue(NAMES)
    assert (queue == other.queue(NAMES)) == (one == other)
    assert (queue.kind, queue.task_queue) == (Kind.NICHE, one.task_queue)
    assert len(str(queue)) <= 255


def test_the_longest_names_fit() -> None:
    niche = Niche("t" * 100, ("c" * 80,), "h" * 64, "w" * 64).check()
    assert len(str(niche.queue(NAMES))) <= 255
    assert len(niche.ask_key) <= 255


@given(niches, st.sets(names))
def test_only_who_has_it_all_and_is_there_belongs(niche: Niche, has: set[str]) -> None:
    assert niche.fits({*niche.capabilities, *has}, "h", "w")
    assert niche.fits(has, "h", "w") == has.issuperset(niche.capabilities)
    assert niche.fits(niche.capabilities, "other", "w") == (not niche.host)
    assert niche.fits(niche.capabilities, "h", "other") == (not niche.worker_id)


@pytest.mark.parametrize(
    ("niche", "key"),
    [
        (Niche("q.1", ("gpu",)), "niche.q%2E1"),
        (Niche("q", ("gpu",), "h.1"), "host.h%2E1.q"),
        (Niche("q", ("gpu",), "", "w"), "process.w.q"),
        (Niche("q", ("gpu",), side="workflow"), "workflow-niche.any.q"),
        (Niche("q", (), "h.1", side="workflow"), "workflow-niche.host%3Ah%2E1.q"),
        (Niche("q", (), "", "w", side="workflow"), "workflow-niche.process%3Aw.q"),
    ],
)
def test_who_may_belong_is_asked(niche: Niche, key: str) -> None:
    assert niche.ask_key == key


@pytest.mark.parametrize(
    "niche",
    [
        Niche("", ("gpu",)),
        Niche("q", ()),
        Niche("q", ("a\n",)),
        Niche("q", ("a",), "h" * 65),
        Niche("q", ("a",), side="other"),
        Niche("q", (), "h" * 65, side="workflow"),
    ],
)
def test_what_no_task_makes_is_refused(niche: Niche) -> None:
    with pytest.raises(InvalidArgument):
        niche.check()


def test_it_is_told_in_words() -> None:
    assert in_words(("ssd", "gpu")) == "gpu, ssd"
    assert str(Niche("q", ("gpu",), "h")) == "workers of task queue 'q' on host 'h' with gpu"
    assert "in process 'w'" in str(Niche("q", ("gpu",), "", "w"))


def test_workflows_have_niches_of_their_own_and_may_require_nothing() -> None:
    niche = Niche("q", (), "h", version="", side="workflow").check()
    queue = niche.queue(NAMES)
    assert (queue.kind, queue.task_queue) == (Kind.WORKFLOW_NICHE, "q")
    assert str(niche) == "workers of task queue 'q' on host 'h'"
    # That of activities has the name that it had before there were others.
    digest = Niche("q", ("gpu",), "h").queue(NAMES).parts[0]
    assert digest == "a1baba068b0cf944c98c0a13d10bfcea"
