"""Exit codes: how a program learns what became of a command. Pure."""

from __future__ import annotations

from tq_broker.exceptions import (
    AccessRefused,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    TargetGone,
    TqBrokerError,
    Unavailable,
)
from tq_broker.stores.store import (
    OutcomeUnknown,
    SchemaMismatch,
    StoreRefused,
    StoreUnavailable,
)

OK = 0
FAILED = 1
"""It was done, and it did not end well: the activity or workflow failed, the doctor found
something."""
USAGE = 2
"""The command, its options, the application or the configuration are wrong."""
UNAVAILABLE = 3
"""No connection, or no answer in time: try again later."""
REFUSED = 4
"""The login, the vhost or a permission was refused, by the broker or the store."""
NOT_FOUND = 5
"""There is no such workflow, task queue, worker, host or parked message."""
GAVE_UP = 6
"""The worker could not go on, or its processes crashed again and again."""
INTERRUPTED = 130

TABLE = """\
Exit codes:

\b
  0  done
  1  it ended badly: the activity or workflow failed, doctor found a fault, a cold shutdown
  2  wrong usage, application or configuration
  3  no connection to the broker or the store, or no answer in time
  4  the broker or the store refused the login, the vhost or database, or a permission
  5  there is no such workflow, task queue, worker, host or message
  6  the worker could not go on, or its processes crashed again and again
"""

_BY_ERROR: tuple[tuple[type[TqBrokerError], int], ...] = (
    (AccessRefused, REFUSED),
    (NotFound, NOT_FOUND),
    (TargetGone, NOT_FOUND),
    (InvalidArgument, USAGE),
    (PayloadTooLarge, USAGE),
    (SchemaMismatch, USAGE),
    (StoreRefused, REFUSED),
    (Unavailable, UNAVAILABLE),
)

_NOT_OF_THE_BROKER = (StoreUnavailable, OutcomeUnknown)
_ADVICE = {
    UNAVAILABLE: "; see: tq-broker doctor",
    REFUSED: "; see: tq-broker doctor",
}


def code_of(error: TqBrokerError) -> int:
    """The exit code of a command that ended with ``error``."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), FAILED)


def message_of(error: TqBrokerError) -> str:
    """``error`` on one line, with what to do about it if that is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, _NOT_OF_THE_BROKER):
        return text
    return text + _ADVICE.get(code_of(error), "")
