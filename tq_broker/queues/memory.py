"""The broker in memory: `MemoryBroker` keeps the contract of `tq_broker.queues.broker.Broker`.

For the quick start, for unit tests, and for skipping time with a manual clock. Several brokers
on one `MemoryServer` are several connections to one vhost.

Rules of this file:

* everything is called back from one thread per broker, fed through its `Mailbox`: never from
  inside a call, never with a lock held;
* attributes are guarded by ``server.changed``; the names of methods that want it held end in
  ``_locked``;
* a broker does not cross ``os.fork()``: its server would be a copy.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence

from tq_broker.clock import Clock, SystemClock, Timer
from tq_broker.exceptions import (
    AccessRefused,
    BrokerUnavailable,
    Bug,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Rejected,
)
from tq_broker.model.message import Publication
from tq_broker.queues.broker import (
    DeliveriesCallback,
    IndexedReceiptCallback,
    QueueStats,
    Receipt,
    ReceiptCallback,
    SubscribeOptions,
    Subscription,
    Verdict,
)
from tq_broker.queues.memory_mail import Mailbox, MemoryDelivery
from tq_broker.queues.memory_server import VERSION, MemoryServer, forget, server_for
from tq_broker.queues.memory_subscription import MemorySubscription
from tq_broker.queues.memory_vhost import Connection
from tq_broker.queues.topology import DeclareQueue, Plan

__all__ = ["MemoryBroker", "MemoryServer", "forget", "server_for"]

PREFETCH_MAX = 65535
RETRY_S = 1.0
"""How long a subscription that was refused waits before it tries again."""

_EXPIRED = Receipt(Verdict.EXPIRED, "no answer before the deadline")
_log = logging.getLogger(__name__)


class _Pending:
    """A publish that waits for the connection to come back."""

    __slots__ = ("done", "publication", "timer")

    def __init__(self, publication: Publication, done: Callable[[Receipt], None]) -> None:
        self.publication = publication
        self.done = done
        self.timer: Timer | None = None


class MemoryBroker:
    """A connection to one vhost in this process."""

    def __init__(self, server: MemoryServer, clock: Clock | None = None) -> None:
        """Nothing is opened yet.

        Args:
            clock: Drives time-to-live and expiry; one for all brokers of a server. ``None`` is
                the machine's own.
        """
        self._server = server
        self._clock = clock or SystemClock()
        self._vhost = server.vhost
        self._vhost.epoch_s = self._clock.wall() - self._clock.monotonic()
        self._mail = Mailbox()
        self._connection: Connection | None = None
        self._is_away = False
        self._is_killed = False
        self._is_closed = False
        self._subscriptions: list[MemorySubscription] = []
        self._pending: list[_Pending] = []
        self._warned: set[str] = set()

    @classmethod
    def connect(cls, url: str, clock: Clock | None = None) -> MemoryBroker:
        """A broker on the server named by ``url``, such as ``memory://test``."""
        return cls(server_for(url), clock)

    def __repr__(self) -> str:
        return f"<MemoryBroker {self.url}>"

    # --- the contract ---

    @property
    def url(self) -> str:
        return self._server.url

    def server_version(self, deadline: float) -> tuple[int, ...]:
        self._check_thread()
        with self._server.changed:
            self._connected_locked(deadline)
        return VERSION

    def publish(self, publication: Publication, deadline: float, done: ReceiptCallback) -> None:
        now = self._clock.monotonic()
        with self._server.changed:
            receipt = self._publish_locked(publication, now, deadline, done)
            self._server.book(self._clock)
        if receipt is not None:
            self._mail.call(done, receipt)

    def publish_many(
        self, publications: Sequence[Publication], deadline: float, done: IndexedReceiptCallback
    ) -> None:
        now = self._clock.monotonic()
        receipts = []
        with self._server.changed:
            for index, publication in enumerate(publications):
                done_here = functools.partial(done, index)
                receipts.append(self._publish_locked(publication, now, deadline, done_here))
            self._server.book(self._clock)
        # All at the end, so that the deliveries meanwhile are handed over together.
        for index, receipt in enumerate(receipts):
            if receipt is not None:
                self._mail.call(done, index, receipt)

    def apply(self, plan: Plan, deadline: float) -> None:
        self._check_thread()
        with self._server.changed:
            connection = self._unlocked_locked(plan.lock, deadline)
            differences = self._take_locked(plan, connection)
        self._warn(differences)

    def claim(self, plan: Plan, deadline: float) -> bool:
        self._check_thread()
        with self._server.changed:
            connection = self._unlocked_locked(plan.lock, deadline)
            for step in plan.steps:
                if isinstance(step, DeclareQueue) and self._vhost.difference(step):
                    return False
            differences = self._take_locked(plan, connection)
        self._warn(differences)
        return True

    @contextlib.contextmanager
    def lock(self, name: str, deadline: float) -> Iterator[None]:
        self._check_thread()
        with self._server.changed:
            connection = self._unlocked_locked(name, deadline)
            self._server.hold(name, connection, self._clock.monotonic())
        try:
            yield
        finally:
            with self._server.changed:
                self._server.free(name, connection, self._clock.monotonic())

    def stats(self, queue: str, deadline: float) -> QueueStats | None:
        self._check_thread()
        with self._server.changed:
            connection = self._connected_locked(deadline)
            return self._vhost.stats(queue, connection, self._clock.monotonic())

    def get(self, queue: str, deadline: float) -> MemoryDelivery | None:
        self._check_thread()
        with self._server.changed:
            connection = self._connected_locked(deadline)
            taken = self._vhost.get(queue, connection, self._clock.monotonic())
            self._server.book(self._clock)
            if taken is None:
                return None
            tag, stored = taken
            return MemoryDelivery(self, connection, tag, stored, queue)

    def purge(self, queue: str, deadline: float) -> int:
        self._check_thread()
        with self._server.changed:
            connection = self._connected_locked(deadline)
            return self._vhost.purge(queue, connection, self._clock.monotonic())

    def subscribe(
        self, queue: str, on_deliveries: DeliveriesCallback, options: SubscribeOptions
    ) -> MemorySubscription:
        if not 0 <= options.prefetch <= PREFETCH_MAX:
            raise InvalidArgument(
                f"prefetch must be between 0 and {PREFETCH_MAX}, not {options.prefetch}"
            )
        subscription = MemorySubscription(self, self._mail, queue, on_deliveries, options)
        with self._server.changed:
            if self._is_closed:
                raise BrokerUnavailable(f"{self!r} is closed")
            self._subscriptions.append(subscription)
            differences = self._establish_locked(subscription)
        self._warn(differences)
        return subscription

    def wait_subscribed(self, subscriptions: Sequence[Subscription], deadline: float) -> None:
        self._check_thread()
        ours = [wish for wish in subscriptions if isinstance(wish, MemorySubscription)]

        def refusals() -> Iterator[Rejected]:
            # What does not exist yet may come, so only the others end the wait.
            for wish in ours:
                if isinstance(wish.error, AccessRefused | InvalidArgument):
                    yield wish.error

        def is_answered() -> bool:
            return (
                self._is_closed
                or self._is_killed
                or any(refusals())
                or all(wish.consumer is not None or not wish.is_wanted for wish in ours)
            )

        with self._server.changed:
            is_in_time = self._server.wait(self._clock, deadline, is_answered)
            for refusal in refusals():
                raise refusal
            if self._is_closed or self._is_killed:
                raise BrokerUnavailable(f"{self!r} has no connection")
            if not is_in_time:
                missing = [wish.queue for wish in ours if wish.consumer is None]
                raise DeadlineExceeded(f"not subscribed in time: {', '.join(missing)}")

    def close(self, deadline: float) -> None:
        self._check_thread()
        with self._server.changed:
            if self._is_closed:
                return
            for subscription in list(self._subscriptions):
                self._cancel_locked(subscription)
        self._flush(deadline)
        with self._server.changed:
            self._is_closed = True
            for pending in self._pending:
                self._mail.call(pending.done, _EXPIRED)
            self._pending.clear()
            self._disconnect_locked()
            self._mail.stop()

    # --- for tests: what goes wrong with connections ---

    def break_connection(self, *, away_s: float = 0.0) -> None:
        """Cut the connection, as a network does; it is restored by itself after ``away_s``.

        What was unacknowledged goes back, exclusive queues vanish, locks are free. Publishes
        meanwhile wait for the new connection, as long as their deadline allows.
        """
        with self._server.changed:
            if self._is_closed or self._is_killed or self._is_away:
                return
            self._is_away = True
            self._disconnect_locked()
            self._mail.start()
            if away_s > 0:
                back = self._clock.monotonic() + away_s
                self._clock.call_at(back, lambda: self._mail.call(self._reconnect))
            else:
                self._mail.call(self._reconnect)

    def kill(self) -> None:
        """Cut the connection for ever, as ``kill -9`` of this process would.

        From now on publishes end `EXPIRED` at their deadline and all else raises
        `BrokerUnavailable`.
        """
        with self._server.changed:
            self._is_killed = True
            self._disconnect_locked()
            for subscription in list(self._subscriptions):
                self._cancel_locked(subscription)

    def wait_quiet(self, deadline: float) -> None:
        """Wait until everything that this broker had to call back has been called back.

        With a manual clock: after `advance`, before looking at what came of it.

        Raises:
            DeadlineExceeded: the callbacks go on and on.
        """
        self._check_thread()
        while True:
            if not self._flush(deadline):
                raise DeadlineExceeded(f"{self!r} still has something to call back")
            if self._mail.is_empty or self._is_closed:
                return

    # --- connection ---

    def _connected_locked(self, deadline: float) -> Connection:
        if self._clock.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline is over already")
        self._server.wait(
            self._clock, deadline, lambda: not self._is_away or self._is_closed or self._is_killed
        )
        connection = self._connection or self._open_locked()
        if connection is None:
            raise BrokerUnavailable(f"{self!r} has no connection")
        return connection

    def _unlocked_locked(self, lock: str | None, deadline: float) -> Connection:
        """Our connection, at a moment when nobody holds ``lock``."""
        while True:
            connection = self._connected_locked(deadline)
            if lock is None or not self._server.is_locked(lock):
                return connection
            if not self._server.wait(
                self._clock,
                deadline,
                lambda: self._is_killed or self._is_closed or not self._server.is_locked(lock),
            ):
                raise DeadlineExceeded(f"the lock {lock} was held until the deadline")

    def _open_locked(self) -> Connection | None:
        if self._is_away or self._is_closed or self._is_killed:
            return None
        if self._connection is None:
            self._connection = self._vhost.connect()
            self._mail.start()
        return self._connection

    def _disconnect_locked(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._vhost.disconnect(connection, self._clock.monotonic())
            self._server.book(self._clock)
        for subscription in list(self._subscriptions):
            subscription.consumer = None
            if subscription.options.on_lost is not None:
                self._mail.call(subscription.options.on_lost)
            if subscription.options.once:
                self._forget_locked(subscription)
        self._server.exclusive_gone()

    def _reconnect(self) -> None:
        differences: list[str] = []
        with self._server.changed:
            self._is_away = False
            connection = self._open_locked()
            if connection is None:
                return
            for subscription in list(self._subscriptions):
                differences += self._establish_locked(subscription)
            waiting, self._pending = self._pending, []
            for pending in waiting:
                assert pending.timer is not None, "what waits has its deadline booked"
                pending.timer.cancel()
                receipt = self._vhost.publish(pending.publication, self._clock.monotonic())
                self._mail.call(pending.done, receipt)
            self._server.book(self._clock)
            self._server.changed.notify_all()
        self._warn(differences)

    # --- publishing and topology ---

    def _publish_locked(
        self, publication: Publication, now: float, deadline: float, done: ReceiptCallback
    ) -> Receipt | None:
        connection = self._connection or self._open_locked()
        if self._is_closed:
            raise BrokerUnavailable(f"{self!r} is closed")
        if now >= deadline:
            self._mail.start()
            return _EXPIRED
        if connection is not None:
            return self._vhost.publish(publication, now)
        self._mail.start()
        pending = _Pending(publication, done)
        pending.timer = self._clock.call_at(deadline, lambda: self._expire(pending))
        self._pending.append(pending)
        return None

    def _expire(self, pending: _Pending) -> None:
        with self._server.changed:
            if pending in self._pending:
                self._pending.remove(pending)
                self._mail.call(pending.done, _EXPIRED)

    def _take_locked(self, plan: Plan, connection: Connection) -> list[str]:
        """Take the steps; returns what differs, in words."""
        now = self._clock.monotonic()
        differences = []
        try:
            for step in plan.steps:
                if difference := self._vhost.take(step, connection, now):
                    name = getattr(step, "name", "")
                    differences.append(
                        f"{name} exists otherwise and is used as it is: {difference}"
                    )
        finally:
            self._server.exclusive_gone()
            self._server.book(self._clock)
        return differences

    def _warn(self, differences: list[str]) -> None:
        for difference in differences:
            if difference not in self._warned:
                self._warned.add(difference)
                _log.warning("%s", difference)

    # --- subscriptions and deliveries ---

    def _establish_locked(self, subscription: MemorySubscription) -> list[str]:
        """Try to consume; returns what the plan found different, in words."""
        connection = self._connection or self._open_locked()
        if connection is None or not subscription.is_wanted or subscription.consumer is not None:
            return []
        options = subscription.options
        differences: list[str] = []
        if options.plan.lock is not None and self._server.is_locked(options.plan.lock):
            self._server.when_unlocked(lambda: self._mail.call(self.restore_wish, subscription))
            return []
        consumer = subscription.make_consumer(connection)
        now = self._clock.monotonic()
        try:
            differences = self._take_locked(options.plan, connection)
            self._vhost.consume(consumer, subscription.queue, connection, options.arguments, now)
        except Rejected as error:
            subscription.consumer, subscription.error = None, error
            if options.once and isinstance(error, NotFound):
                self._forget_locked(subscription)
                return differences
            again = now + RETRY_S
            self._clock.call_at(again, lambda: self._mail.call(self.restore_wish, subscription))
        else:
            subscription.error = None
            if options.on_accepted is not None:
                self._mail.call(options.on_accepted)
        self._server.book(self._clock)
        self._server.changed.notify_all()
        return differences

    def restore_wish(self, subscription: MemorySubscription) -> None:
        """Try again what was not accepted."""
        with self._server.changed:
            differences = self._establish_locked(subscription)
        self._warn(differences)

    def end_wish_and_wait(self, subscription: MemorySubscription, deadline: float) -> None:
        """What `MemorySubscription.cancel` does."""
        self._check_thread()
        self.end_wish(subscription)
        if not self._flush(deadline):
            raise DeadlineExceeded(f"the callback for {subscription.queue} did not end in time")

    def end_wish(self, subscription: MemorySubscription) -> None:
        """What `MemorySubscription.cancel_nowait` does."""
        with self._server.changed:
            self._cancel_locked(subscription)

    def _cancel_locked(self, subscription: MemorySubscription) -> None:
        if not subscription.is_wanted:
            return
        self._forget_locked(subscription)
        consumer, subscription.consumer = subscription.consumer, None
        if consumer is not None and subscription.connection is not None:
            self._vhost.cancel(consumer, subscription.connection, self._clock.monotonic())
            self._server.book(self._clock)
        self._server.changed.notify_all()

    def _forget_locked(self, subscription: MemorySubscription) -> None:
        subscription.is_wanted = False
        self._subscriptions.remove(subscription)
        if subscription.options.on_over is not None:
            self._mail.call(subscription.options.on_over)

    def settle_ack(self, connection: Connection, tag: int) -> None:
        """What `MemoryDelivery.ack` does."""
        with self._server.changed:
            self._vhost.ack(connection, tag, self._clock.monotonic())
            self._server.book(self._clock)

    def settle_reject(self, connection: Connection, tag: int, *, requeue: bool) -> None:
        """What `MemoryDelivery.reject` does."""
        with self._server.changed:
            self._vhost.reject(connection, tag, self._clock.monotonic(), requeue=requeue)
            self._server.book(self._clock)

    # --- the thread that calls back ---

    def _check_thread(self) -> None:
        if self._mail.is_mine:
            raise Bug("a blocking method of the broker was called from one of its callbacks")

    def _flush(self, deadline: float) -> bool:
        """Wait until the mail that is there now has been read; False if it was not in time."""
        if not self._mail.is_started:
            return True
        is_read = False

        def read() -> None:
            nonlocal is_read
            with self._server.changed:
                is_read = True
                self._server.changed.notify_all()

        self._mail.call(read)
        with self._server.changed:
            return self._server.wait(self._clock, deadline, lambda: is_read or self._is_closed)
