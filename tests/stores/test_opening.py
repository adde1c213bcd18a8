"""URLs of stores."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tq_broker.exceptions import InvalidArgument
from tq_broker.stores import migrations
from tq_broker.stores.memory import MemoryStore
from tq_broker.stores.opening import migrate_store, open_store
from tq_broker.stores.store import SchemaMismatch


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must start with memory://, sqlite:/// or postgresql"),
        ("history.db", "must start with"),
        ("mysql://u:secret@h/db", "not mysql://"),
        ("postgresql://u:secret@h/db", r"postgresql\+psycopg://"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///x.db?mode=ro", "nothing more"),
        ("sqlite://host/x.db", "sqlite:///history.db"),
        ("postgresql+psycopg://u:sec:ret/x@h:1x/db", "%2F"),
    ],
)
def test_a_wrong_url_is_told_what_is_right(url: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        open_store(url, "default")
    assert "sec" not in str(caught.value)


def test_memory_is_a_store_of_its_own() -> None:
    first, second = (open_store("memory://", "default") for _ in range(2))
    first.acquire([1], "a", 0)
    assert isinstance(second, MemoryStore)
    assert second.shards(0) == []
    with pytest.raises(InvalidArgument, match="no schema"):
        migrate_store("memory://")


def test_a_file_is_made_when_asked_and_not_by_mistake(tmp_path: Path) -> None:
    file = tmp_path / "history.db"
    url = f"sqlite:///{file}"
    with pytest.raises(SchemaMismatch, match="no history yet"):
        open_store(url, "default")
    assert not file.exists()
    assert migrate_store(url) == (0, migrations.VERSION)
    store = open_store(url, "default")
    assert store.url == url
    store.close()
    open_store(f"sqlite:///{tmp_path / 'other.db'}", "default", migrate=True).close()


def test_a_missing_driver_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "tq_broker.stores.postgresql", raising=False)
    with pytest.raises(InvalidArgument, match=r"pip install 'tq-broker\[postgresql\]'.*psycopg"):
        open_store("postgresql+psycopg://u:secret@h/db", "default")


def test_who_asks_for_no_database_needs_none() -> None:
    program = (
        "import sys, tq_broker, tq_broker.stores.opening;"
        " assert not {'sqlalchemy', 'psycopg'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
