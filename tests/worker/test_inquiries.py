"""Questions to history: asked until they are answered, answered once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.worker.attempts import place
from tests.worker.worlds import NAMES, World
from tq_broker.exceptions import Malformed
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind
from tq_broker.model.requests import Reply, read_request, reply_message
from tq_broker.model.workflow_tasks import EventsPage, FetchEvents, RunKey
from tq_broker.queues.broker import Receipt
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.inquiries import AGAIN_AFTER_S, Inquiries

QUESTION = FetchEvents(run=RunKey("w", "r"), first_event_id=3)


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.world = World(self.clock)
        self.client = self.world.make_client("worker")
        self.inquiries = Inquiries(self.client.connection.sender, place(self.clock))
        self.replies: list[Reply | Malformed] = []

    def ask(self) -> Message:
        self.inquiries.ask(7, QUESTION, self.replies.append)
        return self.taken()

    def taken(self) -> Message:
        """The next message in the inbox of shard 7."""
        found: list[Any] = []

        def take() -> bool:
            delivery = self.world.broker.get(str(NAMES.history(7)), self.world.soon())
            if delivery is not None:
                delivery.ack()
                found.append(delivery.message)
            return bool(found)

        self.world.eventually(take)
        message: Message = found[0]
        return message

    def answer(self, message: Message) -> None:
        assert message.reply_to is not None
        assert NAMES.owns(message.reply_to, Kind.REPLY)
        publication = Publication(NAMES.exchange(Exchange.REPLIES), message.reply_to, message)
        receipts: list[Receipt] = []
        self.world.broker.publish(publication, self.world.soon(), receipts.append)
        self.world.eventually(lambda: bool(receipts))

    def answer_to(self, question: Message, reply: Reply) -> None:
        message = reply_message(reply, "m", question.correlation_id)
        self.answer(msgspec.structs.replace(message, reply_to=question.reply_to))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.inquiries.close()
    bench.world.close()


def test_an_answer_finds_who_has_asked(bench: Bench) -> None:
    question = bench.ask()
    assert read_request(question) == QUESTION
    page = EventsPage(events=[], last_event_id=4)
    bench.answer_to(question, page)
    bench.world.eventually(lambda: bench.replies == [page])


def test_a_question_is_asked_again_as_the_same_question(bench: Bench) -> None:
    first = bench.ask()
    bench.clock.advance(AGAIN_AFTER_S)
    again = bench.taken()
    assert (again.message_id, again.body) == (first.message_id, first.body)


def test_a_second_answer_and_garbage_harm_nobody(bench: Bench) -> None:
    question = bench.ask()
    reply_to = question.reply_to
    bench.answer(Message(body=b"?", message_id="x", reply_to=reply_to, correlation_id="x"))
    bench.answer_to(question, EventsPage(events=[]))
    bench.answer_to(question, EventsPage(events=[]))
    other = bench.ask()
    bench.answer_to(other, EventsPage(events=[], last_event_id=9))
    bench.world.eventually(lambda: len(bench.replies) == 2)


def test_an_answer_that_cannot_be_read_is_one_too(bench: Bench) -> None:
    question = bench.ask()
    message = reply_message(EventsPage(events=[]), "m", question.correlation_id)
    bench.answer(msgspec.structs.replace(message, body=b"?", reply_to=question.reply_to))
    bench.world.eventually(lambda: len(bench.replies) == 1)
    assert isinstance(bench.replies[0], Malformed)


def test_nothing_is_waited_for_after_the_end(bench: Bench) -> None:
    question = bench.ask()
    bench.inquiries.close()
    bench.answer_to(question, EventsPage(events=[]))
    bench.inquiries.ask(7, QUESTION, bench.replies.append)
    bench.clock.advance(AGAIN_AFTER_S)
    assert bench.replies == []
