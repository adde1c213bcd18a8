"""Garbage: how the processes of our commands have it collected.

Rules of this file: only for processes that are ours. In a program that runs a worker or a history
service itself, its author decides.
"""

from __future__ import annotations

import gc

OBJECTS = 10_000
"""So many more than before are made, rather than Python's 700, before the young are looked at. What
belongs to a task is gone by then, and does not become old; most is let go without a collector."""


def settle() -> None:
    """What is there now is there for good: do not look at it again, and look less often.

    To be called when all is imported, and nothing has begun.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS, *gc.get_threshold()[1:])
