"""Who writes snapshots of the settings, and when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from tq_broker.clock import SystemClock
from tq_broker.exceptions import Malformed, PayloadTooLarge
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, Names
from tq_broker.model.playback import SNAPSHOT_EVERY_BYTES
from tq_broker.model.settings import (
    BEFORE_ALL,
    ActivityCanceled,
    Record,
    SettingsSnapshot,
    TaskQueuePaused,
    read_record,
)
from tq_broker.model.snapshot import State
from tq_broker.queues import settings_keeper
from tq_broker.queues.broker import Delivery, QueueStats, SubscribeOptions
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.sender import Done, Sender
from tq_broker.queues.settings_keeper import EMPTY_S, GIVE_UP_S, JITTER_S, RETRY_S, SettingsKeeper
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.topology import DeclareQueue, DeleteQueue, Plan, namespace, settings_log
from tq_broker.testing.manual_clock import ManualClock

NAMES = Names("n")
QUEUE = str(NAMES.queue(Kind.SETTINGS))
SOON_S = 20.0
BULKY = "x" * (SNAPSHOT_EVERY_BYTES // 100)


class World:
    """A server with the settings log, who writes into it, and followers with keepers."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer()
        self.brokers: list[MemoryBroker] = []
        self.senders: list[Sender] = []
        self.sender = self.make_sender()
        self.plain = SettingsLog(self.sender.broker, NAMES, self.clock)
        self.snapshots: list[SettingsSnapshot] = []

    def make_sender(self) -> Sender:
        broker = MemoryBroker(self.server, self.clock)
        self.brokers.append(broker)
        self.senders.append(Sender(broker, NAMES, self.clock, identity="me"))
        return self.senders[-1]

    def soon(self) -> float:
        return self.clock.monotonic() + 1000

    def append(self, *records: Record) -> None:
        for record in records:
            ended: Future[object] = Future()
            self.sender.append(record, self.soon(), ended.set_result)
            assert ended.result(SOON_S) is None

    def fill(self) -> None:
        self.append(*[ActivityCanceled("nobody", 1, reason=BULKY)] * 101)

    def follow(self, jitter: float = 0.5, by: str = "k") -> tuple[SettingsLog, SettingsKeeper]:
        sender = self.make_sender()
        log = SettingsLog(sender.broker, NAMES, self.clock)
        keeper = SettingsKeeper(sender, log, by, jitter)
        keeper.start()
        sender.broker.wait_subscribed([log.follow()], self.soon())
        return log, keeper

    def watch(self) -> None:
        """Note all snapshots of the log."""

        def on_deliveries(deliveries: list[Delivery]) -> None:
            for delivery in deliveries:
                try:
                    record = read_record(delivery.message)
                finally:
                    delivery.ack()
                if isinstance(record, SettingsSnapshot):
                    self.snapshots.append(record)

        options = SubscribeOptions(
            prefetch=500,
            arguments={"x-stream-offset": "first"},
            plan=namespace(NAMES) + settings_log(NAMES),
        )
        broker = self.sender.broker
        wish = broker.subscribe(QUEUE, on_deliveries, options)  # type: ignore[arg-type]
        broker.wait_subscribed([wish], self.soon())

    def newcomer(self) -> SettingsLog:
        log = SettingsLog(self.sender.broker, NAMES, self.clock)
        self.sender.broker.wait_subscribed([log.follow()], self.soon())
        stats = self.sender.broker.stats(QUEUE, self.soon())
        assert stats is not None
        assert log.wait_read(stats.ready, self.soon())
        return log

    def advance(self, seconds: float) -> None:
        """Let time pass, and what is done then be done."""
        self.clock.advance(seconds)
        for broker in self.brokers:
            broker.wait_quiet(self.soon())

    def close(self) -> None:
        for sender in self.senders:
            sender.close()
        for broker in self.brokers:
            broker.close(self.soon())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # Whoever lets time pass waits for what is done then.
    monkeypatch.setattr(Sender, "in_background", lambda _, work: work())
    world = World()
    yield world
    world.close()


def wait_until(is_so: Callable[[], object]) -> None:
    clock, pause = SystemClock(), threading.Event()
    deadline = clock.monotonic() + SOON_S
    while not is_so():
        assert clock.monotonic() < deadline
        pause.wait(0.005)


def pauses(log: SettingsLog) -> list[str]:
    return sorted(task_queue for _, task_queue in log.pauses())


def paused(task_queue: str) -> TaskQueuePaused:
    return TaskQueuePaused(task_queue, 1, side="activity")


def test_one_that_is_due_is_written_by_one(world: World) -> None:
    world.watch()
    early, _ = world.follow(jitter=0.25, by="early")
    late, _ = world.follow(jitter=0.75, by="late")
    world.append(paused("a"))
    world.fill()
    wait_until(lambda: early.is_snapshot_due and late.is_snapshot_due)
    world.advance(JITTER_S * 0.25 - 0.01)
    assert not world.snapshots
    world.advance(0.02)
    wait_until(lambda: not early.is_snapshot_due and not late.is_snapshot_due)
    world.advance(100.0)
    assert [one.by for one in world.snapshots] == ["early"]
    assert world.snapshots[0].at_ms > 1
    assert not early.fault


def test_who_comes_after_the_beginning_was_dropped_knows_what_was_in_it(world: World) -> None:
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 3 * SNAPSHOT_EVERY_BYTES // 2}
    plan = Plan((DeclareQueue(QUEUE, arguments),))
    world.sender.broker.apply(namespace(NAMES) + plan, world.soon())
    log, _ = world.follow()
    world.append(paused("a"))
    for _ in range(3):
        world.fill()
        wait_until(lambda: log.is_snapshot_due)
        world.advance(JITTER_S + RETRY_S)
        wait_until(lambda: not log.is_snapshot_due)
    newcomer = world.newcomer()
    assert pauses(newcomer) == ["a"]
    assert newcomer.is_whole
    assert not newcomer.fault


