"""The handler of workflow tasks, with everything around it played by hand."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
import pytest

from tests.worker.attempts import place
from tq_broker import workflow
from tq_broker.clock import epoch_ms
from tq_broker.common import RetryPolicy, VersioningBehavior
from tq_broker.converter import DataConverter
from tq_broker.exceptions import ApplicationError, Malformed
from tq_broker.model import failure as failures
from tq_broker.model.commands import CompleteWorkflow, StartTimer
from tq_broker.model.events import Event, WorkflowExecutionStarted, WorkflowTaskScheduled
from tq_broker.model.limits import Side
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.requests import read_request, request_message
from tq_broker.model.workflow_tasks import (
    EventsPage,
    QueryAnswer,
    QueryRequest,
    RunKey,
    StickyEvicted,
    TaskFailedCause,
    WorkflowTask,
    WorkflowTaskCompleted,
    WorkflowTaskFailed,
    WorkflowTaskProgress,
    task_message,
)
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker import workflow_handler
from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.recent import RecentTasks
from tq_broker.worker.registry import Registry
from tq_broker.worker.replay import OutOfStep
from tq_broker.worker.slots import FixedSlots
from tq_broker.worker.tuning import SlotInfo
from tq_broker.worker.turn import LocalActivity, LocalActivityDone, TaskFailure, Turn
from tq_broker.worker.workflow_handler import WorkflowHandler
from tq_broker.worker.workflow_registry import WorkflowRegistry
from tq_broker.worker.workflow_runner import Abandoned

NAMES = Names("n")
QUEUE, STICKY = NAMES.workflow("q"), NAMES.sticky("worker-1")
QUERY = QueryRequest(query_type="state", reply_to="tq.n.reply.c", correlation_id="1")


@workflow.defn
class W:
    @workflow.run
    async def run(self) -> None:
        pass


class Replay:
    """A replay that does as it is told. ``script`` has its next turns."""

    script: ClassVar[deque[Any]] = deque()
    made: ClassVar[list[Replay]] = []

    def __init__(self, definition: Any, run: RunKey, **options: Any) -> None:
        self.run = run
        self.last_event_id = 0
        self.seen: list[int] = []
        self.calls: list[Any] = []
        self.closed = 0
        self.query_error: Exception | None = None
        Replay.made.append(self)

    def activate(self, events: Sequence[Event], **options: Any) -> Turn:
        for event in events:
            assert event.event_id == self.last_event_id + 1, "a gap"
            self.last_event_id = event.event_id
        self.calls.append(options)
        return self._next()

    def local_activity_done(self, done: LocalActivityDone, *, now_ms: int) -> Turn:
        self.calls.append(done)
        return self._next()

    def _next(self) -> Turn:
        turn = Replay.script.popleft() if Replay.script else turn_of()
        if callable(turn):
            turn = turn()
        if isinstance(turn, BaseException):
            raise turn
        assert isinstance(turn, Turn)
        return turn

    def query(self, request: QueryRequest) -> QueryAnswer:
        return QueryAnswer(result=str(self.last_event_id).encode())

    def close(self) -> None:
        self.closed += 1


def turn_of(*commands: Any, **fields: Any) -> Turn:
    known: dict[str, Any] = {"local_activities": [], "canceled_local": []}
    return Turn(commands=list(commands), **(known | fields))


TIMER = StartTimer(timer_id="1", start_to_fire_ms=1)


@dataclass(eq=False)
class Delivery:
    message: Message
    acks: int = 0
    redelivered: bool = False
    queue: str = ""
    routing_key: str = ""

    def ack(self) -> None:
        self.acks += 1

    def reject(self, *, requeue: bool) -> None:
        raise AssertionError("the handler rejects nothing")


@dataclass(eq=False)
class Source:
    queue: QueueName
    released_count: int = 0
    task_queue = "q"

    @property
    def name(self) -> str:
        return str(self.queue)

    def released(self) -> None:
        self.released_count += 1

    waits = False

    def admit(self, resume: Any = None) -> Passage | None:
        return FREE


class Seat:
    def __init__(self) -> None:
        self.on_stuck: Any = None
        self.limits: list[float | None] = []

    def watched(self, limit_s: float | None, on_stuck: Any) -> AbstractContextManager[None]:
        self.limits.append(limit_s)
        self.on_stuck = on_stuck
        return nullcontext()


class Runner:
    """Does its work when the test says so."""

    def __init__(self) -> None:
        self.work: deque[Any] = deque()
        self.seat = Seat()
        self.ticks = 0

    def submit(self, work: Any) -> None:
        self.work.append(work)

    def do(self) -> None:
        while self.work:
            self.work.popleft()(self.seat)

    def tick(self, now: float) -> None:
        self.ticks += 1


@dataclass
class Reporter:
    """What it was asked to tell; ``confirm`` plays the broker."""

    answers: list[tuple[int, Any]] = field(default_factory=list)
    notices: list[Any] = field(default_factory=list)
    queries: list[QueryAnswer] = field(default_factory=list)
    returned: list[tuple[str, str]] = field(default_factory=list)
    parked: list[str] = field(default_factory=list)
    unconfirmed: list[Callable[[], None]] = field(default_factory=list)

    def answer(self, shard: int, answer: Any, done: Any) -> None:
        self.answers.append((shard, answer))
        self.unconfirmed.append(done)

    def tell(self, shard: int, notice: Any) -> None:
        self.notices.append(notice)

    def answer_query(self, query: Any, answer: QueryAnswer, done: Any) -> None:
        self.queries.append(answer)
        self.unconfirmed.append(done)

    def abandon(self, delivery: Any, done: Any) -> None:
        self.returned.append(("abandoned", delivery.routing_key))
        self.unconfirmed.append(done)

    def give_back(self, message: Any, queue: Any, done: Any) -> None:
        self.returned.append(("given back", str(queue)))
        self.unconfirmed.append(done)

    def park(self, message: Any, queue: str, reason: str, done: Any) -> None:
        self.parked.append(reason)
        self.unconfirmed.append(done)

    def confirm(self) -> None:
        unconfirmed, self.unconfirmed = self.unconfirmed, []
        for done in unconfirmed:
            done()


class Inquiries:
    def __init__(self) -> None:
        self.asked: list[tuple[int, Any, Any]] = []

    def ask(self, shard: int, request: Any, on_reply: Any) -> None:
        self.asked.append((shard, request, on_reply))


class Local:
    def __init__(self) -> None:
        self.started: list[tuple[LocalActivity, Any]] = []
        self.cancelled: list[tuple[str, int]] = []
        self.dropped: list[str] = []

    def start(self, local: Any, origin: Any, task_queue: str, on_done: Any) -> None:
        self.started.append((local, on_done))

    def cancel(self, run_id: str, seq: int) -> None:
        self.cancelled.append((run_id, seq))

    def drop(self, run_id: str) -> None:
        self.dropped.append(run_id)

    def tick(self, now: float) -> None:
        pass


def events_of(first: int, last: int) -> list[Event]:
    """A history from event ``first`` to ``last``; what is in it matters to nobody here."""
    start = WorkflowExecutionStarted(
        event_id=1,
        time_ms=1,
        workflow_type="W",
        task_queue="q",
        workflow_id="w",
        run_id="r",
        first_run_id="r",
    )
    others = [
        WorkflowTaskScheduled(event_id=number, time_ms=number, task_queue="q")
        for number in range(2, last + 1)
    ]
    return [start, *others][first - 1 :]


class Bench:
    def __init__(self, slots: Any = None, **options: Any) -> None:
        Replay.script, Replay.made = deque(), []
        self.clock = ManualClock()
        self.runner, self.reporter = Runner(), Reporter()
        self.inquiries, self.local = Inquiries(), Local()
        self.normal, self.sticky = Source(QUEUE), Source(STICKY)
        parts: Any = (
            WorkflowRegistry([W]),
            Registry([], DataConverter().payload_converter),
            self.local,
            self.runner,
            self.reporter,
            self.reporter,
            self.inquiries,
            place(self.clock),
            WorkerOptions(**options),
            RecentTasks(),
            FixedSlots(100) if slots is None else slots,
        )
        self.handler = WorkflowHandler(*parts)

    def task(self, run_id: str = "r", first: int = 1, last: int = 2, **fields: Any) -> WorkflowTask:
        known: dict[str, Any] = {
            "run": RunKey("w", run_id),
            "workflow_type": "W",
            "task_queue": "q",
            "shard": 3,
            "scheduled_event_id": last,
            "first_event_id": first,
            "events": events_of(first, last),
            "last_event_id": last,
            "sticky": "" if first == 1 else "worker-1",
        }
        return WorkflowTask(**(known | fields))

    def take(self, run_id: str = "r", first: int = 1, last: int = 2, **fields: Any) -> Delivery:
        """A task comes, and is worked on."""
        task = self.task(run_id, first, last, **fields)
        delivery = Delivery(task_message(task, "m"), routing_key="sticky.worker-1.3")
        source = self.sticky if task.sticky else self.normal
        self.handler.on_deliveries(source, [delivery])
        self.runner.do()
        return delivery

    def confirm(self) -> None:
        self.reporter.confirm()
        self.runner.do()

    def run(self, *args: Any, **fields: Any) -> Any:
        """A task comes, is answered and confirmed; returns the answer."""
        delivery = self.take(*args, **fields)
        (_, answer) = self.reporter.answers[-1]
        self.confirm()
        assert delivery.acks == 1
        return answer

    def reply(self, page: Any) -> None:
        self.inquiries.asked.pop(0)[2](page)
        self.runner.do()

    @property
    def replay(self) -> Replay:
        return Replay.made[-1]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_handler, "Replay", Replay)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- slots and figures ----------------------------------------------------------------------------


class Slots(FixedSlots):
    """Notes who has one."""

    def __init__(self) -> None:
        super().__init__(9)
        self.infos: list[SlotInfo] = []
        self.held: set[Any] = set()

    def take(self, owner: Any, info: SlotInfo) -> None:
        self.infos.append(info)
        self.held.add(owner)

    def release(self, owner: Any) -> None:
        self.held.remove(owner)


def test_a_task_has_a_slot_until_its_answer_is_confirmed() -> None:
    slots = Slots()
    bench = Bench(slots)
    Replay.script.extend([turn_of(), turn_of()])
    bench.take()
    assert len(slots.held) == 1
    bench.confirm()
    assert not slots.held
    bench.run(first=3, last=4)
    assert [(info.workflow_type, info.is_sticky) for info in slots.infos] == [
        ("W", False),
        ("W", True),
    ]


def test_what_begins_is_counted_whichever_way_it_came(bench: Bench) -> None:
    Replay.script.extend([turn_of(), turn_of()])
    bench.run(scheduled_ms=epoch_ms(bench.clock) - 2000)
    bench.run(first=3, last=4)
    (told,) = bench.handler.begins.told()
    assert (told.task_queue, told.side, told.total, told.shared) == ("q", Side.WORKFLOW, 2, 1)


# --- answers --------------------------------------------------------------------------------------


def test_commands_are_told_and_only_then_is_the_task_acknowledged(bench: Bench) -> None:
    Replay.script.append(turn_of(TIMER, current_details="half"))
    delivery = bench.take()
    ((shard, answer),) = bench.reporter.answers
    assert shard == 3
    assert isinstance(answer, WorkflowTaskCompleted)
    assert answer.commands == [TIMER]
    assert (answer.scheduled_event_id, answer.attempt) == (2, 1)
    assert (answer.sticky, answer.sticky_timeout_ms) == (True, 10_000)
    assert (answer.current_details, answer.worker_id) == ("half", "worker-1")
    assert (delivery.acks, bench.handler.busy) == (0, True)
    bench.confirm()
    assert (delivery.acks, bench.normal.released_count, bench.handler.busy) == (1, 1, False)


def test_a_cached_run_goes_on_with_the_new_events_only(bench: Bench) -> None:
    bench.run()
    bench.run(first=3, last=5)
    assert len(Replay.made) == 1
    assert bench.replay.last_event_id == 5
    assert (bench.handler.cache.hits, bench.handler.cache.misses) == (1, 0)


def test_without_a_cache_every_task_is_replayed_and_thrown_away() -> None:
    bench = Bench(max_cached_workflows=0)
    assert not bench.run().sticky
    bench.run(last=5)
    assert [replay.closed for replay in Replay.made] == [1, 1]


def test_what_a_replay_is_told(bench: Bench) -> None:
    bench.run(history_bytes=77, continue_as_new_suggested=True)
    (call,) = bench.replay.calls
    assert (call["history_bytes"], call["continue_as_new_suggested"]) == (77, True)
    assert call["live"]
    assert call["now_ms"] == bench.reporter.answers[0][1].started_ms


def test_a_whole_history_replaces_what_is_in_the_cache(bench: Bench) -> None:
    bench.run()
    bench.run(last=5)
    assert [replay.closed for replay in Replay.made] == [1, 0]
    assert bench.replay.last_event_id == 5


def test_a_task_that_comes_again_after_its_answer_is_only_acknowledged(bench: Bench) -> None:
    bench.run()
    delivery = bench.take()
    assert (len(bench.reporter.answers), delivery.acks) == (1, 1)
    assert not bench.handler.busy


def test_tasks_of_a_run_wait_for_each_other(bench: Bench) -> None:
    bench.take()
    bench.take(first=3, last=5)
    assert len(bench.reporter.answers) == 1
    bench.confirm()
    assert len(bench.reporter.answers) == 2
    assert bench.replay.last_event_id == 5


def test_tasks_of_different_runs_do_not(bench: Bench) -> None:
    bench.take("a")
    bench.take("b")
    assert len(bench.reporter.answers) == 2


# --- missing events -------------------------------------------------------------------------------


def test_a_run_that_is_not_in_the_cache_is_fetched(bench: Bench) -> None:
    bench.take(first=4, last=6)
    ((shard, question, _),) = bench.inquiries.asked
    assert (shard, question.first_event_id) == (3, 1)
    bench.reply(EventsPage(events_of(1, 2), last_event_id=9))
    assert bench.inquiries.asked[0][1].first_event_id == 3
    bench.reply(EventsPage(events_of(3, 5), last_event_id=9))
    assert bench.replay.last_event_id == 6
    assert len(bench.reporter.answers) == 1
    assert bench.handler.cache.misses == 1


def test_events_that_cannot_be_read_fail_the_task(bench: Bench) -> None:
    delivery = bench.take(last=6, events=events_of(1, 3), queries=[QUERY])
    bench.reply(Malformed("an event of a later release"))
    ((_, answer),) = bench.reporter.answers
    assert (type(answer), answer.cause) == (WorkflowTaskFailed, TaskFailedCause.PAYLOAD.value)
    assert "an event of a later release" in answer.failure.message
    assert len(bench.reporter.queries) == 1
    bench.confirm()
    assert (delivery.acks, bench.handler.busy) == (1, False)


def test_the_rest_of_a_long_history_is_fetched(bench: Bench) -> None:
    bench.take(last=6, events=events_of(1, 3))
    assert bench.inquiries.asked[0][1].first_event_id == 4
    bench.reply(EventsPage(events_of(4, 8), last_event_id=8))
    assert bench.replay.last_event_id == 6, "what came after the task is of the next one"


def test_the_scheduling_of_a_repeated_task_is_in_no_stored_history(bench: Bench) -> None:
    bench.take(last=6, events=events_of(1, 3), attempt=2)
    bench.reply(EventsPage(events_of(4, 5), last_event_id=5))
    assert bench.replay.last_event_id == 6
    assert bench.reporter.answers[0][1].attempt == 2


def test_a_cached_run_that_is_not_where_history_takes_it_to_be_is_replayed(bench: Bench) -> None:
    bench.run()
    bench.take(first=5, last=6)
    bench.reply(EventsPage(events_of(1, 4), last_event_id=6))
    assert [replay.closed for replay in Replay.made] == [1, 0]
    assert bench.replay.last_event_id == 6


@pytest.mark.parametrize("page", [EventsPage([], found=False), EventsPage([], last_event_id=2)])
def test_a_task_of_a_run_that_is_gone_is_dropped(bench: Bench, page: EventsPage) -> None:
    delivery = bench.take(first=4, last=6)
    bench.reply(page)
    assert (delivery.acks, bench.reporter.answers, bench.handler.busy) == (1, [], False)


def test_a_replay_that_is_out_of_step_is_made_anew_once(bench: Bench) -> None:
    bench.run()
    Replay.script.append(OutOfStep("not mine"))
    bench.take(first=3, last=4)
    bench.reply(EventsPage(events_of(1, 2), last_event_id=4))
    assert isinstance(bench.reporter.answers[-1][1], WorkflowTaskCompleted)


def test_a_history_that_makes_no_sense_fails_the_task(bench: Bench) -> None:
    Replay.script += [OutOfStep("event 2"), OutOfStep("event 2")]
    answer = bench.run()
    assert isinstance(answer, WorkflowTaskFailed)
    assert answer.cause == TaskFailedCause.NON_DETERMINISTIC.value
    assert answer.failure is not None
    assert "event 2" in answer.failure.message


# --- failures -------------------------------------------------------------------------------------


def task_failure(cause: TaskFailedCause = TaskFailedCause.UNHANDLED_FAILURE) -> Turn:
    failure = failures.application("bad", "Bad")
    return turn_of(failure=TaskFailure(cause=cause, failure=failure, error=ValueError()))


@pytest.mark.parametrize(
    "cause", [TaskFailedCause.UNHANDLED_FAILURE, TaskFailedCause.NON_DETERMINISTIC]
)
def test_a_task_that_failed_leaves_no_replay_behind(bench: Bench, cause: TaskFailedCause) -> None:
    Replay.script.append(task_failure(cause))
    answer = bench.run()
    assert isinstance(answer, WorkflowTaskFailed)
    assert answer.cause == cause.value
    assert (bench.replay.closed, len(bench.handler.cache)) == (1, 0)


@pytest.mark.parametrize("defect", [ZeroDivisionError(), asyncio.CancelledError(), SystemExit()])
def test_a_defect_fails_the_task_and_nothing_else(bench: Bench, defect: BaseException) -> None:
    Replay.script.append(defect)
    assert isinstance(bench.run("a"), WorkflowTaskFailed)
    assert isinstance(bench.run("b"), WorkflowTaskCompleted)


def test_a_defect_before_the_first_turn_does_so_too(bench: Bench) -> None:
    def lost(queue: QueueName, workflow_id: str) -> QueueName | None:
        raise ZeroDivisionError

    bench.handler.home_of = lost  # type: ignore[assignment]
    bench.take()
    waiting = bench.take(first=3, last=4)
    bench.confirm()
    bench.confirm()
    assert waiting.acks == 1
    assert [type(answer) for _, answer in bench.reporter.answers] == [WorkflowTaskFailed] * 2
    assert not bench.handler.busy


def test_a_defect_can_be_told_whatever_it_carries(bench: Bench) -> None:
    Replay.script.append(ApplicationError("x", 2**64))
    answer = bench.run()
    assert read_request(request_message(answer, "m")) == answer


def test_an_unknown_workflow_fails_its_task_loudly(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    answer = bench.run(workflow_type="Other")
    assert answer.cause == TaskFailedCause.UNKNOWN_TYPE.value
    assert "Other is not registered on this worker, available workflows: W" in caplog.text


def test_garbage_is_parked(bench: Bench) -> None:
    delivery = Delivery(Message(body=b"?", message_id="m"))
    bench.handler.on_deliveries(bench.normal, [delivery])
    bench.runner.do()
    bench.take(shard=16)
    assert len(bench.reporter.parked) == 2
    bench.confirm()
    assert (delivery.acks, bench.handler.busy) == (1, False)


def test_code_that_never_comes_back_fails_its_task(bench: Bench) -> None:
    def stuck() -> Turn:
        bench.runner.seat.on_stuck("the stack")
        return turn_of(TIMER)

    Replay.script.append(stuck)
    answer = bench.run()
    assert len(bench.reporter.answers) == 1
    assert answer.cause == TaskFailedCause.DEADLOCK.value
    assert answer.failure.stack_trace == "the stack"
    assert (bench.replay.closed, len(bench.handler.cache)) == (0, 0)


def given_up(bench: Bench) -> Callable[..., Any]:
    """What code does that was given up, and comes back."""

    def code(*args: Any, **options: Any) -> Any:
        bench.runner.seat.on_stuck("the stack")
        bench.reporter.confirm()
        assert bench.replay.closed == 0, "it is still at work"
        raise Abandoned

    return code


def closings(bench: Bench) -> int:
    bench.runner.do()
    return bench.replay.closed


def test_a_replay_that_was_given_up_in_a_turn_is_closed_when_it_is_back(bench: Bench) -> None:
    Replay.script.append(given_up(bench))
    with pytest.raises(Abandoned):
        bench.take()
    assert closings(bench) == 1


def test_a_replay_that_was_given_up_in_a_query_is_closed_when_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replay, "query", given_up(bench))
    with pytest.raises(Abandoned):
        bench.take(queries=[QUERY])
    assert closings(bench) == 1


def test_a_replay_that_was_given_up_after_a_local_activity_is_closed_when_it_is_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.handler._activities, "find", lambda name: name)
    Replay.script += [turn_of(local_activities=[local_of()], complete=False), given_up(bench)]
    bench.take()
    bench.local.started[0][1](LocalActivityDone(seq=1))
    with pytest.raises(Abandoned):
        bench.runner.do()
    assert closings(bench) == 1


def test_the_watch_allows_for_long_replays_and_for_debuggers() -> None:
    bench = Bench()
    bench.run(last=1000)
    assert bench.runner.seat.limits[0] == 3.0
    bench = Bench(debug_mode=True)
    bench.run()
    assert set(bench.runner.seat.limits) == {None}


# --- the cache ------------------------------------------------------------------------------------


def test_who_has_to_go_is_closed_and_history_is_told() -> None:
    bench = Bench(max_cached_workflows=2)
    for run in "abc":
        bench.run(run)
    assert bench.reporter.notices == [
        StickyEvicted(run=RunKey("w", "a"), worker_id="worker-1"),
    ]
    assert [replay.closed for replay in Replay.made] == [1, 0, 0]


def test_history_needs_not_be_told_of_closed_runs() -> None:
    bench = Bench(max_cached_workflows=2)
    Replay.script.append(turn_of(CompleteWorkflow(), closed=True))
    for run in "abc":
        bench.run(run)
    assert bench.reporter.notices == []
    assert [replay.closed for replay in Replay.made] == [1, 0, 0]


def test_a_new_run_waits_while_all_cached_ones_are_in_use() -> None:
    bench = Bench(max_cached_workflows=2)
    for run in "abc":
        bench.take(run)
    assert len(bench.reporter.answers) == 2
    bench.confirm()
    assert len(bench.reporter.answers) == 3
    assert len(bench.handler.cache) == 2


# --- queries --------------------------------------------------------------------------------------


def queries_only(**fields: Any) -> dict[str, Any]:
    return {"scheduled_event_id": 0, "queries": [QUERY], "events": []} | fields


def test_a_query_is_answered_from_the_cache(bench: Bench) -> None:
    bench.run()
    delivery = bench.take(first=8, last=7, **queries_only(sticky="worker-1"))
    assert [answer.result for answer in bench.reporter.queries] == [b"2"]
    assert delivery.acks == 0
    bench.confirm()
    assert (delivery.acks, len(bench.reporter.answers)) == (1, 1)


def test_a_query_for_a_run_that_left_the_cache_brings_it_back(bench: Bench) -> None:
    bench.take(first=8, last=7, **queries_only(sticky="worker-1"))
    bench.reply(EventsPage(events_of(1, 7), last_event_id=7))
    assert [answer.result for answer in bench.reporter.queries] == [b"7"]
    bench.confirm()
    assert not bench.replay.calls[0]["live"]
    bench.take(first=5, last=9)
    assert bench.replay.last_event_id == 9, "it is used although it was further than history knew"
    assert len(Replay.made) == 1


def test_what_was_asked_about_once_is_asked_again_without_a_replay(bench: Bench) -> None:
    for last in (7, 7, 9):
        bench.take(last=last, **queries_only(events=events_of(1, last)))
        bench.confirm()
    assert len(bench.reporter.queries) == 3
    assert [replay.last_event_id for replay in Replay.made] == [9]


def test_a_query_of_a_cached_run_that_history_takes_for_lost(bench: Bench) -> None:
    bench.run(last=2)
    bench.take(last=2, **queries_only(events=events_of(1, 2)))
    bench.confirm()
    assert len(Replay.made) == 1
    bench.take(last=7, **queries_only(events=events_of(1, 7)))
    assert [replay.closed for replay in Replay.made] == [1, 0]


def test_no_run_has_to_go_for_a_query() -> None:
    bench = Bench(max_cached_workflows=1)
    bench.run("a")
    bench.take("b", last=7, **queries_only(events=events_of(1, 7)))
    bench.confirm()
    assert "a" in bench.handler.cache
    assert [replay.closed for replay in Replay.made] == [0, 1]
    bench.run("c")
    assert "a" not in bench.handler.cache


def test_queries_may_ride_with_a_task(bench: Bench) -> None:
    delivery = bench.take(queries=[QUERY, QUERY])
    assert (len(bench.reporter.queries), len(bench.reporter.answers)) == (2, 1)
    bench.confirm()
    assert delivery.acks == 1


def test_a_query_that_nobody_waits_for_is_not_answered(bench: Bench) -> None:
    late = msgspec.structs.replace(QUERY, deadline_ms=1)
    delivery = bench.take(last=7, **queries_only(events=events_of(1, 7), queries=[late]))
    assert (bench.reporter.queries, delivery.acks) == ([], 1)


@pytest.mark.parametrize(
    ("turn", "fields"),
    [(task_failure(), {}), (turn_of(), {"workflow_type": "Other"})],
)
def test_who_asks_learns_why_there_is_no_answer(
    bench: Bench, turn: Turn, fields: dict[str, Any]
) -> None:
    Replay.script.append(turn)
    delivery = bench.take(last=7, **queries_only(events=events_of(1, 7)), **fields)
    assert [answer.error for answer in bench.reporter.queries] == ["failed"]
    bench.confirm()
    assert (delivery.acks, bench.reporter.answers) == (1, [])


def test_who_asks_about_a_run_that_is_gone_learns_it(bench: Bench) -> None:
    bench.take(first=8, last=7, **queries_only(sticky="worker-1"))
    bench.reply(EventsPage([], found=False))
    assert [answer.error for answer in bench.reporter.queries] == ["failed"]


# --- local activities -----------------------------------------------------------------------------


def local_of(seq: int = 1, activity_type: str = "work") -> LocalActivity:
    return LocalActivity(
        seq=seq,
        activity_id=str(seq),
        activity_type=activity_type,
        arguments=b"[]",
        scheduled_ms=1,
        retry_policy=RetryPolicy(),
    )


@pytest.fixture
def with_local(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(bench.handler._activities, "find", lambda name: name == "work" or None)
    return bench


def test_a_task_is_answered_when_its_local_activities_have_ended(with_local: Bench) -> None:
    bench = with_local
    Replay.script += [
        turn_of(local_activities=[local_of()], complete=False),
        turn_of(TIMER),
    ]
    bench.take()
    assert bench.reporter.answers == []
    _, on_done = bench.local.started[0]
    on_done(LocalActivityDone(seq=1))
    bench.runner.do()
    assert bench.replay.calls[-1] == LocalActivityDone(seq=1)
    assert bench.reporter.answers[0][1].commands == [TIMER]


def test_local_activities_are_cancelled_when_the_workflow_says_so(with_local: Bench) -> None:
    Replay.script.append(
        turn_of(local_activities=[local_of(2)], canceled_local=[1], complete=False)
    )
    with_local.take()
    assert with_local.local.cancelled == [("r", 1)]


def test_what_a_workflow_that_ends_still_runs_is_stopped(with_local: Bench) -> None:
    with_local.run()
    assert with_local.local.dropped == ["r"]


def test_a_local_activity_that_nobody_has_fails_the_task(bench: Bench) -> None:
    Replay.script.append(turn_of(local_activities=[local_of()], complete=False))
    answer = bench.run()
    assert isinstance(answer, WorkflowTaskFailed)
    assert answer.failure is not None
    assert "Activity function work is not registered" in answer.failure.message


def test_a_late_end_of_a_local_activity_harms_nobody(with_local: Bench) -> None:
    bench = with_local
    Replay.script.append(turn_of(local_activities=[local_of()], complete=False))
    bench.take()
    bench.handler.leave_behind()
    bench.confirm()
    bench.local.started[0][1](LocalActivityDone(seq=1))
    bench.runner.do()
    assert bench.reporter.answers == []


# --- time and ends --------------------------------------------------------------------------------


def test_history_hears_of_a_task_that_takes_long(with_local: Bench) -> None:
    bench = with_local
    Replay.script.append(turn_of(local_activities=[local_of()], complete=False))
    bench.take()

    def progress_after(seconds: float) -> int:
        bench.clock.advance(seconds)
        bench.handler.tick(bench.clock.monotonic())
        return sum(isinstance(notice, WorkflowTaskProgress) for notice in bench.reporter.notices)

    assert progress_after(0.4) == 0
    assert progress_after(0.1) == 1
    assert progress_after(4.9) == 1
    assert progress_after(0.1) == 2


def test_what_comes_while_it_shuts_down_goes_to_others(bench: Bench) -> None:
    bench.take("a")
    bench.take("a", first=3, last=4)
    bench.handler.close_intake()
    bench.take("b")
    bench.confirm()
    bench.confirm()
    assert bench.reporter.returned == [
        ("given back", str(QUEUE)),
        ("abandoned", "sticky.worker-1.3"),
    ]
    assert not bench.handler.busy


def test_what_ends_while_it_shuts_down_is_not_sticky(with_local: Bench) -> None:
    bench = with_local
    Replay.script.append(turn_of(local_activities=[local_of()], complete=False))
    bench.take()
    bench.handler.close_intake()
    bench.local.started[0][1](LocalActivityDone(seq=1))
    bench.runner.do()
    assert not bench.reporter.answers[0][1].sticky


def test_who_waits_for_room_is_given_back() -> None:
    bench = Bench(max_cached_workflows=1, max_concurrent_workflow_tasks=2)
    bench.take("a")
    bench.take("b")
    bench.handler.close_intake()
    bench.runner.do()
    assert bench.reporter.returned == [("given back", str(QUEUE))]
    assert [replay.closed for replay in Replay.made] == [0, 1]


def test_at_the_end_the_cache_is_thrown_away(bench: Bench) -> None:
    bench.run("a")
    bench.run("b")
    bench.handler.close()
    bench.runner.do()
    assert [replay.closed for replay in Replay.made] == [1, 1]


def test_confirms_come_on_any_thread(bench: Bench) -> None:
    delivery = bench.take()
    thread = threading.Thread(target=bench.reporter.confirm)
    thread.start()
    thread.join()
    assert delivery.acks == 1


def test_a_task_that_is_for_another_queue_now_is_brought_there(bench: Bench) -> None:
    ramping = NAMES.ramping("workflow", "q")
    asked = []
    bench.handler.home_of = lambda queue, id: asked.append((queue, id)) or ramping
    delivery = bench.take()
    bench.confirm()
    assert asked == [(QUEUE, "w")]
    assert bench.reporter.returned == [("given back", str(ramping))]
    assert (delivery.acks, bench.reporter.answers) == (1, [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ("", 0)),
        ({"default_versioning_behavior": VersioningBehavior.PINNED}, ("", 0)),
        (
            {
                "deployment": "shop",
                "build_id": "1",
                "default_versioning_behavior": VersioningBehavior.AUTO_UPGRADE,
            },
            ("shop.1", 2),
        ),
    ],
)
def test_an_answer_says_which_version_it_is_of(
    options: dict[str, Any], said: tuple[str, int]
) -> None:
    answer = Bench(**options).run()
    assert (answer.version, answer.versioning_behavior) == said


class Leave(Passage):
    def __init__(self) -> None:
        self.said: list[str] = []

    def begun(self) -> None:
        self.said.append("begun")

    def ended(self) -> None:
        self.said.append("ended")

    def unused(self) -> None:
        self.said.append("unused")


class Limited(Source):
    """What only a few may have: it waits for its leave at the worker."""

    waits = True

    def __init__(self, queue: QueueName) -> None:
        super().__init__(queue)
        self.resumes: list[Any] = []

    def admit(self, resume: Any = None) -> Passage | None:
        self.resumes.append(resume)
        return None


def limited(bench: Bench) -> tuple[Limited, Delivery]:
    source = Limited(NAMES.capable("q", ["gpu"], Kind.WORKFLOW))
    delivery = Delivery(task_message(bench.task(), "m"))
    bench.handler.on_deliveries(source, [delivery])
    bench.runner.do()
    return source, delivery


def test_what_only_a_few_may_have_waits_for_its_leave(bench: Bench) -> None:
    source, delivery = limited(bench)
    assert not bench.reporter.answers
    assert not bench.reporter.returned
    bench.handler.cover("q", Leave)  # it is not at work yet
    leave = Leave()
    source.resumes[0](leave)
    bench.runner.do()
    bench.reporter.confirm()
    assert len(bench.reporter.answers) == delivery.acks == 1
    assert leave.said[0] == "begun"
    assert "unused" not in leave.said


def test_who_waits_for_leave_is_given_back_at_the_end_and_needs_none_then(bench: Bench) -> None:
    source, _ = limited(bench)
    bench.handler.close_intake()
    assert bench.reporter.returned == [("given back", str(source.queue))]
    leave = Leave()
    source.resumes[0](leave)
    bench.runner.do()
    assert leave.said == ["unused"]
    assert not bench.reporter.answers
