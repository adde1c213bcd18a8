from __future__ import annotations

from datetime import timedelta

import click
import pytest

from tq_broker.cli.values import (
    DURATION,
    JSON_LIST,
    JSON_VALUE,
    NAMES,
    parse_duration,
    parse_requires,
    parse_route,
)
from tq_broker.common import OnGone, Requires, Route
from tq_broker.exceptions import InvalidArgument


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("100ms", 0.1), ("2h", 7200), ("1h30m", 5400), ("1.5s", 1.5)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "-5s", "5 s", "5w", "1s!", "9" * 30 + "d"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(InvalidArgument, match="duration"):
        parse_duration(text)


def test_routes_are_read() -> None:
    assert parse_route("host:web-1", "fail") == Route.host("web-1")
    assert parse_route("process:a:b", "fall-back") == Route.process("a:b", on_gone=OnGone.FALL_BACK)
    waiting = Route.host("x", on_gone=OnGone.WAIT, wait=timedelta(seconds=5))
    assert parse_route("host:x", "wait:5s") == waiting


@pytest.mark.parametrize(
    ("route", "on_gone"),
    [("web", "fail"), ("host:", "fail"), ("disk:x", "fail"), ("host:x", "wait"), ("host:x", "no")],
)
def test_other_texts_are_no_routes(route: str, on_gone: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_route(route, on_gone)


def test_options_are_converted() -> None:
    assert DURATION.convert("1s", None, None) == timedelta(seconds=1)
    assert NAMES.convert("a, b,,c", None, None) == ("a", "b", "c")
    assert JSON_VALUE.convert('{"a": 1}', None, None) == {"a": 1}
    assert JSON_LIST.convert("[1, 2]", None, None) == [1, 2]


@pytest.mark.parametrize(
    ("kind", "value", "match"),
    [
        (DURATION, "soon", "write 30s"),
        (JSON_VALUE, "ann", "a text is written '\"ann\"'"),
        (JSON_LIST, "3", "not a JSON list"),
    ],
)
def test_wrong_options_are_refused(kind: click.ParamType, value: str, match: str) -> None:
    with pytest.raises(click.BadParameter, match=match):
        kind.convert(value, None, None)


def test_requirements_and_their_answers() -> None:
    assert parse_requires((), "wait") is None
    assert parse_requires(["ssd", "gpu"], "wait") == Requires(("gpu", "ssd"))
    assert parse_requires(["gpu"], "fail") == Requires(("gpu",), OnGone.FAIL)
    waits = Requires(("gpu",), wait=timedelta(seconds=5))
    assert parse_requires(["gpu"], "wait:5s") == waits
    with pytest.raises(InvalidArgument, match="is not fail, fall-back or wait:30s"):
        parse_requires(["gpu"], "maybe")
    with pytest.raises(InvalidArgument, match="is not fail, fall-back or wait:30s"):
        parse_route("host:x", "wait")
