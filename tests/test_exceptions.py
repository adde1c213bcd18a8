"""The tree of errors."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import re

import pytest

from tq_broker import exceptions
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    DeadlineExceeded,
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
