"""One RabbitMQ vhost in memory: exchanges, queues, connections, and what time does to them.

Rules of this file:

* no threads, no clock: ``now`` is monotonic seconds, handed in; whoever calls holds one lock;
* after each call everything that can be handed out has been handed to its `Recipient`, and
  `Vhost.next_due` says when `Vhost.advance` has something to do;
* refusals are our errors with RabbitMQ's words: 403 and 405 are `AccessRefused`, 404 is
  `NotFound`, 406 and 540 are `InvalidArgument`; but an existing queue or exchange that was
  declared otherwise is used as it is, and the difference is told;
* the model is RabbitMQ 3.10: what later versions add is not here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from functools import singledispatchmethod
from typing import Any

from tq_broker.exceptions import AccessRefused, InvalidArgument, NotFound
from tq_broker.model.message import Message, Publication
from tq_broker.queues.broker import QueueStats, Receipt, Verdict
from tq_broker.queues.memory_deaths import Death, Reason, is_cycle, with_death
from tq_broker.queues.memory_exchange import Destination, MemoryExchange
from tq_broker.queues.memory_queue import (
    Consumer,
    Queue,
    ReadyQueue,
    Stored,
    StreamQueue,
    make_queue,
)
from tq_broker.queues.topology import (
    BindExchange,
    BindQueue,
    DeclareExchange,
    DeclareQueue,
    DeleteQueue,
    Step,
    UnbindQueue,
)

NAME_BYTES_MAX = 255
DEAD_LETTER_RETRY_S = 180.0
"""How often an at-least-once dead letter that nobody wants is tried again (measured)."""
ROUTES_MAX = 4096
"""Remembered routes; forgotten all together when there are more, so keys may churn."""

# An argument outside this set never makes a declaration inequivalent.
_COMPARED = frozenset(
    {
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-delivery-limit",
        "x-expires",
        "x-max-age",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-message-ttl",
        "x-overflow",
        "x-single-active-consumer",
        "x-stream-max-segment-size-bytes",
    }
)
_CONFIRMED = Receipt(Verdict.CONFIRMED)


class Connection:
    """A client's connection: what it holds unacknowledged, and its consumers."""

    __slots__ = ("consumers", "is_open", "tags", "unacked")

    def __init__(self) -> None:
        self.is_open = True
        self.tags = 0
        self.unacked: dict[int, tuple[Queue, Stored, Consumer | None]] = {}
        self.consumers: list[Consumer] = []


