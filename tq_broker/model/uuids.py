"""Identifiers that sort by the time when they were made: UUIDs of version 7 (RFC 9562). Pure.

Rows that are written together stand together in a database's index then.
"""

from __future__ import annotations

import uuid

RANDOM_BITS = 74
_VERSION, _VARIANT = 7, 0b10


def version_7(at_ms: int, random: int) -> uuid.UUID:
    """The UUID of a time and of `RANDOM_BITS` random bits.

    Args:
        at_ms: Milliseconds since the epoch; 48 bits of it are used.
        random: From 0 to ``2**RANDOM_BITS - 1``.
    """
    high, low = divmod(random, 1 << 62)
    value = (at_ms & (1 << 48) - 1) << 80 | _VERSION << 76 | high << 64 | _VARIANT << 62 | low
    return uuid.UUID(int=value)
