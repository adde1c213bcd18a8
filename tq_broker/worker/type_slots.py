"""Slots by activity type: how many of one type may run at a time in a worker. Pure.

What type a task has is known only when it has been taken. One whose type has no slot left waits
for a moment, as one for which there is no slot at all, and goes back to its queue, where others
take it. So that a queue of such tasks is not turned over and over, the worker then takes *one* more
than what it runs, and twice as many after each task that could begin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tq_broker.worker.passage import Passage

WIDTH_MAX = 1 << 16


class TypeSlots:
    """Counts what runs of the types that are limited. Not thread-safe.

    Args:
        limits: How many of a type may run at a time.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = dict(limits)
        self._running = dict.fromkeys(limits, 0)
        self._width = WIDTH_MAX

    def __bool__(self) -> bool:
        """Whether any type is limited."""
        return bool(self._limits)

    def is_limited(self, activity_type: str) -> bool:
        """Whether that type is."""
        return activity_type in self._limits

    def has_room(self, activity_type: str) -> bool:
        """Whether one more of that type may begin."""
        limit = self._limits.get(activity_type)
        return limit is None or self._running[activity_type] < limit

    def began(self, activity_type: str) -> None:
        """One of that type begins."""
        if activity_type in self._limits:
            self._running[activity_type] += 1
        if self._width < WIDTH_MAX:
            self._width *= 2

    def ended(self, activity_type: str) -> None:
        """One of that type has ended."""
        self._running[activity_type] -= 1

    def refused(self) -> None:
        """One could not begin, because of its type."""
        self._width = 1

    def within(self, free_slots: int) -> int:
        """For how many of ``free_slots`` tasks may be taken."""
        return min(free_slots, self._width)


class TypePassage(Passage):
    """Leave to begin one task of a limited type, on top of whatever else it needs.

    Args:
        inner: The other leave.
        ended: Called once, when the task has ended or does not begin after all.
    """

    __slots__ = ("_ended", "_is_over", "inner")

    def __init__(self, inner: Passage, ended: Callable[[], None]) -> None:
        self.inner = inner
        self._ended = ended
        self._is_over = False

    def begun(self) -> None:
        self.inner.begun()

    def ended(self) -> None:
        self.inner.ended()
        self._end()

    def unused(self) -> None:
        self.inner.unused()
        self._end()

    def settled(self, then: Callable[[], None]) -> None:
        self.inner.settled(then)

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._ended()
