"""Priorities on every RabbitMQ version: the order of starts is exact, and nothing is lost on the
way to it."""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from integration.journey import Site, backlog, measured, site_at, wait_until
from integration.journey_activities import work_on_loop
from integration.line import FORGOTTEN, MANY, SLOTS, Line, Lined
from tq_broker import workflow
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.common import RetryPolicy
from tq_broker.model.names import Names
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker

SOON = RetryPolicy(initial_interval=timedelta(seconds=0.1), backoff_coefficient=1)


def put(client: BlockingClient, priority: int, count: int) -> None:
    client.start_activities("note", [(priority,)] * count, priority=priority, **FORGOTTEN)


class Order(Lined):
    """What holds wherever tasks wait."""

    def test_one_of_priority_1_passes_all_that_wait(
        self, client: BlockingClient, line: Line
    ) -> None:
        # Given many of the last priority, some of which have filled the slots
        put(client, 5, MANY)
        wait_until(lambda: len(line.begun) == SLOTS, "the slots are full")
        # When one of the first comes
        put(client, 1, 1)
        line.free.set()
        # Then only those in slots have begun before it
        wait_until(lambda: len(line.begun) == MANY + 1, "all have begun")
        assert line.begun.index(1) == SLOTS

    def test_many_tasks_begin_without_an_inversion(
        self, client: BlockingClient, line: Line
    ) -> None:
        put(client, 1, SLOTS)  # they are first anyhow, and hold the slots
        wait_until(lambda: len(line.begun) == SLOTS, "the slots are full")
        priorities = [1, 2, 3, 4, 5] * (MANY // 5 // 100)
        random.Random(1).shuffle(priorities)
        for priority in priorities:
            put(client, priority, 100)
        queue, core = Names(client.core.names.namespace).activity("q"), client.core

        def waiting() -> int:
            return backlog(core, queue)

        wait_until(lambda: waiting() == MANY, "all wait")
        line.free.set()
        wait_until(lambda: len(line.begun) == MANY + SLOTS, "all have begun")
        inversions = sum(one > other for one, other in itertools.pairwise(line.begun))
        measured(f"inversions among {MANY} starts", inversions)
        assert inversions == 0

    def test_a_priority_has_a_pool_of_its_own_and_starves_nobody(
        self, client: BlockingClient
    ) -> None:
        usual, quick = Line(), Line()
        for line in (usual, quick):
            line.free.set()
        rule = TrafficRule(
            id="first",
            kind=TaskKind.ACTIVITY,
            task_queue="q",
            priority=1,
            to_task_queue="q-first",
            fallback=False,
        )
        with (
            Worker(client, task_queue="q", activities=[usual.note], max_concurrent_activities=1),
            Worker(
                client, task_queue="q-first", activities=[quick.note], max_concurrent_activities=1
            ),
        ):
            client.operations.traffic.set(rule)
            client.connection.traffic.follow()
            wait_until(lambda: client.connection.traffic.rules, "the rule is known")
            for priority, count in ((1, 3000), (3, 20), (5, 20)):
                put(client, priority, count)
            wait_until(lambda: len(usual.begun) == 40, "the others have begun")
            assert len(quick.begun) < 3000, "they did not wait for the flood"
            wait_until(lambda: len(quick.begun) == 3000, "the flood is over")
        assert set(quick.begun) == {1}
        assert sorted(usual.begun) == [3] * 20 + [5] * 20


class TestInMemory(Order):
    @pytest.fixture
    def url(self) -> str:
        return f"memory://{secrets.token_hex(4)}"


class TestOnRabbitMQ(Order):
    @pytest.fixture
    def url(self, broker_url: str) -> str:
        return broker_url


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(broker_url, namespace, tmp_path) as site:
        yield site


def test_a_worker_is_killed_while_priorities_come_into_use(site: Site) -> None:
    # Given a load without priorities, and two workers
    doomed = site.worker(host="h1", max_concurrent_activities=SLOTS).ready()
    site.worker(host="h2", max_concurrent_activities=SLOTS).ready()
    keys = [f"{number}-{secrets.token_hex(3)}" for number in range(2500)]
    handles = site.load(work_on_loop, keys[:1000], 0.01, retry_policy=SOON)
    wait_until(lambda: site.ledger.count("effect") > 50, "work goes on")
    # When somebody uses priorities, and a worker dies while tasks are brought into order
    handles |= site.load(work_on_loop, keys[1000:1500], 0.01, retry_policy=SOON, priority=1)
    doomed.kill()
    handles |= site.load(work_on_loop, keys[1500:2000], 0.01, retry_policy=SOON, priority=5)
    again = site.again(doomed).ready()
    handles |= site.load(work_on_loop, keys[2000:], 0.01, retry_policy=SOON)
    again.kill()
    # Then every task takes effect
    assert not any(site.collect(handles).values())
    assert not site.check().faults
    measured("attempts beyond one of each task", site.ledger.count("start") - len(keys))


def test_workers_that_go_in_order_lose_no_attempt(site: Site) -> None:
    first = site.worker(max_concurrent_activities=SLOTS).ready()
    keys = [f"{number}-{secrets.token_hex(3)}" for number in range(1500)]
    once = RetryPolicy(maximum_attempts=1)
    handles = site.load(work_on_loop, keys[:1000], 0.01, retry_policy=once)
    handles |= site.load(work_on_loop, keys[1000:], 0.01, retry_policy=once, priority=2)
    first.terminate()
    first.wait()
    site.worker(max_concurrent_activities=SLOTS).ready()
    assert not any(site.collect(handles).values())
    assert not site.check(once=keys).faults


# --- workflows ------------------------------------------------------------------------------------


@workflow.defn(name="Ranked")
class Ranked:
    begun: ClassVar[list[int | None]] = []

    @workflow.run
    async def run(self) -> None:
        self.begun.append(workflow.info().priority)
        await asyncio.sleep(0)


def test_workflows_begin_in_order(broker_url: str, namespace: str) -> None:
    system = EmbeddedSystem(SystemClock(), broker_url, None, namespace=namespace)
    system.start()
    client, priorities = BlockingClient(system.core), [1, 2, 3, 4, 5] * 20
    random.Random(2).shuffle(priorities)
    Ranked.begun.clear()
    try:
        handles = [
            client.start_workflow(Ranked.run, id=f"w{n}", task_queue="q", priority=priority)
            for n, priority in enumerate([5, *priorities])
        ]
        plain, core = Names(namespace).workflow("q"), client.core

        def waiting() -> int:
            return backlog(core, plain)

        wait_until(lambda: waiting() == len(handles), "all wait")
        with Worker(
            client,
            task_queue="q",
            workflows=[Ranked],
            max_concurrent_workflow_tasks=1,
            max_cached_workflows=0,
        ):
            for handle in handles:
                handle.result(timeout=60)
    finally:
        system.close()
    # Those of priority 3 may have been put there before their order was known to be asked for.
    others = [priority for priority in Ranked.begun if priority != 3]
    assert others == sorted(one for one in [5, *priorities] if one != 3)
