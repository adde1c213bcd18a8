"""Activities that run within a workflow task, on the executors of other activities.

They have no queue and no messages: their retries are made here, as long as the pauses are short,
and their end is told to the workflow task that waits for it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tq_broker import retry
from tq_broker.activity import CompleteAsyncError
from tq_broker.clock import Timer, epoch_ms
from tq_broker.exceptions import TimeoutType
from tq_broker.model import failure as failures
from tq_broker.model.failure import Failure
from tq_broker.model.message import Message
from tq_broker.model.names import Names, QueueName
from tq_broker.model.tasks import ActivityTask, TaskBody, WorkflowOrigin
from tq_broker.worker import watch
from tq_broker.worker.attempt import Attempt, Place, State
from tq_broker.worker.conclusion import failure_of
from tq_broker.worker.executors import Executor
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.registry import Registry
from tq_broker.worker.slots import Slots
from tq_broker.worker.tuning import LocalActivitySlotInfo
from tq_broker.worker.turn import LocalActivity, LocalActivityDone

OnDone = Callable[[LocalActivityDone], None]
Key = tuple[str, int]
"""Run id and sequence number."""

_decode_arguments = msgspec.json.Decoder(list[msgspec.Raw]).decode


class LocalActivities:
    """The local activities of one worker; the `Owner` of what its executors run. Thread-safe.

    ``executors`` is given to it by the worker after they are made.
    """

    executors: Mapping[str, Executor]

    def __init__(self, registry: Registry, place: Place, slots: Slots) -> None:
        self._registry = registry
        self._place = place
        self._clock = place.clock
        self._names = Names(place.namespace)
        self._slots = slots
        self._lock = threading.RLock()
        self._open: dict[Key, _Local] = {}
        self._attempts: dict[Attempt, _Local] = {}
        self._running: set[Attempt] = set()
        self._waiting: deque[_Local] = deque()

    @property
    def running(self) -> int:
        """Slots in use."""
        return len(self._running)

    def start(
        self, local: LocalActivity, origin: WorkflowOrigin, task_queue: str, on_done: OnDone
    ) -> None:
        """Run ``local``; its type must be registered.

        ``on_done`` is called once, on any thread, unless `drop` comes first.
        """
        going = _Local(local, origin, task_queue, on_done)
        with self._lock:
            self._open[going.key] = going
        self._begin(going)

    def cancel(self, run_id: str, seq: int) -> None:
        """Cancellation of a local activity was requested."""
        with self._lock:
            going = self._open.get((run_id, seq))
            if going is None:
                return
            going.cancelled = True
            attempt = going.attempt
        if attempt is None:
            self._done(going, failure=failures.canceled())
        else:
            attempt.request_cancel(self.executors[attempt.where].cancel)

    def drop(self, run_id: str) -> None:
        """Nobody waits for the local activities of a run any more: stop them."""
        with self._lock:
            dropped = [going for key, going in self._open.items() if key[0] == run_id]
            for going in dropped:
                going.close()
                del self._open[going.key]
                if going.attempt is not None:
                    self._attempts.pop(going.attempt, None)
        for going in dropped:
            self._stop(going.attempt)

    def _stop(self, attempt: Attempt | None) -> None:
        if attempt is not None and attempt.code_running:
            attempt.request_cancel(self.executors[attempt.where].abandon)

    def tick(self, now: float) -> None:
        """End attempts whose time is over; begin what there are slots for by now."""
        self._slots.tick()
        self._start_waiting()
        with self._lock:
            attempts = list(self._attempts)
            waiting = list(self._waiting)
        now_ms = epoch_ms(self._clock)
        for going in waiting:
            late = going.timeout(now_ms)
            if late is not None:
                self._done(going, failure=failures.timed_out(late))
        for attempt, timeout in watch.overdue(attempts, now):
            self._failed(attempt, failures.timed_out(timeout))
            self._stop(attempt)

    # --- attempts -------------------------------------------------------------------------------

    def _begin(self, going: _Local) -> None:
        """Make the next attempt, if there is a slot and still time."""
        with self._lock:
            if self._open.get(going.key) is not going:
                return
            going.timer = None
            late = going.timeout(epoch_ms(self._clock))
            if late is None and not self._slots.is_ready():
                self._waiting.append(going)
                return
            if late is None:
                going.attempt = attempt = self._attempt(going)
                self._attempts[attempt] = going
                self._running.add(attempt)
                self._slots.take(attempt, LocalActivitySlotInfo(going.local.activity_type))
        if late is not None:
            self._done(going, failure=failures.timed_out(late))
        else:
            self.executors[attempt.where].start([attempt])

    def _attempt(self, going: _Local) -> Attempt:
        registered = self._registry.find(going.local.activity_type)
        assert registered is not None, "whoever starts it has looked"
        now_ms = epoch_ms(self._clock)
        place = _Inside(self._names.activity(going.task_queue))
        attempt = Attempt(
            going.task(now_ms),
            TaskBody(args=_decode_arguments(going.local.arguments)),
            registered,
            place,
            self._place,
            window=place,
            now=self._clock.monotonic(),
            now_ms=now_ms,
            on_heartbeat=_ignore,
        )
        attempt.is_local = attempt.windowless = True
        return attempt

    def _code_stopped(self, attempt: Attempt) -> None:
        with self._lock:
            attempt.code_running = False
            self._running.discard(attempt)
            self._slots.release(attempt)
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Begin what waits for a slot, as far as there are free ones."""
        while True:
            with self._lock:
                if not self._waiting or not self._slots.is_ready():
                    return
                following = self._waiting.popleft()
            self._begin(following)

    def _end(self, attempt: Attempt) -> _Local | None:
        """The attempt has ended; returns whose it is, unless that is over already."""
        with self._lock:
            attempt.move(State.ENDED)
            going = self._attempts.pop(attempt, None)
            if going is not None:
                going.attempt = None
            return going

    # --- ends of code: `tq_broker.worker.executors.Owner` ---------------------------------------

    def returned(self, attempt: Attempt, result: bytes) -> None:
        self._code_stopped(attempt)
        going = self._end(attempt)
        if going is not None:
            self._done(going, result=result)

    def raised(self, attempt: Attempt, error: BaseException) -> None:
        if isinstance(error, CompleteAsyncError):
            message = "a local activity cannot be completed asynchronously"
            self.failed(
                attempt, failures.application(message, "InvalidArgument", non_retryable=True)
            )
        else:
            cancelled = attempt.cancel_requested
            self.failed(attempt, failure_of(error, cancel_requested=cancelled, closing=False))

    def failed(self, attempt: Attempt, failure: Failure) -> None:
        self._code_stopped(attempt)
        self._failed(attempt, failure)

    def _failed(self, attempt: Attempt, failure: Failure) -> None:
        going = self._end(attempt)
        if going is None:
            return
        task = attempt.task
        left = task.left(epoch_ms(self._clock))
        decision = retry.decide(task.retry_policy, failure.attempt(task.attempt), left)
        if isinstance(decision, retry.GiveUp) or going.cancelled:
            self._done(going, failure=failure)
            return
        delay_ms = round(decision.delay.total_seconds() * 1000)
        if delay_ms > going.local.local_retry_threshold_ms:
            self._done(going, failure=failure, backoff_ms=delay_ms)
            return
        going.number += 1
        due = self._clock.monotonic() + delay_ms / 1000
        going.timer = self._clock.call_at(due, lambda: self._begin(going))

    def _done(self, going: _Local, **how: Any) -> None:
        with self._lock:
            if self._open.pop(going.key, None) is None:
                return
            going.close()
        going.on_done(LocalActivityDone(seq=going.local.seq, attempt=going.number, **how))


