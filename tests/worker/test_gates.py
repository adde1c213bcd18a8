"""Limits of a task queue as its users see them: workers on the broker in memory."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest

from tests.worker.notes import Notes, settled
from tests.worker.worlds import MINUTE, NAMES, SOON_S, World
from tq_broker import activity
from tq_broker.client.operations import Operations
from tq_broker.common import OnGone, RetryPolicy, Route
from tq_broker.exceptions import ActivityError, DownstreamBusy, InvalidArgument
from tq_broker.model.limits import SETTLE_S, Limits, Side
from tq_broker.model.permits import Flavor, place_of
from tq_broker.worker import Worker

ONCE = RetryPolicy(maximum_attempts=1)


def limit(world: World, limits: Limits, side: Side = Side.ACTIVITY) -> None:
    Operations(world.client.core).set_limits("q", lambda _: limits, side=side)


def add(world: World, name: str, count: int) -> list[Any]:
    return [world.start(name) for _ in range(count)]


def workers_of(world: World, notes: Notes, count: int, **options: Any) -> list[Worker]:
    return [world.worker(*notes.activities, **options) for _ in range(count)]


def made_queue(world: World) -> None:
    world.client.connection.sender.ensure([NAMES.activity("q")], world.soon())


def test_all_workers_together_keep_the_rate(timed: World) -> None:
    made_queue(timed)
    limit(timed, Limits(rate=2.0, burst=1))
    notes = Notes(timed)
    add(timed, "hit", 8)
    workers_of(timed, notes, 3)
    timed.eventually(lambda: len(notes.times()) == 8)
    gaps = [after - before for before, after in zip(notes.times(), notes.times()[1:], strict=False)]
    assert min(gaps) >= 0.5 - 0.02
    assert len(notes.times()) == 8


def test_never_more_run_than_the_concurrency_allows(world: World) -> None:
    made_queue(world)
    limit(world, Limits(concurrency=2))
    notes = Notes(world)
    handles = add(world, "stay", 6)
    workers_of(world, notes, 3)
    world.eventually(lambda: notes.running[""] == 2)
    settled(world)
    assert notes.running[""] == 2
    notes.let_go(6)
    for handle in handles:
        handle.result(SOON_S)
    assert notes.most[""] == 2


def test_the_permit_of_a_killed_worker_goes_to_another(world: World) -> None:
    made_queue(world)
    limit(world, Limits(concurrency=1))
    first, second = Notes(world), Notes(world)
    victim = world.worker(*first.activities)
    add(world, "stay", 2)
    world.eventually(lambda: first.running[""] == 1)
    world.worker(*second.activities)
    settled(world)
    assert second.running[""] == 0
    world.kill(victim)
    world.eventually(lambda: second.running[""] == 1)
    first.let_go(2)
    second.let_go(2)


def test_a_limited_queue_that_is_paused_begins_nothing_until_it_is_resumed(world: World) -> None:
    notes = Notes(world)
    made_queue(world)
    limit(world, Limits(rate=1000.0, burst=1))
    worker = world.worker(*notes.activities)
    add(world, "hit", 1)[0].result(SOON_S)
    world.client.verbs.pause("q")
    world.eventually(lambda: worker.info().paused == ["q"])
    settled(world)
    handle = add(world, "hit", 1)[0]
    settled(world)
    assert len(notes.times()) == 1
    assert world.count() == 1
    world.client.verbs.resume("q")
    handle.result(SOON_S)


def test_a_limit_that_is_lifted_lets_everything_through(timed: World) -> None:
    made_queue(timed)
    limit(timed, Limits(rate=0.001))
    notes = Notes(timed)
    timed.worker(*notes.activities)
    handles = add(timed, "hit", 5)
    settled(timed)
    assert not notes.times()
    limit(timed, Limits())
    for handle in handles:
        timed.result(handle)


def test_no_permit_is_spent_on_what_does_not_run(timed: World) -> None:
    made_queue(timed)
    limit(timed, Limits(rate=0.1, burst=2))
    notes = Notes(timed)
    dead = add(timed, "hit", 3)
    for handle in dead:
        handle.cancel()
    unknown = timed.start("missing", retry_policy=ONCE)
    late = timed.start("hit", schedule_to_start_timeout=timedelta(seconds=1))
    good = add(timed, "hit", 2)
    timed.clock.advance(2.0)  # type: ignore[attr-defined]
    begun_at = timed.clock.monotonic()
    timed.worker(*notes.activities)
    for handle in (*dead, unknown, late):
        with pytest.raises(ActivityError):
            timed.result(handle)
    for handle in good:
        timed.result(handle)
    assert len(notes.times()) == 2
    assert notes.times()[-1] - begun_at <= 2 / 0.1 + 1, "two permits were enough"


def test_a_worker_takes_no_task_that_it_may_not_start(timed: World) -> None:
    made_queue(timed)
    limit(timed, Limits(rate=0.01, burst=1))
    notes = Notes(timed)
    add(timed, "hit", 5)
    worker = timed.worker(*notes.activities)
    settled(timed)
    assert timed.count() == 5
    timed.eventually(lambda: len(notes.times()) == 1)
    settled(timed)
    assert timed.count() == 4
    assert worker.info().held == {}


def test_the_default_of_a_worker_counts_until_somebody_sets_limits(timed: World) -> None:
    notes = Notes(timed)
    timed.worker(*notes.activities, max_task_queue_activities_per_second=3)
    operations = Operations(timed.client.core)
    state = operations.limits("q")
    assert state.limits == Limits(rate=3.0)
    assert state.source is not None
    assert state.source.is_default
    limit(timed, Limits(rate=7.0))
    state = operations.limits("q")
    assert state.limits == Limits(rate=7.0)
    assert state.revision == 1
    operations.set_limits("q", None)
    assert operations.limits("q").limits == Limits(rate=3.0)


def test_a_worker_has_a_limit_of_its_own(timed: World) -> None:
    notes = Notes(timed)
    add(timed, "hit", 6)
    timed.worker(*notes.activities, max_activities_per_second=0.5)
    timed.eventually(lambda: len(notes.times()) == 6)
    assert notes.times()[-1] - notes.times()[0] >= 5 / 0.5 - 0.1


@pytest.mark.parametrize("rate", [0, -1, float("nan"), 1e9, "much"])
def test_rates_out_of_bounds_are_refused(world: World, rate: Any) -> None:
    with pytest.raises(InvalidArgument, match="max_activities_per_second is"):
        world.worker(*Notes(world).activities, max_activities_per_second=rate)


def test_what_ran_before_the_limit_counts_as_well(world: World) -> None:
    notes = Notes(world)
    world.worker(*notes.activities)
    add(world, "stay", 2)
    world.eventually(lambda: notes.running[""] == 2)
    limit(world, Limits(concurrency=2))
    place = place_of(NAMES, Flavor.CONCURRENCY, Side.ACTIVITY, "q")

    def permits_taken() -> bool:
        stats = world.broker.stats(str(place.permits), world.soon())
        return stats is not None and stats.ready == 0 and stats.consumers > 0

    world.eventually(permits_taken)
    settled(world)
    add(world, "stay", 2)
    settled(world)
    assert notes.running[""] == 2
    notes.let_go(1)
    world.eventually(lambda: world.count() == 1)
    notes.let_go(3)
    world.eventually(lambda: notes.running[""] == 0 and world.count() == 0)
    assert notes.most[""] == 2


def test_a_lowered_concurrency_is_kept_as_soon_as_tasks_end_and_may_grow_again(
    world: World,
) -> None:
    made_queue(world)
    limit(world, Limits(concurrency=3))
    notes = Notes(world)
    world.worker(*notes.activities)
    add(world, "stay", 9)
    world.eventually(lambda: notes.running[""] == 3)
    limit(world, Limits(concurrency=1))
    settled(world)
    notes.let_go(2)
    world.eventually(lambda: notes.running[""] == 1)
    settled(world)
    assert notes.running[""] == 1
    limit(world, Limits(concurrency=2))
    world.eventually(lambda: notes.running[""] == 2)
    settled(world)
    assert notes.running[""] == 2
    notes.let_go(9)
    world.eventually(lambda: notes.running[""] == 0 and world.count() == 0)
    assert notes.most[""] == 3


def test_a_broken_connection_makes_no_permit_more(world: World) -> None:
    made_queue(world)
    limit(world, Limits(concurrency=2))
    notes = Notes(world)
    worker = world.worker(*notes.activities)
    add(world, "stay", 5)
    world.eventually(lambda: notes.running[""] == 2)
    world.broker_of_worker(worker).break_connection()
    settled(world)
    assert notes.running[""] == 2
    notes.let_go(5)
    world.eventually(lambda: notes.running[""] == 0 and world.count() == 0)
    assert notes.most[""] == 2


def test_tasks_for_one_worker_wait_there_for_their_permits(world: World) -> None:
    made_queue(world)
    notes = Notes(world)
    world.worker(*notes.activities, worker_id="one")
    route = Route.process("one", on_gone=OnGone.FAIL)
    world.start("hit", route=route).result(SOON_S)
    limit(world, Limits(rate=5.0, burst=1))
    settled(world)
    before = world.clock.monotonic()
    handles = [world.start("hit", route=route) for _ in range(3)]
    for handle in handles:
        handle.result(SOON_S)
    assert notes.times()[-1] - before >= 2 / 5.0 - 0.02


def test_a_bank_is_kept_by_one_worker_and_by_another_after_its_end(world: World) -> None:
    made_queue(world)
    limit(world, Limits(rate=100.0))
    notes = Notes(world)
    workers = workers_of(world, notes, 2)

    def keepers() -> list[Worker]:
        return [one for one in workers if one.info().banks == {"q": ["rate"]}]

    world.eventually(lambda: len(keepers()) == 1)
    first = keepers()[0]
    world.kill(first)
    workers.remove(first)
    world.eventually(lambda: len(keepers()) == 1)
    for handle in add(world, "hit", 3):
        handle.result(SOON_S)


def test_a_worker_that_ends_takes_no_permit_along(world: World) -> None:
    made_queue(world)
    limit(world, Limits(rate=1000.0, burst=4, concurrency=3))
    notes = Notes(world)
    for _ in range(3):
        worker = world.worker(*notes.activities)
        for handle in add(world, "hit", 3):
            handle.result(SOON_S)
        worker.stop()
    for flavor, count in ((Flavor.RATE, 4), (Flavor.CONCURRENCY, 3)):
        place = place_of(NAMES, flavor, Side.ACTIVITY, "q")
        there = [world.count(queue) for queue in (place.permits, place.bank)]
        batons = 3  # one for each worker that stood for election, at most
        assert count <= sum(there) <= count + batons


def test_start_to_close_counts_from_the_begin(world: World) -> None:
    made_queue(world)
    limit(world, Limits(rate=50.0, burst=1))
    notes = Notes(world)
    world.worker(*notes.activities)
    for handle in [world.start("hit", start_to_close_timeout=MINUTE) for _ in range(5)]:
        handle.result(SOON_S)


def test_what_is_called_may_ask_for_a_pause_of_all_and_it_lifts_itself(timed: World) -> None:
    begins: list[tuple[str, float]] = []

    @activity.defn
    async def call(who: str) -> None:
        begins.append((who, timed.clock.monotonic()))
        if len(begins) == 1:
            raise DownstreamBusy("429", retry_after=timedelta(seconds=30))

    timed.worker(call)
    other = timed.worker(call)
    first = timed.start(call, "first")
    timed.eventually(lambda: other.info().paused == ["q"])
    told = Operations(timed.client.core).settings().back_offs("q")
    assert [one.reason for one in told] == [f"call {first.id}: 429"]
    rest = [timed.start(call, "rest") for _ in range(3)]
    for handle in (first, *rest):
        timed.result(handle)
    asked_at = begins[0][1]
    assert len(begins) == 5
    assert min(at for _, at in begins[1:]) >= asked_at + 30.0 - 0.01
    assert other.info().paused == []
    assert Operations(timed.client.core).settings().back_offs("q") == []


@pytest.mark.parametrize("allowed", [3, 2])
def test_what_full_workers_ran_before_the_limit_counts(world: World, allowed: int) -> None:
    made_queue(world)
    notes = [Notes(world) for _ in range(3)]
    handles = []
    for one in notes[:2]:
        world.worker(*one.activities, max_concurrent_activities=2)
    handles = add(world, "stay", 3)
    running = lambda: sum(one.running.total() for one in notes)  # noqa: E731
    world.eventually(lambda: running() == 3)
    limit(world, Limits(concurrency=allowed))
    world.worker(*notes[2].activities)
    handles += add(world, "stay", 3)
    threading.Event().wait(SETTLE_S + 0.5)
    assert running() == 3
    busy = next(one for one in notes if one.running.total())
    busy.let_go(1)
    world.eventually(lambda: busy.leave.empty())
    settled(world)
    world.eventually(lambda: running() == allowed)
    settled(world)
    assert running() == allowed
    for one in notes:
        one.let_go(6)
    for handle in handles:
        handle.result(SOON_S)
