"""Limits by type and key as their users see them: workers on the broker in memory."""

from __future__ import annotations

import itertools
import threading
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.worker.notes import Notes, settled
from tests.worker.worlds import NAMES, QUEUE, SOON_S, World
from tq_broker import activity
from tq_broker.client.operations import Operations
from tq_broker.common import OnGone, RetryPolicy, Route
from tq_broker.exceptions import ActivityError, BackOffScope, DownstreamBusy
from tq_broker.model import envelope, passes
from tq_broker.model.limits import SETTLE_S, Limits
from tq_broker.model.message import Message
from tq_broker.model.names import Kind
from tq_broker.model.parts import ALL, EACH_KEY, Part, PartKind, PartTable
from tq_broker.model.passes import News, Pass, What
from tq_broker.model.tasks import ActivityTask
from tq_broker.worker import Worker, usher
from tq_broker.worker.attempt import Attempt
from tq_broker.worker.handler import Handler
from tq_broker.worker.insistence import Then
from tq_broker.worker.passage import FREE
from tq_broker.worker.roster import Roster

LAG_S = 0.4
ONCE = RetryPolicy(maximum_attempts=1)
STAY = Part(PartKind.TYPE, "stay")
HIT = Part(PartKind.TYPE, "hit")


def limit(world: World, part: Part, limits: Limits | None) -> None:
    world.client.connection.sender.ensure([NAMES.activity("q")], world.soon())
    change = None if limits is None else lambda _: limits
    Operations(world.client.core).set_limits("q", change, part=part)


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


def check_pace(times: list[float], interval_s: float) -> None:
    """Each begins an interval after the one before, as far as its code can tell: time goes on
    while the task is on its way to its thread."""
    assert min(gaps(times)) >= interval_s - LAG_S
    assert times[-1] - times[0] >= interval_s * (len(times) - 1) - LAG_S


def ushers(workers: list[Worker]) -> list[Worker]:
    return [one for one in workers if one.info().banks == {"q": ["usher"]}]


def test_a_type_has_a_rate_of_its_own_and_others_pass(timed: World) -> None:
    limit(timed, HIT, Limits(rate=2.0, burst=1))
    notes = Notes(timed)
    limited = [timed.start("hit", "limited") for _ in range(6)]
    notes.let_go(3)
    free = [timed.start("stay") for _ in range(3)]
    for _ in range(2):
        timed.worker(*notes.activities)
    for handle in (*free, *limited):
        timed.result(handle)
    check_pace(notes.times("limited"), 0.5)
    assert len(notes.begins) == 6


def test_each_key_has_a_rate_of_its_own(timed: World) -> None:
    limit(timed, EACH_KEY, Limits(rate=1.0, burst=1))
    limit(timed, Part(PartKind.KEY, "fast"), Limits(rate=100.0, burst=1))
    notes = Notes(timed)
    handles = [
        timed.start("hit", key, rate_limit_key=key) for _ in range(4) for key in ("a", "b", "fast")
    ]
    for _ in range(2):
        timed.worker(*notes.activities)
    timed.start("hit", "none")
    for handle in handles:
        timed.result(handle)
    for key in ("a", "b"):
        assert len(notes.times(key)) == 4
        check_pace(notes.times(key), 1.0)
    assert notes.times("b")[-1] - notes.times("a")[0] <= 4.0 + 1.0, (
        "they do not wait for each other"
    )
    assert notes.times("fast")[-1] < notes.times("a")[1]


def test_never_more_of_a_key_run_than_allowed_and_others_run_beside_it(world: World) -> None:
    limit(world, EACH_KEY, Limits(concurrency=2))
    notes = Notes(world)
    handles = [world.start("stay", key, rate_limit_key=key) for _ in range(4) for key in ("a", "b")]
    for _ in range(2):
        world.worker(*notes.activities)
    world.eventually(lambda: notes.running["a"] == notes.running["b"] == 2)
    settled(world)
    assert notes.most == {"a": 2, "b": 2}
    notes.let_go(8)
    for handle in handles:
        handle.result(SOON_S)
    assert notes.most == {"a": 2, "b": 2}


