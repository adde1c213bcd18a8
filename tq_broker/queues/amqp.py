"""The adapter for RabbitMQ: a publisher, a reader, and the port in front of them.

Rules of this file:

* no rule of its own: what is decided is decided in the modules beside;
* an ``os.fork()`` gives the child objects with nothing open; the parent's sockets are closed in
  the child without a word on them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import amqp.exceptions

from tq_broker.clock import Clock, remaining
from tq_broker.exceptions import Bug, DeadlineExceeded, InvalidArgument
from tq_broker.model.message import Publication
from tq_broker.queues import declarer
from tq_broker.queues.address import mask, parse_addresses
from tq_broker.queues.broker import (
    DeliveriesCallback,
    Delivery,
    IndexedReceiptCallback,
    QueueStats,
    ReceiptCallback,
    SubscribeOptions,
    Subscription,
)
from tq_broker.queues.errors import Locked
from tq_broker.queues.feeds import AmqpDelivery
from tq_broker.queues.publisher import Publisher
from tq_broker.queues.reader import Reader
from tq_broker.queues.subscriber import AmqpSubscription
from tq_broker.queues.topology import Plan

LOCK_RETRY_MIN_S, LOCK_RETRY_MAX_S = 0.005, 0.1
PREFETCH_MAX = 65535
SILENCE = QueueStats(ready=0, consumers=0)
SILENCE_S = 0.2
"""RabbitMQ waits 250 ms for a quorum queue to say what is in it, and then answers: nothing and
nobody (``rabbit_quorum_queue:stat``). So an answer like that which took as long is none."""

T = TypeVar("T")


class AmqpBroker:
    """RabbitMQ behind the port. See `tq_broker.queues.broker.Broker`.

    Nothing is opened before it is needed: publishing opens one connection, all else another.

    Args:
        url: See `tq_broker.queues.address`.
        heartbeat_s: A dead peer is found after two to three times this.
        name: Shown by RabbitMQ beside the connections.
    """

    def __init__(
        self, url: str, clock: Clock, *, heartbeat_s: float = 10.0, name: str = "tq_broker"
    ) -> None:
        if not 1 <= heartbeat_s <= 600:
            raise InvalidArgument(f"heartbeat_s must be 1 to 600, not {heartbeat_s}")
        self._addresses = parse_addresses(url)
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._name = name
        self._open()
        _brokers.add(self)

    def __repr__(self) -> str:
        return f"AmqpBroker({self.url!r})"

    def _open(self) -> None:
        self._publisher = Publisher(
            self._addresses,
            self._clock,
            heartbeat_s=self._heartbeat_s,
            name=f"{self._name} publisher {os.getpid()}",
        )
        self._reader = Reader(
            self._addresses,
            self._clock,
            declarer.take_plan,
            heartbeat_s=self._heartbeat_s,
            name=f"{self._name} consumer {os.getpid()}",
        )

    def _after_fork(self) -> None:
        self._publisher.abandon()
        self._reader.abandon()
        self._open()

    @property
    def url(self) -> str:
        return mask(self._addresses)

    def server_version(self, deadline: float) -> tuple[int, ...]:
        return self._reader.call(self._reader.version, deadline)

    def publish(self, publication: Publication, deadline: float, done: ReceiptCallback) -> None:
        self._publisher.publish(publication, deadline, done)

    def publish_many(
        self, publications: Sequence[Publication], deadline: float, done: IndexedReceiptCallback
    ) -> None:
        self._publisher.publish_many(publications, deadline, done)

    def apply(self, plan: Plan, deadline: float) -> None:
        take = functools.partial(declarer.take_plan, self._reader, plan)
        self._when_free(lambda: self._reader.call(take, deadline), deadline)

    def claim(self, plan: Plan, deadline: float) -> bool:
        take = functools.partial(declarer.take_plan, self._reader, plan, strict=True)
        try:
            self._when_free(lambda: self._reader.call(take, deadline), deadline)
        except declarer.Inequivalent:
            return False
        return True

    @contextlib.contextmanager
    def lock(self, name: str, deadline: float) -> Iterator[None]:
        reader = self._reader
        release = functools.partial(self._release, reader, name)
        take = functools.partial(declarer.take_lock, reader, name)
        epoch = self._when_free(lambda: reader.call(take, deadline, discard=release), deadline)
        try:
            yield
        finally:
            release(epoch)

    def _release(self, reader: Reader, name: str, epoch: int) -> None:
        if not reader.closing:  # Closing frees it.
            reader.post(lambda deadline: declarer.release_lock(reader, name, epoch, deadline))

    def _when_free(self, take: Callable[[], T], deadline: float) -> T:
        """``take()``, again after short pauses while it finds something held by another."""
        ceiling_s = LOCK_RETRY_MIN_S
        while True:
            try:
                return take()
            except Locked as error:
                locked = error
            wait_s = random.uniform(ceiling_s / 2, ceiling_s)
            if wait_s >= remaining(self._clock, deadline):
                raise DeadlineExceeded(f"{locked} until the deadline")
            self._clock.sleep(wait_s)
            ceiling_s = min(LOCK_RETRY_MAX_S, ceiling_s * 2)

    def stats(self, queue: str, deadline: float) -> QueueStats | None:
        look = functools.partial(_stats, self._reader, queue)
        while True:
            stats, took_s = self._reader.call(lambda end: self._timed(look, end), deadline)
            if stats != SILENCE or took_s < SILENCE_S:
                return stats

    def _timed(self, run: Callable[[float], T], deadline: float) -> tuple[T, float]:
        began_at = self._clock.monotonic()
        return run(deadline), self._clock.monotonic() - began_at

    def get(self, queue: str, deadline: float) -> Delivery | None:
        reader = self._reader

        def get(deadline: float) -> AmqpDelivery | None:
            # Getting from a queue that is missing would close the channel on which other
            # deliveries are held.
            if _stats(reader, queue, deadline) is None:
                return None
            return reader.get(queue, deadline)

        return reader.call(get, deadline, discard=_give_back)

    def purge(self, queue: str, deadline: float) -> int:
        return self._reader.call(functools.partial(_purge, self._reader, queue), deadline)

    def subscribe(
        self, queue: str, on_deliveries: DeliveriesCallback, options: SubscribeOptions
    ) -> Subscription:
        if not 0 <= options.prefetch <= PREFETCH_MAX:
            raise InvalidArgument(f"prefetch must be 0 to {PREFETCH_MAX}, not {options.prefetch}")
        return self._reader.subscriber.subscribe(queue, on_deliveries, options)

    def wait_subscribed(self, subscriptions: Sequence[Subscription], deadline: float) -> None:
        ours = [s for s in subscriptions if isinstance(s, AmqpSubscription)]
        if len(ours) != len(subscriptions):
            raise Bug("a subscription of another broker")
        self._reader.subscriber.wait(ours, deadline)

    def close(self, deadline: float) -> None:
        # In this order: an ack may wait for the confirm of a publish.
        self._publisher.close(deadline)
        self._reader.close(deadline)


def _give_back(delivery: Delivery | None) -> None:
    if delivery is not None:
        delivery.reject(requeue=True)


def _stats(reader: Reader, queue: str, deadline: float) -> QueueStats | None:
    try:
        told = reader.rpc(lambda ch: ch.queue_declare(queue, passive=True), deadline)
    except amqp.exceptions.NotFound:
        return None
    return QueueStats(ready=told.message_count, consumers=told.consumer_count)


def _purge(reader: Reader, queue: str, deadline: float) -> int:
    try:
        return int(reader.rpc(lambda ch: ch.queue_purge(queue), deadline))
    except amqp.exceptions.NotFound:
        return 0


_brokers: weakref.WeakSet[AmqpBroker] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for broker in list(_brokers):
        broker._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
