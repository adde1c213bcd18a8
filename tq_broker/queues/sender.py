"""Publishing with declaration on demand: what is missing is declared, then sent again.

The first publish to a queue, and one that was returned, take the slow path: declare under the
queue's lock on a thread of our own (``tq-declare``), then publish. All others are one publish.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from tq_broker.clock import Clock, epoch_ms
from tq_broker.exceptions import (
    BrokerBlocked,
    DeadlineExceeded,
    Rejected,
    TqBrokerError,
    Unavailable,
)
from tq_broker.model import settings
from tq_broker.model.message import Publication
from tq_broker.model.names import (
    DEALT,
    NICHES,
    PLAIN,
    REQUIRING,
    UNFAIR,
    Exchange,
    Kind,
    Names,
    QueueName,
    requirements,
)
from tq_broker.queues import topology
from tq_broker.queues.broker import Broker, Receipt, Verdict
from tq_broker.queues.confirms import NACKED
from tq_broker.queues.ids import IdSource
from tq_broker.queues.topology import Plan, QueueType

log = logging.getLogger(__name__)

Done = Callable[[TqBrokerError | None], None]
"""Called once, with ``None`` when the broker has the message. Must be short and not raise."""

IndexedDone = Callable[[int, TqBrokerError | None], None]

NAMESPACE = "namespace"
LADDER = "delay ladder"
Need = QueueName | str
"""Something a publish relies on: a queue, or one of the two words above."""

LISTED = (Kind.ACTIVITY, Kind.WORKFLOW, *REQUIRING)
"""Queues that any worker of a task queue may serve, or any capable one; the settings log tells of
them."""
ORDERED_SINCE = (4, 3)
"""Since this RabbitMQ quorum queues keep to priorities strictly, whatever their arguments."""
ANNOUNCE_WITHIN_S = 30.0
SLOW_THREADS = 4
NO_THREAD_RETRY_S = 0.1


class Nacked(Unavailable):
    """The broker could not take it now: a queue was full, or ended while it was taking it."""


class NoRoute(Unavailable):
    """No queue is bound under the key."""


def lock_name(names: Names, queue: QueueName) -> QueueName:
    """The lock that guards declaring and reclaiming ``queue``."""
    digest = hashlib.blake2b(str(queue).encode(), digest_size=16).hexdigest()
    return names.queue(Kind.LOCK, digest)


class Sender:
    """Publishes through a `Broker`; knows what this process has declared.

    Thread-safe. Across a fork only `after_fork` has to be called.
    """

    def __init__(
        self,
        broker: Broker,
        names: Names,
        clock: Clock,
        *,
        identity: str,
        queue_type: QueueType = QueueType.QUORUM,
    ) -> None:
        self.broker = broker
        self.names = names
        self.clock = clock
        self._identity = identity
        self.queue_type = queue_type
        self.after_fork()

    def after_fork(self) -> None:
        """Forget threads and locks that the child does not have."""
        self._present: set[Need] = set()
        self.orders_by_priority: bool | None = None
        """Whether the plain shared queues do; ``None`` as long as nothing was published."""
        self.ids = IdSource()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._works: deque[Callable[[], None]] = deque()
        self._is_short = False
        self._closed = False

    def plan(self, need: Need) -> Plan:
        """What must be declared for ``need``."""
        names = self.names
        if need == NAMESPACE:
            return topology.namespace(names)
        if need == LADDER:
            return topology.delay_ladder(names)
        assert isinstance(need, QueueName), need
        if need.kind in (*LISTED, Kind.VERSION, Kind.RAMPING):
            return topology.task_queue(names, need, lock_name(names, need), self.queue_type)
        if need.kind in PLAIN or need.kind is Kind.ADMITTED_PRIORITY:
            return topology.priority_queue(names, need, lock_name(names, need))
        if need.kind in DEALT:
            lock = lock_name(names, need)
            return topology.waiting_for_shares(names, need, lock, self.queue_type)
        if need.kind is Kind.DEALERS:
            return topology.namespace(names) + topology.dealers(names, need)
        if need.kind in (Kind.HOST, Kind.PROCESS, *NICHES.values()):
            return topology.private_queue(names, need)
        if need.kind in (Kind.LEASE, Kind.WILL):
            return topology.held_queue(names, need)
        if need.kind is Kind.HISTORY:
            return topology.history_shard(names, need)
        if need.kind in (Kind.PERMIT, Kind.BANK, Kind.LEDGER):
            parts = (
                names.queue(kind, *need.parts) for kind in (Kind.PERMIT, Kind.BANK, Kind.LEDGER)
            )
            return topology.permits(names, *parts)
        if need.kind in (Kind.ANTEROOM, Kind.ROSTER, Kind.ADMITTED):
            return topology.namespace(names) + topology.anteroom(
                names, need.parts[0], self.queue_type
            )
        assert need.kind is Kind.SETTINGS, need
        return topology.settings_log(names)

    def ensure(self, needs: Sequence[Need], deadline: float) -> None:
        """Declare what is not known to exist; blocks. Raises as `Broker.apply` does."""
        if self.orders_by_priority is None:
            is_ordered = self.broker.server_version(deadline) >= ORDERED_SINCE
            self.orders_by_priority = is_ordered and self.queue_type is QueueType.QUORUM
        for need in (NAMESPACE, *needs):
            if need in self._present:
                continue
            if isinstance(need, QueueName) and need.kind in PLAIN:
                self._prioritize(need, deadline)
                continue
            if isinstance(need, QueueName) and need.kind in UNFAIR:
                self._make_fair(need, deadline)
                continue
            self.broker.apply(self.plan(need), deadline)
            self._present.add(need)
            if isinstance(need, QueueName) and need.kind in LISTED:
                self._announce(need)

    def _prioritize(self, queue: QueueName, deadline: float) -> None:
        """Declare a priority queue, and wait until the log says that it is to be consumed."""
        task_queue = queue.parts[0]
        # It stands for the task queue beside it, and takes what those bring who do not know yet.
        self.ensure((self.names.queue(PLAIN[queue.kind], task_queue),), deadline)
        self.broker.apply(self.plan(queue), deadline)
        now_ms = epoch_ms(self.clock)
        side = settings.side_of(queue)
        record = settings.TaskQueuePrioritized(task_queue, now_ms, self._identity, side)
        self._append_and_wait(record, deadline)
        self._present.add(queue)

    def _make_fair(self, queue: QueueName, deadline: float) -> None:
        """Declare where tasks wait for fair shares, and wait until the log says that they are to be
        dealt."""
        self.ensure((self.names.priority(self.names.plain(queue)),), deadline)
        self.broker.apply(self.plan(queue), deadline)
        now_ms = epoch_ms(self.clock)
        side = settings.side_of(queue)
        record = settings.TaskQueueFair(queue.parts[0], now_ms, self._identity, side)
        self._append_and_wait(record, deadline)
        self._present.add(queue)

    def _append_and_wait(self, record: settings.Record, deadline: float) -> None:
        """Append ``record`` on this thread; what is returned, too: the other threads of the slow
        path, which `append` needs then, may all be here. Raises as `ensure` does, or what the
        broker says."""
        log_queue = self.names.queue(Kind.SETTINGS)
        publication = self._publication(record)
        while True:
            if self.clock.monotonic() >= deadline:
                raise DeadlineExceeded("not told to the settings log before the deadline")
            self.ensure((log_queue,), deadline)
            kept: Future[Receipt] = Future()
            self.broker.publish(publication, deadline, kept.set_result)
            receipt = kept.result()  # by the deadline
            if receipt.verdict is not Verdict.RETURNED:
                break
            self.forget(log_queue)
            self.forget(NAMESPACE)
        if receipt.verdict is not Verdict.CONFIRMED:
            raise error_of(receipt)

    def declared(self, need: Need) -> None:
        """``need`` was declared by somebody else in this process."""
        self._present.add(need)

    def forget(self, need: Need) -> None:
        """``need`` may not exist any more."""
        self._present.discard(need)

    def _announce(self, queue: QueueName) -> None:
        side = settings.side_of(queue)
        at_ms = epoch_ms(self.clock)
        requires = requirements(queue)
        record = settings.TaskQueueDeclared(queue.parts[-1], at_ms, self._identity, side, requires)
        self.append(record, self.clock.monotonic() + ANNOUNCE_WITHIN_S, _ignore)

    def append(self, record: settings.Record, deadline: float, done: Done) -> None:
        """Append ``record`` to the namespace's settings log."""
        log_queue = self.names.queue(Kind.SETTINGS)
        self.send(self._publication(record), (log_queue,), deadline, done)

    def _publication(self, record: settings.Record) -> Publication:
        message = settings.record_message(record, self.ids.next())
        key = self.names.queue(Kind.SETTINGS).key
        return Publication(self.names.exchange(Exchange.TASKS), key, message)

    def send(
        self, publication: Publication, needs: Sequence[Need], deadline: float, done: Done
    ) -> None:
        """Publish, declaring ``needs`` if they are not known to exist; returns at once."""
        if not self._present.issuperset(needs) or NAMESPACE not in self._present:
            self._slowly(publication, needs, deadline, done)
        else:
            self._publish(publication, needs, deadline, done)

    def _publish(
        self, publication: Publication, needs: Sequence[Need], deadline: float, done: Done
    ) -> None:
        try:
            self.broker.publish(
                publication, deadline, lambda r: self._ended(r, publication, needs, deadline, done)
            )
        except TqBrokerError as error:  # the broker object is closed
            done(error)

    def send_many(
        self,
        publications: Sequence[Publication],
        needs: Sequence[Need],
        deadline: float,
        done: IndexedDone,
    ) -> None:
        """The same for many with the same needs; blocks while it declares."""
        try:
            self.ensure(needs, deadline)
        except TqBrokerError as error:
            for index in range(len(publications)):
                done(index, error)
            return

        def ended(index: int, receipt: Receipt) -> None:
            if receipt.verdict is Verdict.CONFIRMED:
                done(index, None)
            else:
                self._ended(receipt, publications[index], needs, deadline, lambda e: done(index, e))

        self.broker.publish_many(publications, deadline, ended)

    def send_together(
        self, publications: Sequence[Publication], deadline: float, done: IndexedDone
    ) -> None:
        """The same for many that need nothing; returns at once."""

        def ended(index: int, receipt: Receipt) -> None:
            done(index, None if receipt.verdict is Verdict.CONFIRMED else error_of(receipt))

        if NAMESPACE not in self._present:
            for index, publication in enumerate(publications):
                self.send(publication, (), deadline, partial(done, index))
            return
        try:
            self.broker.publish_many(publications, deadline, ended)
        except TqBrokerError as error:  # the broker object is closed
            for index in range(len(publications)):
                done(index, error)

    def _ended(
        self,
        receipt: Receipt,
        publication: Publication,
        needs: Sequence[Need],
        deadline: float,
        done: Done,
    ) -> None:
        if receipt.verdict is Verdict.CONFIRMED:
            done(None)
        elif receipt.verdict is Verdict.RETURNED and needs:
            for need in needs:
                self.forget(need)
            self.forget(NAMESPACE)
            self._slowly(publication, needs, deadline, done)
        else:
            done(error_of(receipt))

    def _slowly(
        self, publication: Publication, needs: Sequence[Need], deadline: float, done: Done
    ) -> None:
        def declare_and_publish() -> None:
            try:
                if self.clock.monotonic() >= deadline:
                    raise DeadlineExceeded("not published before the deadline")
                self.ensure(needs, deadline)
            except TqBrokerError as error:
                done(error)
            else:
                self._publish(publication, needs, deadline, done)

        self.in_background(declare_and_publish)

    def in_background(self, work: Callable[[], None]) -> None:
        """Run ``work``, which may block on the broker, on a thread of this sender: as soon as the
        system has one (``ulimit -u``, ``pids.max``)."""
        with self._lock:
            is_closed = self._closed
            if not is_closed:
                self._works.append(work)
                self._call_thread()
        if is_closed:
            work()

    def _call_thread(self) -> None:
        """With the lock: have a thread come for one work."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix="tq-declare")
        try:
            self._pool.submit(self._work_one)
        except RuntimeError as error:
            if "interpreter" in str(error):  # It ends, and nobody waits any more.
                with contextlib.suppress(IndexError):
                    self._works.pop()
                log.debug("not done any more: %s", error)
            elif not self._is_short:  # The threads that there are come; there may be none.
                at = self.clock.monotonic() + NO_THREAD_RETRY_S
                # Where there is none for the clock, it is called with the next work.
                with contextlib.suppress(RuntimeError):
                    self.clock.call_at(at, self._call_thread_again)
                    self._is_short = True

    def _call_thread_again(self) -> None:
        with self._lock:
            self._is_short = False
            if self._works and not self._closed:
                self._call_thread()

    def _work_one(self) -> None:
        try:
            work = self._works.popleft()
        except IndexError:  # called twice for it
            return
        try:
            work()
        except Exception:  # supervisor of the slow path: a defect must not vanish in a future
            log.exception("declaring on demand failed")

    def close(self) -> None:
        """Wait for the slow path to empty. Afterwards it runs on the caller's thread."""
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            pool.shutdown(wait=True)
        while self._works:  # for which the system had no thread
            self._work_one()


def error_of(receipt: Receipt) -> TqBrokerError:
    """The error that a receipt other than a confirmation stands for."""
    if receipt.verdict is Verdict.RETURNED:
        return NoRoute(receipt.reason or "no queue is bound under that key")
    if receipt.reason == NACKED:
        return Nacked(receipt.reason)
    if receipt.verdict is Verdict.REFUSED:
        return Rejected(f"the broker refused the message: {receipt.reason}")
    if "block" in receipt.reason:
        return BrokerBlocked(receipt.reason)
    return DeadlineExceeded(receipt.reason or "not confirmed before the deadline")


def _ignore(error: TqBrokerError | None) -> None:
    if error is not None:
        log.debug("settings record not appended: %s", error)
