"""Putting tasks on their queues: living targets are asked first, and those that are gone told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import timedelta
from queue import Queue
from typing import Any

import pytest

from tests.model.test_deployments import fold, routed, serves
from tq_broker.clock import SystemClock
from tq_broker.common import OnGone, Requires, Route
from tq_broker.exceptions import (
    DeadlineExceeded,
    TargetGone,
    TqBrokerError,
    Unavailable,
    UnknownCapability,
)
from tq_broker.model import control, envelope
from tq_broker.model.capabilities import Niche
from tq_broker.model.control import Probe, Serve
from tq_broker.model.deployments import NO_DEPLOYMENTS
from tq_broker.model.detours import Detour
from tq_broker.model.message import Message
from tq_broker.model.names import Exchange, Kind, Names, QueueName
from tq_broker.model.rule_table import RuleTable
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.settings import CapabilitiesDeclared
from tq_broker.model.tasks import ActivityTask
from tq_broker.model.workflow_tasks import RunKey, WorkflowTask, task_message
from tq_broker.queues import dispatcher, topology
from tq_broker.queues.broker import Delivery, SubscribeOptions
from tq_broker.queues.delay import destination_key
from tq_broker.queues.dispatcher import (
    ALIVE_FOR_S,
    GONE_FOR_S,
    READY_STEP_S,
    Dispatcher,
    TargetAwaited,
)
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.routing import WAIT_STEP_MS, Asked
from tq_broker.queues.sender import NoRoute, Sender
from tq_broker.queues.topology import BindQueue, DeleteQueue, Plan
from tq_broker.testing.manual_clock import ManualClock

NAMES = Names("n")
HOST = NAMES.queue(Kind.HOST, "h", "q")
DESK = NAMES.queue(Kind.CONTROL, "w")
SOON_S = 20.0


class World:
    """A dispatcher, and maybe a worker's desk that is asked to serve."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer()
        self.broker = MemoryBroker(self.server, self.clock)
        self.sender = Sender(self.broker, NAMES, self.clock, identity="me")
        self.dispatcher = Dispatcher(self.sender, self.clock)
        self.asked: Queue[control.Request] = Queue()
        self.worker: MemoryBroker | None = None

    def soon(self) -> float:
        return self.clock.monotonic() + 1000

    def live(self, *, ready: bool = True) -> None:
        """A worker on host h comes."""
        self.worker = MemoryBroker(self.server, self.clock)
        plan = topology.namespace(NAMES) + topology.control_queue(NAMES, DESK, (HOST.key,))
        subscription = self.worker.subscribe(
            str(DESK), self.on_requests, SubscribeOptions(prefetch=10, plan=plan)
        )
        self.worker.wait_subscribed([subscription], self.soon())
        if ready:
            self.get_ready()

    def get_ready(self) -> None:
        """It serves the host's queue."""
        assert self.worker is not None
        key = control.ready_key(HOST.key)
        bind = BindQueue(str(DESK), NAMES.exchange(Exchange.CONTROL), key)
        self.worker.apply(topology.private_queue(NAMES, HOST) + Plan((bind,)), self.soon())

    def on_requests(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.asked.put(control.read_request(delivery.message))
            delivery.ack()

    def die(self) -> None:
        assert self.worker is not None
        self.worker.kill()

    def dispatch_alike(self, route: Route, count: int) -> list[Future[TqBrokerError | None]]:
        """The error of each, ``None`` if it arrived."""
        task = ActivityTask(
            activity_id="a", activity_type="t", task_queue="q", body=b"", route=route,
            start_to_close_ms=60_000, scheduled_ms=int(self.clock.wall() * 1000),
        )  # fmt: skip
        messages = [envelope.task_message(task)] * count
        ended: list[Future[TqBrokerError | None]] = [Future() for _ in messages]
        self.dispatcher.dispatch_alike(
            task, messages, self.soon(), lambda index, error: ended[index].set_result(error)
        )
        return ended

    def dispatch(self, route: Route | None = None, delay_ms: int = 0) -> TqBrokerError | None:
        return self.dispatching(route, delay_ms).result(SOON_S)

    def dispatching(
        self, route: Route | None = None, delay_ms: int = 0, within_s: float = 1000.0
    ) -> Future[TqBrokerError | None]:
        task = ActivityTask(
            activity_id="a",
            activity_type="t",
            task_queue="q",
            body=b'{"args":[]}',
            route=route,
            scheduled_ms=int(self.clock.wall() * 1000),
        )
        ended: Future[TqBrokerError | None] = Future()
        message = envelope.task_message(task)
        deadline = self.clock.monotonic() + within_s
        self.dispatcher.dispatch(task, message, deadline, ended.set_result, delay_ms=delay_ms)
        return ended

    def next(self) -> control.Request:
        return self.asked.get(timeout=SOON_S)

    def until_booked(self) -> None:
        """Wait until the dispatcher waits for a moment, and let it pass."""
        real = SystemClock()
        deadline = real.monotonic() + SOON_S
        soon = self.clock.monotonic() + 2 * READY_STEP_S
        while (self.clock.next_booking or soon + 1) > soon:
            assert real.monotonic() < deadline, "it does not wait"
            real.sleep(0.001)
        self.clock.advance(READY_STEP_S)

    def count(self, queue: QueueName) -> int | None:
        stats = self.broker.stats(str(queue), self.soon())
        return None if stats is None else stats.ready

    def close(self) -> None:
        self.sender.close()
        self.broker.close(self.soon())
        if self.worker is not None:
            self.worker.close(self.soon())


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_task_without_a_route_is_put_on_its_task_queue(world: World) -> None:
    assert world.dispatch() is None
    assert world.count(NAMES.activity("q")) == 1


def test_a_target_that_serves_gets_the_task(world: World) -> None:
    world.live()
    assert world.dispatch(Route.host("h")) is None
    assert world.next() == Probe()
    assert world.count(HOST) == 1


def test_a_target_that_does_not_serve_yet_is_asked_to_and_waited_for(world: World) -> None:
    world.live(ready=False)
    dispatching = world.dispatching(Route.host("h"))
    assert world.next() == Serve(str(HOST))
    world.get_ready()
    world.until_booked()
    assert dispatching.result(SOON_S) is None
    assert world.next() == Probe()
    assert world.count(HOST) == 1


def test_a_target_that_never_gets_ready_is_waited_for_until_the_deadline(world: World) -> None:
    world.live(ready=False)
    dispatching = world.dispatching(Route.host("h"), within_s=1.5 * READY_STEP_S)
    world.until_booked()
    assert isinstance(dispatching.result(SOON_S), DeadlineExceeded)
    assert world.count(HOST) is None


def test_who_answered_lately_is_not_asked_again(world: World) -> None:
    world.live()
    for _ in range(3):
        assert world.dispatch(Route.host("h")) is None
    assert world.next() == Probe()
    world.clock.advance(ALIVE_FOR_S - 0.01)
    assert world.dispatch(Route.host("h")) is None
    assert world.asked.empty()
    world.clock.advance(0.02)
    assert world.dispatch(Route.host("h")) is None
    assert world.next() == Probe()


Question = tuple[control.Request, float, Callable[[TqBrokerError | None], None]]


@pytest.fixture
def questions(world: World, monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """What is asked, until when, and how to answer it."""
    asked: list[Question] = []
    monkeypatch.setattr(world.dispatcher, "_request", lambda _, *question: asked.append(question))
    return asked


def test_many_tasks_wait_for_the_answer_to_one_question(
    world: World, questions: list[Question]
) -> None:
    world.live()
    ended = [world.dispatching(Route.host("h")) for _ in range(5)]
    [(question, _, answer)] = questions
    assert question == Probe()
    assert not any(one.done() for one in ended)
    answer(None)
    assert [one.result(SOON_S) for one in ended] == [None] * 5
    assert world.count(HOST) == 5


def test_many_alike_go_together_with_one_question(world: World) -> None:
    world.live()
    errors = world.dispatch_alike(Route.host("h"), 5)
    assert [error.result(SOON_S) for error in errors] == [None] * 5
    assert world.count(HOST) == 5
    assert [world.next()] == [Probe()]
    errors = world.dispatch_alike(Route.host("h"), 3)
    assert [error.result(SOON_S) for error in errors] == [None] * 3
    assert world.count(HOST) == 8
    assert world.asked.empty(), "it has answered lately"


def test_each_of_many_is_told_what_its_route_says_when_the_target_died_meanwhile(
    world: World,
) -> None:
    world.live()
    assert world.dispatch(Route.host("h")) is None
    world.die()
    world.broker.apply(Plan((DeleteQueue(str(HOST)),)), world.soon())
    errors = world.dispatch_alike(Route.host("h"), 3)
    give_up = SystemClock().monotonic() + SOON_S
    while not all(error.done() for error in errors) and SystemClock().monotonic() < give_up:
        world.clock.advance(READY_STEP_S)
        SystemClock().sleep(0.001)
    assert all(isinstance(error.result(SOON_S), TargetGone) for error in errors)
    assert world.count(HOST) is None


def test_all_that_waited_are_told_that_nobody_is_there(
    world: World, questions: list[Question]
) -> None:
    ended = [world.dispatching(Route.host("h")) for _ in range(3)]
    questions.pop()[-1](NoRoute())
    request, _, answer = questions.pop()
    assert request == Serve(str(HOST))
    answer(NoRoute())
    assert all(isinstance(one.result(SOON_S), TargetGone) for one in ended)
    assert not questions


def test_nobody_waits_for_an_answer_that_may_take_longer_than_he_has(
    world: World, questions: list[Question]
) -> None:
    patient = world.dispatching(Route.host("h"), within_s=50.0)
    hasty = world.dispatching(Route.host("h"), within_s=5.0)
    later = world.dispatching(Route.host("h"), within_s=90.0)
    (_, long, first), (_, short, second) = questions
    assert long - short == 45.0
    questions.clear()
    world.clock.advance(5.0)
    second(DeadlineExceeded("5 s"))
    assert isinstance(hasty.result(SOON_S), DeadlineExceeded)
    assert not patient.done()
    # When the question itself comes to its end, who has more time asks again.
    world.clock.advance(45.0)
    first(DeadlineExceeded("50 s"))
    assert isinstance(patient.result(SOON_S), DeadlineExceeded)
    assert not later.done()
    [(_, within, _)] = questions
    assert within - long == 40.0


def test_another_error_ends_all_that_waited(world: World, questions: list[Question]) -> None:
    ended = [world.dispatching(Route.host("h")) for _ in range(3)]
    questions.pop()[-1](Unavailable("closed"))
    assert all(isinstance(one.result(SOON_S), Unavailable) for one in ended)
    assert not questions


def test_who_may_have_died_since_is_asked_again(world: World) -> None:
    world.live()
    assert world.dispatch(Route.host("h")) is None
    world.dispatcher.doubt(HOST)
    assert world.dispatch(Route.host("h")) is None
    assert [world.next(), world.next()] == [Probe(), Probe()]
    world.die()
    world.dispatcher.doubt(HOST)
    assert isinstance(world.dispatch(Route.host("h")), TargetGone)
    assert world.count(HOST) == 2


def test_a_queue_that_a_dead_target_left_does_not_come_back(world: World) -> None:
    world.live()
    assert world.dispatch(Route.host("h")) is None
    world.die()
    world.broker.apply(Plan((DeleteQueue(str(HOST)),)), world.soon())
    dispatching = world.dispatching(Route.host("h"))
    world.until_booked()
    assert isinstance(dispatching.result(SOON_S), TargetGone)
    assert world.count(HOST) is None


def test_a_child_after_a_fork_asks_for_itself(world: World) -> None:
    world.live()
    world.dispatch(Route.host("h"))
    world.dispatcher.after_fork()
    world.dispatch(Route.host("h"))
    assert [world.next() for _ in range(2)] == [Probe()] * 2


def test_a_target_that_never_was_is_gone(world: World) -> None:
    error = world.dispatch(Route.host("h"))
    assert isinstance(error, TargetGone)
    assert "host 'h'" in str(error)
    assert world.count(HOST) is None, "nothing was declared for it"


def test_a_target_that_died_is_gone_at_the_next_question(world: World) -> None:
    world.live()
    assert world.dispatch(Route.host("h")) is None
    world.die()
    world.clock.advance(ALIVE_FOR_S)
    assert isinstance(world.dispatch(Route.host("h")), TargetGone)


def test_falling_back_puts_the_task_on_its_task_queue(world: World) -> None:
    assert world.dispatch(Route.host("h", on_gone=OnGone.FALL_BACK)) is None
    assert world.count(NAMES.activity("q")) == 1


def test_waiting_puts_the_task_on_the_ladder_and_it_is_looked_at_again(world: World) -> None:
    route = Route.host("h", on_gone=OnGone.WAIT, wait=timedelta(seconds=10))
    assert world.dispatch(route) is None
    assert world.count(HOST) is None
    unrouted = NAMES.queue(Kind.UNROUTED)
    world.clock.advance((WAIT_STEP_MS - 1) / 1000)
    assert world.count(unrouted) == 0
    world.clock.advance(0.2)
    assert world.count(unrouted) == 1


@pytest.mark.parametrize("route", [None, Route.host("h")])
def test_a_delayed_task_is_not_due_early(world: World, route: Route | None) -> None:
    due = NAMES.activity("q") if route is None else NAMES.queue(Kind.UNROUTED)
    assert world.dispatch(route, delay_ms=1000) is None
    world.clock.advance(0.999)
    assert not world.count(due)
    world.clock.advance(0.11)
    assert world.count(due) == 1


def test_another_error_of_the_question_is_the_answer(world: World) -> None:
    world.live()
    failed = TqBrokerError("no")
    world.sender.ensure((), world.soon())
    world.sender.send = lambda p, needs, deadline, done: done(failed)  # type: ignore[method-assign]
    assert world.dispatch(Route.host("h")) is failed


def test_time_of_the_machine_will_do() -> None:
    """The dispatcher asks no more of a clock than the port has."""
    broker = MemoryBroker(MemoryServer(), SystemClock())
    sender = Sender(broker, NAMES, SystemClock(), identity="me")
    task = ActivityTask(activity_id="a", activity_type="t", task_queue="q", body=b"")
    ended: Future[TqBrokerError | None] = Future()
    Dispatcher(sender, SystemClock()).dispatch(
        task,
        envelope.task_message(task),
        SystemClock().monotonic() + SOON_S,
        ended.set_result,
    )
    assert ended.result(SOON_S) is None
    assert broker.get(str(NAMES.activity("q")), SystemClock().monotonic() + SOON_S) is not None
    sender.close()
    broker.close(SystemClock().monotonic() + SOON_S)


# --- traffic rules --------------------------------------------------------------------------------

DETOUR = Detour(TaskKind.ACTIVITY, "there", "", "q", 10_000)
AWAY = DETOUR.queue(NAMES)
HOME = NAMES.activity("q")


class Followed:
    """A settings log that was read."""

    def __init__(self, *rules: TrafficRule) -> None:
        self.rules = RuleTable(rules)
        self.prioritized: frozenset[tuple[str, str]] = frozenset()
        self.fair: frozenset[tuple[str, str]] = frozenset()
        self.deployments = NO_DEPLOYMENTS


def with_rule(world: World, **fields: Any) -> None:
    rule = TrafficRule(**{"id": "r", "to_task_queue": "there"} | fields)
    world.dispatcher.traffic.attach(Followed(rule))  # type: ignore[arg-type]


def target(world: World, *, ready: bool = True) -> None:
    """A worker that can serve the detour comes."""
    world.worker = MemoryBroker(world.server, world.clock)
    keys = (DETOUR.ask_key, control.ready_key(AWAY.key)) if ready else (DETOUR.ask_key,)
    plan = topology.namespace(NAMES) + topology.control_queue(NAMES, DESK, keys)
    plan += topology.detour_queue(NAMES, DETOUR)
    subscription = world.worker.subscribe(
        str(DESK), world.on_requests, SubscribeOptions(prefetch=10, plan=plan)
    )
    world.worker.wait_subscribed([subscription], world.soon())


def message_at(world: World, queue: QueueName) -> Message:
    delivery = world.broker.get(str(queue), world.soon())
    assert delivery is not None
    return delivery.message


def test_a_rule_lends_a_task_to_its_target(world: World) -> None:
    with_rule(world)
    target(world)
    assert world.dispatch() is None
    message = message_at(world, AWAY)
    assert (message.headers[envelope.RULE], envelope.home(message)) == ("r", "q")
    assert envelope.read_task(message, "").task_queue == "q"


def test_a_target_that_is_not_there_costs_one_question_in_a_while(world: World) -> None:
    with_rule(world)
    for _ in range(2):
        assert world.dispatch() is None
    message = message_at(world, HOME)
    assert message.headers[envelope.FELL_BACK] == "r"
    assert envelope.RULE not in message.headers
    target(world)
    assert world.dispatch() is None
    assert world.asked.empty()
    world.clock.advance(GONE_FOR_S)
    assert world.dispatch() is None
    assert world.next() == Probe()
    assert world.count(AWAY) == 1


def test_a_target_that_never_gets_ready_does_not_hold_a_task_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "READY_WITHIN_S", 1.5 * READY_STEP_S)
    with_rule(world)
    target(world, ready=False)
    dispatching = world.dispatching()
    assert world.next() == Serve(str(AWAY), DETOUR)
    world.until_booked()
    assert dispatching.result(SOON_S) is None
    assert world.count(HOME) == 1


def test_without_fallback_a_task_waits_on_the_targets_own_queue(world: World) -> None:
    with_rule(world, fallback=False)
    assert world.dispatch() is None
    assert envelope.home(message_at(world, NAMES.activity("there"))) == "q"


def test_what_has_a_route_is_not_moved(world: World) -> None:
    with_rule(world)
    world.live()
    assert world.dispatch(Route.host("h")) is None
    assert world.count(HOST) == 1


def test_a_delayed_task_of_a_rule_is_looked_at_again_when_it_is_due(world: World) -> None:
    with_rule(world)
    assert world.dispatch(delay_ms=100) is None
    world.clock.advance(0.2)
    delivery = world.broker.get(str(NAMES.queue(Kind.UNROUTED)), world.soon())
    assert delivery is not None
    assert destination_key(delivery.routing_key) == AWAY.key


# --- what waits elsewhere -------------------------------------------------------------------------


def test_a_delayed_task_that_a_ramp_takes_comes_once(world: World) -> None:
    """The key of its queue ends with that of the plain one, which is bound to all such keys."""
    followed = Followed()
    followed.deployments = fold(
        *(serves(one, side="activity") for one in ("v1", "v2")),
        routed(0, "v1", ramping="v2", percent=100.0),
    )
    world.dispatcher.traffic.attach(followed)  # type: ignore[arg-type]
    ramping = NAMES.ramping("activity", "q")
    for queue in (NAMES.activity("q"), ramping):
        world.sender.ensure((queue,), world.soon())
    assert world.dispatch() is None
    assert world.count(ramping) == 1
    assert world.dispatch(delay_ms=100) is None
    world.clock.advance(0.2)
    # Whoever takes it there brings it to where the ramp says.
    assert (world.count(NAMES.activity("q")), world.count(ramping)) == (1, 1)


def test_a_task_with_a_key_waits_for_its_share_also_after_a_delay(world: World) -> None:
    task = ActivityTask(
        activity_id="a", activity_type="t", task_queue="q", body=b"{}", fairness_key="acme"
    )
    fair = NAMES.fair(NAMES.activity("q"))
    for delay_ms in (0, 100):
        ended: Future[TqBrokerError | None] = Future()
        message = envelope.task_message(task)
        world.dispatcher.dispatch(task, message, world.soon(), ended.set_result, delay_ms=delay_ms)
        assert ended.result(SOON_S) is None
        world.clock.advance(0.2)
    assert world.count(fair) == 2
    assert world.count(NAMES.activity("q")) == world.count(NAMES.priority(NAMES.activity("q"))) == 0


# --- capabilities ---------------------------------------------------------------------------------

GPU = ("gpu",)
NICHE = Niche("q", GPU, version="")


class Studio(World):
    """A world with a worker that is asked under the key of niches, and what was declared."""

    def know(self) -> None:
        """Workers have had a GPU."""
        record = CapabilitiesDeclared("q", GPU, 1)
        told: Future[object] = Future()
        self.sender.append(record, self.soon(), told.set_result)
        assert told.result(SOON_S) is None
        self.dispatcher.traffic.catch_up(self.soon())

    def come(self) -> None:
        """A worker comes that may belong to it."""
        self.worker = MemoryBroker(self.server, self.clock)
        plan = topology.namespace(NAMES) + topology.control_queue(NAMES, DESK, (NICHE.ask_key,))
        subscription = self.worker.subscribe(
            str(DESK), self.on_requests, SubscribeOptions(prefetch=10, plan=plan)
        )
        self.worker.wait_subscribed([subscription], self.soon())

    def require(self, requires: Requires, **fields: Any) -> Future[TqBrokerError | None]:
        task = ActivityTask(
            activity_id="a",
            activity_type="t",
            task_queue="q",
            body=b'{"args":[]}',
            requires=requires,
            scheduled_ms=int(self.clock.wall() * 1000),
            **fields,
        )
        ended: Future[TqBrokerError | None] = Future()
        message = envelope.task_message(task)
        self.dispatcher.dispatch(task, message, self.soon(), ended.set_result)
        return ended


@pytest.fixture
def studio() -> Iterator[Studio]:
    studio = Studio()
    yield studio
    studio.close()


def test_who_waits_is_put_on_the_shared_queue_of_his_set_which_the_log_tells_of(
    studio: Studio,
) -> None:
    studio.know()
    assert studio.require(Requires(GPU)).result(SOON_S) is None
    assert studio.count(NAMES.capable("q", GPU)) == 1
    log = studio.dispatcher.traffic._logs[0]
    studio.dispatcher.traffic.catch_up(studio.soon())
    assert log.capable("q") == [GPU]


def test_what_nobody_has_ever_had_is_refused_and_nothing_is_declared(studio: Studio) -> None:
    error = studio.require(Requires(GPU)).result(SOON_S)
    assert isinstance(error, UnknownCapability)
    assert "known there: none" in str(error)
    assert studio.count(NAMES.capable("q", GPU)) is None


def test_a_niche_is_asked_for_by_what_it_is(studio: Studio) -> None:
    studio.know()
    studio.come()
    ended = studio.require(Requires(GPU, OnGone.FAIL))
    queue = NICHE.queue(NAMES)
    assert studio.next() == Serve(str(queue), None, NICHE)
    ready = BindQueue(str(DESK), NAMES.exchange(Exchange.CONTROL), control.ready_key(queue.key))
    assert studio.worker is not None
    studio.worker.apply(topology.private_queue(NAMES, queue) + Plan((ready,)), studio.soon())
    studio.until_booked()
    assert ended.result(SOON_S) is None
    assert studio.count(queue) == 1


def test_a_niche_without_anybody_gives_its_answer_at_once(studio: Studio) -> None:
    studio.know()
    error = studio.require(Requires(GPU, OnGone.FAIL)).result(SOON_S)
    assert isinstance(error, TargetGone)
    assert str(error) == "no living worker serves task queue 'q' with gpu"
    assert studio.require(Requires(GPU, OnGone.FALL_BACK)).result(SOON_S) is None
    assert studio.count(NAMES.activity("q")) == 1


def test_who_does_not_belong_to_a_niche_is_not_waited_for_long(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "READY_WITHIN_S", 2 * READY_STEP_S)
    studio.know()
    studio.come()
    ended = studio.require(Requires(GPU, OnGone.FAIL))
    studio.until_booked()
    assert isinstance(ended.result(SOON_S), TargetGone)


def test_a_wish_for_what_nobody_has_ever_had_costs_no_look_at_the_log(studio: Studio) -> None:
    assert studio.require(Requires(GPU, OnGone.FALL_BACK)).result(SOON_S) is None
    assert studio.count(NAMES.activity("q")) == 1
    assert not studio.dispatcher.traffic._logs


# --- workflow tasks -------------------------------------------------------------------------------

AT_HOST = Niche("q", (), "h", version="", side="workflow")


def sent(studio: Studio, asked: Asked, scheduled_event_id: int = 2) -> TqBrokerError | None:
    """How the dispatch of a workflow task ends, whose run asks for that."""
    task = WorkflowTask(
        run=RunKey("w", "r"),
        workflow_type="T",
        task_queue="q",
        shard=1,
        scheduled_event_id=scheduled_event_id,
        scheduled_ms=int(studio.clock.wall() * 1000),
    )
    ended: Future[TqBrokerError | None] = Future()
    message = task_message(task, "m")
    studio.dispatcher.dispatch_workflow(task, asked, message, studio.soon(), ended.set_result)
    return ended.result(SOON_S)


def test_a_run_whose_target_is_gone_gets_its_answer(studio: Studio) -> None:
    error = sent(studio, Asked(Route.host("h")))
    assert type(error) is TargetGone
    assert str(error) == "no living worker serves task queue 'q' on host 'h'"
    wait = Route.host("h", on_gone=OnGone.WAIT, wait=timedelta(seconds=9))
    assert type(sent(studio, Asked(wait))) is TargetAwaited
    fall = Route.host("h", on_gone=OnGone.FALL_BACK)
    assert type(sent(studio, Asked(fall))) is TargetGone, "its history is told before it falls back"
    assert not studio.count(NAMES.workflow("q"))


def test_who_only_asks_falls_back_at_once(studio: Studio) -> None:
    fall = Route.host("h", on_gone=OnGone.FALL_BACK)
    assert sent(studio, Asked(fall), 0) is None
    assert studio.count(NAMES.workflow("q")) == 1
    assert sent(studio, Asked(fall, Requires(GPU)), 0) is None
    assert studio.count(NAMES.capable("q", GPU, Kind.WORKFLOW)) == 1
    # Each requirement has an answer of its own.
    assert type(sent(studio, Asked(fall, Requires(GPU, OnGone.FAIL)), 0)) is TargetGone


def test_who_may_have_a_run_is_asked_for_by_what_it_is(studio: Studio) -> None:
    queue = AT_HOST.queue(NAMES)
    studio.worker = MemoryBroker(studio.server, studio.clock)
    desk = topology.namespace(NAMES) + topology.control_queue(NAMES, DESK, (AT_HOST.ask_key,))
    ready = BindQueue(str(DESK), NAMES.exchange(Exchange.CONTROL), control.ready_key(queue.key))
    plan = desk + topology.private_queue(NAMES, queue) + Plan((ready,))
    studio.worker.apply(plan, studio.soon())
    assert sent(studio, Asked(Route.host("h"))) is None
    assert studio.count(queue) == 1
