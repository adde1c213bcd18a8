"""Slots by resources, folded over random use of a machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.worker.resource_slots import ResourceSlots, Room, Usage

IDLE, FULL = Usage(memory=0.1, cpu=0.1), Usage(memory=0.1, cpu=0.99)


def made(*, minimum: int = 1, maximum: int = 10, ramp_s: float = 0.0) -> tuple[Room, ResourceSlots]:
    room = Room(0.8, 0.8)
    return room, ResourceSlots(room, minimum=minimum, maximum=maximum, ramp_s=ramp_s)


def reserved(slots: ResourceSlots, now: float) -> int:
    count = 0
    while slots.try_reserve(now):
        count += 1
    return count


def test_only_the_minimum_is_handed_out_before_anything_was_measured() -> None:
    room, slots = made(minimum=3)
    assert reserved(slots, 0.0) == 3
    room.measured(IDLE)
    assert reserved(slots, 0.0) == 7
    assert slots.issued == 10


def test_either_resource_can_be_what_is_short() -> None:
    for short in (FULL, Usage(memory=0.95, cpu=0.0)):
        room, slots = made()
        room.measured(short)
        assert reserved(slots, 0.0) == 1
        room.measured(IDLE)
        assert reserved(slots, 0.0) == 9


def test_the_minimum_is_handed_out_again_whatever_is_in_use() -> None:
    room, slots = made(minimum=2)
    room.measured(FULL)
    assert reserved(slots, 0.0) == 2
    slots.release()
    assert slots.try_reserve(0.0)


def test_more_than_ever_waits_for_the_ramp_but_not_what_was_released() -> None:
    room, slots = made(ramp_s=1.0)
    room.measured(IDLE)
    assert reserved(slots, 0.0) == 2
    assert reserved(slots, 0.9) == 0
    assert reserved(slots, 1.0) == 1
    for _ in range(3):
        slots.release()
    assert reserved(slots, 1.5) == 3
    # When there was no room, it has to be found out anew how many fit.
    for _ in range(2):
        slots.release()
    room.measured(FULL)
    assert reserved(slots, 5.0) == 0
    room.measured(IDLE)
    room.measured(IDLE)
    assert reserved(slots, 5.0) == 1


steps = st.lists(
    st.one_of(
        st.tuples(st.just("measure"), st.floats(0, 1), st.floats(0, 1)),
        st.tuples(st.just("reserve"), st.floats(0, 3), st.just(0.0)),
        st.tuples(st.just("release"), st.just(0.0), st.just(0.0)),
    ),
    max_size=100,
)


@given(steps=steps, minimum=st.integers(1, 5), more=st.integers(0, 10), ramp_s=st.floats(0, 2))
def test_bounds_hold_whatever_happens(
    steps: list[tuple[str, float, float]], minimum: int, more: int, ramp_s: float
) -> None:
    room, slots = made(minimum=minimum, maximum=minimum + more, ramp_s=ramp_s)
    now = 0.0
    for what, one, other in steps:
        if what == "measure":
            room.measured(Usage(memory=one, cpu=other))
        elif what == "reserve":
            now += one
            before = slots.issued
            got = slots.try_reserve(now)
            assert got or before >= minimum
            assert not got or before < minimum or room.is_there
            assert slots.issued == before + got
        elif slots.issued:
            slots.release()
        assert 0 <= slots.issued <= minimum + more
