"""The reporter: what follows from an end is told until the broker has it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.worker.attempts import place
from tq_broker.common import RetryPolicy
from tq_broker.converter import DataConverter, ZlibCodec
from tq_broker.exceptions import (
    BrokerBlocked,
    DeadlineExceeded,
    Rejected,
    TargetGone,
    TqBrokerError,
)
from tq_broker.model import envelope, failure
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.model.tasks import ActivityTask, Status, TaskBody, WorkflowOrigin
from tq_broker.queues.sender import NoRoute
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.insistence import INSIST_EVERY_S
from tq_broker.worker.reporter import Reporter

NAMES = Names("n")
REPLY = "tq.n.reply.c"
BODY = TaskBody(args=[])
BAD = failure.application("bad", "Bad")
ONCE = RetryPolicy(maximum_attempts=1)


class Sender:
    """Sends to a list; the answers are given beforehand, and all is well after them."""

    names = NAMES

    def __init__(self) -> None:
        self.sent: list[Publication] = []
        self.answers: list[TqBrokerError | None] = []

    def send(
        self, publication: Publication, needs: Any, deadline: float, done: Callable[[Any], None]
    ) -> None:
        self.sent.append(publication)
        done(self.answers.pop(0) if self.answers else None)


class Dispatcher:
    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.dispatched: list[tuple[ActivityTask, Message, int]] = []

    def dispatch(
        self, task: ActivityTask, message: Message, deadline: float, done: Any, *, delay_ms: int
    ) -> None:
        self.dispatched.append((task, message, delay_ms))
        done(self.sender.answers.pop(0) if self.sender.answers else None)


class Bench:
    def __init__(self, converter: DataConverter | None = None) -> None:
        self.clock = ManualClock()
        self.sender = Sender()
        self.dispatcher = Dispatcher(self.sender)
        self.converter = converter or DataConverter()
        self.reporter = Reporter(
            self.dispatcher,  # type: ignore[arg-type]
            NAMES,
            place(self.clock, self.converter),
        )
        self.done_count = 0

    def done(self) -> None:
        self.done_count += 1

    def outcomes(self) -> list[Any]:
        return [envelope.read_outcome(p.message, self.converter) for p in self.sender.sent]

    def fail(self, task: ActivityTask, failed: failure.Failure = BAD, **options: Any) -> None:
        self.reporter.failed(task, BODY, failed, 5, self.done, **options)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def task(**fields: Any) -> ActivityTask:
    return ActivityTask(
        **(
            {
                "activity_id": "a",
                "activity_type": "t",
                "task_queue": "q",
                "body": b'{"args":[]}',
                "reply_to": REPLY,
                "scheduled_ms": 1_700_000_000_000,
            }
            | fields
        )
    )


def test_a_result_is_told_to_the_caller(bench: Bench) -> None:
    bench.reporter.completed(task(attempt=2), b'{"x":1}', 5, bench.done)
    (publication,) = bench.sender.sent
    assert (publication.exchange, publication.routing_key) == (
        NAMES.exchange(Exchange.REPLIES),
        REPLY,
    )
    (outcome,) = bench.outcomes()
    assert (outcome.status, outcome.result, outcome.attempt) == (Status.COMPLETED, b'{"x":1}', 2)
    assert (outcome.identity, outcome.host, outcome.worker_id) == ("me@here", "here", "worker-1")
    assert (outcome.started_ms, outcome.finished_ms) == (5, int(bench.clock.wall() * 1000))
    assert bench.done_count == 1


def test_an_outcome_says_which_start_it_answers(bench: Bench) -> None:
    bench.reporter.completed(task(start_token="s-1"), b"1", 5, bench.done)
    assert [outcome.start_token for outcome in bench.outcomes()] == ["s-1"]


def test_a_result_with_an_id_is_kept_for_those_who_join(bench: Bench) -> None:
    bench.reporter.completed(task(id_retention_ms=1000), b"1", 5, bench.done)
    claim = str(NAMES.claim("q", "a"))
    assert [p.routing_key for p in bench.sender.sent] == [REPLY, claim]
    assert bench.done_count == 1


def test_a_result_that_nobody_wants_is_told_to_nobody(bench: Bench) -> None:
    bench.reporter.completed(task(reply_to=None), b"1", 5, bench.done)
    bench.reporter.notice(task(reply_to=None), Status.STARTED, bench.done)
    bench.fail(task(reply_to=None, retry_policy=ONCE))
    assert (bench.sender.sent, bench.done_count) == ([], 3)


def test_who_has_left_loses_only_its_own_answer(bench: Bench) -> None:
    bench.sender.answers = [NoRoute("gone"), None]
    bench.reporter.completed(task(id_retention_ms=1000), b"1", 5, bench.done)
    assert (len(bench.sender.sent), bench.done_count) == (2, 1)


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), BrokerBlocked("memory")])
def test_what_is_not_taken_is_sent_until_it_is(bench: Bench, error: TqBrokerError) -> None:
    bench.sender.answers = [error, error, error]
    bench.reporter.completed(task(), b"1", 5, bench.done)
    assert bench.done_count == 0
    for _ in range(3):
        bench.clock.advance(INSIST_EVERY_S)
    assert (len(bench.sender.sent), bench.done_count) == (4, 1)


def test_a_closed_reporter_insists_no_more(bench: Bench) -> None:
    bench.sender.answers = [DeadlineExceeded("late")] * 5
    bench.reporter.close()
    bench.reporter.completed(task(), b"1", 5, bench.done)
    bench.clock.advance(60)
    assert (len(bench.sender.sent), bench.done_count) == (1, 0)


def test_a_result_that_the_broker_refuses_becomes_a_failure(bench: Bench) -> None:
    bench.sender.answers = [Rejected("too large")]
    bench.reporter.completed(task(), b"1", 5, bench.done)
    refused = bench.outcomes()[1]
    assert (refused.status, refused.failure.type) == (Status.FAILED, "ResultRefused")
    assert bench.done_count == 1


def test_a_refused_failure_is_given_up(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.sender.answers = [Rejected("no"), Rejected("no")]
    bench.reporter.completed(task(), b"1", 5, bench.done)
    assert (len(bench.sender.sent), bench.done_count) == (2, 1)
    assert "not taken" in caplog.text


@pytest.mark.parametrize("status", [Status.STARTED, Status.HEARTBEAT])
def test_a_refused_notice_is_no_end(
    bench: Bench, status: Status, caplog: pytest.LogCaptureFixture
) -> None:
    bench.sender.answers = [Rejected("header too large")]
    bench.reporter.notice(task(), status, bench.done)
    assert [outcome.status for outcome in bench.outcomes()] == [status]
    assert f"notice {status.value!r} of a not taken: header too large" in caplog.text
    assert bench.done_count == 1


def test_details_that_are_too_large_are_left_out_and_the_failure_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(DataConverter(codecs=[ZlibCodec()]))
    noise = msgspec.Raw(b'"%s"' % random.Random(1).randbytes(100_000).hex().encode())
    of_workflow = task(
        workflow=WorkflowOrigin("w", "r", "W", "1", 5), reply_to=str(NAMES.history(3))
    )
    bench.reporter.notice(of_workflow, Status.HEARTBEAT, bench.done, heartbeat=[noise])
    bench.fail(of_workflow, heartbeat=[noise])
    told = [envelope.read_report(one.message) for one in bench.sender.sent]
    assert [outcome.status for outcome, _, _ in told] == [Status.HEARTBEAT, Status.FAILED]
    assert told[1][0].failure is not None
    assert (told[1][0].failure.type, told[1][0].failure.non_retryable) == ("Bad", False)
    assert [heartbeat for _, _, heartbeat in told] == [None, None]
    assert caplog.text.count("heartbeat details of a not told") == 2
    assert bench.done_count == 2


def test_a_result_that_is_too_large_becomes_a_failure() -> None:
    bench = Bench(DataConverter(bytes_max=400))
    bench.reporter.completed(task(), b'"' + b"x" * 1000 + b'"', 5, bench.done)
    (outcome,) = bench.outcomes()
    assert (outcome.status, outcome.failure.type) == (Status.FAILED, "PayloadTooLarge")


def test_a_failed_attempt_is_followed_by_the_next(bench: Bench) -> None:
    bench.fail(task(), heartbeat=[msgspec.Raw(b"7")])
    ((following, message, delay_ms),) = bench.dispatcher.dispatched
    assert (following.attempt, delay_ms, bench.done_count) == (2, 1000, 1)
    read = envelope.read_task(message, "q")
    assert read == following
    body = envelope.read_task_body(read, bench.converter)
    assert body.heartbeat == [msgspec.Raw(b"7")]
    assert body.failure is not None
    assert body.failure.type == "Bad"


def test_what_does_not_fit_is_left_out_of_the_next_attempt() -> None:
    bench = Bench(DataConverter(bytes_max=100))
    bench.fail(task(), failure.application("x" * 500, "Bad"))
    ((_, message, _),) = bench.dispatcher.dispatched
    assert message.body == b'{"args":[]}'


def test_a_retry_whose_target_is_gone_fails_the_activity(bench: Bench) -> None:
    bench.sender.answers = [TargetGone("no living worker")]
    bench.fail(task())
    (outcome,) = bench.outcomes()
    assert (outcome.status, outcome.failure.type) == (Status.FAILED, "TargetGone")
    assert outcome.failure.non_retryable
    assert bench.done_count == 1


@pytest.mark.parametrize(("category", "level"), [(0, logging.WARNING), (1, logging.DEBUG)])
def test_an_end_for_good_is_logged_as_loudly_as_it_deserves(
    bench: Bench, category: int, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        bench.fail(task(retry_policy=ONCE), msgspec.structs.replace(BAD, category=category))
    assert [record.levelno for record in caplog.records] == [level]
    assert caplog.messages[0].endswith("(MAXIMUM_ATTEMPTS_REACHED)"), "no line without a trace"
    (outcome,) = bench.outcomes()
    assert outcome.failure.message == "bad"


def test_a_task_is_given_back_as_a_fresh_copy(bench: Bench) -> None:
    message = envelope.task_message(task())
    dead = msgspec.structs.replace(message, headers={**message.headers, "x-death": [1]})
    bench.reporter.give_back(dead, NAMES.activity("q"), bench.done)
    (publication,) = bench.sender.sent
    assert publication.routing_key == "activity.q"
    assert publication.message == message
    assert bench.done_count == 1


def test_a_task_that_cannot_be_given_back_stays_in_hand(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.sender.answers = [Rejected("no")]
    bench.reporter.give_back(envelope.task_message(task()), NAMES.activity("q"), bench.done)
    assert bench.done_count == 0
    assert "not given back" in caplog.text


def test_a_parked_message_says_why_where_when_and_by_whom(bench: Bench) -> None:
    message = Message(body=b"garbage", message_id="1", headers={"mine": 1})
    bench.reporter.park(message, "tq.n.activity.q", "x" * 10_000, bench.done)
    (publication,) = bench.sender.sent
    assert publication.exchange == NAMES.exchange(Exchange.PARKED)
    assert publication.message.body == b"garbage"
    headers = publication.message.headers
    assert headers["mine"] == 1
    assert headers["tq-parked-reason"] == "x" * envelope.TEXT_MAX
    assert headers["tq-parked-from"] == "tq.n.activity.q"
    assert headers["tq-parked-by"] == "me@here"
    assert headers["tq-parked-ms"] == int(bench.clock.wall() * 1000)


def test_a_message_that_has_no_place_to_be_parked_is_not_dropped(bench: Bench) -> None:
    bench.sender.answers = [NoRoute("no parked queue")]
    bench.reporter.park(Message(body=b"", message_id="1"), "q", "bad", bench.done)
    assert bench.done_count == 0
    bench.clock.advance(INSIST_EVERY_S)
    assert bench.done_count == 1


def test_the_claim_of_an_id_belongs_to_its_task_queue() -> None:
    claim = NAMES.claim("q", "a")
    assert claim.kind is Kind.CLAIM
    assert claim == NAMES.claim("q", "a")
    assert claim != NAMES.claim("p", "a")
    assert claim != NAMES.claim("q", "b")
    assert NAMES.claim("ab", "c") != NAMES.claim("a", "bc")
