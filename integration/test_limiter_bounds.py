"""The bounds of limits on real servers, where they are hardest to hold: deaths, what does not run,
what ran before, workflow tasks, and a settings log that cannot be read."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pika
import pytest

from integration.journey import measured, pika_parameters, wait_until
from integration.journey_workflows import ACTIVITIES, WORKFLOWS, Double
from integration.killed_at import INSTANTS
from integration.limited_workers import QUEUE, Workers, add, kill, most_in_a_window
from tq_broker.client import BlockingClient
from tq_broker.client.operations import Operations
from tq_broker.clock import SystemClock
from tq_broker.exceptions import Conflict
from tq_broker.model.limits import SETTLE_S, Limits, Side
from tq_broker.model.names import Kind, Names
from tq_broker.model.parts import EACH_KEY, Part, PartKind
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker

STAY = Part(PartKind.TYPE, "stay")
PATIENCE_S = 30.0
BUSY_S = 3.0
"""What a busy machine may take on top of what is promised."""


def test_a_dead_bank_is_replaced_within_a_second(client: BlockingClient, workers: Workers) -> None:
    operations = Operations(client.core)
    add(client, "hit", 1)
    operations.set_limits(QUEUE, lambda _: Limits(rate=20.0, burst=5))
    add(client, "hit", 400)
    for _ in range(2):
        workers.start()
    wait_until(lambda: len(workers.begins()) >= 20, "it goes on", PATIENCE_S)
    keepers = {one.pid for one in operations.workers() if "rate" in one.banks.get(QUEUE, ())}
    victim = next(one for one in workers.processes if one.pid in keepers)
    survivor = next(one for one in workers.processes if one is not victim)
    kill(victim)
    killed_at = time.time()
    later = lambda: [at for at in workers.begins() if at > killed_at]  # noqa: E731
    # More than all the permits that were out when it died.
    wait_until(lambda: len(later()) >= 5 + 5, "the next one hands out", PATIENCE_S)
    (keeper,) = (one for one in operations.workers() if one.pid == survivor.pid)
    assert "rate" in keeper.banks[QUEUE]
    gap = max(b - a for a, b in zip([killed_at, *later()], later(), strict=False))
    measured("s without a begin when the bank was killed", gap)
    assert gap < 1.0 + BUSY_S
    assert most_in_a_window(workers.begins(), 20.0, 5) <= 0


def test_no_permit_is_burnt_on_what_does_not_run(client: BlockingClient, workers: Workers) -> None:
    operations = Operations(client.core)
    add(client, "hit", 1)
    operations.set_limits(QUEUE, lambda _: Limits(rate=0.2, burst=1))
    handles = [
        client.start_activity("hit", task_queue=QUEUE, start_to_close_timeout=timedelta(minutes=1))
        for _ in range(6)
    ]
    for handle in handles:
        handle.cancel()
    client.start_activities(
        "hit",
        [()] * 6,
        task_queue=QUEUE,
        start_to_close_timeout=timedelta(minutes=1),
        schedule_to_start_timeout=timedelta(milliseconds=1),
        wait_result=False,
    )
    add(client, "nobody knows it", 6)
    add(client, "hit", 1)
    workers.start()
    started_at = time.time()
    wait_until(lambda: len(workers.begins()) == 2, "both have run", PATIENCE_S)
    # Two permits, the first one after five seconds; one that was burnt costs five more.
    assert workers.begins()[-1] - started_at < 10.0 + BUSY_S
    assert workers.begins()[1] - workers.begins()[0] >= 5.0


@pytest.mark.parametrize("part", [None, STAY], ids=["task queue", "type"])
def test_what_ran_before_the_limit_was_set_counts(
    client: BlockingClient, workers: Workers, part: Part | None
) -> None:
    operations = Operations(client.core)
    first = workers.start(slots=2)
    add(client, "stay", 2, 300.0)
    wait_until(lambda: workers.running(first) == 2, "two run", PATIENCE_S)
    second = workers.start()
    options = {} if part is None else {"part": part}
    operations.set_limits(QUEUE, lambda _: Limits(concurrency=2), **options)
    time.sleep(1.0)  # everybody knows it then
    add(client, "stay", 3, 300.0)
    time.sleep(SETTLE_S + 1.0)
    assert (workers.running(first), workers.running(second)) == (2, 0)
    kill(first)
    killed_at = time.time()
    wait_until(lambda: workers.running(second) == 2, "their places are free", PATIENCE_S)
    measured("s until the places of a killed worker are taken", time.time() - killed_at)
    time.sleep(1.0)
    assert workers.running(second) == 2


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_crash_in_any_instant_leaves_no_place_of_a_type_or_key_taken(
    client: BlockingClient, workers: Workers, instant: str
) -> None:
    operations = Operations(client.core)
    add(client, "hit", 1)
    is_cover = instant == "covered"
    limit = lambda: [  # noqa: E731
        operations.set_limits(QUEUE, lambda _: Limits(concurrency=1), part=part)
        for part in (STAY, EACH_KEY)
    ]
    if not is_cover:
        limit()
    victim = workers.start(killed_at=instant)
    add(client, "stay", 1, 300.0 if is_cover else 0.0, key="a")
    if is_cover:
        wait_until(lambda: workers.running(victim) == 1, "it runs", PATIENCE_S)
        limit()
    victim.wait(PATIENCE_S)
    killed_at = time.time()
    other = workers.start()
    add(client, "stay", 1, 300.0, key="a")
    wait_until(lambda: workers.running(other) == 1, "the place is free", PATIENCE_S)
    measured(f"s from start to begin, {instant}", time.time() - killed_at)
    time.sleep(1.0)
    assert workers.running(other) == 1, "and only once"


def test_workflow_tasks_have_limits_as_well(broker_url: str, namespace: str) -> None:
    system = EmbeddedSystem(SystemClock(), broker_url, None, namespace=namespace)
    system.start()
    try:
        own = BlockingClient(system.core)
        with Worker(
            own, task_queue="q", workflows=WORKFLOWS, activities=ACTIVITIES, reclaim_after=None
        ):
            run = lambda number: own.execute_workflow(  # noqa: E731
                Double, number, id=f"w{number}", task_queue="q"
            )
            assert run(1) == 2
            operations = Operations(system.core)
            operations.set_limits("q", lambda _: Limits(rate=2.0, burst=1), side=Side.WORKFLOW)
            time.sleep(1.0)
            since = time.monotonic()
            with ThreadPoolExecutor(3) as pool:
                ends = [pool.submit(run, number) for number in (2, 3, 4)]
                assert [end.result(PATIENCE_S) for end in ends] == [4, 6, 8]
            # Two workflow tasks each; one permit may have been there, one comes each half a second.
            assert time.monotonic() - since >= (6 - 2) / 2.0
            operations.set_limits("q", None, side=Side.WORKFLOW)
            assert run(5) == 10
    finally:
        system.close()


def test_the_last_good_settings_hold_and_the_loser_of_two_is_told(
    broker_url: str, namespace: str, client: BlockingClient, workers: Workers
) -> None:
    operations = Operations(client.core)
    add(client, "hit", 1)
    operations.set_limits(QUEUE, lambda _: Limits(rate=0.1, burst=1), reason="slow")
    workers.start()
    queue = Names(namespace).queue(Kind.SETTINGS)
    with pika.BlockingConnection(pika_parameters(broker_url)) as connection:
        connection.channel().basic_publish("", str(queue), b"no record")
    wait_until(
        lambda: all(one.settings_fault for one in operations.workers()), "it is said", PATIENCE_S
    )
    assert "1 record skipped" in operations.settings().fault
    assert operations.limits(QUEUE).limits == Limits(rate=0.1, burst=1)
    since = time.time()
    add(client, "hit", 20)
    time.sleep(3.0)
    assert sum(at >= since for at in workers.begins()) <= 2, "the limit holds"

    def meanwhile(now: Limits) -> Limits:
        Operations(client.core).set_limits(QUEUE, lambda _: Limits(rate=500.0), reason="emergency")
        return Limits(rate=1.0)

    with pytest.raises(Conflict, match="emergency"):
        operations.set_limits(QUEUE, meanwhile)
    wait_until(lambda: len(workers.begins()) == 21, "the first one is in force", PATIENCE_S)
