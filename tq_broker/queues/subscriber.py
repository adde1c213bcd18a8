"""The subscriber: keeps every wish for messages fulfilled, each on a channel of its own.

A subscription is *missing* until RabbitMQ has accepted it, and again when its channel, its queue
or the connection was lost; it is then established anew, through its plan. A cancelled one keeps
its channel until all that it delivered is settled: closing gives back what is held.

What a quorum queue sends to a consumer while it is being cancelled never arrives: the server
gives it back marked as redelivered, and that would be taken for an attempt that somebody had
begun. A consumer that is full is sent nothing. So before a cancel its acks are held back, and it
lingers: who has a backlog fills it at once, and it is cancelled without loss. What nothing came to
for `LINGER_S` is most likely idle and is cancelled with room left; what comes in the millisecond
that this takes is the loss that remains. Nothing else that a client can ask for narrows that: the
queue's state (a passive declare) does not show what its log is still writing. Who waits for a
cancel, as a worker that stops does, waits for `QUIET_S` only.

Rules of this file: runs on the reader's thread, except where it says not.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import amqp.exceptions

from tq_broker.clock import Clock, remaining
from tq_broker.exceptions import (
    AccessRefused,
    DeadlineExceeded,
    NotFound,
    TqBrokerError,
)
from tq_broker.queues.backoff import backoff_s
from tq_broker.queues.broker import DeliveriesCallback, SubscribeOptions
from tq_broker.queues.errors import Locked, RpcTimeout, is_fatal, translate
from tq_broker.queues.feeds import AmqpDelivery, Feed
from tq_broker.queues.kombu_transport import Channel
from tq_broker.queues.topology import Plan

log = logging.getLogger(__name__)

ESTABLISH_S = 10.0
"""How long establishing one subscription may wait for RabbitMQ."""
LOCKED_RETRY_S = 0.05
FATAL_RETRY_S = 30.0
"""Pause of a subscription whose request made RabbitMQ close the whole connection."""
NEVER_S = 3600.0
QUIET_S = 0.05
"""Before a consumer is cancelled: after so long without a delivery nothing is on its way."""
CERTAIN_S = 1.0
"""The channel of a cancelled consumer is kept for so long after the last acks, lest they be lost
(`tq_broker.queues.acks`). A calm quorum queue writes them within 20 ms."""
LINGER_S = 1.0
"""How long a consumer that is not full is kept before it is cancelled, when nobody waits for it.
Load that comes to one queue comes to its neighbours soon, just when those make room for it."""

T = TypeVar("T")


class Host(Protocol):
    """The reader, as far as subscriptions need it."""

    @property
    def closing(self) -> bool: ...

    # from any thread
    def call(self, run: Callable[[float], T], deadline: float, *, offline: bool) -> T: ...
    def post(self, run: Callable[[float], None]) -> None: ...
    def touch(self, feed: Feed) -> None: ...
    def check_hope(self) -> None: ...
    def why_late(self) -> TqBrokerError: ...

    # on the thread
    def take_plan(self, plan: Plan, deadline: float) -> None: ...
    def open_feed(self, queue: str, deadline: float, owner: Any) -> Feed: ...
    def on_channel(self, channel: Channel, run: Callable[[Any], T], deadline: float) -> T: ...
    def forget(self, feed: Feed) -> None: ...


class AmqpSubscription:
    """A standing wish. See `tq_broker.queues.broker.Subscription`.

    Attributes:
        wanted: Nobody has cancelled it.
        over: RabbitMQ has said that nothing more will come.
        silent: Its callback must not be called any more.
        leaving: It is to be cancelled, which the reader need not have heard yet.
        source: The feed that is, or is about to be: known before anything comes on it.
        cancel_at: When RabbitMQ is told that nobody wants it; ``None``: not wanted to, or told.
        retire_at: When its channel is to be closed; ``None``: it is in use.
        feed: Where its deliveries come from; ``None`` while it is missing.
        error: Why it is missing, as far as known.
        retry_at: When it is to be established again, if it is missing.
        barred_until: Not earlier, also on another connection: it has ended one.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        queue: str,
        callback: DeliveriesCallback,
        options: SubscribeOptions,
        tag: str,
    ) -> None:
        self._subscriber = subscriber
        self._queue = queue
        self.callback = callback
        self.options = options
        self.tag = tag
        self.wanted = True
        self.over = False
        self.silent = False
        self.leaving = False
        self.cancel_at: float | None = None
        self.retire_at: float | None = None
        self.source: Feed | None = None
        self.feed: Feed | None = None
        self.error: TqBrokerError | None = None
        self.retry_at = 0.0
        self.barred_until = 0.0
        self.attempt = 0
        self._over_told = False

    def __repr__(self) -> str:
        return f"<AmqpSubscription to {self._queue}>"

    @property
    def queue(self) -> str:
        return self._queue

    @property
    def missing(self) -> bool:
        return self.wanted and self.feed is None

    def tell_over(self, reader: Host) -> None:
        """It has ended: its owner is told, after what has come in this turn was handed over."""
        on_over = self.options.on_over
        if on_over is not None and not self._over_told and not reader.closing:
            self._over_told = True
            reader.post(lambda _: on_over())

    def cancel(self, deadline: float) -> None:
        self._subscriber.cancel(self, deadline)

    def cancel_nowait(self) -> None:
        self._subscriber.cancel_nowait(self)


