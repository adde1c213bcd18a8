"""Who puts the clock forward, and when."""

from __future__ import annotations

import math

import pytest

from tq_broker.testing.manual_clock import ManualClock
from tq_broker.testing.skipping_clock import SkippingClock
from tq_broker.testing.time_skipper import TimeSkipper

DAY_S = 86400.0


class Stage:
    """A skipper, and what it is told comes next."""

    def __init__(self) -> None:
        self.clock = SkippingClock(ManualClock(monotonic=0.0))
        self.due: float | None = math.inf
        self.skipper = TimeSkipper(self.clock, lambda: self.due)

    def step(self) -> float:
        self.skipper.step()
        return self.clock.monotonic()


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_it_goes_to_what_comes_next_while_somebody_waits(stage: Stage) -> None:
    stage.due = DAY_S
    assert stage.step() == 0
    stage.skipper.begin_wait()
    assert stage.step() == DAY_S
    stage.due = 3 * DAY_S
    stage.skipper.end_wait()
    assert stage.step() == DAY_S


def test_it_stays_while_something_is_under_way(stage: Stage) -> None:
    stage.skipper.begin_wait()
    stage.due = None
    assert stage.step() == 0


def test_it_stays_when_nothing_will_come(stage: Stage) -> None:
    stage.skipper.begin_wait()
    assert stage.step() == 0


def test_what_is_overdue_moves_nothing(stage: Stage) -> None:
    stage.clock.skip(DAY_S)
    stage.skipper.begin_wait()
    stage.due = 1.0
    assert stage.step() == DAY_S


def test_a_sleeper_is_woken_on_time(stage: Stage) -> None:
    with stage.skipper.sleeping(10.0):
        assert stage.step() == 10.0
    stage.due = 100.0
    assert stage.step() == 10.0


def test_what_comes_earlier_than_a_sleeper_wakes_is_not_passed(stage: Stage) -> None:
    stage.due = 4.0
    with stage.skipper.sleeping(10.0):
        assert stage.step() == 4.0


def test_where_skipping_is_disabled_only_sleepers_pass(stage: Stage) -> None:
    stage.skipper.begin_wait()
    stage.due = 100.0
    with stage.skipper.disabled():
        assert stage.step() == 0
        with stage.skipper.sleeping(10.0):
            assert stage.step() == 10.0
    assert stage.step() == 100.0


def test_its_thread_does_the_steps_and_ends(stage: Stage) -> None:
    clock = SkippingClock()
    skipper = TimeSkipper(clock, lambda: math.inf)
    skipper.start()
    with skipper.sleeping(clock.monotonic() + DAY_S):
        clock.sleep(DAY_S)
    skipper.close()


def test_closing_what_was_not_started_is_harmless(stage: Stage) -> None:
    stage.skipper.close()
