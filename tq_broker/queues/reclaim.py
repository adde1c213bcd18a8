"""The reclaimer: removes task queues that nobody uses, so that no task can be lost with them.

RabbitMQ cannot delete a quorum queue "if it is empty", and a message for a queue that is deleted
between its routing and its arrival is confirmed all the same. So a queue goes in this order, under
the lock that everybody who declares it takes, too:

1. lock it; a queue whose lock is taken is being declared, so it is not idle;
2. look: with messages or consumers it is not idle;
3. unbind it: from now on nothing more is routed to it. Publishes are mandatory, so they come back
   to their publishers, which go to declare the queue and wait for the lock;
4. wait for what was routed before and has not arrived;
5. look again, and fetch a message: a fetch is answered by the queue itself, behind all that was
   enqueued, where a count may be zero because the queue's leader did not answer;
6. nothing came: delete it. Something came: bind it again.

Killed at any point it leaves a queue that is either bound, or unbound with all that is in it (the
next publisher binds it again), or empty and gone. It never holds the only copy of a message:
what comes late stays in the queue, where a consumer that drained it would mark it as handed out,
a lost attempt.

Rules of this file:

* what changes the queue goes on the connection that has the lock or not at all: each plan starts
  with a *fence*, a step that only the holder of the lock can take. Without it a request that is
  repeated after a reconnect would delete a queue that somebody has declared anew meanwhile;
* it serves one caller at a time, and a broker object has one reclaimer at most: two on one
  connection would pass each other's fences.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field

from tq_broker.clock import Clock, epoch_ms, remaining
from tq_broker.exceptions import (
    BrokerUnavailable,
    DeadlineExceeded,
    InvalidArgument,
    TqBrokerError,
)
from tq_broker.model import envelope
from tq_broker.model.composition import Member, Way, shared
from tq_broker.model.message import Publication
from tq_broker.model.names import (
    DEALT,
    PLAIN,
    UNFAIR,
    Exchange,
    Kind,
    Names,
    QueueName,
    requirements,
)
from tq_broker.model.settings import ACTIVITY_SIDE, TaskQueueReclaimed, side_of
from tq_broker.queues import topology
from tq_broker.queues.broker import Broker, Delivery, QueueStats, Receipt, Verdict
from tq_broker.queues.sender import Sender, lock_name
from tq_broker.queues.topology import BindQueue, DeleteQueue, Plan, Step

log = logging.getLogger(__name__)

BATCH = 100
"""Queues that wait out their grace together."""
GATHER_S = 1.0
"""A batch starts with what it has by then: those who publish to its queues are waiting."""
LOCK_S = 0.5
"""Longer than a declare holds a lock; who holds it for longer is another reclaimer."""
STEP_S = 10.0
DELETE_S = 60.0
"""Longer than RabbitMQ itself tries: when we give up on a delete and free the lock, it must not
happen afterwards."""
RECORD_S = 5.0
GRACE_MAX_S = 60.0


class Reclaimer:
    """Removes idle task queues of one namespace. Blocks; from any thread, one call at a time.

    Args:
        sender: Publishes through ``broker``; its ``names`` and clock are those given.
    """

    def __init__(self, broker: Broker, sender: Sender, names: Names, clock: Clock) -> None:
        self._broker = broker
        self._sender = sender
        self._names = names
        self._clock = clock
        self._busy = threading.Lock()

    def removable(
        self, members: Iterable[Member], deadline: float, *, is_served: bool = False
    ) -> list[QueueName]:
        """Those queues of one side of a task queue that may go now.

        What requires capabilities goes when it is idle itself; the others go together, when nothing
        waits in any of them, and nobody consumes one. Those of versions go with their version, and
        what limits are kept with stays as the limits do.

        Args:
            is_served: There are workers of the task queue.

        Raises:
            BrokerUnavailable, DeadlineExceeded: there was no answer.
        """
        capable, others = list[QueueName](), list[Member]()
        for one in members:
            if one.way is not Way.CAPABLE:
                others.append(one)
            elif self.is_idle(one.queue, deadline):
                capable.append(one.queue)
        if is_served or not all(self.is_idle(one.queue, deadline) for one in others):
            return capable
        return [*(one.queue for one in others if one.way is Way.SHARED), *capable]

    def reclaim(
        self,
        task_queues: Sequence[str],
        *,
        grace_s: float = 1.0,
        side: str = ACTIVITY_SIDE,
        prioritized: Container[tuple[str, str]] = frozenset(),
    ) -> list[str]:
        """Remove those of ``task_queues`` that are idle; returns the names of the removed.

        A queue that somebody declares at the same time, that has messages or consumers, or
        whose state cannot be learned, is left as it is. Publishers to a queue that is being
        looked at wait, for ``grace_s`` and some milliseconds per queue of its batch.

        A worker that has stopped consuming but still runs tasks of a queue cannot be seen: the
        caller keeps to queues that have been idle for long.

        Args:
            grace_s: How long a message may be on its way from its routing to its queue, inside
                RabbitMQ; 0 to 60 seconds.
            side: Which queue of the task queues: one of `tq_broker.model.settings.SIDES`.
            prioritized: The sides and task queues that have a priority queue; it goes first.

        Raises:
            InvalidArgument: a name or ``grace_s`` is wrong; nothing was done.
            BrokerUnavailable, AccessRefused: what has been removed is in the settings log.
        """
        queues = [
            one.queue
            for name in task_queues
            for one in shared(self._names, side, name, prioritized)
        ]
        removed = self.reclaim_queues(queues, grace_s=grace_s)
        return [queue.parts[-1] for queue in removed if queue.kind not in PLAIN]

    def reclaim_queues(
        self, queues: Sequence[QueueName], *, grace_s: float = 1.0
    ) -> list[QueueName]:
        """The same for any shared queues of task queues; returns the removed.

        Where a priority queue is among them, it goes first, and the plain one only after it. Before
        it go those in which tasks wait for their fair shares to be put there.
        """
        if not 0 <= grace_s <= GRACE_MAX_S:
            raise InvalidArgument(f"grace_s is {grace_s}; it must be from 0 to {GRACE_MAX_S}")
        if not queues:
            return []
        # Those for fair shares go with the priority queue that they stand before.
        queues = [queue for queue in queues if queue.kind not in DEALT]
        first = dict.fromkeys(queue for queue in queues if queue.kind in PLAIN)
        with self._busy:
            # Now, because it may need threads that our locks will keep waiting.
            records = self._names.queue(Kind.SETTINGS)
            self._sender.ensure((records,), self._clock.monotonic() + STEP_S)
            removed = self._reclaim_all(self._free_of_shares(first, grace_s), grace_s)
            kept = {self._names.twin(queue) for queue in first.keys() - set(removed)}
            last = [one for one in dict.fromkeys(queues) if one not in first and one not in kept]
            return removed + self._reclaim_all(last, grace_s)

    def _free_of_shares(
        self, prioritized: Iterable[QueueName], grace_s: float
    ) -> Iterable[QueueName]:
        """Those of the priority queues that no tasks are dealt to, after the queues of idle dealers
        were removed: the lanes first, because nobody would look for them without the other one."""
        for queue in prioritized:
            fair, *lanes = self._names.unshared(self._names.plain(queue))
            if self._is_gone(lanes, grace_s) and self._is_gone([fair], grace_s):
                yield queue

    def _is_gone(self, queues: Sequence[QueueName], grace_s: float) -> bool:
        """Whether none of ``queues`` is there, after those that are idle were removed."""
        there = [one for one in queues if self._stats(one) is not None]
        return not there or len(self._reclaim_all(there, grace_s)) == len(there)

    def _stats(self, queue: QueueName) -> QueueStats | None:
        return self._broker.stats(str(queue), self._deadline())

    def _reclaim_all(self, queues: Iterable[QueueName], grace_s: float) -> list[QueueName]:
        left, removed = deque(queues), list[QueueName]()
        while left:
            removed += self._reclaim_batch(left, grace_s)
        return removed

    def _reclaim_batch(self, left: deque[QueueName], grace_s: float) -> list[QueueName]:
        with contextlib.ExitStack() as batch:
            held: list[_Held] = []
            gathered = self._clock.monotonic() + GATHER_S
            while left and len(held) < BATCH and self._clock.monotonic() < gathered:
                taken = self._take(left.popleft(), batch)
                if taken is not None:
                    held.append(taken)
            if not held:
                return []
            self._clock.sleep(grace_s)
            removed = [one for one in held if self._tried(one, self._conclude)]
            # Before the locks are free: who declares the queue again writes its record after.
            self._record(removed)
        return [one.queue for one in removed]

    def _take(self, queue: QueueName, batch: contextlib.ExitStack) -> _Held | None:
        """Lock and unbind ``queue`` if it is idle; ``batch`` frees the lock in the end."""
        lock = lock_name(self._names, queue)
        one = _Held(queue, self._fence(lock), batch.enter_context(contextlib.ExitStack()))
        try:
            one.hold.enter_context(self._broker.lock(str(lock), self._clock.monotonic() + LOCK_S))
        except DeadlineExceeded:
            log.debug("reclaim: %s is locked by somebody else", queue)
            return None
        if self._tried(one, self._unbind):
            return one
        one.hold.close()
        return None

    def _tried(self, one: _Held, step: Callable[[_Held], bool]) -> bool:
        """``step(one)``; False if it could not be. One queue's trouble is not the others'."""
        try:
            return step(one)
        except BrokerUnavailable:
            raise
        except TqBrokerError as error:
            log.warning("reclaim: %s is left as it is: %s", one.queue, error)
            one.hold.close()
            return False

    def _fence(self, lock: QueueName) -> Step:
        # Nobody but its connection may bind an exclusive queue; nothing is published there.
        return BindQueue(str(lock), self._names.exchange(Exchange.TASKS), lock.key)

    def is_idle(self, queue: QueueName, deadline: float) -> bool:
        """Whether ``queue`` is empty and without consumers now; raises as `idle`."""
        stats = self._broker.stats(str(queue), deadline)
        return stats is None or not (stats.ready or stats.consumers)

    def _unbind(self, one: _Held) -> bool:
        stats = self._stats(one.queue)
        if stats is None:
            # Whoever removed it had no time to say so.
            self._record([one])
            return False
        if stats.ready or stats.consumers:
            return False
        steps = topology.unbind_task_queue(self._names, one.queue).steps
        self._broker.apply(Plan((one.fence, *steps)), self._deadline())
        return True

    def _conclude(self, one: _Held) -> bool:
        if self.is_idle(one.queue, self._deadline()):
            late = self._broker.get(str(one.queue), self._deadline())
            if late is None:
                delete = Plan((one.fence, DeleteQueue(str(one.queue))))
                self._broker.apply(delete, self._clock.monotonic() + DELETE_S)
                self._sender.forget(one.queue)
                return True
            try:
                self._bind(one)
                self._give_back(one.queue, late)
            except TqBrokerError:
                late.reject(requeue=True)
                raise
        else:
            self._bind(one)
        one.hold.close()
        return False

    def _bind(self, one: _Held) -> None:
        # Only the bindings of the plan: the queue is there, as whoever declared it wanted it.
        steps = [s for s in self._sender.plan(one.queue).steps if isinstance(s, BindQueue)]
        self._broker.apply(Plan((one.fence, *steps)), self._deadline())

    def _give_back(self, queue: QueueName, late: Delivery) -> None:
        """Put ``late`` back into ``queue`` as a message that nobody has had before."""
        copy = envelope.forwarded(late.message)
        publication = Publication(self._names.exchange(Exchange.TASKS), queue.key, copy)
        ended = _Ended(1)
        self._broker.publish(publication, self._deadline(), ended.one)
        ended.wait(STEP_S)
        if ended.confirmed:
            late.ack()
        else:
            late.reject(requeue=True)

    def _record(self, gone: Sequence[_Held]) -> None:
        """Write into the settings log that these task queues are gone."""
        untold = (Kind.VERSION, Kind.RAMPING, Kind.LANE)
        removed = [one for one in gone if one.queue.kind not in untold]
        deadline = self._clock.monotonic() + RECORD_S
        ended = _Ended(len(removed))
        for one in removed:
            record = TaskQueueReclaimed(
                one.queue.parts[-1],
                epoch_ms(self._clock),
                side=side_of(one.queue),
                priority=one.queue.kind in PLAIN,
                fair=one.queue.kind in UNFAIR,
                requires=requirements(one.queue),
            )
            self._sender.append(record, deadline, ended.record)
        if removed and not ended.wait(remaining(self._clock, deadline)):
            log.warning("reclaim: %d queues are gone, but the log may not say so", len(removed))

    def _deadline(self) -> float:
        return self._clock.monotonic() + STEP_S


@dataclass(frozen=True, slots=True)
class _Held:
    """A queue whose lock is ours until ``hold`` is closed."""

    queue: QueueName
    fence: Step
    hold: contextlib.ExitStack = field(repr=False)


class _Ended:
    """Waits for ``count`` publishes to end."""

    def __init__(self, count: int) -> None:
        self.confirmed = 0
        self._left = count
        self._lock = threading.Lock()
        self._all = threading.Event()

    def one(self, receipt: Receipt) -> None:
        self._count(receipt.verdict is Verdict.CONFIRMED)

    def record(self, error: TqBrokerError | None) -> None:
        self._count(error is None)

    def _count(self, confirmed: bool) -> None:
        with self._lock:
            self.confirmed += confirmed
            self._left -= 1
            last = not self._left
        if last:
            self._all.set()

    def wait(self, seconds: float) -> bool:
        """Whether all have ended, and well, after ``seconds`` at most."""
        return self._all.wait(seconds) and not self._left
