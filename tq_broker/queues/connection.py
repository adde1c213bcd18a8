"""What a role works with: a broker, a namespace on it, and how values travel there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tq_broker.clock import Clock
from tq_broker.converter import DataConverter
from tq_broker.model.names import Names
from tq_broker.queues.broker import Broker
from tq_broker.queues.dispatcher import Dispatcher
from tq_broker.queues.reclaim import Reclaimer
from tq_broker.queues.sender import Sender
from tq_broker.queues.topology import QueueType
from tq_broker.queues.traffic import Traffic


@dataclass(eq=False)
class Connection:
    """Shared by a client and the workers made with it. ``identity`` is how it signs."""

    broker: Broker
    names: Names
    clock: Clock
    converter: DataConverter
    identity: str
    queue_type: QueueType = QueueType.QUORUM
    sender: Sender = field(init=False)
    traffic: Traffic = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    reclaimer: Reclaimer = field(init=False)

    def __post_init__(self) -> None:
        self.sender = Sender(
            self.broker,
            self.names,
            self.clock,
            identity=self.identity,
            queue_type=self.queue_type,
        )
        self.traffic = Traffic(self.broker, self.names, self.clock)
        self.dispatcher = Dispatcher(self.sender, self.clock, self.traffic)
        self._make_reclaimer()

    def _make_reclaimer(self) -> None:
        # One of a broker object: two would get into each other's way.
        self.reclaimer = Reclaimer(self.broker, self.sender, self.names, self.clock)

    def after_fork(self) -> None:
        """Forget what the child does not have. The broker looks after itself."""
        self.sender.after_fork()
        self.dispatcher.after_fork()
        self._make_reclaimer()


class Connected(Protocol):
    """Whatever has a connection, such as both kinds of client."""

    @property
    def connection(self) -> Connection: ...

    @property
    def interceptors(self) -> Sequence[object]:
        """Of which a worker takes those that are for workers."""
