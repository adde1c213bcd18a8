"""The service as a whole, on a broker and a store in memory: what its users are promised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from tests.history.worlds import (
    NAMES,
    Faulty,
    World,
)
from tq_broker.exceptions import InvalidArgument
from tq_broker.history.service import HistoryService
from tq_broker.model import envelope, failure, playback, requests
from tq_broker.model.commands import CompleteWorkflow, ScheduleActivity, StartTimer
from tq_broker.model.events import TimerFired, WorkflowExecutionSignaled
from tq_broker.model.message import Message
from tq_broker.model.names import Kind
from tq_broker.model.requests import (
    SHARDS,
    AwaitResult,
    Closed,
    Count,
    CountWorkflows,
    Describe,
    Description,
    Done,
    FetchHistory,
    Listing,
    ListWorkflows,
    PendingActivity,
    Refused,
    SignalWorkflow,
    Started,
    Status,
    shard_of,
)
from tq_broker.model.settings import TaskQueuePaused
from tq_broker.model.tasks import Status as Outcome
from tq_broker.model.tasks import WireRetryPolicy
from tq_broker.model.workflow_tasks import EventsPage, FetchEvents, RunKey
from tq_broker.queues import settings_keeper
from tq_broker.queues.broker import Delivery, SubscribeOptions
from tq_broker.stores.store import Batch
from tq_broker.testing.manual_clock import ManualClock

ACTIVITY = ScheduleActivity(
    activity_id="1",
    activity_type="act",
    task_queue="q",
    input=b'{"args":[]}',
    start_to_close_ms=60_000,
)
ONCE = {"retry_policy": WireRetryPolicy(attempts=1)}
DONE = CompleteWorkflow(result=b"8")


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def timed() -> Iterator[World]:
    """A world whose time passes only when it is told to."""
    world = World(ManualClock())
    yield world
    world.close()


def names_of(events: list[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


def result_of(world: World, workflow_id: str = "w") -> Closed:
    closed = world.ask(AwaitResult(workflow_id=workflow_id))
    assert isinstance(closed, Closed)
    return closed


def pending(world: World) -> PendingActivity:
    (found,) = world.ask(Describe(workflow_id="w")).pending_activities
    assert isinstance(found, PendingActivity)
    return found


def finish(world: World) -> None:
    """From the first workflow task on to the end."""
    world.complete(world.workflow_task(), ACTIVITY)
    world.report(world.activity_task(), result=b"7")
    world.complete(world.workflow_task(), DONE)
    assert (result_of(world).status, result_of(world).result) == (Status.COMPLETED, b"8")


def events_of(world: World, workflow_id: str = "w") -> list[Any]:
    page = world.ask(FetchHistory(workflow_id=workflow_id))
    assert isinstance(page, EventsPage)
    return page.events


# --- the way of a workflow -----------------------------------------------------------------------


def test_a_workflow_with_one_activity(world: World) -> None:
    world.service()
    started = world.start()
    assert isinstance(started, Started)
    task = world.workflow_task()
    assert names_of(task.events) == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
    world.complete(task, ACTIVITY)
    activity = world.activity_task()
    assert activity.workflow is not None
    assert activity.workflow.run_id == started.run_id
    assert activity.reply_to == str(NAMES.history(shard_of("w")))
    world.report(activity, result=b"7")
    world.complete(world.workflow_task(), DONE)
    assert result_of(world).result == b"8"
    assert names_of(events_of(world)) == [
        "WorkflowExecutionStarted",
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
        "ActivityTaskScheduled",
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
        "WorkflowExecutionCompleted",
    ]


def test_a_sticky_worker_gets_only_what_is_new(world: World) -> None:
    world.service()
    world.start()
    task = world.workflow_task()
    world.listen(NAMES.sticky("w1"))
    world.complete(task, ACTIVITY, sticky="w1")
    world.report(world.activity_task())
    task = world.workflow_task("w1")
    assert task.sticky == "w1"
    assert task.first_event_id > 1
    assert [event.event_id for event in task.events] == list(
        range(task.first_event_id, task.last_event_id + 1)
    )
    world.complete(task, DONE)
    assert result_of(world).status is Status.COMPLETED


def test_a_sticky_worker_that_is_gone_is_not_waited_for(timed: World) -> None:
    timed.service()
    timed.start()
    timed.complete(timed.workflow_task(), ACTIVITY, sticky="gone")
    timed.report(timed.activity_task())
    before = timed.clock.monotonic()
    task = timed.workflow_task()
    assert timed.clock.monotonic() - before < 5
    assert task.events[0].event_id == 1
    timed.complete(task, DONE)


def test_what_a_sticky_queue_gives_up_goes_to_everybody(timed: World) -> None:
    timed.service()
    timed.start()
    task = timed.workflow_task()
    timed.declare(NAMES.sticky("frozen"))
    timed.complete(task, ACTIVITY, sticky="frozen")
    timed.report(timed.activity_task())
    assert timed.workflow_task().events[0].event_id == 1


def test_a_timer_fires_in_time(timed: World) -> None:
    clock = timed.clock
    assert isinstance(clock, ManualClock)
    timed.service()
    timed.start()
    timed.complete(timed.workflow_task(), StartTimer(timer_id="t", start_to_fire_ms=7_000))
    task = timed.workflow_task()
    started, fired = (
        next(event for event in task.events if type(event).__name__ == name)
        for name in ("TimerStarted", "TimerFired")
    )
    assert isinstance(fired, TimerFired)
    assert 7_000 <= fired.time_ms - started.time_ms <= 7_050


def test_an_activity_is_tried_again_with_its_last_details(timed: World) -> None:
    timed.service()
    timed.start()
    timed.complete(timed.workflow_task(), ACTIVITY)
    first = timed.activity_task()
    failed = failure.application("x", "Bad")
    timed.report(first, Outcome.FAILED, failure=failed, details=[b"5"])
    second = timed.activity_task()
    assert second.attempt == 2
    assert b'"heartbeat":[5]' in second.body


def test_a_route_whose_target_is_gone_fails_the_activity(world: World) -> None:
    world.service()
    world.start()
    routed = world.changed(ACTIVITY, route='{"kind":"host","target":"nowhere"}')
    world.complete(world.workflow_task(), routed)
    task = world.workflow_task()
    failed = next(event for event in task.events if type(event).__name__ == "ActivityTaskFailed")
    assert failed.failure.type == "TargetGone"


def test_what_no_worker_has_ever_had_fails_the_activity(world: World) -> None:
    world.service()
    world.start()
    needs = world.changed(ACTIVITY, requires='{"capabilities":["gpu"]}')
    world.complete(world.workflow_task(), needs)
    task = world.workflow_task()
    failed = next(event for event in task.events if type(event).__name__ == "ActivityTaskFailed")
    assert failed.failure.type == "UnknownCapability"


def test_a_version_that_nobody_ever_was_of_fails_the_activity(world: World) -> None:
    world.service()
    world.start()
    bound = world.changed(ACTIVITY, route='{"kind":"version","target":"a.1","on-gone":"wait"}')
    world.complete(world.workflow_task(), bound)
    task = world.workflow_task()
    failed = next(event for event in task.events if type(event).__name__ == "ActivityTaskFailed")
    assert failed.failure.type == "UnknownVersion"


def test_a_long_history_is_sent_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from tq_broker.history import mailing, outbox, reading

    for module in (mailing, outbox, reading):
        monkeypatch.setattr(module, "PAGE_BYTES", 2_000)
    world.service(max_cached_runs=1)
    started = world.start(input=b"x" * 1_500)
    task = world.workflow_task()
    for _ in range(4):
        world.ask(SignalWorkflow(workflow_id="w", signal_name="s", input=b"y" * 1_500))
    world.start("other")
    world.complete(task)
    world.workflow_task()
    task = world.workflow_task()
    assert len(task.events) < task.last_event_id
    seen = list(task.events)
    while seen[-1].event_id < task.last_event_id:
        request = FetchEvents(run=RunKey("w", started.run_id), first_event_id=seen[-1].event_id + 1)
        page = world.ask(request, "w")
        seen += page.events
    assert sum(isinstance(event, WorkflowExecutionSignaled) for event in seen) == 4


# --- questions -----------------------------------------------------------------------------------


def test_questions(world: World) -> None:
    world.service()
    world.start("a")
    world.start("b", workflow_type="Other")
    described = world.ask(Describe(workflow_id="a"))
    assert isinstance(described, Description)
    assert described.info.workflow_id == "a"
    listed = world.ask(ListWorkflows(query='type = "Other"'))
    assert isinstance(listed, Listing)
    assert [run.workflow_id for run in listed.runs] == ["b"]
    assert world.ask(CountWorkflows()) == Count(count=2)
    assert world.ask(CountWorkflows(query="group by status")).groups == {"running": 2}


@pytest.mark.parametrize(
    "request_",
    [
        Describe(workflow_id="none"),
        AwaitResult(workflow_id="none"),
        FetchHistory(workflow_id="none"),
        SignalWorkflow(workflow_id="none", signal_name="s"),
    ],
)
def test_there_is_no_such_workflow(world: World, request_: Any) -> None:
    world.service()
    refused = world.ask(request_)
    assert isinstance(refused, Refused)
    assert refused.reason == "not_found"


@pytest.mark.parametrize(
    "request_", [ListWorkflows(query="nonsense"), ListWorkflows(page_token="x")]
)
def test_a_question_that_cannot_be_read(world: World, request_: ListWorkflows) -> None:
    world.service()
    assert world.ask(request_).reason == "invalid_argument"


def test_pages_of_a_list(world: World) -> None:
    world.service()
    for number in range(5):
        world.start(f"w{number}")
    found, token = [], ""
    while True:
        page = world.ask(ListWorkflows(page_size=2, page_token=token))
        found += [run.workflow_id for run in page.runs]
        token = page.page_token
        if not token:
            break
    assert sorted(found) == [f"w{number}" for number in range(5)]


# --- twice, and never ----------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_the_same_message_again_is_answered_as_the_first(world: World, restart: bool) -> None:
    service = world.service()
    first = world.ask(
        requests.StartWorkflow(workflow_id="w", workflow_type="T", task_queue="q"), message_id="m"
    )
    if restart:
        service.stop()
        world.service()
    again = world.ask(
        requests.StartWorkflow(workflow_id="w", workflow_type="T", task_queue="q"), message_id="m"
    )
    assert again == first
    signal = SignalWorkflow(workflow_id="w", signal_name="s")
    assert isinstance(world.ask(signal, message_id="s"), Done)
    assert isinstance(world.ask(signal, message_id="s"), Done)
    assert names_of(events_of(world)).count("WorkflowExecutionSignaled") <= 1


def a_message(**changes: Any) -> Message:
    request = SignalWorkflow(workflow_id="w", signal_name="s")
    return World.changed(requests.request_message(request, "m"), **changes)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (a_message(body=b"\xc1"), "history-request"),
        (a_message(kind="odd"), "'odd' is not for a history shard"),
        (a_message(reply_to="amq.direct"), "reply_to"),
        (a_message(reply_to=str(NAMES.activity("q"))), "reply_to"),
        (a_message(message_id=""), "message_id"),
        (a_message(headers={"tq-protocol": 9}), "protocol"),
        (a_message(kind=envelope.OUTCOME, correlation_id="x"), ""),
    ],
)
def test_what_makes_no_sense_is_parked(world: World, message: Message, reason: str) -> None:
    world.service()
    world.post(message, shard_of("w"))
    parked = world.take_parked()
    assert reason in str(parked.headers["tq-parked-reason"])
    assert parked.headers["tq-parked-from"] == str(NAMES.history(shard_of("w")))
    assert isinstance(world.start(), Started)


def test_a_letter_for_another_shard_is_parked(world: World) -> None:
    world.service()
    world.post(a_message(), (shard_of("w") + 1) % SHARDS)
    assert f"it is for shard {shard_of('w')}" in str(
        world.take_parked().headers["tq-parked-reason"]
    )


# --- one of many ---------------------------------------------------------------------------------


def test_two_share_the_shards_and_one_takes_all_when_the_other_leaves(world: World) -> None:
    first = world.service()
    world.eventually(lambda: len(first.shards) == SHARDS)
    second = world.service()
    world.eventually(lambda: len(first.shards) == len(second.shards) == SHARDS // 2)
    assert {*first.shards} | {*second.shards} == set(range(SHARDS))
    for number in range(8):
        assert isinstance(world.start(f"w{number}"), Started)
    first.stop()
    world.eventually(lambda: len(second.shards) == SHARDS)
    assert first.shards == ()
    for number in range(8):
        assert isinstance(world.ask(Describe(workflow_id=f"w{number}")), Description)


def test_what_a_dead_owner_left_undone_is_done_by_the_next(world: World) -> None:
    class Dying(Faulty):
        """Its process dies right after a commit, before anything is sent."""

        def commit(self, batch: Batch) -> None:
            super().commit(batch)
            if batch.outbox:
                broker.kill()

    connection = world.connect("dying")
    broker: Any = connection.broker
    dying = HistoryService(connection, Dying(world.store()))
    dying.start()
    world.request(requests.StartWorkflow(workflow_id="w", workflow_type="T", task_queue="q"))
    world.eventually(lambda: broker._is_killed)
    world.service()
    task = world.workflow_task()
    assert task.run.workflow_id == "w"
    assert world.count(NAMES.workflow("q")) == 0
    world.complete(task, DONE)
    assert result_of(world).status is Status.COMPLETED
    dying.stop()


def test_a_timer_outlives_its_owner(timed: World) -> None:
    first = timed.service()
    timed.start()
    timed.complete(timed.workflow_task(), StartTimer(timer_id="t", start_to_fire_ms=60_000))
    timed.eventually(lambda: timed.ask(Describe(workflow_id="w")).pending_timers == 1)
    first.stop()
    timed.service()
    assert any(isinstance(event, TimerFired) for event in timed.workflow_task().events)


@pytest.mark.parametrize(
    "bounds", [{"heartbeat_ms": 30_000}, {"schedule_to_close_ms": 30_000}, {"start_to_close_ms": 1}]
)
def test_what_was_reported_while_no_history_ran_counts(
    timed: World, bounds: dict[str, int]
) -> None:
    """However late it is read, and with whatever waits before it."""
    first = timed.service()
    timed.start()
    timed.complete(timed.workflow_task(), timed.changed(ACTIVITY, **ONCE | bounds))
    activity = timed.activity_task()
    timed.report(activity, Outcome.STARTED)
    timed.eventually(lambda: pending(timed).state == "started")
    first.stop()
    for _ in range(3):
        timed.report(activity, Outcome.HEARTBEAT)
    timed.report(activity, result=b"7")
    clock = timed.clock
    assert isinstance(clock, ManualClock)
    clock.advance(40)
    timed.service(prefetch=1)
    task = timed.workflow_task()
    assert "ActivityTaskCompleted" in names_of(task.events)
    timed.complete(task, DONE)
    assert result_of(timed).status is Status.COMPLETED


def test_who_is_silent_is_timed_out(timed: World) -> None:
    timed.service()
    timed.start()
    timed.complete(timed.workflow_task(), timed.changed(ACTIVITY, **ONCE, heartbeat_ms=3_000))
    timed.report(timed.activity_task(), Outcome.STARTED)
    task = timed.workflow_task()
    began, ended = (event.time_ms for event in task.events[-3:-1])
    assert names_of(task.events)[-2] == "ActivityTaskTimedOut"
    assert 5_000 <= ended - began <= 5_500


def test_a_zombie_can_commit_nothing(world: World) -> None:
    zombie = world.service()
    started = world.start()
    world.store().acquire(range(SHARDS), "another", 0)
    world.request(SignalWorkflow(workflow_id="w", signal_name="s"))
    # It loses the shard, and may take it again: then by what is stored, and as its owner.
    world.eventually(lambda: names_of(events_of(world)) != [] and bool(zombie.shards))
    described = world.ask(Describe(workflow_id="w"))
    assert described.info.run_id == started.run_id


def test_who_was_replaced_while_nothing_happened_finds_out(timed: World) -> None:
    """As a process that was stopped: the other has given the shards back to it since."""
    service = timed.service()
    timed.eventually(lambda: len(service.shards) == SHARDS)
    store = timed.store()
    store.acquire(range(SHARDS), "another", 0)
    timed.eventually(lambda: {row.owner for row in store.shards(0)} == {service.identity})


def test_what_ended_long_ago_is_forgotten(timed: World) -> None:
    clock = timed.clock
    assert isinstance(clock, ManualClock)
    timed.service(retention=timedelta(minutes=1))
    timed.start()
    timed.complete(timed.workflow_task(), DONE)
    assert result_of(timed).status is Status.COMPLETED
    clock.advance(61)
    timed.eventually(lambda: timed.ask(CountWorkflows()).count == 0)


def test_nothing_is_left_in_the_outbox(timed: World) -> None:
    timed.service()
    timed.start()
    timed.complete(timed.workflow_task(), ACTIVITY)
    timed.activity_task()
    store = timed.store()
    timed.eventually(lambda: not any(row.outbox for row in store.shards(0)))
    timed.eventually(lambda: timed.count(NAMES.history(shard_of("w"))) == 0)


def test_a_stopped_service_leaves_nothing_unacknowledged(world: World) -> None:
    service = world.service()
    world.start()
    service.stop()
    service.stop()
    assert service.shards == ()
    assert [world.count(NAMES.history(shard)) for shard in range(SHARDS)] == [0] * SHARDS
    assert world.count(NAMES.queue(Kind.PARKED)) == 0


def test_it_can_be_started_once(world: World) -> None:
    service = world.service()
    with pytest.raises(InvalidArgument):
        service.start()
    with pytest.raises(InvalidArgument, match="nonsense"):
        HistoryService(world.connection, world.store(), nonsense=1)


def test_as_a_context_manager(world: World) -> None:
    with HistoryService(world.connect("h"), world.store(), identity="me") as service:
        assert service.identity == "me"
        assert isinstance(world.start(), Started)
    assert service.shards == ()


def test_a_service_keeps_the_settings_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playback, "SNAPSHOT_EVERY", 3)
    monkeypatch.setattr(settings_keeper, "JITTER_S", 0.0)
    world.service()
    for number in range(3):
        record = TaskQueuePaused(f"q{number}", 1)
        world.connection.sender.append(record, world.soon(), lambda _: None)
    read: list[bytes] = []

    def on_deliveries(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            read.append(delivery.message.body)
            delivery.ack()

    arguments = {"x-stream-offset": "first"}
    options = SubscribeOptions(prefetch=10, arguments=arguments)
    broker = world.connection.broker
    broker.subscribe(str(NAMES.queue(Kind.SETTINGS)), on_deliveries, options)
    world.eventually(lambda: any(b"settings-snapshot" in body for body in read))
