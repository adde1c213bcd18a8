"""Failures made of any exception, and exceptions made of any failure."""

from __future__ import annotations

import asyncio
import concurrent.futures
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import DURATION_MAX, RetryPolicy
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    ApplicationErrorCategory,
    CancelledError,
    ChildWorkflowError,
    RetryState,
    TerminatedError,
    TimeoutError,
    TimeoutType,
)
from tq_broker.model import failure as failures
from tq_broker.model.failure import Failure, FailureKind, from_exception, storable, to_exception
from tq_broker.retry import decide


def travel(failure: Failure) -> Failure:
    return msgspec.json.decode(msgspec.json.encode(failure), type=Failure)


def test_an_application_error_comes_back_as_it_was() -> None:
    error = ApplicationError(
        "alas",
        {"at": 3},
        [1],
        type="Sad",
        non_retryable=True,
        next_retry_delay=timedelta(seconds=1.5),
        category=ApplicationErrorCategory.BENIGN,
    )
    back = to_exception(travel(from_exception(error)))
    assert isinstance(back, ApplicationError)
    assert (back.message, list(back.details), back.type) == ("alas", [{"at": 3}, [1]], "Sad")
    assert back.non_retryable
    assert back.next_retry_delay == timedelta(seconds=1.5)
    assert back.category is ApplicationErrorCategory.BENIGN


def test_any_other_exception_becomes_an_application_error_of_its_class() -> None:
    failure = travel(from_exception(KeyError("x")))
    assert (failure.kind, failure.type) == (FailureKind.APPLICATION, "KeyError")
    assert failure.message == "'x'"


def test_a_class_is_never_looked_up_by_name() -> None:
    for name in ("ValueError", "os.system", "SystemExit", "tq_broker.exceptions.Bug"):
        back = to_exception(failures.application("x", name))
        assert type(back) is ApplicationError
        assert back.type == name


class Own(ApplicationError):
    """A class of the user's."""


def test_the_type_of_a_subclass_is_its_name() -> None:
    assert from_exception(Own("x")).type == "Own"
    assert from_exception(Own("x", type="Given")).type == "Given"


@pytest.mark.parametrize(
    "error",
    [
        CancelledError("stop"),
        asyncio.CancelledError("stop"),
        concurrent.futures.CancelledError("stop"),
    ],
)
def test_every_kind_of_cancellation_is_one(error: BaseException) -> None:
    failure = travel(from_exception(error))
    assert (failure.kind, failure.message) == (FailureKind.CANCELED, "stop")
    assert isinstance(to_exception(failure), CancelledError)
    assert failure.attempt(1).cancelled


def test_a_cancellation_without_a_word_gets_one() -> None:
    assert from_exception(asyncio.CancelledError()).message == "Cancelled"


def test_timeouts_and_terminations_come_back() -> None:
    timeout = to_exception(
        travel(
            from_exception(
                TimeoutError("late", type=TimeoutType.HEARTBEAT, last_heartbeat_details=[3])
            )
        )
    )
    assert isinstance(timeout, TimeoutError)
    assert (timeout.type, list(timeout.last_heartbeat_details)) == (TimeoutType.HEARTBEAT, [3])
    ended = to_exception(travel(from_exception(TerminatedError("over", 1))))
    assert isinstance(ended, TerminatedError)
    assert list(ended.details) == [1]


@pytest.mark.parametrize("kind", TimeoutType)
def test_a_timeout_of_ours_says_which(kind: TimeoutType) -> None:
    failure = travel(failures.timed_out(kind, ["d"]))
    assert failure.attempt(2).timeout is kind
    back = to_exception(failure)
    assert isinstance(back, TimeoutError)
    assert back.type is kind
    assert kind.name.lower().replace("_", "-") in back.message


