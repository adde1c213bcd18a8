"""Journey: deployment versions. Runs stay with their version or follow the current one, what waits
follows a change, a version's workers are lost, and versions drain and are deleted."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from integration.journey import Site, site_at, wait_until
from integration.journey_activities import work_on_loop
from tq_broker import activity, workflow
from tq_broker.client import BlockingClient
from tq_broker.client.deployments import DeploymentOperations, VersionDescription
from tq_broker.client.settings_book import followed
from tq_broker.clock import SystemClock
from tq_broker.common import (
    AutoUpgradeVersioningOverride,
    ContinueAsNewVersioningBehavior,
    PinnedVersioningOverride,
    RetryPolicy,
    Route,
    VersioningBehavior,
    WorkerDeploymentVersion,
)
from tq_broker.exceptions import (
    ChildWorkflowError,
    Conflict,
    InvalidArgument,
    NotFound,
    WorkflowFailureError,
)
from tq_broker.model.deployments import RoutingSet, VersionState
from tq_broker.model.rule_table import RuleTable
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Worker

S = timedelta(seconds=1)
PATIENCE_S = 30.0
QUICK = 0.3
"""How long workers of this process may take to answer."""
V1, V2 = (WorkerDeploymentVersion("shop", f"v{number}") for number in (1, 2))
PINNED, AUTO_UPGRADE = VersioningBehavior.PINNED, VersioningBehavior.AUTO_UPGRADE


@activity.defn(start_to_close_timeout=60 * S)
async def here() -> str:
    """The worker that runs it, by which these tests know its version."""
    return activity.info().worker_id.partition("-")[0]


class Steps:
    """Tells where it was, and where it is when it was told to go on."""

    def __init__(self) -> None:
        self.goes_on = False

    async def steps(self, waits: bool) -> list[str]:
        first = await workflow.execute_activity(here)
        if waits:
            await workflow.wait_condition(lambda: self.goes_on)
        return [first, await workflow.execute_activity(here)]


@workflow.defn(versioning_behavior=PINNED)
class Stays(Steps):
    @workflow.run
    async def run(self, waits: bool) -> list[str]:
        return await self.steps(waits)

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True


@workflow.defn(versioning_behavior=AUTO_UPGRADE)
class Follows(Steps):
    @workflow.run
    async def run(self, waits: bool) -> list[str]:
        return await self.steps(waits)

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True


@workflow.defn(versioning_behavior=PINNED)
class InSession(Steps):
    @workflow.run
    async def run(self, waits: bool) -> list[str]:
        async with workflow.session(execution_timeout=60 * S) as session:
            first = await session.execute_activity(here)
            if waits:
                await workflow.wait_condition(lambda: self.goes_on)
            return [first, await session.execute_activity(here)]

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True


class Inside:
    """How many activities of sessions run at a time, one for each session."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.order: list[str] = []

    @activity.defn(start_to_close_timeout=60 * S)
    async def stay(self, kind: str) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.order.append(kind)
        await asyncio.sleep(0.2)
        self.now -= 1


@workflow.defn(versioning_behavior=AUTO_UPGRADE)
class OneAtATime:
    @workflow.run
    async def run(self, kind: str) -> None:
        async with workflow.session(execution_timeout=60 * S, creation_timeout=60 * S) as session:
            await session.execute_activity(Inside.stay, kind)


@activity.defn(name="there", version=V2, start_to_close_timeout=60 * S)
async def there() -> str:
    return await here()


@activity.defn(name="freed", version="auto_upgrade", start_to_close_timeout=60 * S)
async def freed() -> str:
    return await here()


