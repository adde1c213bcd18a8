"""Reclaiming on the broker in memory; the race is in ``integration/test_reclaim_race.py``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from tq_broker.clock import SystemClock
from tq_broker.exceptions import BrokerUnavailable, InvalidArgument, TqBrokerError, Unavailable
from tq_broker.model.composition import Known, Member, members
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names, QueueName
from tq_broker.model.settings import Record, TaskQueueDeclared, TaskQueueReclaimed
from tq_broker.queues.broker import Delivery, SubscribeOptions
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.reclaim import BATCH, Reclaimer
from tq_broker.queues.sender import Sender, lock_name
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.topology import DeleteQueue, Plan, QueueType

NAMES = Names("test")
EXCHANGE = NAMES.exchange(Exchange.TASKS)

clock = SystemClock()


def soon(seconds: float = 10.0) -> float:
    return clock.monotonic() + seconds


class GraceClock(SystemClock):
    """Its ``sleep`` takes no time: what happens meanwhile is what a test puts in."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] = lambda: None
        self.slept_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.meanwhile()


class Process:
    """A broker, a sender and a reclaimer, as one process of a namespace has them."""

    def __init__(self, server: MemoryServer, queue_type: QueueType = QueueType.QUORUM) -> None:
        self.clock = GraceClock()
        self.broker = MemoryBroker(server)
        self.sender = Sender(self.broker, NAMES, clock, identity="test", queue_type=queue_type)
        self.reclaimer = Reclaimer(self.broker, self.sender, NAMES, self.clock)

    def declare(self, *task_queues: str) -> None:
        self.sender.ensure([NAMES.activity(name) for name in task_queues], soon())

    def start_publish(self, task_queue: str, body: bytes = b"task") -> Ended:
        queue, ended = NAMES.activity(task_queue), Ended()
        publication = Publication(EXCHANGE, queue.key, Message(body=body, message_id="1"))
        self.sender.send(publication, (queue,), soon(), ended)
        return ended

    def publish(self, task_queue: str, body: bytes = b"task") -> None:
        assert self.start_publish(task_queue, body).error() is None

    def exists(self, task_queue: str) -> bool:
        return self.broker.stats(str(NAMES.activity(task_queue)), soon()) is not None

    def take(self, task_queue: str) -> Delivery | None:
        return self.broker.get(str(NAMES.activity(task_queue)), soon())


class Ended:
    """How a publish ends."""

    def __init__(self) -> None:
        self._errors: list[TqBrokerError | None] = []
        self._done = threading.Event()

    def __call__(self, error: TqBrokerError | None) -> None:
        self._errors.append(error)
        self._done.set()

    def error(self) -> TqBrokerError | None:
        assert self._done.wait(10), "it does not end"
        return self._errors[0]

    @property
    def has_ended(self) -> bool:
        return self._done.is_set()


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture(params=list(QueueType))
def process(server: MemoryServer, request: pytest.FixtureRequest) -> Iterator[Process]:
    process = Process(server, request.param)
    yield process
    process.sender.close()
    process.broker.close(soon())


@pytest.fixture
def other(server: MemoryServer) -> Iterator[Process]:
    other = Process(server)
    yield other
    other.sender.close()
    other.broker.close(soon())


def nothing(deliveries: Sequence[Delivery]) -> None:
    pass


def test_an_idle_queue_is_removed(process: Process) -> None:
    process.declare("a")
    assert process.reclaimer.reclaim(["a"], grace_s=0.5) == ["a"]
    assert not process.exists("a")
    assert process.clock.slept_s == [0.5]


def test_a_removed_queue_is_declared_again_by_the_next_publish(
    process: Process, other: Process
) -> None:
    for one in (process, other):
        one.declare("a")
    process.reclaimer.reclaim(["a"])
    other.publish("a")
    process.publish("a")
    assert [process.take("a") is not None for _ in range(3)] == [True, True, False]


def test_a_queue_with_messages_stays_and_is_not_touched(process: Process) -> None:
    process.publish("a")
    assert process.reclaimer.reclaim(["a"]) == []
    delivery = process.take("a")
    assert delivery is not None
    assert not delivery.redelivered
    assert process.clock.slept_s == []


def test_a_queue_with_a_consumer_stays(process: Process, other: Process) -> None:
    process.declare("a")
    subscription = other.broker.subscribe(
        str(NAMES.activity("a")), nothing, SubscribeOptions(prefetch=1)
    )
    other.broker.wait_subscribed([subscription], soon())
    assert process.reclaimer.reclaim(["a"]) == []
    assert process.exists("a")


def test_a_consumer_that_comes_meanwhile_keeps_its_queue_and_gets_its_tasks(
    process: Process, other: Process
) -> None:
    process.declare("a")
    got = threading.Event()

    def subscribe() -> None:
        subscription = other.broker.subscribe(
            str(NAMES.activity("a")), lambda _: got.set(), SubscribeOptions(prefetch=1)
        )
        other.broker.wait_subscribed([subscription], soon())

    process.clock.meanwhile = subscribe
    assert process.reclaimer.reclaim(["a"]) == []
    process.publish("a")
    assert got.wait(10)


