"""A store in memory: for tests, and for a service that may forget everything when it ends.

Rules of this file: one lock, held for the whole of each method, is the transaction; whatever can
refuse a batch is asked before the first write.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from tq_broker.model.listing import Filter
from tq_broker.model.requests import Status
from tq_broker.stores.records import within
from tq_broker.stores.store import (
    Batch,
    Conflict,
    EventRow,
    Fenced,
    InboxRow,
    Member,
    OutboxRow,
    Owned,
    RunRow,
    ShardRow,
    StoreUnavailable,
    seq_before,
)


class _Tables:
    """What is kept of one namespace."""

    def __init__(self) -> None:
        self.owners: dict[int, tuple[int, str]] = {}
        self.inbox: dict[tuple[int, str], InboxRow] = {}
        self.runs: dict[str, RunRow] = {}
        self.current: dict[str, str] = {}
        self.events: dict[str, dict[int, EventRow]] = {}
        self.outbox: dict[int, dict[int, OutboxRow]] = {}
        self.members: dict[str, Member] = {}


class MemoryDatabase:
    """What several `MemoryStore` objects share."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._namespaces: dict[str, _Tables] = {}

    @contextlib.contextmanager
    def tables(self, namespace: str) -> Iterator[_Tables]:
        with self._guard:
            yield self._namespaces.setdefault(namespace, _Tables())


class MemoryStore:
    """A `tq_broker.stores.store.Store` of one namespace in ``database``."""

    def __init__(self, database: MemoryDatabase, namespace: str) -> None:
        self._database = database
        self._namespace = namespace
        self._closed = False

    @property
    def url(self) -> str:
        return "memory://"

    def acquire(self, shards: Collection[int], owner: str, now_ms: int) -> list[Owned]:
        with self._tables() as tables:
            owned = []
            for shard in sorted(set(shards)):
                epoch = tables.owners.get(shard, (0, ""))[0] + 1
                tables.owners[shard] = (epoch, owner)
                owned.append(Owned(shard, epoch, seq_before(epoch)))
            return owned

    def commit(self, batch: Batch) -> None:
        batch.check()
        with self._tables() as tables:
            _check(tables, batch)
            tables.current.update(_changes_of_current(tables, batch))
            for taken in batch.inbox:
                tables.inbox[taken.shard, taken.message_id] = taken
            for run in batch.runs:
                tables.runs[run.run_id] = run
            for rows in batch.events:
                tables.events.setdefault(rows.run_id, {})[rows.first_event_id] = rows
            for message in batch.outbox:
                tables.outbox.setdefault(message.shard, {})[message.seq] = message
            for shard, seq in batch.sent:
                tables.outbox.get(shard, {}).pop(seq, None)

    def seen(self, shard: int, message_ids: Collection[str]) -> dict[str, bytes | None]:
        with self._tables() as tables:
            found = {name: tables.inbox.get((shard, name)) for name in message_ids}
            return {name: row.reply for name, row in found.items() if row}

    def runs(self, run_ids: Collection[str]) -> list[RunRow]:
        with self._tables() as tables:
            return [tables.runs[name] for name in set(run_ids) if name in tables.runs]

    def current(self, workflow_ids: Collection[str]) -> list[RunRow]:
        with self._tables() as tables:
            found = (tables.current.get(name) for name in set(workflow_ids))
            return [tables.runs[run_id] for run_id in found if run_id]

    def events(self, run_id: str, first_event_id: int, bytes_max: int) -> list[EventRow]:
        with self._tables() as tables:
            found = sorted(tables.events.get(run_id, {}).items())
            rows = [row for _, row in found if row.first_event_id + row.count > first_event_id]
            return list(within(rows, bytes_max))

    def due(self, shards: Collection[int], until_ms: int, limit: int) -> list[tuple[int, int, str]]:
        with self._tables() as tables:
            found = [
                (run.next_ms, run.shard, run.run_id)
                for run in tables.runs.values()
                if run.next_ms is not None and run.next_ms <= until_ms and run.shard in shards
            ]
            return sorted(found)[:limit]

    def outbox(self, shard: int, after_seq: int, limit: int) -> list[OutboxRow]:
        with self._tables() as tables:
            rows = sorted(tables.outbox.get(shard, {}).items())
            return [row for seq, row in rows if seq > after_seq][:limit]

    def list(self, where: Filter, limit: int, after: tuple[int, str] | None) -> list[RunRow]:
        with self._tables() as tables:
            found = [(-run.start_ms, run.run_id, run) for run in _matching(tables, where)]
        if after is not None:
            found = [row for row in found if row[:2] > (-after[0], after[1])]
        found.sort(key=lambda row: row[:2])
        return [msgspec.structs.replace(run, state=b"") for *_, run in found[:limit]]

    def count(self, where: Filter) -> Mapping[Status, int]:
        with self._tables() as tables:
            return Counter(run.status for run in _matching(tables, where))

    def beat(self, member: Member) -> Sequence[Member]:
        with self._tables() as tables:
            tables.members[member.member_id] = member
            return list(tables.members.values())

    def leave(self, member_id: str) -> None:
        with self._tables() as tables:
            tables.members.pop(member_id, None)

    def prune(self, shard: int, closed_before_ms: int, inbox_before_ms: int, limit: int) -> int:
        with self._tables() as tables:
            deleted = 0
            for run in [*tables.runs.values()]:
                if deleted < limit and run.shard == shard and 0 < run.close_ms < closed_before_ms:
                    deleted += _forget(tables, run)
            old = [
                key
                for key, row in tables.inbox.items()
                if row.shard == shard and row.at_ms < inbox_before_ms
            ]
            for key in old[: max(0, limit - deleted)]:
                del tables.inbox[key]
                deleted += 1
            return deleted

    def shards(self, now_ms: int) -> Sequence[ShardRow]:
        with self._tables() as tables:
            runs = tables.runs.values()
            opened = Counter(run.shard for run in runs if not run.close_ms)
            due = Counter(
                run.shard for run in runs if run.next_ms is not None and run.next_ms <= now_ms
            )
            return [
                ShardRow(
                    shard,
                    epoch,
                    owner,
                    opened[shard],
                    due[shard],
                    len(tables.outbox.get(shard, {})),
                )
                for shard, (epoch, owner) in sorted(tables.owners.items())
            ]

    def close(self) -> None:
        self._closed = True

    @contextlib.contextmanager
    def _tables(self) -> Iterator[_Tables]:
        if self._closed:
            raise StoreUnavailable(f"store {self.url} is closed")
        with self._database.tables(self._namespace) as tables:
            yield tables


