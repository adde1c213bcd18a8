"""Limits of a task queue some of whose tasks only one worker may run: a permit that another worker
holds, and has no task for, must not keep them waiting. Embedded and on every RabbitMQ version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import pytest

from integration.journey import wait_until
from tq_broker import activity, workflow
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.common import Route
from tq_broker.model.events import WorkflowTaskTimedOut
from tq_broker.model.limits import Limits, Side
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker

PATIENCE_S = 60.0
HOSTS = ("a", "b", "c")


@activity.defn(start_to_close_timeout=timedelta(seconds=10))
def where() -> str:
    return activity.info().host


@workflow.defn
class Steps:
    """Takes several workflow tasks, which go to the worker that has the run in its cache."""

    @workflow.run
    async def run(self, count: int) -> int:
        for _ in range(count):
            await workflow.sleep(0.05)
        return count


@contextmanager
def deployed(url: str | None, namespace: str) -> Iterator[BlockingClient]:
    """History, and a worker on each of `HOSTS`, each with a connection of its own."""
    with ExitStack() as stack:
        system = stack.enter_context(EmbeddedSystem(SystemClock(), url, None, namespace=namespace))
        for host in HOSTS:
            client = stack.enter_context(BlockingClient.connect(system._url, namespace=namespace))
            worker = Worker(
                client,
                task_queue="q",
                activities=[where],
                workflows=[Steps],
                host=host,
                worker_id=f"on-{host}",
            )
            worker.start()
            stack.callback(worker.stop)
        yield BlockingClient(system.core)


Check = Callable[[BlockingClient], None]


def activities_of_hosts(limits: Limits) -> Check:
    """Each host gets its activities, several times round."""

    def check(client: BlockingClient) -> None:
        assert client.execute_activity(where, task_queue="q") in HOSTS
        client.operations.set_limits("q", lambda _: limits)
        for _ in range(2):
            for host in HOSTS:
                handle = client.start_activity(where, task_queue="q", route=Route.host(host))
                assert handle.result(timeout=PATIENCE_S) == host
        assert client.execute_activity(where, task_queue="q") in HOSTS

    return check


def runs_in_caches(client: BlockingClient) -> None:
    """Runs in the caches of several workers go on, and stay there."""
    assert client.execute_workflow(Steps.run, 1, id="first", task_queue="q") == 1
    client.operations.set_limits("q", lambda _: Limits(concurrency=1), side=Side.WORKFLOW)
    handles = [
        client.start_workflow(Steps.run, 4, id=f"run-{number}", task_queue="q")
        for number in range(6)
    ]
    assert [handle.result(timeout=PATIENCE_S) for handle in handles] == [4] * 6
    timed_out = [
        event
        for handle in handles
        for event in handle.fetch_history().events
        if isinstance(event, WorkflowTaskTimedOut)
    ]
    assert timed_out == []


CHECKS = pytest.mark.parametrize(
    "check",
    [
        pytest.param(activities_of_hosts(Limits(concurrency=1)), id="concurrency"),
        pytest.param(activities_of_hosts(Limits(rate=2.0, burst=1)), id="rate"),
        pytest.param(runs_in_caches, id="workflows"),
    ],
)


@CHECKS
def test_a_permit_that_nobody_uses_is_for_who_can_use_it(
    broker_url: str, namespace: str, check: Check
) -> None:
    with deployed(broker_url, namespace) as client:
        check(client)


@CHECKS
def test_the_same_in_one_process(namespace: str, check: Check) -> None:
    with deployed(None, namespace) as client:
        check(client)
        wait_until(lambda: len(client.operations.workers(0.3)) == 3, "all are there", PATIENCE_S)