def test_a_task_needs_leave_of_its_task_queue_its_type_and_its_key(world: World) -> None:
    limit(world, EACH_KEY, Limits(concurrency=1))
    limit(world, STAY, Limits(concurrency=2))
    limit(world, ALL, Limits(concurrency=3))
    notes = Notes(world)
    for key in ("a", "a", "b", "c", "d"):
        world.start("stay", key, rate_limit_key=key)
    world.worker(*notes.activities)
    world.eventually(lambda: notes.running.total() == 2)
    settled(world)
    assert notes.running.total() == 2
    limit(world, STAY, Limits())
    world.eventually(lambda: notes.running.total() == 3)
    settled(world)
    assert notes.running.total() == 3
    assert max(notes.most.values()) == 1
    notes.let_go(5)
    world.eventually(lambda: not notes.running.total() and not world.count())
    assert max(notes.most.values()) == 1


def test_no_worker_sits_on_tasks_that_wait_for_a_key_and_they_are_told(world: World) -> None:
    limit(world, EACH_KEY, Limits(concurrency=1))
    notes = Notes(world)
    worker = world.worker(*notes.activities, max_concurrent_activities=2)
    for _ in range(5):
        world.start("stay", "a", rate_limit_key="a")
    world.eventually(lambda: notes.running["a"] == 1)
    world.start("hit", "free").result(SOON_S)
    world.eventually(lambda: worker.info().waiting == {"q": 4})
    assert worker.info().held == {"q": 1}
    told = Operations(world.client.core).describe("q")
    assert told.waiting == 4
    assert [(str(part), state.limits) for part, state in told.part_limits] == [
        ("each-key", Limits(concurrency=1))
    ]
    notes.let_go(5)
    world.eventually(lambda: worker.info().waiting == {"q": 0} and not worker.info().held)


def test_the_leave_of_a_killed_worker_goes_to_another(world: World) -> None:
    limit(world, EACH_KEY, Limits(concurrency=1))
    first, second = Notes(world), Notes(world)
    victim = world.worker(*first.activities)
    for _ in range(2):
        world.start("stay", "a", rate_limit_key="a")
    world.eventually(lambda: first.running["a"] == 1)
    world.worker(*second.activities)
    settled(world)
    assert not second.running
    world.kill(victim)
    world.eventually(lambda: second.running["a"] == 1)
    settled(world)
    assert second.most["a"] == 1
    first.let_go(1)
    second.let_go(2)


def test_the_next_usher_knows_who_is_in(world: World) -> None:
    limit(world, EACH_KEY, Limits(concurrency=1))
    idle, busy = Notes(world), Notes(world)
    first = world.worker(*idle.activities, max_concurrent_activities=1)
    world.eventually(lambda: bool(ushers([first])))
    blocker = world.start("stay", "blocker")
    world.eventually(lambda: idle.running["blocker"] == 1)
    second = world.worker(*busy.activities)
    handles = [world.start("stay", "a", rate_limit_key="a") for _ in range(3)]
    world.eventually(lambda: busy.running["a"] == 1)
    settled(world)
    world.kill(first)
    world.eventually(lambda: bool(ushers([second])))
    world.eventually(lambda: second.info().waiting == {"q": 2})
    settled(world)
    assert busy.running["a"] == 1
    busy.let_go(4)
    for handle in handles:
        handle.result(SOON_S)
    assert busy.most["a"] == 1
    idle.let_go(1)
    blocker.result(SOON_S)


def test_no_leave_is_spent_on_what_does_not_run(timed: World) -> None:
    limit(timed, EACH_KEY, Limits(rate=0.1, burst=1))
    notes = Notes(timed)
    worker = timed.worker(*notes.activities)
    timed.eventually(lambda: bool(ushers([worker])))
    good = timed.start("hit", "first", rate_limit_key="a")
    dead = [timed.start("hit", "dead", rate_limit_key="a") for _ in range(3)]
    for handle in dead:
        handle.cancel()
    late = timed.start(
        "hit", "late", rate_limit_key="a", schedule_to_start_timeout=timedelta(seconds=1)
    )
    last = timed.start("hit", "last", rate_limit_key="a")
    for handle in (*dead, late):
        with pytest.raises(ActivityError):
            timed.result(handle)
    for handle in (good, last):
        timed.result(handle)
    assert [who for who, _ in notes.begins] == ["first", "last"]
    assert gaps([at for _, at in notes.begins])[0] <= 10.0 + 1.0


