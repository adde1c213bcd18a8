from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import wait

import pytest

from tests.worker.worlds import NAMES, World
from tq_broker.model import permits
from tq_broker.model.limits import Side
from tq_broker.model.permits import Flavor, Issue, Permit, Refund, place_of
from tq_broker.queues.broker import Delivery
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.bank import Bank

PLACE = place_of(NAMES, Flavor.RATE, Side.ACTIVITY, "q")


@pytest.fixture
def world() -> Iterator[World]:
    world = World(ManualClock())
    yield world
    world.close()


class Bench:
    """Banks that are stepped by hand, each on a connection of its own."""

    def __init__(self, world: World) -> None:
        self.world = world

    def bank(self, size: int, rate: float | None = None, units: int = 1) -> Bank:
        client = self.world.make_client("banker")
        bank = Bank(PLACE, client.connection.sender, self.world.clock, lambda: None)
        bank.broker = self.world.broker_of(client)  # type: ignore[attr-defined]
        client.connection.sender.ensure([NAMES.activity("q")], self.world.soon())
        bank.open(Issue(size, rate, units))
        return bank

    def step(self, bank: Bank, seconds: float = 0.0) -> None:
        """Let time pass, and the bank do all that it has to do."""
        if seconds:
            self.world.clock.advance(seconds)  # type: ignore[attr-defined]
        for _ in range(8):
            bank.broker.wait_quiet(self.world.soon())  # type: ignore[attr-defined]
            if bank._writing is not None:
                wait([bank._writing[0]], 5)
            bank.step()

    def ready(self) -> int:
        return self.world.count(PLACE.permits)

    def take(self) -> Delivery:
        taken = self.world.broker.get(str(PLACE.permits), self.world.soon())
        assert taken is not None
        return taken


def test_a_concurrency_is_handed_out_at_once(world: World) -> None:
    bench = Bench(world)
    bank = bench.bank(3)
    bench.step(bank)
    assert bank.is_kept_here
    assert bench.ready() == 3
    ranks = {permits.read_permit(bench.take().message).rank for _ in range(3)}
    assert ranks == {0, 1, 2}


def test_a_rate_begins_empty_and_is_handed_out_in_time(world: World) -> None:
    bench = Bench(world)
    bank = bench.bank(2, 1.0)
    bench.step(bank)
    assert bench.ready() == 0
    bench.step(bank, 1.0)
    assert bench.ready() == 1
    bench.step(bank, 5.0)
    assert bench.ready() == 2, "no more than the burst"
    bench.take().reject(requeue=False)
    bench.step(bank)
    bench.step(bank, 0.5)
    assert bench.ready() == 1
    bench.step(bank, 0.6)
    assert bench.ready() == 2


def test_only_one_keeps_the_bank_and_the_next_goes_on_in_time(world: World) -> None:
    bench = Bench(world)
    first, second = bench.bank(1, 0.1), bench.bank(1, 0.1)
    bench.step(first)
    bench.step(first, 10.0)
    bench.step(second)
    assert first.is_kept_here
    assert not second.is_kept_here
    assert bench.ready() == 1
    bench.take().reject(requeue=False)
    bench.step(first)
    bench.step(first, 4.0)
    first.broker.kill()  # type: ignore[attr-defined]
    bench.step(second, 5.0)
    assert second.is_kept_here
    assert bench.ready() == 0, "nine seconds after the use"
    bench.step(second, 1.1)
    assert bench.ready() == 1


def test_a_death_makes_no_permit_more_nor_less(world: World) -> None:
    bench = Bench(world)
    banks = [bench.bank(4) for _ in range(3)]
    for bank in banks:
        bench.step(bank)
        bank.broker.kill()  # type: ignore[attr-defined]
    last = bench.bank(4)
    bench.step(last)
    assert bench.ready() + len(last._reserve or ()) == 4


def test_what_somebody_made_who_died_over_it_is_thrown_away(world: World) -> None:
    bench = Bench(world)
    bank = bench.bank(2)
    bench.step(bank)
    world.publish(permits.permit_message(Permit("unknown", 0), "x"), PLACE.bank)
    world.publish(permits.baton_message("y"), PLACE.bank)
    bench.step(bank)
    assert bench.ready() == 2
    assert world.count(PLACE.bank) == 0


def test_a_limit_grows_and_shrinks(world: World) -> None:
    bench = Bench(world)
    bank = bench.bank(2)
    bench.step(bank)
    bank.change(Issue(5))
    bench.step(bank)
    assert bench.ready() == 5
    taken = [bench.take() for _ in range(3)]
    bank.change(Issue(1))
    bench.step(bank)
    assert bench.ready() == 0
    for one in taken[:2]:
        one.reject(requeue=False)
    bench.step(bank)
    assert bench.ready() == 0, "one is still in use"
    taken[2].reject(requeue=False)
    bench.step(bank)
    assert bench.ready() == 1


def test_permits_of_other_units_take_the_place_of_those_before(world: World) -> None:
    bench = Bench(world)
    bank = bench.bank(2, 1.0, units=5)
    bench.step(bank)
    bench.step(bank, 10.0)
    taken = [bench.take(), bench.take()]
    assert [permits.read_permit(one.message).units for one in taken] == [5, 5]
    bank.change(Issue(3, 1.0))
    bench.step(bank)
    for one in taken:
        one.reject(requeue=False)
    bench.step(bank, 10.0)
    assert bench.ready() == 3
    assert {permits.read_permit(bench.take().message).units for _ in range(3)} == {1}
    assert world.count(PLACE.bank) == 0


def test_what_is_refunded_is_handed_out_the_sooner(world: World) -> None:
    bench = Bench(world)
    bank = bench.bank(2, 0.1, units=4)
    bench.step(bank)
    bench.step(bank, 30.0)
    bench.take().reject(requeue=False)
    bench.step(bank)
    world.publish(permits.refund_message(Refund(3), "r"), PLACE.bank)
    bench.step(bank, 2.4)
    assert bench.ready() == 1
    bench.step(bank, 0.2)
    assert bench.ready() == 2


def test_a_death_just_after_a_use_does_not_hurry_the_next_one(world: World) -> None:
    bench = Bench(world)
    first, second = bench.bank(1, 0.1), bench.bank(1, 0.1)
    bench.step(first)
    bench.step(first, 10.0)
    assert bench.ready() == 1
    bench.step(second, 9.0)
    bench.take().reject(requeue=False)  # the bank dies before it has written that down
    first.broker.wait_quiet(world.soon())  # type: ignore[attr-defined]
    first.broker.kill()  # type: ignore[attr-defined]
    bench.step(second, 2.0)
    assert bench.ready() == 0
    bench.step(second, 10.1)
    assert bench.ready() == 1


def test_a_bank_that_is_closed_leaves_everything_to_the_next(world: World) -> None:
    bench = Bench(world)
    first = bench.bank(3, 0.001)
    bench.step(first)
    first.close()
    assert not first.is_kept_here
    assert world.count(PLACE.bank) == 4, "three permits, and the baton"
