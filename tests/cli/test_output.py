from __future__ import annotations

import json

import pytest

from tq_broker.cli.output import Output, age, visible

TABLE = Output(is_terminal=True)
ROWS = [("a", 1), ("longer", 22)]
DATA = [{"n": "a"}, {"n": "longer"}]


def test_text_from_elsewhere_cannot_command_the_terminal() -> None:
    assert visible("a\x1b[31mb\u202ec\nd\te\x9bf\u00e9") == "a[31mbc d ef\u00e9"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0s"),
        (59.4, "59s"),
        (61, "1m01s"),
        (3_700, "1h01m"),
        (200_000, "2d7h"),
    ],
)
def test_ages_are_for_people(seconds: float | None, text: str) -> None:
    assert age(seconds) == text


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    TABLE.rows(("NAME", "COUNT"), ROWS, data=DATA)
    assert capsys.readouterr().out == "NAME    COUNT\na       1\nlonger  22\n"


def test_a_pipe_gets_fields_between_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows(("NAME", "COUNT"), ROWS, data=DATA)
    assert capsys.readouterr().out == "a\t1\nlonger\t22\n"


def test_a_program_gets_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).rows(("NAME", "COUNT"), ROWS, data=DATA)
    assert json.loads(capsys.readouterr().out) == DATA
    Output(as_json=True).record([("a", "b")], data={"a": "\x1b\u202e"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": "\x1b\u202e"}
    assert out.isascii()
    assert "\x1b" not in out


def test_an_empty_table_is_said_to_those_who_look(capsys: pytest.CaptureFixture[str]) -> None:
    TABLE.rows(("NAME",), [], data=[], empty="nothing")
    assert capsys.readouterr() == ("", "nothing\n")
    Output().rows(("NAME",), [], data=[], empty="nothing")
    assert capsys.readouterr() == ("", "")


def test_a_record_is_a_line_per_field(capsys: pytest.CaptureFixture[str]) -> None:
    TABLE.record([("a", 1), ("long", "x")], data={})
    assert capsys.readouterr().out == "a     1\nlong  x\n"
    Output().record([("a", 1)], data={})
    assert capsys.readouterr().out == "a\t1\n"


def test_what_was_done_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Output().done("3 dropped", data={"dropped": 3})
    Output(as_json=True).done("3 dropped", data={"dropped": 3})
    assert capsys.readouterr().out == '3 dropped\n{"dropped": 3}\n'


def test_a_table_is_cut_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    TABLE.rows(("NAME", "TEXT"), [("n", "x" * 100)], data=[])
    assert all(len(line) <= 30 for line in capsys.readouterr().out.splitlines())


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert Output.detect(as_json=False, no_color=False).color
    assert not Output.detect(as_json=False, no_color=True).color
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Output.detect(as_json=False, no_color=False).color
    assert Output(color=True).bold("x") != "x" == Output().bold("x")
    assert Output(color=True).colored("x", "red") != "x" == Output().colored("x", "red")
