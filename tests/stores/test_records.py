"""Records: as many values as columns, and back again."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from tests.contracts.store import FULL, run
from tq_broker.stores import records, schema
from tq_broker.stores.store import Batch, EventRow, InboxRow, OutboxRow

pairs = st.tuples(st.integers(0, 3), st.integers(0, 30))


@given(st.lists(pairs))
def test_stretches_hold_exactly_what_was_sent(sent: list[tuple[int, int]]) -> None:
    found = records.stretches(sent)
    held = [(shard, seq) for shard, first, last in found for seq in range(first, last + 1)]
    assert held == sorted(set(sent))
    for one, other in itertools.pairwise(found):
        assert one[0] < other[0] or one[2] + 1 < other[1], "they could be one"


@given(st.lists(st.binary(max_size=5)), st.integers(0, 20))
def test_rows_are_within_their_bytes_but_for_the_first(data: list[bytes], bytes_max: int) -> None:
    rows = [EventRow("r", number, 1, part) for number, part in enumerate(data)]
    found = list(records.within(rows, bytes_max))
    assert found == rows[: len(found)]
    assert bool(found) == bool(rows)
    assert len(found) == 1 or sum(len(row.data) for row in found) <= bytes_max
    left = rows[len(found) :]
    assert not left or sum(len(row.data) for row in [*found, left[0]]) > bytes_max


def test_a_run_comes_back_from_its_columns() -> None:
    for row in (FULL, run()):
        record = dict(zip(schema.runs.columns.keys(), records.new_run_record(1, row), strict=True))
        assert records.run_of(SimpleNamespace(**record)) == row


def test_records_have_a_value_for_each_column() -> None:
    batch = Batch(
        {1: 1},
        inbox=[InboxRow(1, "m", 2, b"r")],
        events=[EventRow("r", 1, 2, b"d")],
        outbox=[OutboxRow(1, 2, b"d")],
    )
    assert records.inbox_records(7, batch) == [(7, 1, "m", 2, b"r")]
    assert records.event_records(7, batch) == [(7, "r", 1, 2, b"d")]
    assert records.outbox_records(7, batch) == [(7, 1, 2, b"d")]
    assert len(schema.inbox.columns) == len(schema.events.columns) == 5
    assert len(schema.outbox.columns) == 4


def test_a_members_shards_come_back() -> None:
    assert records.load_shards(records.dump_shards((1, 15))) == (1, 15)
    assert records.dump_texts(["a", 'é"']) == '["a","é\\""]'
