from __future__ import annotations

from typing import Any

import pytest

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.limits import UNLIMITED, Limits
from tq_broker.model.parts import (
    ALL,
    EACH_KEY,
    Part,
    PartKind,
    PartTable,
    check_part,
    part_of,
)

FAST, SLOW = Limits(rate=100.0), Limits(rate=1.0)


def test_what_is_set_for_a_key_stands_in_place_of_what_is_set_for_each() -> None:
    table = PartTable({EACH_KEY: SLOW, Part(PartKind.KEY, "x"): FAST})
    assert table.of(Part(PartKind.KEY, "x")) == FAST
    assert table.of(Part(PartKind.KEY, "y")) == SLOW
    assert table.of(Part(PartKind.TYPE, "x")) == UNLIMITED
    exempt = table.changed(Part(PartKind.KEY, "x"), UNLIMITED)
    assert not exempt.is_limited("T", "x")
    assert exempt.changed(Part(PartKind.KEY, "x"), None).is_limited("T", "x")


def test_a_table_knows_since_when_a_concurrency_is_limited() -> None:
    two, three = Limits(concurrency=2), Limits(concurrency=3)
    table = PartTable().changed(EACH_KEY, two, 10).changed(EACH_KEY, three, 20)
    assert table.counted_ms == {EACH_KEY: 10}
    key = Part(PartKind.KEY, "x")
    assert table.changed(key, FAST, 30).counted_ms == {EACH_KEY: 10}
    freed = table.changed(key, UNLIMITED, 30)
    assert freed.changed(key, two, 40).counted_ms == {EACH_KEY: 10, key: 40}
    assert table.changed(EACH_KEY, SLOW, 50).counted_ms == {}


def test_a_task_is_under_the_limits_of_all_its_parts() -> None:
    table = PartTable({Part(PartKind.TYPE, "T"): SLOW})
    assert table.parts("T", "x") == (ALL, Part(PartKind.TYPE, "T"), Part(PartKind.KEY, "x"))
    assert table.is_limited("T", "")
    assert not table.is_limited("U", "x")
    assert table.changed(ALL, FAST).is_limited("U", "")


def test_parts_are_named_by_one_of_three() -> None:
    assert part_of(None, None, each_key=False) == ALL
    assert part_of("T", None, each_key=False) == Part(PartKind.TYPE, "T")
    assert part_of(None, "k", each_key=False) == Part(PartKind.KEY, "k")
    assert part_of(None, None, each_key=True) == EACH_KEY
    with pytest.raises(InvalidArgument, match="not several"):
        part_of("T", "k", each_key=False)
    assert [str(part) for part in (ALL, EACH_KEY, Part(PartKind.KEY, "k"))] == [
        "all",
        "each-key",
        "key k",
    ]


@pytest.mark.parametrize("name", ["", "x" * 257, "\ud800", 5])
def test_names_have_bounds(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="1 to 256 bytes"):
        check_part(Part(PartKind.KEY, name))


def test_what_has_no_name_gets_none() -> None:
    with pytest.raises(InvalidArgument, match="each-key has no name"):
        check_part(Part(PartKind.EACH_KEY, "x"))