def test_a_queue_whose_lock_is_taken_stays(process: Process, other: Process) -> None:
    process.declare("a", "b")
    with other.broker.lock(str(lock_name(NAMES, NAMES.activity("a"))), soon()):
        assert process.reclaimer.reclaim(["a", "b"]) == ["b"]
    assert process.exists("a")


def test_a_publisher_waits_for_the_reclaimer_and_then_declares_anew(
    process: Process, other: Process
) -> None:
    process.declare("a")
    other.declare("a")
    publishes: list[Ended] = []
    process.clock.meanwhile = lambda: publishes.append(other.start_publish("a"))
    assert process.reclaimer.reclaim(["a"]) == ["a"]
    assert publishes[0].error() is None
    assert process.take("a") is not None


def test_a_publisher_of_the_same_process_waits_too(process: Process) -> None:
    process.declare("a")
    publishes: list[Ended] = []
    process.clock.meanwhile = lambda: publishes.append(process.start_publish("a"))
    assert process.reclaimer.reclaim(["a"]) == ["a"]
    assert publishes[0].error() is None
    assert process.take("a") is not None


def straggler(server: MemoryServer, task_queue: str) -> None:
    """A message that was routed before the queue was unbound arrives."""
    queue = server.vhost.queues[str(NAMES.activity(task_queue))]
    back_door = Publication("", queue.name, Message(body=b"late", message_id="late"))
    with server.changed:
        server.vhost.publish(back_door, clock.monotonic())


def test_a_message_that_arrives_late_keeps_its_queue_and_was_never_handed_out(
    process: Process, other: Process, server: MemoryServer
) -> None:
    process.declare("a")
    process.clock.meanwhile = lambda: straggler(server, "a")
    assert process.reclaimer.reclaim(["a"]) == []
    other.publish("a")
    late, next_one = process.take("a"), process.take("a")
    assert late is not None
    assert next_one is not None
    assert (late.message.body, late.redelivered) == (b"late", False)


