"""`AmqpBroker` keeps the contract of the broker port, on every version of RabbitMQ."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.contracts.broker import BrokerContract, World
from tq_broker.clock import SystemClock
from tq_broker.queues.amqp import AmqpBroker
from tq_broker.queues.broker import Broker
from tq_broker.queues.topology import DeleteQueue, Plan


class Wire:
    """A TCP relay in front of the server, whose connections can be cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: set[socket.socket] = set()
        self._guard = threading.Lock()
        threading.Thread(target=self._accept, name="wire", daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """Reset every connection that is open now; new ones are relayed again."""
        with self._guard:
            ends, self._ends = self._ends, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                with self._guard:
                    self._ends |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_relay, args=(source, sink), daemon=True).start()


def _relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    source.close()


class AmqpWorld(World):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.clock = SystemClock()
        self._url = url
        self._wires: dict[int, Wire] = {}
        self._brokers: list[AmqpBroker] = []

    def make_broker(self) -> Broker:
        parts = urlsplit(self._url)
        assert parts.hostname is not None
        assert parts.port is not None
        wire = Wire(parts.hostname, parts.port)
        netloc = parts.netloc.replace(
            f"{parts.hostname}:{parts.port}", f"{parts.hostname}:{wire.port}"
        )
        broker = AmqpBroker(urlunsplit(parts._replace(netloc=netloc)), self.clock)
        self._brokers.append(broker)
        self._wires[id(broker)] = wire
        return broker

    def pass_time(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    def break_connection(self, broker: Broker) -> None:
        self._wires[id(broker)].cut()

    def close(self) -> None:
        for broker in self._brokers:
            broker.close(self.deadline())
        for wire in self._wires.values():
            wire.close()
        # Other tests share the server.
        janitor = AmqpBroker(self._url, self.clock)
        janitor.apply(Plan(tuple(map(DeleteQueue, self.litter))), self.deadline())
        janitor.close(self.deadline())


class TestAmqpBroker(BrokerContract):
    @pytest.fixture
    def world(self, broker_url: str) -> Iterator[AmqpWorld]:
        world = AmqpWorld(broker_url)
        yield world
        world.close()
