"""An exchange of the in-memory vhost: which bindings a routing key meets.

Rules of this file: pure; an exchange knows names only, never queues or other exchanges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tq_broker.exceptions import InvalidArgument

EXCHANGE_TYPES = ("direct", "topic", "fanout")
_ALTERNATE = "alternate-exchange"


class Destination(tuple[bool, str]):
    """Where a binding leads: ``(is it an exchange, its name)``."""

    __slots__ = ()

    @classmethod
    def queue(cls, name: str) -> Destination:
        return cls((False, name))

    @classmethod
    def exchange(cls, name: str) -> Destination:
        return cls((True, name))

    @property
    def is_exchange(self) -> bool:
        return self[0]

    @property
    def name(self) -> str:
        return self[1]


class MemoryExchange:
    """A direct, topic or fanout exchange with its bindings."""

    def __init__(self, name: str, type_: str, arguments: Mapping[str, Any]) -> None:
        if type_ not in EXCHANGE_TYPES:
            raise InvalidArgument(f"the exchange type must be one of {EXCHANGE_TYPES}: {type_!r}")
        self.name = name
        self.type = type_
        self.arguments = dict(arguments)
        # key -> destinations, in the order of binding; a dict serves as an ordered set.
        self._bindings: dict[str, dict[Destination, None]] = {}

    @property
    def alternate(self) -> str | None:
        """Where goes what no binding meets."""
        value = self.arguments.get(_ALTERNATE)
        return None if value is None else str(value)

    def bind(self, destination: Destination, key: str) -> bool:
        """Add a binding; False if it is there already."""
        destinations = self._bindings.setdefault(key, {})
        is_new = destination not in destinations
        destinations[destination] = None
        return is_new

    def unbind(self, destination: Destination, key: str) -> bool:
        """Remove a binding; False if there is none."""
        destinations = self._bindings.get(key)
        if destinations is None or destination not in destinations:
            return False
        del destinations[destination]
        if not destinations:
            del self._bindings[key]
        return True

    def forget(self, destination: Destination) -> bool:
        """Remove every binding to ``destination``; False if there was none."""
        keys = [key for key, found in self._bindings.items() if destination in found]
        for key in keys:
            self.unbind(destination, key)
        return bool(keys)

    def match(self, key: str) -> list[Destination]:
        """Where a message under ``key`` goes from here; each destination once."""
        if self.type == "direct":
            return list(self._bindings.get(key, ()))
        met: dict[Destination, None] = {}
        for pattern, destinations in self._bindings.items():
            if self.type == "fanout" or topic_matches(pattern, key):
                met.update(destinations)
        return list(met)


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a topic binding meets a key: ``*`` is one word, ``#`` any number, none included."""
    words = key.split(".") if key else []
    # The places in ``words`` that the pattern, as far as it is read, can have reached.
    reached = {0}
    for wanted in pattern.split(".") if pattern else []:
        if wanted == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {
                place + 1
                for place in reached
                if place < len(words) and wanted in ("*", words[place])
            }
        if not reached:
            return False
    return len(words) in reached
