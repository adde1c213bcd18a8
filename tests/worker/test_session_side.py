"""The sessions of a worker, with a history service in memory. On RabbitMQ, and with workers that
die: ``integration/test_affinity_journey.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.worlds import SOON_S
from tq_broker import activity, workflow
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.exceptions import InvalidArgument, SessionFailedError
from tq_broker.model.limits import Limits
from tq_broker.model.parts import Part, PartKind
from tq_broker.model.sessions import SESSION_TYPE
from tq_broker.queues.memory import MemoryBroker
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.worker import Worker

SECOND = timedelta(seconds=1)


@activity.defn(start_to_close_timeout=60 * SECOND)
async def where() -> str:
    return activity.info().worker_id


@workflow.defn
class Hold:
    """Holds a session until it is told to go on; says who had it, and how it ended."""

    def __init__(self) -> None:
        self.goes_on = False
        self.is_open = False

    @workflow.run
    async def run(self, lasts_s: float) -> list[str]:
        try:
            async with workflow.session(execution_timeout=lasts_s * SECOND) as session:
                self.is_open = True
                await workflow.wait_condition(lambda: self.goes_on)
                return [await session.execute_activity(where), session.info.state.value]
        except SessionFailedError as error:
            return [error.message]

    @workflow.signal
    def go_on(self) -> None:
        self.goes_on = True

    @workflow.query
    def has_one(self) -> bool:
        return self.is_open


class Town:
    def __init__(self) -> None:
        self.clock = SystemClock()
        self.system = EmbeddedSystem(self.clock)
        self.system.start()
        self.client = BlockingClient(self.system.core)
        self._closers: list[Callable[[], object]] = [self.system.close]
        self._count = 0
        self.worker("home", activities=(), workflows=[Hold])

    def worker(self, name: str, **options: Any) -> Worker:
        client = BlockingClient.connect(self.system._url)
        given = {"activities": [where], "task_queue": "q", "reclaim_after": None} | options
        worker = Worker(client, worker_id=name, graceful_shutdown_timeout=0 * SECOND, **given)
        worker.broker = client.connection.broker  # type: ignore[attr-defined]
        worker.start()
        self._closers += [client.close, worker.stop]
        return worker

    def start(self, lasts_s: float = 60, **options: Any) -> Any:
        self._count += 1
        return self.client.start_workflow(
            Hold.run, lasts_s, id=f"w{self._count}", task_queue="q", **options
        )

    def eventually(self, is_true: Callable[[], bool]) -> None:
        deadline = self.clock.monotonic() + SOON_S
        while not is_true():
            assert self.clock.monotonic() < deadline, "it does not happen"
            self.clock.sleep(0.002)

    def close(self) -> None:
        for close in reversed(self._closers):
            close()


@pytest.fixture
def town() -> Iterator[Town]:
    town = Town()
    yield town
    town.close()


def open_sessions(worker: Worker) -> int:
    info = worker.info()
    assert info.session_slots
    return info.sessions


def test_a_slot_is_for_one_session_at_a_time(town: Town) -> None:
    worker = town.worker("w1", max_concurrent_sessions=1)
    first = town.start()
    town.eventually(lambda: first.query(Hold.has_one))
    second = town.start()
    town.eventually(lambda: open_sessions(worker) == 1)
    assert not second.query(Hold.has_one)
    for handle in (first, second):
        handle.signal(Hold.go_on)
        assert handle.result(timeout=SOON_S) == ["w1", "open"]
    town.eventually(lambda: open_sessions(worker) == 0)


def test_a_worker_without_a_free_slot_takes_no_session(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = town.worker("w1", max_concurrent_sessions=2)
    given_back: list[Any] = []
    monkeypatch.setattr(worker._reporter, "give_back", lambda *args: given_back.append(args))
    handles = [town.start() for _ in range(8)]
    for _ in range(len(handles) // 2):
        town.eventually(lambda: sum(one.query(Hold.has_one) for one in handles) == 2)
        for handle in [one for one in handles if one.query(Hold.has_one)]:
            handle.signal(Hold.go_on)
            assert handle.result(timeout=SOON_S) == ["w1", "open"]
            handles.remove(handle)
    assert not handles
    assert not given_back


def test_sessions_end_with_a_worker_that_stops(town: Town) -> None:
    worker = town.worker("w1", max_concurrent_sessions=3)
    handles = [town.start() for _ in range(3)]
    town.eventually(lambda: open_sessions(worker) == 3)
    worker.stop()
    for handle in handles:
        [why] = handle.result(timeout=SOON_S)
        assert "has failed" in why
    assert open_sessions(worker) == 0


def test_a_session_ends_with_its_execution_timeout(town: Town) -> None:
    worker = town.worker("w1", max_concurrent_sessions=1)
    handle = town.start(0.5)
    town.eventually(lambda: open_sessions(worker) == 1)
    town.eventually(lambda: open_sessions(worker) == 0)
    [why] = handle.result(timeout=SOON_S)
    assert "its execution timeout is over" in why


def test_a_long_session_is_held_by_fresh_leases(town: Town) -> None:
    worker = town.worker("w1", max_concurrent_sessions=1, lease_after=0.1 * SECOND)
    handle = town.start()
    town.eventually(lambda: open_sessions(worker) == 1)
    assert worker._sessions is not None
    [attempt] = worker._sessions._table.open()
    seen: set[float] = set()

    def is_renewed() -> bool:
        seen.add(attempt.held_since)
        return len(seen) > 3

    town.eventually(is_renewed)
    assert attempt.windowless, "no window of the shared queue counts it"
    handle.signal(Hold.go_on)
    assert handle.result(timeout=SOON_S) == ["w1", "open"]


def test_a_session_that_history_has_given_up_does_not_keep_its_slot(town: Town) -> None:
    """Its worker lives, but was cut off for so long that its lease went to another."""
    worker = town.worker("w1", max_concurrent_sessions=1)
    handle = town.start()
    town.eventually(lambda: handle.query(Hold.has_one))
    assert worker._sessions is not None
    [attempt] = worker._sessions._table.open()
    town.eventually(lambda: attempt.windowless)
    broker = worker.broker  # type: ignore[attr-defined]
    assert isinstance(broker, MemoryBroker)
    broker.break_connection(away_s=2.0)
    town.eventually(lambda: open_sessions(worker) == 0)
    [why] = handle.result(timeout=SOON_S)
    assert "has failed" in why


def test_a_worker_without_activities_has_no_use_for_sessions(town: Town) -> None:
    with pytest.raises(InvalidArgument, match="takes no activities to run in them"):
        Worker(town.client, task_queue="q", workflows=[Hold], max_concurrent_sessions=1)


def test_sessions_begin_whatever_the_priority_of_their_workflow(town: Town) -> None:
    town.worker("w1", max_concurrent_sessions=1)
    for priority in (1, None):
        handle = town.start(priority=priority)
        handle.signal(Hold.go_on)
        assert handle.result(timeout=SOON_S) == ["w1", "open"]


def test_sessions_are_created_on_workers_of_the_current_version(town: Town) -> None:
    for build in ("v1", "v2"):
        town.worker(build, max_concurrent_sessions=1, deployment="shop", build_id=build)
    for current in ("v1", "v2"):
        town.client.operations.deployments.set_current("shop", current)
        for _ in range(3):
            handle = town.start()
            handle.signal(Hold.go_on)
            assert handle.result(timeout=SOON_S) == [current, "open"]


def test_a_version_without_sessions_does_not_follow_one_with_them(town: Town) -> None:
    deployments = town.client.operations.deployments
    town.worker("v1", max_concurrent_sessions=1, deployment="shop", build_id="v1")
    deployments.set_current("shop", "v1")
    town.worker("v2", deployment="shop", build_id="v2")
    with pytest.raises(InvalidArgument, match="does not serve activity task queue 'q__sessions'"):
        deployments.set_current("shop", "v2")


def test_a_limit_of_their_type_does_not_strand_sessions(town: Town) -> None:
    town.worker("w1", max_concurrent_sessions=1)
    part = Part(PartKind.TYPE, SESSION_TYPE)
    limits = Limits(rate=100.0)
    town.client.operations.set_limits("q__sessions", lambda _: limits, part=part)
    handle = town.start()
    handle.signal(Hold.go_on)
    assert handle.result(timeout=SOON_S) == ["w1", "open"]
