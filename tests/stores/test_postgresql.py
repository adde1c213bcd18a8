"""What is known of PostgreSQL without a server; ``integration`` has the rest."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tq_broker.stores.postgresql import Postgresql


def database(url: str) -> Postgresql:
    return Postgresql(make_url(url))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:secret@host:1234/db",
        "postgresql+psycopg://user@host:1234/db?password=secret",
    ],
)
def test_a_url_is_shown_without_its_password(url: str) -> None:
    assert database(url).url == "postgresql+psycopg://user@host:1234/db"
    assert "secret" not in repr(database(url).engine)


def test_an_error_of_this_side_leaves_a_commit_open() -> None:
    assert not database("postgresql+psycopg://h/db").is_undone(psycopg.OperationalError("broken"))
