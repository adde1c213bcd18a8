"""Declaration on demand, against a broker that answers as it is told and the one in memory."""

from __future__ import annotations

import functools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tq_broker.clock import SystemClock
from tq_broker.exceptions import (
    AccessRefused,
    BrokerBlocked,
    DeadlineExceeded,
    Rejected,
    TqBrokerError,
)
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.model.settings import TaskQueueDeclared, TaskQueuePrioritized, read_record
from tq_broker.queues.broker import Receipt, Verdict
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.sender import (
    LADDER,
    NAMESPACE,
    SLOW_THREADS,
    NoRoute,
    Sender,
    error_of,
    lock_name,
)
from tq_broker.queues.topology import DeclareQueue, DeleteQueue, Plan, QueueType

NAMES = Names("n")
QUEUE = NAMES.activity("q")
SOON_S = 20.0
clock = SystemClock()


def soon() -> float:
    return clock.monotonic() + SOON_S


class Broker(MemoryBroker):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(MemoryServer(), clock)
        self.plans: list[Plan] = []
        self.published: list[Publication] = []
        self.verdicts: list[Verdict] = []
        self.refusal: TqBrokerError | None = None

    def apply(self, plan: Plan, deadline: float) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.plans.append(plan)
        super().apply(plan, deadline)

    def publish(
        self, publication: Publication, deadline: float, done: Callable[[Receipt], None]
    ) -> None:
        self.published.append(publication)
        if self.verdicts:
            done(Receipt(self.verdicts.pop(0), "because"))
        else:
            super().publish(publication, deadline, done)

    def names_declared(self) -> list[str]:
        return [s.name for p in self.plans for s in p.steps if isinstance(s, DeclareQueue)]


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.close(soon())


@pytest.fixture
def sender(broker: Broker) -> Iterator[Sender]:
    sender = Sender(broker, NAMES, clock, identity="me")
    yield sender
    sender.close()


def publication(body: bytes = b"task") -> Publication:
    return Publication(
        NAMES.exchange(Exchange.TASKS), QUEUE.key, Message(body=body, message_id="1")
    )


def send(
    sender: Sender, needs: Sequence[object] = (QUEUE,), deadline: float | None = None
) -> TqBrokerError | None:
    ended: Future[TqBrokerError | None] = Future()
    sender.send(publication(), needs, deadline or soon(), ended.set_result)  # type: ignore[arg-type]
    return ended.result(SOON_S)


def count(broker: Broker) -> int:
    stats = broker.stats(str(QUEUE), soon())
    return -1 if stats is None else stats.ready


def test_the_first_send_declares_and_the_next_is_one_publish(
    broker: Broker, sender: Sender
) -> None:
    assert send(sender) is None
    assert str(QUEUE) in broker.names_declared()
    plans = len(broker.plans)
    assert send(sender) is None
    assert count(broker) == 2
    # The settings log may be declared meanwhile, for the announcement.
    assert all(str(QUEUE) not in str(plan) for plan in broker.plans[plans:])


def test_a_queue_that_went_away_is_declared_again_and_the_message_arrives(
    broker: Broker, sender: Sender
) -> None:
    send(sender)
    broker.apply(Plan((DeleteQueue(str(QUEUE)),)), soon())
    assert send(sender) is None
    assert count(broker) == 1


def test_without_needs_a_return_is_the_answer(broker: Broker, sender: Sender) -> None:
    error = send(sender, needs=())
    assert isinstance(error, NoRoute)
    assert len(broker.published) == 1


@pytest.mark.parametrize("verdict", [Verdict.REFUSED, Verdict.EXPIRED])
def test_other_verdicts_are_not_tried_again(
    broker: Broker, sender: Sender, verdict: Verdict
) -> None:
    sender.ensure([QUEUE], soon())
    sender.close()  # the announcement is out
    broker.published.clear()
    broker.verdicts = [verdict]
    assert send(sender) is not None
    assert len(broker.published) == 1


