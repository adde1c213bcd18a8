"""Fair shares on every RabbitMQ version: each key gets its share of what begins, a flood of one
does not delay another, and nothing is lost with the dealer."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from integration.journey import Site, measured, site_at, wait_until
from integration.journey_activities import work_on_loop
from integration.line import FORGOTTEN, MANY, SLOTS, Line, Lined
from tq_broker import activity, workflow
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.common import RetryPolicy
from tq_broker.model.names import Names
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker

ERROR_MAX = 0.05
SOON = RetryPolicy(initial_interval=timedelta(seconds=0.1), backoff_coefficient=1)


def put(client: BlockingClient, key: str, count: int, weight: float | None = None) -> None:
    """Tasks of one key."""
    client.start_activities(
        "note", [(key,)] * count, fairness_key=key, fairness_weight=weight, **FORGOTTEN
    )


def wait_until_seen(client: BlockingClient, count: int) -> None:
    """Wait until the dealer has seen all that has come, of which so many wait."""
    wait_until(lambda: backlog(client) == count, "all wait")


def backlog(client: BlockingClient) -> int:
    """What waits, and is not on its way from one queue to the next."""
    (told,) = client.operations.task_queues(wait_s=0.2)
    names, core = Names(client.core.names.namespace), client.core
    plain = names.activity("q")
    before = [core.broker.stats(str(one), core.deadline()) for one in (plain, names.fair(plain))]
    return 0 if any(one is None or one.ready for one in before) else told.backlog


class Fair(Lined):
    """What holds wherever tasks wait."""

    def test_ten_tasks_are_not_delayed_by_ten_thousand_of_another_key(
        self, client: BlockingClient, line: Line
    ) -> None:
        # Given many tasks of one key, some of which have filled the slots
        put(client, "flood", MANY)
        wait_until(lambda: len(line.begun) == SLOTS, "the slots are full")
        # When ten of another come
        put(client, "few", 10)
        wait_until_seen(client, MANY)
        line.free.set()
        # Then they have every other start, after those that were ahead already
        wait_until(lambda: line.begun.count("few") == 10, "the ten have begun")
        last = max(n for n, key in enumerate(line.begun) if key == "few")
        measured("starts before the last of ten", last)
        assert last <= SLOTS + 4 * SLOTS + 2 * 10
        # And nothing is forgotten
        wait_until(lambda: len(line.begun) == MANY + 10, "all have begun", 120)

    def test_a_thousand_starts_are_shared_by_weight(
        self, client: BlockingClient, line: Line
    ) -> None:
        put(client, "held", SLOTS)
        wait_until(lambda: len(line.begun) == SLOTS, "the slots are full")
        weights = {"a": 1.0, "b": 1.0, "c": 3.0, "d": 5.0}
        for key, weight in weights.items():
            put(client, key, 1500, weight)
        wait_until_seen(client, 6000)
        line.free.set()
        wait_until(lambda: len(line.begun) >= SLOTS + 1000, "a thousand have begun")
        begun = Counter(line.begun[SLOTS : SLOTS + 1000])
        shares = {key: 1000 * weight / sum(weights.values()) for key, weight in weights.items()}
        error = max(abs(begun[key] - share) / 1000 for key, share in shares.items())
        measured("fairness error over 1000 starts", error)
        assert error < ERROR_MAX, begun

    def test_keys_of_a_better_priority_come_first(self, client: BlockingClient, line: Line) -> None:
        put(client, "held", SLOTS)
        wait_until(lambda: len(line.begun) == SLOTS, "the slots are full")
        heavy = FORGOTTEN | {"fairness_weight": 1000.0, "priority": 5}
        first = FORGOTTEN | {"priority": 1}
        client.start_activities("note", [("last",)] * 3000, fairness_key="a", **heavy)
        client.start_activities("note", [("first",)] * 100, fairness_key="b", **first)
        # Who has no key has a share like any other
        client.start_activities("note", [("no key",)] * 100, **first)
        wait_until_seen(client, 3200)
        line.free.set()
        wait_until(lambda: len(line.begun) == SLOTS + 3200, "all have begun")
        # Then they begin first, but for what was dealt before they came
        begun = line.begun[SLOTS:]
        assert set(begun[200 + 4 * SLOTS :]) == {"last"}
        assert begun[:100].count("no key") >= SLOTS


class TestInMemory(Fair):
    @pytest.fixture
    def url(self) -> str:
        return f"memory://{secrets.token_hex(4)}"


class TestOnRabbitMQ(Fair):
    @pytest.fixture
    def url(self, broker_url: str) -> str:
        return broker_url


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(broker_url, namespace, tmp_path) as site:
        yield site


def test_the_dealer_is_killed_under_load(site: Site) -> None:
    # Given the load of one key, and three workers, one of which is the dealer
    workers = [site.worker(host=f"h{n}", max_concurrent_activities=SLOTS).ready() for n in range(3)]
    keys = [f"{number}-{secrets.token_hex(3)}" for number in range(2500)]
    flood, few, more = keys[:2200], keys[2200:2220], keys[2220:]
    options = {"retry_policy": SOON}
    handles = site.load(work_on_loop, flood, 0.01, fairness_key="flood", **options)
    wait_until(lambda: site.ledger.count("effect") > 100, "work goes on")
    # When two of the three are killed, so that the dealer is another one sooner or later
    workers[0].kill()
    workers[1].kill()
    begun = site.ledger.count("effect")
    # Then another key has its share all the same
    others = site.load(work_on_loop, few, 0.01, fairness_key="few", **options)
    assert not any(site.collect(others).values())
    between = site.ledger.count("effect") - begun
    measured("effects between the kill and the last of twenty of another key", between)
    assert between < len(flood) - begun, "they did not wait for the flood"
    # And when dealers come and go all tasks take effect
    site.again(workers[0]).ready()
    handles |= site.load(work_on_loop, more, 0.01, fairness_key="more", **options)
    workers[2].kill()
    assert not any(site.collect(handles).values())
    assert not site.check().faults
    measured("attempts beyond one of each task", site.ledger.count("start") - len(keys))


def test_dealers_that_go_in_order_lose_no_attempt(site: Site) -> None:
    first = site.worker(max_concurrent_activities=SLOTS).ready()
    keys = [f"{number}-{secrets.token_hex(3)}" for number in range(1200)]
    once = RetryPolicy(maximum_attempts=1)
    handles = site.load(work_on_loop, keys[:300], 0.01, retry_policy=once)
    handles |= site.load(work_on_loop, keys[300:], 0.01, retry_policy=once, fairness_key="a")
    first.terminate()
    first.wait()
    site.worker(max_concurrent_activities=SLOTS).ready()
    assert not any(site.collect(handles).values())
    assert not site.check(once=keys).faults


# --- workflows ------------------------------------------------------------------------------------


@activity.defn(name="whose")
async def whose() -> str | None:
    return activity.info().fairness_key


@workflow.defn(name="Tenant", fairness_weight=2.0)
class Tenant:
    begun: ClassVar[list[str | None]] = []

    @workflow.run
    async def run(self, with_child: bool) -> list[str | None]:
        self.begun.append(workflow.info().fairness_key)
        soon = timedelta(seconds=60)
        told = [
            await workflow.execute_activity(whose, start_to_close_timeout=soon),
            await workflow.execute_activity(
                whose, start_to_close_timeout=soon, fairness_key="other"
            ),
        ]
        if with_child:
            told += await workflow.execute_child_workflow(Tenant.run, False)
        return told


def test_workflows_get_their_shares_and_hand_their_key_on(broker_url: str, namespace: str) -> None:
    system = EmbeddedSystem(SystemClock(), broker_url, None, namespace=namespace)
    system.start()
    client = BlockingClient(system.core)
    Tenant.begun.clear()
    try:
        handles = [
            client.start_workflow(
                Tenant.run, False, id=f"{key}{n}", task_queue="q", fairness_key=key
            )
            for key, count in (("flood", 200), ("few", 10))
            for n in range(count)
        ]
        names, core = Names(namespace), client.core
        fair = str(names.fair(names.workflow("q")))

        def waiting() -> int:
            stats = core.broker.stats(fair, core.deadline())
            return stats.ready if stats else 0

        wait_until(lambda: waiting() == len(handles), "all wait")
        options = {"max_concurrent_workflow_tasks": 2, "max_cached_workflows": 0}
        with Worker(client, task_queue="q", workflows=[Tenant], activities=[whose], **options):
            for handle in handles:
                handle.result(timeout=60)
            child = client.start_workflow(
                Tenant.run, True, id="parent", task_queue="q", fairness_key="mine"
            )
            assert child.result(timeout=60) == ["mine", "other", "mine", "other"]
    finally:
        system.close()
    # Their later tasks compete with the first ones of others, so it is not every other start.
    first = list(dict.fromkeys(Tenant.begun))
    assert first[:2] == ["flood", "few"]
    last = max(n for n, key in enumerate(Tenant.begun) if key == "few")
    measured("workflow tasks before the last of ten of another key", last)
    assert last < len(Tenant.begun) / 2