def test_causes_are_chained_as_python_shows_them() -> None:
    def chained() -> None:
        try:
            raise KeyError("low")
        except KeyError as error:
            raise ValueError("high") from error

    with pytest.raises(ValueError, match="high") as caught:
        chained()
    back = to_exception(travel(from_exception(caught.value)))
    assert isinstance(back.cause, ApplicationError)
    assert (back.cause.type, back.cause.message) == ("KeyError", "'low'")


def test_an_error_raised_while_another_was_handled_has_it_for_a_cause() -> None:
    def confused(quiet: bool) -> None:
        try:
            raise KeyError("low")
        except KeyError:
            if quiet:
                raise ValueError("high") from None
            raise ValueError("high")  # noqa: B904

    for quiet, cause in ((False, "KeyError"), (True, None)):
        with pytest.raises(ValueError, match="high") as caught:
            confused(quiet)
        found = from_exception(caught.value).cause
        assert (found and found.type) == cause


def test_causes_are_bounded_also_when_they_go_round() -> None:
    first, second = ValueError("1"), ValueError("2")
    first.__cause__, second.__cause__ = second, first
    depth, failure = 0, travel(from_exception(first))
    while failure.cause is not None:
        depth, failure = depth + 1, failure.cause
    assert depth == failures.CAUSES_MAX


def test_a_failure_with_endless_causes_makes_a_bounded_exception() -> None:
    failure = failures.application("0", "T")
    for number in range(5000):
        failure = msgspec.structs.replace(failure, message=str(number), cause=failure)
    depth, error = 0, to_exception(failure)
    while error.__cause__ is not None:
        depth, error = depth + 1, error.__cause__  # type: ignore[assignment]
    assert depth == failures.CAUSES_MAX


class Hostile(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Unprintable:
    def __repr__(self) -> str:
        return "<unprintable>"


class Unreadable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def changed(error: ApplicationError, **attributes: Any) -> ApplicationError:
    """As a class of a user may leave it."""
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    "error",
    [
        Hostile(),
        ValueError("\ud800"),
        CancelledError("\ud800"),
        asyncio.CancelledError("\ud800"),
        TerminatedError("\ud800"),
        ApplicationError("x", "\ud800", Unprintable(), type="\udfff"),
        ApplicationError("x", type=ValueError),  # type: ignore[arg-type]
        ApplicationError(3),  # type: ignore[arg-type]
        ApplicationError("x", next_retry_delay=timedelta.max),
        ApplicationError("x", next_retry_delay=timedelta(0)),
        ApplicationError("x", Unreadable()),
        changed(ApplicationError("x"), next_retry_delay=5),
        changed(ApplicationError("x"), category=None),
        changed(ApplicationError("x"), details=7),
        ValueError("x" * 1_000_000),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
    ],
    ids=repr,
)
def test_whatever_was_raised_travels_and_can_be_decided_upon(error: BaseException) -> None:
    try:
        raise error
    except BaseException as caught:
        failure = travel(from_exception(caught))
    assert len(failure.message) <= failures.TEXT_MAX
    assert len(failure.stack_trace) <= failures.TEXT_MAX
    decide(RetryPolicy(), failure.attempt(1))
    to_exception(failure)


def test_what_cannot_be_read_of_an_error_is_told_and_costs_nothing_else() -> None:
    failure = from_exception(changed(ApplicationError("busy", type="Busy"), details=7))
    assert failure.message.startswith("busy (its fields cannot be read: TypeError: ")
    assert failure.type == "ApplicationError"


def test_a_detail_that_cannot_be_sent_is_described() -> None:
    failure = from_exception(ApplicationError("x", 1, Unprintable(), Unreadable()))
    assert failure.details == [1, "<unprintable>", "<repr() of Unreadable raised RuntimeError>"]