def _matching(tables: _Tables, where: Filter) -> Iterator[RunRow]:
    return filter(where.matches, tables.runs.values())


def _check(tables: _Tables, batch: Batch) -> None:
    lost = [
        shard
        for shard, epoch in batch.epochs.items()
        if tables.owners.get(shard, (0, ""))[0] != epoch
    ]
    if lost:
        raise Fenced(lost)
    _check_new("inbox", tables.inbox, [(row.shard, row.message_id) for row in batch.inbox])
    for events in batch.events:
        _check_new("events", tables.events.get(events.run_id, {}), [events.first_event_id])
    _check_new("events", (), [(row.run_id, row.first_event_id) for row in batch.events])
    for message in batch.outbox:
        _check_new("outbox", tables.outbox.get(message.shard, {}), [message.seq])
    _check_new("outbox", (), [(row.shard, row.seq) for row in batch.outbox])
    for run in batch.runs:
        before = tables.runs[run.run_id].version if run.run_id in tables.runs else 0
        if run.version != before + 1:
            raise Conflict(f"run {run.run_id} has version {before}, not {run.version - 1}")


def _check_new(table: str, present: Collection[object], keys: Sequence[object]) -> None:
    if len(set(keys)) < len(keys) or any(key in present for key in keys):
        raise Conflict(f"{table}: a row of the batch is there already")


def _changes_of_current(tables: _Tables, batch: Batch) -> dict[str, str]:
    """Which runs become current, by workflow id; an empty one where none is any more."""
    changes = {
        run.workflow_id: ""
        for run in batch.runs
        if not run.is_current and tables.current.get(run.workflow_id) == run.run_id
    }
    for run in batch.runs:
        if run.is_current:
            before = changes.get(run.workflow_id, tables.current.get(run.workflow_id))
            if before and before != run.run_id:
                raise Conflict(f"workflow {run.workflow_id!r} has the current run {before}")
            changes[run.workflow_id] = run.run_id
    return changes


def _forget(tables: _Tables, run: RunRow) -> int:
    del tables.runs[run.run_id]
    if tables.current.get(run.workflow_id) == run.run_id:
        del tables.current[run.workflow_id]
    return 1 + len(tables.events.pop(run.run_id, {}))
