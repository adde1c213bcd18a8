"""Journey: workers that have workflows in their caches are stopped, killed and cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from integration.journey import PATIENCE_S, ROOT, measured, wait_until
from integration.journey_workflows import Cart, Double
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.model.names import Names
from tq_broker.testing.embedded import EmbeddedSystem

MOVED_WITHIN_S = 5.0
"""It takes well under a second where there is a core to spare; the sticky queue would take 10 s."""
RUNS = 20


class Worker:
    """A worker in a process of its own."""

    def __init__(self, url: str, namespace: str, worker_id: str, log: Path) -> None:
        self.worker_id = worker_id
        self.log = log
        command = [sys.executable, "-m", "tq_broker", "-A", "integration.journey_workflows"]
        command += ["--namespace", namespace, "-l", "info"]
        command += ["worker", "-Q", "q", "--worker-id", worker_id]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "TQ_BROKER_URL": url}, stderr=errors
            )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Site:
    """A history service and a client here, and workers elsewhere."""

    def __init__(self, url: str, namespace: str, directory: Path) -> None:
        self.url, self.namespace, self.directory = url, namespace, directory
        self.names = Names(namespace)
        store = f"sqlite:///{directory / 'history.sqlite'}"
        self.system = EmbeddedSystem(SystemClock(), url, store, namespace=namespace)
        self.system.start()
        self.client = BlockingClient(self.system.core)
        self.workers: list[Worker] = []

    def worker(self, worker_id: str) -> Worker:
        """A worker process that serves."""
        log = self.directory / f"{worker_id}.log"
        worker = Worker(self.url, self.namespace, worker_id, log)
        self.workers.append(worker)
        wait_until(lambda: worker_id in self.found(), f"worker {worker_id}: {log}")
        return worker

    def found(self) -> dict[str, Any]:
        found = self.client.operations.workers(0.2)
        return {one.worker_id: one for one in found}

    def cached(self, worker: Worker) -> int:
        one = self.found().get(worker.worker_id)
        return 0 if one is None else one.cached_workflows

    def carts(self) -> list[Any]:
        """Runs that wait for what they are told; with something in their caches."""
        start = self.client.start_workflow
        handles = [start(Cart.run, id=f"cart-{n}", task_queue="q") for n in range(RUNS)]
        for handle in handles:
            handle.signal(Cart.add, "a")
        return handles

    def finish(self, handles: list[Any]) -> float:
        """Tell them all to end; returns how long that took."""
        begun = time.monotonic()

        def end(handle: Any) -> list[str]:
            handle.signal(Cart.close)
            items: list[str] = handle.result(timeout=PATIENCE_S)
            return items

        with ThreadPoolExecutor(RUNS) as pool:
            assert list(pool.map(end, handles)) == [["a"]] * RUNS
        return time.monotonic() - begun

    def sticky_is_gone(self, worker: Worker) -> bool:
        broker = self.client.connection.broker
        name = str(self.names.sticky(worker.worker_id))
        return broker.stats(name, time.monotonic() + 10) is None

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.system.close()


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(broker_url, namespace, tmp_path)
    yield site
    site.close()


def test_a_workflow_runs_in_a_process_of_its_own(site: Site) -> None:
    site.worker("one")
    assert site.client.execute_workflow(Double.run, 21, id="d", task_queue="q") == 42


def test_workflows_of_a_worker_that_stops_move_at_once(site: Site) -> None:
    first = site.worker("first")
    handles = site.carts()
    wait_until(lambda: site.cached(first) == RUNS, "all in the cache")
    site.worker("second")

    first.process.terminate()
    # What is told from here on finds its run moved, or moves it.
    took_s = site.finish(handles)

    measured("s for the workflows of a stopped worker", took_s)
    assert took_s < MOVED_WITHIN_S
    assert first.process.wait(PATIENCE_S) == 0
    assert site.sticky_is_gone(first)


def test_workflows_of_a_killed_worker_move_at_once(site: Site) -> None:
    first = site.worker("first")
    handles = site.carts()
    wait_until(lambda: site.cached(first) == RUNS, "all in the cache")
    site.worker("second")

    first.process.kill()
    took_s = site.finish(handles)

    measured("s for the workflows of a killed worker", took_s)
    assert took_s < MOVED_WITHIN_S
    wait_until(lambda: site.sticky_is_gone(first), "the end of the sticky queue")


def test_the_last_worker_may_die_and_the_next_one_goes_on(site: Site) -> None:
    first = site.worker("first")
    handles = site.carts()
    wait_until(lambda: site.cached(first) == RUNS, "all in the cache")
    first.process.kill()
    first.process.wait()

    site.worker("second")

    site.finish(handles)
    wait_until(lambda: site.sticky_is_gone(first), "the end of the sticky queue")


def test_a_worker_under_its_old_name_begins_without_a_cache(site: Site) -> None:
    first = site.worker("same")
    handles = site.carts()
    wait_until(lambda: site.cached(first) == RUNS, "all in the cache")
    first.process.kill()
    first.process.wait()

    site.worker("same")

    site.finish(handles)


def test_workers_that_are_killed_again_and_again_lose_no_workflow(site: Site) -> None:
    workers = [site.worker(f"w{number}") for number in range(2)]
    start = site.client.start_workflow
    handles = [start(Double.run, n, id=f"d{n}", task_queue="q") for n in range(300)]
    carts = site.carts()
    for number in range(2, 5):
        workers.pop(0).process.kill()
        workers.append(site.worker(f"w{number}"))
    assert [handle.result(timeout=PATIENCE_S) for handle in handles] == [2 * n for n in range(300)]
    site.finish(carts)


def test_a_pause_holds_the_workflow_tasks_of_cached_runs_until_it_is_over(site: Site) -> None:
    first = site.worker("first")
    handles = site.carts()
    wait_until(lambda: site.cached(first) == RUNS, "all in the cache")
    queue = str(site.names.workflow("q"))
    broker = site.client.connection.broker

    def waiting() -> int:
        stats = broker.stats(queue, time.monotonic() + 10)
        return -1 if stats is None or stats.consumers else stats.ready

    site.client.pause_task_queue("q", "upgrade", side="workflow")
    took_s = wait_until(lambda: waiting() == 0, "nobody consumes")
    measured("s from a recorded pause to no consumers of idle workers", took_s)
    assert took_s < MOVED_WITHIN_S
    for handle in handles:
        handle.signal(Cart.add, "b")
        handle.signal(Cart.close)
    wait_until(lambda: waiting() == RUNS, "one task of each run waits")
    # Who was there dies, and another worker finds the pause.
    first.close()
    site.worker("second")
    assert waiting() == RUNS
    # They are moved, so that workers of another task queue do them, and then it is over.
    told = site.client.move_tasks("q", "r", side="workflow", create=True, limit=RUNS // 2)
    assert (told.done, told.types) == (RUNS // 2, {"Cart": RUNS // 2})
    site.client.move_tasks("r", "q", side="workflow")
    site.client.resume_task_queue("q", side="workflow")
    results = [handle.result(timeout=PATIENCE_S) for handle in handles]
    assert results == [["a", "b"]] * RUNS
