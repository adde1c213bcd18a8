"""The slots of a worker: built as its tuner says, and what they need to work.

A worker with fixed slots only has nothing of this at work: no thread, and nothing is measured.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from tq_broker.clock import Clock
from tq_broker.worker.reservations import Reservations
from tq_broker.worker.resource_slots import ResourceSlots, Room
from tq_broker.worker.resources import Resources
from tq_broker.worker.slots import (
    CustomReserver,
    FixedSlots,
    ReservedSlots,
    ResourceReserver,
    Slots,
)
from tq_broker.worker.tuning import (
    RESOURCE_SLOTS_MAX,
    FixedSizeSlotSupplier,
    ResourceBasedSlotConfig,
    ResourceBasedSlotSupplier,
    SlotReserveContext,
    SlotSupplier,
    SlotType,
    WorkerTuner,
)

log = logging.getLogger(__name__)

MEASURE_S = 0.2
"""Linux counts the use of processors in steps of 10 ms: shorter looks would see mostly noise."""

_DEFAULTS: dict[SlotType, tuple[int, timedelta]] = {
    "workflow": (5, timedelta(0)),
    "activity": (1, timedelta(milliseconds=50)),
    "local-activity": (1, timedelta(milliseconds=50)),
}
"""The least slots, and the ramp, of a supplier by resources; as in Temporal's SDK."""


class SlotSupply:
    """The slots of each kind.

    Raises:
        InvalidArgument: slots by resources, on a system that does not tell of them.
    """

    def __init__(
        self, tuner: WorkerTuner, task_queues: tuple[str, ...], identity: str, clock: Clock
    ) -> None:
        self._clock = clock
        self._task_queues = task_queues
        self._identity = identity
        self._reservations = Reservations()
        self._resources: Resources | None = None
        self._room: Room | None = None
        self._measure_at = 0.0
        self.workflow = self._made("workflow", tuner.workflow_supplier)
        self.activity = self._made("activity", tuner.activity_supplier)
        self.local_activity = self._made("local-activity", tuner.local_activity_supplier)

    def _made(self, kind: SlotType, supplier: SlotSupplier) -> Slots:
        if isinstance(supplier, FixedSizeSlotSupplier):
            return FixedSlots(supplier.num_slots)
        if isinstance(supplier, ResourceBasedSlotSupplier):
            slots = self._by_resources(kind, supplier)
            return ReservedSlots(ResourceReserver(slots, self._clock), self._clock)
        context = SlotReserveContext(kind, self._task_queues, self._identity)
        return ReservedSlots(CustomReserver(supplier, context, self._reservations), self._clock)

    def _by_resources(self, kind: SlotType, supplier: ResourceBasedSlotSupplier) -> ResourceSlots:
        targets = supplier.tuner_config
        if self._room is None:  # the targets are the same for all kinds
            self._room = Room(targets.target_memory_usage, targets.target_cpu_usage)
            self._resources = Resources()
        return _bounded(kind, supplier.slot_config, self._room)

    def tick(self) -> None:
        """Measure, if there are slots by resources and it is time; done often."""
        now = self._clock.monotonic()
        if self._resources is None or self._room is None or now < self._measure_at:
            return
        self._measure_at = now + MEASURE_S
        try:
            usage = self._resources.usage(now)
        except (OSError, ValueError, LookupError) as error:
            self._room.is_there = False
            log.warning("resources cannot be measured, no further slots for now: %s", error)
            return
        if usage is not None:
            self._room.measured(usage)

    def close_intake(self) -> None:
        """Reserve nothing more."""
        for slots in (self.workflow, self.activity, self.local_activity):
            slots.close()

    def close(self) -> None:
        """End what waits for slots."""
        self.close_intake()
        self._reservations.close()


def _bounded(kind: SlotType, config: ResourceBasedSlotConfig, room: Room) -> ResourceSlots:
    least, ramp = _DEFAULTS[kind]
    most = RESOURCE_SLOTS_MAX if config.maximum_slots is None else config.maximum_slots
    return ResourceSlots(
        room,
        minimum=min(least if config.minimum_slots is None else config.minimum_slots, most),
        maximum=most,
        ramp_s=(ramp if config.ramp_throttle is None else config.ramp_throttle).total_seconds(),
    )