def test_a_plan_that_is_refused_is_the_answer(broker: Broker, sender: Sender) -> None:
    broker.refusal = AccessRefused("no")
    assert send(sender) is broker.refusal
    broker.refusal = None
    assert send(sender) is None, "nothing is taken for declared that is not"


def test_after_the_deadline_nothing_is_sent(broker: Broker, sender: Sender) -> None:
    assert isinstance(send(sender, deadline=clock.monotonic() - 1), DeadlineExceeded)
    assert broker.published == []


def test_a_message_returned_for_ever_ends_with_the_deadline(broker: Broker, sender: Sender) -> None:
    broker.verdicts = [Verdict.RETURNED] * 1_000_000
    assert isinstance(send(sender, deadline=clock.monotonic() + 0.05), (DeadlineExceeded, NoRoute))


def test_many_are_sent_with_one_declaration(broker: Broker, sender: Sender) -> None:
    ended: dict[int, TqBrokerError | None] = {}
    all_ended = threading.Event()

    def done(index: int, error: TqBrokerError | None) -> None:
        ended[index] = error
        if len(ended) == 50:
            all_ended.set()

    sender.send_many([publication() for _ in range(50)], [QUEUE], soon(), done)
    assert all_ended.wait(SOON_S)
    assert ended == dict.fromkeys(range(50))
    assert count(broker) == 50


def test_many_fail_together_when_the_declaration_fails(broker: Broker, sender: Sender) -> None:
    broker.refusal = AccessRefused("no")
    ended: list[tuple[int, TqBrokerError | None]] = []
    sender.send_many(
        [publication() for _ in range(3)], [QUEUE], soon(), lambda i, e: ended.append((i, e))
    )
    assert ended == [(index, broker.refusal) for index in range(3)]


def test_the_returned_among_many_are_sent_again(broker: Broker, sender: Sender) -> None:
    sender.ensure([QUEUE], soon())
    broker.apply(Plan((DeleteQueue(str(QUEUE)),)), soon())
    ended: Future[tuple[int, TqBrokerError | None]] = Future()
    sender.send_many([publication()], [QUEUE], soon(), lambda i, e: ended.set_result((i, e)))
    assert ended.result(SOON_S) == (0, None)
    assert count(broker) == 1


def test_a_new_task_queue_is_announced_in_the_settings_log(broker: Broker, sender: Sender) -> None:
    sender.ensure([QUEUE], soon())
    sender.close()
    record = next(read_record(p.message) for p in broker.published if p.message.kind == "setting")
    assert isinstance(record, TaskQueueDeclared)
    assert (record.task_queue, record.by) == ("q", "me")


def test_what_others_declared_is_taken_at_their_word_until_it_is_forgotten(
    broker: Broker, sender: Sender
) -> None:
    for need in (NAMESPACE, QUEUE):
        sender.declared(need)
    sender.ensure([QUEUE], soon())
    assert broker.plans == []
    for need in (NAMESPACE, QUEUE):
        sender.forget(need)
    sender.ensure([QUEUE], soon())
    assert str(QUEUE) in broker.names_declared()


def test_a_child_after_a_fork_declares_for_itself_and_has_ids_of_its_own(
    broker: Broker, sender: Sender
) -> None:
    sender.ensure([QUEUE], soon())
    sender.close()
    before, plans = sender.ids.next().partition("-")[0], len(broker.plans)
    sender.after_fork()
    assert sender.ids.next().partition("-")[0] != before
    sender.ensure([QUEUE], soon())
    assert len(broker.plans) > plans


