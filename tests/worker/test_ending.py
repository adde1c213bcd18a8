"""Which exceptions end a run, and how."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tq_broker.converter import DEFAULT
from tq_broker.exceptions import ActivityError, ApplicationError, CancelledError
from tq_broker.model.commands import CancelWorkflow, ContinueAsNew, FailWorkflow
from tq_broker.worker.conversion import Conversion
from tq_broker.worker.ending import ending, is_cancellation
from tq_broker.workflow.calls import Continuation
from tq_broker.workflow.errors import ContinueAsNewError


def cancelled_activity() -> ActivityError:
    error = ActivityError("x", activity_id="1", activity_type="a")
    error.__cause__ = CancelledError()
    return error


AGAIN = ContinueAsNewError(Continuation(workflow_type=None, args=[]))


@pytest.mark.parametrize(
    ("error", "requested", "types", "command"),
    [
        (ApplicationError("x"), False, (), FailWorkflow),
        (asyncio.TimeoutError(), False, (), FailWorkflow),
        (KeyError(), False, (), None),
        (KeyError(), False, (LookupError,), FailWorkflow),
        (asyncio.CancelledError(), True, (), CancelWorkflow),
        (asyncio.CancelledError(), False, (), None),
        (cancelled_activity(), True, (), CancelWorkflow),
        (cancelled_activity(), False, (), FailWorkflow),
        (CancelledError(), True, (), CancelWorkflow),
        (AGAIN, True, (), ContinueAsNew),
        (SystemExit(), False, (), None),
    ],
)
def test_the_table(error: BaseException, requested: bool, types: Any, command: type | None) -> None:
    found = ending(error, Conversion.of(DEFAULT), cancel_requested=requested, failure_types=types)
    assert (None if found is None else type(found)) is command


def test_a_cancellation_may_have_been_that_of_something_awaited() -> None:
    assert is_cancellation(cancelled_activity())
    assert not is_cancellation(ApplicationError("x"))
