"""Journey: activities follow each other to hosts and processes, also in sessions, and these die.

Embedded and on every RabbitMQ version; there the workers are processes, and ``kill -9`` ends them.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from integration.affinity_families import FAMILIES, Family, Guarded
from integration.affinity_workflows import (
    ACTIVITIES,
    WORKFLOWS,
    Follow,
    InSession,
    Misuse,
    Stay,
    Together,
)
from integration.deployment import RoleProcess
from integration.journey import measured, wait_until
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.exceptions import ActivityError, AffinityLostError, WorkflowFailureError
from tq_broker.queues.memory import MemoryBroker
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Worker

S = timedelta(seconds=1)
PATIENCE_S = 60.0
LOST_WITHIN_S = 2.0
FAILED_WITHIN_S = 1.0
_numbers = itertools.count(1)


class Crew:
    """History and a worker for workflows; workers for activities come and go."""

    def __init__(self, url: str | None, directory: Path) -> None:
        self.namespace = f"t{secrets.token_hex(4)}"
        self.system = EmbeddedSystem(SystemClock(), url, None, namespace=self.namespace)
        self.system.start()
        self.client = BlockingClient(self.system.core)
        self._is_embedded = url is None
        self._directory = directory
        self._closers: list[Callable[[], object]] = [self.system.close]
        self._home = Worker(
            self.client, task_queue="q", workflows=[*WORKFLOWS, *FAMILIES], reclaim_after=None
        )
        self._home.start()
        self._closers.append(self._home.stop)
        self._deaths: dict[str, Callable[[], object]] = {}

    def hire(self, *names: str, sessions: int = 0) -> None:
        """Workers of these names; the first letter of each is its host."""
        make = self._embedded if self._is_embedded else self._process
        made = [(name, *make(name, sessions)) for name in names]
        for name, wait_ready, die in made:
            wait_ready()
            self._deaths[name] = die

    def _embedded(self, name: str, sessions: int) -> tuple[Callable[[], object], ...]:
        worker = self.worker(name, sessions)
        broker = worker._connection.broker
        assert isinstance(broker, MemoryBroker)

        def die() -> None:
            broker.kill()
            worker._until = lambda condition, seconds: True  # type: ignore[method-assign]

        return lambda: None, die

    def _process(self, name: str, sessions: int) -> tuple[Callable[[], object], ...]:
        command = (
            *("--json", "-l", "INFO", "-b", self.system._url, "--namespace", self.namespace),
            *("-A", "integration.affinity_workflows:ACTIVITIES", "worker", "-Q", "q"),
            *("--host", name[0], "--worker-id", name, "--sessions", str(sessions)),
        )
        process = RoleProcess(name, command, {}, self._directory / f"{name}.log")
        self._closers.append(process.close)
        return process.ready, process.kill

    def worker(self, name: str, sessions: int = 0, lease_after: timedelta = S / 5) -> Worker:
        """One in this process, on a connection of its own."""
        client = BlockingClient.connect(self.system._url, namespace=self.namespace)
        worker = Worker(
            client,
            task_queue="q",
            activities=ACTIVITIES,
            worker_id=name,
            host=name[0],
            max_concurrent_sessions=sessions,
            lease_after=lease_after,
            graceful_shutdown_timeout=S,
            reclaim_after=None,
        )
        self._closers += [client.close, worker.stop]
        worker.start()
        return worker

    def kill(self, name: str) -> float:
        """``kill -9``; returns when, as epoch seconds."""
        now = time.time()
        self._deaths[name]()
        return now

    def start(self, run: Any, *args: Any, **options: Any) -> Any:
        id = f"w{next(_numbers)}"
        return self.client.start_workflow(run, args=args, id=id, task_queue="q", **options)

    def sessions(self) -> dict[str, int]:
        """Open sessions by worker."""
        found = self.client.operations.workers(0.3)
        return {one.worker_id: one.sessions for one in found if one.session_slots}

    def close(self) -> None:
        for close in reversed(self._closers):
            close()


def worker_of(handle: Any, least: int = 1) -> str:
    """Where the activities of a run are, when it has come so far."""
    query = handle.query
    wait_until(lambda: len(query("so_far")) >= least, f"{least} activities", PATIENCE_S)
    name: str = query("so_far")[-1][1]
    return name


def seen_after(handle: Any, query: str, since: float) -> float:
    """How long after ``since`` the workflow has seen its first loss."""
    wait_until(lambda: handle.query(query), "the loss is seen", PATIENCE_S)
    return float(handle.query(query)[0] / 1000 - since)


def cause_of(handle: Any) -> BaseException | None:
    with pytest.raises(WorkflowFailureError) as raised:
        handle.result(timeout=PATIENCE_S)
    error = raised.value.cause
    assert isinstance(error, ActivityError)
    return error.cause


class Journey:
    """The suite. A subclass has a fixture ``crew``."""

    # --- affinity -------------------------------------------------------------------------------

    def test_activities_follow_each_other(self, crew: Crew) -> None:
        crew.hire("a1", "a2", "b1")
        for part, affinity in enumerate(["host", "process"]):
            chains = [crew.start(Follow.run, affinity, 4, 0.0, "fail") for _ in range(10)]
            flocks = [crew.start(Together.run, affinity, 4, 0.01) for _ in range(5)]
            groups = [chain.result(timeout=PATIENCE_S) for chain in chains]
            groups += [group for flock in flocks for group in flock.result(timeout=PATIENCE_S)]
            assert [len(group) for group in groups] == [4] * 20
            assert all(len({place[part] for place in group}) == 1 for group in groups)

    @pytest.mark.parametrize("seconds", [0.3, 0.01])
    def test_the_loss_of_a_host_is_an_error_in_time(self, crew: Crew, seconds: float) -> None:
        crew.hire("a1", "b1")
        handle = crew.start(Follow.run, "host", 200 if seconds < 0.1 else 8, seconds, "fail")
        lost = worker_of(handle, 2)
        killed = crew.kill(lost)
        late = seen_after(handle, "losses", killed)
        measured("s from the kill to the error", late)
        assert late < LOST_WITHIN_S
        places = handle.result(timeout=PATIENCE_S)
        assert {name for _, name in places} == {"a1", "b1"} - {lost}

    def test_a_loss_can_end_the_workflow_or_be_overcome(self, crew: Crew) -> None:
        crew.hire("a1")
        runs = {one: crew.start(Stay.run, one) for one in ("fail", "restart_affinity", "wait")}
        for handle in runs.values():
            worker_of(handle)
        crew.kill("a1")
        crew.hire("b1")
        for handle in runs.values():
            handle.signal(Stay.go_on)
        assert isinstance(cause_of(runs["fail"]), AffinityLostError)
        overcome = runs["restart_affinity"].result(timeout=PATIENCE_S)
        assert [host for host, _ in overcome] == ["a", "b"]
        crew.hire("a2")
        assert runs["wait"].result(timeout=PATIENCE_S) == [("a", "a1"), ("a", "a2")]

    def test_workers_of_a_host_die_under_load(self, crew: Crew) -> None:
        crew.hire("a1", "a2", "b1")
        modes = ["fail", "restart_affinity"] * 20
        # Long enough to be under way when the second one dies
        runs = [(crew.start(Follow.run, "host", 60, 0.1, mode), mode) for mode in modes]
        for handle, _ in runs:
            worker_of(handle)
        crew.kill("a1")
        time.sleep(0.3)
        assert not any(handle.query(Follow.losses) for handle, _ in runs), "its host has another"
        killed = crew.kill("a2")
        for handle, mode in runs:
            hosts = [host for host, _ in handle.result(timeout=PATIENCE_S)]
            assert len(hosts) == 60
            assert hosts == sorted(hosts), "never back and forth"
            if mode == "fail":
                assert len(set(hosts)) == 1, "what was begun on the lost host was begun anew"
        losses = [ms for handle, _ in runs for ms in handle.query(Follow.losses)]
        assert losses
        measured("s until the last error", max(losses) / 1000 - killed)

    def test_children_and_next_runs_follow_on(self, crew: Crew) -> None:
        crew.hire("a1", "a2", "b1")
        families = [crew.start(Family.run, []) for _ in range(10)]
        found = [family.result(timeout=PATIENCE_S) for family in families]
        assert [len(places) for places in found] == [8] * 10
        assert all(len({host for host, _ in places}) == 1 for places in found)

    def test_a_child_sees_that_the_host_of_its_parent_is_lost(self, crew: Crew) -> None:
        crew.hire("a1")
        runs = [
            crew.start(Guarded.run, overcomes, affinity="host", on_lost=on_lost)
            for on_lost, overcomes in (
                ("fail", False), ("fail", True), ("restart_affinity", False), ("wait", False),
            )
        ]  # fmt: skip
        for handle in runs:
            worker_of(handle)
        crew.kill("a1")
        crew.hire("b1")
        for handle in runs:
            handle.signal(Guarded.go_on)
        told = [handle.result(timeout=PATIENCE_S) for handle in runs[:3]]
        assert told == ["ActivityError: AffinityLostError", "a b b", "a b b"]
        described = runs[3].describe()
        assert (described.affinity_target, len(described.pending_children)) == ("a", 1)
        crew.hire("a2")
        assert runs[3].result(timeout=PATIENCE_S) == "a a a"

    # --- sessions -------------------------------------------------------------------------------

    def test_a_worker_has_as_many_sessions_as_slots(self, crew: Crew) -> None:
        crew.hire("a1", sessions=2)
        runs = [crew.start(InSession.run, 1, 0.0, 1, True) for _ in range(5)]

        def opened() -> int:
            return sum("open" in handle.query(InSession.states) for handle in runs)

        wait_until(lambda: opened() == 2, "two have a session", PATIENCE_S)
        time.sleep(0.5)  # so long others would have had the time to get one
        assert opened() == 2
        assert crew.sessions() == {"a1": 2}
        for handle in runs:
            handle.signal(InSession.go_on)
        for handle in runs:
            assert handle.result(timeout=PATIENCE_S) == [("a", "a1")] * 2
        said = crew.start(Misuse.run).result(timeout=PATIENCE_S)
        assert said[0].startswith("route is not for an activity of a session")
        assert "is closed" in said[1]
        assert said[2] == "True", "created anew on the same worker"
        assert "its execution timeout is over" in said[3]
        assert said[4] == "failed"
        assert "no worker of its task queue had a free session slot" in said[5]
        wait_until(lambda: crew.sessions() == {"a1": 0}, "all slots are free", PATIENCE_S)

    def test_who_has_no_free_slot_takes_no_session(
        self, crew: Crew, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker = crew.worker("a1", sessions=2)
        given_back: list[Any] = []
        give_back = worker._reporter.give_back

        def counted(*args: Any) -> None:
            given_back.append(args)
            give_back(*args)

        monkeypatch.setattr(worker._reporter, "give_back", counted)
        runs = [crew.start(InSession.run, 1, 0.1, 1, False) for _ in range(20)]
        for handle in runs:
            assert handle.result(timeout=PATIENCE_S) == [("a", "a1")]
        assert len(given_back) <= 2, "at most while it opened its first windows"

    def test_an_idle_session_fails_with_the_only_worker_that_has_any(self, crew: Crew) -> None:
        crew.hire("a1", sessions=1)
        handle = crew.start(InSession.run, 1, 0.0, 5, True)
        worker_of(handle)
        time.sleep(1.5)  # its lease has been renewed by now
        killed = crew.kill("a1")
        # It waits for a signal, not for an activity of the session.
        late = seen_after(handle, "failures", killed)
        measured("s from the kill to the failure", late)
        assert late < FAILED_WITHIN_S
        crew.hire("b1", sessions=1)
        handle.signal(InSession.go_on)
        assert handle.result(timeout=PATIENCE_S) == [("b", "b1")] * 2
        assert handle.query(InSession.states) == ["open", "failed", "open"]

    def test_sessions_lose_their_worker_under_load(self, crew: Crew) -> None:
        crew.hire("a1", "b1", sessions=20)
        runs = [crew.start(InSession.run, 20, 0.1, 5, False) for _ in range(20)]
        lost = [worker_of(handle) for handle in runs].count("a1")
        killed = crew.kill("a1")
        results = [handle.result(timeout=PATIENCE_S) for handle in runs]
        assert all(places == [("b", "b1")] * 20 for places in results)
        failures = [ms / 1000 - killed for one in runs for ms in one.query(InSession.failures)]
        assert len(failures) == lost > 0
        measured("s until the last failure", max(failures))
        wait_until(lambda: crew.sessions() == {"b1": 0}, "all slots are free", PATIENCE_S)


class TestEmbedded(Journey):
    @pytest.fixture
    def crew(self, tmp_path: Path) -> Iterator[Crew]:
        crew = Crew(None, tmp_path)
        yield crew
        crew.close()


class TestOnRabbitMQ(Journey):
    @pytest.fixture
    def crew(self, broker: LocalRabbitMQ, tmp_path: Path) -> Iterator[Crew]:
        crew = Crew(broker.url, tmp_path)
        yield crew
        crew.close()
