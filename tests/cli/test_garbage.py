"""How garbage is collected in processes of ours."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from tq_broker.cli import garbage

settle: Callable[[], None] = garbage.settle
"""Itself: within tests it is replaced."""


@pytest.fixture
def collector_kept() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("collector_kept")
def test_what_is_there_is_looked_at_no_more_and_the_young_less_often() -> None:
    _, *others = gc.get_threshold()
    settle()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold() == (garbage.OBJECTS, *others)
