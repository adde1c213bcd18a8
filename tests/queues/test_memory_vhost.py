"""One vhost in memory: what the contract suite does not reach, and properties of random use."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tq_broker.exceptions import AccessRefused, InvalidArgument, NotFound
from tq_broker.model.message import Message, Publication
from tq_broker.queues.broker import Verdict
from tq_broker.queues.memory_queue import Consumer, ReadyQueue, Stored
from tq_broker.queues.memory_vhost import DEAD_LETTER_RETRY_S, ROUTES_MAX, Connection, Vhost
from tq_broker.queues.topology import (
    BindExchange,
    BindQueue,
    DeclareExchange,
    DeclareQueue,
    DeleteQueue,
    Step,
    UnbindQueue,
)


class Here:
    """A vhost with one connection, at a time of ours."""

    def __init__(self) -> None:
        self.now = 0.0
        self.vhost = Vhost()
        self.dropped: list[tuple[str, str, str]] = []
        self.vhost.on_dropped = lambda message, queue, why: self.dropped.append(
            (message.message_id, queue, why)
        )
        self.connection = self.vhost.connect()

    def take(self, *steps: Step) -> list[str]:
        return [self.vhost.take(step, self.connection, self.now) for step in steps]

    def publish(self, key: str, name: str = "m", exchange: str = "") -> Verdict:
        publication = Publication(exchange, key, Message(body=b"", message_id=name))
        return self.vhost.publish(publication, self.now).verdict

    def get(self, queue: str) -> tuple[int, Stored] | None:
        return self.vhost.get(queue, self.connection, self.now)

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.vhost.next_due()) is not None and due <= end:
            self.now = max(self.now, due)
            self.vhost.advance(self.now)
        self.now = end

    def ready(self, queue: str) -> int:
        stats = self.vhost.stats(queue, self.connection, self.now)
        assert stats is not None
        return stats.ready


@pytest.fixture
def here() -> Here:
    return Here()


def test_a_step_on_what_is_not_there_is_not_found(here: Here) -> None:
    here.take(DeclareQueue("q"), DeclareExchange("x", "direct"))
    for step in (
        BindQueue("missing", "x", "k"),
        BindQueue("q", "missing", "k"),
        BindExchange("missing", "x", "k"),
        BindExchange("x", "missing", "k"),
    ):
        with pytest.raises(NotFound, match="missing"):
            here.take(step)


def test_removing_what_is_not_there_is_harmless(here: Here) -> None:
    here.take(DeleteQueue("missing"), UnbindQueue("missing", "missing", "k"))


@pytest.mark.parametrize(
    "step",
    [
        DeclareQueue("q" * 256),
        DeclareQueue("ä" * 128),
        DeclareExchange("x" * 256, "direct"),
        DeclareExchange("x", "odd"),
    ],
)
def test_what_amqp_cannot_say_is_an_invalid_argument(here: Here, step: Step) -> None:
    with pytest.raises(InvalidArgument):
        here.take(step)
    assert not here.vhost.queues


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"x-message-ttl": 1}, {"x-message-ttl": 1}, ""),
        ({"x-message-ttl": 1}, {"x-message-ttl": 2}, "x-message-ttl is 1, not 2"),
        ({"x-message-ttl": 1}, {}, "x-message-ttl is 1, not None"),
        ({}, {"x-max-length": 1}, "x-max-length is None, not 1"),
        ({"x-single-active-consumer": True}, {"x-single-active-consumer": 1}, "is True, not 1"),
        ({"x-queue-type": "quorum"}, {}, ""),
        ({"x-queue-type": "quorum"}, {"x-queue-type": "classic"}, "x-queue-type is 'quorum'"),
        ({}, {"x-queue-type": "classic"}, ""),
        ({}, {"x-consumer-timeout": 5, "x-mine": 1}, ""),
    ],
)
def test_only_a_difference_that_rabbitmq_minds_is_told(
    here: Here, before: dict[str, Any], after: dict[str, Any], told: str
) -> None:
    assert here.take(DeclareQueue("q", before)) == [""]
    [difference] = here.take(DeclareQueue("q", after))
    assert told in difference
    assert bool(told) == bool(difference)


def test_a_difference_in_exclusiveness_or_of_an_exchange_is_told(here: Here) -> None:
    here.take(DeclareQueue("q"), DeclareExchange("x", "topic"))
    told = here.take(
        DeclareQueue("q", exclusive=True),
        DeclareExchange("x", "direct"),
        DeclareExchange("x", "topic", {"alternate-exchange": "y"}),
    )
    assert "exclusive is False" in told[0]
    assert "type is 'topic'" in told[1]
    assert "alternate-exchange" in told[2]


def test_an_exclusive_queue_is_locked_to_every_other_connection(here: Here) -> None:
    here.take(DeclareQueue("q", exclusive=True), DeclareExchange("x", "direct"))
    vhost, other = here.vhost, here.vhost.connect()
    with pytest.raises(AccessRefused):
        vhost.get("q", other, 0.0)
    with pytest.raises(AccessRefused):
        vhost.stats("q", other, 0.0)
    with pytest.raises(AccessRefused):
        vhost.purge("q", other, 0.0)
    for step in (DeclareQueue("q"), DeleteQueue("q"), BindQueue("q", "x", "k")):
        with pytest.raises(AccessRefused):
            vhost.take(step, other, 0.0)
    # Anybody may publish to it.
    assert here.publish("q") is Verdict.CONFIRMED


def test_the_default_exchange_reaches_a_queue_by_its_name(here: Here) -> None:
    assert here.publish("q") is Verdict.RETURNED
    here.take(DeclareQueue("q"))
    assert here.publish("q") is Verdict.CONFIRMED


def test_exchanges_bound_in_a_circle_route_once(here: Here) -> None:
    here.take(
        DeclareQueue("q"),
        DeclareExchange("x", "topic"),
        DeclareExchange("y", "topic"),
        BindExchange("x", "y", "#"),
        BindExchange("y", "x", "#"),
        BindQueue("q", "x", "#"),
        BindQueue("q", "y", "#"),
    )
    assert here.publish("k", exchange="x") is Verdict.CONFIRMED
    assert here.ready("q") == 1


def test_a_missing_alternate_is_no_route(here: Here) -> None:
    here.take(DeclareExchange("x", "direct", {"alternate-exchange": "missing"}))
    assert here.publish("k", exchange="x") is Verdict.RETURNED


def test_remembered_routes_follow_the_topology(here: Here) -> None:
    here.take(DeclareExchange("x", "direct"), DeclareQueue("q"))
    verdicts = [here.publish("k", exchange="x")]
    for step in (
        BindQueue("q", "x", "k"),
        UnbindQueue("q", "x", "k"),
        BindQueue("q", "x", "k"),
        DeleteQueue("q"),
        DeclareQueue("q"),
    ):
        here.take(step)
        verdicts.append(here.publish("k", exchange="x"))
    found = [verdict is Verdict.CONFIRMED for verdict in verdicts]
    assert found == [False, True, False, True, False, False]


def test_keys_that_churn_are_not_remembered_for_ever(here: Here) -> None:
    here.take(DeclareExchange("x", "topic"), DeclareQueue("q"), BindQueue("q", "x", "#"))
    for number in range(ROUTES_MAX + 10):
        assert here.publish(f"k{number}", exchange="x") is Verdict.CONFIRMED
    assert len(here.vhost._routes) <= ROUTES_MAX


def test_a_time_to_live_of_zero_means_now_or_never(here: Here) -> None:
    here.take(DeclareQueue("q", {"x-message-ttl": 0}))
    here.publish("q", "never")
    assert here.ready("q") == 0
    recipient = Recorder(here.connection, prefetch=1)
    here.vhost.consume(recipient.consumer, "q", here.connection, {}, here.now)
    here.publish("q", "now")
    assert list(recipient.held.values()) == [("now", "q")]


def test_dead_letters_to_an_exchange_that_is_missing_are_dropped(here: Here) -> None:
    here.take(DeclareQueue("q", {"x-message-ttl": 1000, "x-dead-letter-exchange": "missing"}))
    here.publish("q", "lost")
    here.advance(1.0)
    assert here.dropped == [("lost", "q", "expired, dead letter unroutable")]


def test_at_least_once_keeps_a_dead_letter_until_it_finds_a_home(here: Here) -> None:
    here.take(
        DeclareExchange("dlx", "fanout"),
        DeclareQueue(
            "q",
            {
                "x-queue-type": "quorum",
                "x-message-ttl": 1000,
                "x-dead-letter-exchange": "dlx",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            },
        ),
    )
    here.publish("q", "kept")
    here.advance(1 + DEAD_LETTER_RETRY_S)
    assert here.dropped == []
    here.take(DeclareQueue("grave"), BindQueue("grave", "dlx", ""))
    assert here.ready("grave") == 0
    here.advance(DEAD_LETTER_RETRY_S)
    assert here.ready("grave") == 1
    here.take(DeleteQueue("grave"))
    here.publish("q", "lost with its queue")
    here.advance(1.0)
    here.dropped.clear()
    here.take(DeleteQueue("q"))
    assert here.dropped == [("lost with its queue", "q", "its queue was deleted")]


def test_a_dead_letter_tells_the_wall_clock_time(here: Here) -> None:
    here.vhost.epoch_s = 1_700_000_000.0
    here.take(DeclareQueue("grave"), DeclareQueue("q", {"x-message-ttl": 2000}))
    here.take(
        DeclareQueue(
            "r",
            {
                "x-message-ttl": 2000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": "grave",
            },
        )
    )
    here.publish("r")
    here.advance(2.0)
    taken = here.get("grave")
    assert taken is not None
    assert taken[1].message.headers["x-death"][0]["time"] == 1_700_000_002


@pytest.mark.parametrize("how", ["ack", "reject", "requeue", "disconnect"])
def test_what_is_held_of_a_deleted_queue_is_gone_however_it_ends(here: Here, how: str) -> None:
    here.take(DeclareQueue("q"))
    here.publish("q")
    taken = here.get("q")
    assert taken is not None
    # The new queue of the same name is another queue.
    here.take(DeleteQueue("q"), DeclareQueue("q"))
    if how == "ack":
        here.vhost.ack(here.connection, taken[0], here.now)
    elif how == "disconnect":
        here.vhost.disconnect(here.connection, here.now)
    else:
        here.vhost.reject(here.connection, taken[0], here.now, requeue=how == "requeue")
    assert here.ready("q") == 0
    assert len(here.dropped) == (0 if how == "ack" else 1)


def test_a_tag_that_is_not_held_is_ignored(here: Here) -> None:
    here.vhost.ack(here.connection, 7, here.now)
    here.vhost.reject(here.connection, 7, here.now, requeue=True)


def test_a_stream_can_be_neither_purged_nor_taken_from_by_hand(here: Here) -> None:
    here.take(DeclareQueue("s", {"x-queue-type": "stream"}))
    with pytest.raises(InvalidArgument, match="NOT_IMPLEMENTED"):
        here.get("s")
    with pytest.raises(InvalidArgument, match="NOT_IMPLEMENTED"):
        here.vhost.purge("s", here.connection, here.now)


@pytest.mark.parametrize("how", ["ack", "reject", "requeue"])
def test_on_a_stream_every_answer_only_returns_the_credit(here: Here, how: str) -> None:
    here.take(DeclareQueue("s", {"x-queue-type": "stream"}))
    recipient = Recorder(here.connection, prefetch=1)
    arguments = {"x-stream-offset": "first"}
    here.vhost.consume(recipient.consumer, "s", here.connection, arguments, here.now)
    for name in "ab":
        here.publish("s", name)
    [(tag, _)] = recipient.held.items()
    recipient.held.clear()
    if how == "ack":
        here.vhost.ack(here.connection, tag, here.now)
    else:
        here.vhost.reject(here.connection, tag, here.now, requeue=how == "requeue")
    assert list(recipient.held.values()) == [("b", "s")]
    assert here.ready("s") == 2
    assert not here.dropped


def test_it_says_from_which_queues_messages_are_held(here: Here) -> None:
    here.take(DeclareQueue("q"), DeclareQueue("idle"))
    here.publish("q")
    here.publish("idle")
    assert here.vhost.held() == set()
    taken = here.get("q")
    assert taken is not None
    assert here.vhost.held() == {"q"}
    here.vhost.ack(here.connection, taken[0], here.now)
    assert here.vhost.held() == set()
    here.get("idle")
    here.vhost.disconnect(here.connection, here.now)
    assert here.vhost.held() == set()


def test_it_says_when_the_next_message_expires_but_not_when_an_idle_queue_does(here: Here) -> None:
    here.take(
        DeclareQueue("slow", {"x-message-ttl": 9_000}),
        DeclareQueue("quick", {"x-message-ttl": 4_000, "x-expires": 1_000_000}),
        DeclareQueue("idle", {"x-expires": 1_000}),
    )
    assert here.vhost.message_due() is None
    here.publish("slow")
    here.publish("quick")
    here.publish("idle")
    assert here.vhost.message_due() == 4.0


def test_consuming_what_is_not_there_is_not_found(here: Here) -> None:
    recipient = Recorder(here.connection, prefetch=1)
    with pytest.raises(NotFound):
        here.vhost.consume(recipient.consumer, "q", here.connection, {}, here.now)
    here.vhost.cancel(recipient.consumer, here.connection, here.now)


def test_a_deleted_queue_tells_its_consumers(here: Here) -> None:
    here.take(DeclareQueue("q"))
    recipient = Recorder(here.connection, prefetch=1)
    here.vhost.consume(recipient.consumer, "q", here.connection, {}, here.now)
    here.take(DeleteQueue("q"))
    assert recipient.is_cancelled


def test_queues_that_come_and_go_leave_nothing_behind(here: Here) -> None:
    here.take(DeclareExchange("x", "direct"))
    for number in range(10):
        name = f"q{number}"
        here.take(DeclareQueue(name, {"x-expires": 1000}), BindQueue(name, "x", name))
        here.advance(1.0)
    assert not here.vhost.queues
    assert here.vhost.next_due() is None
    assert here.publish("q0", exchange="x") is Verdict.RETURNED


# --- random use ---


class Recorder:
    """A consumer that notes what it holds."""

    def __init__(self, connection: Connection, *, prefetch: int) -> None:
        self.connection = connection
        self.consumer = Consumer(self, connection=connection, prefetch=prefetch)
        self.held: dict[int, tuple[str, str]] = {}
        self.fresh: list[tuple[str, str]] = []
        self.is_cancelled = False

    def deliver(self, tag: int, stored: Stored, queue: str) -> None:
        self.held[tag] = (stored.message.message_id, queue)
        if not stored.redelivered:
            self.fresh.append((stored.message.message_id, queue))

    def cancelled(self) -> None:
        self.is_cancelled = True


WORK = [
    {},
    {"x-message-ttl": 2000},
    {"x-message-ttl": 2000, "x-dead-letter-exchange": "dlx"},
    {"x-max-length": 2, "x-dead-letter-exchange": "dlx"},
    {"x-max-length": 2},
    {"x-max-length": 2, "x-overflow": "reject-publish"},
    {"x-max-priority": 2, "x-message-ttl": 2000, "x-dead-letter-exchange": "dlx"},
    {"x-queue-type": "quorum", "x-delivery-limit": 1, "x-dead-letter-exchange": "dlx"},
    {"x-queue-type": "quorum", "x-delivery-limit": 1},
    {"x-single-active-consumer": True, "x-dead-letter-exchange": "dlx"},
    {"x-expires": 3000, "x-message-ttl": 1000, "x-dead-letter-exchange": "dlx"},
]
"""Arguments of the queue under test; what it drops goes to ``grave`` if it has dead letters."""


def rules_of(arguments: dict[str, Any]) -> set[str]:
    """Why a queue with ``arguments`` may drop a message without anybody acknowledging it."""
    rules = {"its queue was purged", "its queue was deleted"}
    if "x-expires" in arguments:
        rules.add("its queue expired")
    if "x-dead-letter-exchange" not in arguments:
        unwanted = {
            "x-message-ttl": "expired",
            "x-max-length": "maxlen",
            "x-delivery-limit": "delivery_limit",
        }
        reasons = {"rejected", *(why for name, why in unwanted.items() if name in arguments)}
        rules |= {f"{reason}, no dead letters wanted" for reason in reasons}
    return rules


class RandomUse(RuleBasedStateMachine):
    """Anything in any order; each confirmed message stays in exactly one place."""

    def __init__(self) -> None:
        super().__init__()
        self.here = Here()
        self.confirmed: list[str] = []
        self.acked: list[str] = []
        self.connections: list[Connection] = []
        self.recorders: list[Recorder] = []
        self.gotten: list[tuple[Connection, int, str]] = []
        self.fresh: Counter[tuple[str, str]] = Counter()

    @initialize(arguments=st.sampled_from(WORK))
    def make(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments
        self.declare()
        self.connections = [self.here.vhost.connect() for _ in range(2)]

    def declare(self) -> None:
        self.here.take(
            DeclareExchange("dlx", "fanout"),
            DeclareQueue("grave"),
            BindQueue("grave", "dlx", ""),
            DeclareQueue("work", self.arguments),
        )

    def held(self) -> list[tuple[Connection, int]]:
        return [(connection, tag) for connection in self.connections for tag in connection.unacked]

    def forget(self, connection: Connection, tag: int) -> str:
        stored = connection.unacked[tag][1]
        for recorder in self.recorders:
            if recorder.connection is connection:
                recorder.held.pop(tag, None)
        return stored.message.message_id

    @rule(count=st.integers(1, 4), priority=st.integers(0, 3))
    def publish(self, count: int, priority: int) -> None:
        for _ in range(count):
            name = f"m{len(self.confirmed)}"
            message = Message(body=b"", message_id=name, priority=priority)
            receipt = self.here.vhost.publish(Publication("", "work", message), self.here.now)
            if receipt.verdict is Verdict.CONFIRMED:
                self.confirmed.append(name)

    @rule(
        queue=st.sampled_from(["work", "grave"]), who=st.integers(0, 1), prefetch=st.integers(0, 3)
    )
    def consume(self, queue: str, who: int, prefetch: int) -> None:
        if queue in self.here.vhost.queues:
            recorder = Recorder(self.connections[who], prefetch=prefetch)
            self.recorders.append(recorder)
            self.here.vhost.consume(
                recorder.consumer, queue, recorder.connection, {}, self.here.now
            )

    @precondition(lambda self: self.recorders)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        recorder = data.draw(st.sampled_from(self.recorders))
        self.here.vhost.cancel(recorder.consumer, recorder.connection, self.here.now)

    @rule(queue=st.sampled_from(["work", "grave"]), who=st.integers(0, 1))
    def get(self, queue: str, who: int) -> None:
        taken = self.here.vhost.get(queue, self.connections[who], self.here.now)
        if taken is not None and not taken[1].redelivered:
            self.fresh[taken[1].message.message_id, queue] += 1

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        connection, tag = data.draw(st.sampled_from(self.held()))
        self.acked.append(self.forget(connection, tag))
        self.here.vhost.ack(connection, tag, self.here.now)

    @precondition(lambda self: self.held())
    @rule(data=st.data(), requeue=st.booleans())
    def reject(self, data: st.DataObject, requeue: bool) -> None:
        connection, tag = data.draw(st.sampled_from(self.held()))
        self.forget(connection, tag)
        self.here.vhost.reject(connection, tag, self.here.now, requeue=requeue)

    @rule(who=st.integers(0, 1))
    def lose_connection(self, who: int) -> None:
        lost = self.connections[who]
        for recorder in self.recorders:
            if recorder.connection is lost:
                self.fresh.update(recorder.fresh)
        self.recorders = [one for one in self.recorders if one.connection is not lost]
        self.here.vhost.disconnect(lost, self.here.now)
        self.connections[who] = self.here.vhost.connect()

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))
    def pass_time(self, seconds: float) -> None:
        self.here.advance(seconds)

    @rule()
    def purge(self) -> None:
        self.here.vhost.purge("work", self.here.connection, self.here.now)

    @rule(is_new=st.booleans())
    def delete(self, is_new: bool) -> None:
        self.here.take(DeleteQueue("work"))
        if is_new:
            self.declare()

    def places(self) -> Counter[str]:
        found = Counter(self.acked)
        found.update(name for name, _, _ in self.here.dropped)
        for connection, tag in self.held():
            found[connection.unacked[tag][1].message.message_id] += 1
        for queue in self.here.vhost.queues.values():
            assert isinstance(queue, ReadyQueue)
            ready = [
                stored.message.message_id
                for lane in queue._lanes
                for stored in [*lane.fresh, *(entry[1] for entry in lane.returned)]
            ]
            assert len(ready) == queue.ready
            found.update(ready)
        return found

    @invariant()
    def every_confirmed_message_is_in_exactly_one_place(self) -> None:
        assert self.places() == Counter(self.confirmed)

    @invariant()
    def what_was_dropped_was_dropped_by_a_rule(self) -> None:
        for _, queue, why in self.here.dropped:
            of_queue = self.arguments if queue == "work" else {}
            assert why in rules_of(of_queue)

    @invariant()
    def nobody_holds_more_than_its_prefetch(self) -> None:
        for recorder in self.recorders:
            assert len(recorder.held) == recorder.consumer.unacked
            prefetch = recorder.consumer.prefetch
            assert prefetch == 0 or len(recorder.held) <= prefetch

    @invariant()
    def nothing_waits_while_a_consumer_has_credit(self) -> None:
        for queue in self.here.vhost.queues.values():
            if queue.ready and not queue.arguments.single_active:
                assert not any(consumer.has_credit for consumer in queue.consumers)
            elif queue.ready and queue.consumers:
                assert not queue.consumers[0].has_credit

    @invariant()
    def a_message_is_new_to_a_queue_only_once(self) -> None:
        fresh = self.fresh.copy()
        for recorder in self.recorders:
            fresh.update(recorder.fresh)
        assert all(count == 1 for count in fresh.values())

    @invariant()
    def nothing_ready_is_overdue(self) -> None:
        for queue in self.here.vhost.queues.values():
            due = queue.next_due()
            assert due is None or due > self.here.now or self.here.vhost.next_due() == due


RandomUse.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
test_random_use = RandomUse.TestCase
