"""Snapshots of the settings, as values and as bytes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.log_records import records
from tq_broker.converter import ZlibCodec
from tq_broker.exceptions import Malformed, PayloadTooLarge
from tq_broker.model import snapshot
from tq_broker.model.limits import Limits, Side
from tq_broker.model.parts import ALL, EACH_KEY, PartTable
from tq_broker.model.settings import (
    ActivityCanceled,
    BackedOff,
    CapabilitiesDeclared,
    LimitsSet,
    LimitState,
    Record,
    Settings,
    TaskQueueDeclared,
)
from tq_broker.model.snapshot import State, pack, state_of, unpack


def folded(log: list[Record]) -> Settings:
    settings = Settings()
    for record in log:
        settings.apply(record)
    return settings


@given(st.lists(records, max_size=30), st.lists(records, max_size=10))
def test_settings_go_on_from_a_snapshot_as_if_nothing_had_been(
    log: list[Record], more: list[Record]
) -> None:
    before = folded(log)
    state = state_of(before)
    again = unpack(pack(state)).settings()
    for record in more:
        again.apply(record)
    assert state_of(again) == state_of(folded(log + more))


@given(st.lists(records, max_size=30), st.lists(records, max_size=30))
def test_a_snapshot_does_not_change_with_what_comes_later(
    log: list[Record], more: list[Record]
) -> None:
    settings = folded(log)
    state = state_of(settings)
    packed = pack(state)
    for record in more:
        settings.apply(record)
    assert unpack(packed) == state


def test_everything_is_in_it_but_cancellations_and_verdicts() -> None:
    assert set(vars(Settings())) - set(State.__struct_fields__) == {"cancelled", "verdicts"}
    assert not state_of(folded([ActivityCanceled("x", 1)])).settings().cancelled


def test_a_back_off_that_is_over_is_left_out() -> None:
    settings = folded([BackedOff("a", 10, 1), BackedOff("b", 11, 1)])
    assert list(state_of(settings, now_ms=10).back_offs) == [("b", "")]
    assert list(settings.back_offs) == [("a", ""), ("b", "")]


def test_collections_inside_are_copies() -> None:
    settings = folded(
        [TaskQueueDeclared("q", 1, requires=("gpu",)), CapabilitiesDeclared("q", ("gpu",), 1)]
    )
    state = state_of(settings)
    settings.apply(TaskQueueDeclared("q", 1, requires=("ssd",)))
    settings.apply(CapabilitiesDeclared("q", ("ssd",), 1))
    assert state.capable == {("activity", "q"): {("gpu",): 1}}
    assert state.capabilities == {"q": {"gpu"}}


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"garbage",
        pack(State())[:-1],
        ZlibCodec().encode(b"\xc1"),
        ZlibCodec().encode(msgspec.msgpack.encode({"task_queues": 3})),
        ZlibCodec().encode(msgspec.msgpack.encode({"paused": {("a", "b"): {"type": "?"}}})),
        ZlibCodec().encode(b"\x91" * 100_000),
    ],
)
def test_what_is_no_snapshot_is_malformed(packed: bytes) -> None:
    with pytest.raises(Malformed):
        unpack(packed)


def test_one_with_limits_out_of_bounds_is_malformed() -> None:
    bad = Limits(rate=-1.0)
    record = LimitsSet(task_queue="q", side=Side.ACTIVITY, limits=bad, at_ms=1, change_id="c")
    for state in (
        State(limits={(Side.ACTIVITY, "q", ALL): LimitState(1, record)}),
        State(limits={(Side.ACTIVITY, "q", ALL): LimitState(1, None, record)}),
        State(part_tables={"q": PartTable({EACH_KEY: bad})}),
    ):
        with pytest.raises(Malformed, match="rate is -1"):
            unpack(pack(state))


def test_one_of_a_newer_program_is_read_without_what_is_new_in_it() -> None:
    plain = msgspec.msgpack.encode({"task_queues": {"q": 1}, "moods": [1, 2]})
    assert unpack(ZlibCodec().encode(plain)) == State(task_queues={"q": 1})


def test_its_size_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    state = State(task_queues={f"q{number}": number for number in range(1000)})
    packed = pack(state)
    monkeypatch.setattr(snapshot, "PACKED_BYTES_MAX", len(packed) - 1)
    with pytest.raises(PayloadTooLarge, match=f"{len(packed)} compressed; the bounds are"):
        pack(state)
    monkeypatch.undo()
    monkeypatch.setattr(snapshot, "PLAIN_BYTES_MAX", 1000)
    with pytest.raises(PayloadTooLarge, match="the bounds are 1000"):
        pack(state)
    with pytest.raises(Malformed, match="expands to more than 1000"):
        unpack(packed)
