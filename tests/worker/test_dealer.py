"""Fair shares on the broker in memory: who begins when, whatever comes and goes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.worker.worlds import NAMES, QUEUE, SOON_S, World
from tq_broker import activity
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import ActivityError, ApplicationError, InvalidArgument
from tq_broker.model import envelope, moves
from tq_broker.model.message import Message
from tq_broker.model.moves import Moves
from tq_broker.model.names import Kind
from tq_broker.model.tasks import ActivityTask
from tq_broker.worker import Worker, dealer, lead

FAIR = NAMES.fair(QUEUE)
LANES = NAMES.lanes(FAIR)
DEALERS = NAMES.queue(Kind.DEALERS, "activity", "q")
SOON = RetryPolicy(initial_interval=timedelta(milliseconds=1), maximum_attempts=3)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def small_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lanes come into play with few tasks."""
    monkeypatch.setattr(dealer, "IN_HAND_MAX", 20)
    monkeypatch.setattr(dealer, "KEEP", 15)
    monkeypatch.setattr(dealer, "SHORT", 5)
    monkeypatch.setattr(dealer, "PREFETCH", 30)
    monkeypatch.setattr(lead, "LEAD_MAX", 4)


class Line:
    """Activities that say in which order they begin, while the first one holds the slot."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.keys: list[str | None] = []
        self.free = threading.Event()

    @activity.defn(name="hold")
    def hold(self) -> None:
        self.free.wait(SOON_S)

    @activity.defn(name="note")
    def note(self, key: Any) -> None:
        self.begun.append(key)
        self.keys.append(activity.info().fairness_key)

    @activity.defn(name="fail_once", fairness_key="decorated")
    def fail_once(self) -> str | None:
        if activity.info().attempt == 1:
            raise ApplicationError("again")
        return activity.info().fairness_key

    def worker(self, world: World, **options: Any) -> Worker:
        worker = world.worker(
            self.hold, self.note, self.fail_once, max_concurrent_activities=1, **options
        )
        world.start("hold")
        world.eventually(lambda: worker.running == 1)
        return worker


def put(world: World, key: str, count: int, **options: Any) -> list[Any]:
    calls = [(key,)] * count
    minute = timedelta(minutes=1)
    return list(
        world.client.start_activities(
            "note",
            calls,
            task_queue="q",
            start_to_close_timeout=minute,
            fairness_key=key,
            **options,
        )
    )


def seen(world: World) -> None:
    """Wait until the dealer has seen all that waits."""
    world.eventually(lambda: world.count(FAIR) == 0)
    for _ in range(5):
        world.broker.wait_quiet(world.soon())
        threading.Event().wait(0.02)


def finish(line: Line, handles: list[Any]) -> None:
    line.free.set()
    for handle in handles:
        handle.result(SOON_S)


def test_a_task_queue_without_keys_has_no_dealer(world: World) -> None:
    line = Line()
    worker = world.worker(line.note)
    world.run("note", "a")
    assert world.broker.stats(str(DEALERS), world.soon()) is None
    assert worker.info().dealing == {}
    assert not any(thread.name == "tq-dealer" for thread in threading.enumerate())


def test_a_flood_does_not_delay_few(world: World) -> None:
    line = Line()
    worker = line.worker(world)
    handles = put(world, "flood", 100) + put(world, "few", 5)
    seen(world)
    (hand,) = worker.info().dealing.values()
    assert 90 < hand <= 105
    (told,) = world.client.list_task_queues()
    assert (told.backlog, told.fair) == (105, True)
    finish(line, handles)
    assert max(n for n, key in enumerate(line.begun) if key == "few") <= 2 + 2 * 5
    assert line.keys == line.begun


def test_far_more_than_is_in_hand_is_shared(world: World, small_hand: None) -> None:
    line = Line()
    worker = line.worker(world)
    handles = put(world, "flood", 300)
    handles += put(world, "heavy", 200, fairness_weight=3.0)
    handles += put(world, "few", 5)
    seen(world)
    assert worker.info().dealing["q"] <= 20
    assert sum(world.count(lane) for lane in LANES) > 400
    (told,) = world.client.list_task_queues()
    assert told.backlog == 505
    finish(line, handles)
    assert Counter(line.begun) == {"flood": 300, "heavy": 200, "few": 5}
    first = Counter(line.begun[:100])
    assert abs(first["heavy"] - 3 * first["flood"]) <= 8
    assert max(n for n, key in enumerate(line.begun) if key == "few") <= 50
    world.eventually(lambda: not any(world.count(lane) for lane in LANES))


def test_what_waits_in_plain_queues_is_dealt_as_well(world: World) -> None:
    line = Line()
    line.worker(world)
    task = ActivityTask(
        activity_id="by hand",
        activity_type="note",
        task_queue="q",
        body=msgspec.json.encode({"args": ["by hand"]}),
        start_to_close_ms=60_000,
    )
    handles = [world.start("note", "no key") for _ in range(30)]
    handles += put(world, "a", 10)
    world.publish(envelope.task_message(task))
    seen(world)
    finish(line, handles)
    world.eventually(lambda: "by hand" in line.begun)
    last = max(n for n, key in enumerate(line.begun) if key == "a")
    assert last <= 24


def test_priorities_come_first(world: World) -> None:
    line = Line()
    line.worker(world)
    handles = put(world, "a", 50, priority=5)
    seen(world)
    handles += put(world, "b", 5, priority=1)
    seen(world)
    finish(line, handles)
    # But for what was dealt before they came, while the dealer looked how many it may deal
    assert line.begun[:2] == ["b"] * 2
    assert set(line.begun[7:]) == {"a"}


def test_retries_keep_the_key_and_get_their_share(world: World) -> None:
    line = Line()
    line.worker(world)
    handles = put(world, "flood", 100)
    failing = world.start(line.fail_once, retry_policy=SOON)
    line.free.set()
    assert failing.result(SOON_S) == "decorated"
    for handle in handles:
        handle.result(SOON_S)


def test_weights_of_the_settings_log_count_more_than_what_tasks_say(world: World) -> None:
    line = Line()
    worker = line.worker(world)
    world.client.set_fairness_weights("q", {"a": 4.0, "b": 1.0}, reason="paid for")
    told = world.client.fairness("q")
    assert {one.key: one.weight for one in told.weights["activity"]} == {"a": 4.0, "b": 1.0}
    world.client.set_fairness_weights("q", {"b": None}, side="activity")
    world.client.set_fairness_weights("q", {"b": 2.0}, side="activity")
    log = worker._settings
    world.eventually(lambda: log.fairness_weight(QUEUE, "b") == 2.0)
    handles = put(world, "a", 60, fairness_weight=0.001) + put(world, "b", 60)
    seen(world)
    finish(line, handles)
    assert world.client.fairness("q").sides == ("activity",)
    first = Counter(line.begun[:60])
    assert abs(first["a"] - 2 * first["b"]) <= 6


def test_a_worker_that_leaves_hands_its_dealing_on(world: World, small_hand: None) -> None:
    line = Line()
    first = line.worker(world)
    handles = put(world, "flood", 200, retry_policy=RetryPolicy(maximum_attempts=1))
    seen(world)
    second = world.worker(line.note, max_concurrent_activities=1)
    line.free.set()
    first.stop()
    world.eventually(lambda: bool(second.info().dealing))
    few = put(world, "few", 3)
    for handle in few + handles:
        handle.result(SOON_S)
    assert Counter(line.begun) == {"flood": 200, "few": 3}


def test_a_dealer_that_is_killed_loses_and_doubles_nothing(world: World, small_hand: None) -> None:
    line = Line()
    first = line.worker(world)
    handles = put(world, "flood", 150, retry_policy=SOON)
    seen(world)
    world.kill(first)
    line.free.set()
    world.worker(line.note, line.hold, max_concurrent_activities=1)
    for handle in handles + put(world, "few", 3):
        handle.result(SOON_S)
    assert Counter(line.begun) == {"flood": 150, "few": 3}
    # What was told of before is forgotten in the end: only the baton stays
    world.eventually(lambda: world.count(DEALERS) == 0)


def test_what_was_being_dealt_when_a_dealer_died_is_a_lost_attempt(world: World) -> None:
    line = Line()
    task = ActivityTask(
        activity_id="x",
        activity_type="note",
        task_queue="q",
        body=msgspec.json.encode({"args": ["x"]}),
        start_to_close_ms=60_000,
        retry_policy=SOON,
        fairness_key="a",
    )
    message = envelope.task_message(task)
    world.publish(message, FAIR)
    taken = world.broker.get(str(FAIR), world.soon())
    assert taken is not None
    taken.reject(requeue=True)
    world.publish(moves.message(Moves("m", 1, dealt={moves.mark(message): ""})), DEALERS)
    attempts = []

    @activity.defn(name="note")
    def note(key: str) -> None:
        attempts.append(activity.info().attempt)

    world.worker(note)
    world.eventually(lambda: bool(attempts))
    assert attempts == [2]
    line.free.set()


def test_foreign_messages_do_not_stop_it(world: World) -> None:
    line = Line()
    world.worker(line.note)
    put(world, "a", 1)[0].result(SOON_S)
    foreign = Message(body=b"[", message_id="x", kind=moves.MOVES, headers={})
    world.publish(foreign, DEALERS)
    task = {"tq-protocol": 1, "tq-activity-type": "note", "tq-fairness-key": "bad\n"}
    world.publish(Message(body=b"{}", message_id="y", kind="activity-task", headers=task), FAIR)
    parked = world.take_parked()
    assert "header tq-fairness-key: it is 'bad" in parked.message.headers["tq-parked-reason"]
    put(world, "a", 1)[0].result(SOON_S)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"fairness_key": "k" * 65}, "fairness_key has 65 bytes; it must be a text of 1 to 64"),
        ({"fairness_key": ""}, "fairness_key has 0 bytes"),
        ({"fairness_key": "é" * 33}, "fairness_key has 66 bytes"),
        ({"fairness_key": "a\nb"}, "without control or invisible characters"),
        ({"fairness_key": "\ud800"}, "without control or invisible characters"),
        ({"fairness_key": 1}, "fairness_key is 1; it must be a text"),
        ({"fairness_weight": 0}, "fairness_weight is 0; it must be a number from 0.001 to 1000"),
        ({"fairness_weight": -1.0}, "fairness_weight is -1.0"),
        ({"fairness_weight": float("nan")}, "fairness_weight is nan"),
        ({"fairness_weight": float("inf")}, "fairness_weight is inf"),
        ({"fairness_weight": 1000.1}, "fairness_weight is 1000.1"),
        ({"fairness_weight": True}, "fairness_weight is True"),
        ({"fairness_weight": "2"}, "fairness_weight is '2'"),
    ],
)
def test_bad_input_is_refused(world: World, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        world.start("note", 1, **options)
    assert why in str(caught.value)


def test_idle_queues_are_removed_and_come_back(world: World) -> None:
    line = Line()
    worker = world.worker(line.note)
    put(world, "a", 3)[0].result(SOON_S)
    worker.stop()
    operations = world.client.operations
    world.eventually(lambda: operations.reclaim(["q"], grace_s=0) == ["q"])
    assert world.broker.stats(str(FAIR), world.soon()) is None
    assert operations.settings().fair == frozenset()
    assert operations.settings().prioritized == frozenset()
    handles = put(world, "a", 3)
    world.worker(line.note)
    for handle in handles:
        handle.result(SOON_S)


def test_what_waits_is_not_removed(world: World) -> None:
    handles = put(world, "a", 1)
    assert world.client.operations.reclaim(["q"], grace_s=0) == []
    line = Line()
    world.worker(line.note)
    handles[0].result(SOON_S)


def test_an_activity_that_fails_tells_its_caller(world: World) -> None:
    line = Line()
    world.worker(line.fail_once)
    handle = world.start(line.fail_once, retry_policy=RetryPolicy(maximum_attempts=1))
    with pytest.raises(ActivityError):
        handle.result(SOON_S)


def test_all_that_waits_is_purged_and_moved_under_the_hands_of_the_dealer(
    world: World, small_hand: None
) -> None:
    line = Line()
    worker = line.worker(world)
    put(world, "a", 60)
    seen(world)
    assert worker.info().dealing["q"] > 10
    moved = world.client.move_tasks("q", "r", create=True)
    assert moved.done == 60
    assert world.client.purge_task_queue("r") == 60
    put(world, "a", 60)
    seen(world)
    assert world.client.purge_task_queue("q") == 60
    handles = put(world, "b", 3)
    finish(line, handles)
    assert line.begun == ["b"] * 3


def test_a_lane_that_seemed_to_be_empty_is_looked_at_again(
    world: World, small_hand: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ's count of a quorum queue is zero at times."""
    monkeypatch.setattr(dealer, "CHECK_EVERY_S", 0.1)
    line = Line()
    worker = line.worker(world)
    broker = world.broker_of_worker(worker)
    counts, lies = broker.stats, [True]

    def stats(queue: str, deadline: float) -> Any:
        found = counts(queue, deadline)
        return None if ".lane." in queue and lies else found

    monkeypatch.setattr(broker, "stats", stats)
    handles = put(world, "a", 60)
    seen(world)
    line.free.set()
    world.eventually(lambda: len(line.begun) >= 10 and not worker.info().dealing["q"])
    lies.clear()
    finish(line, handles)
