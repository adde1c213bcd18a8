"""What a call names: a workflow, signal, query or update, by its decorated function or its name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tq_broker.client.workflow_start import check_id
from tq_broker.exceptions import InvalidArgument
from tq_broker.workflow.definition import Function, Kind, definition_of, handler_of

_signature = functools.lru_cache(512)(inspect.signature)


@functools.lru_cache(512)
def _counts(function: Callable[..., Any]) -> range:
    """How many arguments ``function``, which has a decorator of ours, surely takes: to bind them
    takes long."""
    parameters = _signature(function).parameters.values()
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return range(sum(p.default is p.empty for p in plain), len(plain) + 1)


@dataclass(frozen=True, slots=True)
class Target:
    """Something of a workflow that can be called.

    Attributes:
        name: Under which it is known to workers.
        result_type: What its result is decoded as.
        function: ``None`` if it was given by name.
        defaults: What its decorator says about how it is started.
    """

    name: str
    result_type: Any
    function: Function | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def check_args(self, args: Sequence[Any]) -> Sequence[Any]:
        """Return ``args`` if it can be called with them, else raise `InvalidArgument`."""
        function = self.function
        if function is not None and len(args) + function.bound not in _counts(function.fn):
            own = (None,) * function.bound
            try:
                _signature(function.fn).bind(*own, *args)
            except TypeError as error:
                raise InvalidArgument(f"{self.name!r} cannot be called so: {error}") from None
        return args


def workflow_target(workflow: Any, result_type: Any = None) -> Target:
    """The workflow that a call names.

    Args:
        workflow: A decorated class, its run method, or the name of a workflow type.
        result_type: Wins over the type hint of the run method.

    Raises:
        InvalidArgument: it is none.
    """
    if isinstance(workflow, str):
        return Target(check_id("workflow", workflow), _hint(result_type))
    definition = definition_of(workflow)
    if definition.dynamic:
        raise InvalidArgument("a dynamic workflow is started by the name of a type")
    return Target(
        definition.name,
        _hint(result_type, definition.result_type),
        definition.run,
        definition.defaults,
    )


def handler_target(
    kind: Kind, handler: Callable[..., Any] | str, result_type: Any = None
) -> Target:
    """The signal, query or update that a call names; as `workflow_target`."""
    if isinstance(handler, str):
        return Target(check_id(kind, handler), _hint(result_type))
    found = handler_of(kind, handler)
    assert found.name is not None, "handler_of refuses dynamic ones"
    return Target(found.name, _hint(result_type, found.result_type), found)


def _hint(said: Any, known: Any = Any) -> Any:
    return known if said is None else said
