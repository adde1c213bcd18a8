"""Slots of sessions: held from their start, until they are cancelled."""

from __future__ import annotations

from typing import Any

import pytest

from tests.worker.attempts import FakeOwner, attempt_of
from tq_broker import activity
from tq_broker.exceptions import CancelledError
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.session_slots import SessionSlots


@activity.defn
async def session() -> None:
    raise AssertionError("it is never run")


class FakeKeeper:
    def __init__(self) -> None:
        self.kept: list[Attempt] = []

    def keep(self, attempt: Attempt) -> None:
        self.kept.append(attempt)


class Bench:
    def __init__(self) -> None:
        self.owner, self.keeper = FakeOwner(), FakeKeeper()
        self.slots = SessionSlots(self.owner, self.keeper)  # type: ignore[arg-type]

    def attempt(self) -> Attempt:
        return attempt_of(session)

    def told(self) -> list[Any]:
        found = []
        while not self.owner.ends.empty():
            found.append(self.owner.ends.get_nowait())
        return found


def test_a_session_is_leased_from_its_start_and_nothing_is_run() -> None:
    bench = Bench()
    attempts = [bench.attempt(), bench.attempt()]
    bench.slots.start(attempts)
    assert bench.keeper.kept == attempts
    bench.slots.close(0.0)
    assert bench.told() == []


@pytest.mark.parametrize("verb", ["cancel", "abandon"])
def test_it_ends_once(verb: str) -> None:
    bench = Bench()
    attempt = bench.attempt()
    bench.slots.start([attempt])
    for _ in range(2):
        getattr(bench.slots, verb)(attempt)
    [end] = bench.told()
    assert (end.attempt, end.how) == (attempt, "raised")
    assert isinstance(end.value, CancelledError)


def test_one_that_was_closed_on_its_way_here_ends_at_once() -> None:
    bench = Bench()
    attempt = bench.attempt()
    attempt.request_cancel()
    bench.slots.start([attempt])
    assert len(bench.told()) == 1


def test_what_is_not_held_cannot_end() -> None:
    bench = Bench()
    bench.slots.cancel(bench.attempt())
    assert bench.told() == []
