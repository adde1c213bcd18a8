from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tq_broker.exceptions import InvalidArgument
from tq_broker.history.options import HistoryOptions


def test_defaults_are_good() -> None:
    options = HistoryOptions()
    assert options.retention == timedelta(days=7)
    assert "@" in options.identity


@pytest.mark.parametrize(
    "wrong",
    [
        {"retention": timedelta(seconds=1)},
        {"retention": 7},
        {"max_cached_runs": 0},
        {"max_cached_runs": True},
        {"max_cached_bytes": -1},
        {"prefetch": 65_536},
        {"prefetch": "500"},
        {"identity": ""},
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        HistoryOptions(**wrong)
