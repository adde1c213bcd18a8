"""Inspection: what the broker says about queues and memory after or during a measurement."""

# mypy: disable-error-code="no-untyped-call"
# (Kombu has no type hints.)

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

from amqp.exceptions import NotFound
from kombu.connection import Connection

from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

MIB = 1024 * 1024


class LeftBehind(RuntimeError):
    """Messages remained in a queue that was to be drained: something was not acknowledged."""


def remove_queues(url: str, queues: Iterable[str], *, must_be_empty: bool) -> None:
    """Delete *queues*; those that are gone already are fine.

    Raises:
        LeftBehind: one had messages although *must_be_empty*. All are deleted nevertheless.
    """
    left = {}
    with Connection(url) as connection:
        for queue in queues:
            # A missing queue costs the channel: one channel per queue.
            with contextlib.suppress(NotFound), connection.channel() as channel:
                if count := channel.queue_delete(queue):
                    left[queue] = count
    if left and must_be_empty:
        raise LeftBehind(f"messages remained: {left}")


def broker_memory_mib(node: LocalRabbitMQ) -> dict[str, float]:
    """How much memory the node has, in two views.

    ``allocated`` is what Erlang accounts for after a garbage collection, ``resident`` what the
    operating system sees and gets back late.
    """
    node.ctl("force_gc")
    allocated = re.search(r"\d+", node.ctl("eval", "erlang:memory(total)."))
    assert allocated is not None, "the node answers a number"
    assert node.pid is not None, "the node runs"
    return {
        "allocated_mib": int(allocated.group()) / MIB,
        "resident_mib": resident_mib(node.pid),
    }


def resident_mib(pid: int) -> float:
    """The resident memory of a process."""
    return _status_mib(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    """The most resident memory that a process has had."""
    return _status_mib(pid, "VmHWM")


def _status_mib(pid: int, name: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None, "a live process has memory"
    return int(found.group(1)) / 1024


def queue_count(node: LocalRabbitMQ) -> int:
    """How many queues the node has."""
    return len(node.ctl("list_queues", "--no-table-headers", "name").split())


def connection_count(node: LocalRabbitMQ) -> int:
    """How many AMQP connections the node has."""
    return len(node.ctl("list_connections", "--no-table-headers", "pid").splitlines())
