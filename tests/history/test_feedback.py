from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.history.test_records import TASK, TO
from tq_broker.exceptions import DeadlineExceeded, Rejected, TargetGone, TqBrokerError
from tq_broker.history.feedback import feedback, instead
from tq_broker.history.records import (
    ActivityRecord,
    EventReplyRecord,
    Parked,
    ReplyRecord,
    TaskRecord,
)
from tq_broker.history.transaction import Sending
from tq_broker.model.message import Message
from tq_broker.model.requests import Done, Outcome, Refused
from tq_broker.model.tasks import Status
from tq_broker.model.workflow_tasks import TargetMissing, WorkflowTaskFailed
from tq_broker.queues.sender import NoRoute

LATE = DeadlineExceeded("late")
GONE = NoRoute("gone")
STICKY = msgspec.structs.replace(TASK, sticky="w1")
ACTIVITY = ActivityRecord("r", 5, 2, 100)


def told(record: Any, error: TqBrokerError) -> list[Any] | None:
    letters = feedback(Sending(record, 3, 1), error, is_gone=isinstance(error, NoRoute))
    return None if letters is None else [letter.content for letter in letters]


def test_whoever_asked_has_left() -> None:
    assert told(ReplyRecord(TO, Done()), GONE) == []


def test_a_sticky_queue_that_is_gone_has_given_its_task_up() -> None:
    assert told(TaskRecord(STICKY), GONE) == [STICKY]


@pytest.mark.parametrize(
    "record",
    [
        ReplyRecord(TO, Done()),
        TaskRecord(STICKY),
        TaskRecord(TASK),
        ACTIVITY,
        Parked(Message(body=b"", message_id="m")),
    ],
    ids=lambda record: type(record).__name__,
)
def test_what_may_work_later_is_tried_again(record: Any) -> None:
    assert told(record, LATE) is None


@pytest.mark.parametrize("record", [TaskRecord(TASK), ACTIVITY])
def test_a_queue_that_should_be_there_is_waited_for(record: Any) -> None:
    assert told(record, GONE) is None


def test_an_activity_that_cannot_be_put_anywhere_fails() -> None:
    (outcome,) = told(ACTIVITY, TargetGone("no such host")) or []
    assert isinstance(outcome, Outcome)
    assert (outcome.run_id, outcome.scheduled_event_id) == ("r", 5)
    assert (outcome.outcome.status, outcome.outcome.attempt) == (Status.FAILED, 2)
    assert outcome.outcome.failure is not None
    assert outcome.outcome.failure.type == "TargetGone"
    assert outcome.outcome.failure.non_retryable


def test_a_task_that_the_broker_refuses_fails() -> None:
    (failed,) = told(TaskRecord(TASK), Rejected("too large")) or []
    assert isinstance(failed, WorkflowTaskFailed)
    assert (failed.run, failed.scheduled_event_id) == (TASK.run, 2)


@pytest.mark.parametrize("record", [ReplyRecord(TO, Done()), EventReplyRecord("r", TO, 9)])
def test_who_asked_for_more_than_the_broker_takes_is_told_so(record: Any) -> None:
    error = Rejected("too large")
    small = instead(record, error)
    assert small is not None
    assert small.to == TO
    assert isinstance(small.answer, Refused)
    assert (small.answer.reason, "too large" in small.answer.message) == ("limit", True)
    assert instead(small, error) is None, "not for ever"
    assert told(small, error) == []


@pytest.mark.parametrize(
    ("record", "error"),
    [(ReplyRecord(TO, Done()), GONE), (ReplyRecord(TO, Done()), LATE), (ACTIVITY, Rejected("x"))],
)
def test_otherwise_nothing_else_is_answered(record: Any, error: TqBrokerError) -> None:
    assert instead(record, error) is None


def test_a_letter_to_be_parked_is_kept_until_the_broker_takes_it() -> None:
    assert told(Parked(Message(body=b"", message_id="m")), Rejected("no right to")) is None


def test_a_run_is_told_that_nobody_lives_who_may_have_its_task() -> None:
    (missing,) = told(TaskRecord(TASK), TargetGone("no such host")) or []
    assert missing == TargetMissing(TASK, "no such host")