def test_a_key_may_be_backed_off_from_inside_and_it_lifts_itself(timed: World) -> None:
    begins: list[tuple[str, float]] = []

    @activity.defn
    async def call(key: str) -> None:
        begins.append((key, timed.clock.monotonic()))
        if len(begins) == 1:
            raise DownstreamBusy("429", retry_after=timedelta(seconds=30), scope=BackOffScope.KEY)

    worker = timed.worker(call)
    first = timed.start(call, "a", rate_limit_key="a")
    operations = Operations(timed.client.core)
    timed.eventually(lambda: bool(ushers([worker])))
    assert [one.key for one in operations.settings().back_offs("q")] == ["a"]
    handles = [timed.start(call, key, rate_limit_key=key) for key in ("a", "b", "a")]
    for handle in (first, *handles):
        timed.result(handle)
    asked_at = begins[0][1]
    assert [key for key, _ in begins] == ["a", "b", "a", "a", "a"]
    assert begins[1][1] < asked_at + 10.0
    assert begins[2][1] >= asked_at + 30.0 - 0.01


def test_tasks_for_one_worker_go_back_to_it_with_their_leave(world: World) -> None:
    limit(world, HIT, Limits(rate=5.0, burst=1))
    notes, others = Notes(world), Notes(world)
    world.worker(*notes.activities, worker_id="one")
    world.worker(*others.activities, worker_id="two")
    route = Route.process("one", on_gone=OnGone.FAIL)
    handles = [world.start("hit", "one", route=route) for _ in range(3)]
    for handle in handles:
        handle.result(SOON_S)
    assert not others.begins
    assert notes.times("one")[-1] - notes.times("one")[0] >= 2 / 5.0 - 0.1


def test_limits_that_are_taken_back_let_everything_through(timed: World) -> None:
    limit(timed, EACH_KEY, Limits(rate=0.001))
    notes = Notes(timed)
    worker = timed.worker(*notes.activities)
    handles = [timed.start("hit", "a", rate_limit_key="a") for _ in range(5)]
    timed.eventually(lambda: sum(worker.info().waiting.values()) >= 4)
    limit(timed, EACH_KEY, None)
    for handle in handles:
        timed.result(handle)


def test_a_worker_that_ends_leaves_what_waits_to_others(world: World) -> None:
    limit(world, EACH_KEY, Limits(concurrency=1))
    first, second = Notes(world), Notes(world)
    leaver = world.worker(*first.activities)
    handles = [world.start("stay", "a", rate_limit_key="a") for _ in range(3)]
    world.eventually(lambda: first.running["a"] == 1)
    world.worker(*second.activities)
    first.let_go(1)
    second.let_go(3)
    leaver.stop()
    for handle in handles:
        handle.result(SOON_S)
    assert max(first.most["a"], second.most["a"]) == 1


def test_a_long_line_leaves_others_in_sight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usher, "IN_SIGHT_MAX", 5)
    monkeypatch.setattr(usher, "SPILL_MAX", 3)
    monkeypatch.setattr(usher, "STUCK_S", 0.05)
    limit(world, EACH_KEY, Limits(concurrency=1))
    notes = Notes(world)
    worker = world.worker(*notes.activities)
    for _ in range(12):
        world.start("stay", "a", rate_limit_key="a")
    world.eventually(lambda: notes.running["a"] == 1 and worker.info().waiting == {"q": 5})
    world.start("hit", "b", rate_limit_key="b").result(SOON_S)
    notes.let_go(12)
    world.eventually(lambda: not notes.running["a"] and not worker.info().waiting["q"])
    settled(world)
    assert world.count(NAMES.queue(Kind.ANTEROOM, "q")) == 0


def test_what_is_foreign_in_the_queues_of_an_usher_is_dropped_or_parked(world: World) -> None:
    limit(world, EACH_KEY, Limits(concurrency=1))
    notes = Notes(world)
    worker = world.worker(*notes.activities)
    world.eventually(lambda: bool(ushers([worker])))
    world.publish(Message(body=b"x", message_id="x", kind="?"), NAMES.queue(Kind.ROSTER, "q"))
    world.publish(Message(body=b"x", message_id="x"), NAMES.queue(Kind.ANTEROOM, "q"))
    assert world.take_parked()
    notes.let_go(1)
    world.start("stay", "a", rate_limit_key="a").result(SOON_S)