def test_a_message_that_only_the_fetch_finds_goes_back_as_a_fresh_copy(
    process: Process, server: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    process.declare("a")
    fetch = process.broker.get

    def get(queue: str, deadline: float) -> Delivery | None:
        straggler(server, "a")
        return fetch(queue, deadline)

    monkeypatch.setattr(process.broker, "get", get)
    assert process.reclaimer.reclaim(["a"]) == []
    monkeypatch.undo()
    late = process.take("a")
    assert late is not None
    assert (late.message.body, late.redelivered) == (b"late", False)
    late.ack()
    assert process.take("a") is None


def test_a_message_that_only_the_fetch_finds_stays_where_its_queue_cannot_be_bound(
    process: Process, server: MemoryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: it was nobody's as long as the connection lived."""
    process.declare("a")
    get, apply = process.broker.get, process.broker.apply

    def get_late(queue: str, deadline: float) -> Delivery | None:
        straggler(server, "a")
        monkeypatch.setattr(process.broker, "get", get)
        monkeypatch.setattr(process.broker, "apply", fail)
        return get(queue, deadline)

    def fail(plan: Plan, deadline: float) -> None:
        raise Unavailable("not now")

    monkeypatch.setattr(process.broker, "get", get_late)
    assert process.reclaimer.reclaim(["a"]) == []
    monkeypatch.setattr(process.broker, "apply", apply)
    late = process.take("a")
    assert late is not None
    assert late.message.body == b"late"


def test_a_reclaimer_that_is_killed_leaves_a_queue_that_publishers_bind_again(
    process: Process, other: Process, server: MemoryServer
) -> None:
    process.declare("a")
    other.declare("a")

    def die() -> None:
        straggler(server, "a")
        process.broker.kill()

    process.clock.meanwhile = die
    with pytest.raises(BrokerUnavailable):
        process.reclaimer.reclaim(["a"])
    assert other.exists("a")
    other.publish("a", b"next")
    bodies = [delivery.message.body for _ in range(2) if (delivery := other.take("a"))]
    assert bodies == [b"late", b"next"]


def test_a_reclaimer_that_lost_its_lock_removes_nothing(process: Process, other: Process) -> None:
    process.declare("a")
    other.declare("a")
    published: list[bool] = []

    def lose_it() -> None:
        process.broker.break_connection()
        # The queue is in use again, by somebody with the lock, and empty by chance.
        other.publish("a")
        delivery = other.take("a")
        published.append(delivery is not None)
        assert delivery is not None
        delivery.ack()

    process.clock.meanwhile = lose_it
    assert process.reclaimer.reclaim(["a"]) == []
    assert published == [True]
    assert other.exists("a")


def test_the_settings_log_says_what_was_removed_before_anybody_declares_it_again(
    process: Process, other: Process
) -> None:
    records: list[Record] = []
    declared_again = threading.Event()

    def note(record: Record) -> None:
        records.append(record)
        if sum(isinstance(record, TaskQueueDeclared) for record in records) == 2:
            declared_again.set()

    follower = SettingsLog(other.broker, NAMES, clock, note)
    process.declare("a")
    other.broker.wait_subscribed([follower.follow()], soon())
    publishes: list[Ended] = []
    process.clock.meanwhile = lambda: publishes.append(process.start_publish("a"))
    process.reclaimer.reclaim(["a"])
    assert publishes[0].error() is None
    assert declared_again.wait(10)
    kinds = [type(record) for record in records]
    assert kinds == [TaskQueueDeclared, TaskQueueReclaimed, TaskQueueDeclared]
    assert follower.task_queues().keys() == {"a"}


def test_a_queue_that_is_gone_already_is_taken_off_the_list(
    process: Process, other: Process
) -> None:
    gone = threading.Event()
    follower = SettingsLog(
        other.broker,
        NAMES,
        clock,
        lambda r: gone.set() if isinstance(r, TaskQueueReclaimed) else None,
    )
    process.declare("a")
    other.broker.wait_subscribed([follower.follow()], soon())
    process.broker.apply(Plan((DeleteQueue(str(NAMES.activity("a"))),)), soon())
    assert process.reclaimer.reclaim(["a"]) == []
    assert gone.wait(10)
    assert not follower.task_queues()


def test_many_queues_wait_together(process: Process) -> None:
    names = [f"q{number}" for number in range(BATCH + 1)]
    process.declare(*names)
    assert process.reclaimer.reclaim(names) == names
    assert process.clock.slept_s == [1.0, 1.0]


def test_a_name_that_comes_twice_is_taken_once(process: Process) -> None:
    process.declare("a")
    assert process.reclaimer.reclaim(["a", "a"]) == ["a"]


def test_no_queues_cost_nothing(process: Process) -> None:
    assert process.reclaimer.reclaim([]) == []


def test_what_may_go_are_the_empty_ones_without_consumers(process: Process, other: Process) -> None:
    process.declare("empty", "served")
    process.publish("full")
    subscription = other.broker.subscribe(
        str(NAMES.activity("served")), nothing, SubscribeOptions(prefetch=1)
    )
    other.broker.wait_subscribed([subscription], soon())
    for name, may_go in (("empty", True), ("served", False), ("full", False), ("missing", True)):
        found = process.reclaimer.removable(members(NAMES, "activity", name, Known()), soon())
        assert found == ([NAMES.activity(name)] if may_go else [])


@pytest.mark.parametrize(
    "elsewhere",
    [
        NAMES.version("activity", "shop.1", "a"),
        NAMES.queue(Kind.ANTEROOM, "a"),
        NAMES.queue(Kind.HOST, "h", "a"),
    ],
    ids=lambda queue: queue.kind.value,
)
def test_a_task_queue_stays_while_tasks_wait_in_any_of_its_queues(
    process: Process, elsewhere: QueueName
) -> None:
    gpu = NAMES.capable("a", ["gpu"])
    process.declare("a")
    process.sender.ensure([elsewhere, gpu], soon())
    parts = [Member(one) for one in (NAMES.activity("a"), elsewhere, gpu)]
    assert process.reclaimer.removable(parts, soon()) == [NAMES.activity("a"), gpu]
    assert process.reclaimer.removable(parts, soon(), is_served=True) == [gpu]
    message = Message(body=b"{}", message_id="m")
    publication = Publication(NAMES.exchange(Exchange.TASKS), elsewhere.key, message)
    process.broker.publish(publication, soon(), lambda receipt: None)
    process.broker.wait_quiet(soon())
    assert process.reclaimer.removable(parts, soon()) == [gpu]


@pytest.mark.parametrize("grace_s", [-1.0, 61.0, float("nan")])
def test_a_grace_out_of_bounds_is_refused(process: Process, grace_s: float) -> None:
    process.declare("a")
    with pytest.raises(InvalidArgument, match=r"grace_s is .*; it must be from 0 to 60"):
        process.reclaimer.reclaim(["a"], grace_s=grace_s)
    assert process.exists("a")


def test_a_plain_queue_goes_after_its_priority_queue_and_only_then(process: Process) -> None:
    plains = [NAMES.activity("idle"), NAMES.activity("used")]
    in_order = [NAMES.priority(one) for one in plains]
    gpu = NAMES.capable("used", ["gpu"])
    process.sender.ensure([*in_order, gpu], soon())
    subscription = process.broker.subscribe(
        str(in_order[1]), lambda deliveries: None, SubscribeOptions(prefetch=1)
    )
    process.broker.wait_subscribed([subscription], soon())
    # The order in which they are given does not matter.
    removed = process.reclaimer.reclaim_queues([*plains, gpu, *in_order])
    assert removed == [in_order[0], plains[0], gpu]
    assert process.exists("used")


def test_a_queue_of_a_version_goes_without_a_record(process: Process) -> None:
    process.declare("a")
    version = NAMES.version("activity", "shop.1", "a")
    process.sender.ensure([version], soon())
    assert process.reclaimer.reclaim_queues([version]) == [version]
    log = SettingsLog(process.broker, NAMES, clock)
    process.broker.wait_subscribed([log.follow()], soon())
    log.catch_up(soon())
    assert "a" in log.task_queues("activity"), "the task queue is still there"