@pytest.fixture
def short_of_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The system has no more threads for declaring; call it, and it has."""
    start, is_short = threading.Thread.start, [True]

    def start_if_there_is_one(thread: threading.Thread) -> None:
        if is_short and thread.name.startswith("tq-declare"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_if_there_is_one)
    return is_short.clear


def test_what_there_was_no_thread_for_is_done_as_soon_as_there_is_one(
    sender: Sender, short_of_threads: Callable[[], None]
) -> None:
    """Found: its caller waited for ever."""
    did: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(3):
        sender.in_background(functools.partial(did.put, number))
    assert did.empty()
    short_of_threads()
    assert [did.get(timeout=SOON_S) for _ in range(3)] == [0, 1, 2]
    sender.close()
    assert did.empty(), "once each"


@pytest.mark.usefixtures("short_of_threads")
def test_what_there_was_no_thread_for_is_done_by_who_closes(sender: Sender) -> None:
    did: list[threading.Thread] = []
    sender.in_background(lambda: did.append(threading.current_thread()))
    sender.close()
    assert did == [threading.current_thread()]


def test_closing_waits_for_the_slow_path_and_then_work_is_done_at_once(sender: Sender) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go_on.wait(SOON_S)
        done.append(threading.current_thread())

    sender.in_background(work)
    assert begun.wait(SOON_S)
    closer = threading.Thread(target=sender.close)
    closer.start()
    go_on.set()
    closer.join(SOON_S)
    assert len(done) == 1
    sender.in_background(lambda: done.append(threading.current_thread()))
    assert done[1] is threading.current_thread()


def test_what_comes_when_the_interpreter_ends_is_dropped(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: a traceback in the publisher's thread at the end of a program that closed nothing."""

    def submit(*_: Any) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    sender.in_background(lambda: pytest.fail("it is not done"))


