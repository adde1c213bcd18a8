"""How a turnstile takes permits and tasks; what its users see is in ``test_gates.py``."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from tests.worker.worlds import NAMES, QUEUE, World
from tq_broker.model import permits
from tq_broker.model.limits import Limits, Side
from tq_broker.model.message import Message
from tq_broker.model.permits import Flavor, Permit, place_of
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery
from tq_broker.worker.pace import Pace
from tq_broker.worker.passage import Passage
from tq_broker.worker.poller import Source
from tq_broker.worker.turnstile import ASK_AFTER_S, ASK_EVERY_S, AWAY_S, FULL_S, Turnstile

RATES = place_of(NAMES, Flavor.RATE, Side.ACTIVITY, "q")
SLOTS = place_of(NAMES, Flavor.CONCURRENCY, Side.ACTIVITY, "q")


class Bench:
    def __init__(self, world: World, limits: Limits, pace: Pace | None = None) -> None:
        self.world = world
        self.now = 100.0
        self.taken: list[tuple[Delivery, Passage | None]] = []
        self.asked: list[float] = []
        """When others were asked to give way."""
        for place in (RATES, SLOTS):
            plan = topology.permits(NAMES, place.permits, place.bank, place.ledger)
            world.broker.apply(topology.namespace(NAMES) + plan, world.soon())
        world.client.connection.sender.ensure([QUEUE], world.soon())
        self.turnstile = Turnstile(
            QUEUE,
            world.client.connection.sender,
            world.clock,
            rates=RATES,
            slots=SLOTS,
            pace=pace,
            on_deliveries=self.take,
            wake=lambda: None,
            ask_way=lambda: self.asked.append(self.now),
        )
        self.turnstile.limit(limits)

    def take(self, source: Source, deliveries: Sequence[Delivery]) -> None:
        self.taken += [(delivery, source.admit()) for delivery in deliveries]

    def permits(self, count: int, place: permits.Place = RATES, units: int = 1) -> None:
        for rank in range(count):
            message = permits.permit_message(Permit("m", rank, units), f"p{rank}")
            self.world.publish(message, place.permits)

    def in_bank(self) -> list[Message]:
        found = []
        while got := self.world.broker.get(str(RATES.bank), self.world.soon()):
            found.append(got.message)
        return found

    def tasks(self, count: int) -> None:
        for number in range(count):
            self.world.publish(Message(body=b"{}", message_id=f"t{number}"))

    def step(self, free_slots: int = 100, times: int = 6) -> None:
        for _ in range(times):
            self.turnstile.step(self.now, free_slots)
            self.now += 0.04
            self.world.broker.wait_quiet(self.world.soon())

    def passages(self) -> list[Passage]:
        return [passage for _, passage in self.taken if passage is not None]


def test_tasks_are_taken_as_far_as_permits_reach(world: World) -> None:
    bench = Bench(world, Limits(rate=100.0))
    bench.tasks(10)
    bench.permits(4)
    bench.step(times=10)
    assert len(bench.taken) == len(bench.passages()) == 4
    assert world.count() == 6
    assert world.count(RATES.bank) == 0, "none is used up before a task begins"
    for passage in bench.passages():
        passage.begun()
        passage.ended()
    assert world.count(RATES.bank) == 4


def test_a_permit_of_what_does_not_run_is_for_another(world: World) -> None:
    bench = Bench(world, Limits(rate=0.1, burst=1))
    bench.tasks(2)
    bench.permits(1)
    bench.step()
    assert len(bench.taken) == 1
    bench.passages()[0].unused()
    bench.passages()[0].unused()
    bench.step()
    assert len(bench.taken) == 2
    assert world.count(RATES.bank) == 0


def test_both_limits_hold_together(world: World) -> None:
    bench = Bench(world, Limits(rate=100.0, concurrency=2))
    bench.tasks(9)
    bench.permits(9)
    bench.permits(2, SLOTS)
    bench.step(times=10)
    assert len(bench.passages()) == 2
    passage = bench.passages()[0]
    passage.begun()
    passage.ended()
    passage.ended()
    assert world.count(SLOTS.bank) == 1


def test_no_more_are_taken_than_slots_are_free(world: World) -> None:
    bench = Bench(world, Limits(rate=1000.0))
    bench.tasks(9)
    bench.permits(9)
    bench.step(free_slots=1, times=1)
    bench.world.broker.wait_quiet(world.soon())
    bench.step(free_slots=1, times=1)
    assert len(bench.taken) <= 1


def test_a_full_worker_lets_others_have_its_permits(world: World) -> None:
    bench = Bench(world, Limits(rate=1.0, burst=2))
    bench.permits(2)
    bench.step(times=2)
    assert world.count(RATES.permits) == 1
    bench.step(free_slots=0, times=int(FULL_S / 0.04) + 3)
    world.eventually(lambda: world.count(RATES.permits) == 2)


def test_a_paused_one_holds_nothing_and_lets_nothing_begin(world: World) -> None:
    bench = Bench(world, Limits(rate=1.0, burst=1))
    bench.permits(1)
    bench.step(times=2)
    bench.turnstile.limit(Limits(rate=1.0, burst=1), paused=True)
    bench.step(times=3)
    assert bench.turnstile.admit() is None
    assert world.count(RATES.permits) == 1


def test_the_pace_of_the_worker_bounds_it_as_well(world: World) -> None:
    bench = Bench(world, Limits(), Pace(0.001, 2))
    bench.tasks(5)
    bench.step(times=10)
    assert len(bench.passages()) == 2
    bench.passages()[0].unused()
    bench.step(times=4)
    assert len(bench.passages()) == 3


def test_a_permit_of_several_units_goes_back_when_the_last_one_is_used(world: World) -> None:
    bench = Bench(world, Limits(rate=1000.0))
    bench.tasks(3)
    bench.permits(1, units=3)
    bench.step(times=10)
    first, second, third = bench.passages()
    first.begun()
    second.begun()
    second.ended()
    assert world.count(RATES.bank) == 0
    third.begun()
    assert [message.kind for message in bench.in_bank()] == ["permit"]


def test_units_that_were_not_used_are_refunded(world: World) -> None:
    bench = Bench(world, Limits(rate=1000.0))
    bench.tasks(2)
    bench.permits(1, units=5)
    bench.step(times=10)
    begins, does_not = bench.passages()
    begins.begun()
    bench.turnstile.close()
    assert world.count(RATES.bank) == 0, "one may still begin"
    does_not.ended()
    world.eventually(lambda: world.count(RATES.bank) == 2)
    messages = {message.kind: message for message in bench.in_bank()}
    assert permits.read_refund(messages["refund"]).units == 4


def test_what_a_dead_worker_may_have_used_is_taken_as_used(world: World) -> None:
    bench = Bench(world, Limits(rate=1000.0))
    bench.permits(1, units=5)
    victim = world.broker.get(str(RATES.permits), world.soon())
    assert victim is not None
    victim.reject(requeue=True)
    bench.tasks(1)
    bench.step(times=10)
    assert bench.taken == []
    assert [message.kind for message in bench.in_bank()] == ["permit"]


def test_a_permit_for_what_runs_already_never_goes_to_what_was_given_back(world: World) -> None:
    # Given three tasks in hand when a limit is set, of which one gets the only permit
    bench = Bench(world, Limits(rate=100.0))
    bench.tasks(3)
    bench.permits(3)
    bench.step()
    bench.turnstile.limit(Limits(concurrency=1))
    bench.permits(1, SLOTS)
    bench.step()
    first, second, third = bench.passages()
    first.begun()
    third.begun()
    # When the next in line does not begin after all, and the first one ends
    second.unused()
    first.ended()
    # Then the permit is the third one's, and goes back with it
    assert world.count(SLOTS.bank) == 0
    third.ended()
    assert world.count(SLOTS.bank) == 1


def test_what_came_elsewhere_waits_for_its_permit(world: World) -> None:
    bench = Bench(world, Limits(rate=1.0, burst=1))
    got = threading.Event()
    assert bench.turnstile.admit_elsewhere(None) is None
    assert bench.turnstile.admit_elsewhere(lambda passage: got.set()) is None
    bench.permits(1)
    bench.step()
    assert got.is_set()


def test_who_has_nothing_to_do_gives_way_for_a_moment(world: World) -> None:
    bench = Bench(world, Limits(rate=0.1, burst=1, concurrency=1))
    bench.permits(1)
    bench.permits(1, SLOTS)
    bench.step()
    assert (world.count(RATES.permits), world.count(SLOTS.permits)) == (0, 0)
    bench.turnstile.give_way()
    bench.step(times=int(AWAY_S / 0.04) - 1)
    assert (world.count(RATES.permits), world.count(SLOTS.permits)) == (1, 1)
    bench.step()
    assert (world.count(RATES.permits), world.count(SLOTS.permits)) == (0, 0)
    bench.tasks(1)
    bench.step()
    assert len(bench.passages()) == 1


def test_who_has_tasks_for_its_permits_keeps_them(world: World) -> None:
    bench = Bench(world, Limits(concurrency=5))
    bench.tasks(3)
    bench.permits(5, SLOTS)
    bench.step()
    before = len(bench.taken)
    assert before
    bench.turnstile._has_taken = True  # just now
    bench.turnstile.give_way()
    bench.step(times=2)
    assert bench.turnstile.admit() is not None


def test_who_has_a_task_that_only_it_may_run_asks_others_to_give_way(world: World) -> None:
    bench = Bench(world, Limits(concurrency=1))
    begin = bench.now
    got = threading.Event()
    assert bench.turnstile.admit_elsewhere(lambda passage: got.set()) is None
    bench.step(times=int((ASK_AFTER_S + ASK_EVERY_S) / 0.04) + 3)
    first, second = bench.asked
    assert ASK_AFTER_S <= first - begin < ASK_AFTER_S + 0.1
    assert ASK_EVERY_S <= second - first < ASK_EVERY_S + 0.1
    bench.permits(1, SLOTS)
    bench.step(times=50)
    assert got.is_set()
    assert len(bench.asked) == 2


def test_who_waits_itself_does_not_give_way_and_lets_others_ask(world: World) -> None:
    bench = Bench(world, Limits(concurrency=1))
    got = threading.Event()
    assert bench.turnstile.admit_elsewhere(lambda passage: got.set()) is None
    for _ in range(20):
        bench.turnstile.give_way()
        bench.step(times=2)
    assert bench.asked == []
    bench.permits(1, SLOTS)
    bench.step(times=2)
    assert got.is_set()


def test_nothing_is_left_when_all_was_settled(world: World) -> None:
    bench = Bench(world, Limits(rate=100.0))
    bench.tasks(1)
    bench.permits(1)
    bench.step()
    assert bench.turnstile.in_hand == 1
    delivery, passage = bench.taken[0]
    assert passage is not None
    passage.begun()
    passage.ended()
    delivery.ack()
    bench.turnstile.released()
    bench.turnstile.close()
    bench.step(times=2)
    assert bench.turnstile.is_idle


def test_who_stands_elsewhere_takes_permits_only_for_what_is_asked(world: World) -> None:
    bench = Bench(world, Limits(rate=100.0, burst=5))
    bench.permits(5)
    bench.tasks(2)
    bench.turnstile.limit(Limits(rate=100.0, burst=5), elsewhere=True)
    bench.step()
    assert bench.taken == []
    assert world.count(RATES.permits) == 5, "nobody has asked"
    got = threading.Event()
    assert bench.turnstile.admit_elsewhere(lambda passage: got.set()) is None
    bench.step()
    assert got.is_set()
    bench.now += FULL_S
    bench.step()
    assert bench.taken == []
    assert world.count(RATES.permits) >= 3, "and lets go of the rest"
