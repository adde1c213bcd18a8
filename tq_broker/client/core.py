"""The one core under both faces of the client.

It answers with `concurrent.futures.Future`; `tq_broker.client.Client` awaits them and
`tq_broker.client.BlockingClient` waits for them, and that is all the difference there is.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

import msgspec

from tq_broker.client.calls import Calls
from tq_broker.client.request import Start
from tq_broker.clock import Timer, epoch_ms
from tq_broker.common import ActivityIDConflictPolicy
from tq_broker.exceptions import (
    ActivityAlreadyStarted,
    ActivityError,
    Malformed,
    NotFound,
    RetryState,
    TimeoutType,
    TqBrokerError,
    Unavailable,
)
from tq_broker.model import control, envelope, failure, settings
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind
from tq_broker.model.tasks import ActivityOutcome, ActivityTask, Status
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.connection import Connection
from tq_broker.queues.ids import IdSource
from tq_broker.queues.sender import Done, Nacked, NoRoute

log = logging.getLogger(__name__)

REPLY_PREFETCH = 2_000
TIMEOUT_GRACE_S = 1.0
"""Workers answer for timeouts; the client only steps in when no worker has, this much later."""

T = TypeVar("T")
A = TypeVar("A", control.WorkerInfo, control.Recent, control.FoundActivity)


class Pending:
    """An activity that was started, and the future of its outcome.

    ``token`` tells it from other starts of its id, if that was named.
    """

    __slots__ = ("activity_id", "outcome", "start", "started", "timers", "token")

    def __init__(self, activity_id: str, start: Start, token: str = "") -> None:
        self.activity_id = activity_id
        self.start = start
        self.token = token
        self.outcome: Future[ActivityOutcome] = Future()
        self.started = False
        self.timers: list[Timer] = []

    def may_get(self, outcome: ActivityOutcome) -> bool:
        """Whether ``outcome`` is its own, or that of another start that it agreed to join.

        Workers that know nothing of ids repeat no token: what they tell is for all.
        """
        own = not outcome.start_token or outcome.start_token == self.token
        return own or self.joins

    @property
    def joins(self) -> bool:
        """Whether it takes the outcome of an earlier start of its id."""
        return self.start.options.id_conflict_policy is ActivityIDConflictPolicy.USE_EXISTING


class ClientCore:
    """Starts activities and collects their outcomes. Thread-safe, and usable after a fork."""

    def __init__(self, connection: Connection, *, timeout_s: float = 10.0) -> None:
        self.connection = connection
        self.broker = connection.broker
        self.names = connection.names
        self.clock = connection.clock
        self.converter = connection.converter
        self.identity = connection.identity
        self.sender = connection.sender
        self.dispatcher = connection.dispatcher
        self.timeout_s = timeout_s
        self._reset()
        _CORES.add(self)

    def _reset(self) -> None:
        self._ids = IdSource()
        self._lock = threading.Lock()
        self._listening = threading.Lock()
        self._reply_queue = self.names.queue(Kind.REPLY, self._ids.next())
        self._replies: Subscription | None = None
        # More than one for an id that was started again while its outcome was waited for.
        self._pending: dict[str, list[Pending]] = {}
        self._joined: dict[str, Subscription] = {}
        self._calls: dict[str, Callable[[Message], None]] = {}
        self.calls = Calls(self.sender, self.clock, listen=self.listen, send_s=self.timeout_s)

    def after_fork(self) -> None:
        """Start anew in the child: the parent's outcomes go to the parent."""
        self.connection.after_fork()
        self.calls.forget()
        self._reset()

    @property
    def reply_to(self) -> str:
        """The client's reply queue."""
        return str(self._reply_queue)

    def new_id(self) -> str:
        """An id that nobody else has."""
        return self._ids.next()

    def deadline(self, timeout_s: float | None = None) -> float:
        """The deadline of an operation that begins now."""
        return self.clock.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    def connect(self, deadline: float) -> None:
        """Open the connection, so that a wrong address or password is an error here."""
        self.broker.server_version(deadline)

    # --- starting ---------------------------------------------------------------------------

    def start(self, start: Start, args: Sequence[Any]) -> Future[Pending]:
        """Start one activity. The future ends when the broker has it.

        Raises:
            InvalidArgument, PayloadTooLarge: at once, before anything is sent.
        """
        return self._start(start, self._body(start, args))

    def execute(self, start: Start, args: Sequence[Any]) -> Pending:
        """Start one activity; its ``outcome`` also ends when it was not accepted.

        Quicker than to wait for both in turn: the outcome may be there before the confirmation.
        """
        start.options.check_waits()
        pending, task = self._prepare(start, self._body(start, args))
        self._dispatch(pending, task, functools.partial(self._told, pending))
        return pending

    def _start(self, start: Start, body: bytes) -> Future[Pending]:
        pending, task = self._prepare(start, body)
        accepted: Future[Pending] = Future()
        self._dispatch(pending, task, functools.partial(self._accepted, pending, accepted))
        return accepted

    def _dispatch(self, pending: Pending, task: ActivityTask, done: Done) -> None:
        deadline = self.deadline()
        start, message = pending.start, envelope.task_message(task)

        def dispatch() -> None:
            self.dispatcher.dispatch(task, message, deadline, done, delay_ms=start.delay_ms)
            self.connection.traffic.follow()

        if self._is_heard(start):
            dispatch()
        else:
            self.sender.in_background(lambda: self._with_replies(deadline, dispatch, done))

    def _is_heard(self, start: Start) -> bool:
        """Whether the outcome, if one is wanted here, has a queue already."""
        options = start.options
        return not options.wait_result or bool(options.reply_to) or self._replies is not None

    def start_many(self, start: Start, calls: Sequence[Sequence[Any]]) -> Future[list[Pending]]:
        """Start one activity per entry of ``calls``, pipelined. Ends when the broker has all.

        If some are not accepted the future fails with the first error; the others run.
        """
        deadline = self.deadline(max(self.timeout_s, len(calls) / 1000))
        accepted: Future[list[Pending]] = Future()
        if start.delay_ms or self.dispatcher.moves(start.activity_type, start.task_queue):
            return self._start_each(start, calls, deadline)
        first = self._task(start, "", b"", epoch_ms(self.clock))
        message = envelope.task_message(first)
        queue, is_meant = None, first.route is not None or first.requires is not None
        if not is_meant:
            place = self.dispatcher.in_order(self.names.activity(start.task_queue), message)
            if place is None:
                return self._start_each(start, calls, deadline)
            queue, message = place
        pendings, messages = self._alike(start, calls, message)
        if not messages:
            accepted.set_result([])
            return accepted
        for pending in pendings:
            self._expect(pending)
        tally = _Tally(pendings, accepted, self._forget)

        def send() -> None:
            if queue is None:
                self.dispatcher.dispatch_alike(first, messages, deadline, tally.done)
            else:
                exchange = self.names.exchange(Exchange.TASKS)
                publications = [Publication(exchange, queue.key, one) for one in messages]
                self.sender.send_many(publications, (queue,), deadline, tally.done)
            self.connection.traffic.follow()

        if self._is_heard(start):
            self.sender.in_background(send)
        else:
            self.sender.in_background(lambda: self._with_replies(deadline, send, tally.fail))
        return accepted

    def _alike(
        self, start: Start, calls: Sequence[Sequence[Any]], first: Message
    ) -> tuple[list[Pending], list[Message]]:
        """Messages like ``first``, one for each of ``calls``."""
        pendings, messages = [], []
        for args in calls:
            pending = Pending(self._ids.next(), start)
            pendings.append(pending)
            # Not msgspec.structs.replace: this loop is the hot path of a bulk start.
            one = Message(
                body=self._body(start, args),
                message_id=pending.activity_id,
                kind=first.kind,
                headers=first.headers,
                correlation_id=pending.activity_id,
                reply_to=first.reply_to,
                content_type=first.content_type,
                content_encoding=first.content_encoding,
                priority=first.priority,
                timestamp=first.timestamp,
            )
            messages.append(one)
        return pendings, messages

    def _start_each(
        self, start: Start, calls: Sequence[Sequence[Any]], deadline: float
    ) -> Future[list[Pending]]:
        """The same where each has a say in where it goes, or when."""
        accepted: Future[list[Pending]] = Future()
        bodies = [self._body(start, args) for args in calls]  # all are checked before one is sent
        if not bodies:
            accepted.set_result([])
            return accepted
        starts = [self._prepare(start, body) for body in bodies]
        tally = _Tally([pending for pending, _ in starts], accepted, self._forget)
        # What is said of one is said of all, unless each start of an id has a token of its own.
        headers = None if start.options.id else envelope.task_headers(starts[0][1])

        def send() -> None:
            for index, (_, task) in enumerate(starts):
                message = envelope.task_message(task, headers)
                done = functools.partial(tally.done, index)
                self.dispatcher.dispatch(task, message, deadline, done, delay_ms=start.delay_ms)
            self.connection.traffic.follow()

        if self._is_heard(start):
            send()
        else:
            self.sender.in_background(lambda: self._with_replies(deadline, send, tally.fail))
        return accepted

    def _prepare(self, start: Start, body: bytes) -> tuple[Pending, ActivityTask]:
        activity_id = start.options.id or self._ids.next()
        task = self._task(start, activity_id, body, epoch_ms(self.clock))
        pending = Pending(activity_id, start, task.start_token)
        self._expect(pending)
        return pending, task

    def _task(self, start: Start, activity_id: str, body: bytes, now_ms: int) -> ActivityTask:
        options = start.options
        replies = options.reply_to or (str(self._reply_queue) if options.wait_result else None)
        return ActivityTask(
            activity_id=activity_id,
            activity_type=start.activity_type,
            task_queue=start.task_queue,
            body=body,
            codecs=self.converter.codec_names,
            scheduled_ms=now_ms,
            attempt_scheduled_ms=now_ms + start.delay_ms if start.delay_ms else 0,
            reply_to=replies,
            start_token=self._ids.next() if options.id else "",
            **start.task,
        )

    def _body(self, start: Start, args: Sequence[Any]) -> bytes:
        start.check_args(args)
        encoded = self.converter.payload_converter.encode(list(args))
        return envelope.args_body(encoded, self.converter)

    def _expect(self, pending: Pending) -> None:
        start = pending.start
        if not start.options.wait_result or start.options.reply_to:
            return
        with self._lock:
            self._pending.setdefault(pending.activity_id, []).append(pending)
        self._book_timeouts(pending)

    def _forget(self, pending: Pending) -> bool:
        """Wait for the outcome of ``pending`` no more; False if nobody did."""
        for timer in pending.timers:
            timer.cancel()
        with self._lock:
            waiting = self._pending.get(pending.activity_id, [])
            if pending not in waiting:
                return False
            waiting.remove(pending)
            joined = None
            if not waiting:
                del self._pending[pending.activity_id]
                joined = self._joined.pop(pending.activity_id, None)
        if joined is not None:
            joined.cancel_nowait()
        return True

    def _accepted(
        self, pending: Pending, accepted: Future[Pending], error: TqBrokerError | None
    ) -> None:
        if error is None:
            accepted.set_result(pending)
        else:
            self._forget(pending)
            accepted.set_exception(error)

    def _told(self, pending: Pending, error: TqBrokerError | None) -> None:
        if error is not None:
            self._forget(pending)
            _end(pending.outcome, error, None)

    def _book_timeouts(self, pending: Pending) -> None:
        fields = pending.start.task
        for name, timeout in (
            ("schedule_to_start_ms", TimeoutType.SCHEDULE_TO_START),
            ("schedule_to_close_ms", TimeoutType.SCHEDULE_TO_CLOSE),
        ):
            if fields[name]:
                wait_s = (fields[name] + pending.start.delay_ms) / 1000 + TIMEOUT_GRACE_S
                due = self.clock.monotonic() + wait_s
                fire = functools.partial(self._timed_out, pending, timeout)
                pending.timers.append(self.clock.call_at(due, fire))

    def _timed_out(self, pending: Pending, timeout: TimeoutType) -> None:
        if timeout is TimeoutType.SCHEDULE_TO_START and pending.started:
            return
        outcome = ActivityOutcome(
            activity_id=pending.activity_id,
            activity_type=pending.start.activity_type,
            status=Status.TIMED_OUT,
            failure=failure.timed_out(timeout),
            retry_state=int(RetryState.TIMEOUT),
        )
        self._resolve(pending, outcome)

    # --- outcomes ---------------------------------------------------------------------------

    def listen(self, deadline: float) -> None:
        """Open the reply queue; blocks. Nothing happens when it is open already."""
        # Held while it blocks: whoever comes second needs what the first one opens.
        with self._listening:
            if self._replies is not None:
                return
            self.sender.ensure((), deadline)
            plan = topology.namespace(self.names) + topology.reply_queue(
                self.names, self._reply_queue
            )
            subscription = self.broker.subscribe(
                str(self._reply_queue),
                self._on_replies,
                SubscribeOptions(
                    prefetch=REPLY_PREFETCH, plan=plan, on_accepted=self.calls.subscribed
                ),
            )
            try:
                self.broker.wait_subscribed([subscription], deadline)
            except TqBrokerError:
                subscription.cancel_nowait()
                raise
            self._replies = subscription

    def _with_replies(
        self, deadline: float, go_on: Callable[[], None], done: Callable[[TqBrokerError], None]
    ) -> None:
        try:
            self.listen(deadline)
        except TqBrokerError as error:
            done(error)
        else:
            go_on()

    def _on_replies(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            message = delivery.message
            try:
                if message.kind == envelope.OUTCOME:
                    self._on_outcome(envelope.read_outcome(message, self.converter))
                elif message.kind == envelope.CONTROL:
                    call = self._calls.get(message.correlation_id or "")
                    if call is not None:
                        call(message)
                else:
                    self.calls.answered(message)
            except Malformed as error:
                log.warning("reply dropped: %s", error)
            delivery.ack()

    def _on_outcome(self, outcome: ActivityOutcome) -> None:
        if outcome.status is Status.STARTED:
            for pending in self._waiting(outcome.activity_id):
                pending.started = True
        elif outcome.status is Status.JOINED:
            self._join(outcome)
        elif outcome.status is Status.REFUSED:
            self._refuse(outcome)
        else:
            self._resolve_all(outcome)

    def _waiting(self, activity_id: str) -> list[Pending]:
        with self._lock:
            return list(self._pending.get(activity_id, ()))

    def _refuse(self, outcome: ActivityOutcome) -> None:
        """Only the start that asked for it is refused; others of the id get its outcome."""
        for pending in reversed(self._waiting(outcome.activity_id)):
            if not pending.joins and pending.may_get(outcome):
                self._resolve(pending, outcome)
                return

    def _resolve_all(self, outcome: ActivityOutcome) -> None:
        """All that wait for it; nobody does if this is a second outcome: the first one counted."""
        for pending in self._waiting(outcome.activity_id):
            if pending.may_get(outcome):
                self._resolve(pending, outcome)

    def _resolve(self, pending: Pending, outcome: ActivityOutcome) -> None:
        if self._forget(pending):
            _end(pending.outcome, None, outcome)

    def _join(self, outcome: ActivityOutcome) -> None:
        """Read the outcome of the first start where it is kept, and leave it there."""
        queue = str(msgspec.json.decode(outcome.result))
        if not self.names.owns(queue, Kind.CLAIM):
            raise Malformed(f"joined to {queue!r:.80}, which is no claim queue")

        def on_deliveries(deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                try:
                    kept = envelope.read_outcome(delivery.message, self.converter)
                except Malformed as error:
                    log.warning("kept outcome dropped: %s", error)
                else:
                    self._resolve_all(kept)
                delivery.reject(requeue=True)
            subscription.cancel_nowait()

        if not self._waiting(outcome.activity_id):
            return
        subscription = self.broker.subscribe(queue, on_deliveries, SubscribeOptions(prefetch=1))
        with self._lock:
            before = self._joined.get(outcome.activity_id)
            self._joined[outcome.activity_id] = subscription
        if before is not None:
            before.cancel_nowait()
        if not self._waiting(outcome.activity_id):  # nobody any more, since this very moment
            self._joined.pop(outcome.activity_id, None)
            subscription.cancel_nowait()

    def value(self, pending: Pending, outcome: ActivityOutcome) -> Any:
        """The result of an ended activity, or its error raised.

        Raises:
            ActivityError: with the failure as its cause.
            ActivityAlreadyStarted: this start was refused.
        """
        if outcome.status is Status.REFUSED:
            raise ActivityAlreadyStarted(
                f"activity id {outcome.activity_id!r} was started before on task queue"
                f" {pending.start.task_queue!r}, within its id_retention"
            )
        if outcome.failure is not None:
            known = {int(state): state for state in RetryState}
            error = ActivityError(
                f"Activity {outcome.activity_type!r} {outcome.status.value.replace('_', ' ')}:"
                f" {outcome.failure.message}",
                activity_id=outcome.activity_id,
                activity_type=outcome.activity_type,
                identity=outcome.identity,
                attempt=outcome.attempt,
                retry_state=known.get(outcome.retry_state or 0),
            )
            raise error from failure.to_exception(outcome.failure)
        return self.converter.payload_converter.decoder(pending.start.result_type)(outcome.result)

    # --- cancelling and completing ------------------------------------------------------------

    def cancel(self, activity_id: str, reason: str = "") -> Future[None]:
        """Ask that an activity be cancelled, wherever it is. Ends when the request is kept."""
        record = settings.ActivityCanceled(activity_id, epoch_ms(self.clock), self.identity, reason)
        kept: Future[None] = Future()
        self.sender.append(record, self.deadline(), lambda error: _end(kept, error, None))
        return kept

    def complete(
        self, token: control.TaskToken, request: control.CompleteAttempt
    ) -> Future[control.Answer]:
        """Tell the worker that holds an attempt how it ended, or that it lives.

        The future fails with `NotFound` when the worker is gone or the attempt is not open any
        more.
        """
        deadline = self.deadline()
        answered: Future[control.Answer] = Future()

        def on_reply(message: Message) -> None:
            reply = control.read_reply(message)
            if isinstance(reply, control.Answer) and reply.found:
                _end(answered, None, reply)
            else:
                _end(answered, NotFound(f"attempt {token.attempt} is not open any more"), None)

        def on_sent(error: TqBrokerError | None) -> None:
            if isinstance(error, NoRoute):
                error = NotFound(f"worker {token.worker_id!r} is gone, and the attempt with it")
            if error is not None:
                _end(answered, error, None)

        self._call(control.worker_key(token.worker_id), request, deadline, on_reply, on_sent)
        self.clock.call_at(
            deadline, lambda: _end(answered, Unavailable("the worker did not answer"), None)
        )
        return answered

    def ping(self, wait_s: float) -> Future[list[control.WorkerInfo]]:
        """Ask all workers of the namespace who they are; ends after ``wait_s`` seconds."""
        sorted_: Future[list[control.WorkerInfo]] = Future()

        def collected(future: Future[list[control.WorkerInfo]]) -> None:
            if (error := future.exception()) is not None:
                _end(sorted_, error, None)
            else:
                _end(sorted_, None, sorted(future.result(), key=lambda info: info.identity))

        self.ask_workers(control.Ping(), control.WorkerInfo, wait_s).add_done_callback(collected)
        return sorted_

    def ask_workers(
        self, request: control.Request, kind: type[A], wait_s: float
    ) -> Future[list[A]]:
        """Ask all workers of the namespace; ends after ``wait_s`` seconds, with the last answer of
        each."""
        found: dict[str, A] = {}
        collected: Future[list[A]] = Future()
        deadline = self.deadline()

        def on_reply(message: Message) -> None:
            reply = control.read_reply(message)
            if isinstance(reply, kind):
                found[reply.worker_id] = reply

        def finish() -> None:
            _end(collected, None, list(found.values()))

        def on_sent(error: TqBrokerError | None) -> None:
            if isinstance(error, NoRoute):
                finish()
            elif error is None or isinstance(error, Nacked):
                # RabbitMQ 4.3 says no for the queue of one that is just leaving; others have it.
                self.clock.call_at(self.clock.monotonic() + wait_s, finish)
            else:
                _end(collected, error, None)

        self._call(control.EVERY_WORKER, request, deadline, on_reply, on_sent)
        return collected

    def _call(
        self,
        key: str,
        request: control.Request,
        deadline: float,
        on_reply: Callable[[Message], None],
        on_sent: Callable[[TqBrokerError | None], None],
    ) -> None:
        call_id = self._ids.next()
        self._calls[call_id] = on_reply
        self.clock.call_at(deadline, lambda: self._calls.pop(call_id, None) and None)
        message = control.message(
            request, call_id, correlation_id=call_id, reply_to=str(self._reply_queue)
        )
        publication = Publication(self.names.exchange(Exchange.CONTROL), key, message)
        self.sender.in_background(
            lambda: self._with_replies(
                deadline, lambda: self.sender.send(publication, (), deadline, on_sent), on_sent
            )
        )

    def close(self, deadline: float) -> None:
        """Give up what is pending and close the connection. Idempotent."""
        with self._lock:
            pendings = [pending for waiting in self._pending.values() for pending in waiting]
        for pending in pendings:
            self._forget(pending)
            _end(pending.outcome, Unavailable("the client was closed"), None)
        self.calls.close()
        self.sender.close()
        self.broker.close(deadline)


class _Tally:
    """Ends one future when each of many publishes has ended."""

    def __init__(
        self,
        pendings: list[Pending],
        accepted: Future[list[Pending]],
        forget: Callable[[Pending], object],
    ) -> None:
        self._pendings = pendings
        self._accepted = accepted
        self._forget = forget
        self._left = len(pendings)
        self._error: TqBrokerError | None = None
        self._lock = threading.Lock()

    def done(self, index: int, error: TqBrokerError | None) -> None:
        if error is not None:
            self._forget(self._pendings[index])
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            last = not self._left
        if last:
            _end(self._accepted, self._error, self._pendings)

    def fail(self, error: TqBrokerError) -> None:
        for index in range(len(self._pendings)):
            self.done(index, error)


def _end(future: Future[T], error: BaseException | None, value: Any) -> None:
    """End ``future`` unless it has ended: the first of several ways to end counts."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    except InvalidStateError:
        log.debug("a future had ended before")


_CORES: weakref.WeakSet[ClientCore] = weakref.WeakSet()


def _after_fork() -> None:
    for core in list(_CORES):
        core.after_fork()


os.register_at_fork(after_in_child=_after_fork)
