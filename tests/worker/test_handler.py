"""The handler, with everything around it played by hand: each race is a line of a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.worker.attempts import place
from tq_broker import activity
from tq_broker.common import ActivityIDConflictPolicy
from tq_broker.converter import DataConverter
from tq_broker.exceptions import BrokerUnavailable, CancelledError, TimeoutType
from tq_broker.model import envelope, failure
from tq_broker.model.limits import Limits
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, Names
from tq_broker.model.parts import EACH_KEY, PartTable
from tq_broker.model.passes import What
from tq_broker.model.requests import shard_of
from tq_broker.model.rule_table import NO_RULES, RuleTable
from tq_broker.model.tasks import ActivityTask, WorkflowOrigin
from tq_broker.model.workflow_tasks import StartGranted
from tq_broker.queues.ids import IdSource
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.handler import HOLD_S, Handler
from tq_broker.worker.notices import Notices
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.registry import Registry
from tq_broker.worker.roster import UsheredPassage
from tq_broker.worker.slots import FixedSlots
from tq_broker.worker.table import Table
from tq_broker.worker.throttle import Throttle

NAMES = Names("n")
MINUTE = timedelta(minutes=1)
QUEUE = NAMES.activity("q")


@activity.defn
def work() -> None:
    pass


@activity.defn
def heavy() -> None:
    pass


@dataclass(eq=False)
class Delivery:
    message: Message
    redelivered: bool = False
    is_lost: bool = False
    acks: int = 0
    queue: str = str(QUEUE)
    routing_key: str = QUEUE.key

    def ack(self) -> None:
        self.acks += 1

    def reject(self, *, requeue: bool) -> None:
        raise AssertionError("the handler rejects nothing")


@dataclass(eq=False)
class Window:
    """A source that counts."""

    taken: int = 0
    released_count: int = 0
    queue = QUEUE
    name = str(QUEUE)
    task_queue = "q"

    def released(self) -> None:
        self.released_count += 1

    waits = False

    def admit(self, resume: Any = None) -> Passage | None:
        return FREE

    @property
    def in_hand(self) -> int:
        return self.taken - self.released_count


@dataclass
class Told:
    """Something the reporter was asked to tell; ``confirm`` plays the broker."""

    how: str
    what: tuple[Any, ...]
    done: Callable[[], None]
    is_confirmed: bool = False

    def confirm(self) -> None:
        assert not self.is_confirmed
        self.is_confirmed = True
        self.done()


class FakeRoster:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.waiting: list[Callable[[], None]] = []

    def tell(self, mark: str, what: What, done: Callable[[], None]) -> None:
        self.told.append((mark, what.value))
        self.waiting.append(done)

    def passage(self, mark: str, *, was_begun: bool) -> UsheredPassage:
        return UsheredPassage(self, mark, was_begun)  # type: ignore[arg-type]

    def confirm_all(self) -> None:
        for done in self.waiting:
            done()


class Reporter:
    def __init__(self) -> None:
        self.told: list[Told] = []
        self.roster = FakeRoster()

    def completed(self, task: Any, result: bytes, started_ms: int, done: Any) -> None:
        self.told.append(Told("completed", (task, result), done))

    def failed(
        self, task: Any, body: Any, failed: Any, started: int, done: Any, *, heartbeat: Any = None
    ) -> None:
        self.told.append(Told("failed", (task, failed), done))

    def notice(
        self,
        task: Any,
        status: Any,
        done: Any,
        *,
        result: bytes = b"null",
        started_ms: int = 0,
        heartbeat: Any = None,
    ) -> None:
        self.told.append(Told(status.value, (task, result), done))

    def give_back(self, message: Any, queue: Any, done: Any) -> None:
        self.told.append(Told("give back", (message, queue), done))

    def park(self, message: Any, queue: str, reason: str, done: Any) -> None:
        self.told.append(Told("park", (message, reason), done))

    @property
    def how(self) -> list[str]:
        return [told.how for told in self.told]


class Executor:
    def __init__(self) -> None:
        self.started: list[Attempt] = []
        self.cancelled: list[Attempt] = []
        self.abandoned: list[Attempt] = []

    def start(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            attempt.passage.begun()
        self.started += attempts

    def cancel(self, attempt: Attempt) -> None:
        self.cancelled.append(attempt)

    def abandon(self, attempt: Attempt) -> None:
        self.abandoned.append(attempt)


@dataclass
class Settings:
    cancelled: set[str] = field(default_factory=set)
    rules: RuleTable = NO_RULES

    table: PartTable | None = None
    held: set[str] = field(default_factory=set)

    def is_cancelled(self, activity_id: str, scheduled_ms: int) -> bool:
        return activity_id in self.cancelled

    def part_table(self, task_queue: str) -> PartTable | None:
        return self.table

    def back_off(self, task_queue: str, key: str) -> str | None:
        return key if key in self.held else None


class Keeper:
    def __init__(self) -> None:
        self.kept: list[Attempt] = []

    def beat(self, attempt: Attempt) -> None:
        pass

    def keep(self, attempt: Attempt) -> None:
        self.kept.append(attempt)


class Inquiries:
    """History answers when the test does."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, Any, Callable[[Any], None]]] = []

    def ask(self, shard: int, request: Any, on_reply: Callable[[Any], None]) -> None:
        self.asked.append((shard, request, on_reply))

    def answer(self, *, granted: bool) -> None:
        self.asked.pop(0)[2](StartGranted(granted))


