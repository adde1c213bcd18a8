"""The tables; that migrations make them is in the contract of stores."""

from __future__ import annotations

from tq_broker.stores import schema


def test_every_row_belongs_to_a_namespace() -> None:
    tables = set(schema.metadata.sorted_tables) - {schema.version}
    assert {table.columns.keys()[0] for table in tables} == {"ns"}


def test_what_changes_of_a_run_is_not_what_it_is() -> None:
    assert not {"run_id", "workflow_id", "shard", "start_ms"} & {*schema.RUN_CHANGES}
    assert {"version", "state", "next_ms"} <= {*schema.RUN_CHANGES}
