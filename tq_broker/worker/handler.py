"""From delivery to report: takes deliveries, runs what is to be run, and has the end told.

A delivery's way: the poller hands it over, `intake` decides what becomes of it, an executor runs
it, the `reporter` tells how it ended, and only then is it acknowledged.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from tq_broker.activity import CompleteAsyncError
from tq_broker.clock import Clock, epoch_ms
from tq_broker.common import ActivityIDConflictPolicy
from tq_broker.exceptions import Malformed, TimeoutType, TqBrokerError
from tq_broker.model import envelope
from tq_broker.model import failure as failures
from tq_broker.model.failure import Failure
from tq_broker.model.names import Kind, Names
from tq_broker.model.tasks import ActivityTask, Status
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker import intake
from tq_broker.worker.attempt import Attempt, Place
from tq_broker.worker.conclusion import claim_token, failure_of, shut_down
from tq_broker.worker.executors import Executor
from tq_broker.worker.intake import Action, Decision, Situation
from tq_broker.worker.keeper import Keeper
from tq_broker.worker.poller import Source
from tq_broker.worker.registry import Registered, Registry
from tq_broker.worker.reporter import Reporter, Then, claim_queue_name
from tq_broker.worker.table import Table

log = logging.getLogger(__name__)

HOLD_S = 0.05
"""How long a task may wait here for a slot before others get it."""
CLAIM_WITHIN_S = 10.0


class Handler:
    """Handles the deliveries of one worker; the `Owner` of what its executors run.

    Thread-safe: deliveries come on the broker's reading thread, ends on the executors' threads,
    deadlines on the worker's supervisor. The parts that call back into it are given to it by
    the worker after they are made.
    """

    keeper: Keeper
    settings: SettingsLog
    executors: Mapping[str, Executor]

    def __init__(
        self,
        registry: Registry,
        table: Table,
        reporter: Reporter,
        sender: Sender,
        place: Place,
        slots: int,
    ) -> None:
        self._registry = registry
        self._table = table
        self._reporter = reporter
        self._sender = sender
        self._names: Names = sender.names
        self._place = place
        self._clock: Clock = place.clock
        self._slots = slots
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._unreported = 0
        self._claiming = 0
        self._closing = False

    @property
    def unreported(self) -> int:
        """Ends and returns whose message the broker has not confirmed yet."""
        return self._unreported

    def close_intake(self) -> None:
        """Begin nothing more: what is waiting and what still comes is given back."""
        self._closing = True
        self.give_back_waiting(all_of_them=True)

    # --- taking ---------------------------------------------------------------------------------

    def on_deliveries(self, consumer: Source, deliveries: Sequence[Delivery]) -> None:
        """Deliveries of a task queue have come."""
        begun: dict[str, list[Attempt]] = {}
        now_ms = epoch_ms(self._clock)
        for delivery in deliveries:
            try:
                attempt = self._take(consumer, delivery, now_ms)
            except Malformed as error:
                self._park(consumer, delivery, error.reason)
                continue
            if attempt is not None:
                begun.setdefault(attempt.where, []).append(attempt)
        for where, attempts in begun.items():
            self.executors[where].start(attempts)

    def _take(self, consumer: Source, delivery: Delivery, now_ms: int) -> Attempt | None:
        task = envelope.read_task(delivery.message, consumer.task_queue)
        registered = self._registry.find(task.activity_type)
        decision = intake.decide(
            task,
            Situation(
                now_ms=now_ms,
                redelivered=delivery.redelivered,
                known=self._table.known(task),
                cancelled=self.settings.is_cancelled(task.activity_id, task.scheduled_ms),
                serves=registered is not None,
                registered=self._registry.types,
                answerable=task.reply_to is None or self._names.owns(task.reply_to, Kind.REPLY),
                closing=self._closing,
                free_slots=self._free_slots(),
            ),
        )
        if decision.action is Action.RUN and registered is not None:
            return self._begin(consumer, delivery, task, registered, now_ms)
        self._dispose(decision, consumer, delivery, task)
        return None

    def _free_slots(self) -> int:
        return self._slots - self._table.running() - self._claiming - len(self._waiting)

    def _begin(
        self,
        consumer: Source,
        delivery: Delivery,
        task: ActivityTask,
        registered: Registered,
        now_ms: int,
    ) -> Attempt:
        """The attempt begins: from here on its end will be told."""
        attempt = Attempt(
            task,
            envelope.read_task_body(task, self._place.converter),
            registered,
            delivery,
            self._place,
            window=consumer,
            now=self._clock.monotonic(),
            now_ms=now_ms,
            on_heartbeat=self.keeper.beat,
        )
        self._table.add(attempt)
        if task.schedule_to_start_ms:
            self._reporter.notice(task, Status.STARTED, b"null", _nothing)
        return attempt

    def _dispose(
        self, decision: Decision, consumer: Source, delivery: Delivery, task: ActivityTask
    ) -> None:
        """Act on a decision other than to run it now."""
        match decision.action:
            case Action.HOLD:
                self._waiting.append(
                    _Waiting(self._clock.monotonic(), consumer, delivery, task)
                )
            case Action.CLAIM:
                with self._lock:
                    self._claiming += 1
                self._sender.in_background(lambda: self._claim(consumer, delivery, task))
            case Action.GIVE_BACK:
                self._give_back(consumer, delivery)
            case Action.ADOPT:
                self._adopt(consumer, delivery, task)
            case Action.DROP:
                self._ack(consumer, delivery)
            case Action.LOST:
                self._fail(consumer, delivery, task, intake.lost())
            case Action.END if decision.failure is not None:
                self._fail(consumer, delivery, task, decision.failure)
            case Action.PARK:
                self._park(consumer, delivery, decision.reason)
            case unknown:
                raise AssertionError(f"{unknown} is not for here")

    def _fail(
        self, consumer: Source, delivery: Delivery, task: ActivityTask, failure: Failure
    ) -> None:
        """The attempt ends without having run here."""
        body = envelope.read_task_body(task, self._place.converter)
        done = self._reported(lambda: self._ack(consumer, delivery))
        self._reporter.failed(task, body, failure, epoch_ms(self._clock), done)

    def _park(self, consumer: Source, delivery: Delivery, reason: str) -> None:
        done = self._reported(lambda: self._ack(consumer, delivery))
        self._reporter.park(delivery.message, consumer.name, reason, done)

    def _give_back(self, consumer: Source, delivery: Delivery) -> None:
        done = self._reported(lambda: self._ack(consumer, delivery))
        self._reporter.give_back(delivery.message, consumer.queue, done)

    def _adopt(self, consumer: Source, delivery: Delivery, task: ActivityTask) -> None:
        """The delivery of a running attempt was lost with its connection; here it is again."""
        attempt = self._table.find(task.task_queue, task.activity_id, task.attempt)
        if attempt is None:  # it has ended in this very moment, and that is being told
            self._ack(consumer, delivery)
            return
        if not attempt.windowless:
            attempt.window.released()
        attempt.delivery, attempt.window, attempt.windowless = delivery, consumer, False
        attempt.held_since = self._clock.monotonic()

    def _claim(self, consumer: Source, delivery: Delivery, task: ActivityTask) -> None:
        """Claim the task's id on the broker, and run it or answer for it; blocks."""
        queue = claim_queue_name(self._names, task.task_queue, task.activity_id)
        plan = topology.claim_queue(self._names, queue, claim_token(task), task.id_retention_ms)
        try:
            mine = self._sender.broker.claim(plan, self._clock.monotonic() + CLAIM_WITHIN_S)
        except TqBrokerError as error:
            log.warning("id of %s not claimed: %s", task.activity_id, error)
            self._give_back(consumer, delivery)
            return
        finally:
            with self._lock:
                self._claiming -= 1
        # Only the holder of a claim makes further attempts, so these need not win it again.
        if mine or task.attempt > 1:
            self._start(consumer, delivery, task)
            return
        done = self._reported(lambda: self._ack(consumer, delivery))
        joins = task.id_conflict is ActivityIDConflictPolicy.USE_EXISTING
        status = Status.JOINED if joins else Status.REFUSED
        self._reporter.notice(task, status, msgspec.json.encode(str(queue)), done)

    def _start(self, consumer: Source, delivery: Delivery, task: ActivityTask) -> None:
        """Run a task that was claimed, or that has waited for a slot."""
        registered = self._registry.find(task.activity_type)
        assert registered is not None, "what is not served neither waits nor claims"
        try:
            attempt = self._begin(consumer, delivery, task, registered, epoch_ms(self._clock))
        except Malformed as error:
            self._park(consumer, delivery, error.reason)
        else:
            self.executors[attempt.where].start([attempt])

    def give_back_waiting(self, *, all_of_them: bool = False) -> None:
        """Put tasks that have waited for a slot for too long back on their queue."""
        latest = self._clock.monotonic() - HOLD_S
        while self._waiting and (all_of_them or self._waiting[0].since <= latest):
            try:
                waiting = self._waiting.popleft()
            except IndexError:  # a slot became free in this very moment
                return
            self._give_back(waiting.consumer, waiting.delivery)

    # --- ends of code: `tq_broker.worker.executors.Owner` -----------------------------------------

    def returned(self, attempt: Attempt, result: bytes) -> None:
        self._code_stopped(attempt)
        if self._table.end(attempt):
            self._complete(attempt, result)

    def raised(self, attempt: Attempt, error: BaseException) -> None:
        if isinstance(error, CompleteAsyncError):
            self._code_stopped(attempt)
            if self._table.awaits(attempt) and not attempt.windowless:
                self.keeper.keep(attempt)
            return
        failure = failure_of(
            error, cancel_requested=attempt.cancel_requested, closing=self._closing
        )
        self.failed(attempt, failure)

    def failed(self, attempt: Attempt, failure: Failure) -> None:
        self._code_stopped(attempt)
        self.end(attempt, failure)

    def _code_stopped(self, attempt: Attempt) -> None:
        self._table.stopped(attempt)
        if self._waiting and not self._closing:
            try:
                waiting = self._waiting.popleft()
            except IndexError:  # given back in this very moment
                return
            if waiting.task.id_retention_ms:
                self._dispose(intake.CLAIM, waiting.consumer, waiting.delivery, waiting.task)
            else:
                self._start(waiting.consumer, waiting.delivery, waiting.task)

    # --- ends of attempts -------------------------------------------------------------------------

    def _complete(self, attempt: Attempt, result: bytes) -> None:
        task = attempt.task
        if task.reply_to is None and not task.id_retention_ms:
            self._release(attempt)
        else:
            done = self._reported(lambda: self._release(attempt))
            self._reporter.completed(task, result, attempt.started_ms, done)

    def end(self, attempt: Attempt, failure: Failure) -> None:
        """``attempt`` has failed, unless it has ended before; its code may still run."""
        if self._table.end(attempt):
            self._reporter.failed(
                attempt.task,
                attempt.body,
                failure,
                attempt.started_ms,
                self._reported(lambda: self._release(attempt)),
                heartbeat=attempt.details,
            )

    def complete(self, attempt: Attempt, result: bytes) -> None:
        """``attempt`` was completed by its task token."""
        if self._table.end(attempt):
            self._complete(attempt, result)

    def time_out(self, attempt: Attempt, timeout: TimeoutType) -> None:
        """A deadline of ``attempt`` is over."""
        details = [msgspec.json.decode(raw) for raw in attempt.details or ()]
        self.end(attempt, failures.timed_out(timeout, details))
        self._abandon(attempt)

    def leave_behind(self) -> None:
        """End what is still open, because the worker does: it is retried elsewhere."""
        for attempt in self._table.open():
            self.end(attempt, shut_down())
            self._abandon(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        if attempt.code_running:
            attempt.request_cancel()
            self.executors[attempt.where].abandon(attempt)

    def request_cancel(self, activity_id: str, at_ms: int) -> None:
        """Cancellation of an activity was requested; of a start before ``at_ms`` (epoch ms)."""
        for attempt in self._table.with_id(activity_id):
            if attempt.task.scheduled_ms <= at_ms:
                attempt.request_cancel()
                self._interrupt(attempt)

    def interrupt_all(self) -> None:
        """Cancel whatever runs, because the worker shuts down."""
        for attempt in self._table.open():
            self._interrupt(attempt)

    def _interrupt(self, attempt: Attempt) -> None:
        if attempt.code_running:
            self.executors[attempt.where].cancel(attempt)

    # --- acknowledging ----------------------------------------------------------------------------

    def _release(self, attempt: Attempt) -> None:
        """What follows from ``attempt`` is safe with the broker."""
        attempt.delivery.ack()
        self.leave_window(attempt)

    def leave_window(self, attempt: Attempt) -> None:
        """The delivery of ``attempt`` is acknowledged, or was exchanged for a lease."""
        if not attempt.windowless:
            attempt.windowless = True
            attempt.window.released()

    def _ack(self, consumer: Source, delivery: Delivery) -> None:
        delivery.ack()
        consumer.released()

    def _reported(self, then: Then) -> Then:
        """``then``, and it is known that this is not reported yet."""
        with self._lock:
            self._unreported += 1

        def done() -> None:
            then()
            with self._lock:
                self._unreported -= 1

        return done


class _Waiting:
    """A task that waits for a slot."""

    __slots__ = ("consumer", "delivery", "since", "task")

    def __init__(
        self, since: float, consumer: Source, delivery: Delivery, task: ActivityTask
    ) -> None:
        self.since = since
        self.consumer = consumer
        self.delivery = delivery
        self.task = task


def _nothing() -> None:
    """A notice needs no acknowledgement."""
