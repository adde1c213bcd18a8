"""Identifiers: unique everywhere, at the price of a counter."""

from __future__ import annotations

import itertools
import secrets


class IdSource:
    """Gives ids ``<random>-<n>``; make a new one after a fork. Thread-safe."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._count = itertools.count(1)

    def next(self) -> str:
        """The next id: printable ASCII, about 20 characters."""
        return f"{self._prefix}-{next(self._count)}"
