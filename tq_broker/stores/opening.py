"""Opening: from the URL of a store to the store.

``sqlite:///path`` and ``postgresql+psycopg://user:password@host/database`` need the extras
``tq-broker[history]`` and ``tq-broker[postgresql]``, which are imported here and only when asked
for; ``memory://`` is a new store that is forgotten with the process. A password is in no error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tq_broker.exceptions import InvalidArgument
from tq_broker.stores.memory import MemoryDatabase, MemoryStore
from tq_broker.stores.store import Store

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from tq_broker.stores.connections import Database

MEMORY = "memory"
SQLITE = "sqlite"
POSTGRESQL = "postgresql+psycopg"

_EXTRAS = {SQLITE: "tq-broker[history]", POSTGRESQL: "tq-broker[postgresql]"}


def open_store(url: str, namespace: str, *, migrate: bool = False) -> Store:
    """The store of ``namespace`` at ``url``.

    Args:
        migrate: Bring the schema up to date first, making it in an empty database.

    Raises:
        InvalidArgument: not the URL of a store, or the driver is not installed.
        SchemaMismatch: the schema is newer than this release, or older and ``migrate`` is not set.
        StoreUnavailable: the database cannot be reached.
    """
    if _scheme(url) == MEMORY:
        return MemoryStore(MemoryDatabase(), namespace)
    database = _database(url)
    from tq_broker.stores import sql

    if migrate:
        sql.migrate(database)
    return sql.SqlStore(database, namespace)


def migrate_store(url: str) -> tuple[int, int]:
    """Bring the schema at ``url`` up to date; the versions before and after.

    Raises:
        InvalidArgument, SchemaMismatch, StoreUnavailable: as `open_store`.
    """
    if _scheme(url) == MEMORY:
        raise InvalidArgument("a store at memory:// has no schema to migrate")
    database = _database(url)
    from tq_broker.stores import migrations, sql

    return sql.migrate(database), migrations.VERSION


def _scheme(url: str) -> str:
    scheme, mark, _ = url.partition("://")
    if not mark or scheme not in (MEMORY, *_EXTRAS):
        raise InvalidArgument(
            f"store url must start with {MEMORY}://, {SQLITE}:/// or {POSTGRESQL}://"
            + (f", not {scheme}://" if mark else "")
        )
    return scheme


def _database(url: str) -> Database:
    scheme = _scheme(url)
    try:
        return _sqlite(url) if scheme == SQLITE else _postgresql(url)
    except ImportError as error:
        raise InvalidArgument(
            f"store {scheme}:// needs pip install '{_EXTRAS[scheme]}': {error}"
        ) from error


def _sqlite(url: str) -> Database:
    from tq_broker.stores.sqlite import Sqlite

    return Sqlite(_parsed(url))


def _postgresql(url: str) -> Database:
    from tq_broker.stores.postgresql import Postgresql

    return Postgresql(_parsed(url))


def _parsed(url: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # Its message may quote a part of the password.
        raise InvalidArgument(
            "store url has no valid host and port; characters such as / # ? @ : in a user name or"
            " password must be written as %2F %23 %3F %40 %3A"
        ) from None
