"""What is not overridden hands everything on."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from tq_broker.client.interceptors import Interceptor, OutboundInterceptor

METHODS = [name for name in vars(OutboundInterceptor) if not name.startswith("_")]


class Next:
    """Answers each call with its name and what it was given."""

    def __getattr__(self, name: str) -> Any:
        is_async = inspect.iscoroutinefunction(getattr(OutboundInterceptor, name))

        async def later(input: Any) -> Any:
            return name, input

        return later if is_async else lambda input: (name, input)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_hands_its_input_on_and_the_answer_back(name: str) -> None:
    input: Any = object()
    answer = getattr(OutboundInterceptor(Next()), name)(input)  # type: ignore[arg-type]
    expected = None if _returns_nothing(name) else (name, input)
    assert (asyncio.run(answer) if inspect.isawaitable(answer) else answer) == expected


def _returns_nothing(name: str) -> bool:
    return getattr(OutboundInterceptor, name).__annotations__["return"] == "None"


def test_an_interceptor_that_overrides_nothing_is_not_in_the_chain() -> None:
    next: Any = Next()
    assert Interceptor().intercept_client(next) is next
