"""A tap: takes permits of one limit from RabbitMQ for one worker.

Rules of this file:

* a permit is ours as long as the connection lives on which it came; when that breaks RabbitMQ has
  given it to somebody else, and ``on_lost`` tells which;
* what a tap may hold unused is bounded by its prefetch, so that one worker does not keep what
  others could use.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from tq_broker.exceptions import Malformed
from tq_broker.model.names import QueueName
from tq_broker.model.permits import read_permit
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions, Subscription
from tq_broker.queues.topology import Plan

log = logging.getLogger(__name__)


class Token:
    """A permit in our hands, for so many ``units``: `left` are for whoever comes, `lent` are for
    tasks that have not begun. Not thread-safe: it has one owner.
    """

    __slots__ = ("_delivery", "is_lost", "is_unwanted", "left", "lent", "units")

    def __init__(self, delivery: Delivery, units: int) -> None:
        self._delivery = delivery
        self.units = self.left = units
        self.lent = 0
        self.is_lost = False
        self.is_unwanted = False
        """Nothing more is to be lent of it."""

    @property
    def was_held(self) -> bool:
        """Whether another worker had it, and may have used some of its units."""
        return self._delivery.redelivered

    @property
    def is_spent(self) -> bool:
        """Whether it is to be let go."""
        return not self.lent and (self.is_unwanted or not self.left)

    def use_up(self) -> None:
        """To the bank with it."""
        self._delivery.reject(requeue=False)

    def put_back(self) -> None:
        """Somebody else may take it now."""
        self._delivery.reject(requeue=True)


class _Spout:
    """One subscription and the tokens that came through it."""

    def __init__(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self.subscription: Subscription | None = None
        self.open = True
        self.tokens: set[Token] = set()


class Tap:
    """Takes permits from ``queue``. The callbacks come on the broker's reading thread.

    Args:
        on_token: A permit has come.
        on_late: One has come after `close`.
        on_lost: These are not ours any more.
    """

    def __init__(
        self,
        broker: Broker,
        queue: QueueName,
        plan: Plan,
        on_token: Callable[[Token], None],
        on_late: Callable[[Token], None],
        on_lost: Callable[[Sequence[Token]], None],
    ) -> None:
        self._broker = broker
        self._queue = str(queue)
        self._plan = plan
        self._on_token = on_token
        self._on_late = on_late
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._spouts: list[_Spout] = []
        self._of: dict[Token, _Spout] = {}

    @property
    def capacity(self) -> int:
        """How many it may hold, used and unused."""
        return sum(spout.prefetch for spout in self._spouts)

    @property
    def held(self) -> int:
        """How many it holds through what is open."""
        return sum(len(spout.tokens) for spout in self._spouts)

    def open(self, prefetch: int, *, first: bool = False) -> None:
        """Take so many more; ``first``: before whoever does not say so."""
        spout = _Spout(prefetch)
        self._spouts.append(spout)
        spout.subscription = self._broker.subscribe(
            self._queue,
            lambda deliveries: self._come(spout, deliveries),
            SubscribeOptions(
                prefetch=prefetch,
                plan=self._plan,
                arguments={"x-priority": 1} if first else {},
                on_lost=lambda: self._on_gone(spout),
            ),
        )

    def close(self) -> None:
        """Take no more; what is held stays ours until it is let go."""
        spouts, self._spouts = self._spouts, []
        for spout in spouts:
            spout.open = False
            if spout.subscription is not None:
                spout.subscription.cancel_nowait()

    def used_up(self, token: Token) -> None:
        """See `Token.use_up`."""
        self._forget(token)
        token.use_up()

    def put_back(self, token: Token) -> None:
        """See `Token.put_back`."""
        self._forget(token)
        token.put_back()

    def _forget(self, token: Token) -> None:
        with self._lock:
            spout = self._of.pop(token, None)
            if spout is not None:
                spout.tokens.discard(token)

    def _on_gone(self, spout: _Spout) -> None:
        with self._lock:
            lost, spout.tokens = list(spout.tokens), set()
            for token in lost:
                token.is_lost = True
                self._of.pop(token, None)
        if lost:
            self._on_lost(lost)

    def _come(self, spout: _Spout, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            try:
                token = Token(delivery, read_permit(delivery.message).units)
            except Malformed as error:
                log.warning("foreign message in %s dropped: %s", self._queue, error)
                delivery.ack()
                continue
            if not spout.open:
                self._on_late(token)
                continue
            with self._lock:
                spout.tokens.add(token)
                self._of[token] = spout
            self._on_token(token)
