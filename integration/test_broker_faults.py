"""Journey: RabbitMQ is restarted, crashed, blocked and tampered with under clients and workers."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pika
import pytest

from integration.affinity_workflows import InSession
from integration.journey import (
    Site,
    is_lost,
    measured,
    pika_parameters,
    site_at,
    wait_until,
)
from integration.journey_activities import linger_once, tell, work_in_thread, work_on_loop
from integration.test_affinity_journey import Crew
from tq_broker.client import BlockingActivityHandle, BlockingClient
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import (
    AccessRefused,
    ActivityError,
    BrokerBlocked,
    BrokerUnavailable,
    CancelledError,
    TqBrokerError,
)
from tq_broker.model.names import Exchange, Names
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Worker

SOON = RetryPolicy(initial_interval=timedelta(milliseconds=100), backoff_coefficient=1)
ONCE = RetryPolicy(maximum_attempts=1)


@pytest.fixture
def node(rabbitmq_of_file: LocalRabbitMQ) -> LocalRabbitMQ:
    return rabbitmq_of_file


@pytest.fixture
def site(node: LocalRabbitMQ, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(node.url, namespace, tmp_path) as site:
        yield site


class Load:
    """Starts activities all the time, in a thread: some that may be retried, and some that must
    not run twice, whose ids are claimed."""

    def __init__(self, site: Site) -> None:
        self.handles: dict[str, BlockingActivityHandle[Any]] = {}
        self.once: list[str] = []
        self.errors: list[TqBrokerError] = []
        self._site = site
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self._start()
            except TqBrokerError as error:
                self.errors.append(error)

    def _start(self) -> None:
        site = self._site
        for activity in (work_on_loop, work_in_thread):
            some = [site.key() for _ in range(5)]
            self.handles |= site.load(activity, some, 0.05, retry_policy=SOON)
        key = f"once-{site.key()}"
        self.once.append(key)
        site.ledger.write("intent", key)
        self.handles[key] = site.client.start_activity(
            work_on_loop, args=(key, 0.05), id=key, task_queue="q", retry_policy=ONCE
        )
        site.ledger.write("accepted", key)

    def run_on(self, count: int = 150) -> float:
        """Wait until ``count`` more have had their effect; returns how long that took."""
        goal = self._site.ledger.count("effect") + count
        return wait_until(lambda: self._site.ledger.count("effect") >= goal, f"{count} effects")

    def __enter__(self) -> Load:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            self._check()

    def _check(self) -> None:
        """Every start was accepted, every outcome comes, and all is well."""
        assert not self.errors, "the client waits for the broker as long as its timeout allows"
        errors = self._site.collect(self.handles)
        failed = {key: error for key, error in errors.items() if error is not None}
        assert all(is_lost(error) for error in failed.values()), failed
        assert failed.keys() <= set(self.once), failed
        faults = self._site.check(once=self.once).faults
        # What was on its way to the broker was sent again, and both copies may have arrived.
        doubled = faults.pop("doubled", [])
        assert not faults
        measured(f"starts of the same attempt twice, of {len(self.handles)}", len(doubled))


def test_a_broker_that_is_stopped_and_started_under_load_loses_nothing(
    site: Site, node: LocalRabbitMQ
) -> None:
    for _ in range(2):
        site.worker(max_concurrent_activities=20).ready()
    with Load(site) as load:
        load.run_on()
        node.ctl("stop_app")
        time.sleep(1)
        node.ctl("start_app")
        measured("s from the broker's start to 150 effects", load.run_on())


def test_a_broker_that_is_killed_and_started_under_load_loses_nothing(
    site: Site, node: LocalRabbitMQ
) -> None:
    for _ in range(2):
        site.worker(max_concurrent_activities=20).ready()
    with Load(site) as load:
        # A quorum queue that is killed within five seconds of its birth elects no leader any more
        # (on 3.10 and 4.0 at least): its term was not on disk yet.
        time.sleep(6)
        load.run_on()
        node.kill()
        time.sleep(1)
        node.start()
        measured("s from the broker's start to 150 effects", load.run_on())


def test_connections_that_are_closed_again_and_again_lose_nothing(
    site: Site, node: LocalRabbitMQ
) -> None:
    for _ in range(2):
        site.worker(max_concurrent_activities=20).ready()
    with Load(site) as load:
        load.run_on()
        waits = []
        for _ in range(4):
            node.ctl("close_all_connections", "a test")
            waits.append(load.run_on())
        measured("s from closed connections to 150 effects, median", statistics.median(waits))


def test_a_task_queue_that_is_deleted_under_its_worker_is_there_again_at_once(
    site: Site, node: LocalRabbitMQ
) -> None:
    worker = site.worker("q", "calm", max_concurrent_activities=1).ready()
    connection = pika.BlockingConnection(pika_parameters(node.url))
    running = site.load(linger_once, ["running"], 3.0, task_queue="q")["running"]
    site.wait_begun("running")
    gone = site.load(work_on_loop, ["gone"], 0.0, task_queue="q")["gone"]
    wait_until(lambda: _ready(site, "q") == 1, "it waits")
    # By AMQP: rabbitmqctl takes longer to start than the running one runs, on a busy machine.
    connection.channel().queue_delete(str(Names(site.namespace).activity("q")))
    connection.close()
    new = site.client.start_activity(tell, task_queue="q")
    assert running.result(10) == 1, "what was running is told"
    # Perhaps not its first attempt: the worker is full, and cancels the consumer that takes it.
    assert new.result(30)["worker"] == worker.worker_id, "a new one finds its queue"
    assert site.client.execute_activity(tell, task_queue="calm")["attempt"] == 1
    assert not site.begun("gone"), "what was in the queue went with it, by the operator's hand"
    assert gone.id


def _ready(site: Site, task_queue: str) -> int:
    core = site.client.core
    stats = core.broker.stats(str(core.names.activity(task_queue)), core.deadline())
    return stats.ready if stats else 0


def test_exchanges_that_are_deleted_are_declared_again_by_who_needs_them(
    site: Site, node: LocalRabbitMQ
) -> None:
    site.worker().ready()
    site.client.execute_activity(tell, task_queue="q")
    names = Names(site.namespace)
    connection = pika.BlockingConnection(pika_parameters(node.url))
    channel = connection.channel()
    for exchange in (Exchange.TASKS, Exchange.REPLIES):
        channel.exchange_delete(names.exchange(exchange))
        if exchange is Exchange.REPLIES:
            # The binding of the client's own reply queue is gone with it: its business.
            site.client.close()
            site.client = BlockingClient.connect(site.url, namespace=site.namespace)
        assert site.client.start_activity(tell, task_queue="q").result(10)["attempt"] == 1
    connection.close()


def test_a_vhost_that_is_deleted_and_made_again_has_its_worker_back(
    node: LocalRabbitMQ, namespace: str, tmp_path: Path
) -> None:
    def make() -> None:
        node.ctl("add_vhost", namespace)
        node.ctl("set_permissions", "-p", namespace, "guest", ".*", ".*", ".*")

    make()
    url = node.url.removesuffix("//") + f"/{namespace}"
    with site_at(url, namespace, tmp_path) as site:
        site.worker().ready()
        site.client.execute_activity(tell, task_queue="q")
        node.ctl("delete_vhost", namespace)
        with BlockingClient.connect(url, namespace=namespace, lazy=True) as other:
            begun = time.monotonic()
            with pytest.raises(AccessRefused, match="check that the vhost exists"):
                other.start_activity(tell, task_queue="q")
            assert time.monotonic() - begun < 5, "a refusal is told at once"
        make()
        # A client of its own: an outcome that comes before the old one has its reply queue again
        # is lost with the queue.
        with BlockingClient.connect(url, namespace=namespace) as other:
            assert other.start_activity(tell, task_queue="q").result(30)["attempt"] == 1


def test_a_cancellation_of_what_waits_is_kept_over_a_restart_and_heeded_by_who_comes(
    site: Site, node: LocalRabbitMQ
) -> None:
    kept = site.load(work_on_loop, ["kept"], 0.0)["kept"]
    cancelled = site.load(work_on_loop, ["cancelled"], 0.0)["cancelled"]
    cancelled.cancel("nobody needs it")
    node.ctl("stop_app")
    node.ctl("start_app")
    site.worker().ready()
    assert kept.result(20) == "kept"
    with pytest.raises(ActivityError) as caught:
        cancelled.result(20)
    assert isinstance(caught.value.cause, CancelledError)
    assert not site.begun("cancelled")


@pytest.mark.parametrize("leases", [True, False], ids=["leased", "not leased"])
def test_a_long_activity_outlives_the_acknowledgement_timeout_because_of_its_lease(
    site: Site, node: LocalRabbitMQ, leases: bool
) -> None:
    for name, value in (("consumer_timeout", 2_000), ("channel_tick_interval", 500)):
        node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    try:
        options = {"lease_after": 0.5 if leases else 600.0, "max_concurrent_activities": 1}
        site.worker(**options).ready()
        handles = site.load(linger_once, ["long"], 6.0, retry_policy=SOON)
        site.wait_begun("long")
        site.worker(**options).ready()
        attempt = handles["long"].result(30)
    finally:
        for name, value in (("consumer_timeout", 1_800_000), ("channel_tick_interval", 60_000)):
            node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    begun = [event.attempt for event in site.ledger.events("start")]
    # Without a lease the other worker is given the task, and takes the attempt for lost.
    assert (attempt, begun) == ((1, [1]) if leases else (2, [1, 2]))


def test_a_long_session_outlives_the_acknowledgement_timeout(
    node: LocalRabbitMQ, tmp_path: Path
) -> None:
    for name, value in (("consumer_timeout", 2_000), ("channel_tick_interval", 500)):
        node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")
    crew = Crew(node.url, tmp_path)
    try:
        lease_after = timedelta(seconds=0.5)
        worker = crew.worker("a1", sessions=1, lease_after=lease_after)
        handle = crew.start(InSession.run, 1, 0.0, 5, True)
        wait_until(lambda: worker.info().sessions == 1, "it is open")
        time.sleep(6)  # three times as long as the timeout
        handle.signal(InSession.go_on)
        assert handle.result(timeout=30) == [("a", "a1")] * 2
        assert handle.query(InSession.states) == ["open"]
    finally:
        crew.close()
        for name, value in (("consumer_timeout", 1_800_000), ("channel_tick_interval", 60_000)):
            node.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")


def test_who_cannot_enter_is_told_what_to_do_in_one_line_without_the_password(
    node: LocalRabbitMQ, namespace: str
) -> None:
    there = f"127.0.0.1:{node.port}"
    for url, error, text in (
        (f"amqp://guest:guest@{there}/missing", AccessRefused, "check that the vhost exists"),
        (f"amqp://guest:s3cret@{there}", AccessRefused, "check the user, the password"),
        ("amqp://guest:s3cret@127.0.0.1:1", BrokerUnavailable, "no connection to"),
    ):
        begun = time.monotonic()
        with pytest.raises(error, match=text) as caught:
            BlockingClient.connect(url, namespace=namespace, timeout=2)
        assert time.monotonic() - begun < 4
        assert "\n" not in str(caught.value)
        assert "s3cret" not in str(caught.value)
        with BlockingClient.connect(url, namespace=namespace, timeout=2, lazy=True) as client:
            with pytest.raises(error, match=text):
                client.start_activity(tell, task_queue="q")
            if error is AccessRefused:
                with pytest.raises(error, match=text):
                    Worker(client, task_queue="q", activities=[tell]).start()


def test_while_the_broker_has_no_memory_starts_are_refused_in_time_and_outcomes_wait(
    site: Site, node: LocalRabbitMQ, namespace: str
) -> None:
    site.worker().ready()
    with BlockingClient.connect(node.url, namespace=namespace, timeout=2) as client:
        client.execute_activity(tell, task_queue="q")
        # Longer than it takes to set the watermark, on a busy machine too.
        handles = site.load(linger_once, [site.key() for _ in range(10)], 8.0)
        wait_until(lambda: site.ledger.count("start") == 10, "all run")
        node.ctl("set_vm_memory_high_watermark", "0")
        try:
            for _ in range(2):
                begun = time.monotonic()
                with pytest.raises(BrokerBlocked):
                    client.start_activity(tell, task_queue="q")
                assert time.monotonic() - begun < 3
            wait_until(lambda: site.ledger.count("effect") == 10, "they end meanwhile")
            assert not any(handle._pending.outcome.done() for handle in handles.values())
        finally:
            node.ctl("set_vm_memory_high_watermark", "0.4")
        site.collect(handles, 20)
        assert not site.check().faults
        assert not site.check().attempts, "no attempt was lost by it"
        assert client.start_activity(tell, task_queue="q").result(10)["attempt"] == 1
