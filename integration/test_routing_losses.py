"""Journey: whatever a task is routed by, its target is killed under load, and nothing is lost; nor
is it by priorities, and by verbs on whole task queues.

Embedded and on every RabbitMQ version; there the workers are processes, and ``kill -9`` ends them.
One worker stays; the other, the target, is killed when it has begun some of the tasks.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from integration.affinity_workflows import ACTIVITIES, where
from integration.deployment import RoleProcess
from integration.journey import backlog, wait_until
from tq_broker.client import BlockingClient
from tq_broker.common import OnGone, Requires, RetryPolicy, Route
from tq_broker.exceptions import ActivityError, TargetGone, TqBrokerError
from tq_broker.model.names import Names
from tq_broker.model.rules import TrafficRule
from tq_broker.queues.memory import MemoryBroker
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Worker

S = timedelta(seconds=1)
SOON = RetryPolicy(initial_interval=S / 10, backoff_coefficient=1)
PATIENCE_S = 60.0
TASKS = 60
SLOTS = 4
EACH_S = 0.1
"""The target alone would have to do for some seconds."""
STAYS, GOES = "stays", "goes"
WAIT_S = 1.0
"""How long workers may take to answer; what nobody has answered about is refused."""


class Yard:
    """A client and workers, each with a connection of its own; of a real broker they are
    processes."""

    def __init__(self, url: str | None, directory: Path) -> None:
        self.namespace = f"t{secrets.token_hex(4)}"
        self.url = url or f"memory://losses-{self.namespace}"
        self._is_embedded = url is None
        self._directory = directory
        self.client = BlockingClient.connect(self.url, namespace=self.namespace)
        self._closers: list[Callable[[], object]] = [self.client.close]
        self._deaths: dict[str, Callable[[], object]] = {}
        self._starting: list[RoleProcess] = []

    def worker(
        self,
        name: str,
        task_queue: str = "q",
        host: str = "h1",
        deployment: str = "",
        build_id: str = "",
        capabilities: Sequence[str] = (),
    ) -> None:
        """Start one; call `ready` before you rely on it."""
        versioned = {"deployment": deployment, "build_id": build_id} if deployment else {}
        if self._is_embedded:
            self._embedded(name, task_queue, host=host, capabilities=capabilities, **versioned)
            return
        options = [f"--{key.replace('_', '-')}={value}" for key, value in versioned.items()]
        options += [f"--capability={one}" for one in capabilities]
        command = (
            *("--json", "-l", "INFO", "-b", self.url, "--namespace", self.namespace),
            *("-A", "integration.affinity_workflows:ACTIVITIES", "worker", "-Q", task_queue),
            *("--host", host, "--worker-id", name, "-c", str(SLOTS), *options),
        )
        process = RoleProcess(name, command, {}, self._directory / f"{name}.log")
        self._closers.append(process.close)
        self._deaths[name] = process.kill
        self._starting.append(process)

    def ready(self) -> None:
        """Wait until tasks can come to all that were started."""
        while self._starting:
            self._starting.pop().ready()

    def _embedded(self, name: str, task_queue: str, **options: Any) -> None:
        client = BlockingClient.connect(self.url, namespace=self.namespace)
        worker = Worker(
            client,
            task_queue=task_queue,
            activities=ACTIVITIES,
            worker_id=name,
            max_concurrent_activities=SLOTS,
            graceful_shutdown_timeout=S,
            reclaim_after=None,
            **options,
        )
        broker = client.connection.broker
        assert isinstance(broker, MemoryBroker)

        def die() -> None:
            broker.kill()
            worker._until = lambda condition, seconds: True  # type: ignore[method-assign]

        self._closers += [client.close, worker.stop]
        self._deaths[name] = die
        worker.start()

    def kill(self, name: str) -> None:
        self._deaths.pop(name)()

    def send(self, **action: Any) -> None:
        """Set a traffic rule for all of the task queue, and wait until it is known here."""
        rule = TrafficRule(id="r", task_queue="q", take_within_ms=5_000, **action)
        self.client.operations.traffic.set(rule, wait_s=WAIT_S)
        traffic = self.client.connection.traffic
        traffic.follow()
        wait_until(lambda: traffic.rules, "the rule is known", PATIENCE_S)

    def load(self, **options: Any) -> list[Any]:
        """Start the tasks, and kill the target when it has completed one of them."""
        handles = self.start(**options)
        self.kill_at_it(handles)
        return handles

    def start(self, count: int = TASKS, **options: Any) -> list[Any]:
        options = {"task_queue": "q", "retry_policy": SOON} | options
        return self.client.start_activities(where, [(EACH_S,)] * count, **options)

    def kill_at_it(self, handles: list[Any]) -> None:
        """Kill the target when it has completed one of ``handles``."""

        def is_at_it() -> bool:
            return any(one.result()[1] == GOES for one in handles if one._wanted().done())

        wait_until(is_at_it, "the target is at it", PATIENCE_S)
        self.kill(GOES)

    def is_still(self) -> bool:
        """Whether nobody has a task of the task queue in hand, or takes any."""
        told = self.client.describe_task_queue("q").summary
        return not (told.in_flight or told.consumers)

    def places(self, handles: list[Any]) -> list[str]:
        """Who has done each, in the end."""
        return [handle.result(PATIENCE_S)[1] for handle in handles]

    def close(self) -> None:
        for close in reversed(self._closers):
            close()


def done(handles: list[Any]) -> int:
    """How many have ended."""
    return sum(one._wanted().done() for one in handles)


Case = tuple[dict[str, Any], dict[str, Any], Callable[[Yard], object]]


def _nothing(yard: Yard) -> None:
    """There is nothing to set."""


V1, V2 = ({"deployment": "shop", "build_id": build_id} for build_id in ("v1", "v2"))
FALLS = OnGone.FALL_BACK
CASES: dict[str, Case] = {
    # of the worker that stays, of each call, and what is set before
    "host": ({}, {"route": Route.host("h2", on_gone=FALLS)}, _nothing),
    "process": ({}, {"route": Route.process(GOES, on_gone=FALLS)}, _nothing),
    "capability": ({}, {"requires": Requires({"gpu"}, FALLS)}, _nothing),
    "rule to a task queue": ({}, {}, lambda yard: yard.send(to_task_queue="laptop")),
    "rule to a host": ({}, {}, lambda yard: yard.send(to_host="h2")),
    "rule to a version": (V1, {}, lambda yard: yard.send(to_version="shop.v2")),
}


class Losses:
    """The suite. A subclass has a fixture ``yard``."""

    @pytest.mark.parametrize("name", CASES)
    def test_what_the_target_does_not_do_is_done_elsewhere(self, yard: Yard, name: str) -> None:
        stays, call, prepare = CASES[name]
        target: dict[str, Any] = {"host": "h2", "capabilities": ["gpu"]}
        if stays:
            target = V2
        elif name == "rule to a task queue":
            target = {"task_queue": "laptop"}
        yard.worker(STAYS, **stays)
        yard.worker(GOES, **target)
        yard.ready()
        if stays:
            yard.client.operations.deployments.set_current("shop", "v1", wait_s=WAIT_S)
        prepare(yard)
        places = yard.places(yard.load(**call))
        assert set(places) == {STAYS, GOES}
        assert places.count(STAYS) > TASKS // 4, "it was killed in the middle"

    def test_what_a_ramp_had_given_to_a_version_goes_to_the_current_one(self, yard: Yard) -> None:
        yard.worker(STAYS, **V1)
        yard.worker(GOES, **V2)
        yard.ready()
        deployments = yard.client.operations.deployments
        deployments.set_current("shop", "v1", wait_s=WAIT_S)
        deployments.set_ramping("shop", "v2", 50.0, wait_s=WAIT_S)
        handles = yard.load()
        deployments.set_ramping("shop", None, wait_s=WAIT_S)
        assert set(yard.places(handles)) == {STAYS, GOES}

    def test_what_is_pinned_waits_for_a_worker_of_its_version(self, yard: Yard) -> None:
        yard.worker(STAYS, **V1)
        yard.worker(GOES, **V2)
        yard.ready()
        handles = yard.load(version="shop.v2")
        yard.worker("next", **V2)
        assert set(yard.places(handles)) == {GOES, "next"}

    def test_first_priority_comes_first_also_when_a_worker_is_lost(self, yard: Yard) -> None:
        yard.worker(STAYS)
        yard.worker(GOES)
        yard.ready()
        last = yard.start(priority=5)
        first = yard.load(priority=1)
        assert set(yard.places(first)) == {STAYS, GOES}
        assert done(last) < TASKS // 2, "they wait for the first"
        assert set(yard.places(last)) <= {STAYS, GOES}

    def test_what_is_paused_stays_so_when_a_worker_is_lost(self, yard: Yard) -> None:
        yard.worker(STAYS)
        yard.worker(GOES)
        yard.ready()
        handles = yard.start()
        wait_until(lambda: done(handles) > 2 * SLOTS, "both are at it", PATIENCE_S)
        yard.client.pause_task_queue("q", "it burns")
        yard.kill(GOES)
        wait_until(yard.is_still, "what was in hand has ended", PATIENCE_S)
        before = done(handles)
        time.sleep(1)
        assert before == done(handles) < TASKS
        yard.client.resume_task_queue("q")
        assert set(yard.places(handles)) == {STAYS, GOES}

    def test_what_was_moved_to_a_worker_that_is_lost_is_done_by_the_next(self, yard: Yard) -> None:
        yard.worker(STAYS)
        yard.worker(GOES, "r")
        yard.ready()
        handles = yard.start(4 * TASKS)  # the move asks workers first, which takes its time
        assert yard.client.move_tasks("q", "r").done > 0
        yard.kill_at_it(handles)
        yard.worker("next", "r")
        assert set(yard.places(handles)) == {STAYS, GOES, "next"}

    def test_a_broadcast_tells_which_worker_was_lost(self, yard: Yard) -> None:
        yard.worker(STAYS)
        yard.worker(GOES)
        yard.ready()
        handles = yard.start()
        found: list[Any] = []

        def ask() -> None:
            found.extend(
                yard.client.broadcast_activity(where, 3.0, task_queue="q", timeout=20.0, wait=5.0)
            )

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: done(handles) == TASKS, "only the broadcast is left", PATIENCE_S)
        yard.kill(GOES)
        asking.join(PATIENCE_S)
        by_id = {one.worker_id: one for one in found}
        assert by_id[STAYS].result[1] == STAYS
        assert isinstance(by_id[GOES].error, (ActivityError, TargetGone))


class TestEmbedded(Losses):
    @pytest.fixture
    def yard(self, tmp_path: Path) -> Iterator[Yard]:
        yard = Yard(None, tmp_path)
        yield yard
        yard.close()

    def test_a_move_whose_mover_is_lost_is_done_again(self, yard: Yard) -> None:
        # On real servers: `test_verbs`.
        handles = yard.start(5 * TASKS)
        mover = BlockingClient.connect(yard.url, namespace=yard.namespace, timeout=2.0)
        broker = mover.connection.broker
        assert isinstance(broker, MemoryBroker)
        with pytest.raises(TqBrokerError):
            mover.move_tasks("q", "r", create=True, on_progress=lambda _told: broker.kill())
        rest = len(handles) - backlog(yard.client.core, Names(yard.namespace).activity("r"))
        assert 0 < rest < len(handles)
        assert yard.client.move_tasks("q", "r").done >= rest
        yard.worker(STAYS, "r")
        assert set(yard.places(handles)) == {STAYS}


class TestOnRabbitMQ(Losses):
    @pytest.fixture
    def yard(self, broker: LocalRabbitMQ, tmp_path: Path) -> Iterator[Yard]:
        yard = Yard(broker.url, tmp_path)
        yield yard
        yard.close()
