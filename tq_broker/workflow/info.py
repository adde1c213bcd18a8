"""What workflow code asks about its own run, and what it tells the world about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tq_broker.converter import PayloadConverter
from tq_broker.workflow.calls import UNSET
from tq_broker.workflow.facts import Info
from tq_broker.workflow.runtime import current


def info() -> Info:
    """About the current run. Raises `RuntimeError` outside a workflow, as do all below."""
    return current().info


def payload_converter() -> PayloadConverter:
    """The worker's payload converter."""
    return current().payload_converter


def extern_functions() -> Mapping[str, Callable[..., Any]]:
    """What the worker's interceptors have put there for workflow code. It is called as it is: what
    is not deterministic belongs into a block of ``workflow.unsafe.sandbox_unrestricted()``."""
    return current().extern_functions


def cancellation_reason() -> str | None:
    """Why cancellation was requested; ``None`` if it was not."""
    return current().cancellation_reason


def memo() -> Mapping[str, Any]:
    """The memo, as plain JSON values."""
    return current().memo()


def memo_value(key: str, default: Any = UNSET, *, type_hint: Any = Any) -> Any:
    """One value of the memo.

    Raises:
        KeyError: there is none, and no ``default`` was given.
    """
    try:
        return current().memo_value(key, type_hint)
    except KeyError:
        if default is UNSET:
            raise
        return default


def upsert_memo(updates: Mapping[str, Any]) -> None:
    """Change the memo; ``None`` as a value removes the key."""
    current().upsert_memo(updates)


def has_last_completion_result() -> bool:
    """Whether the run before, of a cron schedule or a continuation, had a result."""
    return current().has_last_completion_result()


def get_last_completion_result(type_hint: Any = Any) -> Any | None:
    """The result of the run before; ``None`` without one."""
    return current().last_completion_result(type_hint)


def get_last_failure() -> BaseException | None:
    """How the run before failed; ``None`` if it did not."""
    return current().last_failure()


def get_current_details() -> str:
    """What `set_current_details` was last given."""
    return current().current_details()


def set_current_details(description: str) -> None:
    """Text for people about where the run stands now; shown when the workflow is described."""
    current().set_current_details(description)
