"""Local activities: run, tried again, cancelled, timed out, told about once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.attempts import place
from tq_broker import activity
from tq_broker.activity import CompleteAsyncError
from tq_broker.clock import epoch_ms
from tq_broker.common import RetryPolicy
from tq_broker.converter import DataConverter
from tq_broker.exceptions import ApplicationError, CancelledError, TimeoutType
from tq_broker.model.failure import FailureKind
from tq_broker.model.tasks import WorkflowOrigin
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.local_activities import LocalActivities
from tq_broker.worker.registry import Registry
from tq_broker.worker.slots import FixedSlots
from tq_broker.worker.turn import LocalActivity, LocalActivityDone

ORIGIN = WorkflowOrigin("w", "r", "W", "a", 0)
EVERY_SECOND = RetryPolicy(backoff_coefficient=1.0)


@activity.defn
def work(number: int) -> int:
    return number


class Executor:
    def __init__(self) -> None:
        self.started: list[Attempt] = []
        self.cancelled: list[Attempt] = []
        self.abandoned: list[Attempt] = []

    def start(self, attempts: Sequence[Attempt]) -> None:
        self.started += attempts

    def cancel(self, attempt: Attempt) -> None:
        self.cancelled.append(attempt)

    def abandon(self, attempt: Attempt) -> None:
        self.abandoned.append(attempt)

    def close(self, deadline: float) -> None:
        pass


class Bench:
    def __init__(self, slots: int = 10) -> None:
        self.clock = ManualClock()
        self.executor = Executor()
        registry = Registry([work], DataConverter().payload_converter)
        self.local = LocalActivities(registry, place(self.clock), FixedSlots(slots))
        self.local.executors = {"thread": self.executor}
        self.done: list[LocalActivityDone] = []

    def start(self, seq: int = 1, **fields: Any) -> None:
        known: dict[str, Any] = {
            "seq": seq,
            "activity_id": "a",
            "activity_type": "work",
            "arguments": b"[7]",
            "scheduled_ms": epoch_ms(self.clock),
            "start_to_close_ms": 10_000,
            "retry_policy": EVERY_SECOND,
        }
        local = LocalActivity(**(known | fields))
        self.local.start(local, ORIGIN, "q", self.done.append)

    @property
    def last(self) -> Attempt:
        return self.executor.started[-1]

    def fail(self, error: BaseException | None = None) -> None:
        self.local.raised(self.last, error or ApplicationError("bad", type="Bad"))

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.local.tick(self.clock.monotonic())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_result_is_told(bench: Bench) -> None:
    bench.start()
    assert bench.last.arguments() == [7]
    bench.local.returned(bench.last, b"8")
    assert bench.done == [LocalActivityDone(seq=1, result=b"8")]


def test_its_code_sees_that_it_is_local_and_whose_it_is(bench: Bench) -> None:
    bench.start(headers={"k": "v"})
    info = bench.last.info
    assert info.headers == {"k": "v"}
    assert (info.is_local, info.activity_id, info.workflow_id) == (True, "a", "w")
    bench.last.heartbeat("goes nowhere")


class OfAnother(str):
    """A run id; looking whether it is that of a run starts a local activity meanwhile."""

    bench: Bench

    def __eq__(self, other: object) -> bool:
        thread = threading.Thread(
            target=self.bench.start, args=(len(self.bench.executor.started) + 1,)
        )
        thread.start()
        thread.join(0.05)  # if it can go on at all, it has by then
        return False

    __hash__ = str.__hash__


def test_one_may_start_while_those_of_another_run_are_dropped(bench: Bench) -> None:
    bench.start()
    run_id = OfAnother("other")
    run_id.bench = bench
    bench.local.drop(run_id)


def test_a_failure_is_tried_again_after_the_policys_pause(bench: Bench) -> None:
    bench.start()
    bench.fail()
    assert len(bench.executor.started) == 1
    bench.advance(1)
    assert bench.last.info.attempt == 2
    bench.local.returned(bench.last, b"8")
    assert bench.done == [LocalActivityDone(seq=1, attempt=2, result=b"8")]


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (RetryPolicy(maximum_attempts=1), ApplicationError("bad")),
        (RetryPolicy(), ApplicationError("bad", non_retryable=True)),
        (RetryPolicy(non_retryable_error_types=["Bad"]), ApplicationError("bad", type="Bad")),
        (RetryPolicy(), CompleteAsyncError()),
    ],
)
def test_a_failure_that_is_final_is_told(
    bench: Bench, policy: RetryPolicy, error: BaseException
) -> None:
    bench.start(retry_policy=policy)
    bench.fail(error)
    assert bench.done[0].failure is not None
    assert bench.done[0].backoff_ms is None


def test_a_timeout_before_the_start_is_no_more_after_a_pause_that_a_timer_waited_for(
    bench: Bench,
) -> None:
    scheduled_ms = epoch_ms(bench.clock)
    bench.clock.advance(120)
    bench.start(attempt=2, scheduled_ms=scheduled_ms, schedule_to_start_ms=5000)
    assert (len(bench.executor.started), bench.done) == (1, [])


def test_a_pause_over_the_threshold_is_for_a_timer(bench: Bench) -> None:
    policy = RetryPolicy(initial_interval=timedelta(minutes=2))
    bench.start(retry_policy=policy, attempt=3, local_retry_threshold_ms=60_000)
    bench.fail()
    (done,) = bench.done
    assert (done.attempt, done.backoff_ms) == (3, 480_000)
    assert done.failure is not None


def test_no_more_run_than_there_are_slots() -> None:
    bench = Bench(slots=1)
    bench.start(1)
    bench.start(2)
    assert len(bench.executor.started) == 1
    bench.local.returned(bench.last, b"1")
    assert len(bench.executor.started) == 2


def test_an_attempt_that_takes_too_long_times_out_and_its_code_is_stopped(bench: Bench) -> None:
    bench.start(retry_policy=RetryPolicy(maximum_attempts=1))
    bench.advance(10)
    (done,) = bench.done
    assert done.failure is not None
    assert done.failure.timeout_type == TimeoutType.START_TO_CLOSE
    assert bench.executor.abandoned == [bench.last]
    bench.local.returned(bench.last, b"late")
    assert len(bench.done) == 1


def test_time_that_is_up_before_it_could_start_is_told() -> None:
    bench = Bench(slots=1)
    bench.start(1)
    bench.start(2, schedule_to_start_ms=100)
    bench.start(3, schedule_to_close_ms=200)
    bench.clock.advance(0.2)
    bench.local.returned(bench.last, b"1")
    timeouts = [done.failure.timeout_type for done in bench.done if done.failure is not None]
    assert timeouts == [TimeoutType.SCHEDULE_TO_START, TimeoutType.SCHEDULE_TO_CLOSE]


def test_who_waits_begins_when_further_slots_are_there() -> None:
    bench = Bench(slots=1)
    slots = FixedSlots(1)
    bench.local._slots = slots
    bench.start()
    bench.start(2)
    assert len(bench.executor.started) == 1
    slots._count = 2
    bench.advance(0.05)
    assert len(bench.executor.started) == 2
    assert bench.local.running == 2


def test_who_waits_for_a_slot_waits_no_longer_than_its_time() -> None:
    bench = Bench(slots=1)
    bench.start(1)
    bench.start(2, schedule_to_start_ms=100)
    bench.advance(0.1)
    assert [done.seq for done in bench.done] == [2]


def test_a_running_one_that_honours_its_cancellation_is_cancelled(bench: Bench) -> None:
    bench.start()
    bench.local.cancel("r", 1)
    assert bench.executor.cancelled == [bench.last]
    assert bench.last.cancel_requested
    bench.fail(CancelledError())
    (done,) = bench.done
    assert done.failure is not None
    assert done.failure.kind is FailureKind.CANCELED


def test_one_that_fails_after_its_cancellation_is_not_tried_again(bench: Bench) -> None:
    bench.start()
    bench.local.cancel("r", 1)
    bench.fail()
    assert len(bench.done) == 1


def test_one_that_waits_for_its_next_attempt_is_cancelled_at_once(bench: Bench) -> None:
    bench.start()
    bench.fail()
    bench.local.cancel("r", 1)
    assert bench.done[0].failure is not None
    assert bench.done[0].failure.kind is FailureKind.CANCELED
    bench.advance(5)
    assert len(bench.executor.started) == 1


def test_cancelling_what_is_not_here_changes_nothing(bench: Bench) -> None:
    bench.local.cancel("r", 1)
    assert bench.done == []


def test_what_nobody_waits_for_is_stopped_and_not_told_of(bench: Bench) -> None:
    bench.start(1)
    bench.start(2)
    bench.local.raised(bench.executor.started[0], ApplicationError("bad"))
    bench.local.drop("r")
    assert bench.executor.abandoned == [bench.executor.started[1]]
    bench.local.returned(bench.last, b"1")
    bench.advance(5)
    assert bench.done == []
    assert len(bench.executor.started) == 2
