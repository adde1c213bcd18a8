"""Option values: durations, lists, JSON and routes, read from what people type. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from tq_broker.common import OnGone, Requires, Route
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.affinity import AFFINITY_OPTIONS
from tq_broker.model.capabilities import check_requires

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+\Z")

if TYPE_CHECKING:
    _Duration = click.ParamType[timedelta]
    _Names = click.ParamType[tuple[str, ...]]
    _Value = click.ParamType[Any]
    _Pair = click.ParamType[tuple[str, str]]
else:
    _Duration = _Names = _Value = _Pair = click.ParamType


def parse_duration(text: str) -> timedelta:
    """``30s``, ``5m``, ``100ms``, ``2h``, ``1h30m``. Raises `InvalidArgument`."""
    if not _DURATION.match(text):
        raise InvalidArgument(f"{text!r} is not a duration; write 30s, 5m, 100ms or 1h30m")
    try:
        return sum(
            (float(number) * _UNITS[unit] for number, unit in _PART.findall(text)), timedelta(0)
        )
    except OverflowError:
        raise InvalidArgument(f"{text!r} is too long a duration") from None


def parse_on_gone(text: str) -> tuple[OnGone, timedelta | None]:
    """``fail``, ``fall-back``, ``wait`` or ``wait:30s``. Raises `InvalidArgument`."""
    word, _, pause = text.partition(":")
    if word == "wait" and pause:
        return OnGone.WAIT, parse_duration(pause)
    answers = {"fail": OnGone.FAIL, "fall-back": OnGone.FALL_BACK, "wait": OnGone.WAIT}
    if text not in answers:
        raise InvalidArgument(f"{text!r} is not fail, fall-back or wait:30s")
    return answers[text], None


def parse_requires(names: Sequence[str], on_unserved: str) -> Requires | None:
    """What ``--requires`` and ``--on-unserved`` say; ``None`` for no names.

    Raises:
        InvalidArgument: names what is wrong.
    """
    if not names:
        return None
    return check_requires(Requires(tuple(names), *parse_on_gone(on_unserved)))


def parse_affinity(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--affinity``, ``--affinity-group`` and ``--on-lost`` say, as options."""
    return {
        name: word if name == "affinity_group" else word.replace("-", "_")
        for name in AFFINITY_OPTIONS
        if (word := keywords[name]) is not None
    }


def parse_route(text: str, on_gone: str) -> Route:
    """``host:NAME``, ``process:WORKER_ID`` or ``version:DEPLOYMENT.BUILD_ID``; and ``fail``,
    ``fall-back`` or ``wait:30s``, which is not asked for a version.

    Raises:
        InvalidArgument: it is none of them.
    """
    kind, _, target = text.partition(":")
    if kind == "version":
        return Route.version(target)
    makers = {"host": Route.host, "process": Route.process}
    if kind not in makers or not target:
        raise InvalidArgument(
            f"{text!r} is not a route; write host:NAME, process:WORKER_ID or version:NAME.BUILD"
        )
    answer, wait = parse_on_gone(on_gone)
    if answer is OnGone.WAIT and wait is None:
        raise InvalidArgument(f"{on_gone!r} is not fail, fall-back or wait:30s")
    return makers[kind](target, on_gone=answer, wait=wait)


class Duration(_Duration):
    """An option such as ``30s``."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(str(value).strip())
        except InvalidArgument as error:
            self.fail(f"{error}", param, ctx)


class NameList(_Names):
    """An option such as ``a,b``; may be given several times."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if not isinstance(value, str):
            return tuple(value)
        return tuple(part.strip() for part in value.split(",") if part.strip())


class JsonValue(_Value):
    """An option that is JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            hint = f"; a text is written '\"{value}\"'" if value.isalnum() else ""
            self.fail(f"{value!r:.80} is not JSON: {error}{hint}", param, ctx)


class JsonList(JsonValue):
    """An option that is a JSON list."""

    name = "json list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not isinstance(found, list):
            self.fail(f"{value!r:.80} is not a JSON list, such as '[1, \"two\"]'", param, ctx)
        return found


class NamedText(_Pair):
    """An option such as ``name=text``; may be given several times."""

    name = "k=v"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if not isinstance(value, str):
            return value[0], value[1]
        name, equals, text = value.partition("=")
        if not name or not equals:
            self.fail(f"{value!r:.80} is not a name and a text; write tenant=acme", param, ctx)
        return name, text


DURATION = Duration()
NAMES = NameList()
JSON_VALUE = JsonValue()
JSON_LIST = JsonList()
TEXTS = NamedText()
