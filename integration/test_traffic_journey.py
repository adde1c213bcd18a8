"""Journey: tasks are sent elsewhere by traffic rules, and nothing is lost by it.

The story: 5 % of one type, or one customer's tasks, go to a laptop for an hour, and it closes.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from integration.journey import Site, measured, site_at, wait_until
from integration.journey_activities import work_on_loop
from tq_broker import activity, workflow
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.common import RetryPolicy
from tq_broker.model.detours import Detour
from tq_broker.model.names import Names
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Worker

S = timedelta(seconds=1)
SOON = RetryPolicy(initial_interval=S / 10, backoff_coefficient=1)
HOUR_MS = 3_600_000
PATIENCE_S = 60.0


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(broker_url, namespace, tmp_path) as site:
        yield site


def now_ms() -> int:
    return int(time.time() * 1000)


def known(site: Site, rule_id: str, *, gone: bool = False) -> float:
    """Wait until the client knows the rule, or that it is gone; how long that took."""
    traffic = site.client.connection.traffic
    traffic.follow()
    return wait_until(
        lambda: gone != any(rule.id == rule_id for rule in traffic.rules.rules), "the rule", 10
    )


def went_to(site: Site, keys: list[str]) -> dict[str, set[str]]:
    """Which workers began each of ``keys``."""
    wanted = set(keys)
    found: dict[str, set[str]] = {key: set() for key in keys}
    for event in site.ledger.events("start"):
        if event.key in wanted:
            found[event.key].add(event.worker)
    return found


# --- the story: a laptop for an hour --------------------------------------------------------------


def test_five_percent_of_one_type_go_to_a_laptop_and_nothing_is_lost_when_it_closes(
    site: Site,
) -> None:
    servers = site.worker("orders", worker_id="server").ready()
    laptop = site.worker("laptop", worker_id="laptop").ready()
    site.invoke("route", "set", "try-out", "--type", "work_on_loop", "--task-queue", "orders",
        "--percent", "5", "--to", "laptop", "--ttl", "1h", "--reason", "try the new parser",
        "--take-within", "5s",
    )  # fmt: skip
    assert known(site, "try-out") < 1.0
    keys = [site.key() for _ in range(600)]
    handles = site.load(work_on_loop, keys, 0.2, task_queue="orders", retry_policy=SOON)
    wait_until(
        lambda: any("laptop" in who for who in went_to(site, keys).values()), "one on the laptop"
    )
    laptop.kill()
    assert not any(site.collect(handles).values())
    places = went_to(site, keys)
    lent = [key for key, who in places.items() if "laptop" in who]
    measured("of 600 tasks began on the laptop before it closed", len(lent))
    assert 1 <= len(lent) <= 80, "5 %, and not much more"
    # Only what the laptop had begun was begun a second time.
    assert all(len(who) == 1 for key, who in places.items() if key not in lent)
    site.check()
    assert servers.pid


def test_one_customer_goes_to_a_laptop_which_freezes_and_comes_back_too_late(site: Site) -> None:
    site.worker("orders", worker_id="server").ready()
    laptop = site.worker("laptop", worker_id="laptop", max_concurrent_activities=2).ready()
    rule = TrafficRule(
        id="acme",
        task_queue="orders",
        headers={"tenant": "acme"},
        to_task_queue="laptop",
        take_within_ms=1_000,
        expires_ms=now_ms() + HOUR_MS,
        reason="look at it with a debugger",
    )
    site.client.operations.traffic.set(rule)
    known(site, "acme")
    options: dict[str, Any] = {"task_queue": "orders", "retry_policy": SOON}
    before = [site.key() for _ in range(10)]
    done = site.load(work_on_loop, before, 0.0, headers={"tenant": "acme"}, **options)
    others = [site.key() for _ in range(10)]
    rest = site.load(work_on_loop, others, 0.0, headers={"tenant": "other"}, **options)
    assert not any((*site.collect(done).values(), *site.collect(rest).values()))
    assert all(who == {"laptop"} for who in went_to(site, before).values())
    assert all(who == {"server"} for who in went_to(site, others).values())
    laptop.freeze()  # its lid is closed: RabbitMQ has not noticed yet
    try:
        late = [site.key() for _ in range(20)]
        handles = site.load(work_on_loop, late, 0.0, headers={"tenant": "acme"}, **options)
        begun = time.monotonic()
        # Two are in the hands of the laptop, until its connection is found dead.
        wait_until(lambda: sum(map(site.begun, late)) >= 18, "what it does not take comes back", 20)
        measured("s until what a frozen laptop does not take is at home", time.monotonic() - begun)
    finally:
        laptop.thaw()
    assert not any(site.collect(handles).values())
    site.check()


def test_a_laptop_that_is_shut_down_gives_back_what_it_has_not_begun(site: Site) -> None:
    laptop = site.worker(
        "laptop", worker_id="laptop", max_concurrent_activities=1, graceful_shutdown_timeout=10.0
    ).ready()
    server = site.worker("orders", worker_id="server").ready()
    rule = TrafficRule(id="all", task_queue="orders", to_task_queue="laptop", take_within_ms=60_000)
    site.client.operations.traffic.set(rule)
    known(site, "all")
    keys = [site.key() for _ in range(20)]
    handles = site.load(work_on_loop, keys, 0.5, task_queue="orders")
    wait_until(lambda: any(map(site.begun, keys)), "the first one")
    laptop.terminate()
    laptop.wait()
    assert not any(site.collect(handles, 30).values())
    site.check(once=keys)
    assert server.pid


def test_who_has_not_read_the_rules_yet_is_corrected(site: Site) -> None:
    site.worker("orders", worker_id="server").ready()
    site.worker("laptop", worker_id="laptop").ready()
    rule = TrafficRule(id="all", task_queue="orders", to_task_queue="laptop")
    site.client.operations.traffic.set(rule)
    time.sleep(1)
    with BlockingClient.connect(site.url, namespace=site.namespace) as newcomer:
        key = site.key()
        assert newcomer.execute_activity(work_on_loop, args=(key, 0.0), task_queue="orders") == key
    assert went_to(site, [key]) == {key: {"laptop"}}


# --- the other story: split cloud-operations by provider, with no code change ---------------------


def test_a_task_queue_is_split_by_a_header_with_no_code_change(site: Site) -> None:
    for provider in ("aws", "gcp"):
        site.worker(f"cloud-{provider}", worker_id=provider).ready()
        site.invoke("route", "set", f"split-{provider}", "--task-queue", "cloud-operations",
            "--header", f"provider={provider}", "--to", f"cloud-{provider}", "--no-fallback",
        )  # fmt: skip
        known(site, f"split-{provider}")
    site.worker("cloud-operations", worker_id="others").ready()
    once = RetryPolicy(maximum_attempts=1)
    for provider, worker in (("aws", "aws"), ("gcp", "gcp"), ("other", "others")):
        key = site.key()
        handles = site.load(
            work_on_loop, [key], 0.0,
            task_queue="cloud-operations", headers={"provider": provider}, retry_policy=once,
        )  # fmt: skip
        assert not any(site.collect(handles).values())
        assert went_to(site, [key]) == {key: {worker}}


# --- the command line -----------------------------------------------------------------------------


def test_the_command_line_tells_tries_sets_and_removes(site: Site) -> None:
    site.worker("orders", worker_id="server").ready()
    site.worker("laptop", worker_id="laptop").ready()
    key = site.key()
    handles = site.load(work_on_loop, [key], 0.0, task_queue="orders", headers={"tenant": "acme"})
    assert not any(site.collect(handles).values())
    made = ("route", "set", "r", "--task-queue", "orders", "--header", "tenant=acme", "--to")
    refused = site.invoke(*made, "nobody", code=2)
    assert "no living worker serves task queue 'nobody'" in refused.stderr
    tried = json.loads(site.invoke(*made, "laptop", "--dry-run", "--json").output)
    assert (tried["seen"], len(tried["moves"]), tried["findings"]) == (1, 1, [])
    assert json.loads(site.invoke("route", "list", "--json").output) == []
    site.invoke(*made, "laptop", "--reason", "look", "--by", "ann")
    asked = ("route", "explain", "work_on_loop", "--task-queue", "orders", "--header")
    assert "it goes to task queue 'laptop'" in site.invoke(*asked, "tenant=acme").output
    assert "no rule decides; it goes to 'orders'" in site.invoke(*asked, "tenant=x").output
    site.invoke("route", "remove", "r", "--reason", "seen")
    history = site.invoke("route", "list", "--history").output
    assert "ann" in history
    assert "removed" in history
    assert "seen" in history


# --- workflows, embedded and on RabbitMQ ----------------------------------------------------------


@activity.defn(start_to_close_timeout=10 * S)
async def here() -> list[str]:
    info = activity.info()
    return [info.worker_id, info.headers.get("tenant", "")]


@workflow.defn
class Inner:
    @workflow.run
    async def run(self) -> list[str]:
        return await workflow.execute_activity(here, headers={"extra": "x"})


@workflow.defn
class Outer:
    def __init__(self) -> None:
        self.goes_on = False

    @workflow.run
    async def run(self, waits: bool) -> list[list[str]]:
        mine = await workflow.execute_activity(here)
        if waits:
            await workflow.wait_condition(lambda: self.goes_on)
        inner = await workflow.execute_child_workflow(
            Inner.run, id=f"{workflow.info().workflow_id}-i"
        )
        return [mine, inner]

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True


class Town:
    """A history service, and a worker at home and on a laptop, each with a connection."""

    def __init__(self, url: str | None) -> None:
        self.namespace = f"t{secrets.token_hex(4)}"
        self.system = EmbeddedSystem(SystemClock(), url, None, namespace=self.namespace)
        self.system.start()
        self.client = BlockingClient(self.system.core)
        self._closers: list[Any] = []

    def worker(self, name: str, task_queue: str) -> Worker:
        client = BlockingClient.connect(self.system._url, namespace=self.namespace)
        worker = Worker(
            client,
            task_queue=task_queue,
            workflows=[Inner, Outer],
            activities=[here],
            worker_id=name,
            host=name,
            reclaim_after=None,
            graceful_shutdown_timeout=5 * S,
        )
        worker.start()
        self._closers += [client.close, worker.stop]
        return worker

    def set(self, **fields: Any) -> None:
        rule = TrafficRule(**{"id": "r", "task_queue": "q", "to_task_queue": "laptop"} | fields)
        self.client.operations.traffic.set(rule)
        history = self.system._history._connection.traffic
        wait_until(lambda: rule in _unsigned(history.rules.rules), "history knows", 5)

    def start(self, waits: bool = False, **options: Any) -> Any:
        id = f"w-{secrets.token_hex(3)}"
        return self.client.start_workflow(Outer.run, waits, id=id, task_queue="q", **options)

    def who(self, handle: Any) -> set[str]:
        """Workers that have completed its workflow tasks."""
        events = handle.fetch_history().events
        return {one.worker_id for one in events if type(one).__name__ == "WorkflowTaskCompleted"}

    def close(self) -> None:
        for close in reversed(self._closers):
            close()
        self.system.close()


def _unsigned(rules: tuple[TrafficRule, ...]) -> list[TrafficRule]:
    return [msgspec.structs.replace(rule, by="", at_ms=0) for rule in rules]


class Workflows:
    """The suite. A subclass has a fixture ``town``."""

    def test_headers_travel_to_activities_and_children_and_rules_see_them(self, town: Town) -> None:
        town.worker("home", "q")
        town.worker("laptop", "laptop")
        town.set(kind=TaskKind.ACTIVITY, headers={"tenant": "acme"})
        moved = town.start(headers={"tenant": "acme"})
        assert moved.result() == [["laptop", "acme"]] * 2
        assert town.who(moved) == {"home"}
        stays = town.start(headers={"tenant": "x"})
        assert stays.result() == [["home", "x"]] * 2

    def test_a_rule_may_ask_for_the_memo(self, town: Town) -> None:
        town.worker("home", "q")
        town.worker("laptop", "laptop")
        town.set(kind=TaskKind.ACTIVITY, memo={"customer": "acme"})
        assert town.start(memo={"customer": "acme"}).result()[0] == ["laptop", ""]
        assert town.start(memo={"customer": "other"}).result()[0] == ["home", ""]

    def test_workflows_go_to_the_laptop_and_come_home_when_it_closes(self, town: Town) -> None:
        town.worker("home", "q")
        laptop = town.worker("laptop", "laptop")
        town.set(kind=TaskKind.WORKFLOW, take_within_ms=2_000)
        handle = town.start(waits=True)
        wait_until(lambda: town.who(handle) == {"laptop"}, "the laptop has it", PATIENCE_S)
        laptop.stop()
        handle.signal(Outer.go_on)
        assert handle.result() == [["home", ""], ["home", ""]]
        assert town.who(handle) == {"laptop", "home"}
        assert town.start().result() == [["home", ""], ["home", ""]]


class TestEmbedded(Workflows):
    @pytest.fixture
    def town(self) -> Iterator[Town]:
        town = Town(None)
        yield town
        town.close()


class TestOnRabbitMQ(Workflows):
    @pytest.fixture
    def town(self, broker: LocalRabbitMQ) -> Iterator[Town]:
        town = Town(broker.url)
        yield town
        town.close()


def test_nothing_is_left_of_a_detour_whose_target_is_gone(site: Site) -> None:
    site.worker("orders", worker_id="server").ready()
    laptop = site.worker("laptop", worker_id="laptop").ready()
    site.client.operations.traffic.set(
        TrafficRule(id="all", task_queue="orders", to_task_queue="laptop")
    )
    known(site, "all")
    site.client.execute_activity(work_on_loop, args=(site.key(), 0.0), task_queue="orders")
    queue = Detour(TaskKind.ACTIVITY, "laptop", "", "orders", 10_000).queue(Names(site.namespace))
    broker = site.client.connection.broker

    def exists() -> bool:
        return broker.stats(str(queue), time.monotonic() + 10) is not None

    assert exists()
    laptop.kill()
    wait_until(lambda: not exists(), "the queue is gone", 20)
