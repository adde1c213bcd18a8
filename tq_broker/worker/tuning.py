"""Tuners: how many tasks of each kind a worker runs at a time, and who decides that.

A *slot* is leave to run one task. A worker reserves slots before it takes tasks, marks a slot as
used when a task begins in it, and releases it when the task has ended. Suppliers hand slots out:

* `FixedSizeSlotSupplier`: so many;
* `ResourceBasedSlotSupplier`: as many as processor and memory bear;
* `CustomSlotSupplier`: whatever its author wants.

A `WorkerTuner` has one supplier for each kind of task. The names are those of Temporal's Python
SDK; but a worker's slots are shared by all its task queues, so a context names several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from tq_broker.common import check_duration
from tq_broker.exceptions import InvalidArgument

SLOTS_MAX = 10_000
RESOURCE_SLOTS_MAX = 500
"""The default bound of a supplier by resources, as in Temporal's SDK."""

SlotType = Literal["workflow", "activity", "local-activity"]


def check_count(name: str, value: object, most: int, *, least: int = 1) -> int:
    """Return ``value`` if it is a whole number within bounds, else raise `InvalidArgument`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidArgument(f"{name} is {value!r}; it must be from {least} to {most}")
    return value


class SlotPermit:
    """One slot, reserved. A custom supplier may derive from it, to remember what it needs."""


@dataclass(frozen=True, slots=True)
class SlotReserveContext:
    """Who asks for a slot.

    Attributes:
        slot_type: ``workflow``, ``activity`` or ``local-activity``.
        task_queues: Those of the worker, which share its slots.
    """

    slot_type: SlotType
    task_queues: tuple[str, ...]
    worker_identity: str


@dataclass(frozen=True, slots=True)
class WorkflowSlotInfo:
    """A workflow task runs in the slot."""

    workflow_type: str
    is_sticky: bool


@dataclass(frozen=True, slots=True)
class ActivitySlotInfo:
    """An activity runs in the slot."""

    activity_type: str


@dataclass(frozen=True, slots=True)
class LocalActivitySlotInfo:
    """A local activity runs in the slot."""

    activity_type: str


SlotInfo = WorkflowSlotInfo | ActivitySlotInfo | LocalActivitySlotInfo


@dataclass(frozen=True, slots=True)
class SlotMarkUsedContext:
    """A task begins in a slot."""

    slot_info: SlotInfo
    permit: SlotPermit


@dataclass(frozen=True, slots=True)
class SlotReleaseContext:
    """A slot is given back. ``slot_info`` is ``None`` if no task has begun in it."""

    slot_info: SlotInfo | None
    permit: SlotPermit


@dataclass(frozen=True, slots=True)
class FixedSizeSlotSupplier:
    """``num_slots`` slots, 1 to 10 000."""

    num_slots: int

    def __post_init__(self) -> None:
        check_count("num_slots", self.num_slots, SLOTS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceBasedTunerConfig:
    """What all suppliers by resources of a worker aim at.

    Attributes:
        target_memory_usage: No further slots while so much of the memory is in use; above 0, up
            to 1. The memory is the machine's, or that of the control group if it is limited.
        target_cpu_usage: The same of the processor time of all cores.
    """

    target_memory_usage: float
    target_cpu_usage: float

    def __post_init__(self) -> None:
        for name in ("target_memory_usage", "target_cpu_usage"):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            # Also says no to NaN.
            if not is_number or not 0 < value <= 1:
                raise InvalidArgument(f"{name} is {value!r}; it must be above 0, and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceBasedSlotConfig:
    """The bounds of one kind of slots.

    Attributes:
        minimum_slots: Handed out whatever is in use; 5 of workflow tasks and 1 of activities if
            ``None``. At least 1.
        maximum_slots: Never more; 500 if ``None``. At most 10 000.
        ramp_throttle: The least time between two slots that are more than there were before, so
            that what a task takes is seen before the next one begins; 0 for workflow tasks and
            50 ms for activities if ``None``. At most a minute.
    """

    minimum_slots: int | None = None
    maximum_slots: int | None = None
    ramp_throttle: timedelta | None = None

    def __post_init__(self) -> None:
        for name in ("minimum_slots", "maximum_slots"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), SLOTS_MAX)
        if self.ramp_throttle is not None:
            check_duration("ramp_throttle", self.ramp_throttle, minimum=timedelta(0))
            if self.ramp_throttle > timedelta(minutes=1):
                raise InvalidArgument(
                    f"ramp_throttle is {self.ramp_throttle}; it must be at most 1 minute"
                )
        most = RESOURCE_SLOTS_MAX if self.maximum_slots is None else self.maximum_slots
        if self.minimum_slots is not None and self.minimum_slots > most:
            raise InvalidArgument(
                f"minimum_slots is {self.minimum_slots}; it must be at most maximum_slots, {most}"
            )


@dataclass(frozen=True, slots=True)
class ResourceBasedSlotSupplier:
    """As many slots as processor and memory bear; Linux only."""

    slot_config: ResourceBasedSlotConfig
    tuner_config: ResourceBasedTunerConfig


class CustomSlotSupplier(ABC):
    """Slots by rules of the author's.

    Its methods are called on threads of the worker, several at a time, and must return at once;
    but `reserve_slot`, which runs on an event loop of the worker's. What one raises is logged, and
    counts as no slot.
    """

    @abstractmethod
    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        """Wait until there is a slot, and reserve it. Cancelled when the worker shuts down."""

    @abstractmethod
    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        """Reserve a slot, or ``None`` if there is none now."""

    @abstractmethod
    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        """A task begins in a slot that was reserved."""

    @abstractmethod
    def release_slot(self, ctx: SlotReleaseContext) -> None:
        """A slot is given back: its task has ended, or none has come for it."""


SlotSupplier = FixedSizeSlotSupplier | ResourceBasedSlotSupplier | CustomSlotSupplier


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTuner:
    """A supplier for each kind of task.

    Raises:
        InvalidArgument: two suppliers by resources aim at different targets.
    """

    workflow_supplier: SlotSupplier = FixedSizeSlotSupplier(100)
    activity_supplier: SlotSupplier = FixedSizeSlotSupplier(100)
    local_activity_supplier: SlotSupplier = FixedSizeSlotSupplier(100)

    def __post_init__(self) -> None:
        targets = set()
        for name in ("workflow_supplier", "activity_supplier", "local_activity_supplier"):
            supplier = getattr(self, name)
            if not isinstance(supplier, SlotSupplier):
                raise InvalidArgument(f"{name} is {supplier!r}, which is no slot supplier")
            if isinstance(supplier, ResourceBasedSlotSupplier):
                targets.add(supplier.tuner_config)
        if len(targets) > 1:
            raise InvalidArgument(
                "all resource-based suppliers of a worker must have the same tuner_config"
            )

    @staticmethod
    def create_fixed(
        *,
        workflow_slots: int = 100,
        activity_slots: int = 100,
        local_activity_slots: int = 100,
    ) -> WorkerTuner:
        """So many slots of each kind."""
        return WorkerTuner(
            workflow_supplier=FixedSizeSlotSupplier(workflow_slots),
            activity_supplier=FixedSizeSlotSupplier(activity_slots),
            local_activity_supplier=FixedSizeSlotSupplier(local_activity_slots),
        )

    @staticmethod
    def create_resource_based(
        *,
        target_memory_usage: float,
        target_cpu_usage: float,
        workflow_config: ResourceBasedSlotConfig | None = None,
        activity_config: ResourceBasedSlotConfig | None = None,
        local_activity_config: ResourceBasedSlotConfig | None = None,
    ) -> WorkerTuner:
        """As many of each kind as processor and memory bear."""
        targets = ResourceBasedTunerConfig(
            target_memory_usage=target_memory_usage, target_cpu_usage=target_cpu_usage
        )
        suppliers = [
            ResourceBasedSlotSupplier(config or ResourceBasedSlotConfig(), targets)
            for config in (workflow_config, activity_config, local_activity_config)
        ]
        return WorkerTuner(
            workflow_supplier=suppliers[0],
            activity_supplier=suppliers[1],
            local_activity_supplier=suppliers[2],
        )

    @staticmethod
    def create_composite(
        *,
        workflow_supplier: SlotSupplier,
        activity_supplier: SlotSupplier,
        local_activity_supplier: SlotSupplier,
    ) -> WorkerTuner:
        """A supplier of its own for each kind."""
        return WorkerTuner(
            workflow_supplier=workflow_supplier,
            activity_supplier=activity_supplier,
            local_activity_supplier=local_activity_supplier,
        )
