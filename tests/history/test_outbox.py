from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.history.runs import NOW_MS, begin
from tests.history.worlds import NAMES, World
from tq_broker.clock import epoch_ms
from tq_broker.common import OnGone, Requires, Route
from tq_broker.exceptions import Malformed, TargetGone, TqBrokerError
from tq_broker.history import mailing
from tq_broker.history.cache import Cache, Held
from tq_broker.history.effects import DispatchWorkflowTask, ReplyTo
from tq_broker.history.outbox import Outbox
from tq_broker.history.records import (
    ActivityRecord,
    CancelRecord,
    EventReplyRecord,
    Parked,
    ReplyRecord,
    ShardRecord,
    TaskRecord,
)
from tq_broker.history.state import Activity
from tq_broker.history.transaction import Sending
from tq_broker.model import requests, workflow_tasks
from tq_broker.model.events import (
    ActivityTaskScheduled,
    WorkflowExecutionUpdateCompleted,
    dump_events,
)
from tq_broker.model.message import Message
from tq_broker.model.names import Kind
from tq_broker.model.requests import Describe, Done, UpdateState, shard_of
from tq_broker.model.tasks import dump_requires, dump_route
from tq_broker.queues import topology
from tq_broker.queues.dispatcher import TargetAwaited
from tq_broker.queues.sender import NoRoute
from tq_broker.stores.store import EventRow


