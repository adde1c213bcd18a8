"""The contract of `tq_broker.stores.store.Store`: one suite for every adapter.

A runner subclasses `StoreContract` and gives it a fixture ``world``; one for a database subclasses
`SqlStoreContract`.
"""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, inspect
from sqlalchemy import text as sql

from tq_broker.exceptions import Bug
from tq_broker.model.listing import Filter, parse
from tq_broker.model.requests import Status
from tq_broker.stores import migrations, schema
from tq_broker.stores.connections import Database
from tq_broker.stores.sql import SqlStore, migrate
from tq_broker.stores.store import (
    Batch,
    Conflict,
    EventRow,
    Fenced,
    InboxRow,
    Member,
    OutboxRow,
    OutcomeUnknown,
    RunRow,
    SchemaMismatch,
    Store,
    StoreUnavailable,
)

PATIENCE_S = 20.0
"""How long a real thread or server may take. Reached only by a failing test."""
EVERY = Filter()


class World(abc.ABC):
    """What an adapter must lend to the suite."""

    @abc.abstractmethod
    def make_store(self, namespace: str = "default") -> Store:
        """One more store on the same, at first empty, database."""


class Owner:
    """An owner of shards, who commits in their epochs."""

    def __init__(self, store: Store, *shards: int) -> None:
        self.store = store
        owned = store.acquire(shards or (1,), "somebody", 0)
        self.epochs = {shard.shard: shard.epoch for shard in owned}
        self.last_seq = {shard.shard: shard.last_seq for shard in owned}

    def commit(self, **parts: Any) -> None:
        self.store.commit(Batch(self.epochs, **parts))


def run(run_id: str = "r1", **fields: Any) -> RunRow:
    plain: dict[str, Any] = {
        "run_id": run_id,
        "workflow_id": f"w-{run_id}",
        "shard": 1,
        "version": 1,
        "is_current": True,
        "status": Status.RUNNING,
        "workflow_type": "Order",
        "task_queue": "orders",
        "start_ms": 1_000,
        "state": b"state",
    }
    return RunRow(**{**plain, **fields})


FULL = run(
    next_ms=5,
    close_ms=7,
    status=Status.CONTINUED_AS_NEW,
    history_length=3,
    history_bytes=2**40,
    first_run_id="r0",
    parent_id="p",
    parent_run_id="pr",
    memo={"kéy": b"\x00\xff"},
    cron_schedule="* * * * *",
    static_summary="s",
    deployment_version="shop.1",
    state=b"\x00\x01",
)


