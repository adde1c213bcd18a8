"""The activities a worker has, by type, with everything about them that is worked out once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from tq_broker.activity import ActivityDefinition, definition_of
from tq_broker.common import RawValue
from tq_broker.converter import PayloadConverter
from tq_broker.exceptions import InvalidArgument
from tq_broker.worker.activity_chain import intercepted
from tq_broker.worker.interceptors import Interceptor

Decoder = Callable[[bytes | memoryview], Any]


class Registered:
    """An activity with the decoders of its arguments."""

    __slots__ = ("_any", "_converter", "_decoders", "definition", "fn", "where")

    def __init__(
        self,
        definition: ActivityDefinition,
        converter: PayloadConverter,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self.definition = definition
        self.fn = intercepted(definition, interceptors) if interceptors else definition.fn
        self.where: str = "async" if definition.is_async else definition.executor
        """The executor that runs it: ``async``, ``thread`` or ``process``."""
        self._converter = converter
        self._decoders: tuple[Decoder, ...] = tuple(map(converter.decoder, definition.arg_types))
        self._any = converter.decoder(Any)

    def arguments(self, raws: Sequence[msgspec.Raw]) -> list[Any]:
        """Decoded arguments. Raises `Malformed` if one does not fit its type hint."""
        if self.definition.dynamic:
            return [[RawValue(bytes(raw), self._converter) for raw in raws]]
        decoders, more = self._decoders, self._any
        return [(decoders[i] if i < len(decoders) else more)(raw) for i, raw in enumerate(raws)]


class Registry:
    """Activities by type. A dynamic one serves the types that have none of their own."""

    def __init__(
        self,
        activities: Iterable[Any],
        converter: PayloadConverter,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self._by_type: dict[str, Registered] = {}
        self._dynamic: Registered | None = None
        for activity in activities:
            definition = definition_of(activity)
            # Those of a process of its own are called there, around the function itself.
            called_here = interceptors if definition.executor == "thread" else ()
            self._add(Registered(definition, converter, called_here))
        self.types: tuple[str, ...] = tuple(sorted(self._by_type))

    def _add(self, registered: Registered) -> None:
        definition = registered.definition
        if isinstance(definition.fn, type):
            raise InvalidArgument(
                f"activity {definition.name} is a class; register an instance of it"
            )
        if definition.needs_instance:
            raise InvalidArgument(
                f"activity {definition.name} is {definition.fn.__qualname__}, a method without its"
                " instance; register that of an instance"
            )
        if definition.dynamic:
            if self._dynamic is not None:
                raise InvalidArgument("More than one dynamic activity")
            self._dynamic = registered
        elif definition.name in self._by_type:
            raise InvalidArgument(f"More than one activity named {definition.name}")
        else:
            self._by_type[definition.name] = registered

    def find(self, activity_type: str) -> Registered | None:
        """The activity that serves ``activity_type``, if one does."""
        return self._by_type.get(activity_type, self._dynamic)

    @property
    def has_dynamic(self) -> bool:
        """Whether it serves every type."""
        return self._dynamic is not None

    def definitions(self) -> list[ActivityDefinition]:
        """All definitions, the dynamic one included."""
        found = [registered.definition for registered in self._by_type.values()]
        return found + ([self._dynamic.definition] if self._dynamic else [])

    def __len__(self) -> int:
        return len(self.definitions())
