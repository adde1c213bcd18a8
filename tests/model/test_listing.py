"""The language of lists: what its words mean, and where its errors are."""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.listing import Condition, Filter, parse
from tq_broker.model.requests import Status

quoted = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
moments = st.datetimes(timezones=st.just(timezone.utc))


def quote(text: str, mark: str = '"') -> str:
    return mark + text.replace("\\", "\\\\").replace(mark, "\\" + mark) + mark


@st.composite
def conditions(draw: st.DrawFn) -> tuple[str, Condition]:
    """A condition as it is written, and what it means."""
    mark = draw(st.sampled_from("\"'"))
    kind = draw(st.sampled_from(["choice", "in", "prefix", "time"]))
    if kind == "time":
        name, field = draw(st.sampled_from([("start_time", "start_ms"), ("CloseTime", "close_ms")]))
        op = draw(st.sampled_from(["<", "<=", ">", ">=", "="]))
        moment = draw(moments).replace(microsecond=0)
        return (
            f"{name}{op}{quote(moment.isoformat(), mark)}",
            Condition(field, op, int(moment.timestamp()) * 1000),
        )
    if kind == "prefix":
        text = draw(quoted)
        return f"id STARTS_WITH {quote(text, mark)}", Condition("workflow_id", "starts_with", text)
    name, field = draw(
        st.sampled_from(
            [
                ("type", "workflow_type"),
                ("TaskQueue", "task_queue"),
                ("ID", "workflow_id"),
                ("version", "deployment_version"),
            ]
        )
    )
    if kind == "in":
        texts = draw(st.lists(quoted, min_size=1, max_size=3))
        listed = " , ".join(quote(text, mark) for text in texts)
        return f"{name} in({listed})", Condition(field, "in", tuple(texts))
    text = draw(quoted)
    return f"{name} = {quote(text, mark)}", Condition(field, "=", text)


@given(st.lists(conditions(), max_size=5), st.booleans())
def test_what_is_written_is_what_is_read(
    written: list[tuple[str, Condition]], by_status: bool
) -> None:
    text = " AND\n".join(text for text, _ in written) + (" group by status" if by_status else "")
    assert parse(text) == Filter(tuple(condition for _, condition in written), by_status)


@given(st.text(alphabet="ab=<>!(),\"'\\ \nin and status type id0.é", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidArgument):
        assert isinstance(parse(text), Filter)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 'red'", "query, character 1: a field .*, not 'colour'"),
        ("type", "character 5: = or != or in after type expected, not the end"),
        ("type < 'a'", "character 6: .* not '<'"),
        ("id != 'a'", "character 4"),
        ("type = Order", "character 8: a text in quotes expected, not 'Order'"),
        ("type = 'Order", "character 8: .*ends with its quote"),
        ("type in 'a'", r"character 9: '\('"),
        ("type in ('a' 'b')", r"character 14: '\)'"),
        ("type in ()", "character 10: a text"),
        ("status = 'sleeping'", "character 10: a status .running.*, not \"'sleeping'\""),
        ("start_time > 'yesterday'", "character 14: a time such as"),
        ("start_time > '2026-01-31T00:00:00'", "character 14: a time"),
        ("type = 'a' or type = 'b'", "character 12: 'and' or the end"),
        ("type = 'a' and", "character 15: a field .* not the end"),
        ("group by type", "character 10: 'status'"),
        ("type = 'a' group by status and", "character 28"),
        ("1 = 1", "character 1: "),
        ("  ; drop", "character 3: "),
        (" and ".join(["type = 'a'"] * 51), "no more than 50"),
        ("type = '" + "a" * 10_000 + "'", "10009 characters"),
    ],
)
def test_an_error_says_where_and_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        parse(text)


@pytest.mark.parametrize("word", ["timed_out", "TimedOut", "TIMED_OUT"])
def test_statuses_have_temporals_names_too(word: str) -> None:
    assert parse(f"ExecutionStatus = '{word}'") == parse("status = 'timed_out'")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("1970-01-02", 86_400_000),
        ("1970-01-01T01:00:00.5+01:00", 500),
        ("1970-01-01T00:00:01z", 1000),
        ("1969-12-31T23:59:59.999+00:00", -1),
    ],
)
def test_times_are_of_an_offset(text: str, milliseconds: int) -> None:
    assert parse(f"start_time = '{text}'").conditions[0].value == milliseconds


@given(moments)
def test_every_moment_is_a_time(moment: datetime) -> None:
    assert parse(f"start_time = '{moment.isoformat()}'").conditions


def test_an_open_run_has_no_close_time() -> None:
    row = SimpleNamespace(close_ms=0, status=Status.RUNNING)
    assert not parse("close_time < '2100-01-01'").matches(row)
    assert parse("status in ('running', 'failed')").matches(row)


@pytest.mark.parametrize("text", ["id = 'a\0b'", "id = '\ud800'"])
def test_what_no_database_takes_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="query"):
        parse(text)
