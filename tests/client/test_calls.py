"""Calls, with a broker in memory under a clock that is told the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tq_broker.client.calls import LISTEN_AGAIN_S, Call, Calls
from tq_broker.exceptions import (
    AccessRefused,
    BrokerUnavailable,
    DeadlineExceeded,
    InvalidArgument,
    TqBrokerError,
    Unavailable,
)
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Names
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.sender import Sender
from tq_broker.testing.manual_clock import ManualClock

NAMES = Names("n")
QUEUE = NAMES.history(0)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.broker = MemoryBroker(MemoryServer(), self.clock)
        self.sender = Sender(self.broker, NAMES, self.clock, identity="me")
        self.sender.close()  # from here on it runs what may block on the caller's thread
        self.listening: list[TqBrokerError | None] = []
        """How the next attempts to listen end; then they end well."""
        self.calls = Calls(self.sender, self.clock, listen=self.listen, send_s=10.0)
        self.answers: list[Message] = []
        self.failures: list[TqBrokerError] = []

    def listen(self, deadline: float) -> None:
        error = self.listening.pop(0) if self.listening else None
        if error is not None:
            raise error

    def begin(self, *, deadline_s: float | None = 10.0) -> Call:
        now = self.clock.monotonic()
        call = Call(
            id="c",
            publication=self.publication,
            needs=(QUEUE,),
            on_answer=self.answers.append,
            on_failure=self.failures.append,
            deadline=None if deadline_s is None else now + deadline_s,
            again_s=4.0,
            silence="nobody there",
        )
        self.calls.begin(call)
        self.settle()
        return call

    def publication(self) -> Publication:
        message = Message(body=b"?", message_id="m", correlation_id="c")
        return Publication(NAMES.exchange(Exchange.HISTORY), QUEUE.key, message)

    def settle(self) -> None:
        self.broker.wait_quiet(self.clock.monotonic() + 1000)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.settle()

    @property
    def sent(self) -> int:
        stats = self.broker.stats(str(QUEUE), self.clock.monotonic() + 1000)
        return stats.ready if stats else 0


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.calls.close()
    world.broker.close(world.clock.monotonic() + 1000)


def answer() -> Message:
    return Message(body=b"!", message_id="a", correlation_id="c")


def test_a_call_is_sent_again_until_it_ends(world: World) -> None:
    call = world.begin(deadline_s=None)
    assert world.sent == 1
    world.advance(4.0)
    assert world.sent == 2
    world.calls.answered(answer())
    assert world.answers == [answer()]
    assert world.calls.end(call)
    assert not world.calls.end(call)
    world.advance(100)
    assert world.sent == 2
    world.calls.answered(answer())
    assert len(world.answers) == 1


def test_at_its_deadline_a_call_says_that_nobody_was_there(world: World) -> None:
    world.begin()
    world.advance(9.9)
    assert world.failures == []
    world.advance(0.2)
    (error,) = world.failures
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == "nobody there"
    assert world.calls.open_count == 0


def test_patience_takes_the_deadline_away(world: World) -> None:
    call = world.begin()
    world.calls.be_patient(call, 50.0)
    world.advance(49)
    assert world.sent == 1
    world.advance(1)
    assert (world.sent, world.failures) == (2, [])


def test_all_are_sent_again_when_the_reply_queue_comes_back(world: World) -> None:
    world.calls.subscribed()
    world.begin(deadline_s=None)
    world.calls.subscribed()
    world.settle()
    assert world.sent == 2


@pytest.mark.parametrize(
    ("error", "deadline_s", "fails"),
    [
        (BrokerUnavailable("away"), 10.0, True),
        (BrokerUnavailable("away"), None, False),
        (AccessRefused("not you"), None, True),
    ],
)
def test_a_reply_queue_that_cannot_be_opened(
    world: World, error: TqBrokerError, deadline_s: float | None, fails: bool
) -> None:
    world.listening = [error]
    world.begin(deadline_s=deadline_s)
    assert world.failures == ([error] if fails else [])
    world.advance(LISTEN_AGAIN_S)
    assert world.sent == (0 if fails else 1)


@pytest.mark.parametrize("deadline_s", [10.0, None])
def test_a_broker_that_is_away(world: World, deadline_s: float | None) -> None:
    world.begin()
    world.calls.close()
    world.failures.clear()
    world.broker.break_connection(away_s=25)
    world.begin(deadline_s=deadline_s)
    world.advance(10)
    if deadline_s is None:
        assert world.failures == []
        world.advance(20)
        assert world.sent > 1
    else:
        assert [type(error) for error in world.failures] == [DeadlineExceeded]
        assert "no answer before the deadline" in str(world.failures[0])


@pytest.mark.parametrize("leave", [lambda calls: calls.close(), lambda calls: calls.forget()])
def test_after_the_end_nothing_is_sent(world: World, leave: Callable[[Any], None]) -> None:
    world.begin(deadline_s=None)
    leave(world.calls)
    world.advance(100)
    assert world.sent == 1
    assert all(isinstance(error, Unavailable) for error in world.failures)


@pytest.mark.parametrize("again", [False, True])
def test_what_cannot_be_made_a_message_ends_its_call(world: World, again: bool) -> None:
    """It may be made on the thread of the clock, which must live on."""

    def refuse() -> Publication:
        raise InvalidArgument("not Unicode")

    if again:
        world.begin().publication = refuse
        world.advance(4.0)
    else:
        world.publication = refuse  # type: ignore[method-assign]
        world.begin()
    assert [str(error) for error in world.failures] == ["not Unicode"]
    assert not world.calls.open_count
