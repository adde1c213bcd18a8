"""A queue in memory: order, credit, length, time."""

from __future__ import annotations

from typing import Any

import pytest

from tq_broker.exceptions import AccessRefused, InvalidArgument
from tq_broker.model.message import Message
from tq_broker.queues.memory_queue import (
    Consumer,
    Queue,
    QueueArguments,
    ReadyQueue,
    Stored,
    StreamQueue,
    make_queue,
)


class Nobody:
    def deliver(self, tag: int, stored: Stored, queue: str) -> None: ...

    def cancelled(self) -> None: ...


def stored(name: str, priority: int | None = None, body: bytes = b"") -> Stored:
    return Stored(Message(body=body, message_id=name, priority=priority), "exchange", "key")


def ready_queue(arguments: dict[str, Any] | None = None, *names: str) -> ReadyQueue:
    queue = make_queue("q", arguments or {}, owner=None, now=0.0)
    assert isinstance(queue, ReadyQueue)
    for name in names:
        queue.push(stored(name), 0.0)
    return queue


def consumer(prefetch: int = 0, **more: Any) -> Consumer:
    return Consumer(Nobody(), connection=object(), prefetch=prefetch, **more)


def drain(queue: ReadyQueue) -> list[str]:
    names = []
    while (head := queue.pop()) is not None:
        names.append(head.message.message_id)
    return names


def handed(queue: Queue) -> list[tuple[Consumer, str]]:
    out: list[tuple[Consumer, str]] = []

    def hand(consumer: Consumer, stored: Stored) -> None:
        consumer.unacked += 1
        out.append((consumer, stored.message.message_id))

    queue.hand_out(hand)
    return out


@pytest.mark.parametrize(
    "arguments",
    [
        {"x-queue-type": "odd"},
        {"x-message-ttl": -1},
        {"x-message-ttl": "10"},
        {"x-message-ttl": True},
        {"x-expires": 0},
        {"x-max-priority": 256},
        {"x-max-priority": 5, "x-queue-type": "quorum"},
        {"x-message-ttl": 1, "x-queue-type": "stream"},
        {"x-dead-letter-exchange": "x", "x-queue-type": "stream"},
        {"x-delivery-limit": 1},
        {"x-dead-letter-strategy": "at-least-once"},
        {"x-max-age": "1D", "x-queue-type": "quorum"},
        {"x-max-length": -1},
    ],
)
def test_an_argument_that_rabbitmq_refuses_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        QueueArguments.parse(arguments)


def test_arguments_that_nobody_knows_are_ignored() -> None:
    assert QueueArguments.parse({"x-mine": object()}) == QueueArguments()


@pytest.mark.parametrize("queue_type", ["quorum", "stream"])
def test_only_a_classic_queue_can_be_exclusive(queue_type: str) -> None:
    with pytest.raises(InvalidArgument, match="exclusive"):
        make_queue("q", {"x-queue-type": queue_type}, owner=object(), now=0.0)


def test_dead_letters_are_kept_only_where_rabbitmq_does() -> None:
    full = {
        "x-queue-type": "quorum",
        "x-overflow": "reject-publish",
        "x-dead-letter-strategy": "at-least-once",
    }
    assert QueueArguments.parse(full).keeps_dead_letters
    for name in ("x-overflow", "x-dead-letter-strategy"):
        less = {key: value for key, value in full.items() if key != name}
        assert not QueueArguments.parse(less).keeps_dead_letters


def test_messages_given_back_in_any_order_take_their_old_places() -> None:
    queue = ready_queue({}, "a", "b", "c", "d")
    taken = [queue.pop() for _ in range(3)]
    queue.push(stored("e"), 0.0)
    for index in (1, 0, 2):
        one = taken[index]
        assert one is not None
        assert queue.give_back(one)
        assert one.redelivered
    assert queue.ready == 5
    assert drain(queue) == ["a", "b", "c", "d", "e"]