class Desk:
    """An outbox with one run, and how its sendings have ended."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.run, self.step = begin()
        self.cache = Cache(10, 1_000_000)
        self.cache.add(Held(self.run, 3))
        self.rows: list[EventRow] = [
            EventRow("r", self.step.first_event_id, len(self.step.events), self.step.data)
        ]
        self.ended: list[tuple[Sending, TqBrokerError | None]] = []
        self.threads: set[str] = set()
        connection = world.connect("outbox")
        connection.sender.ensure((), world.soon())
        self.outbox = Outbox(connection, self.cache, self._read, self._on_ended)

    def _read(self, run_id: str, first: int, bytes_max: int) -> Sequence[EventRow]:
        return [row for row in self.rows if row.first_event_id + row.count > first]

    def _on_ended(self, sending: Sending, error: TqBrokerError | None) -> None:
        self.threads.add(threading.current_thread().name)
        self.ended.append((sending, error))

    def send(self, *records: Any) -> list[TqBrokerError | None]:
        """How sending these ends, in their order."""
        sendings = [Sending(record, 3, number) for number, record in enumerate(records, 1)]
        del self.ended[:]
        self.outbox.send(sendings)
        self.world.eventually(lambda: len(self.ended) == len(sendings))
        found = dict(self.ended)
        return [found[sending] for sending in sendings]

    def now_ms(self) -> int:
        return epoch_ms(self.outbox._connection.clock)

    @property
    def task(self) -> workflow_tasks.WorkflowTask:
        (task,) = (one.task for one in self.step.effects if isinstance(one, DispatchWorkflowTask))
        return task


@pytest.fixture
def desk() -> Iterator[Desk]:
    world = World()
    yield Desk(world)
    world.close()


def test_a_task_comes_with_its_history(desk: Desk) -> None:
    assert desk.send(TaskRecord(desk.task)) == [None]
    task = desk.world.workflow_task()
    assert [event.event_id for event in task.events] == [1, 2]


def test_what_memory_has_forgotten_comes_from_the_store(desk: Desk) -> None:
    desk.run.live = None
    assert desk.send(TaskRecord(desk.task)) == [None]
    assert [event.event_id for event in desk.world.workflow_task().events] == [1, 2]


def test_of_a_row_that_is_larger_than_a_message_a_part_is_sent(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailing, "PAGE_BYTES", len(desk.step.data) - 2)
    desk.run.live = None
    assert desk.send(TaskRecord(desk.task)) == [None]
    task = desk.world.workflow_task()
    assert [event.event_id for event in task.events] == [1]
    assert task.last_event_id == 2


def test_a_task_that_was_answered_meanwhile_is_not_sent(desk: Desk) -> None:
    late = msgspec.structs.replace(desk.task, attempt=7)
    other = msgspec.structs.replace(desk.task, run=workflow_tasks.RunKey("w", "gone"))
    assert desk.send(TaskRecord(late), TaskRecord(other)) == [None, None]
    assert desk.world.count(NAMES.workflow("q")) == 0


def test_a_sticky_queue_that_is_gone_is_said(desk: Desk) -> None:
    assert desk.run.task is not None
    desk.run.task.sticky = "w1"
    (error,) = desk.send(TaskRecord(msgspec.structs.replace(desk.task, sticky="w1")))
    assert isinstance(error, NoRoute)


def test_a_queue_that_was_reclaimed_is_declared_again(desk: Desk) -> None:
    assert desk.send(TaskRecord(desk.task)) == [None]
    queue = NAMES.workflow("q")
    unbind = topology.unbind_task_queue(NAMES, queue)
    delete = topology.Plan((topology.DeleteQueue(str(queue)),))
    desk.world.connection.broker.apply(unbind + delete, desk.world.soon())
    assert desk.send(TaskRecord(desk.task)) == [None]
    assert desk.world.count(queue) == 1


def test_an_attempt_that_is_over_is_not_sent(desk: Desk) -> None:
    assert desk.send(ActivityRecord("r", 5, 1, NOW_MS), ActivityRecord("x", 5, 1, NOW_MS)) == [
        None,
        None,
    ]


def test_the_target_of_a_lost_attempt_is_asked_before_it_gets_the_next(desk: Desk) -> None:
    route = dump_route(Route.host("h"))
    scheduled = ActivityTaskScheduled(
        event_id=5,
        time_ms=NOW_MS,
        activity_id="1",
        activity_type="t",
        task_queue="q",
        input=b'{"args":[]}',
        start_to_close_ms=9,
        route=route,
    )
    connection = desk.outbox._connection
    doubted: list[str] = []
    connection.dispatcher.doubt = lambda queue: doubted.append(str(queue))  # type: ignore[method-assign]
    for attempt in (1, 2):
        desk.run.activities[5] = Activity(
            activity_id="1", activity_type="t", task_queue="q", scheduled_ms=0, attempt=attempt
        )
        record = ActivityRecord("r", 5, attempt, NOW_MS, scheduled=scheduled)
        [error] = desk.send(record)
        assert isinstance(error, TargetGone)
        assert len(doubted) == attempt - 1


def test_answers(desk: Desk) -> None:
    to = ReplyTo(str(desk.world.reply_queue), "7")
    assert desk.send(ReplyRecord(to, Done(run_id="r"))) == [None]
    assert desk.world.replies.get(timeout=20) == ("7", Done(run_id="r"))
    gone = ReplyTo(str(NAMES.queue(Kind.REPLY, "gone")), "7")
    (error,) = desk.send(ReplyRecord(gone, Done()))
    assert isinstance(error, NoRoute)


def test_an_answer_that_stands_in_the_history(desk: Desk) -> None:
    event = WorkflowExecutionUpdateCompleted(
        event_id=9, time_ms=1, update_id="u", accepted_event_id=8, result=b"5"
    )
    desk.rows.append(EventRow("r", 9, 1, dump_events([event])))
    to = ReplyTo(str(desk.world.reply_queue), "7")
    assert desk.send(EventReplyRecord("r", to, 9)) == [None]
    _, reply = desk.world.replies.get(timeout=20)
    assert isinstance(reply, UpdateState)
    assert (reply.update_id, reply.result) == ("u", b"5")
    del desk.rows[:]
    assert desk.send(EventReplyRecord("r", to, 9)) == [None]


def test_a_request_to_another_run_declares_its_shard(desk: Desk) -> None:
    request = Describe(workflow_id="other")
    assert desk.send(ShardRecord("other", request)) == [None]
    delivery = desk.world.take(NAMES.history(shard_of("other")))
    assert requests.read_request(delivery.message) == request


def test_word_of_a_cancellation_and_parked_messages(desk: Desk) -> None:
    message = Message(body=b"x", message_id="m")
    assert desk.send(CancelRecord("r/5"), Parked(message)) == [None, None]
    assert desk.world.take_parked().message_id == "m"


def test_which_runs_are_needed(desk: Desk) -> None:
    records = [TaskRecord(desk.task), ActivityRecord("a", 5, 1, 1), CancelRecord("b/1")]
    assert Outbox.runs_of([Sending(record, 3) for record in records]) == {"r", "a"}


def test_nothing_can_be_sent_through_a_closed_broker(desk: Desk) -> None:
    to = ReplyTo(str(desk.world.reply_queue), "7")
    connection = desk.outbox._connection
    connection.broker.close(desk.world.soon())
    (error,) = desk.send(ReplyRecord(to, Done()))
    assert error is not None


def test_what_cannot_be_built_ends_alone(desk: Desk) -> None:
    """A row that nothing can be made of must not keep a shard from being owned."""
    desk.run.live = None
    desk.rows = [EventRow("r", 1, 2, b"\xc1")]
    answer = ReplyRecord(ReplyTo(str(desk.world.reply_queue), "c"), Done())
    refused, sent = desk.send(TaskRecord(desk.task), answer)
    assert isinstance(refused, Malformed)
    assert sent is None


def test_a_run_with_a_route_is_for_who_is_there(desk: Desk) -> None:
    started = desk.run.started
    for wait, kind in ((None, TargetGone), (timedelta(hours=1), TargetAwaited)):
        on_gone = OnGone.FAIL if wait is None else OnGone.WAIT
        route = dump_route(Route.host("h", on_gone=on_gone, wait=wait))
        desk.run.started = msgspec.structs.replace(started, route=route)
        task = msgspec.structs.replace(desk.task, scheduled_ms=desk.now_ms())
        (error,) = desk.send(TaskRecord(task))
        assert type(error) is kind
        # Nobody has lost it: a private queue gives back what it holds.
        assert desk.send(TaskRecord(task, if_missing=True)) == [None]
    fall = Requires({"gpu"}, OnGone.FALL_BACK)
    desk.run.started = msgspec.structs.replace(started, requires=dump_requires(fall))
    (error,) = desk.send(TaskRecord(desk.task))
    assert type(error) is TargetGone
    fallen = msgspec.structs.replace(desk.task, fell_back=["nobody with gpu"])
    assert desk.send(TaskRecord(fallen)) == [None]
    assert desk.world.count(NAMES.workflow("q")) == 1


def test_a_run_that_requires_something_waits_on_a_queue_of_its_own(desk: Desk) -> None:
    requires = dump_requires(Requires({"gpu"}))
    desk.run.started = msgspec.structs.replace(desk.run.started, requires=requires)
    assert desk.send(TaskRecord(desk.task)) == [None]
    assert desk.world.count(NAMES.capable("q", ["gpu"], Kind.WORKFLOW)) == 1
    assert not desk.world.count(NAMES.workflow("q"))
