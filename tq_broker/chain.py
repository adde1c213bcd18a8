"""Chains: interceptors around the thing that they intercept, each of which has the next one.

What is intercepted is asked for by coroutines, and not every place has an event loop to run them
on: a blocking client, a synchronous activity and a query have none. There a coroutine is *driven*,
step by step on the caller's thread. It may await other coroutines and `Pause`, and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Generic, TypeVar

from tq_broker.exceptions import InvalidArgument

T = TypeVar("T")
K = TypeVar("K")

NO_LOOP = (
    "a coroutine awaits something of an event loop where there is none: interceptors of a blocking"
    " client, of synchronous activities and of queries may await nothing but next"
)


def check(argument: str, given: object, kind: type[K]) -> tuple[K, ...]:
    """Return ``given`` as a tuple, if all of it are interceptors of ``kind``.

    Raises:
        InvalidArgument: names ``argument`` and what is wrong.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise InvalidArgument(f"{argument} is {given!r:.80}; it must be a sequence of interceptors")
    checked = tuple(given)
    where = kind.__module__.rpartition(".")[0]  # the package that users import it from
    for index, one in enumerate(checked):
        if isinstance(one, type) and issubclass(one, kind):
            raise InvalidArgument(
                f"{argument}[{index}] is the class {one.__name__}; give an instance of it"
            )
        if not isinstance(one, kind):
            raise InvalidArgument(
                f"{argument}[{index}] is {one!r:.80}; it must be a {where}.{kind.__name__}"
            )
    return checked


def build(end: T, interceptors: Sequence[K], wrap: Callable[[K, T], T], kind: type[T]) -> T:
    """The first of a chain that ends in ``end``; the first interceptor is the outermost.

    Raises:
        InvalidArgument: an interceptor gave something that is no ``kind``.
    """
    first = end
    for interceptor in reversed(interceptors):
        first = wrap(interceptor, first)
        if not isinstance(first, kind):
            who = interceptor if isinstance(interceptor, type) else type(interceptor)
            raise InvalidArgument(
                f"interceptors: {who.__name__} gave {first!r:.80}; it must be a {kind.__name__}"
            )
    return first


# --- inputs -------------------------------------------------------------------------------------


def filled(kind: type[T], *said: Any, **own: Any) -> T:
    """An input of the dataclass ``kind``: its fields are ``own``, others those of ``said``."""
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        for value in said:
            if field.name not in own and hasattr(value, field.name):
                own[field.name] = getattr(value, field.name)
    return kind(**own)


def changed(said: T, by: Any) -> T:
    """The dataclass ``said`` with what ``by`` has fields for.

    What ``said`` alone has stays as it is, so that nothing gets lost on the way through a chain.
    """
    known = {field.name for field in dataclasses.fields(by)}
    names = [f.name for f in dataclasses.fields(said) if f.name in known]  # type: ignore[arg-type]
    return dataclasses.replace(said, **{n: getattr(by, n) for n in names})  # type: ignore[type-var]


# --- coroutines without an event loop -----------------------------------------------------------


class Pause(Generic[T]):
    """A call that blocks, awaited: it is made by whoever drives the coroutine."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], T]) -> None:
        self.call = call

    def __await__(self) -> Generator[Pause[T], T, T]:
        value = yield self
        return value


class Driven(Generic[T]):
    """A coroutine that is driven: begun at once, as far as its first pause.

    Raises whatever the coroutine raises, and `RuntimeError` if it needs an event loop.
    """

    __slots__ = ("_coroutine", "_pause", "_value")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._value: Any = None
        self._pause: Pause[Any] | None = None
        self._step(coroutine.send, None)

    def _step(self, step: Callable[[Any], Any], value: Any) -> None:
        self._pause = None
        try:
            awaited = step(value)
        except StopIteration as end:
            self._value = end.value
            return
        if not isinstance(awaited, Pause):
            self._coroutine.close()
            raise RuntimeError(NO_LOOP)
        self._pause = awaited

    def result(self) -> T:
        """Drive it to its end."""
        while self._pause is not None:
            try:
                value = self._pause.call()
            except BaseException as error:  # whatever it is, it is for the coroutine
                self._step(self._coroutine.throw, error)
            else:
                self._step(self._coroutine.send, value)
        result: T = self._value
        return result


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What ``coroutine`` returns; see `Driven`."""
    return Driven(coroutine).result()
