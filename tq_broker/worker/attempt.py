"""One attempt in this worker's hands: its state, its deadlines, and what its code sees of it.

Two things end separately: the *attempt*, whose outcome is reported once, and its *code*, which
holds a slot until it returns. An attempt that timed out has ended while its code may still run.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec

from tq_broker.activity import Info, Signal
from tq_broker.clock import Clock
from tq_broker.converter import DataConverter, PayloadConverter
from tq_broker.exceptions import TimeoutType
from tq_broker.model.control import TaskToken
from tq_broker.model.tasks import ActivityTask, TaskBody
from tq_broker.queues.broker import Delivery
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.poller import Source
from tq_broker.worker.registry import Registered


class State(enum.Enum):
    """Where an attempt stands."""

    RUNNING = "running"
    AWAITED = "awaited"
    """Its code has returned; somebody else completes it by its task token."""
    ENDED = "ended"


_MOVES = {
    State.RUNNING: {State.AWAITED, State.ENDED},
    State.AWAITED: {State.ENDED},
    State.ENDED: set[State](),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where attempts run: what all attempts of a worker have in common."""

    namespace: str
    host: str
    worker_id: str
    identity: str
    clock: Clock
    converter: DataConverter
    shutdown: Signal


class Attempt:
    """See the module. It is the `tq_broker.activity.Context` of its code."""

    __slots__ = (
        "_cancelled",
        "_info",
        "_lock",
        "announced",
        "begun_at",
        "body",
        "cancel_requested",
        "close_at",
        "close_type",
        "code_running",
        "delivery",
        "details",
        "handle",
        "heartbeat_at",
        "is_local",
        "held_since",
        "leasing",
        "on_heartbeat",
        "passage",
        "place",
        "registered",
        "saved",
        "saved_at",
        "shielding",
        "started_ms",
        "state",
        "task",
        "window",
        "windowless",
    )

    def __init__(
        self,
        task: ActivityTask,
        body: TaskBody,
        registered: Registered,
        delivery: Delivery,
        place: Place,
        *,
        window: Source,
        now: float,
        now_ms: int,
        on_heartbeat: Callable[[Attempt], None],
    ) -> None:
        self.task = task
        self.body = body
        self.registered = registered
        self.delivery = delivery
        self.place = place
        self.window = window
        """Where its delivery came from."""
        self.started_ms = now_ms
        self.begun_at = self.held_since = now
        self.state = State.RUNNING
        self.code_running = True
        self.windowless = False
        """Its delivery is acknowledged or leased: no prefetch window counts it."""
        self.leasing = False
        self.cancel_requested = False
        self.details: list[msgspec.Raw] | None = None
        self.saved: list[msgspec.Raw] | None = None
        """The heartbeat details in the lease or known to history, as of ``saved_at``."""
        self.saved_at = float("-inf")
        self.passage: Passage = FREE
        """What a limit of its task queue is told of it."""
        self.is_local = False
        """It runs within a workflow task, and has no delivery of its own."""
        self.announced = False
        """Whoever scheduled it knows that it has begun."""
        self.handle: Any = None
        """The executor's own."""
        self.shielding: Callable[[], AbstractContextManager[None]] = nullcontext
        self.on_heartbeat = on_heartbeat
        self._lock: threading.Lock | None = None
        self._info: Info | None = None
        self._cancelled: Signal | None = None
        self.close_at, self.close_type = _close(task, now, now_ms)
        self.heartbeat_at = now + task.heartbeat_ms / 1000 if task.heartbeat_ms else None

    @property
    def heartbeat_ms(self) -> int:
        """The heartbeat timeout; 0 without one."""
        return self.task.heartbeat_ms

    @property
    def where(self) -> str:
        """The executor that runs it: ``async``, ``thread`` or ``process``."""
        return self.registered.where

    def move(self, to: State) -> bool:
        """Go to state ``to``; False if somebody else has ended the attempt before.

        The owner's lock must be held.
        """
        if to not in _MOVES[self.state]:
            return False
        self.state = to
        return True

    def arguments(self) -> list[Any]:
        """The decoded arguments. Raises `Malformed` if they do not fit the type hints."""
        args = self.body.args
        if not args and not self.registered.definition.dynamic:
            return []
        return self.registered.arguments(args)

    # --- tq_broker.activity.Context -------------------------------------------------------------

    @property
    def info(self) -> Info:
        if self._info is None:
            info = _info(self.task, self.place, self.body, self.started_ms)
            self._info = replace(info, is_local=True) if self.is_local else info
        return self._info

    @property
    def cancelled(self) -> Signal:
        if self._cancelled is None:
            self._cancelled = Signal()
        if self.cancel_requested:
            self._cancelled.set()
        return self._cancelled

    @property
    def worker_shutdown(self) -> Signal:
        return self.place.shutdown

    @property
    def payload_converter(self) -> PayloadConverter:
        return self.place.converter.payload_converter

    def heartbeat(self, *details: Any) -> None:
        encode = self.place.converter.payload_converter.encode
        self.beat([msgspec.Raw(encode(detail)) for detail in details])

    def shield(self) -> AbstractContextManager[None]:
        return self.shielding()

    # ---------------------------------------------------------------------------------------------

    def beat(self, details: list[msgspec.Raw]) -> None:
        """It lives: put the heartbeat deadline off, and remember ``details``."""
        if self.heartbeat_at is not None:
            self.heartbeat_at = self.place.clock.monotonic() + self.task.heartbeat_ms / 1000
        self.details = details
        self.on_heartbeat(self)

    def request_cancel(self, interrupt: Callable[[Attempt], None] | None = None) -> None:
        """Tell the code that cancellation was requested.

        Args:
            interrupt: Interrupts it. That comes first: a coroutine that waits to be told must not
                sometimes go on and be interrupted only then.
        """
        self.cancel_requested = True
        if interrupt is not None:
            interrupt(self)
        if self._cancelled is not None:
            self._cancelled.set()