@workflow.defn(versioning_behavior=PINNED, version=V2)
class Chosen:
    """Says the version of what it starts, one way or another."""

    @workflow.run
    async def run(self, depth: int) -> list[str]:
        call = workflow.execute_activity
        found = [await call(here), await call(there), await call(there, version=V1)]
        found += [await call(here, version="auto_upgrade"), await call(freed)]
        found.append(await call(freed, version=V2))
        if not depth:
            return found
        for version in (None, V1, "auto_upgrade", "shop.v9"):
            id = f"{workflow.info().workflow_id}-{version}"
            try:
                child = workflow.execute_child_workflow(Chosen.run, 0, id=id, version=version)
                found.append((await child)[0])
            except ChildWorkflowError as error:
                found.append(str(error.cause))
        return found


@workflow.defn(versioning_behavior=PINNED)
class Parent:
    """Waits, and then has a child, or continues as new until it has counted down."""

    def __init__(self) -> None:
        self.goes_on = False

    @workflow.run
    async def run(self, what: str) -> list[str]:
        if what == "done":
            return [await workflow.execute_activity(here)]
        first = await workflow.execute_activity(here)
        await workflow.wait_condition(lambda: self.goes_on)
        if what == "child":
            child = await workflow.execute_child_workflow(
                Stays.run, False, id=f"{workflow.info().workflow_id}-c"
            )
            return [first, *child]
        upgrades = ContinueAsNewVersioningBehavior(int(what == "upgrade"))
        return workflow.continue_as_new("done", initial_versioning_behavior=upgrades)

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True


class Town:
    """A history service and workers of several versions, each with a connection of its own."""

    def __init__(self, url: str | None) -> None:
        self.namespace = f"t{secrets.token_hex(4)}"
        self.system = EmbeddedSystem(SystemClock(), url, None, namespace=self.namespace)
        self.system.start()
        self.client = BlockingClient(self.system.core)
        self._closers: list[Any] = []
        self._workers: list[Worker] = []
        self.inside = Inside()

    @property
    def deployments(self) -> DeploymentOperations:
        return self.client.operations.deployments

    def worker(self, build_id: str | None, *task_queues: str, **options: Any) -> Worker:
        """A worker of a version, whose id begins with it; ``None``: of none."""
        url = self.system._url
        client = BlockingClient.connect(url, namespace=self.namespace)
        if build_id is not None:
            options |= {"deployment": "shop", "build_id": build_id}
        options.setdefault("workflows", [Stays, Follows, Parent, Chosen, InSession, OneAtATime])
        worker = Worker(
            client,
            task_queues=task_queues or ("q",),
            activities=[here, there, freed, self.inside.stay],
            worker_id=f"{build_id or 'plain'}-{secrets.token_hex(3)}",
            reclaim_after=None,
            graceful_shutdown_timeout=5 * S,
            **options,
        )
        worker.start()
        self._closers += [client.close, worker.stop]
        self._workers.append(worker)
        return worker

    def current(self, build_id: str, **options: Any) -> None:
        self.deployments.set_current("shop", build_id, wait_s=QUICK, **options)
        self._known()

    def ramp(self, build_id: str | None, percent: float = 0.0, **options: Any) -> None:
        self.deployments.set_ramping("shop", build_id, percent, wait_s=QUICK, **options)
        self._known()

    def _known(self) -> None:
        """Wait until history and the workers have read what was set last."""
        [wanted] = [one for one in self.deployments.all() if one.name == "shop"]
        followers: list[Any] = [self.system._history._connection.traffic]
        followers += [one._settings for one in self._workers if one.is_running]
        wait_until(
            lambda: all(
                one.deployments.by_name["shop"].revision == wanted.revision for one in followers
            ),
            "everybody knows",
            5,
        )

    def send(self, **matching: Any) -> None:
        """Set a traffic rule to the second version."""
        rule = TrafficRule(id="try", task_queue="q", to_version="shop.v2", **matching)
        self.client.operations.traffic.set(rule, wait_s=QUICK)
        self.knows(bool)

    def knows(self, said: Callable[[RuleTable], bool]) -> None:
        """Wait until ``said`` holds for the rules that history and this client have read."""
        own = self.client.connection.traffic
        own.follow()
        followers = [self.system._history._connection.traffic, own]
        wait_until(lambda: all(said(one.rules) for one in followers), "everybody knows", 5)

    def version(self, build_id: str) -> VersionDescription:
        told = self.deployments.describe("shop", wait_s=QUICK)
        return next(one for one in told.versions if one.build_id == build_id)

    def start(self, what: Any, *args: Any, **options: Any) -> Any:
        id = options.pop("id", f"w-{secrets.token_hex(3)}")
        return self.client.start_workflow(what.run, args=args, id=id, task_queue="q", **options)

    def begun(self, *handles: Any, by: str) -> None:
        """Wait until workers of one version have completed the first task of these runs."""
        for handle in handles:
            wait_until(lambda: self.who(handle) == {by}, f"{by} has begun", PATIENCE_S)  # noqa: B023

    def who(self, handle: Any) -> set[str]:
        """Versions whose workers have completed its workflow tasks."""
        events = handle.fetch_history().events
        completed = [one for one in events if type(one).__name__ == "WorkflowTaskCompleted"]
        return {one.worker_id.partition("-")[0] for one in completed}

    def close(self) -> None:
        for close in reversed(self._closers):
            close()
        self.system.close()


