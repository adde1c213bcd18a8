"""The ledger: what was asked, begun, effected and answered, written outside the system under test.

Client and activities write it, tq_broker never does. It is one SQLite file that many processes
append to; a row survives the `kill -9` of whoever wrote it. `check` compares both ends of it.

The words of a row: ``intent`` (about to start an activity), ``accepted`` (the start returned),
``start`` (an attempt began), ``effect`` (it has done what it is for), ``done`` (the client has its
outcome; the note tells which). ``key`` names the activity: the client makes it up.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

_TABLE = """
CREATE TABLE IF NOT EXISTS event (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    word TEXT NOT NULL,
    key TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT NOT NULL,
    pid INTEGER NOT NULL,
    note TEXT NOT NULL
);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON event
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON event
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""


@dataclass(frozen=True, slots=True)
class Event:
    """One row. ``attempt`` is 0 and ``worker`` empty where a client wrote it."""

    word: str
    key: str
    attempt: int = 0
    worker: str = ""
    pid: int = 0
    note: str = ""
    at: float = 0.0


class Ledger:
    """An open ledger. Thread-safe; not to be carried over a fork."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._lock = threading.Lock()
        self._file = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        self._file.execute("PRAGMA journal_mode=WAL")
        # Enough for processes that are killed, which is all that we do to them.
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.executescript(_TABLE)

    def write(
        self, word: str, *keys: str, attempt: int = 0, worker: str = "", note: str = ""
    ) -> None:
        """Append one row per key; they are kept when this returns."""
        rows = [(time.time(), word, key, attempt, worker, os.getpid(), note) for key in keys]
        with self._lock, self._file:
            self._file.executemany(
                "INSERT INTO event (at, word, key, attempt, worker, pid, note)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def events(
        self, word: str | None = None, key: str | None = None, worker: str | None = None
    ) -> list[Event]:
        """All rows in the order in which they were written, or those that fit."""
        with self._lock:
            rows = self._file.execute(
                "SELECT word, key, attempt, worker, pid, note, at FROM event"
                " WHERE (?1 IS NULL OR word = ?1) AND (?2 IS NULL OR key = ?2)"
                " AND (?3 IS NULL OR worker = ?3) ORDER BY number",
                (word, key, worker),
            ).fetchall()
        return [Event(*row) for row in rows]

    def count(self, word: str) -> int:
        """How many rows have ``word``."""
        with self._lock:
            found = self._file.execute("SELECT count(*) FROM event WHERE word = ?", (word,))
            return int(found.fetchone()[0])

    def close(self) -> None:
        """Close the file; it stays."""
        with self._lock:
            self._file.close()


@dataclass(slots=True)
class Findings:
    """What `check` found.

    Attributes:
        lost: Accepted, and no outcome came.
        undone: The outcome says that it succeeded, but there is no effect.
        doubled: ``(key, attempt)`` that began more than once.
        repeated: At-most-once keys that began more than once, under whatever attempt.
        unexpected: Begun, effected or answered without ever having been asked for; or answered
            twice.
        effects: How many keys had 1, 2, ... effects.
        attempts: The highest attempt that began, per key, if it is not the first.
    """

    lost: list[str] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    doubled: list[tuple[str, int]] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    effects: Counter[int] = field(default_factory=Counter)
    attempts: dict[str, int] = field(default_factory=dict)

    @property
    def faults(self) -> dict[str, list[object]]:
        """The findings that must not be, by their name; empty if all is well."""
        names = ("lost", "undone", "doubled", "repeated", "unexpected")
        return {name: found for name in names if (found := list(getattr(self, name)))}


SUCCESS = "ok"


def check(events: Iterable[Event], *, once: Collection[str] = ()) -> Findings:
    """Compare what was asked with what was done. Pure.

    Args:
        once: The keys of activities with ``maximum_attempts=1``.
    """
    keys: dict[str, set[str]] = {word: set() for word in ("intent", "accepted", "effect", "done")}
    starts: Counter[tuple[str, int]] = Counter()
    effects: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    succeeded: set[str] = set()
    asked: set[str] = set()
    strange: set[str] = set()
    for event in events:
        asked.update([event.key] if event.word == "intent" else [])
        if event.key not in asked:
            strange.add(event.key)
        if event.word == "start":
            starts[event.key, event.attempt] += 1
        else:
            keys[event.word].add(event.key)
        effects[event.key] += event.word == "effect"
        answers[event.key] += event.word == "done"
        if event.word == "done" and event.note == SUCCESS:
            succeeded.add(event.key)
    begun = Counter(key for key, _ in starts.elements())
    highest: dict[str, int] = {}
    for key, attempt in starts:
        highest[key] = max(attempt, highest.get(key, 0))
    return Findings(
        lost=sorted(keys["accepted"] - keys["done"]),
        undone=sorted(succeeded - keys["effect"]),
        doubled=sorted(one for one, count in starts.items() if count > 1),
        repeated=sorted(key for key in once if begun[key] > 1),
        unexpected=sorted(strange | {key for key, count in answers.items() if count > 1}),
        effects=Counter(count for count in effects.values() if count),
        attempts={key: attempt for key, attempt in highest.items() if attempt > 1},
    )
