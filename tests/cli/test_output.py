from __future__ import annotations

import errno
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import FullDisk
from tq_broker.cli import output
from tq_broker.cli.output import Output, age, visible, visible_json

TABLE = Output(is_terminal=True)
ROWS = [("a", 1), ("longer", 22)]
DATA = [{"n": "a"}, {"n": "longer"}]


def test_text_from_elsewhere_cannot_command_the_terminal() -> None:
    assert visible("a\x1b[31mb\u202ec\nd\te\x9bf\u00e9") == "a[31mbc d ef\u00e9"


@given(st.text(st.characters(exclude_categories=["Cs"])))
@pytest.mark.parametrize("indent", [None, "\t"])
def test_json_that_is_shown_stays_what_it_is(indent: str | None, text: str) -> None:
    shown = visible_json(json.dumps([text], ensure_ascii=False, indent=indent))
    assert json.loads(shown) == [text]
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Zl", "Zp"}


def test_only_what_commands_a_terminal_is_escaped() -> None:
    assert visible_json('["\u200c\x9b\U000e0001 \u00e9"]') == (
        r'["\u200c\u009b\udb40\udc01 ' + '\u00e9"]'
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE, errno.EIO])
def test_a_process_goes_on_when_nobody_can_be_told(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("sys.stderr", FullDisk(number))
    monkeypatch.setattr("sys.stdout", FullDisk(number))
    output.say("warm shutdown")
    output.flush()


def test_a_full_disk_will_have_room_again_and_a_reader_that_is_gone_will_not_come_back() -> None:
    with output.on_a_full_disk_silent():
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(BrokenPipeError), output.on_a_full_disk_silent():
        raise OSError(errno.EPIPE, "Broken pipe")


def test_what_cannot_be_handed_over_at_the_end_is_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Found: the interpreter tries once more, and leaves with 120."""
    with (tmp_path / "log").open("w") as log:
        stream = FullDisk(errno.ENOSPC, log.fileno())
        monkeypatch.setattr("sys.stderr", stream)
        output.leave_behind()
        with open(os.devnull) as nowhere:
            assert os.path.sameopenfile(log.fileno(), nowhere.fileno())


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
