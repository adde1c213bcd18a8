"""The client's core on the broker in memory, under a clock that is told the time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tq_broker.client.core import TIMEOUT_GRACE_S, ClientCore, Pending
from tq_broker.client.request import make_start
from tq_broker.common import ActivityIDConflictPolicy, Route
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import (
    ActivityAlreadyStarted,
    ActivityError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    RetryState,
    TargetGone,
    TimeoutError,
    TimeoutType,
    Unavailable,
)
from tq_broker.model import control, envelope, failure
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.model.tasks import ActivityOutcome, ActivityTask, Status
from tq_broker.queues import topology
from tq_broker.queues.broker import Receipt, Verdict
from tq_broker.queues.connection import Connection
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.sender import Nacked
from tq_broker.testing.manual_clock import ManualClock

NAMES = Names("n")
SOON_S = 20.0
MINUTE = timedelta(minutes=1)
FAIL = ActivityIDConflictPolicy.FAIL


class World:
    """A client, and a hand that plays the worker."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer()
        self.core = self.make_core()
        self.hand = MemoryBroker(self.server, self.clock)

    def make_core(self) -> ClientCore:
        broker = MemoryBroker(self.server, self.clock)
        return ClientCore(Connection(broker, NAMES, self.clock, DEFAULT, "me"))

    def soon(self) -> float:
        return self.clock.monotonic() + 1000

    def start(self, *args: Any, core: ClientCore | None = None, **options: Any) -> Pending:
        return self.starting(*args, core=core, **options).result(SOON_S)

    def starting(
        self, *args: Any, core: ClientCore | None = None, **options: Any
    ) -> Future[Pending]:
        named = {"task_queue": "q", "start_to_close_timeout": MINUTE} | options
        return (core or self.core).start(make_start(NAMES, "t", named), args)

    def take(self) -> ActivityTask:
        """The next task on the queue."""
        for queue in (NAMES.priority(NAMES.activity("q")), NAMES.activity("q")):
            delivery = self.hand.get(str(queue), self.soon())
            if delivery is not None:
                delivery.ack()
                return envelope.read_task(delivery.message, "q")
        raise AssertionError("nothing waits")

    def tell(self, to: str, message: Message) -> None:
        ended: Future[Receipt] = Future()
        publication = Publication(NAMES.exchange(Exchange.REPLIES), to, message)
        self.hand.publish(publication, self.soon(), ended.set_result)
        assert ended.result(SOON_S).verdict is Verdict.CONFIRMED

    def answer(self, task: ActivityTask, status: Status = Status.COMPLETED, **fields: Any) -> None:
        outcome = ActivityOutcome(
            activity_id=task.activity_id, activity_type=task.activity_type, status=status, **fields
        )
        assert task.reply_to is not None
        self.tell(task.reply_to, envelope.outcome_message(outcome, DEFAULT))

    def value(self, pending: Pending) -> Any:
        return self.core.value(pending, pending.outcome.result(SOON_S))

    def settle(self) -> None:
        self.core.broker.wait_quiet(self.soon())  # type: ignore[attr-defined]

    def close(self) -> None:
        self.core.close(self.soon())
        self.hand.close(self.soon())


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


# --- starting -----------------------------------------------------------------------------------


def test_a_task_says_what_was_asked_for(world: World) -> None:
    pending = world.start(1, "two", priority=1, heartbeat_timeout=timedelta(seconds=5))
    task = world.take()
    assert task.activity_id == pending.activity_id
    assert (task.activity_type, task.attempt, task.priority) == ("t", 1, 1)
    assert (task.start_to_close_ms, task.heartbeat_ms) == (60_000, 5_000)
    assert task.scheduled_ms == int(world.clock.wall() * 1000)
    body = envelope.read_task_body(task, DEFAULT)
    assert [msgspec.json.decode(raw) for raw in body.args] == [1, "two"]


def test_an_outcome_ends_the_wait(world: World) -> None:
    pending = world.start()
    world.answer(world.take(), result=b'{"a": 1}')
    assert world.value(pending) == {"a": 1}


def test_a_failure_is_raised_with_its_cause_and_circumstances(world: World) -> None:
    pending = world.start()
    world.answer(
        world.take(),
        Status.FAILED,
        failure=failure.application("bad", "Bad"),
        attempt=3,
        retry_state=int(RetryState.MAXIMUM_ATTEMPTS_REACHED),
        identity="worker",
    )
    with pytest.raises(ActivityError, match="'t' failed: bad") as caught:
        world.value(pending)
    error = caught.value
    assert (error.attempt, error.identity) == (3, "worker")
    assert error.retry_state is RetryState.MAXIMUM_ATTEMPTS_REACHED
    assert getattr(error.cause, "type", None) == "Bad"


