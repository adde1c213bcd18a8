from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest

from tests.history.runs import NOW_MS, begin
from tests.history.test_flights import FakeDelivery
from tests.history.worlds import NAMES, World
from tq_broker.exceptions import DeadlineExceeded, Rejected, TqBrokerError
from tq_broker.history import machine, records
from tq_broker.history import owner as owner_module
from tq_broker.history.cache import Held
from tq_broker.history.effects import ReplyTo
from tq_broker.history.flights import Group
from tq_broker.history.letters import Letter
from tq_broker.history.options import HistoryOptions
from tq_broker.history.owner import Owner
from tq_broker.history.patience import Patience
from tq_broker.history.records import ReplyRecord
from tq_broker.history.step import Step
from tq_broker.history.transaction import Sending, Transaction
from tq_broker.model.requests import Describe, Done, Echo, Refused, Status
from tq_broker.queues.sender import Nacked
from tq_broker.stores.store import Batch, Fenced, InboxRow, OutboxRow, RunRow
from tq_broker.testing.manual_clock import ManualClock

INBOX = NAMES.history(3)


class Desk:
    """An owner without a lane: the test is its thread."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.store()
        self.ended: list[Any] = []
        connection = world.connect("owner")
        connection.sender.ensure((), world.soon())
        patience = Patience(world.clock, threading.Event())
        self.owner = Owner(
            connection,
            self.store,
            HistoryOptions(identity="me"),
            patience,
            lambda consumer, deliveries: None,
            lambda sending, error: self.ended.append((sending, error)),
        )
        self.reply = ReplyRecord(ReplyTo(str(world.reply_queue), "7"), Done(run_id="r"))

    def settle(self, count: int = 1) -> list[Any]:
        """Take note of so many ends; returns what runs have to be told."""
        self.world.eventually(lambda: len(self.ended) >= count)
        told = []
        for ended in self.ended:
            told += self.owner.ended(*ended)
        del self.ended[:]
        return told


@pytest.fixture
def desk() -> Iterator[Desk]:
    world = World(ManualClock())
    yield Desk(world)
    world.close()


def a_transaction(owner: Owner) -> Transaction:
    return Transaction(owner.cache, owner.owned, {}, owner.now_ms(), lambda: "r2")


def a_run(**fields: Any) -> RunRow:
    values: dict[str, Any] = {
        "run_id": "r",
        "workflow_id": "w",
        "shard": 3,
        "version": 1,
        "is_current": True,
        "status": "running",
        "workflow_type": "T",
        "task_queue": "q",
        "start_ms": NOW_MS,
        "state": b"",
    }
    return RunRow(**values | fields)


def test_what_was_stored_and_not_sent_is_sent_by_the_next_owner(desk: Desk) -> None:
    (before,) = desk.store.acquire([3], "before", NOW_MS)
    rows = [
        OutboxRow(3, before.last_seq + 1, records.dump(desk.reply)),
        OutboxRow(3, before.last_seq + 2, b"of a later release"),
    ]
    desk.store.commit(Batch({3: before.epoch}, outbox=rows))
    desk.owner.acquire({3})
    assert desk.owner.held == (3,)
    assert desk.world.replies.get(timeout=20)[0] == "7"
    desk.settle()
    desk.world.clock.sleep(2)
    desk.owner.flush_sent()
    assert [row.seq for row in desk.store.outbox(3, 0, 9)] == [before.last_seq + 2]


def test_what_is_being_sent_is_not_sent_again_after_a_new_epoch(desk: Desk) -> None:
    desk.owner.acquire({3})
    seq = desk.owner.owned[3].seq + 1
    row = OutboxRow(3, seq, records.dump(desk.reply))
    desk.owner.commit(Batch({3: desk.owner.owned[3].epoch}, outbox=[row]))
    desk.owner.send([Sending(desk.reply, 3, seq)])
    desk.owner.acquire({3})
    desk.settle()
    desk.owner.acquire({3})
    assert desk.world.replies.get(timeout=20)[0] == "7"
    assert desk.world.replies.empty()
    assert not desk.ended


def test_who_was_replaced_loses_what_it_has(desk: Desk) -> None:
    desk.owner.acquire({3, 4})
    desk.store.acquire([3], "other", NOW_MS)
    desk.world.clock.sleep(3)
    with pytest.raises(Fenced):
        desk.owner.commit(Batch({3: desk.owner.owned[3].epoch}))
    desk.owner.lose({3})
    assert desk.owner.held == (4,)
    assert desk.owner.about(3).epoch == 0
    assert desk.owner.about(4).owner == "me"


def test_who_was_replaced_stays_for_the_case_that_the_other_leaves(desk: Desk) -> None:
    desk.owner.subscribe(3)
    consumer = desk.owner.consumers[3]
    desk.owner.acquire({3})
    desk.owner.forget({3})
    assert desk.owner.held == ()
    assert consumer.open
    desk.owner.acquire({3})
    assert desk.owner.held == (3,)
    desk.owner.lose({3})
    assert desk.owner.held == ()
    assert not consumer.open


def test_the_end_of_a_row_of_a_shard_that_was_lost_is_found_out(desk: Desk) -> None:
    desk.owner.acquire({3})
    desk.owner.send([Sending(desk.reply, 3, desk.owner.owned[3].seq + 1)])
    desk.settle()
    desk.store.acquire([3], "other", NOW_MS)
    desk.owner.flush_sent()
    assert desk.owner.held == (3,), "rows are not removed at once"
    desk.world.clock.sleep(2)
    desk.owner.flush_sent()
    assert desk.owner.held == ()


def test_answers_are_given_without_asking_the_store_for_a_while(desk: Desk) -> None:
    desk.owner.acquire({3})
    desk.store.acquire([3], "other", NOW_MS)
    epochs = {3: desk.owner.owned[3].epoch}
    desk.owner.commit(Batch(dict(epochs)))
    desk.world.clock.sleep(3)
    with pytest.raises(Fenced):
        desk.owner.commit(Batch(dict(epochs)))


def test_who_has_committed_nothing_for_a_while_makes_sure(desk: Desk) -> None:
    desk.owner.acquire({3, 4})
    desk.store.acquire([3], "other", NOW_MS)
    desk.owner.make_sure()
    desk.world.clock.sleep(3)
    with pytest.raises(Fenced) as caught:
        desk.owner.make_sure()
    assert caught.value.shards == {3}
    desk.owner.forget({3})
    desk.owner.make_sure()
    desk.store.acquire([4], "other", NOW_MS)
    desk.owner.make_sure()  # it was asked a moment ago


def test_a_shard_is_given_up_when_nothing_is_being_sent(desk: Desk) -> None:
    desk.owner.acquire({3})
    desk.owner.subscribe(3)
    desk.owner.send([Sending(desk.reply, 3, desk.owner.owned[3].seq + 1)])
    desk.owner.release({3})
    desk.owner.finish_releases()
    assert desk.owner.held == (3,)
    assert not desk.owner.consumers
    desk.settle()
    desk.owner.finish_releases()
    assert desk.owner.held == ()
    assert not desk.store.outbox(3, 0, 9)


def test_it_is_given_up_in_any_case_after_a_while(desk: Desk) -> None:
    desk.owner.acquire({3})
    desk.owner.flights.begin(Sending(desk.reply, 3, 1), None)
    desk.owner.release({3})
    assert desk.owner.due_at() is not None
    desk.world.clock.sleep(owner_module.RELEASE_WITHIN_S)
    desk.owner.finish_releases()
    assert desk.owner.held == ()


def test_what_cannot_be_sent_is_sent_later(desk: Desk) -> None:
    desk.owner.acquire({3})
    sending = Sending(desk.reply, 3)
    desk.owner.flights.begin(sending, None)
    assert desk.owner.ended(sending, DeadlineExceeded("late")) == []
    desk.owner.send_again()
    assert desk.world.replies.empty()
    desk.world.clock.sleep(owner_module.AGAIN_AFTER_S)
    desk.owner.send_again()
    desk.settle()
    assert desk.world.replies.get(timeout=20)[0] == "7"
    assert desk.owner.ended(sending, None) == [], "it has ended already"


@pytest.mark.parametrize(
    ("seq", "error", "settled"),
    [
        (1, Nacked("full"), ["ack"]),
        (0, Nacked("full"), []),
        (1, DeadlineExceeded("late"), []),
    ],
    ids=["full", "full-and-not-stored", "late"],
)
def test_a_queue_that_is_full_holds_up_its_own_messages_only(
    desk: Desk, seq: int, error: TqBrokerError, settled: list[str]
) -> None:
    desk.owner.acquire({3})
    sending, delivery = Sending(desk.reply, 3, seq), FakeDelivery()
    desk.owner.flights.begin(sending, Group([cast("Any", delivery)], 1))
    for _ in range(2):
        assert desk.owner.ended(sending, error) == []
    assert delivery.settled == settled
    assert desk.owner.flights.is_flying(sending)


def test_who_asked_for_more_than_the_broker_takes_is_told_so(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.owner.acquire({3})
    sending = Sending(desk.reply, 3)
    desk.owner.flights.begin(sending, None)
    assert desk.owner.ended(sending, Rejected("too large")) == []
    assert "not taken: too large" in caplog.text
    desk.world.clock.sleep(owner_module.AGAIN_AFTER_S)
    desk.owner.send_again()
    correlation_id, answer = desk.world.replies.get(timeout=20)
    assert (correlation_id, type(answer)) == ("7", Refused)
    desk.settle()
    assert not desk.owner.flights.is_busy(3)


@pytest.mark.parametrize("woken", [False, True])
def test_who_was_only_asked_something_is_woken_in_time(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, woken: bool
) -> None:
    owner = desk.owner
    owner.acquire({3})
    run, _ = begin(run_timeout_ms=1)
    owner.cache.add(Held(run, 3))
    desk.world.clock.sleep(1)
    transaction = a_transaction(owner)
    if woken:  # by a defect
        monkeypatch.setattr(machine, "tick", lambda *about: Step())
        transaction.wake("r")
    else:
        asked = Describe(workflow_id="w")
        transaction.take(Letter(shard=3, message_id="m", content=asked, workflow_id="w"))
    owner.stored(transaction, owner.now_ms())
    assert owner.take_due(9) == ([] if woken else [(3, "r")])
    assert ("for nothing" in caplog.text) is woken


def test_an_echo_tells_that_all_was_read(desk: Desk) -> None:
    owner, clock = desk.owner, desk.world.clock
    desk.world.declare(INBOX)
    owner.acquire({3})
    run, _ = begin(run_timeout_ms=1)
    owner.cache.add(Held(run, 3))
    desk.world.clock.sleep(1)

    def wake() -> None:
        transaction = a_transaction(owner)
        transaction.wake("r")
        owner.commit(transaction.batch())
        owner.stored(transaction, owner.now_ms())
        owner.listen(transaction)

    wake()
    desk.settle()
    wake()
    assert desk.world.count(INBOX) == 1, "one is enough"
    clock.sleep(owner_module.ECHO_WITHIN_S)
    wake()
    desk.settle()
    assert desk.world.count(INBOX) == 2, "unless it is lost"
    assert owner.take_due(9) == []
    echo = Echo(epoch=owner.owned[3].epoch, sent_ms=owner.now_ms())
    owner.heard(3, msgspec.structs.replace(echo, epoch=echo.epoch - 1))
    owner.heard(4, echo)
    assert owner.take_due(9) == []
    owner.heard(3, echo)
    assert owner.take_due(9) == [(3, "r")]
    wake()
    assert run.status is Status.TIMED_OUT


def test_who_is_to_be_woken_is_read_in_portions(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_module, "ROWS_MAX", 2)
    (before,) = desk.store.acquire([3], "before", NOW_MS)
    now_ms = desk.owner.now_ms()
    rows = [
        a_run(run_id=f"r{n}", workflow_id=f"w{n}", next_ms=now_ms + n * 1_000) for n in range(5)
    ]
    desk.store.commit(Batch({3: before.epoch}, runs=rows))
    desk.owner.acquire({3})
    found = []
    for _ in range(60):
        found += [run_id for _, run_id in desk.owner.take_due(10)]
        for run_id in found:
            version = desk.store.runs([run_id])[0].version
            if version == 1:
                row = a_run(
                    run_id=run_id, workflow_id=run_id.replace("r", "w"), version=2, next_ms=None
                )
                desk.owner.commit(Batch({3: desk.owner.owned[3].epoch}, runs=[row]))
        desk.world.clock.sleep(0.1)
    assert found == [f"r{n}" for n in range(5)]


def test_messages_that_came_before_are_known(desk: Desk) -> None:
    from tq_broker.model.requests import SignalWorkflow

    desk.owner.acquire({3})
    row = InboxRow(3, "m", NOW_MS, b"answer")
    desk.owner.commit(Batch({3: desk.owner.owned[3].epoch}, inbox=[row]))
    content = SignalWorkflow(workflow_id="w", signal_name="s")
    letters = [Letter(shard=3, message_id=one, content=content) for one in ("m", "new")]
    desk.owner.look_up(letters)
    assert dict(desk.owner.recent) == {(3, "m"): b"answer"}


def test_a_consumer_that_was_closed_is_marked(desk: Desk) -> None:
    desk.owner.subscribe(3)
    consumer = desk.owner.consumers[3]
    assert consumer.subscription is not None
    assert consumer.subscription.queue == str(NAMES.history(3))
    desk.owner.close([3])
    assert not consumer.open
    assert not desk.owner.consumers
