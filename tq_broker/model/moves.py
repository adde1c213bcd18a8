"""Moves: what a dealer is about to put into another queue, told before it does.

RabbitMQ confirms the copy of a task before the original is acknowledged. If the dealer dies between
the two, the task is there twice. So what is moved is told first, and whoever finds it told after a
death looks twice.

Rules of this file:

* pure;
* moves are numbered in the order in which they were told, also across dealers: each reads what is
  told before it begins. Only the last one of a task counts: who told it had the task in hand. (A
  dealer that slept and tells late must not count; so numbers begin with the time of the election);
* what was being dealt when the dealer died may have begun meanwhile: what has come back of it is
  *in doubt*, which is a lost attempt to the worker that gets it;
* what was being given away has its copy in a lane, where nobody begins: the one of both that comes
  last is *double*. A copy says which move has made it, so it is known what the last move has taken
  and made: any other copy is one that dealers before have left, and double, too;
* what nobody has had before is neither, whatever its id.
"""

from __future__ import annotations

import enum
import hashlib
from typing import NamedTuple

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model import envelope
from tq_broker.model.message import Message

MOVES = "moves"


class Moves(msgspec.Struct, frozen=True):
    """Tasks that are moved together: those that are dealt, and those that go to lanes.

    Attributes:
        dealt, away: The move that has made what is moved, "" if it is the original, by the `mark`
            of the task.
    """

    id: str
    number: int
    dealt: dict[str, str] = {}
    away: dict[str, str] = {}


class Verdict(enum.Enum):
    """What a task that comes is."""

    FINE = enum.auto()
    IN_DOUBT = enum.auto()
    """Somebody may have begun with its copy."""
    DOUBLE = enum.auto()
    """Its other copy has come, too."""


_TELLING = {envelope.ATTEMPT: 1, envelope.SCHEDULED: 0, envelope.START_TOKEN: ""}
"""Headers that tell tasks of the same id from each other, and what leaving them out means."""


def mark(message: Message) -> str:
    """What tells a task, and its attempt, from others, in few bytes; not from its copies."""
    parts = (
        message.message_id,
        *(message.headers.get(name, none) for name, none in _TELLING.items()),
    )
    text = "\0".join(map(str, parts))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def made_by(message: Message) -> str:
    """The move that has made this copy of a task; "" for the original."""
    move_id = message.headers.get(envelope.MOVED, "")
    return move_id if isinstance(move_id, str) else ""


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


class _Last(NamedTuple):
    """The last move of a task."""

    number: int
    taken: str
    made: str
    is_dealt: bool


class Suspects:
    """What dealers that have died may have left twice."""

    def __init__(self) -> None:
        self._last: dict[str, _Last] = {}
        self._kept: dict[str, str] = {}
        """Which came first of what the last move has taken and made, once one of both has come."""

    def __len__(self) -> int:
        return len(self._last)

    def add(self, moves: Moves) -> None:
        """These were told, and may not have been finished."""
        for is_dealt, told in ((True, moves.dealt), (False, moves.away)):
            for of, taken in told.items():
                before = self._last.get(of)
                if before is None or before.number < moves.number:
                    self._last[of] = _Last(moves.number, taken, moves.id, is_dealt)
                    self._kept.pop(of, None)

    def are_in(self, moves: Moves) -> bool:
        """Whether some of them are moved."""
        return not self._last.keys().isdisjoint((*moves.dealt, *moves.away))

    def judge(self, message: Message, *, redelivered: bool) -> Verdict:
        """What a task is that has come from where tasks wait for their shares."""
        if not self._last:
            return Verdict.FINE
        of, copy = mark(message), made_by(message)
        last = self._last.get(of)
        if last is None or not (copy or redelivered):
            return Verdict.FINE
        if copy not in (last.taken, last.made):
            return Verdict.DOUBLE
        if last.is_dealt:
            return Verdict.IN_DOUBT
        is_kept = self._kept.setdefault(of, copy) == copy
        return Verdict.FINE if is_kept else Verdict.DOUBLE
