"""Tasks in every kind of queue that a task queue consists of: seen, moved, purged, reclaimed."""

from __future__ import annotations

import json
import secrets
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from integration.journey import wait_until
from tq_broker import activity
from tq_broker.cli.endpoint import Endpoint
from tq_broker.client import ActivityState, BlockingClient
from tq_broker.client.observer import Observer
from tq_broker.common import OnGone, Requires, Route
from tq_broker.exceptions import NotFound
from tq_broker.model.figures import Figures
from tq_broker.model.limits import Limits, Side
from tq_broker.model.parts import EACH_KEY
from tq_broker.model.rules import TrafficRule
from tq_broker.queues import memory
from tq_broker.worker import Worker

PATIENCE_S = 30.0
LOOK_S = 0.3
GO = threading.Event()
RAN: Counter[str] = Counter()


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def hold(what: str) -> None:
    assert GO.wait(PATIENCE_S)


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def note(what: str) -> None:
    RAN[what] += 1


@pytest.fixture
def client(broker_url: str, namespace: str) -> Iterator[BlockingClient]:
    GO.clear()
    RAN.clear()
    with BlockingClient.connect(broker_url, namespace=namespace) as client:
        yield client
    GO.set()


@pytest.fixture
def workers(broker_url: str, namespace: str) -> Iterator[Any]:
    """Makes workers, each with a connection of its own."""
    made: list[Any] = []

    def make(**options: Any) -> Worker:
        own = BlockingClient.connect(broker_url, namespace=namespace)
        made.append(own.close)
        worker = Worker(own, **({"task_queue": "q", "activities": [hold, note]} | options))
        worker.start()
        made.append(worker.stop)
        return worker

    yield make
    GO.set()
    for end in reversed(made):
        end()


def start(client: BlockingClient, what: Any, name: str, count: int = 1, **options: Any) -> Any:
    options = {"task_queue": "q"} | options
    return [client.start_activity(what, name, **options) for _ in range(count)]


def queues(client: BlockingClient, task_queue: str = "q") -> dict[tuple[str, str], int]:
    """Where tasks wait."""
    estate = client.operations.estate(task_queue)
    return {(one.kind, one.target): one.backlog for one in estate.values() if one.backlog}


def figures(observer: Observer, task_queue: str = "q") -> Figures:
    (told,) = [
        one
        for one in observer.look(LOOK_S)
        if (one.task_queue, one.side) == (task_queue, Side.ACTIVITY)
    ]
    return told


def everywhere(client: BlockingClient, workers: Any) -> dict[tuple[str, str], int]:
    """Have tasks wait in all kinds of queues; returns where."""
    plain = workers(host="h1", worker_id="w1", capabilities=["gpu"], max_concurrent_activities=1)
    workers(deployment="shop", build_id="2", host="h2", worker_id="w2", max_concurrent_activities=1)
    start(client, hold, "busy")
    start(client, hold, "busy of version", route=Route.version("shop.2"))
    wait_until(lambda: plain.running == 1, "it is busy", PATIENCE_S)
    wait_until(
        lambda: all(one.running == 1 for one in client.operations.workers(LOOK_S)),
        "both are busy",
        PATIENCE_S,
    )
    start(client, note, "plain", 3)
    start(client, note, "host", 2, route=Route.host("h1"))
    start(client, note, "process", 1, route=Route.process("w1"))
    start(client, note, "version", 4, route=Route.version("shop.2"))
    start(client, note, "gpu", 5, requires={"gpu"})
    niche = Requires({"gpu"}, on_gone=OnGone.FAIL)
    start(client, note, "niche", 2, requires=niche)
    return {("activity", ""): 3, ("host", "h1"): 2, ("process", "w1"): 1}


def figures_settle(client: BlockingClient) -> int:
    with closing(Observer(client.core)) as observer:
        wait_until(lambda: figures(observer).backlog == 0, "nothing waits", PATIENCE_S)
        told = figures(observer)
    assert told.oldest_age_s == 0.0
    return told.backlog


def figures_of(client: BlockingClient) -> Figures:
    with closing(Observer(client.core)) as observer:
        return figures(observer)


