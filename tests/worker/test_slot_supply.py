from __future__ import annotations

import logging
from typing import Any

import pytest

from tq_broker.exceptions import InvalidArgument
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker import slot_supply
from tq_broker.worker.resource_slots import Usage
from tq_broker.worker.slot_supply import MEASURE_S, SlotSupply
from tq_broker.worker.slots import FixedSlots, ReservedSlots
from tq_broker.worker.tuning import (
    CustomSlotSupplier,
    ResourceBasedSlotConfig,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
    WorkerTuner,
)


class Measured:
    """Resources that are in use as the test says."""

    made = 0

    def __init__(self) -> None:
        Measured.made += 1
        self.in_use: Usage | None = Usage(memory=0.1, cpu=0.1)
        self.looks = 0
        self.is_broken = False

    def usage(self, now: float) -> Usage | None:
        self.looks += 1
        if self.is_broken:
            raise OSError("gone")
        return self.in_use


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def by_resources(monkeypatch: pytest.MonkeyPatch, clock: ManualClock) -> tuple[SlotSupply, Any]:
    monkeypatch.setattr(slot_supply, "Resources", Measured)
    Measured.made = 0
    tuner = WorkerTuner.create_resource_based(
        target_memory_usage=0.8,
        target_cpu_usage=0.8,
        activity_config=ResourceBasedSlotConfig(minimum_slots=2, maximum_slots=9),
        local_activity_config=ResourceBasedSlotConfig(maximum_slots=3),
    )
    supply = SlotSupply(tuner, ("q",), "me", clock)
    return supply, supply._resources


def test_fixed_slots_need_nothing(clock: ManualClock) -> None:
    supply = SlotSupply(WorkerTuner.create_fixed(activity_slots=7), ("q",), "me", clock)
    assert isinstance(supply.activity, FixedSlots)
    assert (supply.activity.capacity, supply.workflow.capacity) == (7, 100)
    assert supply._resources is None
    supply.tick()
    supply.close()


def test_kinds_by_resources_share_what_is_measured(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    supply, resources = by_resources(monkeypatch, clock)
    assert Measured.made == 1
    assert [s.most for s in (supply.workflow, supply.activity, supply.local_activity)] == [
        500,
        9,
        3,
    ]
    for slots in (supply.workflow, supply.activity, supply.local_activity):
        slots.tick()
    assert (supply.workflow.capacity, supply.activity.capacity) == (5, 2)
    for number in range(4):
        supply.activity.take(number, None)  # type: ignore[arg-type]
    assert supply.activity.capacity == 2, "nothing was measured"
    for _ in range(3):
        supply.tick()
    assert resources.looks == 1, "not too often"
    for _ in range(9):
        clock.advance(2 * MEASURE_S)
        supply.tick()
        supply.activity.tick()
    assert resources.looks == 10
    assert supply.activity.capacity == 4, "as many again as there are in use"


def test_without_measurements_there_are_no_further_slots(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    supply, resources = by_resources(monkeypatch, clock)
    supply.tick()
    assert supply._room is not None
    assert supply._room.is_there
    resources.is_broken = True
    clock.advance(MEASURE_S)
    with caplog.at_level(logging.WARNING):
        supply.tick()
    assert not supply._room.is_there
    assert "resources cannot be measured" in caplog.text
    resources.is_broken, resources.in_use = False, None
    clock.advance(MEASURE_S)
    supply.tick()
    assert not supply._room.is_there


def test_a_system_that_does_not_tell_is_refused(
    monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    def none() -> None:
        raise InvalidArgument("resource-based slots need /proc")

    monkeypatch.setattr(slot_supply, "Resources", none)
    tuner = WorkerTuner.create_resource_based(target_memory_usage=0.8, target_cpu_usage=0.8)
    with pytest.raises(InvalidArgument, match="need /proc"):
        SlotSupply(tuner, ("q",), "me", clock)


class Supplier(CustomSlotSupplier):
    contexts: list[SlotReserveContext]

    def __init__(self) -> None:
        self.contexts = []
        self.out = 0

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        raise AssertionError("there is one at once")

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        self.contexts.append(ctx)
        self.out += 1
        return SlotPermit()

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        pass

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        self.out -= 1


def test_an_authors_supplier_knows_who_asks_and_gets_all_back(clock: ManualClock) -> None:
    supplier = Supplier()
    tuner = WorkerTuner(local_activity_supplier=supplier)
    supply = SlotSupply(tuner, ("q", "r"), "me", clock)
    assert isinstance(supply.local_activity, ReservedSlots)
    supply.local_activity.tick()
    assert supplier.contexts == [SlotReserveContext("local-activity", ("q", "r"), "me")]
    assert supplier.out == 1
    supply.close()
    assert supplier.out == 0
