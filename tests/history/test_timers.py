"""Timers of a run."""

from __future__ import annotations

from tests.history.stage import Stage
from tq_broker.model import commands as c
from tq_broker.model import events as e


def a_timer(timer_id: str = "t", ms: int = 1_000) -> c.StartTimer:
    return c.StartTimer(timer_id=timer_id, start_to_fire_ms=ms)


def test_a_timer_fires_in_time_and_once() -> None:
    stage = Stage()
    stage.answer(a_timer())
    stage.wait(999)
    assert not stage.last.changed
    stage.wait(1)
    assert stage.names(5) == ["TimerFired", "WorkflowTaskScheduled"]
    stage.wait(9_999)
    assert not stage.last.changed


def test_a_timer_waits_for_nothing() -> None:
    """Not for what may have come before, and not for a timeout that does."""
    stage = Stage(run_timeout_ms=500)
    stage.answer(a_timer(), a_timer("later", 1_500))
    stage.wait(1_000, heard_ms=0)
    assert "TimerFired" in stage.names(5)
    assert stage.run.next_ms() == stage.now_ms + 500


def test_a_timer_of_no_time_fires_when_the_run_is_woken() -> None:
    stage = Stage()
    stage.answer(a_timer(ms=0))
    assert stage.run.next_ms() == stage.now_ms
    stage.wake()
    assert isinstance(stage.the(e.TimerFired), e.TimerFired)


def test_timers_fire_in_the_order_of_their_times() -> None:
    stage = Stage()
    stage.answer(a_timer("b", 20), a_timer("c", 10), a_timer("a", 20))
    stage.wait(20)
    fired = [event.timer_id for event in stage.history if isinstance(event, e.TimerFired)]
    assert fired == ["c", "b", "a"]


def test_a_cancelled_timer_does_not_fire() -> None:
    stage = Stage()
    stage.answer(a_timer())
    stage.tell_signal()
    stage.answer(c.CancelTimer(timer_id="t"))
    assert stage.the(e.TimerCanceled).started_event_id == 5
    assert stage.run.next_ms() is None


def test_a_timer_may_be_started_and_cancelled_in_one_breath() -> None:
    stage = Stage()
    stage.answer(a_timer(), c.CancelTimer(timer_id="t"), a_timer())
    assert stage.names(4) == ["TimerStarted", "TimerCanceled", "TimerStarted"]


def test_a_timer_that_fired_unseen_can_still_be_cancelled() -> None:
    stage = Stage()
    stage.answer(a_timer("t", 10), a_timer("u", 10))
    stage.tell_signal()
    stage.wait(10)
    assert not stage.last.events
    stage.answer(c.CancelTimer(timer_id="u"))
    assert stage.names(10) == ["TimerCanceled", "TimerFired", "WorkflowTaskScheduled"]
