"""What the demo shows while it runs: a line per file that is drawn anew, or a line per step.

Rules of this file: it writes to stderr, because the result is the table on stdout; it is called
from one thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Protocol

import click

from tq_broker.cli.output import visible

_STEPS = {"downloaded": 1, "processed": 2, "uploaded": 3, "done": 4}
_BAR = 4
_UP = "\x1b[{}A"
_REST_OF_LINE = "\x1b[K"
_ROOM = 4
"""Lines of a terminal to leave for what stands above."""


class Stream(Protocol):
    """What is written to: stderr, or something that takes its place."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> object: ...


class DemoProgress:
    """Shows steps of files as they come.

    Args:
        is_live: A person looks at ``stream``, and it moves its cursor.
        color: Colours are welcome there.
    """

    def __init__(self, names: Sequence[str], stream: Stream, *, is_live: bool, color: bool) -> None:
        self._stream = stream
        self._color = color
        size = shutil.get_terminal_size()
        self._columns = size.columns
        self._is_live = is_live and len(names) <= size.lines - _ROOM
        self._lines = dict.fromkeys(names, (0, "waiting", "-"))
        self._width = max(map(len, names), default=0)
        self._drawn = 0

    def step(self, name: str, what: str, host: str) -> None:
        """``what`` was done with the file ``name`` on ``host``."""
        before = self._lines[name][0]
        count = 0 if "over" in what else _STEPS.get(what, before)
        self._lines[name] = (count, visible(what), host)
        if self._is_live:
            self._draw()
        else:
            self._write(f"{name}: {visible(what)} ({host})")

    def say(self, text: str) -> None:
        """Something that is not about one file."""
        if self._is_live and self._drawn:
            # Above the block, which moves down.
            self._stream.write(_UP.format(self._drawn) + _REST_OF_LINE)
            self._drawn = 0
        self._write(visible(text))
        if self._is_live:
            self._draw()

    def _draw(self) -> None:
        if self._drawn:
            self._stream.write(_UP.format(self._drawn))
        for name, (count, what, host) in self._lines.items():
            bar = "#" * count + "." * (_BAR - count)
            text = f"  {name:{self._width}}  {bar}  {host:8}  {what}"[: self._columns - 1]
            self._stream.write(self._colored(text, count, what) + _REST_OF_LINE + "\n")
        self._drawn = len(self._lines)
        self._stream.flush()

    def _colored(self, text: str, count: int, what: str) -> str:
        if not self._color:
            return text
        if what.startswith(("failed", "lost")):
            return click.style(text, fg="red")
        return click.style(text, fg="green") if count == _BAR else text

    def _write(self, line: str) -> None:
        self._stream.write(line + (_REST_OF_LINE if self._is_live else "") + "\n")
        self._stream.flush()
