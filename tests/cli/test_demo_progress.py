"""What the demo shows while it runs."""

from __future__ import annotations

import io

import pytest

from tq_broker.cli.demo_progress import DemoProgress


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "24")


def shown(*steps: tuple[str, str, str], live: bool = False, color: bool = False) -> str:
    stream = io.StringIO()
    progress = DemoProgress(["a", "bb"], stream, is_live=live, color=color)
    for step in steps:
        progress.step(*step)
    progress.say("said")
    return stream.getvalue()


def test_in_a_pipe_each_step_is_a_line() -> None:
    text = shown(("a", "downloaded", "host-1"), ("bb", "failed: no", "-"))
    assert text == "a: downloaded (host-1)\nbb: failed: no (-)\nsaid\n"


def test_on_a_terminal_the_files_stay_where_they_are() -> None:
    text = shown(("a", "downloaded", "host-1"), ("a", "processed", "host-1"), live=True)
    first, second, _ = text.split("\x1b[2A")
    assert "  a   #...  host-1    downloaded" in first
    assert "  bb  ....  -         waiting" in first
    assert "  a   ##..  host-1    processed" in second


def test_what_is_said_stands_above_the_files() -> None:
    text = shown(("a", "downloaded", "host-1"), live=True)
    last = text.split("\x1b[2A")[-1].split("\n")
    assert last[0].endswith("said\x1b[K")
    assert last[1].startswith("  a ")


def test_starting_over_empties_the_bar() -> None:
    text = shown(("a", "processed", "host-1"), ("a", "lost, starting over", "host-1"), live=True)
    assert "  a   ....  host-1    lost, starting over" in text


def test_colours_only_when_they_are_welcome() -> None:
    step = ("a", "done", "host-1")
    assert "\x1b[32m" in shown(step, live=True, color=True)
    assert "\x1b[32m" not in shown(step, live=True)


def test_no_line_is_longer_than_the_terminal_and_none_obeys_a_file() -> None:
    text = shown(("a", "failed: \x1b[2J" + "x" * 100, "h"), live=True)
    assert "\x1b[2J" not in text
    assert max(len(line) for line in text.replace("\x1b[K", "").split("\n")) < 66


def test_more_files_than_lines_are_plain_lines() -> None:
    stream = io.StringIO()
    names = [str(number) for number in range(30)]
    DemoProgress(names, stream, is_live=True, color=False).step("7", "done", "host-1")
    assert stream.getvalue() == "7: done (host-1)\n"
