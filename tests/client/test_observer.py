from __future__ import annotations

import secrets
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta

import pytest

from tq_broker import activity
from tq_broker.client import BlockingClient
from tq_broker.client.observer import Observer
from tq_broker.client.operations import Operations
from tq_broker.client.settings_book import append
from tq_broker.exceptions import DeadlineExceeded, InvalidArgument
from tq_broker.model.limits import Limits, Side
from tq_broker.model.settings import SettingsSnapshot
from tq_broker.queues import memory
from tq_broker.worker import Worker

QUICK_S = 0.05


@activity.defn(start_to_close_timeout=timedelta(seconds=30))
def work(number: int) -> int:
    return number


@pytest.fixture
def client() -> Iterator[BlockingClient]:
    url = f"memory://observer-{secrets.token_hex(4)}"
    with BlockingClient.connect(url) as connected:
        yield connected
    memory.forget(url)


@pytest.fixture
def observer(client: BlockingClient) -> Iterator[Observer]:
    observer = Observer(client.core)
    yield observer
    observer.close()


def start(client: BlockingClient, task_queue: str, count: int) -> None:
    calls = [(number,) for number in range(count)]
    client.start_activities(work, calls, task_queue=task_queue, wait_result=False)


def test_a_namespace_that_nobody_uses_stays_unused(
    client: BlockingClient, observer: Observer
) -> None:
    assert observer.look(QUICK_S) == []
    assert not Operations(client.core).exists()


def test_looks_follow_what_comes_and_what_is_begun(
    client: BlockingClient, observer: Observer
) -> None:
    start(client, "jobs", 3)
    (told,) = observer.look(QUICK_S)
    assert (told.task_queue, told.side, told.backlog) == ("jobs", Side.ACTIVITY, 3)
    assert (told.workers, told.dispatch_rate, told.oldest_age_s) == (0, 0.0, None)
    with Worker(client, task_queue="jobs", activities=[work], max_concurrent_activities=7):
        assert client.execute_activity(work, 9, task_queue="jobs") == 9
        (told,) = observer.look(QUICK_S)
    assert (told.backlog, told.begun, told.workers, told.slots) == (0, 4, 1, 7)
    assert told.dispatch_rate > 0
    assert told.add_rate > 0
    assert told.last_waited_s is not None
    start(client, "jobs", 2)
    (told,) = observer.look(QUICK_S)
    assert told.oldest_age_s is not None
    assert told.oldest_age_s < 30


def test_only_what_was_asked_for_is_looked_at(client: BlockingClient) -> None:
    for name in ("a", "b"):
        start(client, name, 1)
    observer = Observer(client.core, ["b", "none"])
    assert [one.task_queue for one in observer.look(QUICK_S)] == ["b"]
    observer.close()
    with pytest.raises(InvalidArgument, match="task_queue"):
        Observer(client.core, [""])


def test_limits_and_pauses_are_followed(client: BlockingClient, observer: Observer) -> None:
    start(client, "jobs", 1)
    assert observer.look(QUICK_S)[0].limit.source == "none"
    Operations(client.core).set_limits("jobs", lambda now: Limits(rate=5.0))
    client.pause_task_queue("jobs")
    limit = next(one for one in observer.look(QUICK_S) if one.side is Side.ACTIVITY).limit
    assert (limit.rate, limit.source, limit.is_paused) == (5.0, "setting", True)


def test_what_is_gone_is_not_told(client: BlockingClient, observer: Observer) -> None:
    start(client, "jobs", 1)
    assert observer.look(QUICK_S)
    operations = Operations(client.core)
    operations.purge("jobs")
    assert operations.reclaim(["jobs"], grace_s=0.01) == ["jobs"]
    assert observer.look(QUICK_S) == []


def test_workers_that_cannot_be_asked_in_time_are_no_crash(
    client: BlockingClient, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client, "jobs", 1)
    monkeypatch.setattr(client.core, "ping", lambda wait_s: Future())
    monkeypatch.setattr(client.core, "deadline", client.core.clock.monotonic)
    monkeypatch.setattr(observer, "_follow", lambda deadline: None)
    monkeypatch.setattr(client.core.broker, "stats", lambda queue, deadline: object())
    with pytest.raises(DeadlineExceeded, match="could not be asked in time"):
        observer.look(0.0)


def test_what_is_not_known_of_the_settings_is_told(
    client: BlockingClient, observer: Observer
) -> None:
    start(client, "jobs", 1)
    (told,) = observer.look(QUICK_S)
    assert told.settings_fault == observer.settings_fault == ""
    append(client.core, SettingsSnapshot(upto=10**9, state=b"", at_ms=1))
    deadline = client.core.deadline()
    while not observer.settings_fault:
        assert client.core.clock.monotonic() < deadline
    (told,) = observer.look(QUICK_S)
    assert told.settings_fault.startswith("1 record skipped")
