"""Connections: the database's errors, and what becomes of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tq_broker.exceptions import Bug, InvalidArgument
from tq_broker.stores.connections import Connections
from tq_broker.stores.sqlite import Sqlite
from tq_broker.stores.store import StoreRefused, StoreUnavailable


@pytest.fixture
def database(tmp_path: Path) -> Sqlite:
    return Sqlite(make_url(f"sqlite:///{tmp_path / 'x.db'}"))


@pytest.fixture
def connections(database: Sqlite) -> Iterator[Connections]:
    connections = Connections(database)
    with connections.transaction() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    yield connections
    connections.close()


def test_a_block_that_raises_has_written_nothing(
    database: Sqlite, connections: Connections
) -> None:
    def insert_and_fail() -> None:
        with connections.transaction() as connection:
            database.begin(connection)
            connection.exec_driver_sql("INSERT INTO t VALUES (1)")
            raise KeyError

    with pytest.raises(KeyError):
        insert_and_fail()
    with connections.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 0


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (sqlite3.OperationalError("database is locked"), StoreUnavailable),
        (sqlite3.OperationalError("no such table: tq_runs"), StoreRefused),
        (sqlite3.ProgrammingError("Incorrect number of bindings supplied."), Bug),
        (sqlite3.DataError("too big"), InvalidArgument),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), InvalidArgument),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
)
def test_errors_of_the_driver_are_those_of_the_port(
    connections: Connections, error: Exception, becomes: type[Exception]
) -> None:
    with pytest.raises(becomes) as caught, connections.reading():
        raise error
    assert caught.value is error or str(error) in str(caught.value)


def test_an_error_says_nothing_about_values(connections: Connections) -> None:
    with pytest.raises(StoreUnavailable) as caught, connections.reading() as connection:
        connection.exec_driver_sql("INSERT INTO gone VALUES (?)", ("secret",))
    assert "gone" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "INSERT" not in str(caught.value)


def test_after_the_close_there_are_none(connections: Connections) -> None:
    connections.close()
    with pytest.raises(StoreUnavailable, match="closed"), connections.reading():
        pytest.fail("it is open")
