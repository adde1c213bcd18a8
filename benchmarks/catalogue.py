"""Catalogue: the rows of the benchmarks, each one way to do one thing.

A row's name, ``TABLE-LABEL``, is what ``--only`` matches.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from fnmatch import fnmatchcase

OURS = "tq"
OUR_WORKFLOWS = "tq_workflows"


class Flow(enum.Enum):
    """How one measurement of a row goes; see `measurement`."""

    PUBLISH = "publish"
    DRAIN = "drain"
    RESULTS = "results"
    LATENCY = "latency"
    PHASES = "phases"
    WORKFLOWS = "workflows"
    WORKFLOW_LATENCY = "workflow_latency"
    LONG_RUN = "long_run"
    OPEN_RUNS = "open_runs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows that are compared with each other.

    Attributes:
        flow: how they are measured.
        title: what is compared.
        unit: the figure that decides.
        larger_is_better: what "decides" means.
        count, quick_count: of tasks, messages or round trips.
    """

    flow: Flow
    title: str
    unit: str = "per_s"
    larger_is_better: bool = True
    count: int = 20_000
    quick_count: int = 3_000


TABLES = {
    "publish": Table(flow=Flow.PUBLISH, title="Confirmed publishes per second, one process"),
    "drain-sync": Table(
        flow=Flow.DRAIN, title="No-op tasks drained per second, plain functions, late acks"
    ),
    "drain-async": Table(
        flow=Flow.DRAIN, title="No-op tasks drained per second, coroutines, late acks"
    ),
    "results": Table(
        flow=Flow.RESULTS,
        title="Tasks per second, every result read by the client",
        count=10_000,
        quick_count=2_000,
    ),
    "latency": Table(
        flow=Flow.LATENCY,
        title="Round trip on an idle system",
        unit="median_ms",
        larger_is_better=False,
        count=2_000,
        quick_count=300,
    ),
    "queues": Table(
        flow=Flow.PHASES,
        title="Task queues created on demand, used once, reclaimed",
        count=10_000,
        quick_count=500,
    ),
    "workflows-1": Table(
        flow=Flow.WORKFLOWS,
        title="Workflows of one no-op activity per second, start to result",
        count=2_000,
        quick_count=500,
    ),
    "workflows-3": Table(
        flow=Flow.WORKFLOWS,
        title="Workflows of three no-op activities in sequence per second",
        count=2_000,
        quick_count=500,
    ),
    "workflow-latency": Table(
        flow=Flow.WORKFLOW_LATENCY,
        title="Round trip of a workflow on an idle system",
        unit="median_ms",
        larger_is_better=False,
        count=500,
        quick_count=100,
    ),
    **{
        f"workflow-events-{events}": Table(
            flow=Flow.LONG_RUN,
            title=f"Microseconds per event of one run of {events} events",
            unit="us_per_event",
            larger_is_better=False,
            count=events,
            quick_count=events,
        )
        for events in (1_000, 6_000, 10_000)
    },
    "open-workflows": Table(
        flow=Flow.OPEN_RUNS,
        title="Workflows that are open and wait: started per second, memory of history",
        count=100_000,
        quick_count=2_000,
    ),
    "many": Table(
        flow=Flow.PHASES,
        title="One worker that serves many task queues",
        count=500,
        quick_count=50,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to do what its table compares.

    Attributes:
        table: its table's name.
        label: how readers know it.
        peer: the module in `benchmarks.peers`.
        settings: how it was set up, for the readers.
        variant: the settings, for the peer.
        needs_redis: its results go through Redis.
        needs_postgresql: as ``serves`` does.
        serves: operations of the peer that run in processes of their own before the client starts.
    """

    table: str
    label: str
    peer: str
    settings: str
    variant: str = ""
    needs_redis: bool = False
    needs_postgresql: bool = False
    serves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.table in TABLES, f"no table {self.table}"

    @property
    def name(self) -> str:
        return f"{self.table}-{self.label}"


_CELERY = "acks_late, prefetch 512, no gossip, no mingle"
_DRAMATIQ = "prefetch 500"
_TASKIQ = "quorum queue, qos 500, max_async_tasks 100, uvloop"
_FASTSTREAM = "prefetch_count 500, uvloop"
_PROCESSES = "1 history process, 1 worker process, quorum queues"
_SERVICES = ("history", "work")
_REPID = "AMQP 1.0, tasks_limit 500, durable, uvloop"

ROWS = (
    Row(table="publish", label="tq_broker", peer=OURS, settings="quorum queue"),
    Row(
        table="publish",
        label="tq_broker-classic",
        peer=OURS,
        variant="classic",
        settings="classic queue",
    ),
    Row(table="publish", label="celery", peer="celery", settings="confirm_publish=True"),
    Row(table="publish", label="dramatiq", peer="dramatiq", settings="confirm_delivery=True"),
    Row(
        table="publish",
        label="taskiq",
        peer="taskiq",
        settings="quorum queue, gather of 1000 kiq, uvloop",
    ),
    Row(
        table="publish",
        label="faststream",
        peer="faststream",
        settings="gather of 1000 publishes, uvloop",
    ),
    Row(
        table="publish",
        label="repid",
        peer="repid",
        settings="AMQP 1.0, durable, gather of 1000 sends, uvloop",
    ),
    Row(table="publish", label="kombu", peer="kombu", settings="confirm_publish, mandatory"),
    Row(
        table="publish",
        label="pika-raw",
        peer="pika",
        settings="SelectConnection, window 1000, mandatory, no task library",
    ),
    Row(
        table="drain-sync",
        label="tq_broker",
        peer=OURS,
        variant="sync",
        settings="quorum queue, threads",
    ),
    Row(
        table="drain-sync",
        label="tq_broker-classic",
        peer=OURS,
        variant="sync,classic",
        settings="classic queue, threads",
    ),
    *(
        Row(
            table="drain-sync",
            label=f"celery-{pool}",
            peer="celery",
            variant=pool,
            settings=f"-P {pool}, {_CELERY}",
        )
        for pool in ("solo", "threads", "prefork")
    ),
    *(
        Row(
            table="drain-sync",
            label=f"dramatiq-{threads}",
            peer="dramatiq",
            variant=str(threads),
            settings=f"{threads} threads, {_DRAMATIQ}",
        )
        for threads in (2, 8)
    ),
    Row(
        table="drain-sync",
        label="taskiq",
        peer="taskiq",
        variant="sync",
        settings=f"{_TASKIQ}, 4 threads",
    ),
    Row(table="drain-async", label="tq_broker", peer=OURS, settings="quorum queue, asyncio"),
    Row(
        table="drain-async",
        label="tq_broker-classic",
        peer=OURS,
        variant="classic",
        settings="classic queue, asyncio",
    ),
    Row(table="drain-async", label="taskiq", peer="taskiq", settings=_TASKIQ),
    Row(table="drain-async", label="faststream", peer="faststream", settings=_FASTSTREAM),
    Row(table="drain-async", label="repid", peer="repid", settings=_REPID),
    Row(table="results", label="tq_broker", peer=OURS, settings="quorum queue, asyncio"),
    Row(
        table="results",
        label="tq_broker-classic",
        peer=OURS,
        variant="classic",
        settings="classic queue, asyncio",
    ),
    *(
        Row(
            table="results",
            label=f"celery-{pool}",
            peer="celery",
            variant=pool,
            settings=f"rpc://, -P {pool}, {_CELERY}",
        )
        for pool in ("solo", "threads", "prefork")
    ),
    Row(
        table="results",
        label="dramatiq",
        peer="dramatiq",
        variant="8",
        needs_redis=True,
        settings=f"Results in Redis, 8 threads, {_DRAMATIQ}",
    ),
    Row(
        table="results",
        label="taskiq",
        peer="taskiq",
        needs_redis=True,
        settings=f"results in Redis, {_TASKIQ}",
    ),
    Row(
        table="latency", label="tq_broker", peer=OURS, settings="execute_activity, quorum, asyncio"
    ),
    Row(
        table="latency",
        label="tq_broker-classic",
        peer=OURS,
        variant="classic",
        settings="execute_activity, classic, asyncio",
    ),
    Row(
        table="latency",
        label="kombu",
        peer="kombu",
        settings="request and reply by hand, classic queue, confirms, no task library",
    ),
    Row(
        table="latency",
        label="kombu-quorum",
        peer="kombu",
        variant="quorum",
        settings="the same with the request queue a quorum queue, as ours",
    ),
    *(
        Row(
            table="latency",
            label=f"celery-{pool}",
            peer="celery",
            variant=pool,
            settings=f"rpc:// .get(), -P {pool}, {_CELERY}",
        )
        for pool in ("solo", "threads", "prefork")
    ),
    Row(
        table="latency",
        label="dramatiq",
        peer="dramatiq",
        variant="8",
        needs_redis=True,
        settings="get_result from Redis, 8 threads",
    ),
    Row(table="queues", label="tq_broker", peer=OURS, variant="queues", settings="quorum queues"),
    Row(
        table="queues",
        label="tq_broker-classic",
        peer=OURS,
        variant="queues,classic",
        settings="classic queues",
    ),
    *(
        row
        for steps in ("1", "3")
        for row in (
            Row(
                table=f"workflows-{steps}",
                label="tq_broker",
                peer=OUR_WORKFLOWS,
                variant=steps,
                serves=_SERVICES,
                settings=f"PostgreSQL, {_PROCESSES}",
            ),
            Row(
                table=f"workflows-{steps}",
                label="tq_broker-sqlite",
                peer=OUR_WORKFLOWS,
                variant=f"{steps},sqlite",
                serves=_SERVICES,
                settings=f"SQLite, {_PROCESSES}",
            ),
            Row(
                table=f"workflows-{steps}",
                label="dbos",
                peer="dbos",
                variant=steps,
                serves=("work",),
                settings="PostgreSQL, its own queue, 1 worker process, enqueued from 16 threads",
            ),
        )
    ),
    Row(
        table="workflows-1",
        label="tq_broker-two",
        peer=OUR_WORKFLOWS,
        variant="1",
        serves=("history", *_SERVICES),
        settings="PostgreSQL, 2 history processes, 1 worker process, quorum queues",
    ),
    Row(
        table="workflow-latency",
        label="tq_broker",
        peer=OUR_WORKFLOWS,
        variant="1",
        serves=_SERVICES,
        settings="execute_workflow, one activity, PostgreSQL",
    ),
    Row(
        table="workflow-latency",
        label="tq_broker-signal",
        peer=OUR_WORKFLOWS,
        variant="signal",
        serves=_SERVICES,
        settings="a signal, then an update that ends when the signal has had its effect",
    ),
    Row(
        table="workflow-latency",
        label="dbos",
        peer="dbos",
        variant="1",
        serves=("work",),
        settings="enqueue and get_result, one step, PostgreSQL, default polling",
    ),
    *(
        Row(
            table=f"workflow-events-{events}",
            label=label,
            peer=OUR_WORKFLOWS,
            variant=variant,
            serves=_SERVICES,
            settings=f"one run of activities in sequence, PostgreSQL{settings}",
        )
        for events in ("1000", "6000", "10000")
        for label, variant, settings in (
            ("tq_broker", "1", ""),
            ("tq_broker-uncached", "1,uncached", ", max_cached_workflows=0"),
        )
        if (events, label) != ("10000", "tq_broker-uncached")
    ),
    Row(
        table="open-workflows",
        label="tq_broker",
        peer=OUR_WORKFLOWS,
        variant="1",
        needs_postgresql=True,
        settings=f"PostgreSQL, {_PROCESSES}",
    ),
    Row(table="many", label="tq_broker", peer=OURS, variant="many", settings="quorum queues"),
)


def matching(glob: str) -> list[Row]:
    """The rows whose name matches *glob*, in the catalogue's order."""
    return [row for row in ROWS if fnmatchcase(row.name, glob)]
