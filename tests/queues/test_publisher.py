from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pika.exceptions
import pika.frame
import pytest
from pika import spec

from tests.queues.amqp_server import PATIENCE_S, AmqpServer, Session
from tq_broker.clock import SystemClock
from tq_broker.model.message import Message, Publication
from tq_broker.queues import publisher as publisher_module
from tq_broker.queues.address import parse_addresses
from tq_broker.queues.broker import Receipt, Verdict
from tq_broker.queues.publisher import (
    Publisher,
    _Connection,
    _hush,
    _write,
    cause_of,
    explain,
    is_refusal,
)


def publication(name: str = "m", exchange: str = "e", key: str = "k") -> Publication:
    return Publication(exchange, key, Message(body=b"body", message_id=name))


@pytest.fixture
def publisher(server: AmqpServer, clock: SystemClock) -> Iterator[Publisher]:
    publisher = Publisher(parse_addresses(server.url), clock, heartbeat_s=10, name="test")
    yield publisher
    publisher.close(clock.monotonic() + 1)


class Answers:
    """Collects receipts by index."""

    def __init__(self, expected: int = 1) -> None:
        self._expected = expected
        self._all = threading.Event()
        self._got: dict[int, Receipt] = {}

    def one(self, receipt: Receipt) -> None:
        self.many(0, receipt)

    def many(self, index: int, receipt: Receipt) -> None:
        assert index not in self._got, "a publish ends once"
        self._got[index] = receipt
        if len(self._got) == self._expected:
            self._all.set()

    def wait(self) -> dict[int, Receipt]:
        assert self._all.wait(PATIENCE_S)
        return self._got

    def verdicts(self) -> list[Verdict]:
        return [receipt.verdict for _, receipt in sorted(self.wait().items())]


def test_what_pika_logs_on_our_threads_is_dropped_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Found: of two publishers in a process only the newer was quiet when the broker left."""
    log = logging.getLogger("pika.adapters.base_connection")
    both = threading.Barrier(2)

    def publishes() -> None:
        _hush(threading.current_thread())
        both.wait(PATIENCE_S)
        log.error("noise")

    threads = [threading.Thread(target=publishes) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    log.error("of another user of pika")
    assert caplog.messages == ["of another user of pika"]


def test_nothing_is_opened_before_the_first_publish(publisher: Publisher) -> None:
    assert "tq-publisher" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("what", ["threads", "descriptors"])
def test_where_the_system_has_no_more_of_something_publishes_end_until_it_has(
    server: AmqpServer,
    publisher: Publisher,
    soon: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """Found: one moment without, and no publish of this process ever ended again."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread") if what == "threads" else OSError(24, "EMFILE")

    answers = Answers()
    with monkeypatch.context() as short:
        if what == "threads":
            short.setattr(threading.Thread, "start", fail)
        else:
            short.setattr(socket, "socketpair", fail)
        publisher.publish(publication(), soon(), answers.one)
    (receipt,) = answers.wait().values()
    assert receipt.verdict is Verdict.EXPIRED
    assert "EMFILE" in receipt.reason or "new thread" in receipt.reason
    answers = Answers()
    publisher.publish(publication(), soon(), answers.one)
    assert answers.verdicts() == [Verdict.CONFIRMED]


