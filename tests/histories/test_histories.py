"""Histories that were written by this and older releases, and what must not change them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

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
    with_cache = asyncio.run(skipping(max_cached_workflows=1000))
    without = asyncio.run(skipping(max_cached_workflows=0))
    assert with_cache.keys() == without.keys()
    for name, history in with_cache.items():
        assert comparable(name, history) == comparable(name, without[name]), name


_IDS = {"run_id", "first_run_id", "new_run_id", "continued_run_id", "update_id", "worker_id"}
_TIMES = {"time_ms", "execution_deadline_ms", "first_task_backoff_ms"}
_OF_THE_CACHE = {"sticky"}
_SIZES = {"history_bytes"}
_OTHER = _IDS | _TIMES | _OF_THE_CACHE | _SIZES

# Their values, but not what they do, hang on the run's id and on the time.
_DRAWN = ("tools.", "local-activities.")
# The order in which they come hangs on threads.
_BY_CHANCE = ("crowd.", "crowd-")


def comparable(name: str, history: WorkflowHistory) -> list[Any]:
    """``history`` without what is different in every run."""
    if name.startswith(_BY_CHANCE):
        return []
    if name.startswith(_DRAWN):
        return [type(event) for event in history.events]
    return [_without(msgspec.to_builtins(event)) for event in history.events]


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(one) for key, one in value.items() if key not in _OTHER}
    return value
