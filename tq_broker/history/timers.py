"""Timers of a run: started, and then fired or cancelled, once."""

from __future__ import annotations

from tq_broker.history.state import Timer
from tq_broker.history.turn import Turn
from tq_broker.model.commands import CancelTimer, StartTimer
from tq_broker.model.events import TimerCanceled, TimerFired, TimerStarted


def start(turn: Turn, command: StartTimer, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    event_id = turn.write(
        TimerStarted,
        timer_id=command.timer_id,
        start_to_fire_ms=command.start_to_fire_ms,
        summary=command.summary,
        workflow_task_completed_event_id=completed_event_id,
    )
    turn.run.timers[command.timer_id] = Timer(
        started_event_id=event_id, fire_ms=turn.now_ms + command.start_to_fire_ms
    )


def cancel(turn: Turn, command: CancelTimer, completed_event_id: int) -> None:
    """Carry out a command that was checked. A timer that has fired, but not yet in the workflow's
    eyes, has not fired."""
    timer_id = command.timer_id
    timer = turn.run.timers.pop(timer_id, None)
    started_event_id = _take_back(turn, timer_id) if timer is None else timer.started_event_id
    turn.write(
        TimerCanceled,
        timer_id=timer_id,
        started_event_id=started_event_id,
        workflow_task_completed_event_id=completed_event_id,
    )


def _take_back(turn: Turn, timer_id: str) -> int:
    buffered = turn.run.buffered
    for index, event in enumerate(buffered):
        if isinstance(event, TimerFired) and event.timer_id == timer_id:
            del buffered[index]
            return event.started_event_id
    raise AssertionError("the command was checked")


def tick(turn: Turn) -> None:
    """Fire what is due, in the order of the times."""
    timers = turn.run.timers
    due = [
        (timer.fire_ms, timer.started_event_id, timer_id)
        for timer_id, timer in timers.items()
        if timer.fire_ms <= turn.now_ms
    ]
    for _, started_event_id, timer_id in sorted(due):
        del timers[timer_id]
        turn.learn(TimerFired, timer_id=timer_id, started_event_id=started_event_id)