def test_a_publisher_that_never_had_a_thread_can_be_closed(
    publisher: Publisher, soon: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", fail)
        publisher.publish(publication(), soon(), Answers().one)
    publisher.close(soon())


def test_a_loop_that_has_ended_is_replaced_as_soon_as_there_are_descriptors(
    server: AmqpServer,
    publisher: Publisher,
    soon: Callable[[], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Answers(), Answers()
    publisher.publish(publication(), soon(), first.one)
    assert first.verdicts() == [Verdict.CONFIRMED]
    failures = [OSError(24, "EMFILE"), OSError(24, "EMFILE"), ZeroDivisionError()]
    pair = socket.socketpair

    def pair_or_fail() -> tuple[socket.socket, socket.socket]:
        if len(failures) > 1:
            raise failures.pop()
        return pair()

    def break_once() -> None:
        raise failures.pop()

    monkeypatch.setattr(socket, "socketpair", pair_or_fail)
    publisher._loop.add_callback(break_once)
    publisher.publish(publication("n"), soon(), second.one)
    assert second.verdicts() == [Verdict.CONFIRMED]
    assert len(failures) == 1


def test_a_publish_is_mandatory_persistent_and_confirmed(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float]
) -> None:
    answers = Answers()
    publisher.publish(publication(), soon(), answers.one)
    assert answers.verdicts() == [Verdict.CONFIRMED]
    _, _, method = server.wait_for(spec.Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("e", "k", True)
    assert (method.properties.message_id, method.properties.delivery_mode) == ("m", 2)
    assert method.body == b"body"


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that have written publishes, in order."""
    names = []

    def noted(connection: Any, frames: Sequence[bytes]) -> None:
        names.append(threading.current_thread().name)
        _write(connection, frames)

    monkeypatch.setattr(publisher_module, "_write", noted)
    return names


def until_written_here(
    publisher: Publisher, soon: Callable[[], float], writers: Sequence[str]
) -> None:
    """Publish, one after the other, until one was written on this thread. The publisher's own is
    done with an answer only a moment after that was told."""
    here = threading.current_thread().name
    for number in range(10_000):
        answers = Answers()
        publisher.publish(publication(str(number)), soon(), answers.one)
        assert answers.verdicts() == [Verdict.CONFIRMED]
        if writers[-1] == here:
            return
    raise AssertionError("none was")


def test_the_first_is_written_on_the_thread_and_one_that_is_alone_where_it_is_made(
    publisher: Publisher, soon: Callable[[], float], writers: list[str]
) -> None:
    until_written_here(publisher, soon, writers)
    assert writers[0] == "tq-publisher"


def test_while_one_is_unanswered_the_thread_writes(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float], writers: list[str]
) -> None:
    until_written_here(publisher, soon, writers)
    server.rules[spec.Basic.Publish] = lambda *_: True
    written = len(writers)
    for number in range(20):
        name = f"unanswered-{number}"
        publisher.publish(publication(name), soon(), Answers().one)
        while server.wait_for(spec.Basic.Publish)[2].properties.message_id != name:
            assert not number, "only those of before come before the first"
    assert set(writers[written + 1 :]) == {"tq-publisher"}
    publisher.close(0.0)


def test_what_an_idle_publisher_cannot_send_is_answered_on_its_thread(
    publisher: Publisher, clock: SystemClock, soon: Callable[[], float], writers: list[str]
) -> None:
    until_written_here(publisher, soon, writers)
    told = []
    for one, deadline, verdict in (
        (publication("x" * 300), soon(), Verdict.REFUSED),
        (publication(), clock.monotonic() - 1, Verdict.EXPIRED),
    ):
        answers = Answers()

        def done(receipt: Receipt, answers: Answers = answers) -> None:
            told.append(threading.current_thread().name)
            answers.one(receipt)

        publisher.publish(one, deadline, done)
        assert answers.verdicts() == [verdict]
    assert told == ["tq-publisher"] * 2


def test_one_that_is_written_where_it_is_made_expires_as_any_other(
    server: AmqpServer,
    publisher: Publisher,
    clock: SystemClock,
    soon: Callable[[], float],
    writers: list[str],
) -> None:
    until_written_here(publisher, soon, writers)
    server.rules[spec.Basic.Publish] = lambda *_: True
    answers = Answers()
    publisher.publish(publication(), clock.monotonic() + 0.1, answers.one)
    assert answers.verdicts() == [Verdict.EXPIRED]


def test_a_publish_that_a_signal_interrupts_spoils_no_other(
    server: AmqpServer,
    publisher: Publisher,
    soon: Callable[[], float],
    writers: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its tag is taken and its bytes are not written: the confirm of the next would be its."""
    until_written_here(publisher, soon, writers)
    here = threading.current_thread()

    def interrupted(connection: Any, frames: Sequence[bytes]) -> None:
        if threading.current_thread() is here:
            raise KeyboardInterrupt
        _write(connection, frames)

    monkeypatch.setattr(publisher_module, "_write", interrupted)
    first, second = [Answers()], Answers()

    def publish_until_interrupted() -> None:
        for _ in range(10_000):
            first[0] = Answers()
            publisher.publish(publication("first"), soon(), first[0].one)
            first[0].wait()

    with pytest.raises(KeyboardInterrupt):
        publish_until_interrupted()
    monkeypatch.setattr(publisher_module, "_write", _write)
    publisher.publish(publication("second"), soon(), second.one)
    assert first[0].verdicts() == second.verdicts() == [Verdict.CONFIRMED]
    resent = server.wait_for(spec.Basic.Publish)[2].properties
    while not resent.headers:
        resent = server.wait_for(spec.Basic.Publish)[2].properties
    assert (resent.message_id, resent.headers) == ("first", {"tq-resent": 1})
    assert "was interrupted: KeyboardInterrupt()" in caplog.text
    assert "internal error" not in caplog.text


def test_a_connection_that_breaks_costs_a_copy_that_says_so(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float]
) -> None:
    def cut_once(session: Session, _channel: int, _method: Any) -> bool:
        del server.rules[spec.Basic.Publish]
        server.cut()
        return True

    server.rules[spec.Basic.Publish] = cut_once
    answers = Answers()
    publisher.publish(publication(), soon(), answers.one)
    assert answers.verdicts() == [Verdict.CONFIRMED]
    assert server.wait_for(spec.Basic.Publish)[2].properties.headers is None
    assert server.wait_for(spec.Basic.Publish)[2].properties.headers == {"tq-resent": 1}


def test_one_that_rabbitmq_refuses_costs_the_others_nothing(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float]
) -> None:
    def refuse(session: Session, channel: int, method: Any) -> bool:
        if method.exchange == "gone":
            session.close_channel(channel, 404, "NOT_FOUND - no exchange 'gone' in vhost '/'")
            closed.add((id(session), channel))
        # As RabbitMQ does, nothing more is answered on a channel that was closed.
        return (id(session), channel) in closed

    def opened(session: Session, channel: int, _method: Any) -> bool:
        closed.discard((id(session), channel))
        return False

    closed: set[tuple[int, int]] = set()
    server.rules[spec.Basic.Publish] = refuse
    server.rules[spec.Channel.Open] = opened
    many = [publication(str(n), "gone" if n == 3 else "e") for n in range(8)]
    answers = Answers(len(many))
    publisher.publish_many(many, soon(), answers.many)
    expected = [Verdict.CONFIRMED] * 8
    expected[3] = Verdict.RETURNED
    assert answers.verdicts() == expected


def test_in_doubt_they_are_sent_one_by_one(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float]
) -> None:
    closed: set[tuple[int, int]] = set()

    def refuse(session: Session, channel: int, method: Any) -> bool:
        if (id(session), channel) in closed:
            return True
        if method.properties.message_id == "5":
            closed.add((id(session), channel))
            session.close_channel(channel, 406, "PRECONDITION_FAILED - some reason")
            return True
        return False

    def opened(session: Session, channel: int, _method: Any) -> bool:
        closed.discard((id(session), channel))
        return False

    server.rules[spec.Basic.Publish] = refuse
    server.rules[spec.Channel.Open] = opened
    answers = Answers(10)
    publisher.publish_many([publication(str(n)) for n in range(10)], soon(), answers.many)
    expected = [Verdict.CONFIRMED] * 10
    expected[5] = Verdict.REFUSED
    assert answers.verdicts() == expected
    assert "some reason" in answers.wait()[5].reason


