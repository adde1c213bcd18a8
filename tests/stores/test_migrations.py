"""Versions of the schema; that migrations work is in the contract of stores."""

from __future__ import annotations

import pytest

from tq_broker.stores.migrations import VERSION, check_version
from tq_broker.stores.store import SchemaMismatch


def test_the_version_of_this_release_is_right() -> None:
    check_version(VERSION, "sqlite:///x.db")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (0, f"sqlite:///x.db holds no history yet .*version {VERSION}.*tq-broker history migrate"),
        (VERSION + 1, f"version {VERSION + 1}.* up to {VERSION}.*newer"),
    ],
)
def test_another_is_refused_with_both_numbers_and_what_to_do(found: int, said: str) -> None:
    with pytest.raises(SchemaMismatch, match=said):
        check_version(found, "sqlite:///x.db")
