"""Randomness that is the same at each replay."""

from __future__ import annotations

import uuid
from random import Random

from tq_broker.model.uuids import RANDOM_BITS, version_7
from tq_broker.workflow.runtime import current
from tq_broker.workflow.time import time_ns


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


def uuid7() -> uuid.UUID:
    """A UUID of the workflow's time and of bits drawn from `random`."""
    return version_7(time_ns() // 1_000_000, random().getrandbits(RANDOM_BITS))
