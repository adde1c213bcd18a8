"""Journey: workflows that require something, or have a route, and the loss of who may have them.

Embedded and on every RabbitMQ version; there the workers are processes, and ``kill -9`` ends them.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from integration.deployment import RoleProcess
from integration.journey import measured, wait_until
from integration.routed_workflows import WORKFLOWS, Able, Parent, Rounds
from tq_broker.cli import main
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.common import OnGone, Requires, Route
from tq_broker.exceptions import (
    ApplicationError,
    InvalidArgument,
    WorkflowFailureError,
    WorkflowQueryFailedError,
)
from tq_broker.model import events as e
from tq_broker.model.names import Kind
from tq_broker.queues.memory import MemoryBroker
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Worker

S = timedelta(seconds=1)
PATIENCE_S = 60.0
_numbers = itertools.count(1)


class Crew:
    """History, for all tests; workers, on a task queue of each test, come and go.

    The first letter of a worker's name is its host.
    """

    def __init__(self, url: str | None, directory: Path) -> None:
        self.namespace = f"t{secrets.token_hex(4)}"
        self.system = EmbeddedSystem(SystemClock(), url, None, namespace=self.namespace)
        self.system.start()
        self.client = BlockingClient(self.system.core)
        self._is_embedded = url is None
        self._directory = directory
        self._closers: list[Callable[[], object]] = [self.system.close]
        self._deaths: dict[str, Callable[[], object]] = {}
        self.begin()

    def begin(self) -> None:
        """A test begins."""
        self.queue = f"q{next(_numbers)}"
        self._workers: list[Callable[[], object]] = []

    def end(self) -> None:
        """A test has ended: its workers go."""
        for close in reversed(self._workers):
            close()

    def hire(self, *names: str, having: tuple[str, ...] = (), mortal: bool = False) -> None:
        """Workers of these names, all with the same capabilities; only ``mortal`` ones can be
        killed."""
        make = self._process if mortal and not self._is_embedded else self._here
        made = [(name, *make(name, having)) for name in names]
        for name, wait_ready, die in made:
            wait_ready()
            self._deaths[name] = die

    def _here(self, name: str, having: tuple[str, ...]) -> tuple[Callable[[], object], ...]:
        client = BlockingClient.connect(self.system._url, namespace=self.namespace)
        worker = Worker(
            client,
            task_queue=self.queue,
            workflows=WORKFLOWS,
            worker_id=self.id_of(name),
            host=name[0],
            capabilities=having,
            reclaim_after=None,
        )
        self._workers += [client.close, worker.stop]
        worker.start()
        broker = worker._connection.broker

        def die() -> None:
            assert isinstance(broker, MemoryBroker)
            broker.kill()
            worker._until = lambda condition, seconds: True  # type: ignore[method-assign]

        return lambda: None, die

    def _process(self, name: str, having: tuple[str, ...]) -> tuple[Callable[[], object], ...]:
        options = [word for one in having for word in ("--capability", one)]
        command = (
            *("--json", "-l", "INFO", "-b", self.system._url, "--namespace", self.namespace),
            *("-A", "integration.routed_workflows:WORKFLOWS", "worker", "-Q", self.queue),
            *("--host", name[0], "--worker-id", self.id_of(name), *options),
        )
        process = RoleProcess(name, command, {}, self._directory / f"{self.id_of(name)}.log")
        self._workers.append(process.close)
        return process.ready, process.kill

    def kill(self, name: str) -> None:
        """``kill -9``."""
        self._deaths[name]()

    def start(self, run: Any, *args: Any, **options: Any) -> Any:
        id = f"w{next(_numbers)}"
        return self.client.start_workflow(run, args=args, id=id, task_queue=self.queue, **options)

    def gone(self, host: str) -> str:
        """What is told when nobody is there."""
        return f"no living worker serves task queue {self.queue!r} on host {host!r}"

    def id_of(self, name: str) -> str:
        """A worker's id, which no other test has."""
        return f"{name}.{self.queue}"

    def who(self, id: str) -> list[str]:
        """Who has completed the workflow tasks of a run."""
        events = self.client.get_workflow_handle(id).fetch_history().events
        told = [one.worker_id for one in events if isinstance(one, e.WorkflowTaskCompleted)]
        return [worker_id.removesuffix(f".{self.queue}") for worker_id in told]

    def fallbacks(self, id: str) -> set[str]:
        """What the history of a run tells of fallbacks."""
        events = self.client.get_workflow_handle(id).fetch_history().events
        return {one.fell_back for one in events if isinstance(one, e.WorkflowTaskStarted)}

    def begun(self, *handles: Any) -> None:
        """Wait until each of them has been with a worker."""
        for handle in handles:
            wait_until(lambda id=handle.id: self.who(id), f"{handle.id} has begun", PATIENCE_S)

    def cli(self, *arguments: str) -> str:
        command = ["-b", self.system._url, "--namespace", self.namespace, *arguments]
        done = CliRunner().invoke(main.cli, command)
        assert done.exit_code == 0, done.output + done.stderr
        return done.stdout

    def close(self) -> None:
        for close in reversed(self._closers):
            close()


