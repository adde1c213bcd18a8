"""A store in a SQL database, by SQLAlchemy Core: one implementation for SQLite and PostgreSQL.

Rules of this file: what differs between the two is asked of the `Database`; a batch, which is what
a store spends its time with, is written there as well.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    LargeBinary,
    Select,
    and_,
    delete,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy import text as sql
from sqlalchemy.sql import ColumnElement

from tq_broker.model.listing import Condition, Filter
from tq_broker.model.requests import Status
from tq_broker.stores import migrations, records
from tq_broker.stores.connections import Connections, Database
from tq_broker.stores.schema import events, inbox, members, namespaces, outbox, runs, shards
from tq_broker.stores.store import (
    Batch,
    EventRow,
    Member,
    OutboxRow,
    Owned,
    RunRow,
    ShardRow,
    seq_before,
)

Rows = list  # In the class, the word means a method.
_EVENT_ROWS = 64
"""Rows of events fetched at first; the more follow, the more at once."""


def migrate(database: Database) -> int:
    """Bring the schema up to date; returns the version that was found.

    Raises:
        SchemaMismatch: it is newer than this release.
        StoreUnavailable: the database cannot be reached, or does not let us.
    """
    connections = Connections(database)
    with contextlib.closing(connections), connections.transaction() as connection:
        database.begin_migration(connection)
        return migrations.migrate(connection, database.url)


class SqlStore:
    """A `tq_broker.stores.store.Store` of one namespace in ``database``.

    Raises:
        SchemaMismatch: the schema is newer than this release, or older and not migrated yet.
        StoreUnavailable: the database cannot be reached.
    """

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._connections = Connections(database)
        try:
            self._check_version()
            self._ns = self._number_of(namespace)
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return self._database.url

    # --- writing ---

    def acquire(self, shards: Collection[int], owner: str, now_ms: int) -> list[Owned]:
        with self._connections.transaction() as connection:
            self._database.begin_acquire(connection)
            # In one order for all, so that no two wait for each other.
            return [self._acquire(connection, shard, owner) for shard in sorted(set(shards))]

    def commit(self, batch: Batch) -> None:
        batch.check()
        with self._connections.transaction() as connection:
            self._database.write(connection, self._ns, batch)

    def beat(self, member: Member) -> Sequence[Member]:
        values = {
            "ns": self._ns,
            **{name: getattr(member, name) for name in member.__struct_fields__},
            "shards": records.dump_shards(member.shards),
        }
        with self._connections.transaction() as connection:
            self._database.begin(connection)
            connection.execute(_BEAT, values)
            found = connection.execute(select(members).where(members.c.ns == self._ns))
            return [_member(row) for row in found]

    def leave(self, member_id: str) -> None:
        with self._connections.transaction() as connection:
            self._database.begin(connection)
            gone = and_(members.c.ns == self._ns, members.c.member_id == member_id)
            connection.execute(delete(members).where(gone))

    def prune(self, shard: int, closed_before_ms: int, inbox_before_ms: int, limit: int) -> int:
        with self._connections.transaction() as connection:
            self._database.begin(connection)
            deleted = self._prune_runs(connection, shard, closed_before_ms, limit)
            left = max(0, limit - deleted)
            return deleted + self._prune_inbox(connection, shard, inbox_before_ms, left)

    # --- reading ---

    def seen(self, shard: int, message_ids: Collection[str]) -> dict[str, bytes | None]:
        asked = self._database.one_of(inbox.c.message_id, message_ids)
        found = self._rows(
            select(inbox.c.message_id, inbox.c.reply).where(
                inbox.c.ns == self._ns, inbox.c.shard == shard, asked
            )
        )
        return {row.message_id: row.reply for row in found}

    def runs(self, run_ids: Collection[str]) -> list[RunRow]:
        asked = self._database.one_of(runs.c.run_id, run_ids)
        return self._run_rows(select(runs).where(runs.c.ns == self._ns, asked))

    def current(self, workflow_ids: Collection[str]) -> list[RunRow]:
        asked = self._database.one_of(runs.c.workflow_id, workflow_ids)
        return self._run_rows(select(runs).where(runs.c.ns == self._ns, runs.c.is_current, asked))

    def events(self, run_id: str, first_event_id: int, bytes_max: int) -> list[EventRow]:
        found: list[EventRow] = []
        limit, asked_id = _EVENT_ROWS, first_event_id
        while True:
            rows = self._event_rows(run_id, asked_id, limit)
            fitting = list(records.within([*found, *rows], bytes_max))
            if len(rows) < limit or len(fitting) < len(found) + len(rows):
                return fitting
            found = fitting
            asked_id = found[-1].first_event_id + found[-1].count
            limit *= 2

    def due(self, shards: Collection[int], until_ms: int, limit: int) -> list[tuple[int, int, str]]:
        found = self._rows(
            select(runs.c.next_ms, runs.c.shard, runs.c.run_id)
            .where(runs.c.ns == self._ns, runs.c.shard.in_(shards), runs.c.next_ms <= until_ms)
            .order_by(runs.c.next_ms, runs.c.shard, runs.c.run_id)
            .limit(limit)
        )
        return [(row.next_ms, row.shard, row.run_id) for row in found]

    def outbox(self, shard: int, after_seq: int, limit: int) -> list[OutboxRow]:
        found = self._rows(
            select(outbox.c.seq, outbox.c.data)
            .where(outbox.c.ns == self._ns, outbox.c.shard == shard, outbox.c.seq > after_seq)
            .order_by(outbox.c.seq)
            .limit(limit)
        )
        return [OutboxRow(shard, row.seq, row.data) for row in found]

    def list(self, where: Filter, limit: int, after: tuple[int, str] | None) -> list[RunRow]:
        shown = [column for column in runs.columns if column is not runs.c.state]
        query = select(*shown, literal(b"", LargeBinary()).label("state"))
        query = query.where(runs.c.ns == self._ns, _clause(where))
        if after is not None:
            start_ms, run_id = after
            # The first is implied by the second, and finds the place in the index.
            query = query.where(
                runs.c.start_ms <= start_ms,
                or_(runs.c.start_ms < start_ms, runs.c.run_id > run_id),
            )
        order = (runs.c.start_ms.desc(), runs.c.run_id)
        return self._run_rows(query.order_by(*order).limit(limit))

    def count(self, where: Filter) -> Mapping[Status, int]:
        found = self._rows(
            select(runs.c.status, func.count().label("number"))
            .where(runs.c.ns == self._ns, _clause(where))
            .group_by(runs.c.status)
        )
        return {Status(row.status): row.number for row in found}

    def shards(self, now_ms: int) -> Sequence[ShardRow]:
        opened = self._count_by_shard(runs, runs.c.close_ms == 0)
        due = self._count_by_shard(runs, runs.c.next_ms <= now_ms)
        unsent = self._count_by_shard(outbox)
        found = self._rows(select(shards).where(shards.c.ns == self._ns).order_by(shards.c.shard))
        return [
            ShardRow(
                row.shard,
                row.epoch,
                row.owner,
                opened.get(row.shard, 0),
                due.get(row.shard, 0),
                unsent.get(row.shard, 0),
            )
            for row in found
        ]

    def close(self) -> None:
        self._connections.close()

    # --- parts ---

    def _check_version(self) -> None:
        if not self._database.exists():
            migrations.check_version(0, self.url)
        with self._connections.reading() as connection:
            found = migrations.found_version(connection)
        migrations.check_version(found, self.url)

    def _number_of(self, namespace: str) -> int:
        with self._connections.transaction() as connection:
            self._database.begin(connection)
            connection.execute(_NAMESPACE, {"name": namespace})
            number = select(namespaces.c.ns).where(namespaces.c.name == namespace)
            return int(connection.execute(number).scalar_one())

    def _acquire(self, connection: Connection, shard: int, owner: str) -> Owned:
        connection.execute(_ACQUIRE, {"ns": self._ns, "shard": shard, "owner": owner})
        epoch = connection.execute(
            select(shards.c.epoch).where(shards.c.ns == self._ns, shards.c.shard == shard)
        ).scalar_one()
        return Owned(shard, epoch, seq_before(epoch))

    def _prune_runs(self, connection: Connection, shard: int, before_ms: int, limit: int) -> int:
        closed = and_(
            runs.c.ns == self._ns,
            runs.c.shard == shard,
            runs.c.close_ms > 0,
            runs.c.close_ms < before_ms,
        )
        oldest = select(runs.c.run_id, runs.c.history_length).where(closed)
        run_ids: Rows[str] = []
        rows = 0
        for run in connection.execute(oldest.order_by(runs.c.close_ms).limit(limit)):
            # A run has at most a row for each event.
            if run_ids and rows + run.history_length > limit:
                break
            run_ids.append(run.run_id)
            rows += 1 + run.history_length
        their_events = self._database.one_of(events.c.run_id, run_ids)
        they = self._database.one_of(runs.c.run_id, run_ids)
        deleted = connection.execute(delete(events).where(events.c.ns == self._ns, their_events))
        return deleted.rowcount + connection.execute(delete(runs).where(closed, they)).rowcount

    def _prune_inbox(self, connection: Connection, shard: int, before_ms: int, limit: int) -> int:
        here = and_(inbox.c.ns == self._ns, inbox.c.shard == shard)
        oldest = select(inbox.c.message_id).where(here, inbox.c.at_ms < before_ms)
        old = connection.scalars(oldest.order_by(inbox.c.at_ms).limit(limit)).all()
        they = self._database.one_of(inbox.c.message_id, old)
        return connection.execute(delete(inbox).where(here, they)).rowcount

    def _event_rows(self, run_id: str, event_id: int, limit: int) -> Rows[EventRow]:
        of_run = and_(events.c.ns == self._ns, events.c.run_id == run_id)
        first = (
            select(func.max(events.c.first_event_id))
            .where(of_run, events.c.first_event_id <= event_id)
            .scalar_subquery()
        )
        found = self._rows(
            select(events.c.first_event_id, events.c.count, events.c.data)
            .where(
                of_run,
                events.c.first_event_id >= func.coalesce(first, 0),
                events.c.first_event_id + events.c["count"] > event_id,
            )
            .order_by(events.c.first_event_id)
            .limit(limit)
        )
        return [EventRow(run_id, *row) for row in found]

    def _count_by_shard(self, table: Any, *where: ColumnElement[bool]) -> dict[int, int]:
        counts = select(table.c.shard, func.count()).where(table.c.ns == self._ns, *where)
        return {row[0]: row[1] for row in self._rows(counts.group_by(table.c.shard))}

    def _run_rows(self, query: Select[Any]) -> Rows[RunRow]:
        return [records.run_of(row) for row in self._rows(query)]

    def _rows(self, query: Select[Any]) -> Sequence[Any]:
        with self._connections.reading() as connection:
            return connection.execute(query).all()


_NAMESPACE = sql("INSERT INTO tq_namespaces (name) VALUES (:name) ON CONFLICT DO NOTHING")
_ACQUIRE = sql(
    "INSERT INTO tq_shards (ns, shard, epoch, owner) VALUES (:ns, :shard, 1, :owner)"
    " ON CONFLICT (ns, shard) DO UPDATE SET epoch = tq_shards.epoch + 1, owner = :owner"
)
_BEAT = sql(
    "INSERT INTO tq_members (ns, member_id, identity, joined_ms, seen_ms, shards)"
    " VALUES (:ns, :member_id, :identity, :joined_ms, :seen_ms, :shards)"
    " ON CONFLICT (ns, member_id) DO UPDATE SET identity = excluded.identity,"
    " joined_ms = excluded.joined_ms, seen_ms = excluded.seen_ms, shards = excluded.shards"
)

_OPERATORS: Mapping[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda column, values: column.in_(values),
    # Not LIKE, to which case may not matter. The first finds the place in an index.
    "starts_with": lambda column, prefix: and_(
        column >= prefix, func.substr(column, 1, len(prefix)) == prefix
    ),
}


def _clause(where: Filter) -> ColumnElement[bool]:
    return and_(true(), *map(_condition, where.conditions))


def _condition(condition: Condition) -> ColumnElement[bool]:
    column = runs.c[condition.field]
    clause = _OPERATORS[condition.op](column, condition.value)
    return and_(column > 0, clause) if condition.field == "close_ms" else clause


def _member(row: Any) -> Member:
    return Member(
        row.member_id, row.identity, row.joined_ms, row.seen_ms, records.load_shards(row.shards)
    )