class Versions:
    """The suite. A subclass has a fixture ``town``."""

    def test_a_pinned_run_stays_and_another_follows_the_current_version(self, town: Town) -> None:
        town.worker("v1")
        town.current("v1")
        stays, follows = town.start(Stays, True), town.start(Follows, True)
        town.begun(stays, follows, by="v1")
        town.worker("v2")
        town.current("v2", reason="ticket 812")
        told = stays.describe()
        assert (told.version, told.pinned_version) == ("shop.v1", "shop.v1")
        assert follows.describe().pinned_version is None
        for handle in (stays, follows):
            handle.signal("go_on")
        assert stays.result(timeout=PATIENCE_S) == ["v1", "v1"]
        assert follows.result(timeout=PATIENCE_S) == ["v1", "v2"]
        assert town.who(stays) == {"v1"}
        assert town.who(follows) == {"v1", "v2"}
        assert town.start(Stays, False).result(timeout=PATIENCE_S) == ["v2", "v2"]

    def test_a_whole_backlog_follows_a_change(self, town: Town) -> None:
        waiting = [town.start(Follows, False) for _ in range(20)]
        called = [town.client.start_activity(here, task_queue="q") for _ in range(20)]
        town.worker("v1")
        assert town.version("v1").state is VersionState.INACTIVE
        town.worker("v2")
        town.current("v2")
        assert {str(handle.result(timeout=PATIENCE_S)) for handle in waiting} == {"['v2', 'v2']"}
        assert {handle.result(timeout=PATIENCE_S) for handle in called} == {"v2"}
        town.current("__unversioned__", force=True)
        waiting = [town.start(Follows, False) for _ in range(10)]
        town.current("v1")
        assert {str(handle.result(timeout=PATIENCE_S)) for handle in waiting} == {"['v1', 'v1']"}
        town.current("__unversioned__", force=True)
        plain = town.start(Follows, False)
        town.worker(None)
        assert plain.result(timeout=PATIENCE_S) == ["plain", "plain"]

    def test_a_ramp_takes_its_part_and_growing_only_adds(self, town: Town) -> None:
        town.worker("v1")
        town.worker("v2")
        town.current("v1")
        before: set[str] = set()
        for percent in (20.0, 60.0, 0.0):
            town.ramp("v2", percent)
            ids = [f"w{number}" for number in range(30)]
            handles = [town.start(Stays, False, id=id) for id in ids]
            places = [set(handle.result(timeout=PATIENCE_S)) for handle in handles]
            ramped = {id for id, place in zip(ids, places, strict=True) if place == {"v2"}}
            assert all(len(place) == 1 for place in places), "no run is torn"
            if percent:
                assert before <= ramped
            assert percent or not ramped
            before = ramped
        assert town.version("v2").state is VersionState.RAMPING

    def test_what_waits_is_shared_anew_when_the_ramp_changes(self, town: Town) -> None:
        first, second = town.worker("v1"), town.worker("v2")
        town.current("v1")
        town.ramp("v2", 50.0)
        first.stop()
        second.stop()
        ids = [f"w{number}" for number in range(20)]
        handles = [town.start(Stays, False, id=id) for id in ids]
        town.ramp("v2", 100.0, force=True)
        town.worker("v1")
        town.worker("v2")
        assert {str(handle.result(timeout=PATIENCE_S)) for handle in handles} == {"['v2', 'v2']"}
        town.ramp(None)
        assert town.start(Stays, False).result(timeout=PATIENCE_S) == ["v1", "v1"]

    def test_a_start_and_an_activity_may_name_their_version(self, town: Town) -> None:
        town.worker("v1")
        town.worker("v2")
        town.current("v1")
        pinned = town.start(Follows, True, versioning_override=PinnedVersioningOverride(V2))
        free = town.start(Stays, True, versioning_override=AutoUpgradeVersioningOverride())
        town.begun(pinned, by="v2")
        town.begun(free, by="v1")
        town.current("v2")
        town.current("v1")
        for handle in (pinned, free):
            handle.signal("go_on")
        assert pinned.result(timeout=PATIENCE_S) == ["v2", "v2"]
        assert free.result(timeout=PATIENCE_S) == ["v1", "v1"]
        assert pinned.describe().versioning_override == "shop.v2"
        for version in (V1, V2):
            called = town.client.start_activity(here, task_queue="q", route=Route.version(version))
            assert called.result(timeout=PATIENCE_S) == version.build_id
        nobody = PinnedVersioningOverride(WorkerDeploymentVersion("shop", "v9"))
        with pytest.raises(InvalidArgument, match=r"'shop\.v9', which the run .* is not known"):
            town.start(Stays, False, versioning_override=nobody)

    def test_children_and_continuations_keep_the_pin(self, town: Town) -> None:
        town.worker("v1")
        town.current("v1")
        parents = {what: town.start(Parent, what) for what in ("child", "next", "upgrade")}
        town.begun(*parents.values(), by="v1")
        town.worker("v2")
        town.current("v2")
        for handle in parents.values():
            handle.signal("go_on")
        assert parents["child"].result(timeout=PATIENCE_S) == ["v1", "v1", "v1"]
        assert parents["next"].result(timeout=PATIENCE_S) == ["v1"]
        assert parents["upgrade"].result(timeout=PATIENCE_S) == ["v2"]

    def test_a_pinned_run_waits_for_its_version_and_that_is_seen(self, town: Town) -> None:
        worker = town.worker("v1")
        town.current("v1")
        handle = town.start(Stays, True)
        town.begun(handle, by="v1")
        town.worker("v2")
        town.current("v2")
        worker.stop()
        handle.signal("go_on")
        wait_until(
            lambda: any(queue.is_stranded for queue in town.version("v1").queues),
            "it is seen that a task waits",
            PATIENCE_S,
        )
        told = town.version("v1")
        assert (told.state, told.open_runs, told.workers) == (VersionState.DRAINING, 1, ())
        town.worker("v1")
        assert handle.result(timeout=PATIENCE_S) == ["v1", "v1"]
        wait_until(
            lambda: town.version("v1").state is VersionState.DRAINED, "it is drained", PATIENCE_S
        )

    def test_calls_and_decorators_say_a_version(self, town: Town) -> None:
        town.worker("v1")
        town.worker("v2")
        town.current("v1")
        by_decorator = town.start(Chosen, 1).result(timeout=PATIENCE_S)
        assert by_decorator[:3] == ["v2", "v2", "v1"]
        assert by_decorator[3:6] == ["v1", "v1", "v2"], "activities free of the pin of their run"
        assert by_decorator[6:9] == ["v2", "v1", "v1"], "children"
        assert "is not known; start a worker of it first" in by_decorator[9]
        assert town.start(Chosen, 0, version="shop.v1").result(timeout=PATIENCE_S)[0] == "v1"
        override = AutoUpgradeVersioningOverride()
        follows = town.start(Chosen, 0, versioning_override=override)
        assert follows.result(timeout=PATIENCE_S)[:2] == ["v1", "v2"]
        call = partial(town.client.execute_activity, task_queue="q")
        assert (call(there), call(there, version="shop.v1"), call(here)) == ("v2", "v1", "v1")
        assert call(there, version="auto_upgrade") == "v1"

    def test_a_session_is_on_a_worker_of_the_run_s_version(self, town: Town) -> None:
        one = town.worker("v1", max_concurrent_sessions=2)
        town.current("v1")
        old = town.start(InSession, True)
        wait_until(lambda: one.info().sessions == 1, "it has a session", PATIENCE_S)
        town.worker("v2", max_concurrent_sessions=2)
        town.current("v2")
        new = town.start(InSession, False)
        bound = town.start(InSession, False, version=V1)
        assert new.result(timeout=PATIENCE_S) == ["v2", "v2"]
        assert bound.result(timeout=PATIENCE_S) == ["v1", "v1"]
        old.signal("go_on")
        assert old.result(timeout=PATIENCE_S) == ["v1", "v1"]

    def test_sessions_that_wait_in_several_queues_take_turns_for_the_slots(
        self, town: Town
    ) -> None:
        one = town.worker("v1", max_concurrent_sessions=1)
        town.current("v1")
        pinned = [town.start(OneAtATime, "pinned", version=V1) for _ in range(6)]
        free = [town.start(OneAtATime, "free") for _ in range(6)]
        runs = [*pinned, *free, *(town.start(OneAtATime, "first", priority=1) for _ in range(2))]
        most = 0

        def are_begun() -> bool:
            nonlocal most
            most = max(most, one.info().sessions)
            return len(town.inside.order) == len(runs)

        wait_until(are_begun, "all have had the slot", PATIENCE_S)
        for handle in runs:
            handle.result(timeout=PATIENCE_S)
        assert (most, town.inside.most) == (1, 1), "never more than there are slots"
        early = town.inside.order[:8]
        assert all(early.count(kind) >= 2 for kind in ("pinned", "free", "first")), early

    def test_a_session_that_finds_no_slot_is_created_elsewhere(self, town: Town) -> None:
        small = town.worker("v1", max_concurrent_sessions=1)
        large = town.worker("v1", max_concurrent_sessions=40)
        town.current("v1")
        ways: list[dict[str, Any]] = [{}, {"version": V1}, {"priority": 1}]
        runs = [town.start(InSession, True, **way) for way in ways * 7]
        most = 0

        def are_open() -> bool:
            nonlocal most
            most = max(most, small.info().sessions)
            return small.info().sessions + large.info().sessions == len(runs)

        wait_until(are_open, "all are open at a time", PATIENCE_S)
        assert most <= 1, "never more than there are slots"
        for run in runs:
            run.signal("go_on")
        for run in runs:
            assert run.result(timeout=PATIENCE_S) == ["v1", "v1"]

    def test_a_traffic_rule_sends_some_to_a_version_and_it_closes(self, town: Town) -> None:
        town.worker("v1")
        town.current("v1")
        two = town.worker("v2")
        town.send(headers={"tenant": "acme"})
        acme = {"headers": {"tenant": "acme"}}
        stays, follows = town.start(Stays, True, **acme), town.start(Follows, True, **acme)
        town.begun(stays, follows, by="v2")
        assert stays.describe().pinned_version == "shop.v2", "begun there, it stays there"
        assert follows.describe().pinned_version is None
        assert town.start(Stays, False).result(timeout=PATIENCE_S) == ["v1", "v1"]
        call = partial(town.client.execute_activity, here, task_queue="q")
        assert (call(**acme), call()) == ("v2", "v1")
        pinned = call(**acme, route=Route.version(V1))
        assert pinned == "v1", "what is pinned no rule moves"
        with pytest.raises(InvalidArgument, match=r"traffic rules send tasks to it: 'try'|living"):
            town.deployments.delete("shop", "v2", wait_s=QUICK)
        two.stop()
        with pytest.raises(InvalidArgument, match=r"traffic rules send tasks to it: 'try'"):
            town.deployments.delete("shop", "v2", wait_s=QUICK)
        follows.signal("go_on")
        assert follows.result(timeout=PATIENCE_S) == ["v2", "v1"], "it comes home"
        assert call(**acme) == "v1"
        stays.signal("go_on")
        town.worker("v2")
        assert stays.result(timeout=PATIENCE_S) == ["v2", "v2"]

    def test_a_run_that_a_rule_has_sent_to_a_version_goes_back_with_it(self, town: Town) -> None:
        town.worker("v1")
        town.current("v1")
        town.worker("v2")
        begun = town.start(Follows, True)
        town.begun(begun, by="v1")
        town.send(kind=TaskKind.WORKFLOW)
        sent = town.start(Follows, True)
        town.begun(sent, by="v2")
        begun.signal("go_on")
        assert begun.result(timeout=PATIENCE_S) == ["v1", "v1"], "activities are another kind"
        assert town.who(begun) == {"v1", "v2"}
        town.client.operations.traffic.remove("try")
        town.knows(lambda rules: not rules)
        sent.signal("go_on")
        assert sent.result(timeout=PATIENCE_S) == ["v1", "v1"]
        assert town.who(sent) == {"v1", "v2"}

    def test_what_would_strand_tasks_is_refused_with_the_reason(self, town: Town) -> None:
        operations = town.deployments
        with pytest.raises(NotFound, match="it begins to exist with its first worker"):
            operations.set_current("shop", "v1", wait_s=QUICK)
        one = town.worker("v1", "q", "mail")
        town.current("v1")
        with pytest.raises(NotFound, match=r"has no version 'v2'.*start a worker of it first"):
            operations.set_current("shop", "v2", wait_s=QUICK)
        two = town.worker("v2", "q")
        with pytest.raises(InvalidArgument, match="does not serve activity task queue 'mail'"):
            operations.set_current("shop", "v2", wait_s=QUICK)
        with pytest.raises(InvalidArgument, match="it must be from 0 to 100"):
            operations.set_ramping("shop", "v2", 100.1, wait_s=QUICK)
        with pytest.raises(InvalidArgument, match="is current; set another one current first"):
            operations.delete("shop", "v1", wait_s=QUICK)
        with pytest.raises(InvalidArgument, match=r"has living workers: .*; stop them first"):
            operations.delete("shop", "v2", wait_s=QUICK)
        two.stop()
        with pytest.raises(InvalidArgument, match=r"no living worker of version 'shop\.v2'"):
            operations.set_current("shop", "v2", wait_s=QUICK)
        assert [one.current for one in operations.all()] == ["v1"], "nothing was changed"
        handle = town.start(Stays, True)
        town.begun(handle, by="v1")
        [said, *_] = operations.set_current("shop", "v2", force=True, wait_s=QUICK)
        assert "no living worker" in said.text
        one.stop()
        with pytest.raises(InvalidArgument, match="1 open runs are pinned to it"):
            operations.delete("shop", "v1", wait_s=QUICK)
        handle.terminate()
        with pytest.raises(WorkflowFailureError):
            handle.result(timeout=PATIENCE_S)
        operations.delete("shop", "v1", reason="drained", wait_s=QUICK)
        [left] = operations.all()
        assert set(left.versions) == {"v2"}
        assert left.changes[-1].reason == "drained"

    def test_of_two_changes_at_a_time_one_is_told_of_the_conflict(self, town: Town) -> None:
        town.worker("v1")
        operations = town.deployments
        with followed(operations._core) as log:
            before = log.deployments.by_name["shop"]
            late = RoutingSet(
                deployment="shop", at_ms=1, change_id="late", revision=before.revision
            )
            operations.set_current("shop", "v1", wait_s=QUICK)
            with pytest.raises(Conflict, match="has changed deployment 'shop' meanwhile"):
                operations._write(log, late)


