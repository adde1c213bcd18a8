"""What only a file can do to a store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.contracts.store import Owner, run
from tq_broker.stores.sql import SqlStore, migrate
from tq_broker.stores.sqlite import Sqlite
from tq_broker.stores.store import EventRow, StoreUnavailable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


@pytest.fixture
def database(file: Path) -> Sqlite:
    database = Sqlite(make_url(f"sqlite:///{file}"))
    migrate(database)
    return database


@pytest.fixture
def store(database: Sqlite) -> Iterator[SqlStore]:
    store = SqlStore(database, "default")
    yield store
    store.close()


def test_commits_are_on_the_disk_and_readers_do_not_wait(database: Sqlite) -> None:
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    database.engine.dispose()


def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(
    database: Sqlite, store: SqlStore
) -> None:
    owner = Owner(store)
    # The limit is the connection's, of which there is one as long as one is used at a time.
    with database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="full"):
        owner.commit(runs=[run()], events=[EventRow("r1", 1, 1, bytes(100_000))])
    assert store.runs(["r1"]) == []
    owner.commit(runs=[run()])


@pytest.mark.parametrize(
    ("said", "is_undone"), [("database or disk is full", True), ("disk I/O error", False)]
)
def test_after_an_error_of_the_disk_a_commit_may_be_there(
    database: Sqlite, said: str, is_undone: bool
) -> None:
    assert database.is_undone(sqlite3.OperationalError(said)) is is_undone


def test_a_file_that_was_replaced_or_removed_takes_no_commits(file: Path, store: SqlStore) -> None:
    owner = Owner(store)
    for name in (file, *file.parent.glob("history.db-*")):
        name.rename(name.with_name(f"old-{name.name}"))
    with pytest.raises(StoreUnavailable, match="gone"):
        owner.commit(runs=[run()])
    other = Sqlite(make_url(f"sqlite:///{file}"))
    migrate(other)
    with pytest.raises(StoreUnavailable, match="replaced"):
        owner.commit(runs=[run()])


def test_a_file_that_is_no_database_is_unavailable(file: Path) -> None:
    file.write_bytes(b"x" * 5000)
    with pytest.raises(StoreUnavailable, match="not a database"):
        SqlStore(Sqlite(make_url(f"sqlite:///{file}")), "default")