def cause_of(handle: Any) -> ApplicationError:
    with pytest.raises(WorkflowFailureError) as raised:
        handle.result(timeout=PATIENCE_S)
    assert isinstance(raised.value.cause, ApplicationError)
    return raised.value.cause


class Journey:
    """The suite. A subclass has a fixture ``crew``."""

    def test_a_run_is_only_with_those_who_have_all_that_it_requires(self, crew: Crew) -> None:
        crew.hire("plain")
        crew.hire("able", having=("gpu", "ssd"))
        runs = [crew.start(Able.run, 1) for _ in range(10)]
        runs += [crew.start(Rounds.run, 1, requires={"gpu", "ssd"}) for _ in range(5)]
        for handle in runs:
            handle.signal(Rounds.go_on)
            assert handle.result(timeout=PATIENCE_S) == 1
            assert set(crew.who(handle.id)) == {"able"}
        with pytest.raises(InvalidArgument, match="has ever had gup; known there: gpu, ssd"):
            crew.start(Rounds.run, 1, requires={"gup"})

    def test_a_run_waits_for_a_capable_worker_and_that_is_reported(self, crew: Crew) -> None:
        # Given the only capable worker dies with runs in its hands, and more come
        crew.hire("able", having=("gpu",), mortal=True)
        crew.hire("plain")
        runs = [crew.start(Able.run, 2) for _ in range(5)]
        crew.begun(*runs)
        crew.kill("able")
        runs += [crew.start(Able.run, 2) for _ in range(5)]
        for handle in runs:
            handle.signal(Rounds.go_on)

        # Then nobody else gets them, and that is told
        def missed() -> bool:
            found = crew.client.operations.workers(0.3)
            return any(one.unserved_workflows == {crew.queue: {"gpu": 10}} for one in found)

        wait_until(missed, "it is known who misses whom", PATIENCE_S)
        listed = json.loads(crew.cli("--json", "task-queue", "list"))
        mine = [one for one in listed if one["task_queue"] == crew.queue]
        (row,) = [one for one in mine if one["requires"]]
        assert (row["side"], row["requires"], row["backlog"]) == ("workflow", ["gpu"], 10)
        # And who comes later has them
        crew.hire("late", having=("gpu",))
        for handle in runs:
            handle.signal(Rounds.go_on)
            assert handle.result(timeout=PATIENCE_S) == 2
            assert set(crew.who(handle.id)) <= {"able", "late"}

    def test_each_route_has_its_answer_when_its_host_dies_under_load(self, crew: Crew) -> None:
        crew.hire("a1", "a2", mortal=True)
        crew.hire("b1")
        fails, falls, waits = (
            [crew.start(Rounds.run, 3, route=route) for _ in range(8)]
            for route in (
                Route.host("a"),
                Route.host("a", on_gone=OnGone.FALL_BACK),
                Route.host("a", on_gone=OnGone.WAIT, wait=120 * S),
            )
        )
        crew.begun(*fails, *falls, *waits)
        # Its host has another worker
        crew.kill("a1")
        for handle in (*fails, *falls, *waits):
            handle.signal(Rounds.go_on)
        wait_until(
            lambda: all(crew.who(one.id)[-1] == "a2" for one in (*fails, *falls, *waits)),
            "all go on at the other worker",
            PATIENCE_S,
        )
        # Its host has none
        crew.kill("a2")
        for handle in (*fails, *falls, *waits):
            handle.signal(Rounds.go_on)
        for handle in fails:
            cause = cause_of(handle)
            assert (cause.type, cause.message) == ("TargetGone", crew.gone("a"))
        for handle in falls:
            handle.signal(Rounds.go_on)
            assert handle.result(timeout=PATIENCE_S) == 3
            assert crew.who(handle.id)[-1] == "b1"
            assert crew.fallbacks(handle.id) <= {"", crew.gone("a")}
            assert crew.gone("a") in crew.fallbacks(handle.id)
        for handle in (*fails, *waits):
            assert crew.fallbacks(handle.id) == {""}
        assert all(handle.describe().status.name == "RUNNING" for handle in waits)
        crew.hire("a3")
        for handle in waits:
            handle.signal(Rounds.go_on)
            assert handle.result(timeout=PATIENCE_S) == 3
            assert crew.who(handle.id)[-1] == "a3"

    def test_the_loss_of_a_host_is_told_in_time(self, crew: Crew) -> None:
        crew.hire("a1", mortal=True)
        crew.hire("b1")  # workers execute the wills of others
        handle = crew.start(Rounds.run, 1, route=Route.process(crew.id_of("a1")))
        crew.begun(handle)
        crew.kill("a1")
        handle.signal(Rounds.go_on)
        seconds = wait_until(
            lambda: handle.describe().status.name == "FAILED", "it has failed", PATIENCE_S
        )
        measured("s from the kill to the failure of the run", seconds)
        # Also who only asks is answered
        with pytest.raises(WorkflowQueryFailedError, match=r"on process 'a1\."):
            handle.query(Rounds.so_far)

    def test_who_is_not_there_is_missed_at_once_or_for_a_while(self, crew: Crew) -> None:
        crew.hire("b1", having=("gpu",))
        assert cause_of(crew.start(Rounds.run, 0, route=Route.host("z"))).message == crew.gone("z")
        wait = Route.host("z", on_gone=OnGone.WAIT, wait=2 * S)
        assert (
            "and did not within 0:00:02" in cause_of(crew.start(Rounds.run, 0, route=wait)).message
        )
        wish = Requires({"tape"}, on_gone=OnGone.FALL_BACK)
        assert crew.start(Rounds.run, 0, requires=wish).result(timeout=PATIENCE_S) == 0
        # Who falls back from a host still needs what it requires
        fall = Route.host("z", on_gone=OnGone.FALL_BACK)
        handle = crew.start(Rounds.run, 0, route=fall, requires={"gpu"})
        assert handle.result(timeout=PATIENCE_S) == 0
        assert crew.fallbacks(handle.id) == {f"{crew.gone('z')} with gpu"}
        if not crew._is_embedded:
            assert f"fell_back={crew.gone('z')} with gpu" in crew.cli("workflow", "show", handle.id)

    def test_a_continuation_goes_where_its_run_went(self, crew: Crew) -> None:
        crew.hire("a1", "b1")
        for _ in range(3):
            handle = crew.start(Rounds.run, 1, True, route=Route.host("a"))
            handle.signal(Rounds.go_on)
            assert handle.result(timeout=PATIENCE_S) == 0
            assert crew.who(handle.id) == ["a1"]

    def test_children_go_where_the_call_or_their_decorator_says(self, crew: Crew) -> None:
        crew.hire("a1", having=("gpu",))
        crew.hire("b1")
        parent = crew.start(Parent.run, "b", False, route=Route.host("b"))
        assert parent.result(timeout=PATIENCE_S) == "done"
        assert crew.who(f"{parent.id}-able") == ["a1"]  # the parent's route is not handed on
        assert crew.who(f"{parent.id}-there") == ["b1"]
        parent = crew.start(Parent.run, "z", False)
        assert parent.result(timeout=PATIENCE_S) == f"TargetGone: {crew.gone('z')}"
        assert crew.start(Parent.run, "z", True).result(timeout=PATIENCE_S) == "done"

    def test_where_a_workflow_goes_is_told_on_the_command_line(self, crew: Crew) -> None:
        crew.hire("a1", having=("gpu",))
        if not crew._is_embedded:
            way = crew.cli(
                *("route", "explain", "Able", "--kind", "workflow", "--task-queue", crew.queue),
                *("--requires", "gpu", "--route", "host:a", "--on-gone", "fall-back"),
            )
            assert "its route says host 'a'" in way
            assert "it falls back to queue" in way
            assert "workers that answer there:" in way
            assert "none" not in way
        handle = crew.start(Able.run, 1, route=Route.host("a"))
        crew.begun(handle)
        if not crew._is_embedded:
            told = crew.cli("workflow", "describe", handle.id)
            assert "host 'a'" in told
            assert "gpu" in told
        queue = crew.client.core.names.queue(Kind.WORKFLOW, crew.queue)
        stats = crew.client.core.broker.stats(str(queue), crew.client.core.deadline())
        assert stats is None or not stats.ready


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    crew = Crew(None, tmp_path_factory.mktemp("crew"))
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def deployed(broker: LocalRabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    crew = Crew(broker.url, tmp_path_factory.mktemp("crew"))
    yield crew
    crew.close()


class TestEmbedded(Journey):
    @pytest.fixture
    def crew(self, embedded: Crew) -> Iterator[Crew]:
        embedded.begin()
        yield embedded
        embedded.end()


class TestOnRabbitMQ(Journey):
    @pytest.fixture
    def crew(self, deployed: Crew) -> Iterator[Crew]:
        deployed.begin()
        yield deployed
        deployed.end()
