"""PostgreSQL: what is particular about a store on a server, for history on many hosts.

A batch is two round trips however large it is: one pipeline with the transaction's beginning, the
epochs and one statement per table, whose rows travel as arrays of columns; then the commit. The
rows of the epochs stay share-locked until then, so whoever takes a shard waits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import psycopg
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    LargeBinary,
    Table,
    Text,
    bindparam,
    create_engine,
    event,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import URL
from sqlalchemy.sql import ColumnElement

from tq_broker.stores import records, schema, troubles
from tq_broker.stores.store import Batch, Conflict, Fenced

_CONNECT: dict[str, str] = {
    "application_name": "tq_broker",
    "connect_timeout": "10",
    # A server that is gone without a word is noticed after 20 s.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "20000",
}
"""What libpq is told, unless the URL tells it otherwise."""

_SESSION = {
    # An owner that was stopped in the middle of a transaction must not keep its shards from others.
    "idle_in_transaction_session_timeout": "5s",
    "lock_timeout": "15s",
    # Statements are planned once, when tables may still be empty, and when to read them whole looks
    # cheap; what a batch writes to is found in an index, row by row.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_mergejoin": "off",
}
# What is committed must be kept, whatever the server is set to; stricter settings stay.
_BE_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)
# Of an owner that was stopped while it wrote, the server waits for the rest of what it has to say:
# it is not "idle in transaction", and holds its shards for as long as the process exists. No
# transaction of an owner that lives takes so long. It has locked rows, or wants to: others, as
# pg_dump, only read, and keep nobody from a shard.
_END_STOPPED = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE relation = 'tq_shards'::regclass AND granted AND pid <> pg_backend_pid()"
    " AND mode IN ('RowShareLock', 'RowExclusiveLock')"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND xact_start < clock_timestamp() - interval '5 s'"
)
_WAIT_SHORTLY = "SET LOCAL lock_timeout = '6s'"
_MIGRATING = 0x74715F62
"""The number of the advisory lock."""


class Postgresql:
    """A server's database, for `tq_broker.stores.sql.SqlStore`; see
    `tq_broker.stores.connections.Database`.

    Args:
        url: ``postgresql+psycopg://user:password@host:port/database``; libpq's options after ``?``.
    """

    def __init__(self, url: URL) -> None:
        url = _with_one_password(url)
        self.url = url._replace(password=None).render_as_string()
        given = {name: value for name, value in _CONNECT.items() if name not in url.query}
        self.engine = create_engine(
            url, connect_args=given, hide_parameters=True, pool_use_lifo=True
        )
        self.reader: Engine = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self.engine, "connect", _set_up)

    def exists(self) -> bool:
        return True

    def begin(self, connection: Connection) -> None:
        """Nothing: the driver begins with the first statement."""

    def begin_acquire(self, connection: Connection) -> None:
        connection.exec_driver_sql(_END_STOPPED)
        connection.exec_driver_sql(_WAIT_SHORTLY)

    def begin_migration(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATING})")

    def one_of(self, column: ColumnElement[Any], values: Collection[str]) -> ColumnElement[bool]:
        listed = bindparam(None, list(values), type_=ARRAY(Text()))
        return column == listed.any_()

    def is_undone(self, error: BaseException) -> bool:
        # A session that ends (FATAL) may have committed before.
        return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized == "ERROR"

    def trouble(self, error: BaseException) -> troubles.Trouble:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        return troubles.of_postgresql(kinds, getattr(error, "sqlstate", None), str(error))

    def write(self, connection: Connection, ns: int, batch: Batch) -> None:
        driver: Any = connection.connection.driver_connection
        conflict: psycopg.errors.UniqueViolation | None = None
        epochs = driver.cursor()
        try:
            with driver.pipeline():
                epochs.execute(_EPOCHS, (ns, list(batch.epochs)), prepare=True)
                changed = _write(driver, ns, batch)
        except psycopg.errors.UniqueViolation as error:
            conflict = error
        # First: what a replaced owner writes is there already more often than not.
        found = dict(epochs.fetchall())
        if lost := [shard for shard, epoch in batch.epochs.items() if found.get(shard) != epoch]:
            raise Fenced(lost)
        if conflict is not None:
            raise Conflict(f"a row of the batch is there already: {conflict}") from conflict
        expected = sum(run.version > 1 for run in batch.runs)
        if expected and changed.rowcount != expected:
            raise Conflict("a run of the batch has another version")


class _Statement:
    """One statement for many rows, which come as one array for each column.

    Args:
        text: ``{rows}`` is where the rows go, of which the columns follow in order.
    """

    def __init__(self, text: str, columns: Sequence[Column[Any]]) -> None:
        kinds = [_KINDS[type(column.type)] for column in columns]
        arrays = ", ".join(f"{mark}::{name}[]" for name, mark, _ in kinds)
        self._text = text.format(rows=f"unnest({arrays})")
        self._arrays = [array for _, _, array in kinds]

    def execute(self, cursor: Any, ns: int, rows: Sequence[records.Record]) -> None:
        """Send it with ``rows``, each of which begins with ``ns``; nothing if there are none."""
        if rows:
            _, *columns = zip(*rows, strict=True)
            arrays = [make(column) for make, column in zip(self._arrays, columns, strict=True)]
            cursor.execute(self._text, (ns, *arrays), prepare=True)


def _values(column: Sequence[Any]) -> str:
    return "{" + ",".join(["NULL" if value is None else str(value) for value in column]) + "}"


def _texts(column: Sequence[str]) -> str:
    joined = '","'.join(column)
    if "\\" in joined or joined.count('"') > 2 * (len(column) - 1):
        joined = '","'.join([text.replace("\\", r"\\").replace('"', r"\"") for text in column])
    return f'{{"{joined}"}}'


_KINDS: dict[type, tuple[str, str, Callable[[Sequence[Any]], object]]] = {
    # As text: of the numbers' sizes the driver would make types, and of each mixture another
    # statement to prepare; and texts it would take one by one.
    BigInteger: ("bigint", "%s", _values),
    Boolean: ("boolean", "%s", _values),
    Text: ("text", "%s", _texts),
    LargeBinary: ("bytea", "%b", list),
}


def _insert(table: Table) -> _Statement:
    _, *others = table.columns
    names = ", ".join(column.name for column in table.columns)
    return _Statement(f"INSERT INTO {table.name} ({names}) SELECT %s, * FROM {{rows}}", others)


def _update_runs() -> _Statement:
    changes = [schema.runs.columns[name] for name in schema.RUN_CHANGES]
    names = ", ".join(schema.RUN_CHANGES)
    new = ", ".join(f"new.{name}" for name in schema.RUN_CHANGES)
    # Materialized: were the namespace known to be the same for all rows, the server might read all
    # that the namespace has. The same below.
    return _Statement(
        "WITH new AS MATERIALIZED"
        f" (SELECT %s::bigint AS ns, * FROM {{rows}} AS _ (run_id, {names}))"
        f" UPDATE tq_runs SET ({names}) = ROW ({new}) FROM new"
        " WHERE tq_runs.ns = new.ns AND tq_runs.run_id = new.run_id"
        " AND tq_runs.version = new.version - 1",
        [schema.runs.c.run_id, *changes],
    )


_EPOCHS = (
    "SELECT shard, epoch FROM tq_shards WHERE ns = %s AND shard = ANY(%s::bigint[])"
    " ORDER BY shard FOR SHARE"
)
_INSERT_RUNS = _insert(schema.runs)
_INSERT_INBOX = _insert(schema.inbox)
_INSERT_EVENTS = _insert(schema.events)
_INSERT_OUTBOX = _insert(schema.outbox)
_UPDATE_RUNS = _update_runs()
_DELETE_OUTBOX = _Statement(
    "WITH sent AS MATERIALIZED (SELECT %s::bigint AS ns, * FROM {rows} AS _ (shard, first, last))"
    " DELETE FROM tq_outbox USING sent WHERE tq_outbox.ns = sent.ns"
    " AND tq_outbox.shard = sent.shard AND seq BETWEEN first AND last",
    [schema.outbox.c.shard, schema.outbox.c.seq, schema.outbox.c.seq],
)


def _write(driver: Any, ns: int, batch: Batch) -> Any:
    """Send all that is written; returns the cursor that counts the runs that were changed."""
    changed, cursor = driver.cursor(), driver.cursor()
    old = [(ns, run.run_id, *records.changes_of_run(run)) for run in batch.runs if run.version > 1]
    new = [records.new_run_record(ns, run) for run in batch.runs if run.version == 1]
    # First: a run that is not current any more makes room for the one that is.
    _UPDATE_RUNS.execute(changed, ns, old)
    _INSERT_RUNS.execute(cursor, ns, new)
    _INSERT_INBOX.execute(cursor, ns, records.inbox_records(ns, batch))
    _INSERT_EVENTS.execute(cursor, ns, records.event_records(ns, batch))
    _INSERT_OUTBOX.execute(cursor, ns, records.outbox_records(ns, batch))
    stretches = [(ns, *stretch) for stretch in records.stretches(batch.sent)]
    _DELETE_OUTBOX.execute(cursor, ns, stretches)
    return changed


def _with_one_password(url: URL) -> URL:
    """Libpq would take it as an option too, but there nobody hides it."""
    password = url.query.get("password")
    if isinstance(password, str):
        url = url.set(password=password)
    return url.difference_update_query(["password"])


def _set_up(driver: Any, _record: object) -> None:
    driver.autocommit = True
    for name, value in _SESSION.items():
        driver.execute(f"SET {name} = '{value}'")
    driver.execute(_BE_DURABLE)
    driver.autocommit = False