class StoreContract(abc.ABC):
    @pytest.fixture
    @abc.abstractmethod
    def world(self, *args: Any) -> Any:
        """A `World` whose database is empty."""

    @pytest.fixture
    def store(self, world: World) -> Iterator[Store]:
        store = world.make_store()
        yield store
        store.close()

    @pytest.fixture
    def owner(self, store: Store) -> Owner:
        return Owner(store, 1, 2)

    # --- owners ---

    def test_each_owner_of_a_shard_has_a_higher_epoch(self, store: Store) -> None:
        first, second = (store.acquire([2, 1], "a", 0) for _ in range(2))
        assert [owned.shard for owned in first] == [1, 2]
        assert all(new.epoch > old.epoch for old, new in zip(first, second, strict=True))

    def test_outbox_numbers_are_never_used_twice(self, store: Store, owner: Owner) -> None:
        seq = owner.last_seq[1] + 1000
        owner.commit(outbox=[OutboxRow(1, seq, b"")])
        owner.commit(sent=[(1, seq)])
        assert Owner(store, 1).last_seq[1] >= seq

    def test_who_lost_a_shard_commits_nothing_more(self, world: World, owner: Owner) -> None:
        other = world.make_store()
        Owner(other, 2)
        with pytest.raises(Fenced) as caught:
            owner.commit(inbox=[InboxRow(1, "m", 0)], runs=[run()])
        assert caught.value.shards == {2}
        assert owner.store.runs(["r1"]) == []
        assert owner.store.seen(1, ["m"]) == {}
        other.close()

    def test_it_is_told_so_even_where_its_rows_are_there_already(
        self, store: Store, owner: Owner
    ) -> None:
        Owner(store, 1).commit(inbox=[InboxRow(1, "m", 0)], runs=[run()])
        with pytest.raises(Fenced):
            owner.commit(inbox=[InboxRow(1, "m", 0)], runs=[run()])

    def test_a_shard_that_nobody_acquired_has_no_epoch(self, store: Store) -> None:
        with pytest.raises(Fenced):
            store.commit(Batch({9: 1}))

    def test_a_batch_names_the_epochs_of_all_shards_it_writes_to(self, store: Store) -> None:
        with pytest.raises(Bug, match=r"\[3\]"):
            store.commit(Batch({}, inbox=[InboxRow(3, "m", 0)]))

    def test_of_owners_that_commit_at_once_only_the_last_succeeds(self, world: World) -> None:
        """Every number that an owner committed was read by the owners after it."""
        stores = [world.make_store() for _ in range(2)]
        Owner(stores[0]).commit(runs=[run(state=b"0")])

        def count_up(store: Store) -> int:
            done = 0
            for _ in range(20):
                owner = Owner(store)
                before = store.runs(["r1"])[0]
                state = str(int(before.state) + 1).encode()
                try:
                    owner.commit(runs=[run(version=before.version + 1, state=state)])
                except Fenced:
                    continue
                done += 1
            return done

        with ThreadPoolExecutor(2) as threads:
            done = sum(threads.map(count_up, stores))
        assert int(stores[0].runs(["r1"])[0].state) == done
        for store in stores:
            store.close()

    # --- batches ---

    def test_a_run_comes_back_as_it_was_committed(self, store: Store, owner: Owner) -> None:
        owner.commit(runs=[FULL])
        assert store.runs(["r1", "other"]) == [FULL]

    def test_texts_may_have_any_character_but_nul(self, store: Store, owner: Owner) -> None:
        texts = ['"', "\\", '\\"', '","', "{a,b}", "NULL", " ", "'", "%s", "é\n\t\x01𝄞", "a"]
        rows = [run(f"r{text}", workflow_id=text, task_queue=text) for text in texts]
        owner.commit(runs=rows, inbox=[InboxRow(1, text, 0) for text in texts])
        found = {row.workflow_id: row for row in store.current(texts)}
        assert found == {row.workflow_id: row for row in rows}
        assert set(store.seen(1, texts)) == set(texts)
        changed = [replace(row, version=2, deployment_version=row.task_queue) for row in rows]
        owner.commit(runs=changed)
        assert {row.run_id: row for row in store.current(texts)} == {r.run_id: r for r in changed}

    def test_a_new_version_replaces_the_one_before(self, store: Store, owner: Owner) -> None:
        owner.commit(runs=[run()])
        changed = run(version=2, status=Status.FAILED, next_ms=9, close_ms=4, state=b"")
        owner.commit(runs=[changed])
        assert store.runs(["r1"]) == [changed]

    @pytest.mark.parametrize("version", [1, 2, 4])
    def test_another_version_than_the_next_is_a_conflict(
        self, store: Store, owner: Owner, version: int
    ) -> None:
        owner.commit(runs=[run()])
        owner.commit(runs=[run(version=2)])
        with pytest.raises(Conflict):
            owner.commit(inbox=[InboxRow(1, "m", 0)], runs=[run(version=version), run("r2")])
        assert store.runs(["r2"]) == []
        assert store.seen(1, ["m"]) == {}

    def test_a_new_version_of_no_run_is_a_conflict(self, owner: Owner) -> None:
        with pytest.raises(Conflict):
            owner.commit(runs=[run(version=2)])

    def test_only_one_run_of_a_workflow_is_current(self, store: Store, owner: Owner) -> None:
        first, second = run(workflow_id="w"), run("r2", workflow_id="w")
        owner.commit(runs=[first])
        with pytest.raises(Conflict):
            owner.commit(runs=[second])
        assert store.current(["w", "x"]) == [first]

    def test_the_next_run_takes_over_in_one_batch(self, store: Store, owner: Owner) -> None:
        owner.commit(runs=[run(workflow_id="w")])
        old, new = run(workflow_id="w", version=2, is_current=False), run("r2", workflow_id="w")
        owner.commit(runs=[old, new])
        assert store.current(["w"]) == [new]
        assert len(store.runs(["r1", "r2"])) == 2

    def test_a_message_is_taken_in_once(self, store: Store, owner: Owner) -> None:
        owner.commit(inbox=[InboxRow(1, "a", 0, b"answer"), InboxRow(1, "b", 0)])
        assert store.seen(1, ["a", "b", "c"]) == {"a": b"answer", "b": None}
        with pytest.raises(Conflict):
            owner.commit(inbox=[InboxRow(1, "c", 0), InboxRow(1, "a", 0)])
        assert store.seen(1, ["c"]) == {}

    def test_the_same_message_twice_in_a_batch_is_a_conflict(self, owner: Owner) -> None:
        with pytest.raises(Conflict):
            owner.commit(inbox=[InboxRow(1, "a", 0), InboxRow(1, "a", 0)])

    def test_shards_have_messages_of_their_own(self, store: Store, owner: Owner) -> None:
        owner.commit(inbox=[InboxRow(1, "a", 0), InboxRow(2, "a", 0, b"")])
        assert store.seen(2, ["a"]) == {"a": b""}

    def test_an_event_is_written_once(self, store: Store, owner: Owner) -> None:
        owner.commit(events=[EventRow("r1", 1, 2, b"12")])
        with pytest.raises(Conflict):
            owner.commit(events=[EventRow("r1", 1, 1, b"1")])
        assert store.events("r1", 1, 100) == [EventRow("r1", 1, 2, b"12")]

    def test_hundreds_of_rows_are_one_batch(self, store: Store, owner: Owner) -> None:
        names = [f"r{number}" for number in range(500)]
        first_seq = owner.last_seq[1] + 1
        owner.commit(
            inbox=[InboxRow(1, name, 0, b"x" if name > "r3" else None) for name in names],
            runs=[run(name, next_ms=None if name < "r3" else 2**45) for name in names],
            events=[EventRow(name, 1, 1, name.encode()) for name in names],
            outbox=[OutboxRow(1, first_seq + n, b"") for n in range(500)],
        )
        owner.commit(
            runs=[run(name, version=2) for name in names],
            sent=[(1, first_seq + n) for n in range(499, -1, -1)],
        )
        assert {row.version for row in store.runs(names)} == {2}
        assert len(store.current([f"w-{name}" for name in names])) == 500
        assert len(store.seen(1, names)) == 500
        assert store.outbox(1, 0, 1000) == []

    def test_an_empty_batch_is_no_trouble(self, store: Store, owner: Owner) -> None:
        owner.commit()
        assert store.runs([]) == store.current([]) == []
        assert store.seen(1, []) == {}

    def test_threads_may_share_a_store(self, store: Store, owner: Owner) -> None:
        def add(number: int) -> None:
            owner.commit(runs=[run(f"r{number}")], inbox=[InboxRow(1, f"m{number}", 0)])
            assert store.runs([f"r{number}"])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(add, range(20)))
        assert store.count(EVERY) == {Status.RUNNING: 20}

    # --- events, timers, outbox ---

    @pytest.mark.parametrize(
        ("first_event_id", "bytes_max", "expected"),
        [
            (1, 100, [1, 3, 4]),
            (2, 100, [1, 3, 4]),
            (3, 100, [3, 4]),
            (6, 100, [4]),
            (7, 100, []),
            (1, 0, [1]),
            (1, 5, [1, 3]),
            (1, 4, [1]),
        ],
    )
    def test_events_are_read_from_one_on_as_far_as_they_fit(
        self,
        store: Store,
        owner: Owner,
        first_event_id: int,
        bytes_max: int,
        expected: list[int],
    ) -> None:
        rows = [EventRow("r1", 1, 2, b"abc"), EventRow("r1", 3, 1, b"de")]
        owner.commit(events=[*rows, EventRow("r2", 1, 9, b"")])
        owner.commit(events=[EventRow("r1", 4, 3, b"")])
        found = store.events("r1", first_event_id, bytes_max)
        if bytes_max == 5:
            expected = [*expected, 4]  # It is empty.
        assert [row.first_event_id for row in found] == expected

    def test_a_long_history_is_read_whole(self, store: Store, owner: Owner) -> None:
        rows = [EventRow("r1", number, 1, b"x") for number in range(1, 1001)]
        owner.commit(events=rows)
        assert store.events("r1", 1, 10**6) == rows
        assert store.events("r1", 101, 500) == rows[100:600]

    def test_runs_are_due_soonest_first(self, store: Store, owner: Owner) -> None:
        owner.commit(
            runs=[
                run("late", next_ms=30),
                run("soon", next_ms=10),
                run("other", next_ms=20, shard=2),
                run("never"),
            ]
        )
        assert store.due([1, 2], 30, 10) == [(10, 1, "soon"), (20, 2, "other"), (30, 1, "late")]
        assert store.due([1, 2], 30, 1) == [(10, 1, "soon")]
        assert store.due([1], 29, 10) == [(10, 1, "soon")]
        assert store.due([], 30, 10) == []
        owner.commit(runs=[run("soon", version=2, next_ms=40)])
        assert store.due([1], 30, 10) == [(30, 1, "late")]

    def test_the_outbox_keeps_what_was_not_sent(self, store: Store, owner: Owner) -> None:
        seqs = [owner.last_seq[1] + n for n in range(1, 6)]
        owner.commit(outbox=[OutboxRow(1, seq, b"%d" % seq) for seq in reversed(seqs)])
        owner.commit(sent=[(1, seqs[0]), (1, seqs[3]), (2, seqs[1]), (1, seqs[2])])
        assert [row.seq for row in store.outbox(1, 0, 10)] == [seqs[1], seqs[4]]
        assert store.outbox(1, seqs[1], 10) == [OutboxRow(1, seqs[4], b"%d" % seqs[4])]
        assert len(store.outbox(1, 0, 1)) == 1
        assert store.outbox(2, 0, 10) == []

    # --- lists ---

    def test_runs_are_listed_newest_first_page_by_page(self, store: Store, owner: Owner) -> None:
        starts = {"a": 1, "b": 3, "C": 3, "d": 3, "é": 3, "e": 2}
        owner.commit(runs=[run(name, start_ms=start) for name, start in starts.items()])
        listed: list[str] = []
        after = None
        while page := store.list(EVERY, 2, after):
            assert all(row.state == b"" for row in page)
            listed += [row.run_id for row in page]
            after = (page[-1].start_ms, page[-1].run_id)
        assert listed == ["C", "b", "d", "é", "e", "a"]

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("", "abc"),
            ("type = 'Order'", "ab"),
            ("type != 'Order'", "c"),
            ("type in ('Order', 'Refund')", "abc"),
            ("status = 'running'", "ac"),
            ("status in ('failed') and task_queue = 'q2'", "b"),
            ("version = 'shop.1'", "a"),
            ("version != 'shop.1' and status = 'running'", "c"),
            ("version in ('shop.1', 'shop.2')", "ac"),
            ("id = 'o%1'", "a"),
            ("id starts_with 'o%'", "a"),
            ("id starts_with 'o_'", "b"),
            ("id starts_with ''", "abc"),
            ("id starts_with 'O'", "c"),
            ("start_time > '1970-01-01T00:00:01Z'", "bc"),
            ("start_time >= '1970-01-01T00:00:01Z' and start_time < '1970-01-01T00:00:03Z'", "ab"),
            ("start_time = '1970-01-01T00:00:03Z'", "c"),
            ("close_time > '1969-01-01'", "b"),
            ("close_time <= '2100-01-01'", "b"),
        ],
    )
    def test_a_filter_means_the_same_everywhere(
        self, store: Store, owner: Owner, query: str, expected: str
    ) -> None:
        owner.commit(
            runs=[
                run("a", workflow_id="o%1", start_ms=1_000, deployment_version="shop.1"),
                run(
                    "b",
                    workflow_id="o_1",
                    start_ms=2_000,
                    status=Status.FAILED,
                    close_ms=2_500,
                    task_queue="q2",
                ),
                run(
                    "c",
                    workflow_id="Oé",
                    start_ms=3_000,
                    workflow_type="Refund",
                    deployment_version="shop.2",
                ),
            ]
        )
        found = store.list(parse(query), 10, None)
        assert sorted(row.run_id for row in found) == list(expected)
        assert sum(store.count(parse(query)).values()) == len(expected)

    def test_runs_are_counted_by_status(self, store: Store, owner: Owner) -> None:
        owner.commit(runs=[run("a"), run("b"), run("c", status=Status.TIMED_OUT, close_ms=1)])
        assert store.count(EVERY) == {Status.RUNNING: 2, Status.TIMED_OUT: 1}

    def test_namespaces_do_not_see_each_other(
        self, world: World, store: Store, owner: Owner
    ) -> None:
        owner.commit(runs=[FULL], inbox=[InboxRow(1, "m", 0)], events=[EventRow("r1", 1, 1, b"")])
        owner.commit(outbox=[OutboxRow(1, owner.last_seq[1] + 1, b"")])
        other = world.make_store("other")
        assert other.shards(0) == []
        Owner(other, 1).commit(inbox=[InboxRow(1, "m", 0)])
        assert other.runs(["r1"]) == other.current(["w-r1"]) == other.list(EVERY, 9, None) == []
        assert other.events("r1", 1, 9) == other.outbox(1, 0, 9) == other.due([1], 99, 9) == []
        assert other.count(EVERY) == {}
        assert other.prune(1, 99, 0, 99) == 0
        owner.commit(inbox=[InboxRow(1, "still ours", 0)])
        other.close()

    # --- members, pruning, people ---

    def test_members_are_those_that_have_not_left(self, store: Store) -> None:
        a, b = Member("a", "a@host", 1, 2, (3, 1)), Member("b", "b@host", 1, 2)
        assert list(store.beat(a)) == [a]
        assert {member.member_id: member for member in store.beat(b)} == {"a": a, "b": b}
        later = Member("a", "a@host", 1, 9)
        assert later in store.beat(later)
        store.leave("b")
        store.leave("nobody")
        assert list(store.beat(later)) == [later]

    def test_old_runs_go_with_their_events(self, store: Store, owner: Owner) -> None:
        closed = {"status": Status.COMPLETED, "history_length": 2}
        owner.commit(
            runs=[
                run("old", close_ms=10, **closed),
                run("new", close_ms=20, **closed),
                run("open"),
                run("elsewhere", close_ms=10, shard=2, **closed),
            ],
            events=[EventRow(name, 1, 2, b"") for name in ("old", "new", "open", "elsewhere")],
        )
        assert store.prune(1, 20, 0, 100) == 2
        left = {row.run_id for row in store.list(EVERY, 10, None)}
        assert left == {"new", "open", "elsewhere"}
        assert store.events("old", 1, 9) == []
        assert store.current(["w-old"]) == []
        assert store.events("new", 1, 9)
        assert store.prune(1, 20, 0, 100) == 0
        owner.commit(runs=[run("again", workflow_id="w-old")])

    def test_old_inbox_rows_go(self, store: Store, owner: Owner) -> None:
        owner.commit(inbox=[InboxRow(1, "old", 9), InboxRow(1, "new", 10), InboxRow(2, "old", 9)])
        assert store.prune(1, 0, 10, 100) == 1
        assert store.seen(1, ["old", "new"]) == {"new": None}
        assert store.seen(2, ["old"]) == {"old": None}

    def test_pruning_goes_in_steps(self, store: Store, owner: Owner) -> None:
        names = [f"r{number}" for number in range(5)]
        closed = {"status": Status.COMPLETED, "close_ms": 1, "history_length": 1}
        owner.commit(
            runs=[run(name, **closed) for name in names],
            events=[EventRow(name, 1, 1, b"") for name in names],
            inbox=[InboxRow(1, name, 0) for name in names],
        )
        steps = []
        while deleted := store.prune(1, 9, 9, 4):
            steps.append(deleted)
        assert sum(steps) == 15
        assert max(steps) <= 5

    def test_shards_are_shown_with_what_is_in_them(self, store: Store) -> None:
        owner = Owner(store, 1, 2)
        owner.commit(
            runs=[
                run("a", next_ms=5),
                run("b", next_ms=6),
                run("c", status=Status.FAILED, close_ms=1),
            ],
            outbox=[OutboxRow(1, owner.last_seq[1] + 1, b"")],
        )
        first, second = store.shards(5)
        assert (first.shard, first.owner, first.epoch) == (1, "somebody", owner.epochs[1])
        assert (first.open_runs, first.timers_due, first.outbox) == (2, 1, 1)
        assert (second.open_runs, second.timers_due, second.outbox) == (0, 0, 0)

    def test_a_closed_store_is_unavailable(self, world: World) -> None:
        store = world.make_store()
        store.close()
        store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            store.runs(["r1"])


