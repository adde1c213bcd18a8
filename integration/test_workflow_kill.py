"""Journey: services of workflows are killed under load, and everything takes place exactly once.

What is killed when is random; the seed is told, and ``TQ_BROKER_SEED`` sets it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from integration.deployment import (
    REST_WITHIN_S,
    Deployment,
    RoleProcess,
    deployed,
    stored,
    wait_at_rest,
)
from integration.journey import PATIENCE_S, measured, wait_until
from integration.ledger import SUCCESS, check
from integration.load_workflows import TOLD, Long, Order, Part, Wait, keys, once_key
from integration.postgresql_server import PostgresqlServer
from tq_broker.history.membership import DEAD_AFTER_S
from tq_broker.model import events as ev
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.model.names import Kind, Names
from tq_broker.model.requests import SHARDS, Status
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Replayer

CLIENTS = 24
APPLICATION = "integration.load_workflows"
RESULT_WITHIN_S = 180.0
SPREAD_WITHIN_S = 10.0
SOON_MS = 5_000
"""A second is promised; what is measured is told. Timeouts of tasks would be twice this."""


@pytest.fixture
def chance() -> random.Random:
    seed = os.environ.get("TQ_BROKER_SEED") or str(random.SystemRandom().getrandbits(32))
    print(f"TQ_BROKER_SEED={seed}")
    return random.Random(seed)


# --- load -----------------------------------------------------------------------------------------


class Load:
    """Clients that make orders one after the other, each from its start to its result."""

    def __init__(self, deployment: Deployment, chance: random.Random) -> None:
        self._client = deployment.client
        self._ledger = deployment.ledger
        self._enough = threading.Event()
        self._numbers = itertools.count()
        self._results: dict[str, dict[str, Any]] = {}
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [
            self._pool.submit(self._order, chance.uniform(0.05, 0.4)) for _ in range(CLIENTS)
        ]

    def _order(self, pause_s: float) -> None:
        while not self._enough.is_set():
            order = f"order-{next(self._numbers)}"
            self._results[order] = self._drive(order, pause_s)

    def _drive(self, order: str, pause_s: float) -> dict[str, Any]:
        self._ledger.write("intent", *keys(order), once_key(order))
        handle = self._client.start_workflow(Order.run, order, id=order, task_queue="q")
        self._ledger.write("accepted", *keys(order), once_key(order))
        for number in TOLD:
            handle.signal(Order.tell, number)
            time.sleep(pause_s)
        assert handle.execute_update(Order.put, 5) == 5
        result: dict[str, Any] = handle.result(timeout=RESULT_WITHIN_S)
        return result

    def finish(self) -> list[str]:
        """Make no more; returns the orders when all have their results."""
        self._enough.set()
        for client in self._clients:
            client.result(RESULT_WITHIN_S)
        self._pool.shutdown()
        return list(self._results)

    def check(self) -> None:
        """Every order has come to the right result, and the ledger agrees."""
        results = self._results
        lost = [order for order, result in results.items() if result["once"] == "lost"]
        for order, result in results.items():
            assert result == {
                "told": TOLD,
                "stamps": 1,
                "total": 5,
                "parts": [f"{order}/thread", f"{order}/local", f"{order}/child"],
                "is_retried": True,
                "once": "lost" if order in lost else "ok",
            }
            self._ledger.write("done", *keys(order), note=SUCCESS)
            self._ledger.write("done", once_key(order), note="" if order in lost else SUCCESS)
        found = check(self._ledger.events(), once=[once_key(order) for order in results])
        # The outbox may bring an attempt twice after a kill, and only claims see that before; a
        # local activity begins again with its workflow task.
        doubled = [one for one in found.doubled if not one[0].endswith("/local")]
        print(f"began twice: {doubled}")
        measured("attempts lost for good", len(lost))
        measured("keys with a second attempt or more", len(found.attempts))
        assert found.faults.keys() <= {"doubled"}, found.faults
        assert len(doubled) <= len(results) // 10


# --- what is stored -------------------------------------------------------------------------------

_ENDS: dict[type, tuple[type, ...]] = {
    ev.ActivityTaskScheduled: (
        ev.ActivityTaskCompleted,
        ev.ActivityTaskFailed,
        ev.ActivityTaskTimedOut,
        ev.ActivityTaskCanceled,
    ),
    ev.TimerStarted: (ev.TimerFired, ev.TimerCanceled),
    ev.StartChildWorkflowExecutionInitiated: (
        ev.StartChildWorkflowExecutionFailed,
        ev.ChildWorkflowExecutionCompleted,
        ev.ChildWorkflowExecutionFailed,
        ev.ChildWorkflowExecutionCanceled,
        ev.ChildWorkflowExecutionTimedOut,
        ev.ChildWorkflowExecutionTerminated,
    ),
    ev.SignalExternalWorkflowExecutionInitiated: (
        ev.ExternalWorkflowExecutionSignaled,
        ev.SignalExternalWorkflowExecutionFailed,
    ),
    ev.WorkflowExecutionUpdateAccepted: (ev.WorkflowExecutionUpdateCompleted,),
    ev.WorkflowTaskScheduled: (
        ev.WorkflowTaskCompleted,
        ev.WorkflowTaskFailed,
        ev.WorkflowTaskTimedOut,
    ),
}


def check_history(events: list[ev.Event]) -> None:
    """Without gaps, closed by its last event, and all that was begun has ended once."""
    assert [event.event_id for event in events] == [*range(1, len(events) + 1)]
    kinds = Counter(type(event) for event in events)
    assert kinds[ev.WorkflowExecutionStarted] == 1
    assert isinstance(events[0], ev.WorkflowExecutionStarted)
    assert isinstance(events[-1], ev.CLOSING)
    assert sum(kinds[kind] for kind in ev.CLOSING) == 1
    for begun, ends in _ENDS.items():
        assert kinds[begun] == sum(kinds[end] for end in ends), begun


def check_store(deployment: Deployment, orders: list[str]) -> None:
    """Nothing is left to be done, and all histories are whole and fit the code."""
    wait_at_rest(deployment.store, deployment.namespace)
    runs = stored(deployment.store, deployment.namespace)
    statuses = Counter((row.workflow_type, row.status) for row, _ in runs)
    count = len(orders)
    assert statuses == {
        ("Order", Status.CONTINUED_AS_NEW): count,
        ("Order", Status.COMPLETED): count,
        ("Part", Status.FAILED): count,
        ("Part", Status.COMPLETED): count,
    }
    for row, events in runs:
        assert row.next_ms is None
        assert row.history_length == len(events)
        check_history(events)
    replayer = Replayer(workflows=[Order, Part])
    histories = [WorkflowHistory(row.workflow_id, events) for row, events in runs]
    asyncio.run(replayer.replay_workflows(histories))


def check_queues(node: LocalRabbitMQ, namespace: str, only: str | None = None) -> None:
    """Every message has been dealt with; ``only`` those of one queue are looked at."""
    names = Names(namespace)
    ours = f"tq.{namespace}."
    # The log is kept, and clients hear of each other.
    others = (str(names.queue(Kind.SETTINGS)), f"{ours}reply.")

    def left() -> dict[str, int]:
        rows = node.ctl("-q", "list_queues", "--no-table-headers", "name", "messages").splitlines()
        counts = {name: int(count) for name, _, count in (row.partition("\t") for row in rows)}
        return {
            name: count
            for name, count in counts.items()
            if count and name.startswith(only or ours) and not name.startswith(others)
        }

    deadline = time.monotonic() + REST_WITHIN_S
    while found := left():
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


# --- kills ----------------------------------------------------------------------------------------


class Kills:
    """Who is killed next is chance; whoever was is started again at once."""

    def __init__(
        self,
        deployment: Deployment,
        chance: random.Random,
        node: LocalRabbitMQ,
        database: PostgresqlServer | None = None,
    ) -> None:
        self._deployment = deployment
        self._chance = chance
        self._node = node
        self._database = database
        self.histories = [deployment.history() for _ in range(2)]
        self.workers = [deployment.worker() for _ in range(2)]
        for process in (*self.histories, *self.workers):
            process.ready()

    def one(self, what: str) -> None:
        """Some time from now, ``what`` is killed and comes back."""
        time.sleep(self._chance.uniform(0.2, 2.5))
        print(f"{time.strftime('%H:%M:%S')} {what}")
        getattr(self, what)()

    def history(self) -> None:
        self._replace(self.histories)

    def worker(self) -> None:
        self._replace(self.workers)

    def _replace(self, processes: list[RoleProcess]) -> None:
        victim = processes.pop(self._chance.randrange(len(processes)))
        victim.kill()
        processes.append(self._deployment.again(victim).ready())

    def broker(self) -> None:
        (self._node.kill if self._chance.random() < 0.5 else self._node.stop)()
        self._node.start()

    def database(self) -> None:
        assert self._database is not None, "only a server can be killed"
        self._database.kill()
        time.sleep(self._chance.uniform(0, 2))
        self._database.start()

    def freeze(self) -> None:
        """Longer than a member may be silent: the others own its shards when it wakes."""
        victim = self._chance.choice(self.histories)
        victim.send(signal.SIGSTOP)
        time.sleep(DEAD_AFTER_S + 2)
        victim.send(signal.SIGCONT)


def suffer(
    deployment: Deployment, kills: Kills, chance: random.Random, node: LocalRabbitMQ, *also: str
) -> None:
    """The load, with kills of all kinds in the midst of it, and then the checks."""
    load = Load(deployment, chance)
    # A quorum queue of RabbitMQ 3.10 that is killed within five seconds of its birth is lost.
    time.sleep(6)
    rounds = [*["history", "worker"] * 3, *["broker"] * 2, *also]
    chance.shuffle(rounds)
    for what in rounds:
        kills.one(what)
    orders = load.finish()
    measured("orders", len(orders))
    load.check()
    check_store(deployment, orders)
    # A will of a killed worker that is being executed would wait there for the next worker.
    check_queues(node, deployment.namespace, f"tq.{deployment.namespace}.unrouted")
    deployment.end(kills.workers)
    check_queues(node, deployment.namespace)
    deployment.end(kills.histories)
    measured("moves of shards", len(deployment.said("gives up shards")))
    assert not deployment.said("internal error")
    assert not deployment.said("parked")


def test_kills_of_everything_on_sqlite(
    rabbitmq_of_file: LocalRabbitMQ, namespace: str, tmp_path: Path, chance: random.Random
) -> None:
    node, store = rabbitmq_of_file, f"sqlite:///{tmp_path / 'history.sqlite'}"
    with deployed(node.url, namespace, store, tmp_path, APPLICATION) as deployment:
        suffer(deployment, Kills(deployment, chance, node), chance, node)


def test_kills_of_everything_on_postgresql(
    rabbitmq: LocalRabbitMQ,
    postgresql: PostgresqlServer,
    namespace: str,
    tmp_path: Path,
    chance: random.Random,
) -> None:
    node, store = rabbitmq, postgresql.url
    with deployed(node.url, namespace, store, tmp_path, APPLICATION) as deployment:
        kills = Kills(deployment, chance, node, postgresql)
        suffer(deployment, kills, chance, node, "database", "database", "freeze")


# --- one by one -----------------------------------------------------------------------------------


@pytest.fixture
def deployment(
    rabbitmq_of_file: LocalRabbitMQ, namespace: str, tmp_path: Path
) -> Iterator[Deployment]:
    store = f"sqlite:///{tmp_path / 'history.sqlite'}"
    with deployed(rabbitmq_of_file.url, namespace, store, tmp_path, APPLICATION) as deployment:
        yield deployment


def test_a_client_waits_through_the_absence_of_history_and_broker(
    deployment: Deployment, rabbitmq_of_file: LocalRabbitMQ
) -> None:
    histories = [deployment.history().ready() for _ in range(2)]
    worker = deployment.worker().ready()
    handle = deployment.client.start_workflow(Wait.run, id="wait", task_queue="q")
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(handle.result, timeout=RESULT_WITHIN_S)
        assert handle.query(Wait.said) == ""
        for history in histories:
            history.kill()
        rabbitmq_of_file.stop()
        rabbitmq_of_file.start()
        # Nobody is there who would answer it; it waits in the inbox.
        telling = pool.submit(handle.signal, Wait.tell, "done")
        time.sleep(1)
        assert not waiting.done()
        assert not telling.done()
        history = deployment.history().ready()
        telling.result()
        assert waiting.result() == "done"
    deployment.end([worker])
    deployment.end([history])


def test_an_activity_whose_worker_is_killed_is_soon_known_to_be_lost(
    deployment: Deployment,
) -> None:
    deployment.history().ready()
    start = deployment.client.start_workflow
    waits, ends = [], []
    for round_ in range(3):
        victim = deployment.worker().ready()
        retried = start(Long.run, 60.0, id=f"retried-{round_}", task_queue="q")
        ended = start(Long.run, args=[60.0, True], id=f"ended-{round_}", task_queue="q")
        wait_until(
            lambda handles=(retried, ended): all(
                any(one.last_started_time for one in handle.describe().pending_activities)
                for handle in handles
            ),
            "both activities run",
        )
        heir = deployment.worker().ready()
        killed_ms = time.time() * 1000
        victim.kill()
        assert retried.result(timeout=PATIENCE_S) == 2
        assert ended.result(timeout=PATIENCE_S) == -1
        waits.append(time_of(retried, ev.ActivityTaskStarted) - killed_ms)
        ends.append(time_of(ended, ev.ActivityTaskFailed) - killed_ms)
        deployment.end([heir])
    measured("ms from kill -9 to the event that an attempt is lost, median", median(ends))
    measured("ms from kill -9 to the next attempt's start, median", median(waits))
    assert max(*waits, *ends) < SOON_MS


def time_of(handle: Any, kind: type[ev.Event]) -> int:
    """When the last event of that type took place, in epoch milliseconds."""
    found = [event.time_ms for event in handle.fetch_history().events if isinstance(event, kind)]
    return found[-1]


def test_cached_workflows_of_a_killed_or_stopped_worker_go_on_with_another(
    deployment: Deployment,
) -> None:
    """No timeout finds out that the worker is gone: no task times out, none waits."""
    history = deployment.history().ready()
    worker = deployment.worker().ready()
    for round_, is_killed in enumerate([True, False, True]):
        start = deployment.client.start_workflow
        handles = [start(Wait.run, id=f"w-{round_}-{n}", task_queue="q") for n in range(30)]
        for handle in handles:
            assert handle.query(Wait.said) == ""
            assert handle.describe().sticky_worker
        heir = deployment.worker().ready()
        if is_killed:
            worker.kill()
        else:
            worker.send(signal.SIGTERM)
        for handle in handles:
            handle.signal(Wait.tell, "done")
        waits = []
        for handle in handles:
            assert handle.result(timeout=PATIENCE_S) == "done"
            events = handle.fetch_history().events
            check_history(list(events))
            assert not any(isinstance(event, ev.WorkflowTaskTimedOut) for event in events)
            waits.append(events[-1].time_ms - time_of(handle, ev.WorkflowExecutionSignaled))
        how = "killed" if is_killed else "stopped"
        measured(f"ms from signal to end with a worker {how}, at most", max(waits))
        assert max(waits) < SOON_MS
        worker.wait()
        worker = heir
    deployment.end([worker])
    deployment.end([history])


def test_shards_spread_evenly_within_seconds_of_a_join_a_leave_and_a_death(
    deployment: Deployment,
) -> None:
    first = deployment.history().ready()
    wait_spread(deployment, first)
    second = deployment.history().ready()
    measured("s to spread after a join", wait_spread(deployment, first, second))
    second.send(signal.SIGTERM)
    measured("s to spread after a leave", wait_spread(deployment, first))
    assert second.wait() == 0
    third = deployment.history().ready()
    wait_spread(deployment, first, third)
    third.kill()
    measured("s to spread after a death", wait_spread(deployment, first))


def wait_spread(deployment: Deployment, *processes: RoleProcess) -> float:
    """Until these own the same number of shards each; returns how long that took."""
    want = {process.name: SHARDS // len(processes) for process in processes}
    return wait_until(lambda: deployment.owners() == want, f"owners: {want}", SPREAD_WITHIN_S)
