"""Errors of workflow code: who catches what."""

from __future__ import annotations

from tq_broker import workflow
from tq_broker.exceptions import FailureError, TqBrokerError
from tq_broker.workflow.errors import BeingEvictedError


def test_what_ends_a_run_is_not_caught_with_exceptions() -> None:
    for error in (workflow.ContinueAsNewError, BeingEvictedError):
        assert not issubclass(error, Exception)


def test_mistakes_of_the_code_are_no_failures_of_the_workflow() -> None:
    for error in (
        workflow.NondeterminismError,
        workflow.ReadOnlyContextError,
        workflow.RestrictedWorkflowAccessError,
    ):
        assert issubclass(error, TqBrokerError)
        assert not issubclass(error, FailureError)
    assert issubclass(workflow.RestrictedWorkflowAccessError, workflow.NondeterminismError)
