"""Following the settings log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from queue import Queue

import pytest

from tq_broker.clock import SystemClock
from tq_broker.model.limits import Limits, Side
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import (
    ActivityCanceled,
    CapabilitiesDeclared,
    LimitsSet,
    Record,
    SettingsSnapshot,
    TaskQueueDeclared,
    TaskQueueFair,
    TaskQueuePaused,
    TaskQueueReclaimed,
    TaskQueueResumed,
    TrafficRuleSet,
)
from tq_broker.model.snapshot import pack
from tq_broker.queues import settings_log, topology
from tq_broker.queues.broker import QueueStats
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.topology import DeclareQueue, Plan

NAMES = Names("n")
SOON_S = 20.0
clock = SystemClock()


def soon() -> float:
    return clock.monotonic() + SOON_S


class Writer:
    def __init__(self) -> None:
        self.broker = MemoryBroker(MemoryServer(), clock)
        self.sender = Sender(self.broker, NAMES, clock, identity="me")

    def append(self, *records: Record) -> None:
        for record in records:
            ended: Future[object] = Future()
            self.sender.append(record, soon(), ended.set_result)
            assert ended.result(SOON_S) is None

    def put(self, message: Message) -> None:
        log_queue = NAMES.queue(Kind.SETTINGS)
        ended: Future[object] = Future()
        publication = Publication(NAMES.exchange(Exchange.TASKS), log_queue.key, message)
        self.sender.send(publication, (log_queue,), soon(), ended.set_result)
        assert ended.result(SOON_S) is None

    def follower(self, on_record: object = None) -> SettingsLog:
        return SettingsLog(self.broker, NAMES, clock, on_record)  # type: ignore[arg-type]


@pytest.fixture
def writer() -> Iterator[Writer]:
    writer = Writer()
    yield writer
    writer.sender.close()
    writer.broker.close(soon())


def test_a_follower_reads_what_was_and_what_comes(writer: Writer) -> None:
    writer.append(TaskQueueDeclared("a", 1), TaskQueueDeclared("b", 2))
    log = writer.follower()
    log.follow()
    assert log.wait_read(2, soon())
    assert log.task_queues() == {"a": 1, "b": 2}
    writer.append(TaskQueueReclaimed("a", 3))
    assert log.wait_read(3, soon())
    assert log.task_queues() == {"b": 2}


def test_two_followers_have_the_same_state(writer: Writer) -> None:
    logs = [writer.follower(), writer.follower()]
    for log in logs:
        log.follow()
    writer.append(TaskQueueDeclared("a", 1))
    for log in logs:
        assert log.wait_read(1, soon())
        assert log.task_queues() == {"a": 1}


def test_the_callback_comes_after_the_record_counts(writer: Writer) -> None:
    seen: Queue[tuple[Record, bool]] = Queue()
    log = writer.follower(lambda record: seen.put((record, log.is_cancelled("x", 0))))
    log.follow()
    record = ActivityCanceled("x", 7, "me", "not wanted")
    writer.append(record)
    assert seen.get(timeout=SOON_S) == (record, True)


def test_a_cancellation_means_starts_before_it(writer: Writer) -> None:
    log = writer.follower()
    log.follow()
    writer.append(ActivityCanceled("x", 100))
    assert log.wait_read(1, soon())
    assert log.is_cancelled("x", 99)
    assert log.is_cancelled("x", 100)
    assert not log.is_cancelled("x", 101)
    assert not log.is_cancelled("y", 0)


def test_a_record_that_cannot_be_read_is_skipped(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    log = writer.follower()
    log.follow()
    writer.append(TaskQueueDeclared("a", 1))
    with caplog.at_level(logging.WARNING):
        writer.put(Message(body=b"garbage", message_id="1", headers={"tq-protocol": 1}))
        writer.put(Message(body=b"{}", message_id="2"))
        writer.append(TaskQueueDeclared("b", 2))
        assert log.wait_read(4, soon())
    assert log.task_queues() == {"a": 1, "b": 2}
    assert caplog.text.count("settings record skipped, the last settings hold") == 2
    assert log.fault.startswith("2 records skipped, the last one because of: setting of an unknown")


def test_a_log_that_is_not_read_to_its_end_says_so(writer: Writer) -> None:
    log = writer.follower()
    writer.append(TaskQueueDeclared("a", 1))
    assert not log.catch_up(clock.monotonic() + 0.01)
    assert log.fault == "it was not read to its end"
    log.follow()
    assert log.catch_up(soon())
    assert not log.fault


def test_waiting_ends_with_the_deadline(writer: Writer) -> None:
    log = writer.follower()
    log.follow()
    assert not log.wait_read(1, clock.monotonic() + 0.01)


def test_a_follower_that_stopped_keeps_its_state(writer: Writer) -> None:
    log, other = writer.follower(), writer.follower()
    log.follow()
    other.follow()
    writer.append(TaskQueueDeclared("a", 1))
    assert log.wait_read(1, soon())
    log.stop()
    log.stop()
    writer.append(TaskQueueDeclared("b", 2))
    assert other.wait_read(2, soon())
    assert log.task_queues() == {"a": 1}


def test_a_follower_knows_the_limits_and_who_won(writer: Writer) -> None:
    def record(change: str, rate: float, **more: bool) -> LimitsSet:
        return LimitsSet(
            task_queue="q",
            side=Side.ACTIVITY,
            limits=Limits(rate=rate),
            at_ms=1,
            change_id=change,
            **more,  # type: ignore[arg-type]
        )

    follower = writer.follower()
    follower.follow()
    assert follower.limits(Side.ACTIVITY, "q").limits.is_unlimited
    default = record("d", 5.0, is_default=True)
    writer.append(default)
    assert follower.wait_default(default, soon())
    first = record("one", 1.0)
    writer.append(first, record("two", 2.0))
    assert follower.wait_verdict("two", soon()) == first
    assert follower.limits(Side.ACTIVITY, "q").limits == Limits(rate=1.0)
    assert follower.wait_verdict("never", clock.monotonic() + 0.01) is None
    follower.stop()


def test_a_follower_knows_what_is_required_and_what_workers_have(writer: Writer) -> None:
    follower = writer.follower()
    follower.follow()
    writer.append(
        TaskQueueDeclared("a", 1, requires=("ssd",)),
        TaskQueueDeclared("a", 1, requires=("gpu",)),
        CapabilitiesDeclared("a", ("gpu",), 2),
    )
    assert follower.wait_read(3, soon())
    assert follower.capable("a") == [("gpu",), ("ssd",)]
    assert follower.capable("b") == []
    assert set(follower.capable_queues()) == {
        NAMES.capable("a", ["gpu"]),
        NAMES.capable("a", ["ssd"]),
    }
    assert follower.capabilities("a") == {"gpu"}
    assert follower.unknown("a", ("gpu", "ssd")) == ["ssd"]
    assert follower.unknown("b", ("gpu",)) == ["gpu"]


def test_who_was_cut_takes_all_tables_from_a_snapshot(writer: Writer) -> None:
    # Given one who knows all, and a log of which only the end is left
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 1_000}
    plan = Plan((DeclareQueue(str(NAMES.queue(Kind.SETTINGS)), arguments),))
    writer.broker.apply(topology.namespace(NAMES) + plan, soon())
    whole = writer.follower()
    whole.follow()
    rule = TrafficRule(id="r", to_task_queue="there", at_ms=1)
    writer.append(TaskQueueFair("f", 1), TrafficRuleSet(rule), TaskQueuePaused("p", 1))
    assert whole.wait_read(3, soon())
    writer.append(ActivityCanceled("x", 1, reason="x" * 1_000))
    seen: Queue[Record] = Queue()
    cut = writer.follower(seen.put)
    cut.follow()
    assert isinstance(seen.get(timeout=SOON_S), ActivityCanceled)
    assert "its beginning was dropped" in cut.fault
    assert (cut.rules.rules, cut.fair, cut.pauses()) == ((), frozenset(), {})
    # When a snapshot comes
    assert whole.wait_read(4, soon())
    upto, state, _ = whole.snapshot()
    snapshot = SettingsSnapshot(upto=upto, state=pack(state), at_ms=1)
    writer.append(snapshot)
    # Then all is known, and who follows is told
    assert seen.get(timeout=SOON_S) == snapshot
    writer.append(ActivityCanceled("y", 1))
    assert isinstance(seen.get(timeout=SOON_S), ActivityCanceled)
    assert cut.rules.rules == (rule,)
    assert cut.fair == cut.prioritized == {("activity", "f")}
    assert set(cut.pauses()) == {("activity", "p"), ("workflow", "p")}
    assert cut.is_cancelled("x", 0)
    assert not cut.fault


def test_a_log_that_is_read_again_is_not_applied_again(writer: Writer) -> None:
    seen: Queue[Record] = Queue()
    log = writer.follower(seen.put)
    log.follow()
    records = [TaskQueuePaused("q", 1), TaskQueueResumed("q", 2)]
    writer.put(Message(body=b"garbage", message_id="1", headers={"tq-protocol": 1}))
    writer.append(*records)
    assert [seen.get(timeout=SOON_S) for _ in records] == records
    writer.broker.break_connection()
    last = TaskQueueDeclared("a", 3)
    writer.append(last)
    assert log.wait_read(4, soon())
    assert log.catch_up(soon())
    assert seen.get(timeout=SOON_S) == last
    assert seen.empty()
    assert log.skipped == 1


def test_what_is_in_a_snapshot_that_cannot_be_read_is_said(writer: Writer) -> None:
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 300}
    plan = Plan((DeclareQueue(str(NAMES.queue(Kind.SETTINGS)), arguments),))
    writer.broker.apply(topology.namespace(NAMES) + plan, soon())
    records = [ActivityCanceled("x", 1, reason="x" * 300), TaskQueueDeclared("a", 1)]
    writer.append(*records, SettingsSnapshot(upto=1, state=b"torn", at_ms=1))
    log = writer.follower()
    log.follow()
    assert log.wait_read(1, soon())
    assert "1 record skipped, the last one because of: body: zlib" in log.fault


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_log_whose_beginning_is_being_dropped_ends_where_it_is_silent(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, *, is_cut: bool
) -> None:
    monkeypatch.setattr(settings_log, "LONG_SILENCE_S", 0.05)
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 200}
    plan = Plan((DeclareQueue(str(NAMES.queue(Kind.SETTINGS)), arguments),))
    writer.broker.apply(topology.namespace(NAMES) + plan, soon())
    writer.append(*[TaskQueueDeclared("a", 1)] * (9 if is_cut else 1))
    # RabbitMQ counts what is gone
    monkeypatch.setattr(writer.broker, "stats", lambda *_: QueueStats(ready=99, consumers=0))
    log = writer.follower()
    log.follow()
    assert log.wait_read(1, soon())
    assert log.catch_up(clock.monotonic() + (SOON_S if is_cut else 0.2)) is is_cut


def test_a_log_that_cannot_be_read_is_not_silent(writer: Writer) -> None:
    log = writer.follower()
    log.follow()
    writer.append(TaskQueueDeclared("a", 1))
    assert log.wait_read(1, soon())
    writer.broker.break_connection(away_s=SOON_S)
    writer.broker.wait_quiet(soon())
    assert not log.is_silent_again
