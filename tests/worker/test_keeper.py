"""The keeper: leases of long attempts, under a clock that is told the time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.worker.attempts import attempt_of, place
from tests.worker.test_table import Delivery, Window
from tests.worker.worlds import NAMES, World
from tq_broker import activity
from tq_broker.converter import DataConverter
from tq_broker.model import envelope
from tq_broker.model.message import Message
from tq_broker.model.names import Kind
from tq_broker.model.tasks import WorkflowOrigin
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.keeper import Keeper
from tq_broker.worker.table import Table
from tq_broker.worker.throttle import Throttle

LEASE = NAMES.queue(Kind.LEASE, "worker-1")


@activity.defn
def work() -> None:
    pass


class Bench:
    def __init__(
        self,
        converter: DataConverter | None = None,
        lease_after: timedelta = timedelta(minutes=10),
        max_heartbeat_throttle_interval: timedelta = timedelta(seconds=60),
        default_heartbeat_throttle_interval: timedelta = timedelta(seconds=30),
    ) -> None:
        self.clock = ManualClock()
        self.world = World(self.clock)
        self.table = Table()
        self.client = self.world.make_client("worker")
        self.broker = self.world.broker_of(self.client)
        connection = self.client.connection
        connection.sender.ensure((), self.world.soon())
        self.place = place(self.clock, converter)
        self.keeper = Keeper(
            self.broker,
            connection.sender,
            NAMES,
            self.place,
            self.table,
            Throttle(default_heartbeat_throttle_interval, max_heartbeat_throttle_interval),
            lease_after.total_seconds(),
        )

    def attempt(self, **fields: Any) -> tuple[Attempt, Delivery, Window]:
        attempt = attempt_of(
            work, at=self.place, on_heartbeat=self.keeper.beat, now=self.clock.monotonic(), **fields
        )
        delivery, window = Delivery(), Window()
        attempt.delivery, attempt.window = delivery, window  # type: ignore[assignment]
        self.table.add(attempt)
        return attempt, delivery, window

    def settle(self) -> None:
        """Until every lease that was sent has come."""
        self.world.eventually(lambda: not self.keeper.under_way)
        self.broker.wait_quiet(self.world.soon())

    def close(self) -> None:
        self.keeper.close()
        self.world.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def lease_of(attempt: Attempt) -> Message:
    return attempt.delivery.message


def test_a_lease_takes_the_place_of_the_delivery(bench: Bench) -> None:
    attempt, delivery, window = bench.attempt()
    bench.keeper.keep(attempt)
    bench.settle()
    assert (delivery.acks, window.released_count) == (1, 1)
    assert attempt.windowless
    assert not attempt.leasing
    task = envelope.read_task(lease_of(attempt), "work")
    assert (task.activity_id, task.attempt, task.lease) == ("a-1", 1, "worker-1")
    assert lease_of(attempt).headers["tq-task-queue"] == "work"


def test_who_wants_to_know_learns_of_it_before_there_is_room_for_another(bench: Bench) -> None:
    attempt, delivery, window = bench.attempt()
    told: list[tuple[int, int, bool]] = []
    bench.keeper.on_exchanged = lambda: told.append(
        (delivery.acks, window.released_count, attempt.windowless)
    )
    bench.keeper.keep(attempt)
    bench.settle()
    assert told == [(0, 0, True)]
    assert delivery.acks == 1


def test_the_lease_carries_the_latest_details(bench: Bench) -> None:
    attempt, _, _ = bench.attempt(heartbeat=[msgspec.Raw(b'"old"')])
    attempt.heartbeat({"page": 7}, 2)
    bench.settle()
    task = envelope.read_task(lease_of(attempt), "work")
    body = envelope.read_task_body(task, bench.place.converter)
    assert [msgspec.json.decode(raw) for raw in body.heartbeat] == [{"page": 7}, 2]


def test_a_lease_without_details_carries_those_of_the_attempt_before(bench: Bench) -> None:
    attempt, _, _ = bench.attempt(heartbeat=[msgspec.Raw(b'"old"')])
    bench.keeper.keep(attempt)
    bench.settle()
    task = envelope.read_task(lease_of(attempt), "work")
    body = envelope.read_task_body(task, bench.place.converter)
    assert body.heartbeat == [msgspec.Raw(b'"old"')]


def test_heartbeats_are_thinned_out_and_the_latest_is_kept_in_the_end(bench: Bench) -> None:
    attempt, _, _ = bench.attempt(heartbeat_ms=10_000)
    attempt.heartbeat(1)
    bench.settle()
    first = attempt.delivery
    attempt.heartbeat(2)
    attempt.heartbeat(3)
    bench.keeper.tick([attempt], bench.clock.monotonic())
    assert bench.keeper.under_way == 0
    bench.clock.advance(8.0)
    bench.keeper.tick([attempt], bench.clock.monotonic())
    bench.settle()
    assert attempt.delivery is not first
    assert attempt.details == attempt.saved == [msgspec.Raw(b"3")]
    bench.clock.advance(20.0)
    bench.keeper.tick([attempt], bench.clock.monotonic())
    assert bench.keeper.under_way == 0, "nothing new to keep"


def test_a_heartbeat_without_details_keeps_nothing(bench: Bench) -> None:
    attempt, _, _ = bench.attempt()
    attempt.heartbeat()
    assert bench.keeper.under_way == 0


def test_details_of_a_workflows_activity_are_not_kept_in_leases(bench: Bench) -> None:
    attempt, _, _ = bench.attempt(workflow=WorkflowOrigin("w", "r", "W", "a", 5))
    bench.keeper.beat(attempt)
    attempt.details = [msgspec.Raw(b"1")]
    bench.keeper.beat(attempt)
    bench.keeper.tick([attempt], bench.clock.monotonic())
    assert bench.keeper.under_way == 0


def test_what_is_held_for_long_is_renewed(bench: Bench) -> None:
    attempt, delivery, _ = bench.attempt()
    bench.clock.advance(599)
    bench.keeper.tick([attempt], bench.clock.monotonic())
    assert bench.keeper.under_way == 0
    bench.clock.advance(1)
    bench.keeper.tick([attempt], bench.clock.monotonic())
    bench.settle()
    assert delivery.acks == 1
    first = attempt.delivery
    bench.clock.advance(600)
    bench.keeper.tick([attempt], bench.clock.monotonic())
    bench.settle()
    assert attempt.delivery is not first


def test_one_lease_at_a_time(bench: Bench) -> None:
    attempt, _, _ = bench.attempt()
    for _ in range(3):
        bench.keeper.keep(attempt)
    bench.settle()
    assert bench.world.count(LEASE) == 0
    bench.broker.break_connection()
    bench.broker.wait_quiet(bench.world.soon())
    assert bench.world.count(NAMES.queue(Kind.UNROUTED)) <= 1


def test_a_lease_that_comes_after_the_end_is_let_go(bench: Bench) -> None:
    attempt, delivery, _ = bench.attempt()
    bench.keeper.keep(attempt)
    bench.table.end(attempt)
    bench.table.release(attempt).let_go()
    bench.settle()
    assert delivery.acks == 1
    bench.broker.break_connection()
    bench.broker.wait_quiet(bench.world.soon())
    bench.clock.advance(2)
    assert bench.world.count(NAMES.queue(Kind.UNROUTED)) == 0


def test_an_ended_attempt_is_kept_no_more(bench: Bench) -> None:
    attempt, _, _ = bench.attempt()
    bench.table.end(attempt)
    bench.keeper.keep(attempt)
    assert bench.keeper.under_way == 0


def test_after_closing_nothing_is_kept(bench: Bench) -> None:
    """Found: code left behind by its worker opened the lease queue again."""
    attempt, _, _ = bench.attempt()
    bench.keeper.close()
    attempt.heartbeat("details")
    assert bench.keeper.under_way == 0
    assert bench.world.broker.stats(str(LEASE), bench.world.soon()) is None


def test_details_that_could_not_be_kept_are_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Found: they counted as kept."""
    caplog.set_level(logging.WARNING)
    attempt, delivery, _ = bench.attempt()
    bench.client.connection.sender.ensure((LEASE,), bench.world.soon())
    bench.broker.break_connection(away_s=100)
    attempt.heartbeat("details")
    bench.clock.advance(21)
    bench.world.eventually(lambda: not attempt.leasing)
    assert "not made" in caplog.text
    assert bench.keeper.under_way == 0
    bench.clock.advance(100)
    bench.broker.wait_quiet(bench.world.soon())
    bench.keeper.tick([attempt], bench.clock.monotonic())
    bench.settle()
    assert delivery.acks == 1
    assert attempt.saved == [msgspec.Raw(b'"details"')]


def test_details_that_are_too_large_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    bench = Bench(DataConverter(bytes_max=100))
    attempt, delivery, _ = bench.attempt()
    attempt.task = msgspec.structs.replace(attempt.task, body=b'{"args":[]}')
    attempt.heartbeat("x" * 200)
    bench.settle()
    assert delivery.acks == 1
    assert "not kept" in caplog.text
    assert lease_of(attempt).body == b'{"args":[]}'
    bench.close()


def test_foreign_messages_in_the_lease_queue_are_dropped(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    attempt, delivery, _ = bench.attempt()
    with caplog.at_level(logging.WARNING):
        bench.world.publish(Message(body=b"", message_id="1"), LEASE)
        bench.keeper.keep(attempt)
        bench.settle()
    assert "foreign message" in caplog.text
    assert delivery.acks == 1


def test_the_lease_of_a_killed_worker_is_lost_at_once(bench: Bench) -> None:
    attempt, _, _ = bench.attempt()
    bench.keeper.keep(attempt)
    bench.settle()
    bench.clock.advance(2)
    assert bench.world.count(NAMES.queue(Kind.UNROUTED)) == 0
    bench.broker.kill()
    assert bench.world.count(NAMES.queue(Kind.UNROUTED)) == 1