def test_returned_and_nacked_ones_are_told_apart(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float]
) -> None:
    def answer(session: Session, channel: int, method: Any) -> bool:
        if method.tag == 1:
            returned = spec.Basic.Return(312, "NO_ROUTE", "e", "k")
            session.send_content(channel, returned, b"body", message_id="0")
        if method.tag == 2:
            session.send(channel, spec.Basic.Nack(2))
        if method.tag == 3:
            session.send(channel, spec.Basic.Ack(3, multiple=True))
        return True

    server.rules[spec.Basic.Publish] = answer
    answers = Answers(3)
    publisher.publish_many([publication(str(n)) for n in range(3)], soon(), answers.many)
    assert answers.verdicts() == [Verdict.RETURNED, Verdict.REFUSED, Verdict.CONFIRMED]
    assert answers.wait()[0].reason == "NO_ROUTE (312)"


def test_what_a_replaced_channel_answers_late_counts_for_nothing(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float]
) -> None:
    def answer(session: Session, channel: int, method: Any) -> bool:
        if not first:
            first.append(channel)
            publisher._loop.add_callback_threadsafe(publisher._replace_channel)
            return True
        # By now RabbitMQ comes to what the first channel was sent, which were other messages.
        session.send(first[0], spec.Basic.Ack(9, multiple=True))
        returned = spec.Basic.Return(312, "NO_ROUTE", "e", "k")
        session.send_content(channel, returned, b"body", message_id="0")
        session.send(channel, spec.Basic.Ack(method.tag))
        return True

    first: list[int] = []
    server.rules[spec.Basic.Publish] = answer
    server.rules[spec.Channel.Close] = lambda *_: True
    answers = Answers()
    publisher.publish(publication("0"), soon(), answers.one)
    assert answers.verdicts() == [Verdict.RETURNED]


