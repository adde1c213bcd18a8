"""A stand-in for the history service: takes requests from all shards, answers as a test says."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from tq_broker.model import requests
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.queues import topology
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions

SOON_S = 20.0
"""How long a test waits for what must happen."""

T = TypeVar("T")


class Taken:
    """A request that has come."""

    def __init__(self, history: FakeHistory, message: Message) -> None:
        self._history = history
        self.message = message
        self.request: Any = requests.read_request(message)

    def answer(self, *replies: Any) -> None:
        assert self.message.reply_to is not None
        for reply in replies:
            message = requests.reply_message(reply, "r", self.message.correlation_id)
            self._history.tell(self.message.reply_to, message)


class FakeHistory:
    """Listens to every shard. ``script`` answers by the type of the request; what it does not know
    waits for `take`."""

    def __init__(self, broker: Broker, names: Names, soon: Callable[[], float]) -> None:
        self.broker = broker
        self.names = names
        self.soon = soon
        self.script: dict[type, Callable[[Any], Any]] = {}
        self.seen: list[Any] = []
        self._inbox: queue.Queue[Taken] = queue.Queue()
        broker.apply(topology.namespace(names), soon())
        wishes = []
        for shard in range(requests.SHARDS):
            name = names.history(shard)
            options = SubscribeOptions(prefetch=100, plan=topology.history_shard(names, name))
            wishes.append(broker.subscribe(str(name), self._on_deliveries, options))
        broker.wait_subscribed(wishes, soon())

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            taken = Taken(self, delivery.message)
            assert self.names.owns(taken.message.reply_to or "", Kind.REPLY)
            self.seen.append(taken.request)
            answer = self.script.get(type(taken.request))
            if answer is None:
                self._inbox.put(taken)
            else:
                replies = answer(taken.request)
                taken.answer(*(replies if isinstance(replies, Iterable) else [replies]))
            delivery.ack()

    def take(self, kind: type[T]) -> Taken:
        """The next request, which is of type ``kind``."""
        taken = self._inbox.get(timeout=SOON_S)
        assert isinstance(taken.request, kind), taken.request
        return taken

    @property
    def is_idle(self) -> bool:
        return self._inbox.empty()

    def tell(self, to: str, message: Message) -> None:
        publication = Publication(self.names.exchange(Exchange.REPLIES), to, message)
        self.broker.publish(publication, self.soon(), lambda _: None)
