"""Moves: what a dealer is about to put into another queue, told before it does.

RabbitMQ confirms the copy of a task before the original is acknowledged. If the dealer dies between
the two, the task is there twice. So what is moved is told first, and whoever finds it told after a
death looks twice.

Rules of this file:

* pure;
* what was being dealt when the dealer died may have begun meanwhile: what has come back of it is
  *in doubt*, which is a lost attempt to the worker that gets it;
* what was being given away has its copy in a lane, where nobody begins: the one of both that comes
  last is *double*. A copy says which move has made it;
* what nobody has had before is neither, whatever its id.
"""

from __future__ import annotations

import enum
import hashlib

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model import envelope
from tq_broker.model.message import Message

MOVES = "moves"


class Moves(msgspec.Struct, frozen=True):
    """Tasks that are moved together: those that are dealt, and those that go to lanes."""

    id: str
    dealt: tuple[str, ...] = ()
    away: tuple[str, ...] = ()


class Verdict(enum.Enum):
    """What a task that comes is."""

    FINE = enum.auto()
    IN_DOUBT = enum.auto()
    """Somebody may have begun with its copy."""
    DOUBLE = enum.auto()
    """Its other copy has come, too."""


def mark(message: Message) -> str:
    """What tells a task, and its attempt, from others, in few bytes."""
    text = f"{message.message_id}\0{message.headers.get(envelope.ATTEMPT, 1)}"
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def message(moves: Moves) -> Message:
    """The message that tells ``moves``."""
    headers = {"tq-protocol": envelope.PROTOCOL}
    body = msgspec.json.encode(moves)
    return Message(body=body, message_id=moves.id, kind=MOVES, headers=headers)


_decoder = msgspec.json.Decoder(Moves)


def read(told: Message) -> Moves:
    """What ``told`` says. Raises `Malformed`."""
    if told.kind != MOVES:
        raise Malformed(f"{told.kind!r} tells no moves")
    try:
        return _decoder.decode(told.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"moves: {error}") from error


class Suspects:
    """What a dealer that has died may have left twice."""

    def __init__(self) -> None:
        self._dealt: set[str] = set()
        self._away: dict[str, str] = {}
        """The move that has given a task away,"""
        self._seen: dict[str, bool] = {}
        """and whether it was its copy that came first, once one of both has come."""

    def __len__(self) -> int:
        return len(self._dealt) + len(self._away)

    def add(self, moves: Moves) -> None:
        """These were told, and may not have been finished."""
        self._dealt.update(moves.dealt)
        self._away.update(dict.fromkeys(moves.away, moves.id))

    def judge(self, message: Message, *, redelivered: bool) -> Verdict:
        """What a task is that has come from where tasks wait for their shares."""
        if not self:
            return Verdict.FINE
        of = mark(message)
        by = self._away.get(of)
        is_copy = by is not None and message.headers.get(envelope.MOVED) == by
        if not (is_copy or redelivered):
            return Verdict.FINE
        if by is None:
            return Verdict.IN_DOUBT if of in self._dealt else Verdict.FINE
        if self._seen.setdefault(of, is_copy) != is_copy:
            return Verdict.DOUBLE
        return Verdict.FINE
