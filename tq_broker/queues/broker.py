"""The port: what a role may ask of a message broker.

Two adapters keep this contract and are held to it by one suite (``tests/contracts/broker.py``):
`tq_broker.queues.amqp.AmqpBroker` on RabbitMQ and `tq_broker.queues.memory.MemoryBroker` in this
process. The words are AMQP's.

Threads: every method may be called from any thread but the ones on which the adapter calls back
(delivery and receipt callbacks), where only `Delivery.ack`, `Delivery.reject`,
`Broker.publish` and `Subscription.cancel_nowait` are allowed. Callbacks must be short and must
not raise.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from tq_broker.model.message import Message, Publication
from tq_broker.queues.topology import Plan


class Verdict(enum.Enum):
    """How a publish ended."""

    CONFIRMED = "confirmed"
    """The broker has it, in at least one queue."""
    RETURNED = "returned"
    """No queue was bound under the key; nothing is kept."""
    REFUSED = "refused"
    """The broker said no: a nack, or the channel was closed because of this message."""
    EXPIRED = "expired"
    """No answer before the deadline: whether the broker has it is unknown."""


class Receipt(msgspec.Struct, frozen=True):
    """The end of one publish. ``reason`` is for people, empty when confirmed."""

    verdict: Verdict
    reason: str = ""


class Delivery(Protocol):
    """One message that has been handed to us and is ours until it is acknowledged."""

    @property
    def message(self) -> Message: ...

    @property
    def queue(self) -> str:
        """The queue that it came from."""

    @property
    def routing_key(self) -> str:
        """The key under which it was published."""

    @property
    def redelivered(self) -> bool:
        """False guarantees that nobody has had it before; True is only a hint."""

    def ack(self) -> None:
        """It is done with. Returns at once; from any thread.

        After the connection it came on is lost this does nothing: the broker has given the
        message back already. Acks are sent in batches, within milliseconds.
        """

    def reject(self, *, requeue: bool) -> None:
        """Give it back to its queue (``requeue``), or to the queue's dead letters."""


class Subscription(Protocol):
    """A standing wish for the messages of one queue."""

    @property
    def queue(self) -> str: ...

    def cancel(self, deadline: float) -> None:
        """Stop. When this returns no further delivery is handed to the callback.

        Deliveries held stay ours and can still be acknowledged.

        Raises:
            DeadlineExceeded: the broker did not answer in time; the wish is dropped all the same.
        """

    def cancel_nowait(self) -> None:
        """Stop, without waiting: deliveries already on their way may still arrive."""


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What a passive declare tells."""

    ready: int
    consumers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscribeOptions:
    """How to consume a queue.

    Attributes:
        prefetch: Messages the broker may let us hold unacknowledged through this subscription;
            0 means no bound. At most 65535.
        exclusive: Refuse other consumers (classic queues only; the second one gets an error).
        arguments: Consumer arguments, such as ``x-stream-offset``.
        plan: Applied before consuming, after every reconnect and after the broker has cancelled
            us because the queue went away: a subscription always comes back.
        once: Take ``prefetch`` messages, all together and ever, and then end. It ends as well when
            the connection is lost, or when there is no such queue. What is acknowledged until then
            the broker is told when the end has come.
        on_over: Called when a subscription with ``once`` has ended, after its last delivery was
            handed over. On the thread of the deliveries.
        on_lost: Called when the broker has taken back all that was delivered and not settled, as
            when the connection breaks or the queue is deleted, before anything is delivered anew.
            On the thread of the deliveries.
        on_accepted: Called whenever the broker has accepted the subscription: first, and each
            time that it has come back. On the thread of the deliveries.
    """

    prefetch: int
    plan: Plan = field(default_factory=lambda: Plan(()))
    exclusive: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    on_accepted: Callable[[], None] | None = None
    on_lost: Callable[[], None] | None = None
    once: bool = False
    on_over: Callable[[], None] | None = None


DeliveriesCallback = Callable[[Sequence[Delivery]], None]
ReceiptCallback = Callable[[Receipt], None]
IndexedReceiptCallback = Callable[[int, Receipt], None]


class Broker(Protocol):
    """A connection to one vhost of one broker, lazily opened, restored by itself for ever.

    A broker object may cross ``os.fork()``: the child starts with nothing open.
    """

    @property
    def url(self) -> str:
        """Where it connects, without the password."""

    def server_version(self, deadline: float) -> tuple[int, ...]:
        """The broker's version, e.g. ``(3, 10, 8)``. Connects if need be."""

    def publish(self, publication: Publication, deadline: float, done: ReceiptCallback) -> None:
        """Publish, mandatory and confirmed; returns at once.

        ``done`` is called exactly once, on the adapter's thread, by ``deadline`` (monotonic
        seconds) at the latest. The message is sent again after a reconnect as long as its
        deadline is not over, so a confirmed message may be stored twice; a copy that was sent
        again carries the header ``tq-resent`` (1, 2, ...).
        """

    def publish_many(
        self, publications: Sequence[Publication], deadline: float, done: IndexedReceiptCallback
    ) -> None:
        """The same for many, at a lower cost each.

        ``done`` is called once per message, with its index in ``publications``, in any order.
        """

    def apply(self, plan: Plan, deadline: float) -> None:
        """Take the steps of ``plan``; blocks.

        A queue or exchange that exists with other arguments is used as it is, with one warning
        that names the difference. A step never disturbs running traffic.

        Raises:
            AccessRefused: a permission is missing.
            BrokerUnavailable: no connection before the deadline.
            DeadlineExceeded: the lock or an answer did not come in time.
        """

    def claim(self, plan: Plan, deadline: float) -> bool:
        """Take the steps of ``plan`` unless its queue exists with other arguments.

        Returns False in that case, and changes nothing: an atomic test-and-set.
        """

    def lock(self, name: str, deadline: float) -> AbstractContextManager[None]:
        """Hold the exclusive queue ``name``: one holder on the whole broker, also among the
        threads of this process; freed by leaving the block or by losing the connection.

        Raises:
            DeadlineExceeded: somebody else held it until the deadline.
        """

    def stats(self, queue: str, deadline: float) -> QueueStats | None:
        """What is in ``queue`` now; ``None`` if it does not exist.

        Raises `DeadlineExceeded` if the queue itself does not say it in time.
        """

    def get(self, queue: str, deadline: float) -> Delivery | None:
        """Take one message, or ``None`` if the queue is empty or does not exist."""

    def purge(self, queue: str, deadline: float) -> int:
        """Drop all ready messages of ``queue``; returns how many. 0 if it does not exist."""

    def subscribe(
        self, queue: str, on_deliveries: DeliveriesCallback, options: SubscribeOptions
    ) -> Subscription:
        """Wish for the messages of ``queue``; returns at once.

        ``on_deliveries`` gets them in order, several at a time when they come fast, always on
        the adapter's one reading thread.
        """

    def wait_subscribed(self, subscriptions: Sequence[Subscription], deadline: float) -> None:
        """Wait until the broker has accepted every one of ``subscriptions``.

        Raises what stands in the way: `AccessRefused`, `BrokerUnavailable`, `DeadlineExceeded`.
        """

    def close(self, deadline: float) -> None:
        """Send what is to be sent (acks, publishes) and close. Idempotent.

        Unacknowledged deliveries go back to their queues.
        """
