"""Delays: a publication and a pause, to the same publication by way of the delay ladder.

The ladder itself is in `tq_broker.queues.topology.delay_ladder`. Pauses are rounded up to its
unit of 100 ms, never down: nothing is due early.
"""

from __future__ import annotations

import msgspec

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.message import Publication
from tq_broker.model.names import Names
from tq_broker.queues.topology import DELAY_LEVELS, DELAY_UNIT_MS

DELAY_MAX_MS = ((1 << DELAY_LEVELS) - 1) * DELAY_UNIT_MS
"""The longest pause: about 310 days."""


def delayed(publication: Publication, names: Names, delay_ms: int) -> Publication:
    """``publication`` so that it reaches the queue of its routing key after ``delay_ms``.

    It enters the ladder at the highest level on which it has to wait. A pause of 0 or less
    changes nothing.

    Raises:
        InvalidArgument: longer than `DELAY_MAX_MS`.
    """
    if delay_ms <= 0:
        return publication
    if delay_ms > DELAY_MAX_MS:
        raise InvalidArgument(f"a delay of {delay_ms} ms is over the bound of {DELAY_MAX_MS} ms")
    units = -(-delay_ms // DELAY_UNIT_MS)
    bits = ".".join(format(units, f"0{DELAY_LEVELS}b"))
    return msgspec.structs.replace(
        publication,
        exchange=names.delay_exchange(units.bit_length() - 1),
        routing_key=f"{bits}.{publication.routing_key}",
    )


def destination_key(routing_key: str) -> str:
    """The key of the queue that a message is for, with or without a ladder prefix."""
    first, _, rest = routing_key.partition(".")
    if first not in ("0", "1"):
        return routing_key
    return rest.split(".", DELAY_LEVELS - 1)[-1]
