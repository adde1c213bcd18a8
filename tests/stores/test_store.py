"""The port's own values."""

from __future__ import annotations

import pytest

from tests.contracts.store import run
from tq_broker.exceptions import Bug
from tq_broker.stores.store import Batch, Fenced, InboxRow, OutboxRow, seq_before


@pytest.mark.parametrize(
    "parts",
    [
        {"inbox": [InboxRow(2, "m", 0)]},
        {"runs": [run(shard=2)]},
        {"outbox": [OutboxRow(2, 1, b"")]},
        {"sent": [(2, 1)]},
    ],
)
def test_a_batch_names_the_epoch_of_each_shard(parts: dict[str, list[object]]) -> None:
    Batch({1: 1, 2: 1}, **parts).check()
    with pytest.raises(Bug, match=r"\[2\]"):
        Batch({1: 1}, **parts).check()


def test_outbox_numbers_grow_with_owners_and_stay_exact_in_json() -> None:
    assert seq_before(1) + 10**12 < seq_before(2)
    assert seq_before(8000) + 10**12 < 2**53


def test_who_is_fenced_is_told_where() -> None:
    assert str(Fenced([3, 1])) == "shards [1, 3] have another owner"
    assert Fenced([3]).shards == {3}
