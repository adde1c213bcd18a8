"""The lead: how many tasks are dealt before there is a slot for them.

Rules of this file:

* pure. Too few, and slots are idle until somebody looks; too many, and whoever comes next waits for
  all of them. So there are as many as are taken between two looks, twice over, and never fewer than
  `Lead.least`;
* what is better than all that was dealt has room of its own: the queue behind puts it first. Only
  what was dealt before it came may begin while more of it waits;
* what is taken from there is what is best there, so a count of all says what is left of each.
"""

from __future__ import annotations

from tq_broker.common import PRIORITY_DEFAULT

LEAD_MAX = 400
"""Fewer than a dealer keeps in hand: who deals all that it has does not choose. With a look each 20
ms these are 20 000 tasks a second."""


class Lead:
    """What is dealt and not yet taken, by priority.

    Args:
        least: It is never smaller; at least 1.
    """

    def __init__(self, least: int) -> None:
        self.size = self._least = max(1, least)
        self._ahead: dict[int, int] = {}
        self._full_at: int | None = None

    def room(self, priority: int) -> int:
        """How many more of this priority may be dealt now."""
        ahead = self._up_to(priority)
        if ahead >= self.size:
            self._full_at = priority
        return max(0, self.size - ahead)

    def _up_to(self, priority: int) -> int:
        return sum(count for one, count in self._ahead.items() if one <= priority)

    @property
    def ahead(self) -> int:
        """How many there are, as far as is known."""
        return sum(self._ahead.values())

    def dealt(self, priority: int) -> None:
        """One was dealt."""
        self._ahead[priority] = self._ahead.get(priority, 0) + 1

    def seen(self, ready: int, under_way: int) -> None:
        """Somebody has looked.

        Args:
            ready: Tasks that nobody had taken.
            under_way: Tasks that may not have arrived there yet.
        """
        taken = self.ahead - ready - under_way
        if taken < 0:
            # Others put tasks there as well.
            self._ahead[PRIORITY_DEFAULT] = self._ahead.get(PRIORITY_DEFAULT, 0) - taken
        for priority in sorted(self._ahead):
            gone = min(max(0, taken), self._ahead[priority])
            self._ahead[priority] -= gone
            taken -= gone
        if self._full_at is not None and not self._up_to(self._full_at):
            self.size = min(2 * self.size, LEAD_MAX)
        elif 2 * ready > self.size:
            self.size = max(self._least, self.size - max(1, self.size // 8))
        self._full_at = None
