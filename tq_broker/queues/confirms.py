"""Confirms: the publishes of one channel that the broker has not answered yet.

Rules of this file:

* pure: what was sent, answered, returned, lost or is too late, in; what ended and how, out;
* a publish ends once. One that is too late is *stale*: it has ended for its sender, but keeps
  its tag until the broker answers, so that a late answer or return never meets another publish;
* with ``mandatory``, a return comes before the confirm of the same publish
  (https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed), so the confirm decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from tq_broker.model.message import Publication
from tq_broker.queues.broker import Receipt, Verdict

CONFIRMED = Receipt(Verdict.CONFIRMED)

NACKED = "RabbitMQ refused it: the queue is full, or failed while taking it"
"""The reason of a receipt for a ``basic.nack``."""


class Outgoing(msgspec.Struct, eq=False):
    """One publish on its way.

    ``sends`` counts how often it was written, ``returned`` is why it came back (empty: it did
    not), ``stale`` tells that its sender has had an answer already.
    """

    publication: Publication
    deadline: float
    done: Callable[..., None]
    index: int
    sends: int = 0
    returned: str = ""
    stale: bool = False


class Confirms:
    """The unanswered publishes of one channel in confirm mode, oldest first."""

    def __init__(self) -> None:
        self._sent: dict[int, Outgoing] = {}
        self._next_tag = 1
        self._first_tag = 1
        self._stale = 0
        self.live_bytes = 0
        """Bytes of body that are on their way."""

    def __len__(self) -> int:
        """How many are unanswered and not stale."""
        return len(self._sent) - self._stale

    @property
    def stale(self) -> int:
        """How many tags are held by publishes that have ended without an answer."""
        return self._stale

    def live(self) -> Iterator[Outgoing]:
        """The unanswered ones, oldest first."""
        return (outgoing for outgoing in self._sent.values() if not outgoing.stale)

    def sent(self, outgoing: Outgoing) -> int:
        """It was written to the channel; returns its delivery tag."""
        tag = self._next_tag
        self._next_tag = tag + 1
        self._sent[tag] = outgoing
        self.live_bytes += len(outgoing.publication.message.body)
        return tag

    def acked(self, tag: int, multiple: bool) -> list[tuple[Outgoing, Receipt]]:
        """The broker has taken care of ``tag`` (or of all up to it)."""
        return [
            (
                outgoing,
                Receipt(Verdict.RETURNED, outgoing.returned) if outgoing.returned else CONFIRMED,
            )
            for outgoing in self._answered(tag, multiple)
        ]

    def nacked(self, tag: int, multiple: bool) -> list[tuple[Outgoing, Receipt]]:
        """The broker could not take care of ``tag`` (or of any up to it)."""
        receipt = Receipt(Verdict.REFUSED, NACKED)
        return [(outgoing, receipt) for outgoing in self._answered(tag, multiple)]

    def _answered(self, tag: int, multiple: bool) -> list[Outgoing]:
        first = self._first_tag
        if multiple:
            # 0 means all so far (AMQP 0-9-1, basic.ack).
            last = tag or self._next_tag - 1
            tags = range(first, last + 1)
            self._first_tag = max(first, last + 1)
        else:
            tags = range(tag, tag + 1)
            if tag == first:
                self._first_tag = tag + 1
        ended = []
        for number in tags:
            outgoing = self._sent.pop(number, None)
            if outgoing is None:
                continue
            if outgoing.stale:
                self._stale -= 1
                continue
            self.live_bytes -= len(outgoing.publication.message.body)
            ended.append(outgoing)
        return ended

    def returned(self, exchange: str, routing_key: str, message_id: str, reason: str) -> None:
        """A message came back. The broker returns in publish order, so it is the oldest of its
        kind that has not come back yet.

        Nothing matches when the sender's properties were changed on the way; that cannot
        happen with RabbitMQ and is ignored.
        """
        for outgoing in self._sent.values():
            publication = outgoing.publication
            if (
                not outgoing.returned
                and publication.message.message_id == message_id
                and publication.routing_key == routing_key
                and publication.exchange == exchange
            ):
                outgoing.returned = reason or "returned"
                return

    def lost(self) -> list[Outgoing]:
        """The channel is gone: what to send again, in order. Nothing is left here."""
        again = list(self.live())
        for outgoing in again:
            outgoing.returned = ""
        self._sent.clear()
        self._stale = self.live_bytes = 0
        self._first_tag = self._next_tag
        return again

    def expired(self, now: float) -> list[Outgoing]:
        """Those whose deadline is over; they become stale."""
        late = [outgoing for outgoing in self.live() if outgoing.deadline <= now]
        for outgoing in late:
            outgoing.stale = True
            self.live_bytes -= len(outgoing.publication.message.body)
        self._stale += len(late)
        return late


class Blame(msgspec.Struct, frozen=True):
    """Whose fault the end of a channel was.

    ``guilty`` end with ``receipt``. ``doubt`` tells that nobody was found out, and the
    survivors are best sent one by one.
    """

    guilty: tuple[Outgoing, ...]
    receipt: Receipt
    doubt: bool


_EXCHANGE = re.compile(r"exchange '([^']*)'", re.DOTALL)
_TOPIC = re.compile(r"topic '([^']*)' in exchange '", re.DOTALL)
_SIZE_MAX = re.compile(r"size (\d+) .*?(?:max\w*|limit)[a-z ]*(\d+)", re.DOTALL)


def blame(code: int, text: str, confirms: Confirms) -> Blame:
    """Find the publishes because of which the broker has closed the channel.

    RabbitMQ names the exchange (404, 403) or the size (406) in ``text``, not the message. With
    a single one on its way there is nothing to find out.
    """
    verdict = Verdict.RETURNED if code == 404 else Verdict.REFUSED
    receipt = Receipt(verdict, f"RabbitMQ closed the channel: {text} ({code})")
    live = list(confirms.live())
    if len(live) <= 1:
        return Blame(tuple(live), receipt, doubt=False)
    guilty = tuple(outgoing for outgoing in live if _fits(code, text, outgoing.publication))
    return Blame(guilty, receipt, doubt=not guilty)


def _fits(code: int, text: str, publication: Publication) -> bool:
    named: re.Match[str] | None
    if code in (403, 404):
        named = _EXCHANGE.search(text)
        topic = _TOPIC.search(text)
        return (
            named is not None
            and publication.exchange == named[1]
            and (topic is None or publication.routing_key == topic[1])
        )
    if code == 406:
        named = _SIZE_MAX.search(text)
        return named is not None and len(publication.message.body) > int(named[2])
    return False


def headers_of_copy(sends: int) -> dict[str, Any]:
    """Headers to add to a publish that was written ``sends`` times before."""
    return {RESENT: sends} if sends else {}


RESENT = "tq-resent"
"""Header of a copy that was sent again after a broken connection: 1, 2, ..."""
