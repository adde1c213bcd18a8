"""Capabilities on every RabbitMQ version, and in one process: who may have a task, and what becomes
of it when the only one who may is killed under load."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from integration.journey import Site, measured, site_at, wait_until
from integration.journey_activities import tell, work_on_loop
from tq_broker import activity, workflow
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.common import OnGone, Requires, RetryPolicy, Route
from tq_broker.exceptions import (
    ActivityError,
    TargetGone,
    UnknownCapability,
)
from tq_broker.model.names import Names
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker

SOON = RetryPolicy(initial_interval=timedelta(seconds=0.1), backoff_coefficient=1)
S = timedelta(seconds=1)
PATIENCE_S = 30.0


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(broker_url, namespace, tmp_path) as site:
        yield site


def keys(count: int) -> list[str]:
    return [f"{number}-{secrets.token_hex(3)}" for number in range(count)]


def waiting(site: Site, *capabilities: str) -> int:
    core = site.client.core
    queue = Names(site.namespace).capable("q", capabilities)
    stats = core.broker.stats(str(queue), core.deadline())
    return 0 if stats is None else stats.ready


def who(site: Site, names: list[str]) -> set[str]:
    wanted = set(names)
    return {event.worker for event in site.ledger.events("start") if event.key in wanted}


def missed(site: Site) -> set[str]:
    workers = site.client.operations.workers(0.3)
    return {what for one in workers for what in one.unserved.get("q", ())}


# --- the loss of the only capable worker, under load ----------------------------------------------


def test_tasks_wait_for_a_capable_worker_whose_only_one_was_killed_under_load(site: Site) -> None:
    # Given a plain worker, and one with a GPU
    site.worker(worker_id="plain").ready()
    able = site.worker(
        worker_id="able", capabilities=["gpu", "ssd"], max_concurrent_activities=10
    ).ready()
    names = keys(100)
    handles = site.load(work_on_loop, names, 0.1, requires={"gpu"}, retry_policy=SOON)
    wait_until(lambda: site.ledger.count("effect") > 20, "work goes on")
    # When it is killed
    able.kill()
    plain = keys(20)
    assert not any(site.collect(site.load(work_on_loop, plain, 0.01)).values())
    # Then the others go on with what is theirs, and the rest waits and is reported
    assert who(site, plain) == {"plain"}
    assert who(site, names) == {"able"}
    wait_until(lambda: missed(site) == {"gpu"}, "the workers say so", PATIENCE_S)
    told = site.invoke("task-queue", "describe", "q").stdout
    assert "gpu" in told
    assert "NOBODY" in told
    # Until one comes
    site.worker(worker_id="next", capabilities=["gpu"]).ready()
    assert not any(site.collect(handles).values())
    assert who(site, names) == {"able", "next"}
    site.check()


def test_who_does_not_wait_fails_or_falls_back_when_the_only_capable_worker_is_killed(
    site: Site,
) -> None:
    site.worker(worker_id="plain").ready()
    able = site.worker(worker_id="able", capabilities=["gpu"], max_concurrent_activities=5).ready()
    failing, falling = keys(60), keys(60)
    fail = Requires({"gpu"}, on_gone=OnGone.FAIL)
    fall = Requires({"gpu"}, on_gone=OnGone.FALL_BACK)
    handles = site.load(work_on_loop, failing, 0.2, requires=fail, retry_policy=SOON)
    handles |= site.load(work_on_loop, falling, 0.2, requires=fall, retry_policy=SOON)
    wait_until(lambda: site.ledger.count("effect") > 10, "work goes on")
    able.kill()
    killed = time.monotonic()
    errors = site.collect(handles)
    measured("s from the kill to the last outcome", time.monotonic() - killed)
    # Each has its stated answer, and nothing is stranded
    assert not any(errors[key] for key in falling)
    assert "plain" in who(site, falling)
    gone = [error for key in failing if (error := errors[key]) is not None]
    assert gone
    assert all(isinstance(one, ActivityError) for one in gone)
    assert "with gpu" in str(gone[-1])
    assert who(site, failing) == {"able"}


def test_a_set_is_served_within_a_second_by_those_who_have_it_all(site: Site) -> None:
    site.worker(worker_id="gpu", capabilities=["gpu"], host="h1").ready()
    site.worker(worker_id="both", capabilities=["gpu", "ssd"], host="h1").ready()
    # A set that nobody has required before
    begun = time.monotonic()
    told = site.client.execute_activity(tell, task_queue="q", requires={"ssd", "gpu"})
    measured("s for the first task of a new set", time.monotonic() - begun)
    assert told["worker"] == "both"
    # A host, of whose workers only one has it
    for _ in range(5):
        told = site.client.execute_activity(
            tell, task_queue="q", requires={"ssd"}, route=Route.host("h1")
        )
        assert told["worker"] == "both"
    with pytest.raises((TargetGone, ActivityError), match="on process 'gpu' with ssd"):
        site.client.execute_activity(
            tell, task_queue="q", requires={"ssd"}, route=Route.process("gpu")
        )


def test_what_no_worker_has_ever_had_is_refused(site: Site) -> None:
    site.worker(worker_id="able", capabilities=["gpu"]).ready()
    with pytest.raises(UnknownCapability, match="has ever had gup; known there: gpu"):
        site.client.start_activity(tell, task_queue="q", requires={"gup"})
    with pytest.raises((TargetGone, ActivityError), match="did not within 0:00:01"):
        site.client.execute_activity(tell, task_queue="q", requires=Requires({"gup"}, wait=S))


def test_an_operator_sees_pauses_moves_purges_and_reclaims_them(site: Site) -> None:
    able = site.worker("q", "r", worker_id="able", capabilities=["gpu"]).ready()
    site.client.pause_task_queue("q", "look")
    names = keys(10)
    handles = site.load(work_on_loop, names, 0.01, requires={"gpu"})
    wait_until(lambda: waiting(site, "gpu") == 10, "they wait")
    listed = json.loads(site.invoke("--json", "task-queue", "list").stdout)
    (row,) = [one for one in listed if one["requires"]]
    assert (row["task_queue"], row["requires"], row["backlog"]) == ("q", ["gpu"], 10)
    told = site.invoke("--json", "task-queue", "move", "q", "r", "--create", "--yes").stdout
    assert json.loads(told)["done"] == 10
    assert not any(site.collect(handles).values())
    site.client.start_activity(tell, task_queue="q", requires={"gpu"})
    wait_until(lambda: waiting(site, "gpu") == 1, "it waits")
    assert (
        json.loads(site.invoke("--json", "task-queue", "purge", "q", "--yes").stdout)["dropped"]
        == 1
    )
    able.terminate()
    able.wait()
    site.invoke("task-queue", "resume", "q")
    site.invoke("task-queue", "reclaim")
    assert json.loads(site.invoke("--json", "task-queue", "list").stdout) == []


# --- workflows ------------------------------------------------------------------------------------


@activity.defn(requires={"gpu"}, start_to_close_timeout=60 * S)
def render() -> str:
    return activity.info().worker_id


@activity.defn(start_to_close_timeout=60 * S)
def plain() -> str:
    return activity.info().worker_id


@workflow.defn(task_queue="q")
class Film:
    @workflow.run
    async def run(self) -> list[str]:
        first = await workflow.execute_activity(plain)
        try:
            gone = await workflow.execute_activity(
                plain, requires=Requires({"gpu", "tape"}, on_gone=OnGone.FAIL)
            )
        except ActivityError as error:
            gone = str(getattr(error.cause, "type", error.cause))
        return [first, gone, await workflow.execute_activity(render)]


class Studio:
    """A history service, and workers in this process, each with a connection of its own."""

    def __init__(self, url: str | None) -> None:
        self.namespace = f"t{secrets.token_hex(4)}"
        self.system = EmbeddedSystem(SystemClock(), url, None, namespace=self.namespace)
        self.system.start()
        self.client = BlockingClient(self.system.core)
        self._closers: list[Any] = []

    def worker(self, name: str, *capabilities: str) -> Worker:
        client = BlockingClient.connect(self.system._url, namespace=self.namespace)
        worker = Worker(
            client,
            task_queue="q",
            workflows=[] if capabilities else [Film],
            activities=[render, plain],
            capabilities=capabilities,
            worker_id=name,
            reclaim_after=None,
            graceful_shutdown_timeout=5 * S,
        )
        worker.start()
        self._closers += [client.close, worker.stop]
        return worker

    def close(self) -> None:
        for close in reversed(self._closers):
            close()
        self.system.close()


class Workflows:
    """The suite. A subclass has a fixture ``studio``."""

    def test_a_workflow_waits_for_a_capable_worker_and_tells_so(self, studio: Studio) -> None:
        studio.worker("home")
        studio.worker("gone", "gpu").stop()
        film = f"film-{secrets.token_hex(3)}"
        handle = studio.client.start_workflow(Film.run, id=film)
        wait_until(lambda: pending(handle) == ["render"], "it renders", PATIENCE_S)
        told = handle.describe().raw
        (way,) = studio.client.operations.traffic.explain_pending(
            told.pending_activities, told.info
        )
        assert "it requires gpu: only workers that have all of it get it" in way
        studio.worker("able", "gpu")
        assert handle.result() == ["home", "UnknownCapability", "able"]

    def test_a_new_set_reaches_a_worker_that_lives_already(self, studio: Studio) -> None:
        studio.worker("home")
        studio.worker("able", "gpu", "tape")
        film = f"film-{secrets.token_hex(3)}"
        told = studio.client.execute_workflow(Film.run, id=film)
        assert told[0] in ("home", "able")
        assert told[1:] == ["able", "able"]


def pending(handle: Any) -> list[str]:
    return [one.activity_type for one in handle.describe().pending_activities]


class TestEmbedded(Workflows):
    @pytest.fixture
    def studio(self) -> Iterator[Studio]:
        studio = Studio(None)
        yield studio
        studio.close()


class TestOnRabbitMQ(Workflows):
    @pytest.fixture
    def studio(self, broker_url: str) -> Iterator[Studio]:
        studio = Studio(broker_url)
        yield studio
        studio.close()
