"""The ledger must find what it is for: without this, a green run of the others says nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.ledger import SUCCESS, Event, Ledger, check

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield ledger
    ledger.close()


def well(key: str) -> list[Event]:
    """The rows of an activity with which all is well."""
    return [
        Event("intent", key),
        Event("accepted", key),
        Event("start", key, 1, "w"),
        Event("effect", key, 1, "w"),
        Event("done", key, note=SUCCESS),
    ]


def without(events: list[Event], word: str) -> list[Event]:
    return [event for event in events if event.word != word]


def test_nothing_is_found_where_all_is_well() -> None:
    assert not check([*well("a"), *well("b")], once=["a", "b"]).faults


def test_a_planted_loss_is_found() -> None:
    assert check([*well("a"), *without(well("b"), "done")]).faults == {"lost": ["b"]}


def test_what_was_never_accepted_may_go_either_way() -> None:
    assert not check([*without(well("a"), "accepted"), Event("intent", "b")]).faults


def test_a_planted_second_start_of_one_attempt_is_found() -> None:
    double = Event("start", "a", 1, "another")
    assert check([*well("a"), double]).faults == {"doubled": [("a", 1)]}


def test_a_further_attempt_is_a_fault_only_where_there_must_be_none() -> None:
    events = [*well("a"), Event("start", "a", 2, "another")]
    assert not check(events).faults
    assert check(events).attempts == {"a": 2}
    assert check(events, once=["a"]).faults == {"repeated": ["a"]}


def test_a_success_without_an_effect_is_found() -> None:
    assert check(without(well("a"), "effect")).faults == {"undone": ["a"]}


def test_what_nobody_asked_for_and_a_second_answer_are_found() -> None:
    events = [*well("a"), Event("done", "a", note=SUCCESS), Event("start", "b", 1, "w")]
    assert check(events).faults == {"unexpected": ["a", "b"]}


def test_a_row_survives_its_writer(ledger: Ledger) -> None:
    program = (
        "import os, signal; from integration.ledger import Ledger\n"
        f"Ledger({ledger.path!r}).write('start', 'a', 'b', attempt=3, worker='w')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [(e.word, e.key, e.attempt, e.worker) for e in ledger.events()] == [
        ("start", "a", 3, "w"),
        ("start", "b", 3, "w"),
    ]
    assert ledger.events()[0].pid not in (0, os.getpid())
    assert ledger.count("start") == 2
    assert [event.key for event in ledger.events("start", "b")] == ["b"]


def test_nothing_can_be_taken_back(ledger: Ledger) -> None:
    ledger.write("intent", "a")
    for statement in ("DELETE FROM event", "UPDATE event SET key = 'b'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            ledger._file.execute(statement)
