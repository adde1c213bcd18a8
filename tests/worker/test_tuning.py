from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tq_broker.exceptions import InvalidArgument
from tq_broker.worker.tuning import (
    FixedSizeSlotSupplier,
    ResourceBasedSlotConfig,
    ResourceBasedSlotSupplier,
    ResourceBasedTunerConfig,
    WorkerTuner,
)

TARGETS = ResourceBasedTunerConfig(target_memory_usage=0.8, target_cpu_usage=1.0)


def test_a_fixed_tuner_has_so_many_of_each_kind() -> None:
    tuner = WorkerTuner.create_fixed(workflow_slots=1, activity_slots=2, local_activity_slots=3)
    assert tuner.workflow_supplier == FixedSizeSlotSupplier(1)
    assert tuner.activity_supplier == FixedSizeSlotSupplier(2)
    assert tuner.local_activity_supplier == FixedSizeSlotSupplier(3)
    assert WorkerTuner.create_fixed() == WorkerTuner()


def test_a_tuner_by_resources_has_one_target_and_bounds_for_each_kind() -> None:
    bounds = ResourceBasedSlotConfig(maximum_slots=7)
    tuner = WorkerTuner.create_resource_based(
        target_memory_usage=0.8, target_cpu_usage=1.0, activity_config=bounds
    )
    assert tuner.activity_supplier == ResourceBasedSlotSupplier(bounds, TARGETS)
    assert tuner.workflow_supplier == ResourceBasedSlotSupplier(ResourceBasedSlotConfig(), TARGETS)
    assert tuner.local_activity_supplier == tuner.workflow_supplier


def test_kinds_can_be_supplied_differently() -> None:
    by_resources = ResourceBasedSlotSupplier(ResourceBasedSlotConfig(), TARGETS)
    tuner = WorkerTuner.create_composite(
        workflow_supplier=FixedSizeSlotSupplier(5),
        activity_supplier=by_resources,
        local_activity_supplier=FixedSizeSlotSupplier(6),
    )
    assert tuner.activity_supplier is by_resources


def test_suppliers_by_resources_must_agree_on_their_target() -> None:
    other = ResourceBasedTunerConfig(target_memory_usage=0.5, target_cpu_usage=1.0)
    with pytest.raises(InvalidArgument, match="must have the same tuner_config"):
        WorkerTuner(
            workflow_supplier=ResourceBasedSlotSupplier(ResourceBasedSlotConfig(), TARGETS),
            activity_supplier=ResourceBasedSlotSupplier(ResourceBasedSlotConfig(), other),
        )


def test_what_is_no_supplier_is_refused() -> None:
    supplier: Any = 100
    with pytest.raises(InvalidArgument, match="activity_supplier is 100, which is no slot supp"):
        WorkerTuner(activity_supplier=supplier)


@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan"), float("inf"), True, "0.5", None])
@pytest.mark.parametrize("name", ["target_memory_usage", "target_cpu_usage"])
def test_a_target_is_a_share(name: str, value: Any) -> None:
    fields: dict[str, Any] = {"target_memory_usage": 0.5, "target_cpu_usage": 0.5, name: value}
    with pytest.raises(InvalidArgument, match=f"{name} is .*; it must be above 0, and at most 1"):
        ResourceBasedTunerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"minimum_slots": 0}, "minimum_slots is 0; it must be from 1 to 10000"),
        ({"maximum_slots": 10_001}, "maximum_slots is 10001"),
        ({"maximum_slots": 1.5}, "maximum_slots is 1.5"),
        ({"minimum_slots": 9, "maximum_slots": 8}, "minimum_slots is 9; .* maximum_slots, 8"),
        ({"minimum_slots": 501}, "minimum_slots is 501; .* maximum_slots, 500"),
        ({"ramp_throttle": timedelta(-1)}, "ramp_throttle is -1 day"),
        ({"ramp_throttle": timedelta(hours=1)}, "ramp_throttle is 1:00:00; .* at most 1 minute"),
        ({"ramp_throttle": 0.05}, "ramp_throttle must be a timedelta"),
    ],
)
def test_wrong_bounds_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ResourceBasedSlotConfig(**fields)


@pytest.mark.parametrize("count", [0, -1, 10_001, True, 2.0, float("nan"), None])
def test_a_wrong_number_of_slots_is_refused(count: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"num_slots is .*; it must be from 1 to 10000"):
        FixedSizeSlotSupplier(count)
