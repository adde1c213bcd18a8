"""Stray tasks: what becomes of each, and that none is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import msgspec
import pytest

from tests.worker.attempts import place
from tests.worker.worlds import NAMES, QUEUE, SOON_S, World
from tq_broker.common import OnGone, Requires, RetryPolicy, Route
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import TqBrokerError
from tq_broker.model import envelope
from tq_broker.model.capabilities import Niche
from tq_broker.model.detours import Detour
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, QueueName
from tq_broker.model.requests import SHARDS
from tq_broker.model.rules import TaskKind
from tq_broker.model.tasks import ActivityTask, Status
from tq_broker.model.workflow_tasks import RunKey, WorkflowTask, read_task, task_message
from tq_broker.queues import topology
from tq_broker.queues.broker import Receipt, SubscribeOptions
from tq_broker.queues.delay import delayed
from tq_broker.queues.sender import NoRoute
from tq_broker.worker.reporter import Reporter
from tq_broker.worker.rerouting import Fate, Rerouter, fate

ONCE = RetryPolicy(maximum_attempts=1)
REPLY = NAMES.queue(Kind.REPLY, "c")
LEASE = NAMES.queue(Kind.LEASE, "w")
HOST = NAMES.queue(Kind.HOST, "h", "q")


def task(**fields: Any) -> ActivityTask:
    return ActivityTask(
        **(
            {
                "activity_id": "a",
                "activity_type": "t",
                "task_queue": "q",
                "body": b'{"args":[]}',
                "reply_to": str(REPLY),
            }
            | fields
        )
    )


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (Kind.LEASE, {}, Fate.LOST),
        (Kind.LEASE, {"retry_policy": ONCE}, Fate.LOST),
        (Kind.ACTIVITY, {}, Fate.DISPATCH),
        (Kind.ACTIVITY, {"retry_policy": ONCE}, Fate.DISPATCH),
        (Kind.HOST, {"route": Route.host("h")}, Fate.DISPATCH),
        (Kind.PROCESS, {"route": Route.process("w")}, Fate.DISPATCH),
        (Kind.HOST, {"route": Route.host("h"), "retry_policy": ONCE}, Fate.LOST),
        (Kind.NICHE, {"requires": Requires(("gpu",))}, Fate.DISPATCH),
        (Kind.NICHE, {"requires": Requires(("gpu",)), "retry_policy": ONCE}, Fate.LOST),
    ],
)
def test_each_stray_task_has_its_fate(kind: Kind, fields: dict[str, Any], expected: Fate) -> None:
    assert fate(kind, task(**fields)) is expected


class Bench:
    def __init__(self) -> None:
        self.world = World()
        self.client = self.world.make_client("worker")
        self.broker = self.world.broker_of(self.client)
        connection = self.client.connection
        at = place()
        reporter = Reporter(connection.dispatcher, NAMES, at)
        self.rerouter = Rerouter(connection.sender, at, reporter)
        self.broker.wait_subscribed([self.rerouter.open()], self.world.soon())
        self.world.broker.apply(topology.reply_queue(NAMES, REPLY), self.world.soon())

    def stray(self, message: Message, key: str) -> None:
        ended: Future[Receipt] = Future()
        publication = Publication(NAMES.exchange(Exchange.UNROUTED), key, message)
        self.world.broker.publish(publication, self.world.soon(), ended.set_result)
        ended.result(SOON_S)

    def outcome(self) -> Any:
        self.world.eventually(lambda: self.world.count(REPLY) > 0)
        delivery = self.world.broker.get(str(REPLY), self.world.soon())
        assert delivery is not None
        return envelope.read_outcome(delivery.message, DEFAULT)

    def close(self) -> None:
        self.rerouter.close()
        self.world.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_what_lost_its_task_queue_gets_it_back(bench: Bench) -> None:
    dead = envelope.forwarded(envelope.task_message(task()), headers={"x-death": [{"count": 1}]})
    bench.stray(dead, QUEUE.key)
    bench.world.eventually(lambda: bench.world.count() == 1)
    delivery = bench.world.broker.get(str(QUEUE), bench.world.soon())
    assert delivery is not None
    assert envelope.read_task(delivery.message, "q") == task()
    assert "x-death" not in delivery.message.headers


def test_what_comes_from_the_ladder_is_known_by_the_end_of_its_key(bench: Bench) -> None:
    publication = delayed(Publication("", QUEUE.key, envelope.task_message(task())), NAMES, 12_345)
    bench.stray(publication.message, publication.routing_key)
    bench.world.eventually(lambda: bench.world.count() == 1)


def test_what_waits_for_its_target_on_the_ladder_has_not_begun(bench: Bench) -> None:
    falls = Route.host("h", on_gone=OnGone.FALL_BACK)
    message = envelope.task_message(task(route=falls, retry_policy=ONCE))
    key = NAMES.queue(Kind.HOST, "h", "q").key
    publication = delayed(Publication("", key, message), NAMES, 500)
    bench.stray(publication.message, publication.routing_key)
    bench.world.eventually(lambda: bench.world.count() == 1)


def test_a_lease_is_a_lost_attempt(bench: Bench) -> None:
    message = envelope.forwarded(
        envelope.task_message(task(retry_policy=ONCE, lease="w")), headers={"tq-task-queue": "q"}
    )
    bench.stray(message, LEASE.key)
    outcome = bench.outcome()
    assert outcome.status is Status.FAILED
    assert outcome.failure.type == "WorkerLost"


def test_a_task_whose_target_is_gone_is_told_so(bench: Bench) -> None:
    bench.stray(envelope.task_message(task(route=Route.host("h"))), HOST.key)
    assert bench.outcome().failure.type == "TargetGone"


@pytest.mark.parametrize(
    ("message", "key"),
    [
        (Message(body=b"", message_id="1"), QUEUE.key),
        (envelope.task_message(task()), "nonsense"),
        (envelope.task_message(task()), "activity.q.q"),
        (envelope.task_message(task()), "activity.%ZZ"),
        (envelope.task_message(task()), ""),
        (envelope.task_message(task()), "parked"),
        (envelope.task_message(task()), LEASE.key),
        (envelope.task_message(task(body=b"garbage", retry_policy=ONCE)), f"x.{LEASE.key}"),
    ],
)
def test_what_nobody_can_route_is_parked_and_the_rest_goes_on(
    bench: Bench, message: Message, key: str
) -> None:
    bench.stray(message, key)
    bench.stray(envelope.task_message(task()), QUEUE.key)
    parked = bench.world.take_parked().message
    assert parked.headers["tq-parked-from"] == f"tq.n.{key}"
    bench.world.eventually(lambda: bench.world.count() == 1)


def test_a_lease_with_a_bad_body_is_parked(bench: Bench) -> None:
    message = envelope.forwarded(
        envelope.task_message(task(body=b"garbage")), headers={"tq-task-queue": "q"}
    )
    bench.stray(message, LEASE.key)
    assert "body" in bench.world.take_parked().message.headers["tq-parked-reason"]


def will(bench: Bench, queue: str = str(HOST)) -> None:
    bench.stray(envelope.will_message(queue, "1"), "will.w")


def leave(bench: Bench, activity_id: str) -> None:
    """A task for a host that is gone, in the queue that it has left."""
    route = Route.host("h")
    message = envelope.task_message(task(activity_id=activity_id, route=route))
    bench.world.broker.apply(topology.private_queue(NAMES, HOST), bench.world.soon())
    bench.world.publish(message, HOST)


def gone(bench: Bench) -> bool:
    return bench.world.broker.stats(str(HOST), bench.world.soon()) is None


def test_a_will_empties_and_removes_the_queue_of_a_target_that_is_gone(bench: Bench) -> None:
    leave(bench, "a")
    leave(bench, "b")

    will(bench)

    assert {bench.outcome().failure.type for _ in range(2)} == {"TargetGone"}
    bench.world.eventually(lambda: gone(bench))


def test_what_was_on_its_way_to_the_queue_when_it_was_emptied_is_not_lost_with_it(
    bench: Bench,
) -> None:
    leave(bench, "a")
    will(bench)
    assert bench.outcome().failure.type == "TargetGone"
    assert isinstance(put(bench, "b"), NoRoute)  # nothing more is routed there

    late = envelope.task_message(task(activity_id="late", route=Route.host("h")))
    bench.world.broker.publish(
        Publication("", str(HOST), late), bench.world.soon(), lambda receipt: None
    )

    assert bench.outcome().failure.type == "TargetGone"
    bench.world.eventually(lambda: gone(bench))


def test_a_queue_that_is_served_anew_while_it_is_removed_stays_bound(bench: Bench) -> None:
    leave(bench, "a")
    will(bench)
    assert bench.outcome().failure.type == "TargetGone"
    again = bench.world.broker.subscribe(
        str(HOST), lambda deliveries: None, SubscribeOptions(prefetch=1)
    )
    bench.world.broker.wait_subscribed([again], bench.world.soon())

    bench.world.eventually(lambda: put(bench, "b") is None)


def put(bench: Bench, activity_id: str) -> TqBrokerError | None:
    """What becomes of a task for the host that does not ask who is there."""
    message = envelope.task_message(task(activity_id=activity_id, route=Route.host("h")))
    ended: Future[TqBrokerError | None] = Future()
    publication = Publication(NAMES.exchange(Exchange.TASKS), HOST.key, message)
    bench.world.client.connection.sender.send(publication, (), bench.world.soon(), ended.set_result)
    return ended.result(SOON_S)


def test_what_the_target_had_begun_is_a_lost_attempt(bench: Bench) -> None:
    message = envelope.task_message(task(route=Route.host("h"), retry_policy=ONCE))
    bench.world.broker.apply(topology.private_queue(NAMES, HOST), bench.world.soon())
    bench.world.publish(message, HOST)
    taken = bench.world.broker.get(str(HOST), bench.world.soon())
    assert taken is not None
    taken.reject(requeue=True)

    will(bench)

    assert bench.outcome().failure.type == "WorkerLost"


def test_garbage_in_the_queue_of_a_dead_target_is_parked(bench: Bench) -> None:
    leave(bench, "a")
    bench.world.publish(Message(body=b"", message_id="x"), HOST)

    will(bench)

    assert bench.world.take_parked().message.headers["tq-parked-from"] == str(HOST)
    bench.world.eventually(lambda: gone(bench))


def test_a_will_of_a_target_that_lives_changes_nothing(bench: Bench) -> None:
    leave(bench, "a")
    desk = NAMES.queue(Kind.CONTROL, "w")
    plan = topology.control_queue(NAMES, desk, (HOST.key,))
    bench.world.broker.apply(plan, bench.world.soon())

    will(bench)

    bench.world.eventually(lambda: bench.world.count(desk) >= 1)
    assert bench.world.count(HOST) == 1


# --- detours ------------------------------------------------------------------------------------


DETOUR = Detour(TaskKind.ACTIVITY, "there", "", "q", 60_000)


def lent(activity_id: str = "a", **fields: Any) -> Message:
    return envelope.diverted(
        envelope.task_message(task(activity_id=activity_id, **fields)), "r", "q"
    )


def on_detour(bench: Bench, message: Message) -> None:
    bench.world.broker.apply(topology.detour_queue(NAMES, DETOUR), bench.world.soon())
    ended: Future[Receipt] = Future()
    key = DETOUR.queue(NAMES).key
    publication = Publication(NAMES.exchange(Exchange.TASKS), key, message)
    bench.world.broker.publish(publication, bench.world.soon(), ended.set_result)
    ended.result(SOON_S)


def at_home(bench: Bench, queue: QueueName = QUEUE) -> Message:
    bench.world.eventually(lambda: bench.world.count(queue) > 0)
    delivery = bench.world.broker.get(str(queue), bench.world.soon())
    assert delivery is not None
    return delivery.message


def test_what_a_dead_target_had_on_a_detour_comes_home(bench: Bench) -> None:
    on_detour(bench, lent())
    will(bench, str(DETOUR.queue(NAMES)))
    assert envelope.read_task(at_home(bench), "q") == task(fell_back="r")


def test_what_requires_something_comes_home_to_those_who_have_it(bench: Bench) -> None:
    needs = Requires(("gpu",))
    on_detour(bench, lent(requires=needs))
    will(bench, str(DETOUR.queue(NAMES)))
    home = at_home(bench, NAMES.capable("q", ["gpu"]))
    assert envelope.read_task(home, "q") == task(fell_back="r", requires=needs)


def test_what_it_had_begun_there_is_a_lost_attempt(bench: Bench) -> None:
    on_detour(bench, lent(retry_policy=ONCE))
    queue = DETOUR.queue(NAMES)
    taken = bench.world.broker.get(str(queue), bench.world.soon())
    assert taken is not None
    taken.reject(requeue=True)
    will(bench, str(queue))
    outcome = bench.outcome()
    assert (outcome.status, outcome.failure.type) == (Status.FAILED, "WorkerLost")


def test_a_workflow_task_on_a_detour_comes_home(bench: Bench) -> None:
    flow = WorkflowTask(
        run=RunKey("w", "r"), workflow_type="W", task_queue="q", shard=1, scheduled_event_id=2
    )
    on_detour(bench, envelope.diverted(task_message(flow, "m"), "r", "q"))
    will(bench, str(DETOUR.queue(NAMES)))
    message = at_home(bench, NAMES.workflow("q"))
    assert read_task(message) == flow
    assert message.headers[envelope.FELL_BACK] == "r"


def test_a_workflow_task_whose_home_was_removed_gets_it_back(bench: Bench) -> None:
    flow = WorkflowTask(
        run=RunKey("w", "r"), workflow_type="W", task_queue="q", shard=1, scheduled_event_id=2
    )
    home = NAMES.workflow("q")
    bench.stray(envelope.diverted(task_message(flow, "m"), "r", "q"), home.key)
    assert read_task(at_home(bench, home)) == flow


def test_what_a_timer_releases_for_a_detour_is_asked_about_again(bench: Bench) -> None:
    key = DETOUR.queue(NAMES).key
    publication = delayed(Publication("", key, lent()), NAMES, 12_345)
    bench.stray(publication.message, publication.routing_key)
    assert envelope.read_task(at_home(bench), "q") == task()


def test_what_does_not_tell_its_home_is_parked(bench: Bench) -> None:
    bench.stray(envelope.task_message(task()), DETOUR.queue(NAMES).key)
    parked = bench.world.take_parked()
    assert "tq-task-queue" in str(parked.message.headers["tq-parked-reason"])


def test_a_will_about_a_sticky_queue_has_history_told(bench: Bench) -> None:
    sticky = NAMES.sticky("dead")
    bench.world.broker.apply(topology.sticky_queue(NAMES, sticky, 10_000), bench.world.soon())
    shards = [NAMES.history(n) for n in range(SHARDS)]
    bench.client.connection.sender.ensure(shards, bench.world.soon())

    will(bench, str(sticky))

    bench.world.eventually(lambda: all(bench.world.count(shard) == 1 for shard in shards))
    bench.world.eventually(
        lambda: bench.world.broker.stats(str(sticky), bench.world.soon()) is None
    )


@pytest.mark.parametrize("queue", [HOST, NAMES.sticky("dead")])
def test_a_queue_that_seems_to_be_consumed_is_looked_at_again(
    bench: Bench, queue: QueueName
) -> None:
    plan = (
        topology.sticky_queue(NAMES, queue, 10_000)
        if queue.kind is Kind.STICKY
        else topology.private_queue(NAMES, queue)
    )
    dying = bench.world.broker.subscribe(
        str(queue), lambda deliveries: None, SubscribeOptions(prefetch=1, plan=plan)
    )
    bench.world.broker.wait_subscribed([dying], bench.world.soon())

    will(bench, str(queue))
    bench.broker.wait_quiet(bench.world.soon())
    dying.cancel(bench.world.soon())

    bench.world.eventually(lambda: bench.world.broker.stats(str(queue), bench.world.soon()) is None)


@pytest.mark.parametrize("queue", [str(QUEUE), "tq.other.host.h.q", "nonsense"])
def test_a_will_about_any_other_queue_is_parked(bench: Bench, queue: str) -> None:
    will(bench, queue)

    assert bench.world.take_parked().message.kind == envelope.WILL


def test_a_workflow_task_for_workers_that_are_gone_goes_back_to_history(bench: Bench) -> None:
    flow = WorkflowTask(
        run=RunKey("w", "r"), workflow_type="W", task_queue="q", shard=1, scheduled_event_id=2
    )
    niche = Niche("q", (), "h", version="", side="workflow").queue(NAMES)
    broker, soon = bench.world.broker, bench.world.soon
    shard = NAMES.history(1)
    broker.apply(topology.namespace(NAMES) + topology.history_shard(NAMES, shard), soon())
    broker.apply(topology.private_queue(NAMES, niche), soon())
    publication = Publication(NAMES.exchange(Exchange.TASKS), niche.key, task_message(flow, "m"))
    receipts: list[Receipt] = []
    broker.publish(publication, soon(), receipts.append)
    bench.world.eventually(lambda: bool(receipts))
    will(bench, str(niche))
    assert read_task(at_home(bench, shard)) == flow
    # Also what has waited there for too long
    bench.stray(task_message(flow, "m"), niche.key)
    assert read_task(at_home(bench, shard)) == flow
    bench.stray(task_message(msgspec.structs.replace(flow, shard=SHARDS), "m"), niche.key)
    parked = bench.world.take_parked()
    assert "shard 16, which there is not" in str(parked.message.headers["tq-parked-reason"])
