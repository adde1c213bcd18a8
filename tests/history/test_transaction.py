from __future__ import annotations

import itertools
from typing import Any

from tests.history.runs import ASKER, NOW_MS
from tq_broker.history import records
from tq_broker.history.cache import Cache, Held
from tq_broker.history.effects import ReplyTo
from tq_broker.history.letters import Letter
from tq_broker.history.transaction import Ownership, Seen, Transaction
from tq_broker.model.commands import CompleteWorkflow, ContinueAsNew, StartTimer
from tq_broker.model.requests import (
    AwaitResult,
    Describe,
    Done,
    QueryWorkflow,
    Refused,
    SignalWorkflow,
    Started,
    StartWorkflow,
)
from tq_broker.model.workflow_tasks import (
    StickyGone,
    WorkflowTask,
    WorkflowTaskCompleted,
)

SHARD = 3
START = StartWorkflow(workflow_id="w", workflow_type="T", task_queue="q")
SIGNAL = SignalWorkflow(workflow_id="w", signal_name="s")


class World:
    """A cache and an owner; each transaction is taken to be stored."""

    def __init__(self) -> None:
        self.cache = Cache(100, 1_000_000)
        self.owned = {SHARD: Ownership(7, 100, 0.0)}
        self._ids = (f"r{number}" for number in itertools.count(1))

    def take(self, *letters: Letter, seen: Seen | None = None) -> Transaction:
        transaction = self.begin(seen)
        for letter in letters:
            transaction.take(letter)
        return self.store(transaction)

    def begin(self, seen: Seen | None = None) -> Transaction:
        return Transaction(self.cache, self.owned, seen or {}, NOW_MS, lambda: next(self._ids))

    def store(self, transaction: Transaction) -> Transaction:
        transaction.stored = transaction.batch()  # type: ignore[attr-defined]
        for held, size in zip(transaction.changed.values(), transaction.sizes, strict=True):
            self.cache.stored(held, size)
        return transaction

    def held(self, run_id: str = "r1") -> Held:
        held = self.cache.get(run_id)
        assert held is not None
        return held

    def task(self, transaction: Transaction) -> WorkflowTask:
        (task,) = (
            sending.record.task
            for sending in transaction.sendings
            if isinstance(sending.record, records.TaskRecord)
        )
        return task


def letter(content: Any, message_id: str = "m", sender: ReplyTo | None = ASKER) -> Letter:
    return Letter(
        shard=SHARD,
        message_id=message_id,
        content=content,
        sender=sender,
        workflow_id="w",
        run_id=getattr(content, "run_id", None) or "",
        once=isinstance(content, StartWorkflow | SignalWorkflow),
    )


def completed(task: WorkflowTask, *commands: Any, **fields: Any) -> Letter:
    answer = WorkflowTaskCompleted(
        run=task.run, scheduled_event_id=task.scheduled_event_id, commands=[*commands], **fields
    )
    return Letter(
        shard=SHARD, message_id="", content=answer, workflow_id="w", run_id=task.run.run_id
    )


def answers(transaction: Transaction) -> list[Any]:
    return [
        sending.record.answer
        for sending in transaction.sendings
        if isinstance(sending.record, records.ReplyRecord)
    ]


def stored(transaction: Transaction) -> Any:
    return transaction.stored  # type: ignore[attr-defined]


def test_a_start_writes_all_that_a_run_is_made_of() -> None:
    world = World()
    transaction = world.take(letter(START))
    batch = stored(transaction)
    assert batch.epochs == {SHARD: 7}
    (row,) = batch.runs
    assert (row.run_id, row.version, row.is_current, row.shard) == ("r1", 1, True, SHARD)
    assert [(one.first_event_id, one.count) for one in batch.events] == [(1, 2)]
    assert [one.seq for one in batch.outbox] == [101]
    (inbox,) = batch.inbox
    assert (inbox.message_id, inbox.reply is not None) == ("m", True)
    assert isinstance(answers(transaction)[0], Started)


def test_an_answer_to_who_asks_is_sent_without_an_outbox_row() -> None:
    world = World()
    transaction = world.take(letter(START))
    sent = {type(one.record).__name__: one.seq for one in transaction.sendings}
    assert sent == {"ReplyRecord": 0, "TaskRecord": 101}


def test_a_second_copy_is_answered_as_the_first() -> None:
    world = World()
    transaction = world.take(letter(START), letter(START))
    first, second = answers(transaction)
    assert first == second
    assert len(stored(transaction).runs) == 1
    taken = dict(transaction.taken)
    again = world.take(letter(START), seen=taken)
    assert answers(again) == [first]
    assert not stored(again).inbox
    assert not stored(again).runs
    silent = world.take(letter(START, sender=None), seen=taken)
    assert not silent.sendings


