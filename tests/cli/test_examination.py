"""What needs no server; the rest is in ``integration/test_cli.py``."""

from __future__ import annotations

import socket

from tq_broker.cli.diagnosis import Level
from tq_broker.cli.examination import Examination
from tq_broker.clock import SystemClock
from tq_broker.model.names import Names
from tq_broker.queues.address import parse_addresses


def test_without_a_server_there_is_one_finding() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        (address,) = parse_addresses(f"amqp://user:hunter2@127.0.0.1:{port}/vhost")
        (found,) = Examination(address, Names("default"), SystemClock()).findings()
    assert found.level is Level.FAULT
    assert found.subject == "connection"
    assert "nothing listens there" in found.text
    assert "hunter2" not in repr(found)
