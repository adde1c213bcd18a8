"""Handlers of signals, queries and updates that are set while the workflow runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tq_broker.exceptions import InvalidArgument
from tq_broker.workflow.definition import HandlerUnfinishedPolicy, Kind, make_handler
from tq_broker.workflow.facts import UpdateInfo
from tq_broker.workflow.runtime import current

AnyFunction = Callable[..., Any]
WARN = HandlerUnfinishedPolicy.WARN_AND_ABANDON


def get_signal_handler(name: str) -> AnyFunction | None:
    """The handler of a signal now; ``None`` if it has none of its own."""
    return current().handler("signal", name)


def set_signal_handler(
    name: str, handler: AnyFunction | None, *, unfinished_policy: HandlerUnfinishedPolicy = WARN
) -> None:
    """Set or, with ``None``, remove a signal's handler. It gets at once what has come so far."""
    _set("signal", name, handler, unfinished_policy=unfinished_policy)


def get_dynamic_signal_handler() -> AnyFunction | None:
    """The handler of all signals that have none of their own."""
    return current().handler("signal", None)


def set_dynamic_signal_handler(
    handler: AnyFunction | None, *, unfinished_policy: HandlerUnfinishedPolicy = WARN
) -> None:
    """Set or remove it. It takes the name and a ``Sequence[RawValue]``."""
    _set("signal", None, handler, unfinished_policy=unfinished_policy)


def get_query_handler(name: str) -> AnyFunction | None:
    """The handler of a query now; ``None`` if it has none of its own."""
    return current().handler("query", name)


def set_query_handler(name: str, handler: AnyFunction | None) -> None:
    """Set or, with ``None``, remove a query's handler."""
    _set("query", name, handler)


def get_dynamic_query_handler() -> AnyFunction | None:
    """The handler of all queries that have none of their own."""
    return current().handler("query", None)


def set_dynamic_query_handler(handler: AnyFunction | None) -> None:
    """Set or remove it. It takes the name and a ``Sequence[RawValue]``."""
    _set("query", None, handler)


def get_update_handler(name: str) -> AnyFunction | None:
    """The handler of an update now; ``None`` if it has none of its own."""
    return current().handler("update", name)


def set_update_handler(
    name: str,
    handler: AnyFunction | None,
    *,
    validator: AnyFunction | None = None,
    unfinished_policy: HandlerUnfinishedPolicy = WARN,
) -> None:
    """Set or, with ``None``, remove an update's handler and its validator."""
    _check_validator(validator)
    _set("update", name, handler, validator=validator, unfinished_policy=unfinished_policy)


def get_dynamic_update_handler() -> AnyFunction | None:
    """The handler of all updates that have none of their own."""
    return current().handler("update", None)


def set_dynamic_update_handler(
    handler: AnyFunction | None,
    *,
    validator: AnyFunction | None = None,
    unfinished_policy: HandlerUnfinishedPolicy = WARN,
) -> None:
    """Set or remove it. Handler and validator take the name and a ``Sequence[RawValue]``."""
    _check_validator(validator)
    _set("update", None, handler, validator=validator, unfinished_policy=unfinished_policy)


def all_handlers_finished() -> bool:
    """Whether no signal or update handler is at work: wait for it before the workflow ends."""
    return current().all_handlers_finished()


def current_update_info() -> UpdateInfo | None:
    """The update whose handler or validator this is; ``None`` anywhere else."""
    return current().update_info()


def _check_validator(validator: AnyFunction | None) -> None:
    if validator is not None and inspect.iscoroutinefunction(validator):
        raise InvalidArgument("a validator must not be async")


def _set(kind: Kind, name: str | None, handler: AnyFunction | None, **more: Any) -> None:
    made = None
    if handler is not None:
        made = make_handler(kind, handler, name=name, dynamic=name is None, bound=0, **more)
    current().set_handler(kind, name, made)