def test_the_higher_priority_goes_first_and_an_equal_one_in_order() -> None:
    queue = ready_queue({"x-max-priority": 3})
    for name, priority in (("a", None), ("b", 2), ("c", 9), ("d", 3), ("e", 0)):
        queue.push(stored(name, priority), 0.0)
    first = queue.pop()
    assert first is not None
    queue.give_back(first)
    assert drain(queue) == ["c", "d", "b", "a", "e"]


def test_consumers_with_credit_are_served_in_turn() -> None:
    queue = ready_queue({}, *"abcdef")
    left, right = consumer(1), consumer(3)
    queue.attach(left, {})
    queue.attach(right, {})
    assert handed(queue) == [(left, "a"), (right, "b"), (right, "c"), (right, "d")]
    left.unacked -= 1
    assert handed(queue) == [(left, "e")]


def test_consumers_of_a_higher_priority_come_first() -> None:
    queue = ready_queue({}, *"abcd")
    first, second, others = consumer(1), consumer(1), consumer(1)
    queue.attach(others, {})
    queue.attach(first, {"x-priority": 1})
    queue.attach(second, {"x-priority": 1})
    assert handed(queue) == [(first, "a"), (second, "b"), (others, "c")]
    with pytest.raises(InvalidArgument, match="x-priority is 'high'"):
        queue.attach(consumer(1), {"x-priority": "high"})


def test_of_single_active_consumers_only_the_first_is_served() -> None:
    queue = ready_queue({"x-single-active-consumer": True}, *"abc")
    first, second = consumer(1), consumer(1)
    queue.attach(first, {})
    queue.attach(second, {})
    assert handed(queue) == [(first, "a")]
    assert handed(queue) == []
    queue.detach(first, 0.0)
    assert handed(queue) == [(second, "b")]


def test_an_exclusive_consumer_is_alone() -> None:
    queue = ready_queue()
    queue.attach(consumer(), {})
    with pytest.raises(AccessRefused):
        queue.attach(consumer(exclusive=True), {})
    queue = ready_queue()
    queue.attach(consumer(exclusive=True), {})
    with pytest.raises(AccessRefused):
        queue.attach(consumer(), {})


def test_a_quorum_queue_does_not_enforce_exclusive_consumers() -> None:
    queue = ready_queue({"x-queue-type": "quorum"})
    queue.attach(consumer(exclusive=True), {})
    queue.attach(consumer(exclusive=True), {})
    assert len(queue.consumers) == 2


def test_only_what_is_expired_at_the_head_is_taken() -> None:
    queue = ready_queue({"x-message-ttl": 1000})
    queue.push(stored("a"), 0.0)
    queue.push(stored("b"), 0.5)
    assert queue.next_due() == 1.0
    assert queue.take_expired(0.99) == []
    assert [one.message.message_id for one in queue.take_expired(1.0)] == ["a"]
    assert queue.next_due() == 1.5
    assert queue.ready == 1


def test_a_message_given_back_keeps_its_time() -> None:
    queue = ready_queue({"x-message-ttl": 1000}, "a")
    taken = queue.pop()
    assert taken is not None
    assert queue.next_due() is None
    queue.give_back(taken)
    assert queue.next_due() == 1.0


def test_what_is_too_much_leaves_at_the_head() -> None:
    queue = ready_queue({"x-max-length": 2}, *"abcd")
    assert [one.message.message_id for one in queue.take_overflow()] == ["a", "b"]
    queue = ready_queue({"x-max-length-bytes": 5})
    for name in "abc":
        queue.push(stored(name, body=b"12"), 0.0)
    assert [one.message.message_id for one in queue.take_overflow()] == ["a"]


def test_a_queue_that_refuses_is_full_at_its_length() -> None:
    queue = ready_queue({"x-max-length": 1, "x-overflow": "reject-publish"})
    assert not queue.is_full
    queue.push(stored("a"), 0.0)
    assert queue.is_full
    assert queue.take_overflow() == []
    queue.pop()
    assert not queue.is_full


