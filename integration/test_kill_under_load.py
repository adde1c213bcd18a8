"""Journey: workers are killed, frozen and replaced under load, and nothing accepted is lost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from integration.journey import Site, is_lost, measured, site_at, wait_until
from integration.journey_activities import (
    die_after_effect,
    linger_once,
    work_in_process,
    work_in_thread,
    work_on_loop,
)
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ActivityError

SOON = RetryPolicy(initial_interval=timedelta(milliseconds=100), backoff_coefficient=1)
ONCE = RetryPolicy(maximum_attempts=1)


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(broker_url, namespace, tmp_path) as site:
        yield site


def keys(kind: str, count: int) -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


def test_workers_that_are_killed_again_and_again_lose_nothing(site: Site) -> None:
    slots = {"max_concurrent_activities": 10, "max_processes": 1}
    workers = [site.worker(**slots) for _ in range(3)]
    for worker in workers:
        worker.ready()
    once: list[str] = []
    handles = {}
    for round_ in range(5):
        # More than is done until the next kill, so that every kill hits workers that are full.
        for activity, kind, count in (
            (work_in_thread, "thread", 100),
            (work_on_loop, "loop", 100),
            (work_in_process, "process", 15),
        ):
            more = keys(f"{kind}-{round_}", count)
            handles |= site.load(activity, more, 0.1, retry_policy=SOON)
        more = keys(f"once-{round_}", 60)
        handles |= site.load(work_on_loop, more, 0.1, retry_policy=ONCE)
        once += more
        begun = site.ledger.count("start")
        wait_until(lambda begun=begun: site.ledger.count("start") >= begun + 50, "progress")
        victim = workers.pop(0)
        victim.kill()
        workers.append(site.again(victim).ready())
    errors = site.collect(handles)
    found = site.check(once=once)
    assert not found.faults
    failed = {key: error for key, error in errors.items() if error is not None}
    assert all(is_lost(error) for error in failed.values()), failed
    assert failed.keys() <= set(once), "what may be retried is retried until it succeeds"
    assert len(found.attempts) >= 5, "the kills have hit something"
    measured("attempts lost to five kills", len(found.attempts) + len(failed))


def test_an_attempt_whose_worker_is_killed_is_soon_retried_by_another(site: Site) -> None:
    workers = {worker.ready().worker_id: worker for worker in (site.worker(), site.worker())}
    waits = []
    for key in keys("k", 5):
        handles = site.load(linger_once, [key], 30.0, retry_policy=SOON)
        site.wait_begun(key)
        victim = workers.pop(site.ledger.events("start", key)[0].worker)
        killed_at = time.time()
        victim.kill()
        assert handles[key].result(10) == 2
        second = site.ledger.events("start", key)[1]
        assert second.worker in workers, "the other worker has it, long before any timeout"
        waits.append(second.at - killed_at)
        heir = site.again(victim).ready()
        workers[heir.worker_id] = heir
    measured("s from kill -9 to the next attempt's start, median", statistics.median(waits))


def test_what_must_not_run_twice_ends_as_lost_when_its_worker_is_killed(site: Site) -> None:
    victim = site.worker().ready()
    handles = site.load(linger_once, keys("k", 20), 30.0, retry_policy=ONCE)
    wait_until(lambda: site.ledger.count("start") == 20, "all are running")
    site.again(victim).ready()
    victim.kill()
    errors = site.collect(handles)
    assert all(is_lost(error) for error in errors.values()), errors
    assert not site.check(once=list(handles)).faults


def test_a_worker_killed_between_effect_and_ack_leaves_one_retry_with_the_next_number(
    site: Site,
) -> None:
    victims = [site.worker().ready() for _ in range(2)]
    handles = site.load(die_after_effect, ["k"], retry_policy=SOON)
    assert handles["k"].result(30) == "k"
    assert [event.attempt for event in site.ledger.events("start", "k")] == [1, 2]
    assert len(site.ledger.events("effect", "k")) == 2, "the key makes the effect idempotent"
    dead = next(w for w in victims if w.worker_id == site.ledger.events("start", "k")[0].worker)
    dead.wait()

    once = site.again(dead).ready()
    handles = site.load(die_after_effect, ["once"], retry_policy=ONCE)
    with pytest.raises(ActivityError) as caught:
        handles["once"].result(30)
    assert is_lost(caught.value)
    assert len(site.ledger.events("effect", "once")) == 1
    assert once.pid


def test_tasks_of_a_frozen_worker_go_to_others_and_its_late_outcomes_count_for_nothing(
    site: Site,
) -> None:
    frozen = site.worker(heartbeat_s=1.0, max_concurrent_activities=5).ready()
    handles = site.load(linger_once, keys("k", 5), 6.0, retry_policy=SOON)
    once = site.load(linger_once, keys("once", 3), 6.0, retry_policy=ONCE, task_queue="q")
    wait_until(lambda: site.ledger.count("start") == 5, "its slots are full")
    site.worker(heartbeat_s=1.0).ready()
    wait_until(lambda: site.ledger.count("start") == 8, "the other has the rest")
    frozen.freeze()
    frozen_at = time.time()
    results = {key: handle.result(30) for key, handle in handles.items()}
    assert results == dict.fromkeys(handles, 2)
    seconds = {event.at for event in site.ledger.events("start") if event.attempt == 2}
    wait_s = min(seconds) - frozen_at
    measured("s from SIGSTOP to the next attempt's start, heartbeat 1 s", wait_s)
    frozen.thaw()
    # It wakes with five attempts nearly done, whose outcomes are late, and serves on.
    more = {}

    def serves_again() -> bool:
        nonlocal more
        more |= site.load(work_on_loop, [site.key() for _ in range(110)], 0.2, retry_policy=SOON)
        begun = [event.key for event in site.ledger.events("start", worker=frozen.worker_id)]
        return not more.keys().isdisjoint(begun)

    wait_until(serves_again, "the frozen one serves again", 30)
    site.collect(handles | once | more)
    assert not site.check(once=list(once)).faults
