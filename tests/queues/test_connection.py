"""What a client and its workers share."""

from __future__ import annotations

from tq_broker.clock import SystemClock
from tq_broker.converter import DEFAULT
from tq_broker.model.names import Names
from tq_broker.queues.connection import Connection
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.sender import NAMESPACE
from tq_broker.queues.topology import QueueType


def connection(queue_type: QueueType = QueueType.QUORUM) -> Connection:
    clock = SystemClock()
    broker = MemoryBroker(MemoryServer(), clock)
    return Connection(broker, Names("n"), clock, DEFAULT, "me", queue_type)


def test_its_parts_work_on_its_broker_and_namespace() -> None:
    one = connection(QueueType.CLASSIC)
    assert one.sender.broker is one.broker
    assert one.sender.names == one.names
    assert one.sender.queue_type is QueueType.CLASSIC
    assert one.dispatcher.sender is one.sender


def test_a_child_after_a_fork_forgets_what_its_parent_declared() -> None:
    one = connection()
    deadline = one.clock.monotonic() + 20
    one.sender.ensure((), deadline)
    assert NAMESPACE in one.sender._present
    one.after_fork()
    assert NAMESPACE not in one.sender._present
    one.broker.close(deadline)


def test_connections_are_equal_only_to_themselves() -> None:
    assert connection() != connection()