def test_a_defect_in_the_background_is_logged(
    sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        sender.in_background(work)
        sender.close()
    assert "declaring on demand failed" in caplog.text


@pytest.mark.parametrize(
    ("need", "queue"),
    [
        (NAMESPACE, "tq.n.parked"),
        (LADDER, "tq.n.delay.0"),
        (QUEUE, "tq.n.activity.q"),
        (NAMES.queue(Kind.HOST, "h", "q"), "tq.n.host.h.q"),
        (NAMES.queue(Kind.PROCESS, "w", "q"), "tq.n.process.w.q"),
        (NAMES.queue(Kind.LEASE, "w"), "tq.n.lease.w"),
        (NAMES.queue(Kind.SETTINGS), "tq.n.settings"),
    ],
)
def test_each_need_has_its_plan(sender: Sender, need: object, queue: str) -> None:
    plan = sender.plan(need)  # type: ignore[arg-type]
    assert queue in [step.name for step in plan.steps if isinstance(step, DeclareQueue)]


def test_the_queue_type_is_the_senders(broker: Broker) -> None:
    sender = Sender(broker, NAMES, clock, identity="me", queue_type=QueueType.CLASSIC)
    (queue,) = [s for s in sender.plan(QUEUE).steps if isinstance(s, DeclareQueue)]
    assert queue.arguments["x-queue-type"] == "classic"


def test_a_lock_belongs_to_one_queue() -> None:
    assert lock_name(NAMES, QUEUE) == lock_name(NAMES, NAMES.activity("q"))
    assert lock_name(NAMES, QUEUE) != lock_name(NAMES, NAMES.activity("p"))
    assert lock_name(NAMES, NAMES.activity("x" * 100)).kind is Kind.LOCK


@pytest.mark.parametrize(
    ("receipt", "kind", "text"),
    [
        (Receipt(Verdict.RETURNED, "NO_ROUTE"), NoRoute, "NO_ROUTE"),
        (Receipt(Verdict.RETURNED), NoRoute, "no queue is bound"),
        (Receipt(Verdict.REFUSED, "too large"), Rejected, "too large"),
        (Receipt(Verdict.EXPIRED, "connection blocked: memory"), BrokerBlocked, "memory"),
        (Receipt(Verdict.EXPIRED), DeadlineExceeded, "not confirmed"),
    ],
)
def test_each_verdict_has_its_error(receipt: Receipt, kind: type[TqBrokerError], text: str) -> None:
    error = error_of(receipt)
    assert type(error) is kind
    assert text in str(error)


# --- priorities -----------------------------------------------------------------------------------


def test_the_log_tells_of_a_priority_queue_before_a_task_is_put_there(
    broker: Broker, sender: Sender
) -> None:
    in_order = NAMES.priority(QUEUE)
    ended: Future[TqBrokerError | None] = Future()
    task = Publication(NAMES.exchange(Exchange.TASKS), in_order.key, publication().message)
    sender.send(task, (in_order,), soon(), ended.set_result)
    assert ended.result(SOON_S) is None
    keys = [one.routing_key for one in broker.published]
    records = [
        read_record(one.message) for one in broker.published if "settings" in one.routing_key
    ]
    assert [type(record) for record in records] == [TaskQueueDeclared, TaskQueuePrioritized]
    assert keys.index(in_order.key) == len(keys) - 1


def test_all_threads_that_declare_may_find_the_log_gone_at_once(
    broker: Broker, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: each waited for one more thread that should append its record, for ever."""
    tasks = NAMES.exchange(Exchange.TASKS)
    queues = [NAMES.priority(NAMES.activity(f"q{number}")) for number in range(SLOW_THREADS)]
    sender.ensure([*map(NAMES.plain, queues), NAMES.queue(Kind.SETTINGS)], soon())
    all_are_told, publish, told = threading.Barrier(SLOW_THREADS), broker.publish, []

    def publish_to_a_log_that_is_gone(
        publication: Publication, deadline: float, done: Callable[[Receipt], None]
    ) -> None:
        is_record = publication.routing_key == NAMES.queue(Kind.SETTINGS).key and isinstance(
            read_record(publication.message), TaskQueuePrioritized
        )
        if is_record and len(told) < SLOW_THREADS:
            told.append(publication)
            all_are_told.wait(SOON_S)
            done(Receipt(Verdict.RETURNED, "because"))
        else:
            publish(publication, deadline, done)

    monkeypatch.setattr(broker, "publish", publish_to_a_log_that_is_gone)
    ended = [Future[TqBrokerError | None]() for _ in queues]
    for each, future in zip(queues, ended, strict=True):
        task = Publication(tasks, each.key, publication().message)
        sender.send(task, (each,), soon(), future.set_result)
    assert [future.result(SOON_S) for future in ended] == [None] * SLOW_THREADS


def test_a_record_returned_for_ever_ends_with_the_deadline(broker: Broker, sender: Sender) -> None:
    in_order = NAMES.priority(QUEUE)
    sender.ensure([QUEUE, NAMES.queue(Kind.SETTINGS)], soon())
    broker.verdicts = [Verdict.RETURNED] * 1_000_000
    with pytest.raises((DeadlineExceeded, NoRoute)):
        sender.ensure([in_order], clock.monotonic() + 0.05)
    broker.verdicts.clear()
    sender.ensure([in_order], soon())


def test_a_record_that_is_refused_is_the_answer(broker: Broker, sender: Sender) -> None:
    sender.ensure([QUEUE, NAMES.queue(Kind.SETTINGS)], soon())
    sender.close()  # the announcement is out
    broker.verdicts = [Verdict.REFUSED]
    with pytest.raises(Rejected):
        sender.ensure([NAMES.priority(QUEUE)], soon())


@pytest.mark.parametrize(
    ("version", "queue_type", "orders"),
    [
        ((3, 10, 8), QueueType.QUORUM, False),
        ((4, 2, 9), QueueType.QUORUM, False),
        ((4, 3, 0), QueueType.QUORUM, True),
        ((4, 3, 0), QueueType.CLASSIC, False),
        ((5, 0), QueueType.QUORUM, True),
    ],
)
def test_plain_queues_order_by_priority_on_newer_servers(
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, ...],
    queue_type: QueueType,
    orders: bool,
) -> None:
    monkeypatch.setattr(broker, "server_version", lambda deadline: version)
    sender = Sender(broker, NAMES, clock, identity="me", queue_type=queue_type)
    assert sender.orders_by_priority is None
    sender.ensure((), soon())
    assert sender.orders_by_priority is orders
    sender.close()