def test_a_quorum_queue_counts_deliveries_up_to_its_limit() -> None:
    queue = ready_queue({"x-queue-type": "quorum", "x-delivery-limit": 1}, "a")
    one = queue.pop()
    assert one is not None
    assert queue.give_back(one)
    again = queue.pop()
    assert again is not None
    assert again.message.headers["x-delivery-count"] == 1
    assert not queue.give_back(again)
    assert queue.ready == 0


def test_a_purge_leaves_nothing_and_counts_right() -> None:
    queue = ready_queue({"x-max-length-bytes": 4})
    queue.push(stored("a", body=b"123"), 0.0)
    assert len(queue.purge()) == 1
    queue.push(stored("b", body=b"1234"), 0.0)
    assert queue.take_overflow() == []
    assert queue.ready == 1


def test_only_use_keeps_a_queue_from_expiring() -> None:
    queue = ready_queue({"x-expires": 10_000})
    assert not queue.is_expired(9.9)
    assert queue.is_expired(10.0)
    queue.renew(5.0)
    assert not queue.is_expired(14.0)
    reader = consumer()
    queue.attach(reader, {})
    assert not queue.is_expired(1000.0)
    assert queue.next_due() is None
    queue.detach(reader, 1000.0)
    queue.detach(reader, 2000.0)
    assert queue.next_due() == 1010.0


def test_a_declare_does_not_renew_a_quorum_queue() -> None:
    queue = ready_queue({"x-expires": 10_000, "x-queue-type": "quorum"})
    queue.renew(5.0)
    assert queue.is_expired(10.0)


def stream(*names: str, **arguments: Any) -> StreamQueue:
    queue = make_queue("s", {"x-queue-type": "stream", **arguments}, owner=None, now=0.0)
    assert isinstance(queue, StreamQueue)
    for name in names:
        queue.push(stored(name, body=b"12"), 0.0)
    return queue


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"x-stream-offset": "first"}, "abc"),
        ({"x-stream-offset": "last"}, "c"),
        ({"x-stream-offset": "next"}, ""),
        ({"x-stream-offset": 1}, "bc"),
        ({"x-stream-offset": 9}, ""),
        ({}, ""),
    ],
)
def test_a_stream_is_read_from_an_offset(arguments: dict[str, Any], expected: str) -> None:
    queue = stream(*"abc")
    queue.attach(consumer(10), arguments)
    assert [name for _, name in handed(queue)] == list(expected)
    assert handed(queue) == []


@pytest.mark.parametrize("offset", ["sooner", -1, True, 1.5])
def test_a_stream_refuses_an_offset_that_is_none(offset: object) -> None:
    with pytest.raises(InvalidArgument, match="x-stream-offset"):
        stream().attach(consumer(1), {"x-stream-offset": offset})


def test_a_stream_keeps_what_was_read_and_each_reader_its_place() -> None:
    queue = stream(*"abc")
    left, right = consumer(1), consumer(10)
    for reader in (left, right):
        queue.attach(reader, {"x-stream-offset": "first"})
    assert handed(queue) == [(left, "a"), (right, "a"), (right, "b"), (right, "c")]
    assert queue.ready == 3
    left.unacked -= 1
    assert handed(queue) == [(left, "b")]


def test_a_stream_forgets_its_oldest_messages_beyond_its_size() -> None:
    queue = stream(*"abcd", **{"x-max-length-bytes": 5})
    assert queue.ready == 2
    reader = consumer(10)
    queue.attach(reader, {"x-stream-offset": 0})
    assert [name for _, name in handed(queue)] == ["c", "d"]


def test_a_reader_that_is_too_slow_goes_on_with_the_oldest_there_is() -> None:
    queue = stream("a", **{"x-max-length-bytes": 5})
    reader = consumer(1)
    queue.attach(reader, {"x-stream-offset": "first"})
    assert [name for _, name in handed(queue)] == ["a"]
    for name in "bcdef":
        queue.push(stored(name, body=b"12"), 0.0)
    reader.unacked = 0
    assert [name for _, name in handed(queue)] == ["e"]