class TestOnRabbitMQ:
    def test_what_waits_is_seen_wherever_it_waits(
        self, client: BlockingClient, workers: Any
    ) -> None:
        expected = everywhere(client, workers)
        with closing(Observer(client.core)) as observer:
            told = figures(observer)
            wait_until(lambda: figures(observer).backlog == 17, "all are seen", PATIENCE_S)
            told = figures(observer)
            found = {(one.kind, one.target): one.backlog for one in told.queues if one.backlog}
            niches = {key: count for key, count in found.items() if key[0] == "niche"}
            assert sum(niches.values()) == 2
            expected |= {("version", "shop.2"): 4, ("capable", "gpu"): 5} | niches
            assert found == expected
            # So does the endpoint for autoscalers.
            with closing(
                Endpoint(("127.0.0.1", 0), "n", client.core.clock, fresh_s=60)
            ) as endpoint:
                endpoint.tell([told])
                where = "http://{}:{}/figures/q".format(*endpoint.address)
                with urllib.request.urlopen(where, timeout=10) as answer:
                    read = json.loads(answer.read())["activity"]
                assert read["backlog"] == 17
                assert {(q["kind"], q["backlog"]) for q in read["queues"]} >= {("version", 4)}
        described = client.describe_task_queue("q")
        assert described.summary.backlog == 12, "capabilities are told for themselves"
        assert [(one.requires, one.backlog) for one in described.capable] == [(("gpu",), 5)]
        assert {one.kind for one in described.private} == {"host", "process", "niche"}
        seen = Counter(one.kind for one in client.peek_tasks("q", 100))
        kinds = {"activity": 3, "host": 2, "process": 1, "version": 4, "capable": 5, "niche": 2}
        assert seen == kinds
        assert queues(client) == expected, "a look changes nothing"
        # Nobody has lost an attempt by it.
        GO.set()
        wait_until(lambda: RAN.total() == 17, "all ran", PATIENCE_S)
        assert figures_settle(client) == 0

    def test_a_purge_means_all_of_it_and_a_move_all_but_what_is_for_few(
        self, client: BlockingClient, workers: Any
    ) -> None:
        everywhere(client, workers)
        wait_until(lambda: sum(queues(client).values()) == 17, "all wait", PATIENCE_S)
        moved = client.move_tasks("q", "there", create=True)
        assert moved.done == 8
        assert queues(client, "there") == {("activity", ""): 3, ("capable", "gpu"): 5}
        left = {"host": 2, "process": 1, "niche": 2, "version": 4}
        assert {kind: count for (kind, _), count in queues(client).items()} == left
        assert client.purge_task_queue("q") == 9
        assert queues(client) == {}
        # What is not empty stays.
        removed = client.operations.reclaim(["q", "there"], grace_s=0.1)
        assert removed == []
        GO.set()
        workers(task_queue="there", capabilities=["gpu"])
        wait_until(lambda: RAN["plain"] == 3 and RAN["gpu"] == 5, "they ran there", PATIENCE_S)

    def test_keys_that_are_held_back_are_told_moved_and_purged(
        self, client: BlockingClient, workers: Any
    ) -> None:
        start(client, note, "first", wait_result=False)
        operations = client.operations
        operations.set_limits("q", lambda _: Limits(concurrency=1), part=EACH_KEY, reason="fair")
        worker = workers(max_concurrent_activities=10)
        busy = start(client, hold, "busy", rate_limit_key="acme")
        wait_until(lambda: worker.running == 1, "it is busy", PATIENCE_S)
        start(client, note, "acme", 6, rate_limit_key="acme")
        handles = start(client, note, "zeta", 3, rate_limit_key="zeta")
        for handle in handles:
            handle.result(PATIENCE_S)

        def acme(told: Figures) -> Any:
            return next((one for one in told.parts if one.key == "acme"), None)

        with closing(Observer(client.core)) as observer:
            wait_until(
                lambda: (part := acme(figures(observer))) is not None and part.backlog == 6,
                "the key is held back",
                PATIENCE_S,
            )
            told = figures(observer)
            part = acme(told)
            assert (told.backlog, told.limit.is_limiting) == (6, True)
            assert part.limit.concurrency == 1
            assert (part.limit.source, part.limit.is_limiting) == ("setting", True)
            assert 0 <= part.oldest_age_s <= 2 * PATIENCE_S
            zeta = next(one for one in told.parts if one.key == "zeta")
            assert (zeta.begun, zeta.backlog, zeta.limit.is_limiting) == (3, 0, False)
        assert client.describe_task_queue("q").waiting == 6
        # Moved elsewhere they are under no limit.
        assert client.move_tasks("q", "free", limit=2, create=True).done == 2
        workers(task_queue="free")
        wait_until(lambda: RAN["acme"] == 2, "two ran elsewhere", PATIENCE_S)
        assert client.purge_task_queue("q") == 4
        wait_until(lambda: figures_of(client).backlog == 0, "nothing is held back", PATIENCE_S)
        # The usher counts right: the next one of that key begins when the first has ended.
        last = start(client, note, "last", rate_limit_key="acme")
        GO.set()
        for handle in (*busy, *last):
            handle.result(PATIENCE_S)
        assert RAN["acme"] == 2
        assert RAN["last"] == 1

    def test_a_sample_tells_priorities_and_the_rules_are_told(self, client: BlockingClient) -> None:
        for priority, count in ((1, 2), (3, 4), (5, 3)):
            start(client, note, f"p{priority}", count, priority=priority, wait_result=False)
        rule = TrafficRule(id="lend", task_queue="q", to_task_queue="laptop", percent=5.0, by="ann")
        client.operations.traffic.set(rule, force=True, wait_s=LOOK_S)
        told = client.operations.describe("q", sample=100)
        assert told.sample is not None
        assert told.sample.is_whole
        assert told.sample.priorities == ((1, 2), (3, 4), (5, 3))
        assert any("5 % of tasks in q to task queue 'laptop'" in step for step in told.routes)
        part = client.operations.describe("q", sample=4).sample
        assert part is not None
        assert (part.read, part.waiting, part.is_whole) == (4, 9, False)
        assert part.priorities == ((1, 2), (3, 2))

    def test_a_task_queue_stays_as_long_as_something_waits_in_any_of_its_queues(
        self, client: BlockingClient, workers: Any
    ) -> None:
        worker = workers(deployment="shop", build_id="1")
        wait_until(lambda: worker.is_running, "it runs", PATIENCE_S)
        worker.stop()
        start(client, note, "pinned", route=Route.version("shop.1"), wait_result=False)
        client.core.sender.ensure([client.core.names.activity("q")], client.core.deadline())
        assert queues(client) == {("version", "shop.1"): 1}
        assert client.operations.reclaim(grace_s=0.1) == []
        assert client.purge_task_queue("q") == 1
        assert client.operations.reclaim(grace_s=0.1) == ["q"]
        with pytest.raises(NotFound):
            client.purge_task_queue("none")

    def test_an_activity_is_found_wherever_it_is(
        self, client: BlockingClient, workers: Any
    ) -> None:
        everywhere(client, workers)
        (running,) = client.operations.workers(LOOK_S)[:1]
        assert running.running == 1
        (waits,) = start(client, note, "late", id="late", priority=4)
        assert client.describe_activity("late").state is ActivityState.UNKNOWN
        told = client.describe_activity("late", task_queue="q", search=100)
        assert (told.state, told.type) == (ActivityState.WAITING, "note")
        assert told.steps[0] == "the task queue of activity 'note' is 'q'"
        (held,) = start(client, hold, "held", id="held", route=Route.host("h1"))
        GO.set()
        assert waits.result(PATIENCE_S) is None
        assert held.result(PATIENCE_S) is None
        told = client.describe_activity("held")
        assert (told.state, told.steps) == (ActivityState.ENDED, ())
        assert [len(one.tasks) for one in told.found] == [1]


class TestInMemory(TestOnRabbitMQ):
    @pytest.fixture
    def broker_url(self) -> Iterator[str]:
        url = f"memory://{secrets.token_hex(4)}"
        yield url
        memory.forget(url)