def test_whom_it_lets_in_begins_in_the_order_of_priorities(world: World) -> None:
    limit(world, HIT, Limits(rate=1000.0, burst=100))
    notes = Notes(world)
    worker = world.worker(*notes.activities, max_concurrent_activities=1)
    world.start("stay", priority=1)
    world.eventually(lambda: worker.running == 1)
    # Given tasks that were set apart while the only slot is in use; one may be in hand already
    for priority in (1, 3, 5, 4, 2):
        task = ActivityTask(
            activity_id=f"a{priority}",
            activity_type="hit",
            task_queue="q",
            body=msgspec.json.encode({"args": [str(priority)]}),
            start_to_close_ms=60_000,
            priority=priority,
        )
        world.publish(envelope.task_message(task), NAMES.queue(Kind.ANTEROOM, "q"))
    world.eventually(lambda: world.count(NAMES.queue(Kind.ADMITTED_PRIORITY, "q")) >= 4)
    # When it is free
    notes.let_go(1)
    world.eventually(lambda: len(notes.begins) == 5)
    assert [who for who, _ in notes.begins] == ["1", "2", "3", "4", "5"]


def test_who_waits_for_a_limit_does_so_in_the_order_of_priorities(world: World) -> None:
    limit(world, STAY, Limits(concurrency=1))
    notes = Notes(world)
    order: list[str] = []

    @activity.defn(name="stay")
    def stay(who: str) -> None:
        order.append(who)
        notes.leave.get(timeout=SOON_S)

    worker = world.worker(stay, max_concurrent_activities=4)
    handles = [world.start("stay", "first", priority=5)]
    world.eventually(lambda: len(order) == 1)
    handles += [world.start("stay", str(p), priority=p) for p in (3, 5, 1, 4, 2)]
    world.eventually(lambda: worker.info().waiting == {"q": 5})
    notes.let_go(6)
    for handle in handles:
        handle.result(SOON_S)
    assert order == ["first", "1", "2", "3", "4", "5"]


def test_what_ran_before_a_limit_was_set_counts(world: World) -> None:
    before, other = Notes(world), Notes(world)
    world.worker(*before.activities)
    handles = [world.start("stay") for _ in range(3)]
    world.eventually(lambda: before.running[""] == 3)
    limit(world, STAY, Limits(concurrency=2))
    world.worker(*other.activities)
    handles += [world.start("stay") for _ in range(2)]
    threading.Event().wait(SETTLE_S + 0.5)
    assert before.running[""] + other.running[""] == 3, "two are allowed"
    before.let_go(1)
    settled(world)
    assert before.running[""] + other.running[""] == 2
    before.let_go(5)
    other.let_go(5)
    for handle in handles:
        handle.result(SOON_S)
    assert before.most[""] <= 3
    assert other.most[""] <= 2


def test_what_ran_before_a_limit_and_died_gives_its_place_back(world: World) -> None:
    before, other = Notes(world), Notes(world)
    victim = world.worker(*before.activities)
    world.start("stay", retry_policy=ONCE)
    world.eventually(lambda: before.running[""] == 1)
    limit(world, STAY, Limits(concurrency=1))
    world.worker(*other.activities)
    handle = world.start("stay")
    threading.Event().wait(SETTLE_S + 0.5)
    assert other.running[""] == 0
    world.kill(victim)
    world.eventually(lambda: other.running[""] == 1)
    before.let_go(1)
    other.let_go(1)
    handle.result(SOON_S)


# --- crashes in the very instant ------------------------------------------------------------------


def a_task(activity_id: str, **more: Any) -> ActivityTask:
    given = {"body": b'{"args":["late"]}', "start_to_close_ms": 60_000} | more
    return ActivityTask(activity_id=activity_id, activity_type="stay", task_queue="q", **given)


def tell_roster(world: World, message: Message) -> None:
    world.publish(message, NAMES.queue(Kind.ROSTER, "q"))


def passes_on(world: World, notes: Notes) -> None:
    """All places can be taken: one of `STAY` begins, and ends."""
    handle = world.start("stay")
    notes.let_go(1)
    handle.result(SOON_S)


