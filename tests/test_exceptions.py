"""The tree of errors."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import re
from datetime import timedelta
from typing import Any

import pytest

from tq_broker import exceptions
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    BackOffScope,
    CancelledError,
    DeadlineExceeded,
    DownstreamBusy,
    InvalidArgument,
    PayloadTooLarge,
    RetryState,
    TimeoutError,
    TimeoutType,
    TqBrokerError,
)


def errors() -> dict[str, type[BaseException]]:
    return {
        name: value
        for name, value in vars(exceptions).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    }


def test_the_drawing_has_every_error_below_its_parent() -> None:
    assert exceptions.__doc__ is not None
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in exceptions.__doc__.splitlines():
        found = re.match(r"    ([ │├└─]*)([A-Z]\w+)(?: |$)", line)
        if not found:
            continue
        depth, name = len(found[1]), found[2]
        while above and above[-1][0] >= depth:
            above.pop()
        if above:
            drawn[name] = above[-1][1]
        above.append((depth, name))
    real = {
        name: next(base.__name__ for base in error.__bases__ if issubclass(base, TqBrokerError))
        for name, error in errors().items()
        if error is not TqBrokerError
    }
    assert drawn == real


@pytest.mark.parametrize("error", errors().values(), ids=errors())
def test_every_error_says_what_it_means(error: type[BaseException]) -> None:
    assert error.__doc__
    assert issubclass(error, TqBrokerError)


def test_errors_are_the_standard_librarys_where_there_are_such() -> None:
    assert issubclass(InvalidArgument, ValueError)
    assert issubclass(PayloadTooLarge, ValueError)
    assert issubclass(DeadlineExceeded, builtins.TimeoutError)
    # Code that cleans up after a cancellation may swallow neither by accident.
    assert not issubclass(CancelledError, asyncio.CancelledError)
    assert not issubclass(TimeoutError, builtins.TimeoutError)


def test_the_cause_is_the_one_that_was_raised_from() -> None:
    low = ApplicationError("low", 1, 2, type="Low")
    high = ActivityError("high", activity_id="a", activity_type="t", retry_state=RetryState.TIMEOUT)
    with pytest.raises(ActivityError) as caught:
        raise high from low
    assert caught.value.cause is low
    assert low.cause is None
    assert (low.message, list(low.details), low.type) == ("low", [1, 2], "Low")


def test_numbers_are_temporals() -> None:
    assert [int(kind) for kind in TimeoutType] == [1, 2, 3, 4]
    assert int(RetryState.CANCEL_REQUESTED) == 7


def test_a_timeout_says_which() -> None:
    error = TimeoutError("late", type=TimeoutType.HEARTBEAT, last_heartbeat_details=[3])
    assert (error.type, error.last_heartbeat_details) == (TimeoutType.HEARTBEAT, [3])


@pytest.mark.parametrize("wait", [timedelta(0), timedelta(seconds=-1), timedelta(days=2), 5])
def test_a_back_off_has_bounds(wait: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"retry_after is .* more than 0, at most 1 day"):
        DownstreamBusy("slow down", retry_after=wait)


@pytest.mark.parametrize("delay", [5, 1.5, timedelta(seconds=-1), "5s"])
def test_a_delay_that_is_none_is_refused_where_the_error_is_made(delay: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"next_retry_delay is .*timedelta of at least 0"):
        ApplicationError("x", next_retry_delay=delay)


def test_a_category_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="category is None; it must be"):
        ApplicationError("x", category=None)  # type: ignore[arg-type]


def test_a_back_off_is_for_a_task_queue_or_a_key() -> None:
    wait = timedelta(seconds=1)
    assert DownstreamBusy("no", retry_after=wait, scope="key").scope is BackOffScope.KEY  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"scope is .host.; it must be"):
        DownstreamBusy("no", retry_after=wait, scope="host")  # type: ignore[arg-type]


def test_a_back_off_is_an_application_error_with_a_later_attempt() -> None:
    error = DownstreamBusy("slow down", 429, retry_after=timedelta(seconds=30))
    assert isinstance(error, ApplicationError)
    assert (error.next_retry_delay, error.details) == (timedelta(seconds=30), (429,))
    assert error.scope is BackOffScope.TASK_QUEUE
