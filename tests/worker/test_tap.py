from __future__ import annotations

from collections.abc import Sequence

from tests.worker.worlds import NAMES, World
from tq_broker.model import permits
from tq_broker.model.limits import Side
from tq_broker.model.permits import Flavor, Permit, place_of
from tq_broker.queues import topology
from tq_broker.worker.tap import Tap, Token

PLACE = place_of(NAMES, Flavor.RATE, Side.ACTIVITY, "q")


class Bench:
    def __init__(self, world: World) -> None:
        self.world = world
        self.tokens: list[Token] = []
        self.lost: list[Token] = []
        plan = topology.permits(NAMES, PLACE.permits, PLACE.bank, PLACE.ledger)
        world.broker.apply(topology.namespace(NAMES) + plan, world.soon())
        self.late: list[Token] = []
        self.tap = Tap(
            *(world.broker, PLACE.permits, plan),
            *(self.tokens.append, self.late.append, self.take_lost),
        )

    def take_lost(self, tokens: Sequence[Token]) -> None:
        self.lost += tokens

    def put(self, count: int) -> None:
        for rank in range(count):
            message = permits.permit_message(Permit("m", rank), f"{rank}")
            self.world.publish(message, PLACE.permits)

    def quiet(self) -> None:
        self.world.broker.wait_quiet(self.world.soon())


def test_it_holds_no_more_than_its_capacity(world: World) -> None:
    bench = Bench(world)
    bench.tap.open(1)
    bench.tap.open(2)
    bench.put(5)
    bench.quiet()
    assert bench.tap.capacity == bench.tap.held == len(bench.tokens) == 3
    bench.tap.used_up(bench.tokens[0])
    bench.quiet()
    assert len(bench.tokens) == 4
    assert world.count(PLACE.bank) == 1


def test_what_it_puts_back_others_may_take(world: World) -> None:
    bench = Bench(world)
    bench.tap.open(2)
    bench.put(2)
    bench.quiet()
    bench.tap.close()
    for token in bench.tokens:
        bench.tap.put_back(token)
    assert world.count(PLACE.permits) == 2
    assert bench.tap.capacity == bench.tap.held == 0


def test_it_tells_what_a_broken_connection_took(world: World) -> None:
    bench = Bench(world)
    bench.tap.open(2)
    bench.put(2)
    bench.quiet()
    first = list(bench.tokens)
    world.broker.break_connection()
    world.eventually(lambda: len(bench.tokens) == 4)
    assert set(bench.lost) == set(first)
    assert all(token.is_lost for token in first)
    assert bench.tap.held == 2


def test_what_is_no_permit_is_dropped(world: World) -> None:
    bench = Bench(world)
    bench.tap.open(2)
    world.publish(permits.baton_message("b"), PLACE.permits)
    bench.put(1)
    bench.quiet()
    assert len(bench.tokens) == 1
    assert world.count(PLACE.permits) == 0
