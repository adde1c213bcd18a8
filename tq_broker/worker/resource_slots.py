"""Slots by resources: may there be one more? Pure deciding; not thread-safe.

Rules of this file:

* the minimum is handed out whatever is in use, so that a worker never stands still for ever;
* beyond it a slot is handed out while both controllers see room;
* what was handed out and released may be handed out again at once, as long as there is room; one
  *more* than ever since the last want of room has to wait for the ramp, so that what the last one
  takes is seen before the next one begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from tq_broker.worker.pid import Pid

MEMORY_THRESHOLD = 0.25
CPU_THRESHOLD = 0.05
"""Outputs of the controllers above which there is room; with a gain of 5 that is 5 % of the memory
and 1 % of the processor below the target, once they stand still."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How much is in use, from 0 to 1."""

    memory: float
    cpu: float


class Room:
    """Whether processor and memory bear one more, by the last measurement.

    Before the first one there is none: nobody knows.
    """

    def __init__(self, target_memory: float, target_cpu: float) -> None:
        self._memory = Pid(target_memory)
        self._cpu = Pid(target_cpu)
        self.is_there = False

    def measured(self, usage: Usage) -> None:
        """So much is in use now."""
        memory, cpu = self._memory.output(usage.memory), self._cpu.output(usage.cpu)
        self.is_there = memory > MEMORY_THRESHOLD and cpu > CPU_THRESHOLD


class ResourceSlots:
    """The slots of one kind."""

    def __init__(self, room: Room, *, minimum: int, maximum: int, ramp_s: float) -> None:
        self._room = room
        self.minimum = minimum
        self.maximum = maximum
        self._ramp_s = ramp_s
        self._level = minimum
        self._grown_at = float("-inf")
        self.issued = 0

    def try_reserve(self, now: float) -> bool:
        """Hand out one more, if that may be."""
        if self.issued >= self.maximum:
            return False
        if self.issued >= self.minimum:
            if not self._room.is_there:
                self._level = max(self.minimum, self.issued)
                return False
            if self.issued >= self._level:
                if now < self._grown_at + self._ramp_s:
                    return False
                self._level = self.issued + 1
                self._grown_at = now
        self.issued += 1
        return True

    def release(self) -> None:
        """One is given back."""
        self.issued -= 1
