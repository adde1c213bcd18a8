from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tq_broker.model.message import Message, Publication
from tq_broker.queues.broker import Verdict
from tq_broker.queues.confirms import RESENT, Confirms, Outgoing, blame, headers_of_copy


def outgoing(
    name: str = "m", exchange: str = "e", key: str = "k", size: int = 3, deadline: float = 9.0
) -> Outgoing:
    message = Message(body=b"x" * size, message_id=name)
    return Outgoing(Publication(exchange, key, message), deadline, lambda *_: None, 0)


def verdicts(ended: list) -> list[tuple[str, Verdict]]:
    return [(o.publication.message.message_id, receipt.verdict) for o, receipt in ended]


def test_an_ack_ends_one_and_a_multiple_ack_all_before_it() -> None:
    confirms = Confirms()
    for name in "abcde":
        confirms.sent(outgoing(name))
    assert verdicts(confirms.acked(2, multiple=False)) == [("b", Verdict.CONFIRMED)]
    assert verdicts(confirms.acked(4, multiple=True)) == [
        ("a", Verdict.CONFIRMED),
        ("c", Verdict.CONFIRMED),
        ("d", Verdict.CONFIRMED),
    ]
    assert len(confirms) == 1
    assert verdicts(confirms.nacked(0, multiple=True)) == [("e", Verdict.REFUSED)]
    assert (len(confirms), confirms.live_bytes) == (0, 0)


def test_a_return_decides_what_the_confirm_after_it_means() -> None:
    confirms = Confirms()
    for name in "abc":
        confirms.sent(outgoing(name))
    confirms.returned("e", "k", "b", "NO_ROUTE")
    confirms.returned("e", "other", "a", "NO_ROUTE")
    ended = confirms.acked(3, multiple=True)
    assert verdicts(ended)[1] == ("b", Verdict.RETURNED)
    assert ended[1][1].reason == "NO_ROUTE"
    assert verdicts(ended)[::2] == [("a", Verdict.CONFIRMED), ("c", Verdict.CONFIRMED)]


def test_of_two_alike_the_older_one_is_returned_first() -> None:
    confirms = Confirms()
    first, second = outgoing(), outgoing()
    confirms.sent(first)
    confirms.sent(second)
    confirms.returned("e", "k", "m", "one")
    assert (first.returned, second.returned) == ("one", "")
    confirms.returned("e", "k", "m", "two")
    assert second.returned == "two"


def test_a_late_return_belongs_to_the_one_that_has_expired() -> None:
    confirms = Confirms()
    late, fresh = outgoing(deadline=1.0), outgoing(deadline=9.0)
    confirms.sent(late)
    confirms.sent(fresh)
    assert confirms.expired(2.0) == [late]
    confirms.returned("e", "k", "m", "gone")
    assert verdicts(confirms.acked(2, multiple=True)) == [("m", Verdict.CONFIRMED)]
    assert confirms.stale == 0


def test_what_was_lost_is_sent_again_without_its_return() -> None:
    confirms = Confirms()
    sent = [outgoing(name) for name in "abc"]
    for each in sent:
        confirms.sent(each)
    confirms.returned("e", "k", "b", "NO_ROUTE")
    confirms.acked(1, multiple=False)
    assert confirms.lost() == sent[1:]
    assert sent[1].returned == ""
    assert (len(confirms), confirms.live_bytes) == (0, 0)
    assert headers_of_copy(0) == {}
    assert headers_of_copy(2) == {RESENT: 2}


class Machine(RuleBasedStateMachine):
    """Every publish ends once, whatever RabbitMQ answers and the clock does."""

    def __init__(self) -> None:
        super().__init__()
        self.confirms = Confirms()
        self.all: list[Outgoing] = []
        self.open: dict[int, Outgoing] = {}
        self.ended: list[int] = []
        self.now = 0.0

    @rule(size=st.integers(0, 5), patience=st.floats(0, 5))
    def send(self, size: int, patience: float) -> None:
        sent = outgoing(size=size, deadline=self.now + patience)
        self.all.append(sent)
        self.open[self.confirms.sent(sent)] = sent

    @precondition(lambda self: self.open)
    @rule(data=st.data(), multiple=st.booleans(), good=st.booleans())
    def answer(self, data: st.DataObject, multiple: bool, good: bool) -> None:
        tag = data.draw(st.sampled_from(sorted(self.open)))
        answer = self.confirms.acked if good else self.confirms.nacked
        self.ended += [id(o) for o, _ in answer(tag, multiple)]
        for number in [n for n in self.open if n == tag or (multiple and n < tag)]:
            del self.open[number]

    @rule(seconds=st.floats(0, 2))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.ended += [id(o) for o in self.confirms.expired(self.now)]

    @rule()
    def lose(self) -> None:
        for again in self.confirms.lost():
            self.ended.append(id(again))
        self.open.clear()

    @invariant()
    def nothing_ends_twice_and_nothing_is_forgotten(self) -> None:
        assert len(self.ended) == len(set(self.ended))
        live = {id(o) for o in self.confirms.live()}
        assert live.isdisjoint(self.ended)
        assert live | set(self.ended) == {id(o) for o in self.all}
        assert len(self.confirms) == len(live)
        assert len(self.confirms) + self.confirms.stale == len(self.open)
        assert self.confirms.live_bytes == sum(
            len(o.publication.message.body) for o in self.confirms.live()
        )


TestMachine = Machine.TestCase


def sent_all(*many: Outgoing) -> Confirms:
    confirms = Confirms()
    for each in many:
        confirms.sent(each)
    return confirms


@pytest.mark.parametrize(
    ("code", "text", "guilty", "verdict"),
    [
        (404, "NOT_FOUND - no exchange 'gone' in vhost '/'", "b", Verdict.RETURNED),
        (
            403,
            "ACCESS_REFUSED - access to exchange 'gone' in vhost '/' refused for user 'u'",
            "b",
            Verdict.REFUSED,
        ),
        (
            403,
            "ACCESS_REFUSED - access to topic 'k2' in exchange 'e' in vhost '/' refused",
            "c",
            Verdict.REFUSED,
        ),
        (
            406,
            "PRECONDITION_FAILED - message size 200 is larger than configured max size 100",
            "d",
            Verdict.REFUSED,
        ),
        (
            406,
            "PRECONDITION_FAILED - message size 200 larger than max size 100",
            "d",
            Verdict.REFUSED,
        ),
    ],
)
def test_the_culprit_is_found_by_what_rabbitmq_says(
    code: int, text: str, guilty: str, verdict: Verdict
) -> None:
    confirms = sent_all(
        outgoing("a"),
        outgoing("b", exchange="gone"),
        outgoing("c", key="k2"),
        outgoing("d", size=200),
    )
    found = blame(code, text, confirms)
    assert [o.publication.message.message_id for o in found.guilty] == [guilty]
    assert found.receipt.verdict is verdict
    assert text in found.receipt.reason
    assert not found.doubt


def test_when_nobody_fits_there_is_doubt_unless_there_is_only_one() -> None:
    found = blame(406, "PRECONDITION_FAILED - whatever", sent_all(outgoing("a"), outgoing("b")))
    assert (found.guilty, found.doubt) == ((), True)
    alone = outgoing("a")
    found = blame(406, "PRECONDITION_FAILED - whatever", sent_all(alone))
    assert (found.guilty, found.doubt) == ((alone,), False)


@given(st.integers(400, 599), st.text(max_size=80))
def test_any_text_is_understood_somehow(code: int, text: str) -> None:
    blame(code, text, sent_all(outgoing("a"), outgoing("b")))