def test_the_end_of_a_pass_may_come_before_the_pass_itself(world: World) -> None:
    limit(world, STAY, Limits(concurrency=1))
    notes = Notes(world)
    first = world.worker(*notes.activities)
    world.eventually(lambda: bool(ushers([first])))
    # What ran before the limit died, and its task came to another worker before its pass came
    tell_roster(world, passes.news_message(News("early", What.ENDED), "m1"))
    tell_roster(world, passes.pass_message(Pass("early", (STAY,), "a", 1, begun=True), "m2"))
    passes_on(world, notes)
    # Also if the usher dies in between
    tell_roster(world, passes.news_message(News("later", What.UNUSED), "m3"))
    settled(world)
    second = world.worker(*notes.activities)
    settled(world)
    world.kill(first)
    world.eventually(lambda: bool(ushers([second])))
    tell_roster(world, passes.pass_message(Pass("later", (STAY,), "b", 1), "m4"))
    passes_on(world, notes)


def test_news_of_passes_that_never_come_are_forgotten(timed: World) -> None:
    limit(timed, STAY, Limits(concurrency=1))
    worker = timed.worker(*Notes(timed).activities)
    timed.eventually(lambda: bool(ushers([worker])))
    (kept,) = worker._gates._ushers.values()
    tell_roster(timed, passes.news_message(News("never", What.ENDED), "m1"))
    timed.eventually(lambda: bool(kept._overdue))
    timed.eventually(lambda: not kept._overdue)


def test_a_pass_that_comes_after_its_task_has_come_again_is_void(world: World) -> None:
    limit(world, STAY, Limits(concurrency=1))
    # A task that the usher before had in hand when it died
    anteroom = NAMES.queue(Kind.ANTEROOM, "q")
    world.publish(envelope.task_message(a_task("a")), anteroom)
    in_hand = world.broker.get(str(anteroom), world.soon())
    assert in_hand is not None
    in_hand.reject(requeue=True)
    notes = Notes(world)
    world.worker(*notes.activities)
    world.eventually(lambda: notes.running["late"] == 1)
    tell_roster(world, passes.pass_message(Pass("late", (STAY,), "a", 1), "m1"))
    settled(world)
    notes.let_go(1)
    passes_on(world, notes)


def test_what_ends_while_it_is_to_be_covered_takes_no_place(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, others = Notes(world), Notes(world)
    victim = world.worker(*notes.activities)
    handle = world.start("stay")
    world.eventually(lambda: notes.running[""] == 1)
    handler, cover_parts, tell = victim._handler, Handler._cover_parts, Roster.tell
    is_over = threading.Event()

    def cover_late(self: Handler, attempt: Attempt, table: PartTable) -> None:
        if self is handler:
            notes.let_go(1)
            handle.result(SOON_S)
            settled(world)  # its task is acknowledged
        cover_parts(self, attempt, table)
        if attempt.passage is FREE:
            is_over.set()

    def tell_or_die(self: Roster, mark: str, what: What, done: Then) -> None:
        if self is handler._reporter.roster:
            is_over.set()
        else:
            tell(self, mark, what, done)

    monkeypatch.setattr(Handler, "_cover_parts", cover_late)
    monkeypatch.setattr(Roster, "tell", tell_or_die)
    limit(world, STAY, Limits(concurrency=1))
    assert is_over.wait(SOON_S)
    world.kill(victim)
    world.worker(*others.activities)
    passes_on(world, others)


def test_who_hears_of_a_limit_after_a_lost_attempt_tells_of_its_end(world: World) -> None:
    told = Pass(passes.covering("a", 1, ""), (STAY,), "a", 1, begun=True)
    world.publish(envelope.task_message(a_task("a", retry_policy=ONCE)))
    in_hand = world.broker.get(str(QUEUE), world.soon())
    assert in_hand is not None
    notes = Notes(world)
    worker = world.worker(*notes.activities)
    in_hand.reject(requeue=True)
    world.eventually(lambda: bool(worker._handler._lost_lately))
    # Whoever had it had heard of the limit
    tell_roster(world, passes.pass_message(told, "m1"))
    limit(world, STAY, Limits(concurrency=1))
    passes_on(world, notes)
