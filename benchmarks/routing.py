"""Routing: what a decision costs, and what it costs to be sent to a host or a capable worker.

``python -m benchmarks.routing`` measures two things:

* microseconds of one decision of the router, with so many traffic rules in force that all could
  match, half of them by headers and each a percentage;
* tasks per second, started and their results read, through one worker: plain, by a host route, and
  by a requirement. The ways take turns, and what counts is the median of the rounds, and its ratio
  to that of the plain way.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import click

from benchmarks import servers
from tq_broker import activity
from tq_broker.client import BlockingClient
from tq_broker.common import Requires, Route
from tq_broker.model.names import Names
from tq_broker.model.rule_table import RuleTable
from tq_broker.model.rules import TrafficRule
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues import routing
from tq_broker.worker import Worker

RULES = (0, 1, 100, 1_000)
DECISIONS = 20_000
TYPES = 7
HOST = "bench-host"
QUEUE = "routed"

Ways = Mapping[str, Mapping[str, Any]]
WAYS: Ways = {
    "plain": {},
    "host route": {"route": Route.host(HOST)},
    "requires": {"requires": Requires(("gpu",))},
}


def rules(count: int) -> RuleTable:
    """``count`` rules that are all asked, and never match."""
    return RuleTable(
        TrafficRule(
            id=f"r{number}",
            order=number,
            headers={"tenant": "nobody"} if number % 2 else {},
            percent=0.001,
            to_task_queue="elsewhere",
        )
        for number in range(count)
    )


def tasks(count: int) -> list[ActivityTask]:
    """Tasks of several types, with the header that rules ask for."""
    return [
        ActivityTask(
            activity_id=f"{number:08}",
            activity_type=f"type-{number % TYPES}",
            task_queue="orders",
            body=b"",
            headers={"tenant": "acme"},
        )
        for number in range(count)
    ]


def decision_us(count: int, decisions: int = DECISIONS) -> float:
    """Microseconds of one decision with ``count`` rules."""
    names, table, wanted = Names("bench"), rules(count), tasks(decisions)
    now_ms = int(time.time() * 1000)
    # Of this process alone: what others do to the machine is not the router's cost.
    start_s = time.process_time()
    for task in wanted:
        if routing.by_rule(names, routing.facts(task), table, now_ms) is None:
            routing.destination(names, task)
    return (time.process_time() - start_s) / decisions * 1e6


@activity.defn(name="noop", start_to_close_timeout=timedelta(seconds=60))
async def noop(n: int) -> None:
    """Nothing."""


def per_second(client: BlockingClient, count: int, options: Mapping[str, Any]) -> float:
    """Tasks per second, from the first start to the last result."""
    start_s = time.perf_counter()
    calls = [(number,) for number in range(count)]
    for handle in client.start_activities(noop, calls, task_queue=QUEUE, **options):
        handle.result(60)
    return count / (time.perf_counter() - start_s)


def throughput(url: str, count: int, rounds: int) -> dict[str, list[float]]:
    """The rates of each way, round by round."""
    namespace = f"b{secrets.token_hex(4)}"
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        BlockingClient.connect(url, namespace=namespace, timeout=60) as client,
        BlockingClient.connect(url, namespace=namespace, timeout=60) as other,
        Worker(other, task_queue=QUEUE, activities=[noop], host=HOST, capabilities={"gpu"}),
    ):
        for options in WAYS.values():
            per_second(client, 100, options)  # whatever is declared or asked first
        for _ in range(rounds):
            for way, options in WAYS.items():
                found[way].append(per_second(client, count, options))
    return found


def lines(costs: Mapping[int, float], rates: Mapping[str, Sequence[float]]) -> list[str]:
    """What is printed."""
    told = [f"{cost:8.2f} us per decision, {count} rules" for count, cost in costs.items()]
    medians = {way: statistics.median(found) for way, found in rates.items()}
    told += [
        f"{median:8.0f} tasks/s, {way} ({median / medians['plain']:.2f} of plain)"
        for way, median in medians.items()
    ]
    return told


@click.command()
@click.option("--broker", help="URL of a broker that runs.  [a private one]")
@click.option("--count", default=3_000, show_default=True, help="Tasks per round.")
@click.option("--rounds", default=5, show_default=True)
def main(broker: str | None, count: int, rounds: int) -> None:
    """Measure, and print a line for each figure."""
    costs = {number: decision_us(number) for number in RULES}
    with servers.started(broker) as running:
        rates = throughput(running.url, count, rounds)
    for line in lines(costs, rates):
        click.echo(line)


if __name__ == "__main__":
    main()
