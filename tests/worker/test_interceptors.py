"""What is not overridden hands everything on."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from tq_broker.worker.interceptors import (
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

KINDS = [
    ActivityInboundInterceptor,
    ActivityOutboundInterceptor,
    WorkflowInboundInterceptor,
    WorkflowOutboundInterceptor,
]
METHODS = [(kind, name) for kind in KINDS for name in vars(kind) if not name.startswith("_")]


class Next:
    """Notes each call; answers with its name."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any) -> Any:
            self.calls.append((name, given))
            is_async = inspect.iscoroutinefunction(getattr(self.kind, name))
            return asyncio.sleep(0, name) if is_async else name

        return call


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_a_method_hands_its_input_on_and_the_answer_back(kind: Any, name: str) -> None:
    next = Next(kind)
    given = () if name == "info" else (object(),)
    method = getattr(kind(next), name)
    answer = method(*given)
    value = asyncio.run(answer) if inspect.isawaitable(answer) else answer
    assert next.calls == [(name, given)]
    returns = getattr(kind, name).__annotations__["return"]
    assert value == (None if returns in ("None", "NoReturn") else name)


def test_an_interceptor_that_overrides_nothing_intercepts_nothing() -> None:
    next: Any = object()
    assert Interceptor().intercept_activity(next) is next
    assert Interceptor().workflow_interceptor_class(WorkflowInterceptorClassInput()) is None
