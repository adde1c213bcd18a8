"""Histories that were written by this and older releases, and what must not change them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import get_args

import pytest

from tests.histories.comparison import comparable
from tests.histories.features import HERE, JOURNEYS, WORKFLOWS, skipping
from tq_broker.model.events import Event, WorkflowTaskTimedOut
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.worker import Replayer

FILES = sorted(HERE.glob("*/*.json"))

# What only a worker that hangs leads to; `tests/history/test_workflow_task.py` has histories of it.
NOT_WRITTEN = {WorkflowTaskTimedOut}


def read(file: Path) -> WorkflowHistory:
    name = file.stem.rpartition(".")[0]
    return WorkflowHistory.from_json(name, file.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_history_of_a_release_replays(file: Path) -> None:
    history = read(file)
    assert json.loads(history.to_json()) == json.loads(file.read_text())
    asyncio.run(Replayer(workflows=WORKFLOWS).replay_workflow(history))


def test_the_histories_have_events_of_every_type() -> None:
    found = {type(event) for file in FILES for event in read(file).events}
    assert found == set(get_args(Event)) - NOT_WRITTEN


def test_every_journey_has_its_history() -> None:
    assert {file.stem.rpartition(".")[0] for file in FILES} >= JOURNEYS.keys()


def test_histories_are_the_same_with_a_cache_and_without() -> None:
    with_cache = sure(asyncio.run(skipping(max_cached_workflows=1000)))
    without = sure(asyncio.run(skipping(max_cached_workflows=0)))
    assert with_cache.keys() == without.keys()
    for name, history in with_cache.items():
        assert comparable(name, history) == comparable(name, without[name]), name


def sure(found: dict[str, WorkflowHistory]) -> dict[str, WorkflowHistory]:
    """Without the last runs of the cron: nights pass while its end is on its way."""
    return {
        name: history
        for name, history in found.items()
        if not name.startswith("nightly.") or name in ("nightly.1", "nightly.2")
    }