def _close(task: ActivityTask, now: float, now_ms: int) -> tuple[float | None, TimeoutType]:
    start_s = task.start_to_close_ms / 1000
    left = task.left(now_ms)
    if left is not None and (not start_s or left.total_seconds() < start_s):
        return now + left.total_seconds(), TimeoutType.SCHEDULE_TO_CLOSE
    return (now + start_s if start_s else None), TimeoutType.START_TO_CLOSE


def _info(task: ActivityTask, place: Place, body: TaskBody, started_ms: int) -> Info:
    token = TaskToken(place.namespace, place.worker_id, task.activity_id, task.attempt)
    decode = place.converter.payload_converter.decoder(Any)
    origin = task.workflow
    return Info(
        activity_id=task.activity_id if origin is None else origin.activity_id,
        activity_type=task.activity_type,
        attempt=task.attempt,
        task_queue=task.task_queue,
        namespace=place.namespace,
        task_token=token.dump(),
        host=place.host,
        worker_id=place.worker_id,
        identity=place.identity,
        scheduled_time=_time(task.scheduled_ms),
        current_attempt_scheduled_time=_time(task.attempt_scheduled_ms or task.scheduled_ms),
        started_time=_time(started_ms),
        start_to_close_timeout=_duration(task.start_to_close_ms),
        schedule_to_start_timeout=_duration(task.schedule_to_start_ms),
        schedule_to_close_timeout=_duration(task.schedule_to_close_ms),
        heartbeat_timeout=_duration(task.heartbeat_ms),
        heartbeat_details=_details(body.heartbeat, decode),
        retry_policy=task.retry_policy,
        priority=task.priority,
        fairness_key=task.fairness_key or None,
        workflow_id=None if origin is None else origin.workflow_id,
        workflow_run_id=None if origin is None else origin.run_id,
        workflow_type=None if origin is None else origin.workflow_type,
        headers=task.headers,
        traffic_rule=task.rule or None,
    )


def _details(raws: Sequence[msgspec.Raw], decode: Callable[[bytes], Any]) -> tuple[Any, ...]:
    return tuple(decode(bytes(raw)) for raw in raws)


_TIME_MS_MAX = 253_402_300_799_000
"""The last second that a `datetime` has; messages may say any number."""


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(min(ms, _TIME_MS_MAX) / 1000, timezone.utc)


def _duration(ms: int) -> timedelta | None:
    return timedelta(milliseconds=ms) if ms else None
