"""Figures and tuners on real servers, with workers that come, go and are killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from integration.journey import wait_until
from tq_broker import activity
from tq_broker.client import BlockingClient
from tq_broker.client.observer import Observer
from tq_broker.client.operations import Operations
from tq_broker.model.figures import Figures
from tq_broker.model.limits import Limits, Side
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import ResourceBasedSlotConfig, Worker, WorkerTuner

ROOT = Path(__file__).parent.parent
PATIENCE_S = 30.0
LOOK_S = 0.3
GO = threading.Event()


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def quick(number: int) -> int:
    return number


@activity.defn(start_to_close_timeout=timedelta(minutes=5))
def gated(number: int) -> int:
    assert GO.wait(PATIENCE_S)
    return number


@pytest.fixture
def client(broker_url: str, namespace: str) -> Iterator[BlockingClient]:
    GO.clear()
    with BlockingClient.connect(broker_url, namespace=namespace) as client:
        yield client


@pytest.fixture
def observer(client: BlockingClient) -> Iterator[Observer]:
    with closing(Observer(client.core)) as observer:
        yield observer


def add(client: BlockingClient, what: Any, count: int, **options: Any) -> list[Any]:
    calls = [(number,) for number in range(count)]
    return client.start_activities(what, calls, task_queue="q", **options)


def look_until(observer: Observer, is_true: Callable[[Figures], bool], what: str) -> Figures:
    """Look again and again; returns the figures that were waited for."""
    seen: list[Figures] = []

    def is_there() -> bool:
        found = [one for one in observer.look(LOOK_S) if one.side is Side.ACTIVITY]
        seen.extend(found)
        return bool(found) and is_true(found[0])

    wait_until(is_there, what, PATIENCE_S)
    return seen[-1]


def test_figures_tell_what_comes_what_goes_and_what_holds_it_back(
    client: BlockingClient, observer: Observer, broker_url: str, namespace: str
) -> None:
    # What waits, with nobody there.
    add(client, quick, 50, wait_result=False)
    told = look_until(observer, lambda one: one.backlog == 50, "the backlog is seen")
    assert (told.workers, told.dispatch_rate, told.limit.source) == (0, 0.0, "none")
    # A limit holds it back beside free slots.
    Operations(client.core).set_limits("q", lambda _: Limits(rate=2.0, burst=1), reason="slow")
    own = BlockingClient.connect(broker_url, namespace=namespace)
    with own, Worker(own, task_queue="q", activities=[quick], max_concurrent_activities=5):
        told = look_until(observer, lambda one: one.limit.is_limiting, "the limit is what limits")
        assert (told.limit.rate, told.limit.source) == (2.0, "setting")
        assert (told.workers, told.slots) == (1, 5)
        told = look_until(observer, lambda one: one.dispatch_rate > 0.5, "tasks are begun")
        # Those that wait were there before, or within this test.
        assert told.oldest_age_s is not None
        assert 0 < told.oldest_age_s < 4 * PATIENCE_S
        assert told.last_waited_s is not None
        # Without it all is begun, and what comes then is seen to come.
        Operations(client.core).set_limits("q", None)
        look_until(observer, lambda one: one.backlog == 0 and one.begun == 50, "all is begun")
        for handle in add(client, quick, 40):
            handle.result(PATIENCE_S)
        told = look_until(observer, lambda one: one.begun == 90, "all is counted")
        assert told.oldest_age_s == 0.0
        assert told.add_rate > 0
        assert not told.limit.is_limiting
        described = client.describe_task_queue("q")
        (figures,) = [one for one in described.figures if one.side is Side.ACTIVITY]
        assert figures.begun == 90
        assert figures.dispatch_rate > 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_programs_read_them_and_are_told_nothing_old_when_rabbitmq_is_gone(
    rabbitmq: LocalRabbitMQ, namespace: str
) -> None:
    port = free_port()
    with BlockingClient.connect(rabbitmq.url, namespace=namespace) as client:
        add(client, quick, 7, wait_result=False)
        command = [
            *(sys.executable, "-m", "tq_broker", "-b", rabbitmq.url, "--namespace", namespace),
            *("task-queue", "figures", "--listen", f"127.0.0.1:{port}"),
            *("--every", "2s", "--wait", "300ms"),
        ]
        exporter = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: status(port) == 200, "it answers", PATIENCE_S)
            told = json.loads(read(port, "/figures/q"))
            assert told["activity"]["backlog"] == 7
            line = f'backlog{{namespace="{namespace}",task_queue="q",side="activity"}} 7\n'
            assert line in read(port, "/metrics")
            rabbitmq.stop()
            wait_until(lambda: status(port) == 503, "nothing old is told", 2 * PATIENCE_S)
            rabbitmq.start()
            wait_until(lambda: status(port) == 200, "it answers again", 2 * PATIENCE_S)
            assert exporter.poll() is None
            assert json.loads(read(port, "/figures/q"))["activity"]["backlog"] == 7
            exporter.send_signal(signal.SIGTERM)
            assert exporter.wait(PATIENCE_S) == 0
        finally:
            exporter.kill()
            exporter.wait()


def read(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def status(port: int) -> int:
    try:
        read(port, "/figures/q")
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0
    return 200


def test_a_full_type_is_left_to_another_worker_and_uses_no_attempt(
    client: BlockingClient, broker_url: str, namespace: str
) -> None:
    guard, ran = threading.Lock(), Counter[str]()

    @activity.defn(name="heavy", start_to_close_timeout=timedelta(minutes=5))
    def heavy(number: int) -> int:
        with guard:
            ran[activity.info().worker_id] += 1
            ran["attempts"] += activity.info().attempt
        assert GO.wait(PATIENCE_S)
        return number

    def make(name: str, own: BlockingClient) -> Worker:
        by_type = {"heavy": 2}
        return Worker(
            own,
            task_queue="q",
            activities=[heavy, quick],
            worker_id=name,
            max_concurrent_activities_by_type=by_type,
            max_concurrent_activities=20,
        )

    with (
        BlockingClient.connect(broker_url, namespace=namespace) as one,
        BlockingClient.connect(broker_url, namespace=namespace) as two,
    ):
        handles = add(client, "heavy", 30, start_to_close_timeout=timedelta(minutes=5))
        with make("one", one):
            wait_until(lambda: ran["one"] == 2, "as many as may", PATIENCE_S)
            # What may begin is reached behind what may not.
            for handle in add(client, quick, 20):
                handle.result(PATIENCE_S)
            assert ran["one"] == 2
            with make("two", two):
                wait_until(lambda: ran["two"] == 2, "the other one takes them", PATIENCE_S)
                assert ran["one"] == 2
                GO.set()
                assert sorted(handle.result(PATIENCE_S) for handle in handles) == [*range(30)]
    assert ran["attempts"] == 30, "no attempt was used up"


def test_a_worker_by_resources_widens_as_it_is_used(
    client: BlockingClient, broker_url: str, namespace: str
) -> None:
    tuner = WorkerTuner.create_resource_based(
        target_memory_usage=1.0,
        target_cpu_usage=1.0,
        activity_config=ResourceBasedSlotConfig(
            minimum_slots=2, maximum_slots=16, ramp_throttle=timedelta(0)
        ),
    )
    handles = add(client, gated, 40)
    with BlockingClient.connect(broker_url, namespace=namespace) as own:
        worker = Worker(own, task_queue="q", activities=[gated], tuner=tuner)
        with worker:
            # A busy machine may leave it at its minimum, but not without work.
            wait_until(lambda: worker.running >= 2, "it works", PATIENCE_S)
            assert worker.running <= worker.info().slots <= 16
            GO.set()
            assert sorted(handle.result(PATIENCE_S) for handle in handles) == [*range(40)]
            wait_until(lambda: worker.running == 0, "it rests", PATIENCE_S)
            wait_until(lambda: worker.info().slots == 2, "it gives back", PATIENCE_S)
