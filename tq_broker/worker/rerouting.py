"""Tasks that lost their queue: every worker of a namespace helps to route them anew.

They come through the unrouted queue: what a timer released for a queue that was reclaimed or is a
host's or process's, the leases of dead workers, and their wills, which tell of queues to empty.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import (
    DeadlineExceeded,
    InvalidArgument,
    Malformed,
    NotFound,
    TqBrokerError,
)
from tq_broker.model import control, envelope
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import NICHES, PREFIX, Exchange, Kind, QueueName, encode_part
from tq_broker.model.passes import What
from tq_broker.model.tasks import ActivityTask
from tq_broker.model.workflow_tasks import WORKFLOW_TASK
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.delay import destination_key
from tq_broker.queues.sender import Nacked, NoRoute, Sender
from tq_broker.queues.sticky_estate import StickyEstate
from tq_broker.queues.topology import BindQueue, DeleteQueue, Plan, UnbindQueue
from tq_broker.worker.attempt import Place
from tq_broker.worker.insistence import Then
from tq_broker.worker.intake import lost
from tq_broker.worker.reporter import Reporter

log = logging.getLogger(__name__)

PREFETCH = 50
PRIVATE = (Kind.HOST, Kind.PROCESS, Kind.NICHE)
INHERITED = (*PRIVATE, Kind.WORKFLOW_NICHE, Kind.DETOUR, Kind.STICKY)
WITHIN_S = 20.0
AGAIN_AFTER_S = 1.0
SOON_S = 0.05
ARRIVES_WITHIN_S = 1.0
"""What was routed to a queue has arrived there; the same as the grace of a reclaimed task queue."""
LOOKS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Pauses before somebody who was there is looked for again: then he lives."""


class Fate(enum.Enum):
    """What becomes of a stray task."""

    DISPATCH = "dispatch"
    LOST = "lost"
    """Its worker is gone, or may be: the attempt has failed."""


def fate(kind: Kind, task: ActivityTask) -> Fate:
    """What becomes of a task that strayed from a queue of ``kind``. Pure.

    From a lease queue it had begun for sure. From a host's or process's queue it may have: it is
    routed again, unless it must not run more than once.
    """
    if kind is Kind.LEASE:
        return Fate.LOST
    is_meant = task.route is not None or task.requires is not None
    if kind in PRIVATE and task.retry_policy.maximum_attempts == 1 and is_meant:
        return Fate.LOST
    return Fate.DISPATCH