class Sender:
    """Background work waits until the test does it."""

    names = NAMES

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.broker = self
        self.claims: list[bool | Exception] = []
        self.ids = IdSource()

    def in_background(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def claim(self, plan: Any, deadline: float) -> bool:
        answer = self.claims.pop(0) if self.claims else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    def do(self) -> None:
        self.work.pop(0)()


class Bench:
    """A handler, and everybody it talks to."""

    def __init__(self, slots: int = 2, **by_type: int) -> None:
        self.clock = ManualClock()
        self.table, self.reporter, self.sender = Table(), Reporter(), Sender()
        self.executor, self.keeper, self.settings = Executor(), Keeper(), Settings()
        self.window = Window()
        registry = Registry([work, heavy], DataConverter().payload_converter)
        self.handler = Handler(
            registry,
            self.table,
            self.reporter,  # type: ignore[arg-type]
            self.sender,  # type: ignore[arg-type]
            place(self.clock),
            FixedSlots(slots),
            by_type,
        )
        self.handler.keeper = self.keeper  # type: ignore[assignment]
        self.handler.settings = self.settings  # type: ignore[assignment]
        self.inquiries = self.handler.inquiries = Inquiries()  # type: ignore[assignment]
        throttle = Throttle(MINUTE, MINUTE)
        self.handler.notices = Notices(self.reporter, place(self.clock), throttle)  # type: ignore[arg-type]
        self.handler.executors = {"thread": self.executor}  # type: ignore[dict-item]

    def delivery(self, name: str = "a", *, redelivered: bool = False, **fields: Any) -> Delivery:
        task = ActivityTask(
            **(
                {
                    "activity_id": name,
                    "activity_type": "work",
                    "task_queue": "q",
                    "body": b'{"args":[]}',
                    "scheduled_ms": int(self.clock.wall() * 1000),
                    "reply_to": "tq.n.reply.c",
                    "start_to_close_ms": 60_000,
                }
                | fields
            )
        )
        return Delivery(envelope.task_message(task), redelivered)

    def take(self, *deliveries: Delivery, window: Window | None = None) -> None:
        window = window or self.window
        window.taken += len(deliveries)
        self.handler.on_deliveries(window, deliveries)

    def take_one(self, name: str = "a", **options: Any) -> Delivery:
        delivery = self.delivery(name, **options)
        self.take(delivery)
        return delivery

    @property
    def started(self) -> list[str]:
        return [attempt.task.activity_id for attempt in self.executor.started]

    def confirm_all(self) -> None:
        for told in list(self.reporter.told):
            if not told.is_confirmed:
                told.confirm()


@pytest.fixture
def bench() -> Bench:
    return Bench()


WITH_ID = {"id_retention_ms": 60_000, "start_token": "s"}


class Barred(Window):
    """A source whose limit lets nothing through for now."""

    waits = True

    def admit(self, resume: Any = None) -> Passage | None:
        return None


# --- taking -------------------------------------------------------------------------------------


def test_a_delivery_is_acknowledged_only_after_its_end_is_confirmed(bench: Bench) -> None:
    delivery = bench.take_one()
    bench.handler.returned(bench.executor.started[0], b"1")
    assert bench.reporter.how == ["completed"]
    assert (delivery.acks, bench.window.in_hand, bench.handler.unreported) == (0, 1, 1)
    bench.confirm_all()
    assert (delivery.acks, bench.window.in_hand, bench.handler.unreported) == (1, 0, 0)


def test_who_wants_no_outcome_is_acknowledged_at_once(bench: Bench) -> None:
    delivery = bench.take_one(reply_to=None)
    bench.handler.returned(bench.executor.started[0], b"1")
    assert (delivery.acks, bench.reporter.how) == (1, [])


def test_deliveries_that_come_together_are_started_together(bench: Bench) -> None:
    bench.take(bench.delivery("a"), bench.delivery("b"))
    assert bench.started == ["a", "b"]


def test_one_bad_delivery_among_many_is_parked_and_the_others_run(bench: Bench) -> None:
    bad = Delivery(Message(body=b"", message_id="1"))
    worse = bench.delivery("c", body=b"garbage")
    bench.take(bench.delivery("a"), bad, worse, bench.delivery("b"))
    assert bench.started == ["a", "b"]
    assert bench.reporter.how == ["park", "park"]
    bench.confirm_all()
    assert (bad.acks, worse.acks, bench.window.in_hand) == (1, 1, 2)


def test_a_caller_that_asked_is_told_of_the_start(bench: Bench) -> None:
    bench.take_one(schedule_to_start_ms=60_000)
    assert bench.reporter.how == ["started"]


def test_what_was_cancelled_is_told_so_and_not_run(bench: Bench) -> None:
    bench.settings.cancelled.add("a")
    delivery = bench.take_one()
    assert bench.started == []
    assert bench.reporter.told[0].what[1].kind is failure.FailureKind.CANCELED
    bench.confirm_all()
    assert delivery.acks == 1


def test_a_redelivered_task_is_lost_and_not_run(bench: Bench) -> None:
    bench.take_one(redelivered=True)
    assert bench.started == []
    assert bench.reporter.told[0].what[1].type == "WorkerLost"


def test_a_lost_task_whose_body_nobody_can_read_is_parked(bench: Bench) -> None:
    bench.take_one(redelivered=True, body=b"garbage")
    assert bench.reporter.how == ["park"]


# --- for workflows ------------------------------------------------------------------------------

ORIGIN = WorkflowOrigin("w", "r", "W", "a", 5)
OF_WORKFLOW = {"workflow": ORIGIN, "reply_to": str(NAMES.history(3))}
AT_MOST_ONCE = OF_WORKFLOW | {"workflow": msgspec.structs.replace(ORIGIN, claim=True)}


def test_an_activity_of_a_workflow_answers_to_its_shard(bench: Bench) -> None:
    bench.take_one(**OF_WORKFLOW)
    assert bench.started == ["a"]


@pytest.mark.parametrize("reply_to", [None, "tq.n.reply.c", "tq.other.history.3"])
def test_an_activity_of_a_workflow_that_names_no_shard_is_parked(
    bench: Bench, reply_to: str | None
) -> None:
    bench.take_one(**(OF_WORKFLOW | {"reply_to": reply_to}))
    assert bench.reporter.how == ["park"]


def test_what_must_run_at_most_once_waits_for_leave(bench: Bench) -> None:
    delivery = bench.take_one(**AT_MOST_ONCE)
    ((shard, request, _),) = bench.inquiries.asked
    assert bench.started == []
    assert shard == shard_of("w")
    assert (request.run.run_id, request.scheduled_event_id, request.attempt) == ("r", 5, 1)
    bench.inquiries.answer(granted=True)
    assert bench.started == ["a"]
    assert bench.executor.started[0].announced, "history knows that it has begun"
    assert delivery.acks == 0


def test_what_is_given_no_leave_is_acknowledged_and_not_run(bench: Bench) -> None:
    delivery = bench.take_one(**AT_MOST_ONCE)
    bench.inquiries.answer(granted=False)
    assert (bench.started, delivery.acks, bench.window.in_hand) == ([], 1, 0)
    assert not bench.handler.busy


def test_what_waits_for_leave_has_a_slot(bench: Bench) -> None:
    for name in "abc":
        bench.take_one(name, **AT_MOST_ONCE)
    assert len(bench.inquiries.asked) == 2
    bench.inquiries.answer(granted=False)
    assert len(bench.inquiries.asked) == 2, "the third asks when the first has no leave"


# --- slots by type --------------------------------------------------------------------------------


def test_a_type_that_is_full_waits_a_moment_and_goes_back_while_others_begin() -> None:
    bench = Bench(4, heavy=1)
    for name in "ab":
        bench.take_one(name, activity_type="heavy")
    bench.take_one("c")
    assert bench.started == ["a", "c"]
    assert bench.handler.free_slots == 2, "what waits for its type takes no slot"
    bench.clock.advance(HOLD_S)
    bench.handler.give_back_waiting()
    assert bench.reporter.how == ["give back"]


def test_what_waits_for_a_limit_goes_back_before_rabbitmq_takes_it_for_lost(bench: Bench) -> None:
    window = Barred()
    bench.take(bench.delivery("old"), window=window)
    bench.clock.advance(60.0)
    bench.take(bench.delivery("new"), window=window)
    bench.clock.advance(540.0)
    bench.handler.give_back_limited(600.0)
    bench.handler.give_back_limited(600.0)
    bench.confirm_all()
    assert bench.reporter.how == ["give back"]
    assert window.in_hand == 1
    bench.handler.close_intake()
    assert bench.reporter.how == ["give back", "give back"]
    assert not bench.started


def test_the_next_of_a_type_begins_when_one_has_ended() -> None:
    bench = Bench(4, heavy=1)
    for name in "ab":
        bench.take_one(name, activity_type="heavy")
    bench.handler.returned(bench.executor.started[0], b"1")
    assert bench.started == ["a", "b"]


def test_few_tasks_are_taken_after_one_was_refused_for_its_type() -> None:
    bench = Bench(10, heavy=1)
    bench.take_one("a", activity_type="heavy")
    assert (bench.handler.free_slots, bench.handler.withheld) == (9, 0)
    bench.take_one("b", activity_type="heavy")
    assert (bench.handler.free_slots, bench.handler.withheld) == (1, 8)
    bench.take_one("c")
    assert (bench.handler.free_slots, bench.handler.withheld) == (2, 6)


def test_one_that_asks_for_leave_has_the_slot_of_its_type() -> None:
    bench = Bench(4, heavy=1)
    bench.take_one("a", activity_type="heavy", **AT_MOST_ONCE)
    bench.take_one("b", activity_type="heavy")
    assert (len(bench.inquiries.asked), bench.started) == (1, [])
    bench.inquiries.answer(granted=False)
    assert bench.started == ["b"], "the first has no leave, and does not need its slot"


def test_a_limit_that_comes_into_force_covers_limited_types_too() -> None:
    bench, made = Bench(4, heavy=1), list[Passage]()

    class Covered(Passage):
        def ended(self) -> None:
            made.append(self)

    bench.take_one("a", activity_type="heavy")
    bench.handler.cover("q", Covered)
    bench.handler.returned(bench.executor.started[0], b"1")
    assert len(made) == 1
    bench.take_one("b", activity_type="heavy")
    assert bench.started == ["a", "b"]


def test_slots_follow_what_begins_and_ends() -> None:
    bench = Bench()

    class Few:
        def __init__(self) -> None:
            self.capacity = self.most = 0
            self.told: list[Any] = []

        def take(self, owner: Any, info: Any) -> None:
            self.told.append(info.activity_type)

        def release(self, owner: Any) -> None:
            self.told.append(bench.table.running())

        def tick(self, spoken_for: int = 0) -> None:
            self.told.append(f"{spoken_for} spoken for")

    slots = Few()
    bench.handler._slots = slots  # type: ignore[assignment]
    bench.take_one("a")
    assert bench.started == []
    slots.capacity = 1
    bench.handler.adjust_slots()
    assert bench.started == ["a"], "what has waited begins when there is a slot"
    bench.handler.returned(bench.executor.started[0], b"1")
    # It is released before it counts as ended: what is free is never too much.
    assert slots.told == ["1 spoken for", "work", 1]


def test_every_delivery_asks_for_itself(bench: Bench) -> None:
    bench.take_one("a", **AT_MOST_ONCE)
    bench.take_one("b", **AT_MOST_ONCE)
    ids = {request.request_id for _, request, _ in bench.inquiries.asked}
    assert len(ids) == 2


def test_leave_that_comes_while_the_worker_shuts_down_is_used(bench: Bench) -> None:
    bench.take_one(**AT_MOST_ONCE)
    bench.handler.close_intake()
    assert bench.handler.busy
    bench.inquiries.answer(granted=True)
    assert bench.started == ["a"]


def test_who_is_given_no_answer_is_given_back_at_the_end(bench: Bench) -> None:
    delivery = bench.take_one(**AT_MOST_ONCE)
    bench.handler.leave_behind()
    assert bench.reporter.how == ["give back"]
    bench.confirm_all()
    assert delivery.acks == 1
    bench.inquiries.answer(granted=True)
    assert bench.started == [], "somebody else may ask now"


def test_garbage_for_which_there_is_leave_is_parked(bench: Bench) -> None:
    bench.take_one(**AT_MOST_ONCE, body=b"garbage")
    bench.inquiries.answer(granted=True)
    assert bench.reporter.how == ["park"]


# --- holding ------------------------------------------------------------------------------------


def test_what_has_no_slot_waits_for_one(bench: Bench) -> None:
    for name in "abc":
        bench.take_one(name)
    assert bench.started == ["a", "b"]
    bench.handler.returned(bench.executor.started[0], b"1")
    assert bench.started == ["a", "b", "c"]
    assert bench.table.running() == 2


def test_what_waits_too_long_is_given_back(bench: Bench) -> None:
    deliveries = [bench.take_one(name) for name in "abc"]
    bench.handler.give_back_waiting()
    assert bench.reporter.how == []
    bench.clock.advance(HOLD_S)
    bench.handler.give_back_waiting()
    assert bench.reporter.how == ["give back"]
    assert deliveries[2].acks == 0
    bench.confirm_all()
    assert (deliveries[2].acks, bench.window.in_hand) == (1, 2)
    bench.handler.returned(bench.executor.started[0], b"1")
    assert bench.started == ["a", "b"], "it is somebody else's now"


def test_the_fresh_copy_of_what_is_being_given_back_is_a_task_of_its_own(bench: Bench) -> None:
    for name in "abc":
        bench.take_one(name)
    bench.clock.advance(HOLD_S)
    bench.handler.give_back_waiting()
    fresh = bench.take_one("c")  # before the broker's confirm has come
    bench.confirm_all()
    assert fresh.acks == 0
    bench.handler.returned(bench.executor.started[0], b"1")
    assert bench.started == ["a", "b", "c"]
    assert bench.executor.started[2].delivery is fresh


def test_a_waiting_task_that_lost_its_connection_costs_no_attempt(bench: Bench) -> None:
    """Found: its copy was taken for lost, and the waiting one was run as well."""
    for name in "ab":
        bench.take_one(name)
    first = bench.take_one("c")
    again = bench.take_one("c", redelivered=True)
    assert bench.reporter.how == []
    assert first.acks == 1
    bench.handler.returned(bench.executor.started[0], b"1")
    assert bench.started == ["a", "b", "c"]
    assert bench.executor.started[2].delivery is again
    assert bench.window.in_hand == 3


def test_a_waiting_task_with_a_bad_body_is_parked_when_its_turn_comes(bench: Bench) -> None:
    for name in "ab":
        bench.take_one(name)
    bench.take_one("c", body=b"garbage")
    bench.take_one("d")
    bench.handler.returned(bench.executor.started[0], b"1")
    assert sorted(bench.reporter.how) == ["completed", "park"]
    assert bench.started == ["a", "b", "d"]


# --- claiming -----------------------------------------------------------------------------------


def test_a_claimed_task_is_run(bench: Bench) -> None:
    bench.take_one(**WITH_ID)
    assert (bench.started, bench.handler.unreported) == ([], 1)
    bench.sender.do()
    assert (bench.started, bench.handler.unreported) == (["a"], 0)


def test_claims_under_way_take_slots(bench: Bench) -> None:
    for name in "abc":
        bench.take_one(name, **WITH_ID)
    assert len(bench.sender.work) == 2
    bench.sender.do()
    bench.sender.do()
    assert bench.started == ["a", "b"]
    bench.handler.returned(bench.executor.started[0], b"1")
    bench.sender.do()
    assert bench.started == ["a", "b", "c"]


def test_a_claim_that_is_not_ours_frees_its_slot(bench: Bench) -> None:
    bench.sender.claims = [False, True, True]
    for name in "abc":
        bench.take_one(name, **WITH_ID)
    for _ in range(3):
        bench.sender.do()
    assert bench.started == ["b", "c"]


@pytest.mark.parametrize(
    ("policy", "how"),
    [
        (ActivityIDConflictPolicy.USE_EXISTING, "joined"),
        (ActivityIDConflictPolicy.FAIL, "refused"),
    ],
)
def test_a_taken_id_is_told(bench: Bench, policy: ActivityIDConflictPolicy, how: str) -> None:
    bench.sender.claims = [False] * 10
    delivery = bench.take_one(**WITH_ID, id_conflict=policy)
    bench.sender.do()
    assert bench.reporter.how == [how]
    assert msgspec.json.decode(bench.reporter.told[0].what[1]).startswith("tq.n.claim.")
    bench.confirm_all()
    assert (delivery.acks, bench.started) == (1, [])


def test_a_copy_of_the_start_that_has_the_claim_is_not_refused(bench: Bench) -> None:
    bench.sender.claims = [False, True]
    delivery = bench.take_one(**WITH_ID, id_conflict=ActivityIDConflictPolicy.FAIL, resent=1)
    bench.sender.do()
    assert (bench.reporter.how, bench.started, delivery.acks) == ([], [], 1)


def test_a_claim_that_fails_gives_the_task_back(bench: Bench) -> None:
    bench.sender.claims = [BrokerUnavailable("away")]
    bench.take_one(**WITH_ID)
    bench.sender.do()
    assert (bench.reporter.how, bench.started) == (["give back"], [])


def test_further_attempts_need_not_win_the_claim_again(bench: Bench) -> None:
    bench.sender.claims = [False]
    bench.take_one(**WITH_ID, attempt=2)
    bench.sender.do()
    assert bench.started == ["a"]


def test_a_lost_task_with_an_id_is_lost_only_if_the_id_is_its_own(bench: Bench) -> None:
    bench.sender.claims = [True, False, BrokerUnavailable("away")]
    for name in "abc":
        bench.take_one(name, redelivered=True, **WITH_ID)
        bench.sender.do()
    assert bench.reporter.how == ["failed", "joined", "failed"]
    assert bench.started == []


def test_a_claim_that_ends_after_the_worker_closed_gives_its_task_back(bench: Bench) -> None:
    """Found: it was begun on executors that had been closed."""
    bench.take_one(**WITH_ID)
    bench.handler.close_intake()
    bench.sender.do()
    assert (bench.reporter.how, bench.started) == (["give back"], [])


def test_a_task_that_is_claimed_is_held_by_its_latest_delivery(bench: Bench) -> None:
    first = bench.take_one(**WITH_ID)
    again = bench.take_one(redelivered=True, **WITH_ID)
    bench.sender.do()
    assert bench.executor.started[0].delivery is again
    assert (first.acks, again.acks, bench.window.in_hand) == (1, 0, 1)
    assert bench.reporter.how == []


def test_a_claimed_task_with_a_bad_body_is_parked(bench: Bench) -> None:
    delivery = bench.take_one(**WITH_ID, body=b"garbage")
    bench.sender.do()
    assert bench.reporter.how == ["park"]
    bench.confirm_all()
    assert (delivery.acks, bench.handler.unreported) == (1, 0)


# --- adopting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("redelivered", [False, True])
def test_a_copy_of_what_runs_takes_the_place_of_its_delivery(
    bench: Bench, redelivered: bool
) -> None:
    first = bench.take_one()
    other = Window()
    again = bench.delivery(redelivered=redelivered)
    bench.take(again, window=other)
    assert (first.acks, again.acks) == (1, 0)
    assert (bench.window.in_hand, other.in_hand) == (0, 1)
    bench.handler.returned(bench.executor.started[0], b"1")
    bench.confirm_all()
    assert (first.acks, again.acks) == (1, 1)
    assert other.in_hand == 0
    assert bench.started == ["a"]


def test_a_lease_that_was_replaced_is_let_go(bench: Bench) -> None:
    """Found: it was forgotten, held until the worker ended, and then counted as lost."""
    bench.take_one()
    attempt = bench.executor.started[0]
    lease = bench.delivery()
    before = bench.table.exchange(attempt.task, lease, None, 0.0)
    assert before is not None
    before.let_go()
    again = bench.take_one(redelivered=True)
    assert (lease.acks, again.acks, bench.window.in_hand) == (1, 0, 1)
    assert not attempt.windowless


def test_a_copy_that_comes_while_the_end_is_told_is_held_until_it_is(bench: Bench) -> None:
    """Found: it was acknowledged at once: with this process the outcome would have been lost."""
    bench.take_one()
    bench.handler.returned(bench.executor.started[0], b"1")
    again = bench.take_one(redelivered=True)
    assert again.acks == 0
    assert bench.reporter.how == ["completed"]
    bench.confirm_all()
    assert again.acks == 1
    assert bench.window.in_hand == 0


def test_a_copy_of_what_is_being_told_without_having_run_is_not_told_twice(bench: Bench) -> None:
    """Found: the next attempt was put on its queue twice."""
    bench.take_one(redelivered=True)
    again = bench.take_one(redelivered=True)
    assert bench.reporter.how == ["failed"]
    bench.confirm_all()
    assert again.acks == 1
    late = bench.take_one(redelivered=True)
    assert bench.reporter.how == ["failed"]
    assert (late.acks, bench.window.in_hand) == (1, 0)


def test_what_was_told_is_dropped_when_it_comes_again(bench: Bench) -> None:
    bench.take_one()
    bench.handler.returned(bench.executor.started[0], b"1")
    bench.confirm_all()
    again = bench.take_one(redelivered=True)
    assert (again.acks, bench.window.in_hand) == (1, 0)
    assert bench.started == ["a"]


# --- ends -----------------------------------------------------------------------------------------


def test_the_first_end_counts(bench: Bench) -> None:
    bench.take_one()
    attempt = bench.executor.started[0]
    bench.handler.time_out(attempt, TimeoutType.START_TO_CLOSE)
    bench.handler.returned(attempt, b"1")
    bench.handler.complete(attempt, b"2")
    bench.handler.end(attempt, failure.canceled())
    assert bench.reporter.how == ["failed"]
    assert bench.executor.abandoned == [attempt]
    assert attempt.cancel_requested


def test_code_of_an_ended_attempt_still_takes_its_slot(bench: Bench) -> None:
    for name in "ab":
        bench.take_one(name)
    bench.handler.time_out(bench.executor.started[0], TimeoutType.START_TO_CLOSE)
    bench.confirm_all()
    bench.take_one("c")
    assert bench.started == ["a", "b"]
    bench.handler.raised(bench.executor.started[0], CancelledError())
    assert bench.started == ["a", "b", "c"]
    assert bench.reporter.how == ["failed"]


def test_an_attempt_completed_elsewhere_is_kept_and_frees_its_slot(bench: Bench) -> None:
    bench.take_one()
    attempt = bench.executor.started[0]
    bench.handler.raised(attempt, activity.CompleteAsyncError())
    assert (bench.keeper.kept, bench.table.running(), bench.reporter.how) == ([attempt], 0, [])
    bench.handler.complete(attempt, b"1")
    assert bench.reporter.how == ["completed"]


def test_an_attempt_completed_elsewhere_before_its_code_returned_is_not_kept(
    bench: Bench,
) -> None:
    bench.take_one()
    attempt = bench.executor.started[0]
    bench.handler.complete(attempt, b"1")
    bench.handler.raised(attempt, activity.CompleteAsyncError())
    assert (bench.keeper.kept, bench.reporter.how) == ([], ["completed"])


def test_a_cancellation_reaches_earlier_starts_only(bench: Bench) -> None:
    bench.take_one()
    attempt = bench.executor.started[0]
    bench.handler.request_cancel("other", 10**15)
    bench.handler.request_cancel("a", attempt.task.scheduled_ms - 1)
    assert not attempt.cancel_requested
    bench.handler.request_cancel("a", attempt.task.scheduled_ms)
    assert attempt.cancel_requested
    assert bench.executor.cancelled == [attempt]


def test_a_cancellation_between_intake_and_start_is_not_missed(bench: Bench) -> None:
    """Found: a task that waited for a slot or its claim was not told."""
    bench.take_one(**WITH_ID)
    bench.settings.cancelled.add("a")
    bench.sender.do()
    assert bench.executor.started[0].cancel_requested


def test_closing_gives_back_what_waits_and_what_comes(bench: Bench) -> None:
    for name in "abc":
        bench.take_one(name)
    bench.handler.close_intake()
    bench.take_one("d")
    assert bench.reporter.how == ["give back", "give back"]
    bench.handler.returned(bench.executor.started[0], b"1")
    assert bench.started == ["a", "b"]


def test_what_is_left_behind_is_told_to_be_retried_elsewhere(bench: Bench) -> None:
    bench.take_one()
    bench.handler.interrupt_all()
    bench.handler.leave_behind()
    assert bench.reporter.told[0].what[1].type == "WorkerShutdown"
    attempt = bench.executor.started[0]
    assert (bench.executor.cancelled, bench.executor.abandoned) == ([attempt], [attempt])


# --- anything, in any order ---------------------------------------------------------------------


class Anything(RuleBasedStateMachine):
    """Deliveries, broken connections, ends, confirms and claims in any order.

    ``alive`` has the deliveries that the broker still counts as ours, one per task; a broken
    connection makes it forget them, and hand out a redelivered copy of each.
    """

    @initialize(slots=st.integers(1, 3), heavy=st.integers(1, 2))
    def begin(self, slots: int, heavy: int) -> None:
        self.bench = Bench(slots, heavy=heavy)
        self.slots, self.heavy = slots, heavy
        self.names: list[tuple[str, dict[str, Any]]] = []
        self.alive: dict[str, Delivery] = {}
        self.is_closed = False

    def unconfirmed(self) -> list[Told]:
        return [told for told in self.bench.reporter.told if not told.is_confirmed]

    def running(self) -> list[Attempt]:
        return [attempt for attempt in self.bench.executor.started if attempt.code_running]

    @rule(with_id=st.booleans(), wants_outcome=st.booleans(), is_heavy=st.booleans())
    def deliver(self, with_id: bool, wants_outcome: bool, is_heavy: bool) -> None:
        name = f"a{len(self.names)}"
        fields = dict(WITH_ID) if with_id else {}
        fields["activity_type"] = "heavy" if is_heavy else "work"
        if not wants_outcome:
            fields["reply_to"] = None
        self.names.append((name, fields))
        self.alive[name] = self.bench.take_one(name, **fields)

    @rule()
    def break_connection(self) -> None:
        lost = {name: d for name, d in self.alive.items() if not d.acks}
        for name, delivery in lost.items():
            fields = next(fields for known, fields in self.names if known == name)
            delivery.is_lost = True
            self.alive[name] = self.bench.take_one(name, redelivered=True, **fields)

    @precondition(lambda self: self.running())
    @rule(number=st.integers(0, 9), how=st.sampled_from(["returned", "raised", "later", "late"]))
    def stop_code(self, number: int, how: str) -> None:
        attempts = self.running()
        attempt = attempts[number % len(attempts)]
        handler = self.bench.handler
        if how == "returned":
            handler.returned(attempt, b"1")
        elif how == "raised":
            handler.raised(attempt, ValueError("bad"))
        elif how == "late":
            handler.time_out(attempt, TimeoutType.START_TO_CLOSE)
        else:
            handler.raised(attempt, activity.CompleteAsyncError())
            handler.complete(attempt, b"2")

    @precondition(lambda self: self.unconfirmed())
    @rule(number=st.integers(0, 9))
    def confirm(self, number: int) -> None:
        told = self.unconfirmed()
        told[number % len(told)].confirm()

    @precondition(lambda self: self.bench.sender.work)
    @rule(mine=st.booleans())
    def claim(self, mine: bool) -> None:
        self.bench.sender.claims = [mine]
        self.bench.sender.do()

    @rule()
    def tick(self) -> None:
        self.bench.clock.advance(HOLD_S)
        self.bench.handler.give_back_waiting()

    @rule()
    def close(self) -> None:
        self.bench.handler.close_intake()
        self.is_closed = True

    @invariant()
    def no_more_run_than_there_are_slots(self) -> None:
        bench = self.bench
        assert bench.table.running() + bench.handler._claiming <= self.slots + sum(
            told.how in ("give back", "failed") for told in bench.reporter.told
        )
        assert len(self.running()) <= self.slots

    @invariant()
    def no_more_of_a_type_run_than_may(self) -> None:
        running = [one for one in self.running() if one.task.activity_type == "heavy"]
        assert len(running) <= self.heavy

    @invariant()
    def what_waits_for_its_type_keeps_no_slot_from_others(self) -> None:
        waiting = [one.task.activity_type for one in self.bench.handler._waiting]
        if "work" in waiting:
            assert self.bench.handler._free_slots() <= 0

    @invariant()
    def nothing_is_run_twice(self) -> None:
        assert len(set(self.bench.started)) == len(self.bench.started)

    @invariant()
    def a_living_delivery_is_acknowledged_once_and_after_the_confirm(self) -> None:
        open_ends = {
            told.what[0].activity_id for told in self.unconfirmed() if told.how != "give back"
        }
        for name, delivery in self.alive.items():
            assert delivery.acks <= 1
            if name in open_ends:
                assert delivery.acks == 0

    @invariant()
    def the_window_counts_what_is_held(self) -> None:
        assert self.bench.window.in_hand >= 0

    def teardown(self) -> None:
        """When all has ended nothing is left in hand."""
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        bench.handler.close_intake()
        for _ in range(5):
            while bench.sender.work:
                bench.sender.do()
            for attempt in self.running():
                bench.handler.returned(attempt, b"1")
            bench.confirm_all()
        assert bench.handler.unreported == 0
        assert all(delivery.acks == 1 for delivery in self.alive.values())
        assert bench.window.in_hand == 0
        assert bench.table._held == {}
        assert bench.handler._early == {}
        assert bench.handler._types._running == {"heavy": 0}


Anything.TestCase.settings = hypothesis_settings(
    max_examples=150, stateful_step_count=30, deadline=None
)
TestAnything = Anything.TestCase


# --- limits of types and keys -------------------------------------------------------------------


def test_what_waits_for_its_key_waits_elsewhere_and_uses_up_nothing(bench: Bench) -> None:
    bench.settings.table = PartTable({EACH_KEY: Limits(rate=1.0)})
    keyed = bench.take_one("keyed", rate_limit_key="k")
    bench.take_one("free")
    assert bench.started == ["free"]
    (told,) = bench.reporter.told
    assert (told.how, told.what[1]) == ("give back", NAMES.queue(Kind.ANTEROOM, "q"))
    assert not keyed.acks
    bench.confirm_all()
    assert keyed.acks == 1


def test_a_key_that_is_backed_off_waits_elsewhere_too(bench: Bench) -> None:
    bench.settings.table, bench.settings.held = PartTable(), {"k"}
    bench.take_one("held", rate_limit_key="k")
    bench.take_one("other", rate_limit_key="o")
    assert bench.started == ["other"]


def test_a_task_that_an_usher_has_let_in_runs_and_tells_of_it(bench: Bench) -> None:
    bench.settings.table = PartTable({EACH_KEY: Limits(rate=1.0)})
    delivery = bench.take_one("keyed", rate_limit_key="k", pass_mark="1:q")
    assert bench.started == ["keyed"]
    bench.handler.returned(bench.executor.started[0], b"1")
    assert bench.reporter.roster.told == [("1:q", "begun"), ("1:q", "ended")]
    bench.confirm_all()
    assert not delivery.acks, "the usher does not know yet"
    bench.reporter.roster.confirm_all()
    assert delivery.acks == 1


def test_a_task_that_was_let_in_and_lost_gives_its_leave_back(bench: Bench) -> None:
    delivery = bench.take_one("keyed", redelivered=True, pass_mark="1:q")
    assert bench.reporter.how == ["failed"]
    assert bench.reporter.roster.told == [("1:q", "ended")]
    bench.confirm_all()
    bench.reporter.roster.confirm_all()
    assert delivery.acks == 1


def test_what_is_given_back_or_parked_leaves_its_pass_behind_first(bench: Bench) -> None:
    parked = bench.take_one("forged", reply_to="elsewhere", pass_mark="1:q")
    bench.handler.close_intake()
    given_back = bench.take_one("late", pass_mark="1:q")
    roster = bench.reporter.roster
    assert roster.told == [("1:q", "unused"), ("1:q", "unused")]
    assert not bench.reporter.how, "if we die now whoever gets them tells of their passes"
    roster.confirm_all()
    assert bench.reporter.how == ["park", "give back"]
    bench.confirm_all()
    assert (parked.acks, given_back.acks) == (1, 1)
    assert not bench.handler.unreported


def test_a_pass_that_nobody_can_read_is_parked(bench: Bench) -> None:
    bench.take_one("keyed", pass_mark="nonsense")
    assert bench.reporter.how == ["park"]