def test_the_first_outcome_counts(world: World) -> None:
    pending = world.start()
    task = world.take()
    world.answer(task, result=b"1")
    world.answer(task, result=b"2")
    world.settle()
    assert world.value(pending) == 1


def test_outcomes_of_others_and_garbage_are_ignored(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    pending = world.start()
    task = world.take()
    assert task.reply_to is not None
    with caplog.at_level(logging.WARNING):
        world.tell(task.reply_to, Message(body=b"x", message_id="1", kind=envelope.OUTCOME))
        world.tell(task.reply_to, Message(body=b"x", message_id="2", kind="of-the-future"))
        world.tell(
            task.reply_to,
            Message(body=b"x", message_id="3", kind=envelope.CONTROL, correlation_id="?"),
        )
        world.answer(msgspec.structs.replace(task, activity_id="unknown"))
        for status in (Status.STARTED, Status.REFUSED, Status.JOINED):
            claim = str(NAMES.queue(Kind.CLAIM, "d")).encode()
            unknown = msgspec.structs.replace(task, activity_id="unknown")
            world.answer(unknown, status, result=b'"' + claim + b'"')
        world.answer(task, Status.JOINED, result=b'"tq.n.activity.q"')
        world.answer(task, result=b"7")
        assert world.value(pending) == 7
    assert "no claim queue" in caplog.text
    stats = world.hand.stats(task.reply_to, world.soon())
    assert stats is not None
    assert stats.ready == 0


def test_nobody_is_told_of_what_nobody_waits_for(world: World) -> None:
    world.start(wait_result=False)
    assert world.take().reply_to is None
    assert world.core._pending == {}


def test_another_program_may_get_the_outcome(world: World) -> None:
    world.start(reply_to="tq.n.reply.other")
    assert world.take().reply_to == "tq.n.reply.other"
    assert world.core._pending == {}


def test_a_delayed_start_is_not_due_early(world: World) -> None:
    world.start(start_delay=timedelta(seconds=2))
    world.clock.advance(1.999)
    assert world.hand.get(str(NAMES.activity("q")), world.soon()) is None
    world.clock.advance(0.11)
    task = world.take()
    assert task.attempt_scheduled_ms == task.scheduled_ms + 2000


@pytest.mark.parametrize("args", [[object()], [float], [{"a": {1: object()}}]])
def test_what_cannot_be_sent_is_refused_before_anything_is_sent(
    world: World, args: list[Any]
) -> None:
    with pytest.raises(InvalidArgument, match="cannot be sent as JSON"):
        world.starting(*args)
    assert world.core._pending == {}


def test_a_start_that_is_not_taken_is_forgotten(world: World) -> None:
    starting = world.starting(route=Route.host("nowhere"), schedule_to_close_timeout=MINUTE)
    with pytest.raises(TargetGone):
        starting.result(SOON_S)
    assert world.core._pending == {}
    assert world.clock.next_booking is None or world.clock.next_booking > world.soon() - 990


# --- many ---------------------------------------------------------------------------------------


def start_many(world: World, calls: list[list[Any]], **options: Any) -> Future[list[Pending]]:
    named = {"task_queue": "q", "start_to_close_timeout": MINUTE} | options
    return world.core.start_many(make_start(NAMES, "t", named), calls)


@pytest.mark.parametrize("options", [{}, {"start_delay": timedelta(seconds=1)}])
def test_many_are_started_in_order_each_with_its_own_outcome(
    world: World, options: dict[str, Any]
) -> None:
    pendings = start_many(world, [[n] for n in range(20)], **options).result(SOON_S)
    world.clock.advance(1.1)
    assert len({pending.activity_id for pending in pendings}) == 20
    by_id = {}
    for _ in range(20):
        task = world.take()
        by_id[task.activity_id] = msgspec.json.decode(
            envelope.read_task_body(task, DEFAULT).args[0]
        )
        world.answer(task, result=str(by_id[task.activity_id]).encode())
    assert [by_id[pending.activity_id] for pending in pendings] == list(range(20))
    assert [world.value(pending) for pending in pendings] == list(range(20))


@pytest.mark.parametrize("options", [{}, {"route": Route.host("h")}])
def test_none_at_all_is_no_error(world: World, options: dict[str, Any]) -> None:
    assert start_many(world, [], **options).result(SOON_S) == []


@pytest.mark.parametrize("options", [{}, {"start_delay": timedelta(seconds=1)}])
def test_one_bad_call_among_many_starts_none(world: World, options: dict[str, Any]) -> None:
    """Found: with a delay or a route those before the bad one were started, without a handle."""
    with pytest.raises(InvalidArgument):
        start_many(world, [[1], [object()]], **options)
    assert world.core._pending == {}


def test_many_to_a_target_that_is_gone_fail_together(world: World) -> None:
    with pytest.raises(TargetGone):
        start_many(world, [[1], [2]], route=Route.host("h")).result(SOON_S)
    assert world.core._pending == {}


# --- ids ----------------------------------------------------------------------------------------


def test_two_handles_of_one_id_get_the_same_outcome(world: World) -> None:
    first, second = world.start(id="x"), world.start(id="x")
    task = world.take()
    world.take()
    world.answer(task, result=b"1")
    assert (world.value(first), world.value(second)) == (1, 1)


def test_only_the_start_that_asked_for_it_is_refused(world: World) -> None:
    """Found: the first handle was told that it had been started before, too."""
    first, second = world.start(id="x"), world.start(id="x", id_conflict_policy=FAIL)
    task = world.take()
    world.answer(world.take(), Status.REFUSED)
    with pytest.raises(ActivityAlreadyStarted, match="'x'"):
        world.value(second)
    assert not first.outcome.done()
    world.answer(task, result=b"1")
    assert world.value(first) == 1


def test_who_wants_to_be_refused_does_not_get_the_outcome_of_another_start(world: World) -> None:
    """Found: a refusal that came after the first one's outcome came too late."""
    first, second = world.start(id="x"), world.start(id="x", id_conflict_policy=FAIL)
    third = world.start(id="x")
    tasks = [world.take() for _ in range(3)]
    world.answer(tasks[0], start_token=tasks[0].start_token, result=b"1")
    assert (world.value(first), world.value(third)) == (1, 1)
    world.settle()
    assert not second.outcome.done()
    world.answer(tasks[1], Status.REFUSED, start_token=tasks[1].start_token)
    with pytest.raises(ActivityAlreadyStarted):
        world.value(second)


def test_the_kept_outcome_is_not_for_who_wants_to_be_refused(world: World) -> None:
    """Found: it was given to all that waited for the id."""
    joins, refused = world.start(id="x"), world.start(id="x", id_conflict_policy=FAIL)
    claim = NAMES.queue(Kind.CLAIM, "d")
    world.hand.apply(topology.claim_queue(NAMES, claim, "t", 60_000), world.soon())
    kept = ActivityOutcome(
        activity_id="x",
        activity_type="t",
        status=Status.COMPLETED,
        result=b"5",
        start_token="that of another client",
    )
    world.tell(str(claim), envelope.outcome_message(kept, DEFAULT))
    world.answer(world.take(), Status.JOINED, result=msgspec.json.encode(str(claim)))
    assert world.value(joins) == 5
    world.settle()
    assert not refused.outcome.done()


def test_a_second_start_that_fails_does_not_take_the_first_one_along(world: World) -> None:
    """Found: the outcome of the first was not waited for any more."""
    first = world.start(id="x")
    with pytest.raises(TargetGone):
        world.starting(id="x", route=Route.host("nowhere")).result(SOON_S)
    world.answer(world.take(), result=b"1")
    assert world.value(first) == 1


def test_a_joined_start_reads_the_kept_outcome_and_leaves_it_there(world: World) -> None:
    pending = world.start(id="x")
    task = world.take()
    claim = NAMES.queue(Kind.CLAIM, "d")
    world.hand.apply(topology.claim_queue(NAMES, claim, "t", 60_000), world.soon())
    outcome = ActivityOutcome(
        activity_id="x", activity_type="t", status=Status.COMPLETED, result=b"5"
    )
    world.answer(task, Status.JOINED, result=msgspec.json.encode(str(claim)))
    world.settle()
    assert not pending.outcome.done()
    world.tell(str(claim), envelope.outcome_message(outcome, DEFAULT))
    assert world.value(pending) == 5
    world.settle()
    kept = world.hand.get(str(claim), world.soon())
    assert kept is not None
    assert world.core._joined == {}


def test_a_joined_start_that_times_out_reads_no_longer(world: World) -> None:
    """Found: the subscription stayed for as long as the client."""
    pending = world.start(id="x", schedule_to_close_timeout=MINUTE)
    claim = NAMES.queue(Kind.CLAIM, "d")
    world.hand.apply(topology.claim_queue(NAMES, claim, "t", 600_000), world.soon())
    world.answer(world.take(), Status.JOINED, result=msgspec.json.encode(str(claim)))
    world.settle()
    assert world.hand.stats(str(claim), world.soon()).consumers == 1  # type: ignore[union-attr]
    world.clock.advance(60 + TIMEOUT_GRACE_S)
    with pytest.raises(ActivityError):
        world.value(pending)
    assert world.hand.stats(str(claim), world.soon()).consumers == 0  # type: ignore[union-attr]


# --- timeouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "timeout"),
    [
        ("schedule_to_start_timeout", TimeoutType.SCHEDULE_TO_START),
        ("schedule_to_close_timeout", TimeoutType.SCHEDULE_TO_CLOSE),
    ],
)
@pytest.mark.parametrize("delay_s", [0, 3])
def test_without_any_worker_the_client_ends_the_wait(
    world: World, option: str, timeout: TimeoutType, delay_s: int
) -> None:
    pending = world.start(**{option: MINUTE}, start_delay=timedelta(seconds=delay_s))
    world.clock.advance(60 + delay_s + TIMEOUT_GRACE_S - 0.01)
    assert not pending.outcome.done()
    world.clock.advance(0.02)
    with pytest.raises(ActivityError, match="timed out") as caught:
        world.value(pending)
    assert isinstance(caught.value.cause, TimeoutError)
    assert caught.value.cause.type is timeout
    assert caught.value.retry_state is RetryState.TIMEOUT


