"""Deployment versions: records folded into one table, and what it says of queues and versions."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model.deployments import (
    CHANGES_MAX,
    NO_DEPLOYMENTS,
    DeploymentRecord,
    Deployments,
    Line,
    RoutingSet,
    VersionDeleted,
    VersionServes,
    VersionState,
    check_version,
    shown,
    version_of,
)
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.settings import Settings, read_record, record_message

NAMES = Names("n")
SIDE = "workflow"
BUILDS = ("v1", "v2", "v3")
QUEUES = ("q", "r")
VERSIONS = ("", *(f"shop.{build}" for build in BUILDS), "cart.v1")


def serves(build_id: str = "v1", task_queue: str = "q", **fields: Any) -> VersionServes:
    said = {"deployment": "shop", "side": SIDE, "at_ms": 1} | fields
    return VersionServes(build_id=build_id, task_queue=task_queue, **said)


def routed(revision: int, current: str = "", **fields: Any) -> RoutingSet:
    said = {"deployment": "shop", "at_ms": 5, "change_id": f"c{revision}"} | fields
    return RoutingSet(current=current, revision=revision, **said)


def fold(*records: DeploymentRecord) -> Deployments:
    found = NO_DEPLOYMENTS
    for record in records:
        found = found.apply(record)
    return found


two = (serves("v1"), serves("v2"))


# --- the table ------------------------------------------------------------------------------------


def test_what_no_version_is_current_of_is_for_workers_without_one() -> None:
    assert NO_DEPLOYMENTS.line(SIDE, "q") == Line()
    assert fold(*two).line(SIDE, "q") == Line()
    assert fold(*two).target(SIDE, "q", "id") == ""


def test_who_is_current_has_what_it_serves_and_no_more() -> None:
    found = fold(*two, serves("v2", "r"), routed(0, "v1"))
    assert found.line(SIDE, "q").plain == "shop.v1"
    assert found.line(SIDE, "r").plain == ""
    assert found.line("activity", "q").plain == ""
    later = found.apply(routed(1, "v2"))
    assert {later.line(SIDE, name).plain for name in QUEUES} == {"shop.v2"}


def test_a_ramp_may_be_to_and_from_workers_without_a_version() -> None:
    to = fold(*two, routed(0, "v1", ramping="", percent=100.0))
    assert (to.target(SIDE, "q", "id"), to.line(SIDE, "q").plain) == ("", "shop.v1")
    from_ = fold(*two, routed(0, "", ramping="v1", percent=100.0))
    assert (from_.target(SIDE, "q", "id"), from_.line(SIDE, "q").plain) == ("shop.v1", "")


def test_what_a_ramp_has_left_is_for_the_current_version() -> None:
    ramping = NAMES.ramping(SIDE, "q")
    on = fold(*two, routed(0, "v1", ramping="v2", percent=5.0))
    assert (on.takes("shop.v2", ramping), on.takes("shop.v1", ramping)) == (True, False)
    for over in (on.apply(routed(1, "v1")), on.apply(routed(1, "v1", ramping="v2"))):
        assert (over.takes("shop.v2", ramping), over.takes("shop.v1", ramping)) == (False, True)
    assert not fold(*two, routed(0, "v1")).line(SIDE, "q").ramped


def test_of_two_deployments_the_one_that_was_set_last_has_the_task_queue() -> None:
    other = serves("v1", deployment="cart")
    found = fold(*two, other, routed(0, "v1"), routed(0, "v1", deployment="cart"))
    assert found.line(SIDE, "q").plain == "cart.v1"
    assert found.apply(routed(1, "v2")).line(SIDE, "q").plain == "shop.v2"


def test_who_is_asked_by_name_takes_it_and_a_versions_queue_is_its_own() -> None:
    found = fold(*two, routed(0, "v1"))
    assert found.takes("shop.v2", NAMES.queue(Kind.HOST, "h", "q"))
    mine = NAMES.version(SIDE, "shop.v2", "q")
    assert (found.takes("shop.v2", mine), found.takes("shop.v1", mine)) == (True, False)
    assert (found.serves("shop.v1", SIDE, "q"), found.serves("shop.v1", "activity", "q")) == (
        True,
        False,
    )
    assert (found.knows("shop.v1"), found.knows("shop.v9"), found.knows("x.v1")) == (
        True,
        False,
        False,
    )


@pytest.mark.parametrize(
    "queue",
    [
        NAMES.activity("q"),
        NAMES.priority(NAMES.activity("q")),
        NAMES.queue(Kind.ADMITTED, "q"),
        NAMES.queue(Kind.ADMITTED_PRIORITY, "q"),
        NAMES.capable("q", ["gpu"]),
    ],
)
def test_every_queue_of_unpinned_activities_is_the_current_versions(queue: QueueName) -> None:
    found = fold(serves("v1", side="activity"), serves("v2", side="activity"), routed(0, "v1"))
    assert [one for one in ("", "shop.v1", "shop.v2") if found.takes(one, queue)] == ["shop.v1"]


def test_the_queues_that_versions_have_to_consume_are_listed() -> None:
    found = fold(*two, routed(0, "v1", ramping="v2", percent=1.0))
    assert set(found.queues(NAMES)) == {
        ("shop.v1", NAMES.version(SIDE, "shop.v1", "q")),
        ("shop.v1", NAMES.workflow("q")),
        ("shop.v2", NAMES.version(SIDE, "shop.v2", "q")),
        ("shop.v2", NAMES.ramping(SIDE, "q")),
    }


# --- changes --------------------------------------------------------------------------------------


def test_of_two_changes_the_first_counts_and_the_other_is_told() -> None:
    first, second = routed(0, "v1"), routed(0, "v2", change_id="late")
    found = fold(*two, first, second).by_name["shop"]
    assert (found.current, found.revision, found.refused) == ("v1", 1, ("late",))
    assert found.changes == (first,)


def test_a_change_to_what_is_not_there_changes_nothing() -> None:
    found = fold(*two, routed(0, "v9"), routed(0, "", ramping="v9", percent=5))
    assert (found.by_name["shop"].routing, len(found.by_name["shop"].refused)) == (None, 2)


def test_what_is_in_use_cannot_be_deleted() -> None:
    def delete(build_id: str, revision: int) -> VersionDeleted:
        return VersionDeleted(
            deployment="shop", build_id=build_id, at_ms=9, change_id=build_id, revision=revision
        )

    on = fold(*two, serves("v3"), routed(0, "v1", ramping="v2", percent=5))
    found = on.apply(delete("v1", 1)).apply(delete("v2", 1)).by_name["shop"]
    assert (set(found.versions), found.refused) == (set(BUILDS), ("v1", "v2"))
    gone = on.apply(delete("v3", 1))
    assert set(gone.by_name["shop"].versions) == {"v1", "v2"}
    back = gone.apply(serves("v3"))
    assert back.by_name["shop"].state("v3", 0) is VersionState.INACTIVE


def test_changes_are_kept_but_not_without_end() -> None:
    found = fold(*two, *(routed(number, BUILDS[number % 2]) for number in range(CHANGES_MAX + 5)))
    assert len(found.by_name["shop"].changes) == CHANGES_MAX
    assert found.by_name["shop"].revision == CHANGES_MAX + 5


@pytest.mark.parametrize(
    ("record", "open_runs", "state"),
    [
        (None, 0, VersionState.INACTIVE),
        (routed(0, "v1"), 3, VersionState.CURRENT),
        (routed(0, "v2", ramping="v1", percent=0.0), 0, VersionState.RAMPING),
    ],
)
def test_states_of_what_is_in_use_do_not_ask_for_runs(
    record: RoutingSet | None, open_runs: int, state: VersionState
) -> None:
    found = fold(*two, *(() if record is None else (record,)))
    assert found.by_name["shop"].state("v1", open_runs) is state


def test_who_was_in_use_drains() -> None:
    found = fold(*two, routed(0, "v1"), routed(1, "v2")).by_name["shop"]
    assert found.state("v1", 1) is VersionState.DRAINING
    assert found.state("v1", 0) is VersionState.DRAINED


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"ramping": "v2", "percent": 100.5}, "it must be from 0 to 100"),
        ({"ramping": "v2", "percent": -0.1}, "it must be from 0 to 100"),
        ({"ramping": "v2", "percent": float("nan")}, "it must be from 0 to 100"),
        ({"percent": 5.0}, "without a ramping version"),
        ({"ramping": "v1", "percent": 5.0}, "is current and cannot be ramping as well"),
        ({"deployment": "a.b"}, "must be without a dot"),
        ({"ramping": "v" * 100, "percent": 5.0}, "the bound is 80"),
    ],
)
def test_a_change_out_of_bounds_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        routed(0, "v1", **fields)


def test_a_version_is_one_text() -> None:
    assert version_of("shop", "1.4") == check_version("shop.1.4") == "shop.1.4"
    assert version_of("shop", "") == ""
    assert shown("") == "__unversioned__"
    for wrong in ("shop", ".1", "shop.", "shop.__x", ""):
        with pytest.raises(InvalidArgument):
            check_version(wrong)
    with pytest.raises(InvalidArgument, match="side is 'x'"):
        serves(side="x")


def test_a_broken_record_is_no_record() -> None:
    settings = Settings()
    for record in (*two, routed(0, "v1")):
        settings.apply(read_record(record_message(record, "m")))
    assert settings.deployments == fold(*two, routed(0, "v1"))
    message = record_message(routed(1, "v1", ramping="v2", percent=9.0), "m")
    broken = msgspec.structs.replace(message, body=message.body.replace(b"9.0", b"900"))
    with pytest.raises(Malformed, match="it must be from 0 to 100"):
        read_record(broken)


# --- for all histories ----------------------------------------------------------------------------

_builds = st.sampled_from(BUILDS)
_records = st.lists(
    st.one_of(
        st.builds(serves, _builds, st.sampled_from(QUEUES)),
        st.builds(lambda: serves("v1", deployment="cart")),
        st.tuples(
            st.sampled_from(["", *BUILDS]),
            st.sampled_from([None, "", *BUILDS]),
            st.sampled_from([0.0, 0.5, 50.0, 100.0]),
        )
        .filter(lambda said: said[0] != said[1])
        .map(lambda s: routed(-1, s[0], ramping=s[1], percent=0.0 if s[1] is None else s[2])),
        st.builds(
            lambda build_id: VersionDeleted(
                deployment="shop", build_id=build_id, at_ms=1, change_id="d", revision=-1
            ),
            _builds,
        ),
    ),
    max_size=12,
)


def at_their_time(records: list[DeploymentRecord]) -> list[Deployments]:
    """The states after each record, every change with the revision that its author has seen."""
    states = [NO_DEPLOYMENTS]
    for record in records:
        before = states[-1].by_name.get(record.deployment)
        if not isinstance(record, VersionServes):
            revision = 0 if before is None else before.revision
            record = msgspec.structs.replace(record, revision=revision)
        states.append(states[-1].apply(record))
    return states


def shared(task_queue: str) -> tuple[QueueName, QueueName]:
    return NAMES.workflow(task_queue), NAMES.ramping(SIDE, task_queue)


@given(_records, st.text(min_size=1, max_size=5))
def test_every_unpinned_task_has_one_version_that_takes_it(
    records: list[DeploymentRecord], id: str
) -> None:
    for state in at_their_time(records):
        for name in QUEUES:
            queue = state.queue(NAMES, SIDE, name, id)
            takers = [version for version in VERSIONS if state.takes(version, queue)]
            assert takers == [state.target(SIDE, name, id)]


@given(_records)
def test_no_queue_that_may_hold_tasks_is_left_without_a_version(
    records: list[DeploymentRecord],
) -> None:
    filled: set[QueueName] = set()
    for state in at_their_time(records):
        for name in QUEUES:
            for number in range(20):
                filled.add(state.queue(NAMES, SIDE, name, f"id{number}"))
            plain, ramping = shared(name)
            if ramping in filled:
                assert state.line(SIDE, name).ramped, "workers stand at it"
            for queue in (plain, ramping):
                assert sum(state.takes(version, queue) for version in VERSIONS) == 1


@given(
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30),
    st.floats(0, 100),
    st.floats(0, 100),
)
def test_growing_a_ramp_only_adds(ids: list[str], one: float, other: float) -> None:
    less, more = sorted((one, other))
    small = Line("shop.v1", "shop.v2", less)
    large = Line("shop.v1", "shop.v2", more)
    assert {id for id in ids if small.ramps(id)} <= {id for id in ids if large.ramps(id)}
    assert all(Line(ramping="", percent=100.0).ramps(id) for id in ids)
    assert not any(Line(ramping="", percent=0.0).ramps(id) for id in ids)


def test_a_ramp_takes_about_its_part_and_nothing_without_an_id() -> None:
    line = Line(ramping="shop.v2", percent=20.0)
    assert 1_800 <= sum(line.ramps(f"workflow-{number}") for number in range(10_000)) <= 2_200
    assert not line.ramps("")
