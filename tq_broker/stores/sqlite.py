"""SQLite: what is particular about a store in a file of this host.

Write-ahead log, with every commit on the disk before it returns. A transaction that writes takes
the file's write lock at its beginning, so it waits for others there and nowhere else; processes of
one host may share the file. One that is stopped in the middle of a transaction holds the lock until
it goes on or ends: no other can then write, nor become owner.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, create_engine, event, func, select
from sqlalchemy.engine import URL
from sqlalchemy.sql import ColumnElement

from tq_broker.exceptions import InvalidArgument
from tq_broker.stores import records, schema, troubles
from tq_broker.stores.store import Batch, Conflict, Fenced, StoreUnavailable

LOCK_WAIT_S = 10.0
"""Longer than any transaction of ours; after it another program sits on the file."""
_CACHE_KIB = 32 * 1024


class Sqlite:
    """A file, for `tq_broker.stores.sql.SqlStore`; see `tq_broker.stores.sql.Database`.

    Args:
        url: ``sqlite:///path``.
    """

    def __init__(self, url: URL) -> None:
        if not url.database or url.database == ":memory:" or url.query or url.host:
            raise InvalidArgument(
                "store url of SQLite must name a file and nothing more: sqlite:///history.db, or"
                " sqlite:////var/lib/history.db from the root; what need not last is memory://"
            )
        self.url = url.render_as_string()
        self.engine = self.reader = create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": LOCK_WAIT_S},
            hide_parameters=True,
        )
        event.listen(self.engine, "connect", _set_up)
        self._path = Path(url.database)
        self._identity: tuple[int, int] | None = None

    def exists(self) -> bool:
        return self._path.exists()

    def begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        self._check_identity()

    def begin_acquire(self, connection: Connection) -> None:
        self.begin(connection)  # nobody can take the lock of a file from a process that is stopped

    def begin_migration(self, connection: Connection) -> None:
        self.begin(connection)

    def one_of(self, column: ColumnElement[Any], values: Collection[str]) -> ColumnElement[bool]:
        listed = func.json_each(records.dump_texts(values)).table_valued("value")
        return column.in_(select(listed.c.value))

    def is_undone(self, error: BaseException) -> bool:
        # An error of the disk may come after all was written, and then it is found at the next
        # start; what did not fit was not written.
        return "database or disk is full" in str(error)

    def trouble(self, error: BaseException) -> troubles.Trouble:
        return troubles.of_sqlite([kind.__name__ for kind in type(error).__mro__], str(error))

    def write(self, connection: Connection, ns: int, batch: Batch) -> None:
        self.begin(connection)
        cursor: Any = connection.connection.cursor()
        epochs = dict(cursor.execute("SELECT shard, epoch FROM tq_shards WHERE ns = ?", (ns,)))
        if lost := [shard for shard, epoch in batch.epochs.items() if epochs.get(shard) != epoch]:
            raise Fenced(lost)
        try:
            _write(cursor, ns, batch)
        except sqlite3.IntegrityError as error:
            raise Conflict(f"a row of the batch is there already: {error}") from error

    def _check_identity(self) -> None:
        """A file that was moved away takes all commits and keeps none that anybody will read."""
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise StoreUnavailable(f"store {self.url}: the file is gone: {error}") from error
        identity = (status.st_dev, status.st_ino)
        if self._identity not in (None, identity):
            self.engine.dispose()
            self._identity = None
            raise StoreUnavailable(f"store {self.url}: the file was replaced by another")
        self._identity = identity


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
    cursor = connection.cursor()
    for setting in (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"cache_size = -{_CACHE_KIB}",
    ):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _write(cursor: sqlite3.Cursor, ns: int, batch: Batch) -> None:
    old = [run for run in batch.runs if run.version > 1]
    changes = [(*records.changes_of_run(run), ns, run.run_id, run.version - 1) for run in old]
    if cursor.executemany(_UPDATE_RUN, changes).rowcount != len(old) and old:
        raise Conflict("a run of the batch has another version")
    new = [records.new_run_record(ns, run) for run in batch.runs if run.version == 1]
    cursor.executemany(_INSERT_RUN, new)
    cursor.executemany(_INSERT_INBOX, records.inbox_records(ns, batch))
    cursor.executemany(_INSERT_EVENTS, records.event_records(ns, batch))
    cursor.executemany(_INSERT_OUTBOX, records.outbox_records(ns, batch))
    stretches = records.stretches(batch.sent)
    cursor.executemany(_DELETE_OUTBOX, [(ns, *stretch) for stretch in stretches])


def _insert(table: Table) -> str:
    names = table.columns.keys()
    return f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


# Of the hot path: SQLAlchemy would take as long again to hand the values over.
_INSERT_RUN = _insert(schema.runs)
_INSERT_INBOX = _insert(schema.inbox)
_INSERT_EVENTS = _insert(schema.events)
_INSERT_OUTBOX = _insert(schema.outbox)
_DELETE_OUTBOX = "DELETE FROM tq_outbox WHERE ns = ? AND shard = ? AND seq BETWEEN ? AND ?"
_UPDATE_RUN = (
    f"UPDATE tq_runs SET {', '.join(f'{name} = ?' for name in schema.RUN_CHANGES)}"
    " WHERE ns = ? AND run_id = ? AND version = ?"
)