def test_what_was_started_does_not_time_out_in_the_queue(world: World) -> None:
    pending = world.start(schedule_to_start_timeout=MINUTE)
    task = world.take()
    world.answer(task, Status.STARTED)
    world.settle()
    world.clock.advance(120)
    assert not pending.outcome.done()
    world.answer(task, result=b"1")
    assert world.value(pending) == 1


def test_an_outcome_cancels_the_timers(world: World) -> None:
    pending = world.start(schedule_to_close_timeout=MINUTE)
    world.answer(world.take(), result=b"1")
    assert world.value(pending) == 1
    world.clock.advance(120)
    assert world.value(pending) == 1


def test_a_broker_that_is_away_ends_the_start_with_the_deadline(world: World) -> None:
    world.start()
    world.core.broker.break_connection(away_s=3600)  # type: ignore[attr-defined]
    starting = world.starting()
    world.clock.advance(10.1)
    with pytest.raises(DeadlineExceeded):
        starting.result(SOON_S)


# --- cancelling, completing, pinging --------------------------------------------------------------


def test_a_cancellation_is_kept_in_the_settings_log(world: World) -> None:
    world.core.cancel("x", "not wanted").result(SOON_S)
    settings = str(NAMES.queue(Kind.SETTINGS))
    stats = world.hand.stats(settings, world.soon())
    assert stats is not None
    assert stats.ready == 1


