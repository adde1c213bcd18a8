"""The tables as this release knows them; `tq_broker.stores.migrations` makes them.

A database may hold several namespaces: every row begins with the number of its namespace, ``ns``.
Texts are ordered by their code points everywhere, as in Python, not by a server's locale. The
columns of a table stand in the order of its records (`tq_broker.stores.records`).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

metadata = MetaData()

_TEXT = Text().with_variant(Text(collation="C"), "postgresql")
_NUMBER = BigInteger()
_BYTES = LargeBinary()


def _key(name: str, kind: TypeEngine[Any] = _NUMBER) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


def _value(name: str, kind: TypeEngine[Any] = _NUMBER, *, nullable: bool = False) -> Column[Any]:
    return Column(name, kind, nullable=nullable)


version = Table("tq_schema", metadata, _value("version", Integer()))
"""One row: the number of the last migration."""

namespaces = Table(
    "tq_namespaces",
    metadata,
    Column("ns", Integer(), primary_key=True),
    Column("name", _TEXT, nullable=False, unique=True),
)

shards = Table(
    "tq_shards", metadata, _key("ns"), _key("shard"), _value("epoch"), _value("owner", _TEXT)
)

members = Table(
    "tq_members",
    metadata,
    _key("ns"),
    _key("member_id", _TEXT),
    _value("identity", _TEXT),
    _value("joined_ms"),
    _value("seen_ms"),
    _value("shards", _BYTES),
)
"""``shards`` is MessagePack."""

inbox = Table(
    "tq_inbox",
    metadata,
    _key("ns"),
    _key("shard"),
    _key("message_id", _TEXT),
    _value("at_ms"),
    _value("reply", _BYTES, nullable=True),
)

runs = Table(
    "tq_runs",
    metadata,
    _key("ns"),
    _key("run_id", _TEXT),
    _value("workflow_id", _TEXT),
    _value("shard"),
    _value("workflow_type", _TEXT),
    _value("task_queue", _TEXT),
    _value("start_ms"),
    _value("version"),
    _value("is_current", Boolean()),
    _value("status", _TEXT),
    _value("next_ms", nullable=True),
    _value("close_ms"),
    _value("history_length"),
    _value("history_bytes"),
    _value("details", _BYTES),
    _value("state", _BYTES),
    _value("deployment_version", _TEXT),
)
"""``details`` is MessagePack of what is only shown. What changes begins with ``version``."""

events = Table(
    "tq_events",
    metadata,
    _key("ns"),
    _key("run_id", _TEXT),
    _key("first_event_id"),
    _value("count"),
    _value("data", _BYTES),
)

outbox = Table(
    "tq_outbox", metadata, _key("ns"), _key("shard"), _key("seq"), _value("data", _BYTES)
)

_names = runs.columns.keys()
RUN_CHANGES = _names[_names.index("version") :]
"""The columns of a run that change."""