def test_answers_are_understood_however_they_are_cut(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float]
) -> None:
    """Acks are read by our own code, all else and what comes in pieces by pika's."""

    def answer(session: Session, channel: int, method: Any) -> bool:
        told = {1: [spec.Basic.Ack(1), spec.Basic.Nack(2)], 3: [spec.Basic.Ack(5, multiple=True)]}
        data = held[0] + b"".join(
            pika.frame.Method(channel, one).marshal() for one in told.get(method.tag, ())
        )
        # The last frame but its end waits for the next publish, and the last of all comes whole.
        end = 6 if method.tag < 5 else 0
        held[0] = data[len(data) - end :]
        session.sock.sendall(data[: len(data) - end])
        return True

    held = [b""]
    server.rules[spec.Basic.Publish] = answer
    answers = Answers(5)
    for number in range(5):
        receipt = functools.partial(answers.many, number)
        publisher.publish(publication(str(number)), soon(), receipt)
        server.wait_for(spec.Basic.Publish)
    expected = [Verdict.CONFIRMED] * 5
    expected[1] = Verdict.REFUSED
    assert answers.verdicts() == expected


@pytest.mark.parametrize(
    ("before", "is_open", "expected"),
    [
        (b"", True, [("acked", 1, False), ("acked", 2, True), b"rest"]),
        (b"the first part of a frame", True, [b"all"]),
        (b"", False, [b"all"]),
    ],
    ids=["acks and more", "the second part of a frame", "a channel that closes"],
)
def test_only_acks_of_the_channel_are_read_past_pika(
    monkeypatch: pytest.MonkeyPatch, before: bytes, is_open: bool, expected: list[Any]
) -> None:
    acks = [spec.Basic.Ack(1), spec.Basic.Ack(2, multiple=True)]
    data = b"".join(pika.frame.Method(3, ack).marshal() for ack in acks)
    got: list[Any] = []
    connection = _Connection.__new__(_Connection)
    connection._frame_buffer = before
    connection.frames_received = connection.bytes_received = 0
    connection.hear_acks(
        SimpleNamespace(is_open=is_open, channel_number=3), lambda *ack: got.append(("acked", *ack))
    )
    monkeypatch.setattr(
        pika.SelectConnection, "_on_data_available", lambda _, rest: got.append(rest)
    )
    connection._on_data_available(data + b"rest")
    assert got == [data + b"rest" if one == b"all" else one for one in expected]
    acked = len(got) - 1
    assert connection.frames_received == acked
    assert connection.bytes_received == acked * len(data) / 2


def test_what_the_socket_does_not_take_at_once_is_sent_when_it_does(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float], writers: list[str]
) -> None:
    until_written_here(publisher, soon, writers)
    large = Message(body=bytes(16 << 20), message_id="large")
    answers = Answers()
    publisher.publish(Publication("e", "k", large), soon(), answers.one)
    assert answers.verdicts() == [Verdict.CONFIRMED]
    until_written_here(publisher, soon, writers)


def test_without_an_answer_it_expires(
    server: AmqpServer, publisher: Publisher, clock: SystemClock
) -> None:
    server.rules[spec.Basic.Publish] = lambda *_: True
    answers = Answers()
    publisher.publish(publication(), clock.monotonic() + 0.2, answers.one)
    assert answers.verdicts() == [Verdict.EXPIRED]
    assert "no confirm" in answers.wait()[0].reason


def test_a_block_is_named_and_lifted(
    server: AmqpServer, publisher: Publisher, clock: SystemClock, soon: Callable[[], float]
) -> None:
    def block(session: Session, _channel: int, _method: Any) -> bool:
        session.send(0, spec.Connection.Blocked("low on memory"))
        return True

    server.rules[spec.Basic.Publish] = block
    answers = Answers()
    publisher.publish(publication(), clock.monotonic() + 0.3, answers.one)
    session, _, _ = server.wait_for(spec.Basic.Publish)
    assert answers.verdicts() == [Verdict.EXPIRED]
    assert "RabbitMQ blocks publishers" in answers.wait()[0].reason
    assert "low on memory" in answers.wait()[0].reason
    server.rules.clear()
    waiting = Answers()
    publisher.publish(publication("2"), soon(), waiting.one)
    session.send(0, spec.Connection.Unblocked())
    assert waiting.verdicts() == [Verdict.CONFIRMED]


def test_what_cannot_be_encoded_is_refused_alone(
    publisher: Publisher, soon: Callable[[], float]
) -> None:
    answers = Answers(2)
    publisher.publish_many([publication("x" * 300), publication()], soon(), answers.many)
    assert answers.verdicts() == [Verdict.REFUSED, Verdict.CONFIRMED]
    assert "message_id" in answers.wait()[0].reason


