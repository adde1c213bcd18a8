"""What the lane makes of letters that cannot be taken, and of a store that fails."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest

from tests.history.test_service import (
    ACTIVITY,
    DONE,
    ONCE,
    events_of,
    names_of,
    pending,
    result_of,
)
from tests.history.worlds import (
    NAMES,
    Faulty,
    World,
    conflict,
    lost_after,
    lost_before,
    unavailable,
)
from tq_broker.history import machine
from tq_broker.history.lane import READERS
from tq_broker.model import requests
from tq_broker.model.commands import StartTimer
from tq_broker.model.events import WorkflowExecutionSignaled
from tq_broker.model.requests import (
    CountWorkflows,
    Describe,
    Description,
    Listing,
    ListWorkflows,
    SignalWorkflow,
    Started,
    Status,
    shard_of,
)
from tq_broker.model.tasks import Status as ActivityStatus
from tq_broker.stores.store import Batch, Fenced
from tq_broker.testing.manual_clock import ManualClock


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def timed() -> Iterator[World]:
    """A world whose time passes only when it is told to."""
    world = World(ManualClock())
    yield world
    world.close()


# --- letters --------------------------------------------------------------------------------------


def test_a_letter_that_the_machine_cannot_take_is_found_and_parked(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handle = machine.handle

    def raises(run: Any, message: Any, *others: Any) -> Any:
        if isinstance(message, SignalWorkflow) and message.signal_name == "poison":
            raise ZeroDivisionError("poisoned")
        return handle(run, message, *others)

    monkeypatch.setattr(machine, "handle", raises)
    world.service()
    world.start()
    with caplog.at_level(logging.CRITICAL):
        for name in ("a", "poison", "b", "c"):
            signal = SignalWorkflow(workflow_id="w", signal_name=name)
            world.request(signal, message_id=name)
        parked = world.take_parked()
    assert parked.message_id == "poison"
    assert "ZeroDivisionError" in str(parked.headers["tq-parked-reason"])
    world.complete(world.workflow_task())
    task = world.workflow_task()
    signals = [e.signal_name for e in task.events if isinstance(e, WorkflowExecutionSignaled)]
    assert sorted(signals) == ["a", "b", "c"]


def test_a_run_that_cannot_be_woken_does_not_stop_the_others(
    timed: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tick = machine.tick

    def raises(run: Any, now_ms: int, *more: Any) -> Any:
        if run.workflow_id == "poison":
            raise ZeroDivisionError("poisoned")
        return tick(run, now_ms, *more)

    monkeypatch.setattr(machine, "tick", raises)
    timed.service()
    timer = StartTimer(timer_id="t", start_to_fire_ms=1_000)
    with caplog.at_level(logging.CRITICAL):
        for name in ("poison", "w"):
            timed.start(name)
            timed.complete(timed.workflow_task(), timer)
        assert timed.workflow_task().run.workflow_id == "w"


def test_a_history_that_grows_long_is_told_once(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "WARN_EVENTS", 5)
    world.service()
    world.start()
    for number in range(8):
        world.ask(SignalWorkflow(workflow_id="w", signal_name=str(number)))
        if number == 3:
            world.complete(world.workflow_task())
    world.ask(Describe(workflow_id="w"))
    told = [message for message in caplog.messages if "it should continue as new" in message]
    assert len(told) == 1
    assert "workflow 'w' has a history of" in told[0]
    assert f"terminated at {machine.EVENTS_MAX} and {machine.BYTES_MAX}" in told[0]


def test_run_ids_sort_by_the_time_of_the_start(world: World) -> None:
    world.service()
    started = [uuid.UUID(world.start(f"w{number}").run_id) for number in range(3)]
    assert {one.version for one in started} == {7}
    assert [one.int >> 80 for one in started] == sorted(one.int >> 80 for one in started)


def test_more_than_fits_in_memory(world: World) -> None:
    world.service(max_cached_runs=2)
    for number in range(6):
        world.start(f"w{number}")
    tasks = [world.workflow_task() for _ in range(6)]
    for task in tasks:
        world.complete(task, DONE)
    for number in range(6):
        assert result_of(world, f"w{number}").status is Status.COMPLETED


def test_a_question_that_the_store_cannot_answer_is_parked(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Faulty):
        def list(self, *_arguments: Any) -> Any:
            raise ZeroDivisionError("broken")

    world.service(Broken(world.store()))
    with caplog.at_level(logging.CRITICAL):
        world.request(ListWorkflows())
        assert "ZeroDivisionError" in str(world.take_parked().headers["tq-parked-reason"])
    assert isinstance(world.start(), Started)


def test_a_defect_of_the_lane_itself_does_not_end_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Faulty):
        def due(self, *arguments: Any) -> Any:
            if self.faults:
                self.faults.clear()
                raise ZeroDivisionError("broken")
            return self._store.due(*arguments)

    store = Broken(world.store())
    store.faults.append(unavailable)
    with caplog.at_level(logging.CRITICAL):
        service = world.service(store)
        world.eventually(lambda: len(service.shards) == 16)
    assert isinstance(world.start(), Started)


def test_what_came_before_a_defect_comes_again(
    timed: World, caplog: pytest.LogCaptureFixture
) -> None:
    shard = shard_of("w")

    class Broken(Faulty):
        def commit(self, batch: Batch) -> None:
            if batch.inbox and fenced:
                raise fenced.pop()
            super().commit(batch)

        def acquire(self, shards: Collection[int], *others: Any) -> Any:
            if broken and set(shards) == {shard}:
                raise broken.pop()
            return self._store.acquire(shards, *others)

    fenced, broken = [Fenced([shard])], [ZeroDivisionError("broken")]
    with caplog.at_level(logging.CRITICAL):
        timed.service(Broken(timed.store()))
        assert isinstance(timed.start(), Started)
    assert not broken


def test_who_has_no_thread_to_read_with_reads_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = threading.Thread.start
    refused = [RuntimeError("can't start new thread")]
    reads: list[None] = []

    class Counting(Faulty):
        def list(self, *arguments: Any) -> Any:
            reads.append(None)
            return self._store.list(*arguments)

    def start_later(thread: threading.Thread) -> None:
        if refused and thread.name.startswith("tq-history-read"):
            raise refused.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_later)
    world.service(Counting(world.store()))
    assert isinstance(world.ask(ListWorkflows()), Listing)
    assert "can't start new thread" in caplog.text
    assert isinstance(world.ask(ListWorkflows()), Listing)
    # The first thread has found the first question too, which was answered before.
    world.eventually(lambda: len(reads) == 3)
    assert isinstance(world.ask(ListWorkflows()), Listing)
    assert world.replies.empty()


def test_questions_that_are_not_answered_at_a_stop_are_another_s(world: World) -> None:
    asked, answering = threading.Semaphore(0), threading.Event()

    class Slow(Faulty):
        def list(self, *arguments: Any) -> Any:
            asked.release()
            answering.wait(20)
            return self._store.list(*arguments)

    service = world.service(Slow(world.store()))
    for _ in range(READERS + 1):
        world.request(ListWorkflows())
    for _ in range(READERS):
        assert asked.acquire(timeout=20)
    world.eventually(lambda: not world.count(NAMES.history(0)))
    service.stop()
    answering.set()
    world.service()
    world.eventually(lambda: world.replies.qsize() == READERS + 1)


# --- the store -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faults",
    [
        [unavailable, unavailable],
        [lost_before],
        [lost_after],
        [lost_after, lost_before, unavailable],
        [conflict],
        [conflict, conflict],
    ],
    ids=lambda faults: "-".join(fault.__name__ for fault in faults),
)
def test_whatever_the_store_does_each_thing_happens_once(
    world: World, faults: list[Callable[[Callable[[], None]], None]]
) -> None:
    store = Faulty(world.store())

    def fail_again() -> None:
        world.eventually(lambda: not store.faults)
        store.faults += faults

    world.service(store)
    fail_again()
    started = world.start()
    assert isinstance(started, Started)
    task = world.workflow_task()
    assert task.run.run_id == started.run_id
    fail_again()
    world.complete(task, ACTIVITY)
    activity = world.activity_task()
    fail_again()
    world.report(activity, result=b"7")
    task = world.workflow_task()
    fail_again()
    world.complete(task, DONE)
    assert result_of(world).result == b"8"
    world.eventually(lambda: not store.faults)
    assert names_of(events_of(world)).count("ActivityTaskCompleted") == 1
    assert isinstance(world.ask(Describe(workflow_id="w")), Description)


def test_a_store_that_is_away_stops_the_service_and_not_for_good(world: World) -> None:
    store = Faulty(world.store())
    world.service(store)
    world.start("before")
    away = True

    def gone(commit: Callable[[], None]) -> None:
        if away:
            store.faults.append(gone)
            unavailable(commit)
        commit()

    store.faults.append(gone)
    world.request(requests.StartWorkflow(workflow_id="w", workflow_type="T", task_queue="q"))
    tries = store.commits
    world.eventually(lambda: store.commits > tries + 2)
    away = False
    assert isinstance(world.ask(Describe(workflow_id="before")), Description)
    world.eventually(lambda: world.ask(CountWorkflows()).count == 2)


def test_what_was_reported_while_the_store_was_away_counts(timed: World) -> None:
    clock, store = timed.clock, Faulty(timed.store())
    assert isinstance(clock, ManualClock)
    timed.service(store, prefetch=1)
    timed.start()
    timed.complete(timed.workflow_task(), timed.changed(ACTIVITY, **ONCE, heartbeat_ms=30_000))
    activity = timed.activity_task()
    timed.report(activity, ActivityStatus.STARTED)
    timed.eventually(lambda: pending(timed).state == "started")
    store.faults += [unavailable] * 1000
    timed.request(SignalWorkflow(workflow_id="w", signal_name="s"))
    timed.eventually(lambda: len(store.faults) < 1000)
    timed.report(activity, ActivityStatus.HEARTBEAT)
    timed.report(activity, result=b"7")
    clock.advance(40)
    del store.faults[:]
    while "ActivityTaskCompleted" not in names_of(events_of(timed)):
        assert "ActivityTaskTimedOut" not in names_of(events_of(timed))
        timed.complete(timed.workflow_task())


def test_what_waits_for_a_store_is_another_s_after_a_stop(world: World) -> None:
    store = Faulty(world.store())
    service = world.service(store)
    store.faults += [unavailable] * 1000
    world.request(requests.StartWorkflow(workflow_id="w", workflow_type="T", task_queue="q"))
    world.eventually(lambda: len(store.faults) < 1000)
    service.stop()
    world.service()
    assert world.workflow_task().run.workflow_id == "w"