class TestEmbedded(Versions):
    @pytest.fixture
    def town(self) -> Iterator[Town]:
        town = Town(None)
        yield town
        town.close()


class TestOnRabbitMQ(Versions):
    @pytest.fixture
    def town(self, broker: LocalRabbitMQ) -> Iterator[Town]:
        town = Town(broker.url)
        yield town
        town.close()


# --- under load, with worker processes ------------------------------------------------------------


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(broker_url, namespace, tmp_path) as site:
        yield site


def invoke(site: Site, *arguments: str, code: int = 0) -> Result:
    wait = () if arguments[1] == "list" else ("--wait", "0.3s")
    return site.invoke(*arguments, *wait, code=code)


def began_at(site: Site, keys: Sequence[str]) -> dict[str, list[str]]:
    """Which workers began each of ``keys``, in order."""
    found: dict[str, list[str]] = {key: [] for key in keys}
    for event in site.ledger.events("start"):
        if event.key in found:
            found[event.key].append(event.worker)
    return found


def test_a_backlog_follows_under_load_and_a_version_is_killed(site: Site) -> None:
    ready = {"deployment": "shop", "max_concurrent_activities": 4}
    workers = {
        build: site.worker("q", worker_id=build, build_id=build, **ready) for build in ("v1", "v2")
    }
    for worker in workers.values():
        worker.ready()
    set_current = ("deployment", "set-current", "shop")
    invoke(site, *set_current, "v1")
    ramp = ("deployment", "set-ramping", "shop", "v2", "--percent")
    assert "it must be from 0 to 100" in invoke(site, *ramp, "101", code=2).stderr
    invoke(site, *ramp, "10", "--reason", "try")
    soon = RetryPolicy(initial_interval=S / 10, backoff_coefficient=1)
    keys = [site.key() for _ in range(200)]
    handles = site.load(work_on_loop, keys, 0.05, task_queue="q", retry_policy=soon)
    wait_until(lambda: sum(map(site.begun, keys[:20])) >= 10, "v1 is at it")
    invoke(site, *set_current, "v2", "--reason", "under load")
    pinned = [site.key() for _ in range(20)]
    held = site.load(
        work_on_loop, pinned, 0.3,
        task_queue="q", route=Route.version(V1), retry_policy=soon,
    )  # fmt: skip
    wait_until(lambda: any(map(site.begun, pinned)), "v1 has begun what is pinned to it")
    workers["v1"].kill()
    assert not any(site.collect(handles).values())
    places = began_at(site, keys)
    assert {who[0] for who in places.values()} == {"v1", "v2"}
    assert all("v2" in who for key, who in places.items() if len(who) > 1)
    told = json.loads(invoke(site, "deployment", "describe", "shop", "--json").stdout)
    [stranded] = [one for one in told["versions"] if one["build_id"] == "v1"]
    assert stranded["workers"] == []
    assert sum(queue["pinned"] for queue in stranded["queues"]) > 0
    shown = invoke(site, "deployment", "describe", "shop")
    assert "for version shop.v1, of which no worker lives" in shown.stderr
    site.again(workers["v1"]).ready()
    assert not any(site.collect(held).values())
    assert {who for places in began_at(site, pinned).values() for who in places} == {"v1"}
    site.check()
    in_use = invoke(site, "deployment", "delete", "shop", "v1", code=2)
    assert "has living workers: " in in_use.stderr
    site.workers[-1].terminate()
    site.workers[-1].wait()
    invoke(site, "deployment", "delete", "shop", "v1", "--reason", "drained")
    [listed] = json.loads(invoke(site, "deployment", "list", "--json").stdout)
    assert (listed["current"], listed["versions"]) == ("v2", ["v2"])