def test_what_a_history_cannot_keep_is_described() -> None:
    wei, deep = 10**20, [0]
    for _ in range(5_000):
        deep = [deep]  # type: ignore[list-item]
    cause = Failure(
        kind=FailureKind.ACTIVITY, message="low", about={"attempt": wei, "identity": "me"}
    )
    failure = Failure(
        kind=FailureKind.APPLICATION, message="high", details=[1, {"wei": wei}, deep], cause=cause
    )
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(storable(failure)), type=Failure)
    assert kept.details[:2] == [1, "{'wei': 100000000000000000000}"]
    assert isinstance(kept.details[2], str)
    assert kept.cause is not None
    assert kept.cause.about == {"attempt": "100000000000000000000", "identity": "me"}
    to_exception(kept)


def test_what_a_history_can_keep_is_left_as_it_is() -> None:
    failure = from_exception(ApplicationError("x", 2**63, {"at": 3}))
    assert storable(failure) is failure


_NUMBERS = st.none() | st.integers()


@given(_NUMBERS, _NUMBERS, st.integers(), st.integers(0, 50))
def test_a_history_can_keep_any_numbers_and_causes(
    delay_ms: int | None, timeout: int | None, category: int, depth: int
) -> None:
    failure = failures.application("x", "T")
    for _ in range(depth):
        failure = Failure(
            kind=FailureKind.APPLICATION,
            message="x",
            next_retry_delay_ms=delay_ms,
            category=category,
            timeout_type=timeout,
            cause=failure,
        )
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(storable(failure)), type=Failure)
    assert kept.attempt(1) == failure.attempt(1)
    assert kept.category == category or kept.category == 0


@given(
    st.sampled_from(FailureKind),
    st.none() | st.integers(-(2**62), 2**62),
    st.integers(-(2**62), 2**62),
    st.none() | st.integers(-(2**62), 2**62),
)
def test_numbers_that_nobody_knows_harm_nobody(
    kind: FailureKind, delay_ms: int | None, category: int, timeout: int | None
) -> None:
    failure = Failure(
        kind=kind,
        message="x",
        next_retry_delay_ms=delay_ms,
        category=category,
        timeout_type=timeout,
    )
    to_exception(failure)
    next_delay = failure.attempt(1).next_delay
    assert next_delay is None or timedelta(0) <= next_delay <= DURATION_MAX


def test_stack_traces_show_the_users_code() -> None:
    def mine() -> Any:
        raise ValueError("here")

    with pytest.raises(ValueError, match="here") as caught:
        mine()
    assert "in mine" in from_exception(caught.value).stack_trace


def test_our_own_failures_can_forbid_a_retry() -> None:
    assert failures.application("x", "T", non_retryable=True).attempt(1).non_retryable
    assert not failures.application("x", "T").attempt(1).non_retryable
    assert failures.canceled().attempt(1).cancelled


def test_activity_and_child_errors_come_back_with_their_facts_and_causes() -> None:
    error = ActivityError(
        "activity failed",
        activity_id="1",
        activity_type="pay",
        identity="me",
        attempt=3,
        retry_state=RetryState.TIMEOUT,
    )
    error.__cause__ = ApplicationError("no", type="Bad")
    child = ChildWorkflowError(
        "child workflow failed",
        workflow_id="w",
        run_id="r",
        workflow_type="W",
        namespace="default",
        initiated_event_id=5,
        started_event_id=6,
    )
    child.__cause__ = error
    back = to_exception(travel(from_exception(child)))
    assert isinstance(back, ChildWorkflowError)
    assert vars(back) == vars(child)
    assert isinstance(back.cause, ActivityError)
    assert vars(back.cause) == vars(error)
    assert isinstance(back.cause.cause, ApplicationError)


@pytest.mark.parametrize("kind", [FailureKind.ACTIVITY, FailureKind.CHILD_WORKFLOW])
def test_facts_that_are_missing_or_odd_do_no_harm(kind: FailureKind) -> None:
    odd = {"attempt": "many", "retry_state": [1], "initiated_event_id": None}
    error = to_exception(Failure(kind=kind, message="x", about=odd))
    assert isinstance(error, (ActivityError, ChildWorkflowError))
    assert error.retry_state is None