def test_who_could_not_read_all_lets_others_go_first(world: World) -> None:
    world.watch()
    log, _ = world.follow(jitter=0.0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tq_broker.queues.settings_log.read_record", _unreadable)
        world.append(paused("a"))
        wait_until(lambda: log.skipped)
    world.fill()
    wait_until(lambda: log.is_snapshot_due)
    world.advance(settings_keeper.UNSURE_S - 0.01)
    assert log.is_snapshot_due
    world.advance(0.02)
    wait_until(lambda: world.snapshots)


def _unreadable(message: Message) -> Record:
    raise Malformed("of a newer program")


def test_one_that_could_not_be_written_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log, _ = world.follow(jitter=0.0)
    append, refused = Sender.append, threading.Event()

    def refuse(self: Sender, record: Record, deadline: float, done: Done) -> None:
        done(PayloadTooLarge("no room"))
        refused.set()

    world.fill()
    wait_until(lambda: log.is_snapshot_due)
    monkeypatch.setattr(Sender, "append", refuse)
    world.advance(0.01)
    assert refused.wait(SOON_S)
    monkeypatch.setattr(Sender, "append", append)
    assert "the snapshot was not written, trying again: no room" in caplog.text

    def is_written() -> bool:
        world.advance(RETRY_S)
        return not log.is_snapshot_due

    wait_until(is_written)


def test_one_that_is_too_large_is_said_to_be(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[State] = []

    def refuse(state: State) -> bytes:
        tries.append(state)
        raise PayloadTooLarge("it is so large")

    log, _ = world.follow(jitter=0.0)
    world.fill()
    wait_until(lambda: log.is_snapshot_due)
    with monkeypatch.context() as patched:
        patched.setattr(settings_keeper, "pack", refuse)
        world.advance(0.01)
        wait_until(lambda: log.keeping_fault)
        assert log.fault == "it is so large; old settings will be forgotten"
        assert "settings log: it is so large" in caplog.text
        world.append(paused("a"))
        wait_until(lambda: pauses(log))
        world.advance(RETRY_S * 2)
        assert len(tries) == 1, "it is not tried with each record"

    def is_written() -> bool:
        world.advance(settings_keeper.TOO_LARGE_S)
        return not log.is_snapshot_due

    wait_until(is_written)
    assert not log.fault


def test_who_is_stopped_writes_nothing(world: World) -> None:
    world.watch()
    log, keeper = world.follow(jitter=0.0)
    world.fill()
    wait_until(lambda: log.is_snapshot_due)
    keeper.stop()
    keeper.stop()
    world.append(paused("a"))
    wait_until(lambda: pauses(log))
    world.advance(100.0)
    assert not world.snapshots


def test_settings_outlive_a_log_that_is_deleted_and_stays_empty(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    log, _ = world.follow()
    world.append(paused("a"))
    wait_until(lambda: pauses(log))
    world.sender.broker.apply(Plan((DeleteQueue(QUEUE),)), world.soon())
    wait_until(lambda: log.is_silent_again)
    world.watch()
    world.advance(EMPTY_S + JITTER_S)
    wait_until(lambda: log.is_snapshot_due or world.snapshots)
    assert pauses(log) == ["a"]

    def is_written() -> object:
        world.advance(RETRY_S)
        return world.snapshots

    wait_until(is_written)
    assert world.snapshots[0].upto == BEFORE_ALL
    assert pauses(world.newcomer()) == ["a"]
    assert "it was deleted; what was in it is written into the new one" in caplog.text


def test_a_lost_connection_is_no_deleted_log(world: World) -> None:
    world.watch()
    log, _ = world.follow()
    world.append(paused("a"))
    wait_until(lambda: pauses(log))
    world.brokers[-1].break_connection()
    world.append(paused("b"))
    wait_until(lambda: pauses(log) == ["a", "b"])
    world.advance(100.0)
    assert not world.snapshots
    assert not log.fault


def test_a_log_that_rabbitmq_counts_records_of_is_not_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _ = world.follow()
    world.append(paused("a"))
    wait_until(lambda: pauses(log))
    world.sender.broker.apply(Plan((DeleteQueue(QUEUE),)), world.soon())
    wait_until(lambda: log.is_silent_again)
    world.watch()
    stats = QueueStats(ready=1, consumers=0)
    monkeypatch.setattr(MemoryBroker, "stats", lambda *_: stats)
    for _ in range(5):
        world.advance(EMPTY_S + JITTER_S)
    assert not world.snapshots


def test_what_nobody_knows_is_given_up_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 200}
    plan = Plan((DeclareQueue(QUEUE, arguments),))
    world.sender.broker.apply(namespace(NAMES) + plan, world.soon())
    world.append(paused("a"), paused("b"), paused("c"), paused("d"))
    world.watch()
    monkeypatch.setattr("tq_broker.queues.settings_log.SILENCE_S", 0.0)
    log, _ = world.follow(jitter=0.0)
    wait_until(lambda: "d" in pauses(log))
    assert not log.is_whole
    world.advance(GIVE_UP_S - 0.1)
    assert not world.snapshots

    def is_written() -> object:
        world.advance(RETRY_S)
        return world.snapshots

    wait_until(is_written)
    assert log.is_whole
    assert world.snapshots[0].lost_ms == 1