class _Local:
    """A local activity under way."""

    __slots__ = (
        "attempt",
        "cancelled",
        "key",
        "local",
        "number",
        "on_done",
        "origin",
        "task_queue",
        "timer",
    )

    def __init__(
        self, local: LocalActivity, origin: WorkflowOrigin, task_queue: str, on_done: OnDone
    ) -> None:
        self.local = local
        self.key: Key = (origin.run_id, local.seq)
        self.origin = origin
        self.task_queue = task_queue
        self.on_done = on_done
        self.number = local.attempt
        self.attempt: Attempt | None = None
        """The one that runs; ``None`` while it waits for a slot or for its next attempt."""
        self.cancelled = False
        self.timer: Timer | None = None

    def task(self, now_ms: int) -> ActivityTask:
        """The next attempt, as a task that was never sent."""
        local = self.local
        return ActivityTask(
            activity_id=f"{self.origin.run_id}/local/{local.seq}",
            activity_type=local.activity_type,
            task_queue=self.task_queue,
            body=b"",
            attempt=self.number,
            scheduled_ms=local.scheduled_ms,
            attempt_scheduled_ms=now_ms,
            start_to_close_ms=local.start_to_close_ms,
            schedule_to_start_ms=local.schedule_to_start_ms,
            schedule_to_close_ms=local.schedule_to_close_ms,
            retry_policy=local.retry_policy,
            headers=local.headers,
            workflow=self.origin,
        )

    def timeout(self, now_ms: int) -> TimeoutType | None:
        """Which timeout has fired before the next attempt could start, if one has."""
        waited_ms = now_ms - self.local.scheduled_ms
        if 0 < self.local.schedule_to_close_ms <= waited_ms:
            return TimeoutType.SCHEDULE_TO_CLOSE
        if self.number == 1 and 0 < self.local.schedule_to_start_ms <= waited_ms:
            return TimeoutType.SCHEDULE_TO_START
        return None

    def close(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class _Inside:
    """Where a local activity came from: no queue has had it."""

    message = Message(body=b"", message_id="local")
    routing_key = ""
    redelivered = False

    def __init__(self, queue: QueueName) -> None:
        self._queue = queue

    @property
    def queue(self) -> Any:
        return self._queue

    @property
    def name(self) -> str:
        return str(self._queue)

    @property
    def task_queue(self) -> str:
        return self._queue.parts[-1]

    def ack(self) -> None:
        """Nobody waits for it."""

    def reject(self, *, requeue: bool) -> None:
        raise AssertionError("a local activity goes back nowhere")

    def released(self) -> None:
        """No window counts it."""

    waits = False

    def admit(self, resume: Callable[[Passage], None] | None = None) -> Passage | None:
        """Always: it is a part of a workflow task."""
        return FREE


def _ignore(attempt: Attempt) -> None:
    """Heartbeats of local activities go nowhere."""
