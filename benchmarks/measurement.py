"""Measurement: in which order the processes of one measurement come, by the row's flow.

Every flow is one function, from a `Setting` to a `Sample`; it leaves no process and no queue.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.catalogue import TABLES, Flow, Row
from benchmarks.inspection import (
    broker_memory_mib,
    connection_count,
    queue_count,
    remove_queues,
    resident_mib,
)
from benchmarks.order import FILLED, READY, Order, Sample
from benchmarks.process import PeerProcess
from benchmarks.servers import Servers

TIMEOUT_S = 180.0
"""For one process. The slowest peer needs 20 s for its 20 000 tasks."""

PHASES_TIMEOUT_S = 1_800.0
"""10 000 quorum queues are declared at 130 a second, and deleted not faster; 100 000 workflows are
started at 200 a second or more."""

PHASES = ("before", "peak", "after")
"""Where a peer pauses, so that the broker can be looked at."""

_numbers = itertools.count(1)


class NotPossible(RuntimeError):
    """This row cannot run here; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A row on its servers."""

    row: Row
    servers: Servers
    order: Order

    def process(self, operation: str, timeout_s: float = TIMEOUT_S) -> PeerProcess:
        return PeerProcess(self.row.peer, operation, self.order, timeout_s=timeout_s)

    def clean(self, sample: Sample, *, drained: bool = True) -> None:
        remove_queues(self.servers.url, sample.queues, must_be_empty=drained)


def measure(row: Row, servers: Servers, *, quick: bool) -> Sample:
    """Measure *row* once.

    Raises:
        NotPossible: not on this machine or broker.
        ProcessError: a process of the peer failed.
        LeftBehind: the peer did not acknowledge all.
    """
    if row.needs_redis and not servers.redis_url:
        raise NotPossible("no redis-server on this machine")
    table = TABLES[row.table]
    database_url = ""
    if row.serves or row.needs_postgresql:
        if servers.postgresql is None:
            raise NotPossible("no PostgreSQL on this machine")
        database_url = servers.postgresql.create(f"bench_{next(_numbers)}")
    order = Order(
        url=servers.url,
        redis_url=servers.redis_url,
        # New in each measurement: no topology cached or declared before.
        queue=f"bench-{os.getpid()}-{next(_numbers)}",
        count=table.quick_count if quick else table.count,
        variant=row.variant,
        database_url=database_url,
    )
    return _FLOWS[table.flow](Setting(row=row, servers=servers, order=order))


def _publish(setting: Setting) -> Sample:
    with setting.process("publish") as publisher:
        sample = publisher.wait_sample()
    setting.clean(sample, drained=False)
    return sample


def _drain(setting: Setting) -> Sample:
    """The backlog stands before the worker starts."""
    with setting.process("publish") as publisher:
        publisher.wait_sample()
    with setting.process("drain") as worker:
        sample = worker.wait_sample()
    setting.clean(sample)
    return sample


def _results(setting: Setting) -> Sample:
    """The backlog stands before the worker starts; the client then times what it reads."""
    with setting.process("results") as client:
        client.wait_word(FILLED)
        with setting.process("work"):
            sample = client.wait_sample()
    # A result may reach the client before the acknowledgement reaches the broker.
    setting.clean(sample, drained=False)
    return sample


def _latency(setting: Setting) -> Sample:
    with setting.process("work"), setting.process("latency") as client:
        sample = client.wait_sample()
    setting.clean(sample, drained=False)
    return sample


def _workflows(setting: Setting) -> Sample:
    """Services first, each ready before the next; then a client that starts and reads all."""
    with contextlib.ExitStack() as stack:
        for operation in setting.row.serves:
            stack.enter_context(setting.process(operation)).wait_word(READY)
        operation = TABLES[setting.row.table].flow.value
        client = stack.enter_context(setting.process(operation, PHASES_TIMEOUT_S))
        sample = client.wait_sample()
    setting.clean(sample, drained=False)
    return sample


def _phases(setting: Setting) -> Sample:
    """The peer goes from phase to phase; the broker is looked at after each."""
    node = setting.servers.node
    if node is None:
        raise NotPossible("the memory of a broker that is not ours cannot be seen")
    figures: dict[str, float] = {}
    operation = setting.row.variant.split(",")[0]
    with setting.process(operation, PHASES_TIMEOUT_S) as peer:
        for phase in PHASES:
            peer.wait_word(phase)
            seen: Mapping[str, float] = {
                **broker_memory_mib(node),
                "queues": queue_count(node),
                "connections": connection_count(node),
                "peer_resident_mib": resident_mib(peer.pid),
            }
            figures.update({f"{phase}_{name}": value for name, value in seen.items()})
            peer.go_on()
        sample = peer.wait_sample()
    setting.clean(sample, drained=False)
    return Sample(figures={**sample.figures, **figures})


_FLOWS: Mapping[Flow, Callable[[Setting], Sample]] = {
    Flow.PUBLISH: _publish,
    Flow.DRAIN: _drain,
    Flow.RESULTS: _results,
    Flow.LATENCY: _latency,
    Flow.PHASES: _phases,
    Flow.WORKFLOWS: _workflows,
    Flow.WORKFLOW_LATENCY: _workflows,
    Flow.LONG_RUN: _workflows,
    Flow.OPEN_RUNS: _workflows,
}
