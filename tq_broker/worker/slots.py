"""The slots of one kind: those reserved for tasks to come, and those that tasks run in.

*The slot first, then the task.* A worker takes no more tasks than it has slots reserved, used ones
and free ones together (its `Slots.capacity`, by which prefetch windows are cut). How many free ones
it keeps follows from what it uses: as many again as were in use at the most within the last second,
and altogether no fewer than its supplier's least. So a busy worker asks for more slots before it
has run out of them, and one with little to do keeps none from others that share its supplier. A
slot whose task has ended goes back to its supplier, and is asked for anew: that is how a supplier
lowers what there is.

`FixedSlots` are the exception: all are there from the start, and stay.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Protocol

from tq_broker.clock import Clock
from tq_broker.worker.resource_slots import ResourceSlots
from tq_broker.worker.tuning import (
    SLOTS_MAX,
    CustomSlotSupplier,
    SlotInfo,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)

log = logging.getLogger(__name__)

LOOK_BACK_S = 1.0


class Reserver(Protocol):
    """Hands out slots of one kind. Thread-safe."""

    @property
    def least(self) -> int:
        """So many are kept reserved, however little runs."""

    @property
    def most(self) -> int:
        """It never hands out more at a time."""

    def try_reserve(self) -> SlotPermit | None:
        """One more slot, if there is one now."""

    def reserve_soon(self, deliver: Callable[[SlotPermit], None]) -> None:
        """Call ``deliver`` with a slot when there is one; harmless if it was asked already."""

    def mark_used(self, permit: SlotPermit, info: SlotInfo) -> None:
        """A task begins in it."""

    def release(self, permit: SlotPermit, info: SlotInfo | None) -> None:
        """It is given back."""


class Slots(Protocol):
    """The slots of one kind. Thread-safe.

    Owners are what runs in a slot: any object, one slot each.
    """

    @property
    def most(self) -> int:
        """There are never more."""

    @property
    def capacity(self) -> int:
        """How many are reserved now, used or not."""

    def is_ready(self) -> bool:
        """Whether one is free; one more is reserved if that can be done at once."""

    def take(self, owner: Hashable, info: SlotInfo) -> None:
        """``owner`` begins in a slot.

        With no free one left it begins all the same: it was taken before the supplier wanted less.
        """

    def release(self, owner: Hashable) -> None:
        """``owner`` has ended; harmless if it has no slot."""

    def tick(self, spoken_for: int = 0) -> None:
        """Reserve what is wanted, and give back what is not; done often.

        Args:
            spoken_for: Free ones that somebody counts on.
        """

    def close(self) -> None:
        """Give back what is free, and reserve no more."""


class ReservedSlots:
    """`Slots` that a supplier hands out one by one."""

    def __init__(self, reserver: Reserver, clock: Clock) -> None:
        self._reserver = reserver
        self._clock = clock
        self._lock = threading.RLock()
        self._free: deque[SlotPermit] = deque()
        self._used: dict[Hashable, tuple[SlotPermit, SlotInfo]] = {}
        self._high = self._high_before = 0
        """The most in use, in this second and in the last one."""
        self._since = clock.monotonic()
        self._is_closed = False

    @property
    def most(self) -> int:
        return self._reserver.most

    @property
    def capacity(self) -> int:
        return len(self._free) + len(self._used)

    def is_ready(self) -> bool:
        with self._lock:
            return bool(self._free) or self._reserve()

    def take(self, owner: Hashable, info: SlotInfo) -> None:
        with self._lock:
            if not self.is_ready():
                return
            permit = self._free.popleft()
            self._used[owner] = permit, info
            self._high = max(self._high, len(self._used))
            self._fill()
        self._reserver.mark_used(permit, info)

    def release(self, owner: Hashable) -> None:
        with self._lock:
            used = self._used.pop(owner, None)
            if used is None:
                return
            self._reserver.release(*used)
            self._fill()

    def tick(self, spoken_for: int = 0) -> None:
        with self._lock:
            now = self._clock.monotonic()
            if now >= self._since + LOOK_BACK_S:
                self._since = now
                self._high_before, self._high = self._high, len(self._used)
            self._fill()
            while len(self._free) > spoken_for and self.capacity > self._wanted():
                self._reserver.release(self._free.popleft(), None)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            while self._free:
                self._reserver.release(self._free.popleft(), None)

    def _wanted(self) -> int:
        high = max(self._high, self._high_before)
        return min(self.most, max(self._reserver.least, 2 * high))

    def _fill(self) -> None:
        while self.capacity < self._wanted():
            if not self._reserve():
                if not self._is_closed and not self._free:
                    self._reserver.reserve_soon(self._deliver)
                return

    def _reserve(self) -> bool:
        permit = None if self._is_closed else self._reserver.try_reserve()
        if permit is not None:
            self._free.append(permit)
        return permit is not None

    def _deliver(self, permit: SlotPermit) -> None:
        """A slot has come that was asked for."""
        with self._lock:
            if not self._is_closed:
                self._free.append(permit)
                return
        self._reserver.release(permit, None)


class FixedSlots:
    """`Slots` of which ``count`` are there from the start, and stay."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._owners: set[Hashable] = set()

    @property
    def most(self) -> int:
        return self._count

    @property
    def capacity(self) -> int:
        return self._count

    def is_ready(self) -> bool:
        return len(self._owners) < self._count

    def take(self, owner: Hashable, info: SlotInfo) -> None:
        self._owners.add(owner)

    def release(self, owner: Hashable) -> None:
        self._owners.discard(owner)

    def tick(self, spoken_for: int = 0) -> None:
        """There is nothing to change."""

    def close(self) -> None:
        """There is nobody to give them back to."""


