"""Connections: a database is read and written through these, and its errors become the port's.

Rules of this file: an error of the driver goes no further than `Connections._open`, and takes its
connection with it; only one that comes from a commit leaves anything in doubt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import sqlalchemy.exc
from sqlalchemy import Connection, Engine
from sqlalchemy.sql import ColumnElement

from tq_broker.exceptions import Bug, InvalidArgument, TqBrokerError
from tq_broker.stores.store import Batch, OutcomeUnknown, StoreRefused, StoreUnavailable
from tq_broker.stores.troubles import Trouble

_ERRORS: dict[Trouble, type[TqBrokerError]] = {
    Trouble.AWAY: StoreUnavailable,
    Trouble.REFUSED: StoreRefused,
    Trouble.DATA: InvalidArgument,
    Trouble.OURS: Bug,
}


class Database(Protocol):
    """What differs between databases.

    Attributes:
        url: Where it is, without the password.
        engine: Connections for transactions.
        reader: The same connections, without transactions: a statement sees what is committed.
    """

    url: str
    engine: Engine
    reader: Engine

    def exists(self) -> bool:
        """Whether there is something to connect to, as far as that is known without trying."""

    def begin(self, connection: Connection) -> None:
        """Begin a transaction that writes."""

    def begin_acquire(self, connection: Connection) -> None:
        """The same, and who is stopped in a transaction does not stand in the way for long."""

    def begin_migration(self, connection: Connection) -> None:
        """The same, and nobody else migrates meanwhile."""

    def one_of(self, column: ColumnElement[Any], values: Collection[str]) -> ColumnElement[bool]:
        """``column`` is one of ``values``, in a statement that is the same for any number."""

    def is_undone(self, error: BaseException) -> bool:
        """Whether a commit that ended with ``error`` has certainly written nothing."""

    def trouble(self, error: BaseException) -> Trouble:
        """What an error of the driver asks for."""

    def write(self, connection: Connection, ns: int, batch: Batch) -> None:
        """Begin a transaction and write ``batch`` in it: all but the commit.

        Raises:
            Fenced, Conflict: see `tq_broker.stores.store.Store.commit`.
        """


class Connections:
    """Those to one database. Any thread may use them, each a connection of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._closed = False
        driver = database.engine.dialect.loaded_dbapi
        self._errors: tuple[type[Exception], ...] = (
            sqlalchemy.exc.DBAPIError,
            sqlalchemy.exc.TimeoutError,
            driver.Error,
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees with each statement what is committed by then."""
        with self._open(self._database.reader) as connection:
            yield connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction, which its block begins; committed at the end of the block, undone if the
        block raises.

        Raises:
            StoreUnavailable, StoreRefused, InvalidArgument, Bug: nothing was written.
            OutcomeUnknown: the commit may have happened.
        """
        with self._open(self._database.engine) as connection:
            transaction = connection.begin()
            yield connection
            try:
                transaction.commit()
            except self._errors as error:
                connection.invalidate()
                if self._database.is_undone(_cause(error)):
                    raise
                raise OutcomeUnknown(
                    f"store {self._database.url}: whether a commit happened is unknown:"
                    f" {_reason(error)}"
                ) from error

    def close(self) -> None:
        self._closed = True
        self._database.engine.dispose()

    @contextlib.contextmanager
    def _open(self, engine: Engine) -> Iterator[Connection]:
        if self._closed:
            raise StoreUnavailable(f"store {self._database.url} is closed")
        try:
            with engine.connect() as connection:
                try:
                    yield connection
                except self._errors:
                    # What broke this one may have broken the others: the next user gets a new one.
                    connection.invalidate()
                    self._database.engine.dispose()
                    raise
        except self._errors as error:
            kind = _ERRORS[self._database.trouble(_cause(error))]
            raise kind(f"store {self._database.url}: {_reason(error)}") from error
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"store {self._database.url}: not a text: {error}") from error


def _cause(error: Exception) -> BaseException:
    """What the driver raised: SQLAlchemy would add the statement."""
    return getattr(error, "orig", None) or error


def _reason(error: Exception) -> str:
    cause = _cause(error)
    return " ".join(str(cause).split()) or type(cause).__name__
