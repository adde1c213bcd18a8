"""Timers of a run, and what waits by them: sleeping, and conditions with a timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tq_broker.model.commands import CancelTimer, StartTimer
from tq_broker.model.events import TimerFired
from tq_broker.worker.ledger import Entry
from tq_broker.worker.loop import Timer, WorkflowLoop
from tq_broker.worker.situation import Situation
from tq_broker.workflow.errors import NondeterminismError


class ReplayTimers:
    """The owner of the run's event loop."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation
        # Its other methods are there, put in by a loop that mypy cannot follow.
        self.loop = WorkflowLoop(self, situation.seed)  # type: ignore[abstract]
        self._count = 0
        self._running: dict[str, Timer] = {}
        self._canceled: set[str] = set()
        self._conditions: dict[asyncio.Future[None], Callable[[], bool]] = {}

    # --- for the loop ---------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return self._situation.now_ms

    def check(self, what: str) -> None:
        self._situation.check(what)

    def loop_error(self, context: dict[str, Any]) -> None:
        self._situation.loop_error(context)

    def timer_started(self, timer: Timer, delay_ms: int) -> None:
        self._count += 1
        timer_id = str(self._count)
        command = StartTimer(timer_id=timer_id, start_to_fire_ms=delay_ms, summary=timer.summary)
        timer.fact = (timer_id, self._situation.ledger.add(command))
        self._running[timer_id] = timer

    def timer_canceled(self, timer: Timer) -> None:
        if timer.fact is None:
            return
        timer_id: str
        entry: Entry
        timer_id, entry = timer.fact
        if self._running.get(timer_id) is not timer:  # it has fired
            return
        self._situation.check("cancel a timer")
        del self._running[timer_id]
        if entry.sent:
            self._situation.ledger.add(CancelTimer(timer_id=timer_id))
            self._canceled.add(timer_id)
        else:
            self._situation.ledger.withdraw(entry)

    # --- events ---------------------------------------------------------------------------------

    def fired(self, event: TimerFired) -> None:
        timer = self._running.pop(event.timer_id, None)
        if timer is not None:
            self.loop.fire(timer)
        elif event.timer_id in self._canceled:
            self._canceled.discard(event.timer_id)  # both at once
        else:
            raise NondeterminismError(
                f"event {event.event_id} of the history is TimerFired"
                f"(timer_id={event.timer_id!r}); the code has started no such timer"
            )

    # --- waiting --------------------------------------------------------------------------------

    async def sleep(self, delay_s: float, summary: str) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        future = self.loop.create_future()
        timer = self.loop.timer(delay_s, _wake, future, summary=summary)
        try:
            await future
        finally:
            timer.cancel()

    async def wait_condition(
        self, condition: Callable[[], bool], timeout_s: float | None, summary: str
    ) -> None:
        if self._holds(condition):
            return
        if timeout_s is None:
            await self._until(condition, [])
            return
        late: list[bool] = []
        timer = self.loop.timer(timeout_s, self._give_up, condition, late, summary=summary)
        try:
            await self._until(condition, late)
        finally:
            timer.cancel()

    async def _until(self, condition: Callable[[], bool], late: list[bool]) -> None:
        # Whoever was woken first may have made the condition false again.
        while True:
            future = self.loop.create_future()
            self._conditions[future] = condition
            try:
                await future
            finally:
                self._conditions.pop(future, None)
            if self._holds(condition):
                return
            if late:
                raise asyncio.TimeoutError

    def _give_up(self, condition: Callable[[], bool], late: list[bool]) -> None:
        late.append(True)
        for future, waited_for in self._conditions.items():
            if waited_for is condition:
                _wake(future)

    def _holds(self, condition: Callable[[], bool]) -> bool:
        with self._situation.read_only("wait condition"):
            return bool(condition())

    def wake(self) -> bool:
        """Wake those whose condition holds now; whether there are any."""
        ready = [f for f, c in self._conditions.items() if not f.done() and self._holds_or_fails(c)]
        for future in ready:
            _wake(future)
        return bool(ready)

    def _holds_or_fails(self, condition: Callable[[], bool]) -> bool:
        try:
            return self._holds(condition)
        except Exception:  # it will raise the same where its author sees it
            return True


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
