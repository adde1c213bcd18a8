"""A message as the broker sees it, before anybody knows what it means.

These are `msgspec.Struct` and not dataclasses because one is made for every message that is
sent or received: a frozen struct is built in a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

NO_HEADERS: Mapping[str, Any] = {}


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Body, AMQP properties and headers.

    ``priority`` and ``timestamp`` (seconds since the epoch) are ``None`` when not set.
    Header values are ``str``, ``int``, ``bool``, ``float``, ``bytes`` or tables and lists of
    them.
    """

    body: bytes
    message_id: str
    kind: str = ""
    """The AMQP property ``type``."""
    headers: Mapping[str, Any] = NO_HEADERS
    correlation_id: str | None = None
    reply_to: str | None = None
    content_type: str | None = "application/json"
    content_encoding: str | None = "utf-8"
    priority: int | None = None
    timestamp: int | None = None
    persistent: bool = True


class Publication(msgspec.Struct, frozen=True):
    """A message and where it goes. Publishes are always mandatory and confirmed."""

    exchange: str
    routing_key: str
    message: Message
