"""Slots that are reserved before tasks are taken, folded over random loads and moody suppliers."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.resource_slots import ResourceSlots, Room
from tq_broker.worker.slots import CustomReserver, FixedSlots, ReservedSlots, ResourceReserver
from tq_broker.worker.tuning import (
    ActivitySlotInfo,
    CustomSlotSupplier,
    SlotInfo,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)

INFO = ActivitySlotInfo("work")
CONTEXT = SlotReserveContext("activity", ("q",), "me")


class Reserver:
    """Hands out as many as it is told to; knows what became of each."""

    least = 1

    def __init__(self, limit: int, most: int = 100) -> None:
        self.limit = limit
        self.most = most
        self.out: set[SlotPermit] = set()
        self.marked: set[SlotPermit] = set()
        self.asked: list[Callable[[SlotPermit], None]] = []
        self.unused = 0

    def try_reserve(self) -> SlotPermit | None:
        if len(self.out) >= self.limit:
            return None
        permit = SlotPermit()
        self.out.add(permit)
        return permit

    def reserve_soon(self, deliver: Callable[[SlotPermit], None]) -> None:
        self.asked = [deliver]

    def mark_used(self, permit: SlotPermit, info: SlotInfo) -> None:
        assert permit in self.out
        assert permit not in self.marked
        self.marked.add(permit)

    def release(self, permit: SlotPermit, info: SlotInfo | None) -> None:
        self.out.remove(permit)  # each once
        assert (info is not None) == (permit in self.marked)
        self.unused += info is None
        self.marked.discard(permit)


def take(slots: ReservedSlots, *owners: str) -> None:
    for owner in owners:
        slots.take(owner, INFO)


class AnyLoad(RuleBasedStateMachine):
    """Tasks that begin and end, time, and a supplier whose limit changes."""

    @initialize(limit=st.integers(0, 10), most=st.integers(1, 12))
    def begin(self, limit: int, most: int) -> None:
        self.clock = ManualClock()
        self.reserver = Reserver(limit, most)
        self.slots = ReservedSlots(self.reserver, self.clock)
        self.running: list[int] = []
        self.count = 0

    @rule()
    def tick(self) -> None:
        self.slots.tick()

    @rule(seconds=st.floats(0.0, 2.0))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(limit=st.integers(0, 10))
    def limit(self, limit: int) -> None:
        self.reserver.limit = limit

    @precondition(lambda self: self.slots.capacity > len(self.running))
    @rule()
    def start(self) -> None:
        self.count += 1
        self.running.append(self.count)
        self.slots.take(self.count, INFO)

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 20))
    def end(self, number: int) -> None:
        self.slots.release(self.running.pop(number % len(self.running)))

    @precondition(lambda self: self.reserver.asked)
    @rule()
    def slot_comes(self) -> None:
        deliver = self.reserver.asked.pop()
        permit = SlotPermit()
        self.reserver.out.add(permit)
        deliver(permit)

    @invariant()
    def all_that_is_out_is_here(self) -> None:
        assert self.slots.capacity == len(self.reserver.out)
        assert len(self.reserver.marked) == len(self.running)
        assert self.slots.capacity <= self.slots.most + 1  # one that was asked for came late

    @rule()
    def rest(self) -> None:
        """When nothing happens for long, it holds no more than it uses, and as many again."""
        for _ in range(3):
            self.clock.advance(1.0)
            self.slots.tick()
        used = len(self.running)
        assert self.slots.capacity <= max(1, 2 * used)
        room = min(self.reserver.limit, self.slots.most)
        assert self.slots.capacity >= min(room, used + 1), "a free slot, as long as there is one"

    def teardown(self) -> None:
        if hasattr(self, "slots"):
            self.slots.close()
            for owner in self.running:
                self.slots.release(owner)
            assert not self.reserver.out, "all are given back at the end"


AnyLoad.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAnyLoad = AnyLoad.TestCase


def test_a_busy_worker_soon_has_all_that_there_is() -> None:
    clock = ManualClock()
    slots = ReservedSlots(Reserver(64), clock)
    for look in range(7):
        slots.tick()
        while slots.capacity > len(slots._used):
            take(slots, f"{look}-{len(slots._used)}")
            if slots.capacity == 64 == len(slots._used):
                return
    raise AssertionError("it never has them all")


def test_one_with_little_to_do_keeps_none_from_others() -> None:
    clock = ManualClock()
    reserver = Reserver(64)
    slots = ReservedSlots(reserver, clock)
    slots.tick()
    owners = [f"{number}" for number in range(20)]
    take(slots, *owners)
    assert slots.capacity == 40
    for owner in owners[1:]:
        slots.release(owner)
    slots.tick()
    assert slots.capacity == 40, "not at once: the next tasks may be near"
    for _ in range(3):
        clock.advance(1.0)
        slots.tick()
    assert slots.capacity == 2


def test_what_is_spoken_for_is_not_given_back() -> None:
    clock = ManualClock()
    slots = ReservedSlots(Reserver(64), clock)
    slots.tick()
    take(slots, *"abcd")
    for owner in "abcd":
        slots.release(owner)
    for _ in range(3):
        clock.advance(1.0)
        slots.tick(spoken_for=3)
    assert slots.capacity == 3


def test_a_supplier_that_wants_less_gets_its_slots_as_tasks_end() -> None:
    reserver = Reserver(8)
    slots = ReservedSlots(reserver, ManualClock())
    slots.tick()
    take(slots, *"abcdefgh")
    reserver.limit = 2
    for owner, left in zip("abcdef", (7, 6, 5, 4, 3, 2), strict=True):
        slots.release(owner)
        assert slots.capacity == left
    slots.release("g")
    assert slots.capacity == 2, "one runs, and one may"


def test_who_begins_without_a_slot_releases_none() -> None:
    slots = ReservedSlots(Reserver(0), ManualClock())
    assert not slots.is_ready()
    take(slots, "a")
    slots.release("a")
    slots.release("never taken")
    assert slots.capacity == 0


def test_a_slot_is_asked_for_when_there_is_none() -> None:
    reserver = Reserver(0)
    slots = ReservedSlots(reserver, ManualClock())
    slots.tick()
    (deliver,) = reserver.asked
    reserver.out.add(permit := SlotPermit())
    deliver(permit)
    assert slots.capacity == 1
    slots.close()
    reserver.out.add(late := SlotPermit())
    deliver(late)
    assert not reserver.out, "what comes after the end goes back"
    assert not slots.is_ready()


def test_fixed_slots_are_there_from_the_start_and_stay() -> None:
    slots = FixedSlots(2)
    assert (slots.most, slots.capacity) == (2, 2)
    slots.take("a", INFO)
    assert slots.is_ready()
    slots.take("b", INFO)
    assert not slots.is_ready()
    assert slots.capacity == 2
    slots.release("a")
    slots.release("a")
    assert slots.is_ready()
    slots.tick()
    slots.close()
    assert slots.capacity == 2


def test_slots_by_resources_are_counted() -> None:
    clock = ManualClock()
    by_resources = ResourceSlots(Room(0.5, 0.5), minimum=2, maximum=5, ramp_s=0.0)
    reserver = ResourceReserver(by_resources, clock)
    slots = ReservedSlots(reserver, clock)
    slots.tick()
    take(slots, "a")
    assert (slots.most, slots.capacity, by_resources.issued) == (5, 2, 2)
    slots.take("b", INFO)
    assert slots.capacity == 2, "nothing was measured"
    slots.release("b")
    slots.release("a")
    slots.close()
    assert by_resources.issued == 0


class Supplier(CustomSlotSupplier):
    def __init__(self) -> None:
        self.told: list[object] = []
        self.broken = False

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        raise AssertionError("others wait for it")

    def _tell(self, what: object) -> None:
        if self.broken:
            raise RuntimeError("broken")
        self.told.append(what)

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        self._tell(ctx)
        return SlotPermit()

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        self._tell(ctx)

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        self._tell(ctx)


class Waits:
    def __init__(self) -> None:
        self.delivers: list[Callable[[SlotPermit | None], None]] = []

    def wait(
        self,
        supplier: CustomSlotSupplier,
        context: SlotReserveContext,
        deliver: Callable[[SlotPermit | None], None],
    ) -> None:
        self.delivers.append(deliver)


def test_the_authors_supplier_is_told_of_everything() -> None:
    supplier = Supplier()
    reserver = CustomReserver(supplier, CONTEXT, Waits())
    permit = reserver.try_reserve()
    assert permit is not None
    reserver.mark_used(permit, INFO)
    reserver.release(permit, INFO)
    assert supplier.told == [
        CONTEXT,
        SlotMarkUsedContext(INFO, permit),
        SlotReleaseContext(INFO, permit),
    ]


def test_what_the_authors_code_raises_counts_as_no_slot(caplog: pytest.LogCaptureFixture) -> None:
    supplier = Supplier()
    supplier.broken = True
    reserver = CustomReserver(supplier, CONTEXT, Waits())
    with caplog.at_level(logging.ERROR):
        assert reserver.try_reserve() is None
        reserver.mark_used(SlotPermit(), INFO)
        reserver.release(SlotPermit(), None)
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "try_reserve_slot",
        "mark_slot_used",
        "release_slot",
    ]


def test_one_slot_at_a_time_is_waited_for() -> None:
    waits = Waits()
    reserver = CustomReserver(Supplier(), CONTEXT, waits)
    come: list[SlotPermit] = []
    reserver.reserve_soon(come.append)
    reserver.reserve_soon(come.append)
    assert len(waits.delivers) == 1
    waits.delivers[0](permit := SlotPermit())
    assert come == [permit]
    reserver.reserve_soon(come.append)
    waits.delivers[1](None)
    assert come == [permit]
    reserver.reserve_soon(come.append)
    assert len(waits.delivers) == 3
