"""Randomness that is the same at each replay."""

from __future__ import annotations

import uuid
from random import Random

from tq_broker.workflow.runtime import current


def random() -> Random:
    """The run's random generator: seeded by its run id."""
    return current().random()


def new_random() -> Random:
    """Another generator, of its own seed: what others draw does not change what it gives."""
    return current().new_random()


def random_seed() -> int:
    """The seed of `random`."""
    return current().random_seed


def uuid4() -> uuid.UUID:
    """A UUID drawn from `random`."""
    return uuid.UUID(int=random().getrandbits(128), version=4)
