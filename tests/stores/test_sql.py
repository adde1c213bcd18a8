"""`SqlStore` keeps the contract on SQLite; ``integration`` has the same for PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.contracts.store import SqlStoreContract, SqlWorld
from tq_broker.stores.sqlite import Sqlite


class SqliteWorld(SqlWorld):
    def __init__(self, directory: Path) -> None:
        self._url = make_url(f"sqlite:///{directory / 'history.db'}")

    def make_database(self) -> Sqlite:
        return Sqlite(self._url)


class TestSqlStore(SqlStoreContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> SqliteWorld:
        return SqliteWorld(tmp_path)