class Vhost:
    """Exchanges and queues, and the messages in them.

    Attributes:
        epoch_s: Wall-clock seconds at monotonic zero, for the ``time`` in ``x-death``.
        on_dropped: Told of each message that ceases to exist unacknowledged, and why.
    """

    def __init__(self) -> None:
        self.epoch_s = 0.0
        self.on_dropped: Callable[[Message, str, str], None] = lambda message, queue, why: None
        self.queues: dict[str, Queue] = {}
        self.exchanges: dict[str, MemoryExchange] = {}
        self._connections: set[Connection] = set()
        self._routes: dict[tuple[str, str], tuple[Queue, ...]] = {}
        self._dirty: dict[Queue, None] = {}
        self._wakes: list[tuple[float, int, Queue]] = []
        self._wake_count = 0
        self._waiting: list[tuple[float, int, Queue, Stored, Reason]] = []
        """At-least-once dead letters without a home: (retry at, number, from, what, why)."""

    # --- connections ---

    def connect(self) -> Connection:
        """A new connection."""
        connection = Connection()
        self._connections.add(connection)
        return connection

    def disconnect(self, connection: Connection, now: float) -> None:
        """The connection is gone: its messages go back, its exclusive queues vanish."""
        connection.is_open = False
        self._connections.discard(connection)
        for consumer in connection.consumers:
            if consumer.queue is not None:
                consumer.queue.detach(consumer, now)
                self._dirty[consumer.queue] = None
        connection.consumers.clear()
        for queue in [queue for queue in self.queues.values() if queue.owner is connection]:
            self._remove(queue, "its exclusive queue was deleted")
        for queue, stored, holder in connection.unacked.values():
            self._give_back(queue, stored, holder, now)
        connection.unacked.clear()
        self._settle(now)

    # --- topology ---

    def take(self, step: Step, connection: Connection, now: float) -> str:
        """Take one step of a plan.

        Returns how what exists differs from what was asked for; empty if it does not.

        Raises:
            AccessRefused: the exclusive queue of another connection.
            InvalidArgument: an argument that RabbitMQ refuses.
            NotFound: a binding to or from what does not exist.
        """
        difference: str = self._take(step, connection, now)
        self._settle(now)
        return difference

    def difference(self, step: DeclareQueue) -> str:
        """How the existing queue differs from ``step``; empty if it does not or is not there."""
        queue = self.queues.get(step.name)
        if queue is None:
            return ""
        existing, wanted = queue.raw_arguments, step.arguments
        found = [
            f"{name} is {existing.get(name)!r}, not {wanted.get(name)!r}"
            for name in sorted(_COMPARED & (existing.keys() | wanted.keys()))
            if not _is_same(existing.get(name), wanted.get(name))
        ]
        type_wanted = wanted.get("x-queue-type", queue.arguments.queue_type)
        if type_wanted != queue.arguments.queue_type:
            found.append(f"x-queue-type is {queue.arguments.queue_type!r}, not {type_wanted!r}")
        if step.exclusive != (queue.owner is not None):
            found.append(f"exclusive is {queue.owner is not None}, not {step.exclusive}")
        return "; ".join(found)

    @singledispatchmethod
    def _take(self, step: Step, connection: Connection, now: float) -> str:
        raise AssertionError(f"{step!r} is a step of no known kind")

    @_take.register
    def _(self, step: DeclareExchange, connection: Connection, now: float) -> str:
        _check_name(step.name)
        exchange = self.exchanges.get(step.name)
        if exchange is None:
            self.exchanges[step.name] = MemoryExchange(step.name, step.type, step.arguments)
            self._routes.clear()
            return ""
        if exchange.type != step.type:
            return f"type is {exchange.type!r}, not {step.type!r}"
        if exchange.arguments != dict(step.arguments):
            return f"arguments are {exchange.arguments!r}, not {dict(step.arguments)!r}"
        return ""

    @_take.register
    def _(self, step: DeclareQueue, connection: Connection, now: float) -> str:
        _check_name(step.name)
        queue = self._find(step.name, connection)
        if queue is not None:
            queue.renew(now)
            return self.difference(step)
        owner = connection if step.exclusive else None
        queue = make_queue(step.name, step.arguments, owner=owner, now=now)
        self.queues[step.name] = queue
        self._dirty[queue] = None
        return ""

    @_take.register
    def _(self, step: BindQueue, connection: Connection, now: float) -> str:
        if self._find(step.queue, connection) is None:
            raise _not_found("queue", step.queue)
        self._bind(step.exchange, Destination.queue(step.queue), step.routing_key)
        return ""

    @_take.register
    def _(self, step: BindExchange, connection: Connection, now: float) -> str:
        self._exchange(step.destination)
        self._bind(step.source, Destination.exchange(step.destination), step.routing_key)
        return ""

    @_take.register
    def _(self, step: UnbindQueue, connection: Connection, now: float) -> str:
        exchange = self.exchanges.get(step.exchange)
        self._find(step.queue, connection)
        if exchange and exchange.unbind(Destination.queue(step.queue), step.routing_key):
            self._routes.clear()
        return ""

    @_take.register
    def _(self, step: DeleteQueue, connection: Connection, now: float) -> str:
        queue = self._find(step.queue, connection)
        if queue is not None and not (step.only_idle and (queue.ready or queue.consumers)):
            self._remove(queue, "its queue was deleted")
        return ""

    def _bind(self, exchange: str, destination: Destination, key: str) -> None:
        _check_name(key)
        if self._exchange(exchange).bind(destination, key):
            self._routes.clear()

    def _exchange(self, name: str) -> MemoryExchange:
        exchange = self.exchanges.get(name)
        if exchange is None:
            raise _not_found("exchange", name)
        return exchange

    def _find(self, name: str, connection: Connection) -> Queue | None:
        queue = self.queues.get(name)
        if queue is not None and queue.owner not in (None, connection):
            raise AccessRefused(
                f"RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{name}'"
            )
        return queue

    def _remove(self, queue: Queue, why: str) -> None:
        del self.queues[queue.name]
        self._dirty.pop(queue, None)
        destination = Destination.queue(queue.name)
        was_bound = [exchange.forget(destination) for exchange in self.exchanges.values()]
        if any(was_bound):
            self._routes.clear()
        if isinstance(queue, ReadyQueue):
            for stored in queue.purge():
                self.on_dropped(stored.message, queue.name, why)
            for entry in [entry for entry in self._waiting if entry[2] is queue]:
                self._waiting.remove(entry)
                self.on_dropped(entry[3].message, queue.name, why)
            heapq.heapify(self._waiting)
        consumers = list(queue.consumers)
        queue.consumers.clear()
        for consumer in consumers:
            consumer.recipient.cancelled()

    # --- messages ---

    def publish(self, publication: Publication, now: float) -> Receipt:
        """Store a message in every queue that it is routed to, mandatory."""
        exchange, key = publication.exchange, publication.routing_key
        if exchange and exchange not in self.exchanges:
            # Over AMQP this closes the channel; to the publisher it is one more missing route.
            return Receipt(Verdict.RETURNED, f"NOT_FOUND - no exchange '{exchange}' in the vhost")
        queues = self._route(exchange, key)
        if not queues:
            return Receipt(Verdict.RETURNED, "NO_ROUTE")
        refused = ""
        for queue in queues:
            if isinstance(queue, ReadyQueue) and queue.is_full:
                refused = queue.name
                continue
            queue.push(Stored(publication.message, exchange, key), now)
            self._dirty[queue] = None
        self._settle(now)
        return Receipt(Verdict.REFUSED, f"the queue '{refused}' is full") if refused else _CONFIRMED

    def consume(
        self,
        consumer: Consumer,
        queue: str,
        connection: Connection,
        arguments: Mapping[str, Any],
        now: float,
    ) -> None:
        """Start a consumer.

        Raises:
            AccessRefused: exclusive use stands in the way.
            InvalidArgument: an argument that the queue refuses.
            NotFound: there is no such queue.
        """
        found = self._find(queue, connection)
        if found is None:
            raise _not_found("queue", queue)
        found.attach(consumer, arguments)
        connection.consumers.append(consumer)
        self._dirty[found] = None
        self._settle(now)

    def cancel(self, consumer: Consumer, connection: Connection, now: float) -> None:
        """End a consumer; what it holds stays its connection's."""
        if consumer in connection.consumers:
            connection.consumers.remove(consumer)
        if consumer.queue is not None:
            consumer.queue.detach(consumer, now)
            self._dirty[consumer.queue] = None
        self._settle(now)

    def get(self, queue: str, connection: Connection, now: float) -> tuple[int, Stored] | None:
        """Take one message by hand: its delivery tag and it.

        Raises:
            AccessRefused: the exclusive queue of another connection.
            InvalidArgument: the queue is a stream.
        """
        found = self._find(queue, connection)
        if found is None:
            return None
        if not isinstance(found, ReadyQueue):
            raise InvalidArgument(f"NOT_IMPLEMENTED - basic.get on the stream '{queue}'")
        found.used_at = now
        self._dirty[found] = None
        self._settle(now)
        stored = found.pop()
        if stored is None:
            return None
        self._dirty[found] = None
        self._settle(now)
        return self._hold(connection, found, stored, None), stored

    def ack(self, connection: Connection, tag: int, now: float) -> None:
        """The message under ``tag`` is done with. Harmless when it is not held any more."""
        held = connection.unacked.pop(tag, None)
        if held is None:
            return
        queue, _, consumer = held
        if consumer is not None:
            consumer.unacked -= 1
            self._dirty[queue] = None
            self._settle(now)

    def reject(self, connection: Connection, tag: int, now: float, *, requeue: bool) -> None:
        """The message under ``tag`` goes back, or to the dead letters. Harmless as `ack`."""
        held = connection.unacked.pop(tag, None)
        if held is None:
            return
        queue, stored, consumer = held
        if requeue:
            self._give_back(queue, stored, consumer, now)
        else:
            if consumer is not None:
                consumer.unacked -= 1
            self._dirty[queue] = None
            # On a stream a reject only returns the credit.
            if isinstance(queue, ReadyQueue):
                if self._is_there(queue):
                    self._dead_letter(queue, stored, Reason.REJECTED, now)
                else:
                    self.on_dropped(stored.message, queue.name, "its queue was deleted")
        self._settle(now)

    def stats(self, queue: str, connection: Connection, now: float) -> QueueStats | None:
        """A passive declare."""
        found = self._find(queue, connection)
        if found is None:
            return None
        found.renew(now)
        return QueueStats(ready=found.ready, consumers=len(found.consumers))

    def held(self) -> set[str]:
        """The queues from which messages are held unacknowledged, by anybody."""
        return {
            queue.name
            for connection in self._connections
            for queue, _, _ in connection.unacked.values()
        }

    def purge(self, queue: str, connection: Connection, now: float) -> int:
        """Drop what is ready in ``queue``; how many that was."""
        found = self._find(queue, connection)
        if found is None:
            return 0
        if not isinstance(found, ReadyQueue):
            raise InvalidArgument(f"NOT_IMPLEMENTED - queue.purge on the stream '{queue}'")
        gone = found.purge()
        for stored in gone:
            self.on_dropped(stored.message, queue, "its queue was purged")
        return len(gone)

    def _route(self, exchange: str, key: str) -> tuple[Queue, ...]:
        if not exchange:
            queue = self.queues.get(key)
            return () if queue is None else (queue,)
        found = self._routes.get((exchange, key))
        if found is None:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            found = self._routes[exchange, key] = self._find_route(exchange, key)
        return found

    def _find_route(self, exchange: str, key: str) -> tuple[Queue, ...]:
        seen, work = {exchange}, [exchange]
        met: dict[Queue, None] = {}
        while work:
            here = self.exchanges.get(work.pop())
            if here is None:
                continue
            destinations = here.match(key)
            if not destinations and here.alternate is not None:
                destinations = [Destination.exchange(here.alternate)]
            for destination in destinations:
                if not destination.is_exchange:
                    met[self.queues[destination.name]] = None
                elif destination.name not in seen:
                    seen.add(destination.name)
                    work.append(destination.name)
        return tuple(met)

    def _hold(
        self, connection: Connection, queue: Queue, stored: Stored, consumer: Consumer | None
    ) -> int:
        connection.tags += 1
        connection.unacked[connection.tags] = (queue, stored, consumer)
        return connection.tags

    def _hand(self, consumer: Consumer, stored: Stored) -> None:
        connection, queue = consumer.connection, consumer.queue
        assert isinstance(connection, Connection), "a consumer has a connection"
        assert queue is not None, "a consumer is attached"
        consumer.unacked += 1
        consumer.taken += 1
        tag = self._hold(connection, queue, stored, consumer)
        consumer.recipient.deliver(tag, stored, queue.name)

    def _give_back(
        self, queue: Queue, stored: Stored, consumer: Consumer | None, now: float
    ) -> None:
        if consumer is not None:
            consumer.unacked -= 1
        self._dirty[queue] = None
        if not isinstance(queue, ReadyQueue):
            return
        if not self._is_there(queue):
            self.on_dropped(stored.message, queue.name, "its queue was deleted")
        elif not queue.give_back(stored):
            self._dead_letter(queue, stored, Reason.DELIVERY_LIMIT, now)

    def _dead_letter(self, queue: ReadyQueue, stored: Stored, reason: Reason, now: float) -> None:
        arguments = queue.arguments
        exchange = arguments.dead_letter_exchange
        if exchange is None:
            self.on_dropped(stored.message, queue.name, f"{reason.value}, no dead letters wanted")
            return
        key = arguments.dead_letter_key
        key = stored.routing_key if key is None else key
        routed = self._route(exchange, key)
        accepting = [
            target for target in routed if not (isinstance(target, ReadyQueue) and target.is_full)
        ]
        if not accepting and arguments.keeps_dead_letters:
            entry = (now + DEAD_LETTER_RETRY_S, self._count(), queue, stored, reason)
            heapq.heappush(self._waiting, entry)
            return
        if not accepting:
            self.on_dropped(stored.message, queue.name, f"{reason.value}, dead letter unroutable")
            return
        time_s = int(self.epoch_s + now)
        death = Death(queue.name, reason, stored.exchange, stored.routing_key, time_s)
        message = with_death(stored.message, death)
        for target in accepting:
            if reason is not Reason.REJECTED and is_cycle(message, target.name):
                self.on_dropped(stored.message, queue.name, f"{reason.value} in a cycle")
                continue
            target.push(Stored(message, exchange, key), now)
            self._dirty[target] = None

    # --- time ---

    def next_due(self) -> float | None:
        """When `advance` has something to do; ``None`` if never, as things are."""
        due = self._wakes[0][0] if self._wakes else None
        if self._waiting and (due is None or self._waiting[0][0] < due):
            due = self._waiting[0][0]
        return due

    def message_due(self) -> float | None:
        """When the next message expires, such as one that waits for its time in a delay queue."""
        queues = (queue for queue in self.queues.values() if isinstance(queue, ReadyQueue))
        return min((due for queue in queues if (due := queue.message_due())), default=None)

    def advance(self, now: float) -> None:
        """Do all that is due by ``now``."""
        while self._wakes and self._wakes[0][0] <= now:
            _, _, queue = heapq.heappop(self._wakes)
            queue.wake_at = None
            if not self._is_there(queue):
                continue
            if queue.is_expired(now):
                self._remove(queue, "its queue expired")
            else:
                self._dirty[queue] = None
        while self._waiting and self._waiting[0][0] <= now:
            _, _, source, stored, reason = heapq.heappop(self._waiting)
            assert isinstance(source, ReadyQueue), "a stream has no dead letters"
            self._dead_letter(source, stored, reason, now)
        self._settle(now)

    def _settle(self, now: float) -> None:
        # A dead letter makes its target dirty in turn; cycle detection makes that end.
        while self._dirty:
            queue = next(iter(self._dirty))
            del self._dirty[queue]
            if not self._is_there(queue):
                continue
            if isinstance(queue, ReadyQueue):
                for stored in queue.take_expired(now) if queue.arguments.ttl_s else ():
                    self._dead_letter(queue, stored, Reason.EXPIRED, now)
                queue.hand_out(self._hand)
                # After handing out: a time-to-live of 0 means "now or never".
                for stored in queue.take_expired(now):
                    self._dead_letter(queue, stored, Reason.EXPIRED, now)
                for stored in queue.take_overflow():
                    self._dead_letter(queue, stored, Reason.MAXLEN, now)
            elif isinstance(queue, StreamQueue):
                queue.hand_out(self._hand)
            self._book(queue)

    def _book(self, queue: Queue) -> None:
        due = queue.next_due()
        if due is not None and (queue.wake_at is None or due < queue.wake_at):
            queue.wake_at = due
            heapq.heappush(self._wakes, (due, self._count(), queue))

    def _count(self) -> int:
        self._wake_count += 1
        return self._wake_count

    def _is_there(self, queue: Queue) -> bool:
        return self.queues.get(queue.name) is queue


def _is_same(left: object, right: object) -> bool:
    return type(left) is type(right) and left == right


def _check_name(name: str) -> None:
    if len(name.encode()) > NAME_BYTES_MAX:
        raise InvalidArgument(
            f"{name[:40]!r}... is {len(name.encode())} bytes long; the bound is {NAME_BYTES_MAX}"
        )


def _not_found(what: str, name: str) -> NotFound:
    return NotFound(f"NOT_FOUND - no {what} '{name}' in the vhost")
