"""A diagnosis: what was found out about a broker, what it means, and what to do. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from tq_broker.exceptions import AccessRefused, TqBrokerError
from tq_broker.model.names import Names, encode_part
from tq_broker.queues.address import Address

OLDEST, NEWEST = (3, 10), (4, 3)
"""The versions that this library was tested on."""
SKEW_MAX_S = 3.0
MIB = 1024 * 1024


class Level(str, enum.Enum):
    """How bad it is. Only a fault makes the exit code 1."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    text: str
    advice: str = ""


def unreachable(error: TqBrokerError, address: Address) -> Finding:
    """Why there is no connection to ``address``, and what to do."""
    if not isinstance(error, AccessRefused):
        advice = "check host and port in -b or TQ_BROKER_URL; is RabbitMQ running there?"
    elif "vhost" in str(error):
        advice = (
            f"rabbitmqctl add_vhost {address.vhost}; rabbitmqctl set_permissions"
            f" -p {address.vhost} {address.user} '.*' '.*' '.*'"
        )
    elif address.user == "guest" and address.host not in ("localhost", "127.0.0.1", "::1"):
        advice = "RabbitMQ lets guest in from its own host only: make a user for this program"
    else:
        advice = f"check user and password: rabbitmqctl authenticate_user {address.user}"
    return Finding(Level.FAULT, "connection", f"{address}: {error}", advice)


def refused(what: str, needed_for: str, address: Address, names: Names) -> Finding:
    """A permission that is missing."""
    pattern = rf"'^tq\.{encode_part(names.namespace)}\.'"
    return Finding(
        Level.FAULT,
        f"permission to {what}",
        f"user {address.user!r} may not {what}; {needed_for}",
        f"rabbitmqctl set_permissions -p {address.vhost} {address.user}"
        f" {pattern} {pattern} {pattern}",
    )


def clock_skew(skew_s: float) -> Finding:
    """How far the broker's clock is from ours; it tells whole seconds."""
    ahead = "ahead of" if skew_s > 0 else "behind"
    if abs(skew_s) <= SKEW_MAX_S:
        return Finding(Level.OK, "clock", f"within {SKEW_MAX_S:g}s of the broker's")
    return Finding(
        Level.WARNING,
        "clock",
        f"the broker's clock is {abs(skew_s):.0f}s {ahead} this machine's",
        "run NTP everywhere: schedule-to-start and schedule-to-close timeouts compare the clocks"
        " of the machines of clients and workers",
    )


def settings_log(fault: str) -> Finding:
    """What a read of the namespace's settings log came to; ``fault`` is what could not be read."""
    if not fault:
        return Finding(Level.OK, "settings log", "can be read")
    return Finding(
        Level.WARNING,
        "settings log",
        f"{fault}; the last settings that could be read are in force",
        "a newer tq_broker may have written it: upgrade; or set again what is wrong",
    )


def version_facts(version: tuple[int, ...]) -> list[Finding]:
    """What follows from the server's version."""
    facts = [rule(version) for rule in _RULES]
    return [fact for fact in facts if fact is not None]


def _tested(version: tuple[int, ...]) -> Finding:
    text = "RabbitMQ " + ".".join(map(str, version))
    if version[:2] < OLDEST:
        return Finding(
            Level.WARNING, "version", f"{text} is older than 3.10", "upgrade: it was never tested"
        )
    if version[:2] > NEWEST:
        return Finding(Level.NOTE, "version", f"{text} is newer than what was tested (4.3)")
    return Finding(Level.OK, "version", text)


def _message_size(version: tuple[int, ...]) -> Finding:
    limit = 16 if version >= (4,) else 128
    return Finding(
        Level.NOTE,
        "message size",
        f"{limit} MiB by default; tq_broker refuses bodies over 8 MiB before it sends them",
    )


def _priorities(version: tuple[int, ...]) -> Finding:
    if version >= (4, 3):
        return Finding(Level.OK, "priorities", "honoured strictly by quorum queues")
    return Finding(
        Level.NOTE,
        "priorities",
        "quorum queues do not keep to them before RabbitMQ 4.3: task queues that use them get a"
        " classic queue beside, which is durable and not replicated",
    )


def _acknowledgement(version: tuple[int, ...]) -> Finding:
    where = (
        "consumer_timeout in rabbitmq.conf, or a policy"
        if version >= (3, 12)
        else "consumer_timeout in rabbitmq.conf"
    )
    return Finding(
        Level.NOTE,
        "acknowledgement timeout",
        f"30 minutes by default ({where}); a client cannot read it. Workers renew what they hold"
        " for longer than lease_after (10 minutes): keep it above that",
    )


def _delivery_limit(version: tuple[int, ...]) -> Finding | None:
    if version < (4,):
        return None
    return Finding(Level.NOTE, "delivery limit", "20 for quorum queues; what is over it is parked")


_RULES: tuple[Callable[[tuple[int, ...]], Finding | None], ...] = (
    _tested,
    _message_size,
    _priorities,
    _acknowledgement,
    _delivery_limit,
)
