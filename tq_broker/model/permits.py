"""Permits: the messages that say who may begin a task, and the ledger of how many there are.

Rules of this file:

* the permits of a limit have ranks from 0 on, each once; there are as many as the limit ever was
  at most, and of a smaller one the others rest in the bank;
* a permit is made with a *mint*, which is in the ledger before the permit is used: what carries a
  mint that the ledger does not know was made by somebody who died over it, or for a limit that is
  not in force any more, and is thrown away;
* a permit of a rate is for several begins, its *units*, where one message for each would cost more
  than it limits. It counts as unused until its last unit is used.
"""

from __future__ import annotations

import enum
import math
from typing import TypeVar

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model import envelope
from tq_broker.model.limits import Limits, Side
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, Names, QueueName

T = TypeVar("T")

PERMIT = "permit"
BATON = "baton"
LEDGER = "ledger"
REFUND = "refund"

PERMITS_PER_S = 100
"""No more permits of a rate are in use per second, if its burst allows for it."""
PERMITS_MIN = 10
"""A burst is not fewer permits, unless it is smaller."""
UNITS_MAX = 20_000


class Flavor(enum.Enum):
    """What a permit is for. The value is the word in names."""

    RATE = "rate"
    """Used up by a begin; the bank hands it out again when it is time."""
    CONCURRENCY = "concurrency"
    """Held, unacknowledged, for as long as the task runs."""


class Issue(msgspec.Struct, frozen=True):
    """Which permits a limit has.

    Attributes:
        size: How many may be unused at a time.
        rate: How many per second; ``None`` for a concurrency.
        units: Begins that each is for.
    """

    size: int
    rate: float | None = None
    units: int = 1


def issue_of(flavor: Flavor, limits: Limits) -> Issue | None:
    """The permits of one kind that ``limits`` want; ``None`` if they have none of it."""
    if flavor is Flavor.CONCURRENCY:
        return None if limits.concurrency is None else Issue(limits.concurrency)
    if limits.rate is None:
        return None
    burst = limits.burst_size
    units = max(1, min(math.ceil(limits.rate / PERMITS_PER_S), burst // PERMITS_MIN))
    return Issue(burst // units, limits.rate / units, units)


class Permit(msgspec.Struct, frozen=True, omit_defaults=True):
    """One permit, for so many ``units``."""

    mint: str
    rank: int
    units: int = 1


class Refund(msgspec.Struct, frozen=True):
    """So many units of a permit came back to the bank unused."""

    units: int


class Mint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Permits that were made together: ``count`` of them, from rank ``first`` on."""

    id: str
    first: int
    count: int
    units: int = 1


class Ledger(msgspec.Struct, frozen=True):
    """What the next bank must know.

    Attributes:
        mints: In the order of their ranks.
        due_ms: No permit of a rate may be handed out before (epoch ms).
        is_full: As many were out as may be, so that time stood still: since then one may have been
            used that nobody has written down.
    """

    mints: tuple[Mint, ...] = ()
    due_ms: int = 0
    is_full: bool = False

    @property
    def units(self) -> int:
        """The units of each permit."""
        return self.mints[-1].units if self.mints else 1

    @property
    def total(self) -> int:
        """How many permits there are."""
        return self.mints[-1].first + self.mints[-1].count if self.mints else 0

    def knows(self, permit: Permit) -> bool:
        """Whether ``permit`` is one of those that there are."""
        return any(
            mint.id == permit.mint and mint.first <= permit.rank < mint.first + mint.count
            for mint in self.mints
        )


class Place(msgspec.Struct, frozen=True):
    """The three queues of the permits of one limit."""

    permits: QueueName
    bank: QueueName
    ledger: QueueName


def place_of(names: Names, flavor: Flavor, side: Side, task_queue: str) -> Place:
    """Where the permits of a limit are."""
    parts = (flavor.value, side.value, task_queue)
    return Place(
        permits=names.queue(Kind.PERMIT, *parts),
        bank=names.queue(Kind.BANK, *parts),
        ledger=names.queue(Kind.LEDGER, *parts),
    )


_permits = msgspec.json.Decoder(Permit)
_refunds = msgspec.json.Decoder(Refund)
_ledgers = msgspec.json.Decoder(Ledger)


def permit_message(permit: Permit, message_id: str) -> Message:
    """The message that is ``permit``."""
    return _message(PERMIT, msgspec.json.encode(permit), message_id)


def refund_message(refund: Refund, message_id: str) -> Message:
    """The message that tells the bank of ``refund``."""
    return _message(REFUND, msgspec.json.encode(refund), message_id)


def baton_message(message_id: str) -> Message:
    """A message to the bank that makes whoever gets it the one who keeps it."""
    return _message(BATON, b"{}", message_id)


def ledger_message(ledger: Ledger, message_id: str) -> Message:
    """The message that carries ``ledger``."""
    return _message(LEDGER, msgspec.json.encode(ledger), message_id)


def _message(kind: str, body: bytes, message_id: str) -> Message:
    headers = {"tq-protocol": envelope.PROTOCOL}
    return Message(body=body, message_id=message_id, kind=kind, headers=headers)


def read_permit(message: Message) -> Permit:
    """The permit that ``message`` is. Raises `Malformed`."""
    permit = _read(message, PERMIT, _permits)
    if permit.rank < 0:
        raise Malformed(f"permit of rank {permit.rank}")
    if not 1 <= permit.units <= UNITS_MAX:
        raise Malformed(f"permit of {permit.units} units")
    return permit


def read_refund(message: Message) -> Refund:
    """The refund in ``message``. Raises `Malformed`."""
    refund = _read(message, REFUND, _refunds)
    if not 1 <= refund.units <= UNITS_MAX:
        raise Malformed(f"refund of {refund.units} units")
    return refund


def read_ledger(message: Message) -> Ledger:
    """The ledger in ``message``. Raises `Malformed`."""
    return _read(message, LEDGER, _ledgers)


def _read(message: Message, kind: str, decoder: msgspec.json.Decoder[T]) -> T:
    if message.kind != kind:
        raise Malformed(f"{message.kind!r} is not a {kind}")
    try:
        return decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{kind}: {error}") from error