class Rerouter:
    """Consumes the unrouted queue of a namespace."""

    def __init__(self, sender: Sender, place: Place, reporter: Reporter) -> None:
        self._sender = sender
        self._broker = sender.broker
        self._names = sender.names
        self._place = place
        self._reporter = reporter
        self._subscription: Subscription | None = None

    def open(self) -> Subscription:
        """Begin; returns at once."""
        self._subscription = self._broker.subscribe(
            str(self._names.queue(Kind.UNROUTED)),
            self._on_deliveries,
            SubscribeOptions(prefetch=PREFETCH, plan=topology.namespace(self._names)),
        )
        return self._subscription

    def close(self) -> None:
        """Take no more."""
        if self._subscription is not None:
            self._subscription.cancel_nowait()
            self._subscription = None

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            key = destination_key(delivery.routing_key)
            self._or_park(delivery, key, delivery.ack, partial(self._reroute, delivery, key))

    def _or_park(
        self, delivery: Delivery, key: str, done: Then, handle: Callable[[], None]
    ) -> None:
        try:
            handle()
        except (Malformed, InvalidArgument) as error:
            origin = f"{PREFIX}.{encode_part(self._names.namespace)}.{key}"
            self._reporter.park(delivery.message, origin, str(error), done)

    def _reroute(self, delivery: Delivery, key: str) -> None:
        if delivery.message.kind == envelope.WILL:
            self._execute(delivery)
            return
        queue = QueueName.from_key(self._names.namespace, key)
        if delivery.message.kind == WORKFLOW_TASK:
            self._bring_home(delivery.message, delivery.ack)
            return
        if queue.kind is Kind.DETOUR:
            # From a timer: it is time to ask the rules again.
            task_queue = envelope.home(delivery.message)
            again = envelope.without_route(delivery.message)
            task = envelope.read_task(again, task_queue)
            self._settle(again, task, Fate.DISPATCH, delivery.ack)
            return
        task_queue = queue.task_queue or str(delivery.message.headers.get("tq-task-queue", ""))
        if not task_queue:
            raise Malformed(f"strayed from {key!r:.80}, which is no task queue")
        task = envelope.read_task(delivery.message, task_queue)
        # What a timer has released nobody can have begun.
        is_due = delivery.routing_key != key
        what = Fate.DISPATCH if is_due else fate(queue.kind, task)
        self._settle(delivery.message, task, what, delivery.ack)

    def _settle(self, message: Message, task: ActivityTask, what: Fate, done: Then) -> None:
        now_ms = epoch_ms(self._place.clock)
        if what is Fate.LOST:
            body = envelope.read_task_body(task, self._place.converter)
            done = self._reporter.over(task, What.ENDED, done)
            self._reporter.failed(task, body, lost(), now_ms, done)
        else:
            self._reporter.dispatch(task, envelope.forwarded(message), now_ms, done)

    # --- wills ----------------------------------------------------------------------------------

    def _execute(self, will: Delivery, found: int = 0) -> None:
        """A worker that served a private queue is gone, or has lost its connection.

        ``found`` counts how often it was found to be there since.
        """
        queue = QueueName.parse(envelope.read_will(will.message))
        if queue.namespace != self._names.namespace or queue.kind not in INHERITED:
            raise Malformed(f"a will about {str(queue)!r:.80}, which is no private queue")
        empty = self._settle_sticky if queue.kind is Kind.STICKY else self._empty
        # Nobody but its publishers can ask for a detour or a niche to be served: what is left is
        # brought home, or routed anew.
        is_digest = queue.kind in (Kind.DETOUR, *NICHES.values())
        request = control.Probe() if found or is_digest else control.Serve(str(queue))
        message = control.message(request, self._sender.ids.next())
        key = control.ready_key(queue.key) if is_digest else queue.key
        publication = Publication(self._names.exchange(Exchange.CONTROL), key, message)

        def asked(error: TqBrokerError | None) -> None:
            log.debug("will about %s, look %d: %s", queue, found, error or "somebody is there")
            if error is None and found == len(LOOKS_S):
                # Somebody serves the queue, and has made a will of its own now.
                self._sender.in_background(lambda: self._keep(queue, will))
            elif error is None:
                # The will may have come before RabbitMQ has removed the queue that a dead worker
                # was asked through.
                self._later(lambda: self._execute(will, found + 1), LOOKS_S[found])
            elif isinstance(error, NoRoute):
                self._sender.in_background(lambda: empty(queue, will))
            elif isinstance(error, Nacked):
                # RabbitMQ 4.3 says so of a control queue that is ending with its connection.
                self._later(lambda: self._execute(will), SOON_S)
            else:
                self._later(lambda: self._execute(will))

        self._sender.send(publication, (), self._deadline(), asked)

    def _settle_sticky(self, queue: QueueName, will: Delivery) -> None:
        """Give workflow tasks of a worker that is gone back to history; blocks."""
        try:
            is_settled = StickyEstate(self._sender, queue).settle(self._deadline())
        except TqBrokerError as error:
            self._try_again(queue, will, error)
        else:
            self._emptied(will, is_gone=is_settled)

    def _emptied(self, will: Delivery, *, is_gone: bool) -> None:
        if is_gone:
            log.info("executed a will: %s", envelope.read_will(will.message))
            will.ack()
        else:
            # Somebody consumes it: the one who serves it again, and will say so; or RabbitMQ has
            # not told the queue yet that its consumer has died, while the will has come already.
            self._later(lambda: self._execute(will), SOON_S)

    def _empty(self, queue: QueueName, will: Delivery) -> None:
        """Settle what is left in the queue of a target that is gone; blocks.

        It is removed some time later. What is routed to a queue, but has not arrived when the queue
        is deleted, is lost, and confirmed: RabbitMQ takes it for one that was deleted with its
        messages. So first nothing more is routed there.
        """
        try:
            is_left = self._is_left(queue)
            if is_left:
                self._broker.apply(Plan((UnbindQueue(*self._binding(queue)),)), self._deadline())
                self._settle_all(queue)
            is_gone = not is_left and self._broker.stats(str(queue), self._deadline()) is None
        except TqBrokerError as error:
            self._try_again(queue, will, error)
        else:
            if is_left:
                self._later(lambda: self._remove(queue, will), ARRIVES_WITHIN_S)
            else:
                self._emptied(will, is_gone=is_gone)

    def _remove(self, queue: QueueName, will: Delivery) -> None:
        """All that was on its way to ``queue`` has come; blocks."""
        try:
            if self._is_left(queue):
                self._settle_all(queue)
                # Not if somebody serves it anew.
                delete = Plan((DeleteQueue(str(queue), only_idle=True),))
                self._broker.apply(delete, self._deadline())
            is_gone = not self._bind(queue)
        except TqBrokerError as error:
            self._try_again(queue, will, error)
        else:
            self._emptied(will, is_gone=is_gone)

    def _keep(self, queue: QueueName, will: Delivery) -> None:
        """``queue`` is served: whoever began to remove it may have died half-way; blocks."""
        try:
            if queue.kind is not Kind.STICKY:
                self._bind(queue)
        except TqBrokerError as error:
            self._try_again(queue, will, error)
        else:
            will.ack()

    def _bind(self, queue: QueueName) -> bool:
        """Have tasks routed to ``queue`` again; False if there is no such queue."""
        try:
            self._broker.apply(Plan((BindQueue(*self._binding(queue)),)), self._deadline())
        except NotFound:
            return False
        return True

    def _binding(self, queue: QueueName) -> tuple[str, str, str]:
        return str(queue), self._names.exchange(Exchange.TASKS), queue.key

    def _try_again(self, queue: QueueName, will: Delivery, error: TqBrokerError) -> None:
        log.warning("%s not emptied, trying again: %s", queue, error)
        self._later(lambda: self._execute(will))

    def _settle_all(self, queue: QueueName) -> None:
        """Settle every task in ``queue``; returns when what follows from each is safe."""
        settled = threading.Semaphore(0)

        def done(delivery: Delivery) -> None:
            delivery.ack()
            settled.release()

        taken = 0
        while (left := self._broker.get(str(queue), self._deadline())) is not None:
            taken += 1
            then = partial(done, left)
            self._or_park(left, queue.key, then, partial(self._inherit, left, queue, then))
        for _ in range(taken):
            # Until then the queue must stay: it is where the task goes back if we die.
            if not settled.acquire(timeout=WITHIN_S):
                raise DeadlineExceeded("what was left there could not be sent on")

    def _is_left(self, queue: QueueName) -> bool:
        """Whether there is a queue that nobody consumes."""
        stats = self._broker.stats(str(queue), self._deadline())
        return stats is not None and not stats.consumers

    def _inherit(self, delivery: Delivery, queue: QueueName, done: Then) -> None:
        if delivery.message.kind == WORKFLOW_TASK:
            # History drops one of two answers to a workflow task.
            self._bring_home(delivery.message, done)
            return
        if queue.kind is Kind.DETOUR:
            if delivery.redelivered:
                task = envelope.read_task(delivery.message, "")
                self._settle(delivery.message, task, Fate.LOST, done)
            else:
                self._reporter.bring_back(delivery.message, done)
            return
        task = envelope.read_task(delivery.message, queue.parts[-1])
        # Here it is known whether the target had begun.
        what = Fate.LOST if delivery.redelivered else Fate.DISPATCH
        self._settle(delivery.message, task, what, done)

    def _bring_home(self, message: Message, done: Then) -> None:
        """A workflow task strayed from a detour, or from the niche of workers that are gone."""
        if envelope.home(message):
            self._reporter.bring_back(message, done)
        else:
            self._reporter.hand_in(message, done)

    def _later(self, work: Callable[[], None], pause_s: float = AGAIN_AFTER_S) -> None:
        if self._subscription is None:
            return  # closed: RabbitMQ hands on what is held here
        clock = self._place.clock
        clock.call_at(clock.monotonic() + pause_s, lambda: self._sender.in_background(work))

    def _deadline(self) -> float:
        return self._place.clock.monotonic() + WITHIN_S
