"""From a URL to a broker: ``amqp://``, ``amqps://`` or ``memory://``."""

from __future__ import annotations

from tq_broker.clock import Clock
from tq_broker.exceptions import InvalidArgument
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.broker import Broker
from tq_broker.queues.memory import MemoryBroker

SCHEMES = ("amqp", "amqps", "memory")


def broker_for(url: str, clock: Clock) -> Broker:
    """A broker object for ``url``, not connected yet.

    Raises:
        InvalidArgument: the scheme is not one of `SCHEMES`.
    """
    if not isinstance(url, str):
        raise InvalidArgument(f"url must be a string, not {type(url).__name__}")
    scheme, separator, _ = url.partition("://")
    if scheme == "memory":
        return MemoryBroker.connect(url, clock)
    if scheme in ("amqp", "amqps"):
        return AmqpBroker(url, clock)
    # The URL may hold a password: only its scheme is repeated, if there is one.
    found = f", not {scheme[:20]!r}" if separator else ""
    raise InvalidArgument(
        f"url must begin with one of {', '.join(f'{s}://' for s in SCHEMES)}{found}"
    )
