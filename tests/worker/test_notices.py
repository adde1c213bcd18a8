"""What is told of an attempt before it ends."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.worker.attempts import attempt_of, place
from tq_broker import activity
from tq_broker.model.tasks import WorkflowOrigin
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.notices import MOMENT_S, Notices
from tq_broker.worker.throttle import Throttle

ORIGIN = WorkflowOrigin("w", "r", "W", "a", 5)


@activity.defn
def work() -> None:
    pass


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.place = place(self.clock)
        self.told: list[tuple[str, Any]] = []
        throttle = Throttle(timedelta(seconds=30), timedelta(seconds=60))
        self.notices = Notices(self, self.place, throttle)  # type: ignore[arg-type]

    def notice(
        self, task: Any, status: Any, done: Any, *, started_ms: int, heartbeat: Any = None
    ) -> None:
        self.told.append((status.value, heartbeat))
        done()

    def attempt(self, **fields: Any) -> Attempt:
        return attempt_of(
            work,
            at=self.place,
            now=self.clock.monotonic(),
            on_heartbeat=self.notices.beat,
            **({"workflow": ORIGIN} | fields),
        )

    def tick(self, attempt: Attempt) -> None:
        self.notices.tick([attempt], self.clock.monotonic())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_history_is_told_of_an_attempt_that_is_not_over_in_a_moment(bench: Bench) -> None:
    attempt = bench.attempt()
    bench.tick(attempt)
    assert bench.told == []
    bench.clock.advance(MOMENT_S)
    bench.tick(attempt)
    bench.tick(attempt)
    assert bench.told == [("started", None)]


def test_what_is_known_to_have_begun_is_not_told_of_again(bench: Bench) -> None:
    attempt = bench.attempt()
    attempt.announced = True  # history has given it leave
    bench.notices.begun(attempt)
    bench.clock.advance(1)
    bench.tick(attempt)
    assert bench.told == []


def test_a_caller_who_is_no_workflow_is_told_only_when_it_must_be(bench: Bench) -> None:
    attempt = bench.attempt(workflow=None)
    bench.clock.advance(1)
    bench.tick(attempt)
    assert bench.told == []


def test_a_heartbeat_tells_that_the_attempt_has_begun_and_how_far_it_is(bench: Bench) -> None:
    bench.attempt().heartbeat("half")
    assert bench.told == [("started", None), ("heartbeat", [msgspec.Raw(b'"half"')])]


def test_heartbeats_without_details_are_told_of_too(bench: Bench) -> None:
    bench.attempt().heartbeat()
    assert bench.told[-1] == ("heartbeat", [])


def test_heartbeats_are_thinned_out_and_the_last_is_told(bench: Bench) -> None:
    attempt = bench.attempt(heartbeat_ms=10_000)
    for step in range(100):
        attempt.heartbeat(step)
    assert len(bench.told) == 2
    bench.clock.advance(8)
    bench.tick(attempt)
    bench.tick(attempt)
    assert bench.told[2:] == [("heartbeat", [msgspec.Raw(b"99")])]