class ResourceReserver:
    """Hands out slots as processor and memory bear."""

    def __init__(self, slots: ResourceSlots, clock: Clock) -> None:
        self._slots = slots
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def least(self) -> int:
        return self._slots.minimum

    @property
    def most(self) -> int:
        return self._slots.maximum

    def try_reserve(self) -> SlotPermit | None:
        with self._lock:
            is_there = self._slots.try_reserve(self._clock.monotonic())
        return SlotPermit() if is_there else None

    def reserve_soon(self, deliver: Callable[[SlotPermit], None]) -> None:
        """It is asked often enough."""

    def mark_used(self, permit: SlotPermit, info: SlotInfo) -> None:
        """One is as good as another."""

    def release(self, permit: SlotPermit, info: SlotInfo | None) -> None:
        with self._lock:
            self._slots.release()


class Waiting(Protocol):
    """Waits for slots of custom suppliers, see `tq_broker.worker.reservations`."""

    def wait(
        self,
        supplier: CustomSlotSupplier,
        context: SlotReserveContext,
        deliver: Callable[[SlotPermit | None], None],
    ) -> None:
        """Call ``deliver`` with a slot, or with ``None`` when none can be waited for any more."""


class CustomReserver:
    """Hands out slots as their author wants; what the author's code raises is logged."""

    def __init__(
        self, supplier: CustomSlotSupplier, context: SlotReserveContext, waiting: Waiting
    ) -> None:
        self._supplier = supplier
        self._context = context
        self._waiting = waiting
        self._lock = threading.Lock()
        self._is_waiting = False

    @property
    def least(self) -> int:
        return 1

    @property
    def most(self) -> int:
        return SLOTS_MAX

    def try_reserve(self) -> SlotPermit | None:
        try:
            return self._supplier.try_reserve_slot(self._context)
        except Exception:  # the author's code
            log.exception("try_reserve_slot of the %s slots", self._context.slot_type)
            return None

    def reserve_soon(self, deliver: Callable[[SlotPermit], None]) -> None:
        with self._lock:
            if self._is_waiting:
                return
            self._is_waiting = True

        def done(permit: SlotPermit | None) -> None:
            self._is_waiting = False
            if permit is not None:
                deliver(permit)

        self._waiting.wait(self._supplier, self._context, done)

    def mark_used(self, permit: SlotPermit, info: SlotInfo) -> None:
        try:
            self._supplier.mark_slot_used(SlotMarkUsedContext(info, permit))
        except Exception:  # the author's code
            log.exception("mark_slot_used of the %s slots", self._context.slot_type)

    def release(self, permit: SlotPermit, info: SlotInfo | None) -> None:
        try:
            self._supplier.release_slot(SlotReleaseContext(info, permit))
        except Exception:  # the author's code
            log.exception("release_slot of the %s slots", self._context.slot_type)
