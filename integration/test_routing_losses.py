"""Journey: whatever a task is routed by, its target is killed under load, and nothing is lost.

Embedded and on every RabbitMQ version; there the workers are processes, and ``kill -9`` ends them.
One worker stays; the other, the target, is killed when it has begun some of the tasks.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from integration.affinity_workflows import ACTIVITIES, where
from integration.deployment import RoleProcess
from integration.journey import wait_until
from tq_broker.client import BlockingClient
from tq_broker.common import OnGone, Requires, RetryPolicy, Route
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
        options = {"task_queue": "q", "retry_policy": SOON} | options
        handles = self.client.start_activities(where, [(EACH_S,)] * TASKS, **options)

        def is_at_it() -> bool:
            done = [one for one in handles if one._wanted().done()]
            return any(one.result()[1] == GOES for one in done)

        wait_until(is_at_it, "the target is at it", PATIENCE_S)
        self.kill(GOES)
        return handles

    def places(self, handles: list[Any]) -> list[str]:
        """Who has done each, in the end."""
        return [handle.result(PATIENCE_S)[1] for handle in handles]

    def close(self) -> None:
        for close in reversed(self._closers):
            close()


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


class TestEmbedded(Losses):
    @pytest.fixture
    def yard(self, tmp_path: Path) -> Iterator[Yard]:
        yard = Yard(None, tmp_path)
        yield yard
        yard.close()


class TestOnRabbitMQ(Losses):
    @pytest.fixture
    def yard(self, broker: LocalRabbitMQ, tmp_path: Path) -> Iterator[Yard]:
        yard = Yard(broker.url, tmp_path)
        yield yard
        yard.close()