class Subscriber:
    """All subscriptions of one reader."""

    def __init__(self, reader: Host, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock
        self._tags = itertools.count(1)
        self._changed = threading.Condition()
        self._all: list[AmqpSubscription] = []
        self._tended = True

    # --- from any thread ---

    def subscribe(
        self, queue: str, callback: DeliveriesCallback, options: SubscribeOptions
    ) -> AmqpSubscription:
        """See `tq_broker.queues.broker.Broker.subscribe`."""
        subscription = AmqpSubscription(self, queue, callback, options, f"tq-{next(self._tags)}")
        self._reader.post(lambda _: self._add(subscription))
        return subscription

    def wait(self, subscriptions: Sequence[AmqpSubscription], deadline: float) -> None:
        """See `tq_broker.queues.broker.Broker.wait_subscribed`."""
        with self._changed:
            while missing := [s for s in subscriptions if s.missing]:
                self._reader.check_hope()
                for subscription in missing:
                    if isinstance(subscription.error, AccessRefused):
                        raise AccessRefused(str(subscription.error))
                left_s = remaining(self._clock, deadline)
                if not left_s:
                    late = self._reader.why_late()
                    error = missing[0].error
                    if isinstance(late, DeadlineExceeded) and error is not None:
                        late = DeadlineExceeded(f"not subscribed to {missing[0].queue}: {error}")
                    raise late
                self._changed.wait(left_s)

    def cancel(self, subscription: AmqpSubscription, deadline: float) -> None:
        """See `tq_broker.queues.broker.Subscription.cancel`."""
        call = self._reader.call
        self._leave(subscription)
        try:
            call(lambda _: self._cancel_soon(subscription), deadline, offline=True)
            with self._changed:
                while subscription.feed is not None and not subscription.over:
                    if not self._changed.wait(remaining(self._clock, deadline)):
                        raise DeadlineExceeded(f"{subscription} not cancelled in time")
            # After the turn in which the last deliveries have come, and were handed over.
            call(lambda _: self._cancelled(subscription), deadline, offline=True)
        except TqBrokerError:
            # Dropped all the same: what still comes is given back unseen.
            subscription.silent = True
            if not self._reader.closing:
                self._reader.post(lambda _: self._give_up(subscription))
                raise

    def cancel_nowait(self, subscription: AmqpSubscription) -> None:
        """See `tq_broker.queues.broker.Subscription.cancel_nowait`."""
        self._leave(subscription)
        if not self._reader.closing:
            self._reader.post(lambda _: self._cancel_nowait(subscription))

    def _leave(self, subscription: AmqpSubscription) -> None:
        """From now on nothing that is given back may come again before RabbitMQ has been told.

        The reader, which tells it, may be busy for long with other subscriptions; each time that a
        message came back would be counted, until RabbitMQ took it for poison.
        """
        with self._changed:
            is_first = not subscription.leaving
            subscription.leaving = True
            if is_first and subscription.source is not None and subscription.options.prefetch:
                subscription.source.paused = True

    def notify(self) -> None:
        """From any thread: something changed for those who wait."""
        with self._changed:
            self._changed.notify_all()

    # --- on the thread ---

    def connected(self) -> None:
        """There is a new connection: everything is to be established, now, but what ends it."""
        for subscription in self._all:
            subscription.retry_at = subscription.barred_until
        self._tended = False

    def tend(self) -> float:
        """Do what is due; returns the seconds until something is due again."""
        if self._tended:
            return NEVER_S
        for subscription in list(self._all):
            now = self._clock.monotonic()
            if subscription.missing and subscription.retry_at <= now:
                self._establish(subscription, now + ESTABLISH_S)
            elif subscription.cancel_at is not None:
                self._cancel_if_quiet(subscription, now)
            elif subscription.feed is not None and now >= (subscription.retire_at or math.inf):
                self.retire(subscription.feed)
        # Read anew: some may have been lost while others were established.
        due = [subscription.retry_at for subscription in self._all if subscription.missing]
        due += [s.cancel_at for s in self._all if s.cancel_at is not None]
        due += [s.retire_at for s in self._all if s.retire_at is not None]
        self._tended = not due
        return max(0.0, min(due) - self._clock.monotonic()) if due else NEVER_S

    def hand_over(self, feed: Feed) -> None:
        """Give what has come on ``feed`` to its subscription."""
        deliveries, feed.inbox = feed.inbox, []
        subscription: AmqpSubscription = feed.owner
        if subscription.silent:
            for delivery in deliveries:
                delivery.reject(requeue=True)
        elif deliveries:
            if feed.paused and subscription.cancel_at is not None:
                quiet_at = self._clock.monotonic() + QUIET_S
                subscription.cancel_at = max(subscription.cancel_at, quiet_at)
            self._call_back(subscription, deliveries)

    def _call_back(self, subscription: AmqpSubscription, deliveries: list[AmqpDelivery]) -> None:
        try:
            subscription.callback(deliveries)
        except Exception:
            # The contract forbids it; the deliveries stay held until the channel goes.
            log.exception("consumer: the callback for %s raised", subscription.queue)

    def retire(self, feed: Feed) -> None:
        """Close the channel of a cancelled subscription when nothing on it is held.

        Not earlier: RabbitMQ would give back what is held, and what is on its way to us, and
        what it has not yet taken note of.
        """
        subscription: AmqpSubscription = feed.owner
        if not (subscription.over and feed.live) or feed.ledger.held or feed.inbox:
            return
        if feed.is_certain(self._clock.monotonic(), CERTAIN_S):
            self._reader.forget(feed)
            self._detach(feed)
            feed.channel.close_nowait()
        else:
            subscription.retire_at = feed.told_at + CERTAIN_S
            self._tended = False

    def lost(self, feed: Feed) -> None:
        """RabbitMQ has taken back all that was delivered on ``feed``."""
        self._reader.forget(feed)
        on_lost = feed.owner.options.on_lost
        if on_lost is not None:
            on_lost()
        self._detach(feed)

    def _detach(self, feed: Feed) -> None:
        """Its subscription has no channel any more."""
        subscription: AmqpSubscription = feed.owner
        if subscription.options.once:
            subscription.wanted = False
        if subscription.feed is feed:
            subscription.feed = None
            subscription.cancel_at = subscription.retire_at = None
            self._tended = False
            if not subscription.wanted:
                self._drop(subscription)
                self.notify()

    def silence(self) -> None:
        """The end: what still comes is not handed over."""
        for subscription in self._all:
            subscription.silent = True
            if subscription.feed is not None:
                self._go_on(subscription.feed)

    def _add(self, subscription: AmqpSubscription) -> None:
        self._all.append(subscription)
        self._tended = False

    def _drop(self, subscription: AmqpSubscription) -> None:
        if subscription in self._all:
            self._all.remove(subscription)
        subscription.tell_over(self._reader)

    def _establish(self, subscription: AmqpSubscription, deadline: float) -> None:
        plan = subscription.options.plan
        try:
            if plan.steps and not self._is_taken(subscription):
                self._reader.take_plan(plan, deadline)
            self._consume(subscription, deadline)
        except Locked as locked:
            self._failed(subscription, locked, LOCKED_RETRY_S)
        except RpcTimeout:
            error = DeadlineExceeded("no answer from RabbitMQ")
            self._failed(subscription, error, backoff_s(subscription.attempt))
        except (TqBrokerError, amqp.exceptions.ChannelError) as error:
            self._failed(subscription, translate(error), backoff_s(subscription.attempt))
        except amqp.exceptions.AMQPError as error:
            if is_fatal(error):
                self._failed(subscription, translate(error), FATAL_RETRY_S)
                subscription.barred_until = subscription.retry_at
            raise

    def _is_taken(self, subscription: AmqpSubscription) -> bool:
        """Whether another consumer shows that the plan is in force: RabbitMQ would have ended it
        with its queue. Windows change often, and a plan is several round trips. One that lingers
        is as good: RabbitMQ does not know yet that it is to go."""
        return any(
            (other.wanted or other.cancel_at is not None)
            and other.feed is not None
            and other.options.plan == subscription.options.plan
            for other in self._all
            if other.queue == subscription.queue and other is not subscription
        )

    def _failed(
        self, subscription: AmqpSubscription, error: TqBrokerError | None, wait_s: float
    ) -> None:
        is_told = isinstance(error, Locked) or subscription.options.once
        if str(subscription.error) != str(error) and not is_told:
            log.warning("consumer: cannot consume %s: %s; trying again", subscription.queue, error)
        if subscription.options.once and isinstance(error, NotFound):
            subscription.wanted = False
            self._drop(subscription)
            return
        with self._changed:
            subscription.error = error
            subscription.attempt += 1
            subscription.retry_at = self._clock.monotonic() + wait_s
            self._changed.notify_all()

    def _consume(self, subscription: AmqpSubscription, deadline: float) -> None:
        reader = self._reader
        feed = reader.open_feed(subscription.queue, deadline, subscription)
        with self._changed:
            subscription.source = feed
            # What is acknowledged makes room for more: with ``once`` it is told when all have come.
            feed.paused = subscription.options.once or (
                subscription.leaving and bool(subscription.options.prefetch)
            )
        channel: Channel = feed.channel
        channel.on_ended = functools.partial(self._on_ended, feed)
        channel.on_cancel_ok = functools.partial(self._on_cancel_ok, feed)
        options = subscription.options

        def consume(channel: Channel) -> None:
            channel.basic_qos(0, options.prefetch, False)
            channel.basic_consume(
                subscription.queue,
                subscription.tag,
                exclusive=options.exclusive,
                arguments=dict(options.arguments),
                on_cancel=functools.partial(self._on_cancelled, feed),
            )

        try:
            reader.on_channel(channel, consume, deadline)
        except BaseException:
            reader.forget(feed)
            channel.close_nowait()
            raise
        if not feed.live:
            self._book_retry(subscription)  # Lost again before we got here.
            return
        with self._changed:
            subscription.feed = feed
            subscription.error = None
            subscription.attempt = 0
            self._changed.notify_all()
        if not subscription.wanted:
            self._begin_cancel(subscription, feed)
            return
        if options.once:
            subscription.cancel_at = self._clock.monotonic() + NEVER_S
            self._tended = False
        if options.on_accepted is not None:
            options.on_accepted()

    def _on_ended(self, feed: Feed, error: Exception) -> None:
        """RabbitMQ has closed the channel, for instance because of its own timeout."""
        subscription: AmqpSubscription = feed.owner
        established = subscription.feed is feed
        self.lost(feed)
        if established:
            log.warning("consumer: lost %s: %s; subscribing again", feed.queue, error)
            self._book_retry(subscription)

    def _on_cancelled(self, feed: Feed, _tag: str) -> None:
        """The queue was deleted, or its node has failed."""
        # Who leaves a queue may have deleted it on another connection, which was quicker.
        if feed.owner.wanted and not feed.owner.leaving:
            log.warning("consumer: RabbitMQ cancelled %s; subscribing again", feed.queue)
        self.lost(feed)
        feed.channel.close_nowait()
        self._book_retry(feed.owner)

    def _book_retry(self, subscription: AmqpSubscription) -> None:
        subscription.retry_at = self._clock.monotonic() + backoff_s(subscription.attempt)
        subscription.attempt += 1
        self._tended = False

    def _cancel_nowait(self, subscription: AmqpSubscription) -> None:
        if not subscription.wanted:
            return
        subscription.wanted = False
        if subscription.feed is None:
            self._drop(subscription)
        else:
            self._begin_cancel(subscription, subscription.feed)
        self.notify()

    def _begin_cancel(self, subscription: AmqpSubscription, feed: Feed) -> None:
        """Make no room for more, and cancel when it is full, or has lingered."""
        subscription.cancel_at = self._clock.monotonic()
        if subscription.options.prefetch:
            feed.paused = True
            subscription.cancel_at += LINGER_S
        self._tended = False

    def _cancel_soon(self, subscription: AmqpSubscription) -> None:
        self._cancel_nowait(subscription)
        # All that linger: who cancels and waits will wait for the others next.
        quiet_at = self._clock.monotonic() + QUIET_S
        for one in self._all:
            if one.cancel_at is not None:
                one.cancel_at = min(one.cancel_at, quiet_at)
        self._tended = False

    def _cancel_if_quiet(self, subscription: AmqpSubscription, now: float) -> None:
        feed = subscription.feed
        if feed is None or subscription.cancel_at is None:
            subscription.cancel_at = None
            return
        is_full = feed.paused and feed.ledger.held >= subscription.options.prefetch
        if is_full or now >= subscription.cancel_at:
            subscription.cancel_at = None
            if subscription.options.once:
                subscription.wanted = False
            feed.channel.cancel_nowait(subscription.tag)

    def _on_cancel_ok(self, feed: Feed) -> None:
        """Nothing more will come on ``feed``."""
        feed.owner.over = True
        feed.owner.tell_over(self._reader)
        self._go_on(feed)
        self.retire(feed)
        self.notify()

    def _give_up(self, subscription: AmqpSubscription) -> None:
        """Wait no more for the answer to a cancel."""
        self._cancel_nowait(subscription)
        if subscription.feed is not None:
            self._go_on(subscription.feed)

    def _go_on(self, feed: Feed) -> None:
        """Tell what is done with again."""
        if feed.paused:
            feed.paused = False
            self._reader.touch(feed)

    def _cancelled(self, subscription: AmqpSubscription) -> None:
        subscription.silent = True
        if subscription.feed is None:
            self._drop(subscription)
        else:
            self.retire(subscription.feed)
        self.notify()
