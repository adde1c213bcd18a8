"""Passes: leave to begin a task that was held back by its usher, and what becomes of it.

Rules of this file:

* an usher writes a pass into its roster *before* the task goes on with it, and whoever has the task
  tells the roster of its begin and its end; both are confirmed before the task is acknowledged;
* so the roster always says what is out, also to the next usher;
* a pass names the task queue whose usher gave it, because others may tell of its end;
* what ran before there was a limit has a pass that its worker has made, whose id follows from the
  attempt: so whoever gets its task after a crash can tell of the end.
"""

from __future__ import annotations

import enum
import hashlib

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.model import envelope
from tq_broker.model.message import Message
from tq_broker.model.parts import Part

PASS = "pass"
NEWS = "pass-news"
BATON = "baton"


class What(str, enum.Enum):
    """What became of a pass. The value is the word on the wire."""

    BEGUN = "begun"
    """The code of the task begins."""
    ENDED = "ended"
    """It runs no more."""
    UNUSED = "unused"
    """It has not begun, and will not with this pass."""


class Pass(msgspec.Struct, frozen=True):
    """Leave for one attempt, that has used what its ``parts`` allow.

    ``begun``: it ran before there was a limit.
    """

    id: str
    parts: tuple[Part, ...]
    activity_id: str
    attempt: int
    begun: bool = False


class News(msgspec.Struct, frozen=True):
    """What became of the pass ``id``."""

    id: str
    what: What


def covering(activity_id: str, attempt: int, start_token: str) -> str:
    """The pass of an attempt that ran before there was a limit."""
    text = f"{attempt}\n{start_token}\n{activity_id}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def mark(pass_id: str, task_queue: str) -> str:
    """What a task carries of its pass."""
    return f"{pass_id}:{task_queue}"


def read_mark(text: str) -> tuple[str, str]:
    """The pass, and the task queue of its usher, of `mark`; checked when its task was read."""
    pass_id, _, task_queue = text.partition(":")
    return pass_id, task_queue


def pass_message(given: Pass, message_id: str) -> Message:
    """The message that is ``given`` in the roster."""
    return _message(PASS, msgspec.json.encode(given), message_id)


def news_message(news: News, message_id: str) -> Message:
    """The message that tells ``news`` to the roster."""
    return _message(NEWS, msgspec.json.encode(news), message_id)


def baton_message(message_id: str) -> Message:
    """A message to the roster that makes whoever gets it the usher."""
    return _message(BATON, b"{}", message_id)


def _message(kind: str, body: bytes, message_id: str) -> Message:
    headers = {"tq-protocol": envelope.PROTOCOL}
    return Message(body=body, message_id=message_id, kind=kind, headers=headers)


_passes = msgspec.json.Decoder(Pass)
_news = msgspec.json.Decoder(News)


def read(message: Message) -> Pass | News:
    """What ``message`` says. Raises `Malformed`."""
    decoder: msgspec.json.Decoder[Pass] | msgspec.json.Decoder[News]
    if message.kind == PASS:
        decoder = _passes
    elif message.kind == NEWS:
        decoder = _news
    else:
        raise Malformed(f"{message.kind!r} is neither a pass nor news of one")
    try:
        return decoder.decode(message.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{message.kind}: {error}") from error
