"""Lanes: where tasks wait whose turn is far away, and when they come back.

Rules of this file:

* a task goes to the lane of its distance; each lane reaches `FACTOR` times as far as the one before
  it, so few lanes reach far, and a task that comes back too soon has come nearer by much;
* a lane is *due* when the turn of a task in it may have come, and then all of it comes back: what
  is still far goes to a lane again;
* nothing depends on what a lane remembers: one that was inherited is due at once.
"""

from __future__ import annotations

from collections.abc import Callable

from tq_broker.common import PRIORITY_DEFAULT

NEAR = 8
"""The first lane is for up to so many turns."""
FACTOR = 4


class Lanes:
    """The lanes of one side of a task queue, numbered from the nearest."""

    def __init__(self, count: int) -> None:
        self._lanes: list[dict[int, float] | None] = [None] * count
        """When each is due, by priority; ``None``: it is empty."""

    def place(self, priority: int, distance: float, turn: float) -> int:
        """The lane for a task so many turns away.

        Args:
            turn: The turn of its priority now.
        """
        number, reach = 0, NEAR
        while distance >= reach and number < len(self._lanes) - 1:
            number, reach = number + 1, reach * FACTOR
        dues = self._lanes[number]
        if dues is None:
            dues = self._lanes[number] = {}
        # What is given away although it is near is not to come back with the very next turn.
        due = turn + max(distance, NEAR / 8)
        dues[priority] = min(due, dues.get(priority, due))
        return number

    def inherit(self, number: int) -> None:
        """Somebody else has put tasks into it."""
        self._lanes[number] = {}

    def due(self, turn: Callable[[int], float], *, is_short: bool) -> list[int]:
        """The lanes that are to come back now, nearest first.

        Args:
            turn: The turn of a priority now.
            is_short: Nothing else is near: then every lane that is not empty is due.
        """
        return [
            number
            for number, dues in enumerate(self._lanes)
            if dues is not None
            and (is_short or not dues or any(turn(p) >= due for p, due in dues.items()))
        ]

    def take(self, number: int, turn: Callable[[int], float]) -> None:
        """What is in it now comes back. More may be on its way to it, so it is due again as if all
        had been placed now; see `empty`."""
        dues = self._lanes[number] or {PRIORITY_DEFAULT: 0.0}  # inherited
        self._lanes[number] = {priority: turn(priority) + _least(number) for priority in dues}

    def empty(self, number: int) -> None:
        """It was looked at: nothing is in it, and nothing on its way to it."""
        self._lanes[number] = None

    def is_empty(self, number: int) -> bool:
        """Whether nothing waits in one of them."""
        return self._lanes[number] is None

    def are_empty(self) -> bool:
        """Whether nothing waits in any of them."""
        return all(dues is None for dues in self._lanes)


def _least(number: int) -> float:
    """The turns after which the first task that was placed in a lane may be next."""
    return NEAR * FACTOR ** (number - 1) if number else NEAR / 8