def test_completing_for_a_worker_that_is_gone_says_so(world: World) -> None:
    token = control.TaskToken("n", "gone", "x", 1)
    completing = world.core.complete(token, control.CompleteAttempt("x", 1))
    with pytest.raises(NotFound, match="worker 'gone' is gone"):
        completing.result(SOON_S)


def test_a_ping_while_a_worker_leaves_hears_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = threading.Event()

    def send(publication: Any, needs: Any, deadline: float, done: Any) -> None:
        done(Nacked("the queue of one of them has just ended"))
        sent.set()

    monkeypatch.setattr(world.core.sender, "send", send)
    ping = world.core.ping(1.0)
    assert sent.wait(SOON_S)
    world.clock.advance(1.0)
    assert ping.result(SOON_S) == []


def test_a_ping_that_nobody_answers_ends_at_once_and_empty(world: World) -> None:
    assert world.core.ping(60.0).result(SOON_S) == []


# --- life ---------------------------------------------------------------------------------------


def test_closing_ends_every_wait(world: World) -> None:
    pendings = [world.start(id="x"), world.start(id="x"), world.start()]
    world.core.close(world.soon())
    for pending in pendings:
        with pytest.raises(Unavailable, match="closed"):
            world.value(pending)
    world.core.close(world.soon())


def test_a_closed_client_starts_nothing_and_does_not_hang(world: World) -> None:
    world.start()
    world.core.close(world.soon())
    with pytest.raises(Unavailable):
        world.start()


def test_a_child_after_a_fork_has_a_reply_queue_and_ids_of_its_own(world: World) -> None:
    pending = world.start()
    before = world.take()
    world.core.after_fork()
    assert world.core._pending == {}
    child = world.start()
    task = world.take()
    assert task.reply_to != before.reply_to
    assert task.activity_id.partition("-")[0] != before.activity_id.partition("-")[0]
    world.answer(task, result=b"2")
    assert world.value(child) == 2
    assert not pending.outcome.done(), "that is the parent's"


def test_connecting_tells_what_stands_in_the_way(world: World) -> None:
    world.core.connect(world.soon())
    world.core.broker.kill()  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        world.core.connect(world.soon())
