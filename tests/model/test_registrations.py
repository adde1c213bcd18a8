"""Workers of a task queue, compared by what they have registered."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model.control import WorkerInfo
from tq_broker.model.registrations import compare, registered, serves, serving
from tq_broker.model.sessions import SESSION_TYPE
from tq_broker.model.settings import ACTIVITY_SIDE, SIDES, WORKFLOW_SIDE


def info(name: str, **fields: Any) -> WorkerInfo:
    given = {"task_queues": ["q"], "activities": [], "slots": 1, "running": 0} | fields
    return WorkerInfo(worker_id=name, identity=name, host="h", pid=1, started_ms=0, **given)


types = st.lists(st.sampled_from("abc"), unique=True)
infos = st.lists(
    st.builds(
        lambda activities, workflows, any_, local: info(
            "w", activities=activities, workflows=workflows, any_activity=any_, only_local=local
        ),
        types,
        types,
        st.booleans(),
        st.booleans(),
    ),
    max_size=4,
)


def test_each_side_is_compared_for_itself() -> None:
    both = info("both", activities=["send"], workflows=["Order", "Ship"])
    acts = info("acts", activities=["send", "print"])
    flows = info("flows", workflows=["Order"])
    workers = (both, acts, flows)
    on_activities = serving(workers, "q", ACTIVITY_SIDE)
    assert on_activities == (both, acts)
    assert compare(on_activities, ACTIVITY_SIDE).mismatches == (("print", ("both",)),)
    on_workflows = serving(workers, "q", WORKFLOW_SIDE)
    assert on_workflows == (both, flows)
    assert compare(on_workflows, WORKFLOW_SIDE).everywhere == ("Order",)
    assert compare(on_workflows, WORKFLOW_SIDE).mismatches == (("Ship", ("flows",)),)
    assert serving(workers, "other", ACTIVITY_SIDE) == ()


def test_local_activities_are_not_taken_from_the_task_queue() -> None:
    local = info("local", activities=["send"], workflows=["Order"], only_local=True)
    assert serving((local,), "q", ACTIVITY_SIDE) == ()
    assert not serves(local, "send")
    assert serving((local,), "q", WORKFLOW_SIDE) == (local,)


def test_versions_differ_on_purpose() -> None:
    old = info("old", activities=["send"], deployment_version="shop.1")
    new = info("new", activities=["send", "print"], deployment_version="shop.2")
    found = compare((old, new), ACTIVITY_SIDE)
    assert (found.everywhere, found.mismatches) == (("send",), ())
    lame = info("lame", activities=[], deployment_version="shop.2")
    assert compare((old, new, lame), ACTIVITY_SIDE).mismatches == (
        ("print", ("lame",)), ("send", ("lame",)),
    )  # fmt: skip


def test_who_serves_every_type_lacks_none() -> None:
    every, one = info("every", any_activity=True), info("one", activities=["send"])
    assert serves(every, "whatever")
    assert compare((every, one), ACTIVITY_SIDE).mismatches == ()


@given(infos, st.sampled_from(SIDES))
def test_every_type_is_either_everywhere_or_lacks_somewhere(
    workers: list[WorkerInfo], side: str
) -> None:
    there = serving(workers, "q", side)
    found = compare(there, side)
    named = {name for name, _ in found.mismatches}
    assert not named & set(found.everywhere)
    if side == ACTIVITY_SIDE:
        assert named | set(found.everywhere) == {t for w in there for t in w.activities}
    assert all(who for _, who in found.mismatches)


def test_the_task_queue_of_sessions_is_served_by_who_has_slots_for_them() -> None:
    has, has_not = info("has", session_slots=1), info("not")
    assert serving((has, has_not), "q__sessions", ACTIVITY_SIDE) == (has,)
    assert not serving((has,), "q__sessions", WORKFLOW_SIDE)
    assert not serving((has,), "r__sessions", ACTIVITY_SIDE)


def test_a_type_is_known_where_somebody_registers_it() -> None:
    one = info("one", activities=["send"])
    local = info("local", activities=["print"], only_local=True)
    assert registered((one, local), "q", "send") == (True, ("send",))
    assert registered((one, local), "q", "print") == (False, ("send",))
    assert registered((one, info("every", any_activity=True)), "q", "print")[0]
    assert registered((one,), "other", "send") == (None, ())
    has = info("has", session_slots=1)
    assert registered((has,), "q__sessions", SESSION_TYPE)[0]
    assert registered((has,), "q__sessions", "send")[0] is False
