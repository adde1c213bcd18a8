"""Samples: what the first tasks that wait tell about all of them. Pure.

RabbitMQ does not tell how many tasks of a priority wait in a queue that orders by priorities, nor
of a key. Whoever reads the first ones knows it as far as they go: in one queue there are no more of
a priority than were read if a task of a later one was read, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tq_broker.client.peeking import PeekedTask

KEYS_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What was found.

    Attributes:
        read: How many tasks were read, the first ones.
        waiting: How many wait.
        priorities: How many of them have which priority, the first priority first.
        keys: The same by ``rate_limit_key``, of those that most have.
    """

    read: int
    waiting: int
    priorities: tuple[tuple[int, int], ...]
    keys: tuple[tuple[str, int], ...]

    @property
    def is_whole(self) -> bool:
        """Whether the counts are of all that waits; else there may be more."""
        return self.read >= self.waiting


def sampled(tasks: Sequence[PeekedTask], waiting: int) -> Sample:
    """What ``tasks`` tell, the first ones of so many."""
    keys = Counter(one.key for one in tasks if one.key)
    return Sample(
        read=len(tasks),
        waiting=waiting,
        priorities=tuple(sorted(Counter(one.priority for one in tasks).items())),
        keys=tuple(sorted(keys.items(), key=lambda one: (-one[1], one[0]))[:KEYS_MAX]),
    )
