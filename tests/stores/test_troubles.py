"""Troubles: who must do something about an error of a database."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.stores.troubles import Trouble, of_kind, of_postgresql, of_sqlite

AWAY, REFUSED, DATA, OURS = Trouble.AWAY, Trouble.REFUSED, Trouble.DATA, Trouble.OURS


def kinds(error: Exception) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("database is locked", AWAY),
        ("database or disk is full", AWAY),
        ("disk I/O error", AWAY),
        ("attempt to write a readonly database", AWAY),
        ("what no release has said so far", AWAY),
        ("unable to open database file", REFUSED),
        ("no such table: tq_runs", REFUSED),
        ("file is not a database", REFUSED),
        ("database disk image is malformed", REFUSED),
        ("no such column: x", REFUSED),
        ("table tq_runs has no column named x", REFUSED),
        ('near "SELEC": syntax error', OURS),
        ("too many SQL variables", OURS),
        ("cannot start a transaction within a transaction", OURS),
    ],
)
def test_sqlite_is_known_by_its_words(text: str, trouble: Trouble) -> None:
    assert of_sqlite(kinds(sqlite3.OperationalError(text)), text) is trouble


@pytest.mark.parametrize(
    ("statement", "trouble"),
    [
        ("SELECT x FROM gone", REFUSED),
        ("SELECT x", REFUSED),
        ("SELEC 1", OURS),
        ("SELECT (", OURS),
        ("SELECT zeroblob(10000000000)", DATA),
        ("SELECT json('{')", OURS),
        ("SELECT nothing(1)", OURS),
        ("INSERT INTO t VALUES (NULL)", OURS),
        ("INSERT INTO t VALUES (1, 2)", OURS),
        ("COMMIT", OURS),
    ],
)
def test_and_these_are_its_words(statement: str, trouble: Trouble) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (y NOT NULL)")
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute(statement)
    connection.close()
    assert of_sqlite(kinds(caught.value), str(caught.value)) is trouble


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (psycopg.errors.DiskFull(), AWAY),
        (psycopg.errors.ReadOnlySqlTransaction(), AWAY),
        (psycopg.errors.DeadlockDetected(), AWAY),
        (psycopg.errors.SerializationFailure(), AWAY),
        (psycopg.errors.LockNotAvailable(), AWAY),
        (psycopg.errors.TooManyConnections(), AWAY),
        (psycopg.errors.AdminShutdown(), AWAY),
        (psycopg.errors.CannotConnectNow(), AWAY),
        (psycopg.errors.InternalError_(), AWAY),
        (psycopg.errors.InvalidPassword(), REFUSED),
        (psycopg.errors.InvalidCatalogName(), REFUSED),
        (psycopg.errors.UndefinedTable(), REFUSED),
        (psycopg.errors.InsufficientPrivilege(), REFUSED),
        (psycopg.errors.UndefinedColumn(), REFUSED),
        (psycopg.errors.UndefinedFunction(), OURS),
        (psycopg.errors.SyntaxError(), OURS),
        (psycopg.errors.NotNullViolation(), OURS),
        (psycopg.errors.UntranslatableCharacter(), DATA),
        (psycopg.InterfaceError("the connection is closed"), AWAY),
        (psycopg.ProgrammingError("the query has 1 placeholder but 2 were passed"), OURS),
        (psycopg.DataError("text fields cannot contain NUL"), DATA),
        (psycopg.OperationalError("connection refused"), AWAY),
        (psycopg.OperationalError('FATAL: password authentication failed for user "x"'), REFUSED),
        (psycopg.OperationalError('FATAL:  database "x" does not exist'), REFUSED),
        (psycopg.OperationalError("FATAL:  the database system is starting up"), AWAY),
    ],
)
def test_postgresql_is_known_by_its_code_or_else_by_its_words(
    error: psycopg.Error, trouble: Trouble
) -> None:
    assert of_postgresql(kinds(error), error.sqlstate, str(error)) is trouble


@given(st.lists(st.text(max_size=5), max_size=4), st.text(max_size=5), st.text(max_size=20))
def test_whatever_else_is_said_is_waited_for(unknown: list[str], state: str, text: str) -> None:
    assert of_kind(unknown) is AWAY
    assert of_postgresql(unknown, f"5{state}", text) is AWAY