def test_a_callback_that_raises_costs_the_others_nothing(
    publisher: Publisher, soon: Callable[[], float], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_receipt: Receipt) -> None:
        raise RuntimeError("the caller's bug")

    answers = Answers()
    publisher.publish(publication(), soon(), fail)
    publisher.publish(publication(), soon(), answers.one)
    assert answers.verdicts() == [Verdict.CONFIRMED]
    assert "the callback of a publish raised" in caplog.text


def test_after_it_was_closed_it_refuses(
    publisher: Publisher, clock: SystemClock, soon: Callable[[], float]
) -> None:
    first, second = Answers(), Answers()
    publisher.publish(publication(), soon(), first.one)
    publisher.close(soon())
    assert first.verdicts() == [Verdict.CONFIRMED]
    publisher.publish(publication(), soon(), second.one)
    assert second.verdicts() == [Verdict.REFUSED]
    publisher.close(soon())


def test_closing_answers_what_is_still_open(
    server: AmqpServer, publisher: Publisher, clock: SystemClock, soon: Callable[[], float]
) -> None:
    server.rules[spec.Basic.Publish] = lambda *_: True
    answers = Answers()
    publisher.publish(publication(), soon(), answers.one)
    server.wait_for(spec.Basic.Publish)
    publisher.close(clock.monotonic() + 0.2)
    assert answers.verdicts() == [Verdict.EXPIRED]
    assert "closed" in answers.wait()[0].reason


def test_it_can_be_closed_while_it_connects(
    server: AmqpServer, publisher: Publisher, clock: SystemClock, soon: Callable[[], float]
) -> None:
    server.rules[spec.Connection.StartOk] = lambda *_: True
    answers = Answers()
    publisher.publish(publication(), soon(), answers.one)
    server.wait_for(spec.Connection.StartOk)
    publisher.close(clock.monotonic() + 0.1)
    assert answers.verdicts() == [Verdict.EXPIRED]
    assert "tq-publisher" not in {thread.name for thread in threading.enumerate()}


def test_without_a_broker_the_reason_is_why(clock: SystemClock) -> None:
    publisher = Publisher(
        parse_addresses("amqp://me:s3cret@127.0.0.1:1"), clock, heartbeat_s=10, name="t"
    )
    answers = Answers()
    publisher.publish(publication(), clock.monotonic() + 0.5, answers.one)
    assert answers.verdicts() == [Verdict.EXPIRED]
    reason = answers.wait()[0].reason
    assert "no connection to amqp://me@127.0.0.1:1" in reason
    assert "refused" in reason
    assert "s3cret" not in reason
    publisher.close(clock.monotonic() + 1)


def test_a_refused_login_is_told_at_once(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float]
) -> None:
    def refuse(session: Session, _channel: int, _method: Any) -> bool:
        session.send(0, spec.Connection.Close(403, "ACCESS_REFUSED - Login was refused", 0, 0))
        return True

    server.rules[spec.Connection.StartOk] = refuse
    answers = Answers()
    publisher.publish(publication(), soon(), answers.one)
    assert answers.verdicts() == [Verdict.REFUSED]
    assert "check the user, the password" in answers.wait()[0].reason


@pytest.mark.parametrize(
    "say_why",
    [True, False],
    ids=["told that it goes down", "cut off"],
)
def test_a_broker_that_goes_down_during_the_login_refuses_nothing(
    server: AmqpServer, publisher: Publisher, soon: Callable[[], float], say_why: bool
) -> None:
    tries = []

    def end(session: Session, _channel: int, _method: Any) -> bool:
        tries.append(session)
        if len(tries) > 1:
            return False
        if say_why:
            session.send(0, spec.Connection.Close(320, "CONNECTION_FORCED - shutdown", 0, 0))
        else:
            server.cut()
        return True

    server.rules[spec.Connection.StartOk] = end
    answers = Answers()
    publisher.publish(publication(), soon(), answers.one)
    assert answers.verdicts() == [Verdict.CONFIRMED]
    assert len(tries) == 2


def test_the_cause_is_dug_out_of_what_pika_wraps_it_in() -> None:
    cause = ConnectionRefusedError(111, "Connection refused")
    wrapped = pika.exceptions.AMQPConnectionError(cause)
    assert cause_of(wrapped) is cause
    assert explain(ValueError("two\nlines")) == "two lines"
    assert explain(ValueError()) == "ValueError"
    closed = pika.exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED")
    assert is_refusal(pika.exceptions.ProbableAuthenticationError(repr(closed)))
    assert is_refusal(pika.exceptions.ConnectionClosedByBroker(530, "vhost"))
    assert not is_refusal(pika.exceptions.ConnectionClosedByBroker(320, "shutdown"))
