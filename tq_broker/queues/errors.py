"""Errors: what py-amqp, pika and the system raise, in our words. The one table.

Rules of this file: pure; one line for people, which says what to do when we know; a password is
never in it (neither library puts one there).
"""

from __future__ import annotations

import socket
import ssl

import amqp.exceptions

from tq_broker.exceptions import (
    AccessRefused,
    BrokerUnavailable,
    InvalidArgument,
    NotFound,
    TqBrokerError,
    Unavailable,
)


class Locked(Unavailable):
    """Somebody else holds a lock for now."""


class RpcTimeout(Exception):
    """RabbitMQ has not answered a call in time; known to the reader's thread only."""


_BY_CODE: dict[int, tuple[type[TqBrokerError], str]] = {
    320: (BrokerUnavailable, "RabbitMQ closed the connection"),
    403: (
        AccessRefused,
        "RabbitMQ refused access; check the user, the password and its permissions",
    ),
    404: (NotFound, "there is no such queue or exchange"),
    405: (AccessRefused, "the queue is exclusive to another connection"),
    406: (InvalidArgument, "RabbitMQ does not accept this"),
    530: (
        AccessRefused,
        "RabbitMQ refused; check that the vhost exists and that the user may use it",
    ),
    540: (InvalidArgument, "this RabbitMQ cannot do that"),
    541: (BrokerUnavailable, "RabbitMQ has an internal problem"),
}
_BY_CLASS: tuple[tuple[type[BaseException], type[TqBrokerError], str], ...] = (
    (ssl.SSLCertVerificationError, AccessRefused, "the certificate of RabbitMQ is not trusted"),
    (socket.gaierror, BrokerUnavailable, "the host name cannot be resolved"),
    (ConnectionRefusedError, BrokerUnavailable, "nothing listens there"),
    (TimeoutError, BrokerUnavailable, "no answer in time"),
    (OSError, BrokerUnavailable, "the connection failed"),
    (amqp.exceptions.AMQPError, BrokerUnavailable, "the connection broke"),
)
_FATAL = {501, 502, 503, 504, 505, 506, 530, 540}
"""Codes with which RabbitMQ answers one bad request by closing the whole connection."""


def code_of(error: BaseException) -> int:
    """The reply code of an error of AMQP, 0 when it has none."""
    code = getattr(error, "reply_code", None) or getattr(error, "code", None)
    return code if isinstance(code, int) else 0


def translate(error: BaseException) -> TqBrokerError | None:
    """``error`` as one of ours, ``None`` if it is of no kind that we expect."""
    if isinstance(error, TqBrokerError):
        return error
    known = _BY_CODE.get(code_of(error)) if isinstance(error, amqp.exceptions.AMQPError) else None
    if known is None:
        known = next((row[1:] for row in _BY_CLASS if isinstance(error, row[0])), None)
    if known is None:
        return None
    kind, meaning = known
    text = str(getattr(error, "reply_text", None) or error) or type(error).__name__
    if "in exclusive use" in text:  # 403 too
        meaning = "another consumer has the queue for itself"
    ours = kind(f"{meaning} ({' '.join(text.split())})")
    ours.__cause__ = error
    return ours


def is_fatal(error: BaseException) -> bool:
    """The request itself made RabbitMQ close the connection: doing it again would, too."""
    return not isinstance(error, amqp.exceptions.ChannelError) and code_of(error) in _FATAL
