"""`SqlStore` keeps the contract on PostgreSQL, and what only a server can do to it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import make_url

from integration.postgresql_server import PostgresqlServer
from tests.contracts.store import Owner, SqlStoreContract, SqlWorld, run
from tq_broker.exceptions import InvalidArgument
from tq_broker.stores.opening import open_store
from tq_broker.stores.postgresql import Postgresql
from tq_broker.stores.sql import SqlStore
from tq_broker.stores.store import InboxRow, OutcomeUnknown, Store, StoreUnavailable


class PostgresqlWorld(SqlWorld):
    def __init__(self, server_url: str) -> None:
        self._server = make_url(server_url)
        self.url = self._server.set(database=f"t{secrets.token_hex(4)}")
        self._databases: list[Postgresql] = []
        self.on_server(f"CREATE DATABASE {self.url.database}")

    def make_database(self) -> Postgresql:
        self._databases.append(Postgresql(self.url))
        return self._databases[-1]

    def on_server(self, statement: str) -> None:
        server = str(self._server).replace("+psycopg", "")
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(statement)

    def end_connections(self) -> None:
        """Of all who use the database."""
        self.on_server(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{self.url.database}'"
        )

    def close(self) -> None:
        for database in self._databases:
            database.engine.dispose()
        self.on_server(f"DROP DATABASE {self.url.database} WITH (FORCE)")


def _is_acquired(store: Store, owner: Owner) -> bool:
    try:
        store.acquire(owner.epochs, "other", 0)
    except StoreUnavailable:
        return False
    return True


class TestPostgresqlStore(SqlStoreContract):
    @pytest.fixture
    def world(self, postgresql_url: str) -> Iterator[PostgresqlWorld]:
        world = PostgresqlWorld(postgresql_url)
        yield world
        world.close()

    def test_connections_that_were_cut_are_replaced(
        self, world: PostgresqlWorld, store: Store, owner: Owner
    ) -> None:
        world.end_connections()
        with pytest.raises(StoreUnavailable):
            store.runs(["r1"])
        owner.commit(runs=[run()])
        world.end_connections()
        with pytest.raises(StoreUnavailable):
            owner.commit(runs=[run(version=2)])
        owner.commit(runs=[run(version=2)])

    def test_an_owner_that_is_stopped_in_a_transaction_does_not_keep_its_shard(
        self, world: PostgresqlWorld, store: Store, owner: Owner
    ) -> None:
        """Without a way to stop a thread, its connection does the same."""
        database = world.make_database()
        with database.engine.connect() as connection:
            connection.exec_driver_sql("SELECT * FROM tq_shards FOR SHARE")
            Owner(store, 1)
            with pytest.raises(Exception, match="idle-in-transaction"):
                connection.exec_driver_sql("SELECT 1")
            connection.invalidate()

    def test_nor_does_one_that_is_stopped_while_it_writes(
        self, world: PostgresqlWorld, store: Store, owner: Owner
    ) -> None:
        url = world.url.set(drivername="postgresql").render_as_string()
        stopped = psycopg.connect(url)
        stopped.pipeline().__enter__()
        stopped.execute("SELECT epoch FROM tq_shards FOR SHARE")
        # The server does so, and waits for what follows.
        stopped.pgconn.send_flush_request()
        stopped.pgconn.flush()
        deadline = time.monotonic() + 30
        while not _is_acquired(store, owner):
            assert time.monotonic() < deadline
        stopped.close()

    def test_who_only_reads_for_long_is_left_alone(
        self, world: PostgresqlWorld, store: Store, owner: Owner
    ) -> None:
        """As pg_dump does."""
        url = world.url.set(drivername="postgresql").render_as_string()
        with psycopg.connect(url) as reader:
            reader.execute("SELECT * FROM tq_shards")
            time.sleep(6)  # longer than an owner that lives
            Owner(store, 1)
            assert reader.execute("SELECT 1").fetchone() == (1,)

    def test_commits_are_durable_whatever_the_server_is_set_to(
        self, world: PostgresqlWorld
    ) -> None:
        world.on_server(f"ALTER DATABASE {world.url.database} SET synchronous_commit = off")
        with world.make_database().engine.connect() as connection:
            shown = connection.exec_driver_sql("SHOW synchronous_commit")
            assert shown.scalar_one() == "on"

    def test_a_text_that_a_server_does_not_take_is_a_bad_argument(self, owner: Owner) -> None:
        for text in ("a\0b", "\ud800"):
            with pytest.raises(InvalidArgument):
                owner.commit(inbox=[InboxRow(1, text, 0)])
            with pytest.raises(InvalidArgument):
                owner.store.current([text])

    def test_what_cannot_be_reached_is_unavailable_and_keeps_its_password(
        self, world: PostgresqlWorld
    ) -> None:
        nowhere = world.url.set(port=1, password="secret", query={"password": "secret"})
        with pytest.raises(StoreUnavailable) as caught:
            open_store(nowhere.render_as_string(hide_password=False), "default")
        assert "secret" not in str(caught.value)
        assert "127.0.0.1" in str(caught.value)


def test_what_was_committed_outlives_a_crash(postgresql: PostgresqlServer) -> None:
    store = open_store(postgresql.url, "default", migrate=True)
    owner = Owner(store)
    owner.commit(runs=[run()])
    postgresql.kill()
    with pytest.raises((StoreUnavailable, OutcomeUnknown)):
        owner.commit(runs=[run(version=2)])
    postgresql.start()
    owner.commit(runs=[run(version=2)])
    assert [row.version for row in store.runs(["r1"])] == [2]
    assert isinstance(store, SqlStore)
    store.close()
