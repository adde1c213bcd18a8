"""An instance of any struct, with every field set to something that is not its default."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec import inspect


def sample(of: type) -> Any:
    """One ``of``, complete down to its last part."""
    return msgspec.convert(_build(inspect.type_info(of), 3), of, builtin_types=(bytes,))


@functools.singledispatch
def _build(info: Any, depth: int) -> Any:
    raise AssertionError(f"no sample of {info}")


@_build.register
def _(info: inspect.StructType, depth: int) -> Any:
    values = {field.encode_name: _build(field.type, depth - 1) for field in info.fields}
    if info.array_like:
        return list(values.values())
    return values | ({info.tag_field: info.tag} if info.tag_field else {})


@_build.register
def _(info: inspect.UnionType, depth: int) -> Any:
    # The last of the alternatives is where recursion ends.
    some = [one for one in info.types if not isinstance(one, inspect.NoneType)]
    return None if info.includes_none and depth <= 0 else _build(some[0], depth)


@_build.register
def _(info: inspect.ListType, depth: int) -> Any:
    return [] if depth <= 0 else [_build(info.item_type, depth)]


@_build.register
def _(info: inspect.DictType, depth: int) -> Any:
    return {_build(info.key_type, depth): _build(info.value_type, depth)}


@_build.register
def _(info: inspect.EnumType, _depth: int) -> Any:
    return list(info.cls)[-1].value


@_build.register
def _(_info: inspect.StrType, _depth: int) -> Any:
    return "täxt"


@_build.register
def _(_info: inspect.IntType, _depth: int) -> Any:
    return 2**40


@_build.register
def _(_info: inspect.FloatType, _depth: int) -> Any:
    return 2.5


@_build.register
def _(_info: inspect.BoolType, _depth: int) -> Any:
    return True


@_build.register
def _(_info: inspect.BytesType, _depth: int) -> Any:
    return b"\x00a\x00\xff"


@_build.register
def _(_info: inspect.AnyType, _depth: int) -> Any:
    return {"any": [1, None]}