def test_several_letters_of_one_run_are_one_row() -> None:
    world = World()
    world.take(letter(START))
    transaction = world.take(letter(SIGNAL, "a"), letter(SIGNAL, "b"))
    (row,) = stored(transaction).runs
    assert row.version == 2
    assert len(stored(transaction).inbox) == 2
    assert answers(transaction) == [Done(run_id="r1")] * 2


def test_who_waits_is_told_through_the_outbox() -> None:
    world = World()
    task = world.task(world.take(letter(START)))
    assert not answers(world.take(letter(AwaitResult(workflow_id="w"))))
    transaction = world.take(completed(task, CompleteWorkflow(result=b"1")))
    (sending,) = transaction.sendings
    assert isinstance(sending.record, records.ReplyRecord)
    assert sending.record.to == ASKER
    assert sending.seq
    (told,) = answers(world.take(letter(AwaitResult(workflow_id="w"))))
    assert told.result == b"1"


def test_a_question_writes_nothing() -> None:
    world = World()
    world.take(letter(START))
    transaction = world.take(letter(Describe(workflow_id="w")))
    batch = stored(transaction)
    assert not any((batch.inbox, batch.runs, batch.events, batch.outbox))
    assert batch.epochs == {SHARD: 7}
    assert answers(transaction)


def test_a_run_that_follows_comes_after_the_one_before() -> None:
    world = World()
    task = world.task(world.take(letter(START)))
    transaction = world.take(completed(task, ContinueAsNew(workflow_type="T", task_queue="q")))
    before, after = stored(transaction).runs
    assert (before.run_id, before.is_current) == ("r1", False)
    assert after.is_current
    assert after.run_id != "r1"
    current = world.cache.current("w")
    assert current is not None
    assert current.run.run_id == after.run_id


def test_a_new_start_after_the_end_replaces_the_run() -> None:
    world = World()
    task = world.task(world.take(letter(START)))
    world.take(completed(task, CompleteWorkflow()))
    transaction = world.take(letter(START, "m2"))
    rows = [(row.run_id, row.is_current) for row in stored(transaction).runs]
    assert rows == [("r1", False), ("r2", True)]
    refused = world.take(letter(START, "m3"))
    assert isinstance(answers(refused)[0], Refused)


def test_ids_that_do_not_belong_together_name_no_run() -> None:
    world = World()
    world.take(letter(START))
    other = Letter(
        shard=SHARD,
        message_id="",
        content=Describe(workflow_id="x", run_id="r1"),
        sender=ASKER,
        workflow_id="x",
        run_id="r1",
    )
    (answer,) = answers(world.take(other))
    assert isinstance(answer, Refused)
    world.owned[4] = Ownership(1, 0, 0.0)
    elsewhere = Letter(
        shard=4, message_id="", content=Describe(workflow_id="w"), sender=ASKER, run_id="r1"
    )
    (answer,) = answers(world.take(elsewhere))
    assert isinstance(answer, Refused)


def test_a_worker_that_is_gone_is_forgotten_by_its_runs() -> None:
    world = World()
    task = world.task(world.take(letter(START)))
    timer = StartTimer(timer_id="t", start_to_fire_ms=1000)
    world.take(completed(task, timer, sticky=True, worker_id="w1"))
    assert world.held().run.sticky_worker == "w1"
    gone = Letter(shard=SHARD, message_id="", content=StickyGone(worker_id="w1"))
    world.take(gone)
    assert world.held().run.sticky_worker == ""


def test_a_run_is_woken() -> None:
    world = World()
    task = world.task(world.take(letter(START)))
    world.take(completed(task, StartTimer(timer_id="t", start_to_fire_ms=0)))
    transaction = world.begin()
    transaction.wake("r1")
    transaction.wake("unknown")
    world.store(transaction)
    assert transaction.shards == {SHARD}


def test_a_query_is_passed_on_without_an_outbox_row() -> None:
    world = World()
    task = world.task(world.take(letter(START)))
    world.take(completed(task))
    transaction = world.take(letter(QueryWorkflow(workflow_id="w", query_type="q")))
    (sending,) = transaction.sendings
    assert isinstance(sending.record, records.TaskRecord)
    assert sending.record.task.queries
    assert sending.seq == 0


def test_what_was_touched_can_be_dropped() -> None:
    world = World()
    world.take(letter(START))
    transaction = world.begin()
    transaction.take(letter(SIGNAL, "a"))
    transaction.take(letter(Describe(workflow_id="w")))
    assert list(transaction.touched) == ["r1"]
    world.cache.drop("r1")
    assert isinstance(answers(world.take(letter(SIGNAL, "a")))[0], Refused)


def test_the_last_events_of_a_run_count_as_its_size() -> None:
    world = World()
    transaction = world.take(letter(START))
    (row,) = stored(transaction).runs
    (events,) = stored(transaction).events
    assert transaction.sizes == [len(row.state) + len(events.data)]
    assert world.held().size == transaction.sizes[0]
