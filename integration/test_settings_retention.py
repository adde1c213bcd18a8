"""Settings outlive the records that RabbitMQ drops from their log, on every RabbitMQ version."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import kombu
import pytest

from integration.journey import Site, site_at, wait_until
from tq_broker.client import BlockingClient
from tq_broker.client.operations import Operations
from tq_broker.client.settings_book import append
from tq_broker.exceptions import Conflict
from tq_broker.model.limits import Limits, Side
from tq_broker.model.names import Kind, Names
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import ActivityCanceled, LimitsSet
from tq_broker.queues.settings_keeper import EMPTY_S, JITTER_S
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.topology import DeclareQueue, DeleteQueue, Plan
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

LOG_BYTES = 16_000_000
"""A third of what it usually is."""
PADDING = "x" * 20_000
BATCH = 25
SNAPSHOT_SOON_S = 30.0


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(broker_url, namespace, tmp_path) as site:
        declare_small(site)
        yield site


def log_queue(site: Site) -> str:
    return str(Names(site.namespace).queue(Kind.SETTINGS))


def declare_small(site: Site) -> None:
    arguments = {
        "x-queue-type": "stream",
        "x-max-length-bytes": LOG_BYTES,
        "x-stream-max-segment-size-bytes": 1_000_000,
    }
    core = site.client.core
    core.broker.apply(Plan((DeclareQueue(log_queue(site), arguments),)), core.deadline())


def fill(site: Site, count_bytes: int) -> None:
    """Append so much that nobody needs."""
    sender, core = site.client.core.sender, site.client.core
    for _ in range(count_bytes // (BATCH * len(PADDING))):
        told: list[Future[object]] = [Future() for _ in range(BATCH)]
        for one in told:
            record = ActivityCanceled("nobody", 1, "me", PADDING)
            sender.append(record, core.deadline(), one.set_result)
        assert [one.result(30) for one in told] == [None] * BATCH


def first_offset(site: Site) -> int:
    """Where the log begins, as a plain client reads it."""
    found: list[int] = []
    with kombu.Connection(site.url) as connection:
        channel = connection.default_channel
        channel.basic_qos(0, 1, False)
        channel.basic_consume(
            log_queue(site),
            arguments={"x-stream-offset": "first"},
            callback=lambda message: found.append(message.headers["x-stream-offset"]),
        )
        while not found:
            connection.drain_events(timeout=30)
    return found[0]


def read_anew(site: Site) -> SettingsLog:
    """The settings as a client knows them that begins now."""
    with BlockingClient.connect(site.url, namespace=site.namespace) as client:
        return Operations(client.core).settings()


def wait_known(site: Site) -> SettingsLog:
    """The same, once a snapshot is in the log."""
    found: list[SettingsLog] = []

    def is_known() -> bool:
        found.append(read_anew(site))
        return not found[-1].fault and found[-1].limits(Side.ACTIVITY, "q").revision == 1

    wait_until(is_known, "a new client knows all settings", SNAPSHOT_SOON_S)
    return found[-1]


def set_all(site: Site) -> None:
    """A limit, a pause and a rule."""
    Operations(site.client.core).set_limits("q", lambda _: Limits(rate=7.0), reason="slow")
    site.client.pause_task_queue("p", "being moved")
    rule = TrafficRule(id="r", to_task_queue="p", type="mail-*")
    Operations(site.client.core).traffic.set(rule)


def check_all(known: SettingsLog) -> None:
    limits = known.limits(Side.ACTIVITY, "q")
    assert limits.limits == Limits(rate=7.0)
    assert limits.source is not None
    assert limits.source.reason == "slow"
    pause = known.pauses()["activity", "p"]
    assert (pause.task_queue, pause.reason) == ("p", "being moved")
    assert [rule.id for rule in known.rules.rules] == ["r"]
    assert {"q", "p"} <= known.task_queues().keys()


def test_what_was_set_before_the_log_was_cut_is_known_to_who_comes_after(site: Site) -> None:
    # Given a limit, a pause and a rule, and a worker
    worker = site.worker("q", "p").ready()
    set_all(site)
    # When the beginning of the log is dropped
    fill(site, 3 * LOG_BYTES)
    assert first_offset(site) > 100
    # Then a new client knows all of it
    check_all(wait_known(site))
    # And of two who change the limits the one that is second is told
    core = site.client.core
    late = LimitsSet(
        task_queue="q",
        side=Side.ACTIVITY,
        limits=Limits(rate=9.0),
        at_ms=1,
        change_id="late",
        revision=1,
    )

    def change(_: Limits) -> Limits:
        append(core, late)
        return Limits(rate=8.0)

    with BlockingClient.connect(site.url, namespace=site.namespace) as client:
        with pytest.raises(Conflict):
            Operations(client.core).set_limits("q", change)
        Operations(client.core).set_limits("q", lambda was: Limits(rate=was.rate, burst=3))
    assert read_anew(site).limits(Side.ACTIVITY, "q").limits == Limits(rate=9.0, burst=3)
    # And so does a worker that begins now, and every command
    site.worker("q", "p").ready()
    for one in (*site.client.core.ping(1.0).result(30),):
        assert not one.settings_fault
        assert one.paused == ["p"]
    told = json.loads(site.invoke("--json", "task-queue", "config", "get", "q").stdout)
    assert told["settings_fault"] == ""
    assert "skipped" not in worker.said()


def test_snapshots_are_handed_on_from_worker_to_worker(site: Site) -> None:
    # Given two workers, of which one is killed
    first, second = site.worker("q", "p").ready(), site.worker("q", "p").ready()
    set_all(site)
    first.kill()
    fill(site, 2 * LOG_BYTES)
    check_all(wait_known(site))
    # When the last one that has read the beginning is killed, and all is dropped that it read
    site.worker("q", "p").ready()
    second.kill()
    fill(site, 2 * LOG_BYTES)
    # Then who has read only what it wrote goes on
    check_all(wait_known(site))
    third = site.workers[-1]
    assert "a snapshot was written" in third.said()


def test_a_log_that_nobody_could_keep_is_said_to_be_cut(site: Site) -> None:
    worker = site.worker("q", "p").ready()
    set_all(site)
    worker.kill()
    fill(site, 2 * LOG_BYTES)
    site.worker("q", "p").ready()
    # Nobody knows the limit, and everybody says so
    cut = "its beginning was dropped and no snapshot was found"
    known = read_anew(site)
    assert cut in known.fault
    assert not known.limits(Side.ACTIVITY, "q").revision
    assert cut in site.invoke("task-queue", "figures").stderr
    listed = json.loads(site.invoke("--json", "task-queue", "figures", "q").stdout)
    assert [cut in one["activity"]["settings_fault"] for one in listed] == [True]
    told = json.loads(site.invoke("--json", "task-queue", "describe", "q").stdout)
    assert [cut in one["fault"] for one in told["settings_faults"]] == [True, True]
    assert cut in site.invoke("doctor").stdout


@pytest.mark.parametrize("is_idle", [True, False])
def test_settings_outlive_their_log(site: Site, *, is_idle: bool) -> None:
    # Given a limit, a pause and a rule, and a worker
    worker = site.worker("q", "p").ready()
    set_all(site)
    core = site.client.core
    # When the log is deleted
    core.broker.apply(Plan((DeleteQueue(log_queue(site)),)), core.deadline())
    if not is_idle:
        append(core, ActivityCanceled("nobody", 1))
    # Then they are in force still, and known to who comes after
    check_all(wait_known(site))
    (info,) = core.ping(1.0).result(30)
    assert (info.paused, info.settings_fault) == (["p"], "")
    assert "it was deleted" in worker.said()


def test_a_restart_of_rabbitmq_is_not_taken_for_a_deleted_log(
    rabbitmq_each: LocalRabbitMQ, namespace: str, tmp_path: Path
) -> None:
    with site_at(rabbitmq_each.url, namespace, tmp_path) as site:
        worker = site.worker("q", "p").ready()
        set_all(site)
        rabbitmq_each.stop()
        rabbitmq_each.start()
        wait_until(lambda: site.client.core.ping(1.0).result(60), "the worker is back")
        # So long that it would have noticed that the log is empty
        time.sleep(EMPTY_S + JITTER_S + 1)
        append(site.client.core, ActivityCanceled("nobody", 1))
        check_all(wait_known(site))
        assert "it was deleted" not in worker.said()
        assert "snapshot" not in worker.said()
