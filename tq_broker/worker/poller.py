"""Consuming task queues: opens and closes consumers as the prefetch windows say."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from tq_broker.exceptions import TqBrokerError
from tq_broker.model.names import ADMITTED, SHARED, Kind, QueueName
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Sender
from tq_broker.queues.topology import Plan
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.windows import Change, Close, Grow, Windows

log = logging.getLogger(__name__)

LINGER_S = 0.5
"""How long the consumers of a queue that is paused may take to fill up, see
`tq_broker.queues.subscriber`: a task may be on its way, and would count as lost."""
END_WITHIN_S = 10.0


class Source(Protocol):
    """Where a delivery of a task queue came from."""

    @property
    def queue(self) -> QueueName: ...
    @property
    def name(self) -> str: ...
    @property
    def task_queue(self) -> str:
        """The task queue that it belongs to; empty for a sticky queue, which serves them all, and
        for a detour, whose tasks tell where they are from."""

    def released(self) -> None:
        """One of its deliveries was acknowledged, or is counted elsewhere from now on."""

    def admit(self, resume: Callable[[Passage], None] | None = None) -> Passage | None:
        """Leave to begin one task of it; ``None`` if a limit does not allow it now.

        Args:
            resume: Called with the leave later, on another thread, if there is none now and the
                task is to wait here for it, because nobody else could run it. Where others
                could, it is not called, and `waits` is False.
        """

    @property
    def waits(self) -> bool:
        """Whether a task of it may wait here for its leave."""


class Gate(Protocol):
    """A limit of a task queue, as far as its private queues are concerned."""

    def admit_elsewhere(self, resume: Callable[[Passage], None] | None) -> Passage | None:
        """Leave to begin a task that the gate has not let in; see `Source.admit`."""


class Consumer:
    """One subscription of one queue; ``open`` until it has been closed."""

    __slots__ = ("_poller", "name", "open", "queue", "subscription", "task_queue")

    def __init__(self, queue: QueueName, poller: Poller) -> None:
        self._poller = poller
        is_polled = queue.task_queue is not None or queue.kind in (Kind.STICKY, Kind.DETOUR)
        assert is_polled, "only queues of task queues are polled, sticky ones and detours"
        self.queue = queue
        self.task_queue = queue.task_queue or ""
        self.name = str(queue)
        self.open = True
        self.subscription: Subscription | None = None

    def released(self) -> None:
        self._poller.released(self)

    @property
    def waits(self) -> bool:
        return self.queue.kind not in SHARED

    def admit(self, resume: Callable[[Passage], None] | None = None) -> Passage | None:
        gates = self._poller.gates
        gate = gates.get(self.task_queue) if gates else None
        if gate is None:
            return FREE
        return gate.admit_elsewhere(resume if self.waits else None)


OnDeliveries = Callable[[Source, Sequence[Delivery]], None]


class Poller:
    """The consumers of a worker. Thread-safe."""

    def __init__(
        self,
        broker: Broker,
        sender: Sender,
        slots: int,
        on_deliveries: OnDeliveries,
        is_paused: Callable[[QueueName], object] = lambda queue: None,
        is_superseded: Callable[[QueueName], bool] = lambda queue: False,
    ) -> None:
        """``is_paused`` and ``is_superseded`` are asked at each `adjust`: nothing is consumed of
        what is; a pause also counts for the queues that `serve` was told belong to it."""
        self._broker = broker
        self._sender = sender
        self._on_deliveries = on_deliveries
        self._is_paused = is_paused
        self._is_superseded = is_superseded
        self._lock = threading.Lock()
        self._windows = Windows(slots)
        self._queues: dict[str, QueueName] = {}
        self._plans: dict[str, Plan] = {}
        self._pausing: dict[str, QueueName] = {}
        self._consumers: dict[str, list[Consumer]] = {}
        self.gates: dict[str, Gate] = {}
        """The task queues that are limited, and by what."""
        self._stopped = False

    def serve(
        self, queue: QueueName, plan: Plan | None = None, of: QueueName | None = None
    ) -> None:
        """Consume ``queue`` from the next `adjust` on; harmless if it is consumed already.

        Args:
            plan: How to declare it, if not as the sender does.
            of: The queue whose pauses count for it, if not its own.
        """
        with self._lock:
            if plan is not None:
                self._plans[str(queue)] = plan
            if of is not None:
                self._pausing[str(queue)] = of
            self._queues.setdefault(str(queue), queue)
            self._windows.add(str(queue))

    def serves(self, queue: QueueName) -> bool:
        """Whether ``queue`` is consumed, or would be if it were not paused."""
        return str(queue) in self._queues

    def hand_over(self, queue: QueueName, gate: Gate) -> None:
        """Consume the shared queue ``queue`` no more: ``gate`` takes its tasks from now on."""
        with self._lock:
            if queue.kind not in ADMITTED:
                self.gates[queue.parts[-1]] = gate
            for change in self._windows.bar(str(queue)):
                self._end_soon(self._close(change))

    def take_back(self, queue: QueueName) -> None:
        """``queue`` has no limit any more."""
        with self._lock:
            if queue.kind not in ADMITTED:
                self.gates.pop(queue.parts[-1], None)
            self._windows.unbar(str(queue))

    def adjust(self, occupied: int, slots: int | None = None) -> None:
        """Open and close consumers as it is fit now.

        Args:
            occupied: Slots in use that no window counts.
            slots: How many there are from now on; ``None`` means as many as before.
        """
        with self._lock:
            if slots is not None:
                self._windows.capacity = slots
            if self._stopped:
                return
            for name, queue in self._queues.items():
                for change in self._pause(name, queue):
                    self._end_soon(self._close(change))
            self._make(self._windows.plan(occupied))

    def _make(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, Grow):
                self._open(change.queue, change.by)
            else:
                self._close(change)

    def _pause(self, name: str, queue: QueueName) -> Sequence[Close]:
        is_paused = self._is_paused(self._pausing.get(name, queue))
        return self._windows.pause(name, bool(is_paused) or self._is_superseded(queue))

    def _open(self, queue: str, prefetch: int) -> None:
        consumer = Consumer(self._queues[queue], self)
        consumer.subscription = self._broker.subscribe(
            queue,
            lambda deliveries: self._taken(consumer, deliveries),
            SubscribeOptions(
                prefetch=prefetch,
                plan=self._plans.get(queue) or self._sender.plan(consumer.queue),
            ),
        )
        self._consumers.setdefault(queue, []).append(consumer)

    def _close(self, change: Close) -> list[Subscription]:
        subscriptions = []
        for consumer in self._consumers.pop(change.queue, []):
            consumer.open = False
            if consumer.subscription is not None:
                consumer.subscription.cancel_nowait()
                subscriptions.append(consumer.subscription)
        return subscriptions

    def _end_soon(self, subscriptions: Sequence[Subscription]) -> None:
        """Do not let them linger for as long as a cancel may that nobody waits for."""
        clock = self._sender.clock

        def end() -> None:
            for subscription in subscriptions:
                try:
                    subscription.cancel(clock.monotonic() + END_WITHIN_S)
                except TqBrokerError as error:
                    log.debug("consumer of a paused queue not closed in time: %s", error)

        clock.call_at(clock.monotonic() + LINGER_S, lambda: self._sender.in_background(end))

    def _taken(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            self._windows.taken(consumer.name, len(deliveries), drained=not consumer.open)
        self._on_deliveries(consumer, deliveries)

    def released(self, consumer: Consumer) -> None:
        """See `Source.released`."""
        with self._lock:
            self._windows.released(consumer.name, drained=not consumer.open)

    def subscriptions(self) -> list[Subscription]:
        """The open subscriptions."""
        with self._lock:
            return [
                consumer.subscription
                for consumers in self._consumers.values()
                for consumer in consumers
                if consumer.subscription is not None
            ]

    def stop(self, deadline: float) -> None:
        """Close all consumers; when this returns nothing more is delivered.

        Raises:
            DeadlineExceeded: the broker did not confirm in time.
        """
        with self._lock:
            self._stopped = True
            consumers = [c for group in self._consumers.values() for c in group]
            self._consumers.clear()
        subscriptions = [c.subscription for c in consumers if c.subscription is not None]
        for subscription in subscriptions:
            subscription.cancel_nowait()  # each takes a moment, which they take together
        for subscription in subscriptions:
            subscription.cancel(deadline)