class SqlWorld(World):
    """A database for `SqlStoreContract`, empty at first, without a schema too."""

    @abc.abstractmethod
    def make_database(self) -> Database:
        """One more way to it."""

    def make_store(self, namespace: str = "default") -> SqlStore:
        migrate(self.make_database())
        return SqlStore(self.make_database(), namespace)

    def execute(self, statement: str) -> None:
        """As another program."""
        engine = self.make_database().engine
        with engine.begin() as connection:
            connection.execute(sql(statement))
        engine.dispose()


class SlowDatabase:
    """Stops between the last statement of a batch and its commit."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_written = threading.Event()
        self.go_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def write(self, connection: Connection, ns: int, batch: Batch) -> None:
        self._database.write(connection, ns, batch)
        self.is_written.set()
        assert self.go_on.wait(PATIENCE_S)


class SqlStoreContract(StoreContract):
    """What is asked of stores in databases besides."""

    def test_to_acquire_is_to_wait_for_who_is_committing(
        self, world: SqlWorld, store: Store
    ) -> None:
        slow = SlowDatabase(world.make_database())
        old = SqlStore(slow, "default")
        owner = Owner(old)
        with ThreadPoolExecutor(2) as threads:
            committed = threads.submit(owner.commit, runs=[run()])
            assert slow.is_written.wait(PATIENCE_S)
            taken: Future[Any] = threads.submit(Owner, store)
            assert store.runs(["r1"]) == []
            assert not taken.done()
            slow.go_on.set()
            committed.result(PATIENCE_S)
            taken.result(PATIENCE_S)
        assert store.runs(["r1"]) == [run()]
        with pytest.raises(Fenced):
            owner.commit(runs=[run(version=2)])
        old.close()

    @pytest.mark.parametrize("is_committed", [True, False])
    def test_a_connection_that_breaks_during_a_commit_leaves_it_open(
        self, world: SqlWorld, is_committed: bool
    ) -> None:
        world.make_store().close()
        database = world.make_database()
        store = SqlStore(database, "default")
        owner = Owner(store)
        mended = break_commits(database, is_committed)
        with pytest.raises(OutcomeUnknown):
            owner.commit(runs=[run()])
        mended()
        Owner(store)
        assert store.runs(["r1"]) == ([run()] if is_committed else [])
        store.close()

    def test_an_empty_database_is_not_taken_for_a_new_one(self, world: SqlWorld) -> None:
        database = world.make_database()
        with pytest.raises(SchemaMismatch, match="tq-broker history migrate"):
            SqlStore(database, "default")
        assert migrate(world.make_database()) == 0
        SqlStore(world.make_database(), "default").close()
        assert migrate(world.make_database()) == migrations.VERSION

    def test_a_newer_schema_is_refused(self, world: SqlWorld, store: Store) -> None:
        world.execute("UPDATE tq_schema SET version = 1000")
        said = f"version 1000.*{migrations.VERSION}"
        with pytest.raises(SchemaMismatch, match=said):
            SqlStore(world.make_database(), "default")
        with pytest.raises(SchemaMismatch, match=said):
            migrate(world.make_database())

    def test_migrations_make_the_tables_that_statements_are_written_for(
        self, world: SqlWorld, store: Store
    ) -> None:
        engine = world.make_database().engine
        found = inspect(engine)
        for table in schema.metadata.sorted_tables:
            columns = found.get_columns(table.name)
            assert [column["name"] for column in columns] == table.columns.keys()
            assert [column["nullable"] for column in columns] == [
                column.nullable for column in table.columns
            ], table.name
            key = found.get_pk_constraint(table.name)["constrained_columns"]
            assert key == table.primary_key.columns.keys()
        engine.dispose()

    def test_two_that_migrate_at_once_do_it_once(self, world: SqlWorld) -> None:
        with ThreadPoolExecutor(2) as threads:
            versions = list(threads.map(migrate, [world.make_database() for _ in range(2)]))
        assert sorted(versions) == [0, migrations.VERSION]

    def test_a_table_that_is_gone_is_told_without_the_statement(
        self, world: SqlWorld, store: Store
    ) -> None:
        world.execute("ALTER TABLE tq_runs RENAME TO mislaid")
        with pytest.raises(StoreUnavailable, match="tq_runs") as caught:
            store.runs(["r1"])
        assert "SELECT" not in str(caught.value)


def break_commits(database: Database, is_committed: bool) -> Callable[[], None]:
    """Break the connection just after, or before, each commit until the answer is called."""
    dialect: Any = database.engine.dialect
    commit = dialect.do_commit

    def broken(connection: Any) -> None:
        if is_committed:
            commit(connection)
        connection.driver_connection.close()
        raise dialect.loaded_dbapi.OperationalError("broken")

    def mend() -> None:
        dialect.do_commit = commit

    dialect.do_commit = broken
    return mend
