"""What commands print: tables on a terminal, tab-separated lines in a pipe, JSON on demand.

Rules of this file: results go to stdout and everything else to stderr; text that came from
elsewhere (names, arguments, reasons) is printed without control characters, which a terminal
would obey.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
GAP = "  "
WIDTH_MIN = 12
"""A column that does not fit is cut, but not below this."""


def visible(text: object) -> str:
    """``text`` on one line, without characters that do something to a terminal."""
    return "".join(
        " " if char in "\t\n\r" else char
        for char in str(text)
        if char in "\t\n\r" or unicodedata.category(char) not in _HIDDEN
    )


def visible_json(text: str) -> str:
    """The JSON ``text`` on one line, still of the same value: what `visible` drops is escaped."""
    return "".join(
        " "  # it stands between values: within strings JSON has it escaped
        if char in "\t\n\r"
        else json.dumps(char)[1:-1]
        if unicodedata.category(char) in _HIDDEN
        else char
        for char in text
    )


def say(text: str) -> None:
    """One line for people, on stderr, about a process that goes on whether they get it or not:
    the disk of a log may be full, and a terminal or the reader of a pipe gone."""
    with contextlib.suppress(OSError):
        click.echo(f"tq-broker: {text}", err=True)


def flush() -> None:
    """Hand over what stdout holds, before what would drop it; as `say`, or not at all."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()


@contextlib.contextmanager
def on_a_full_disk_silent() -> Iterator[None]:
    """For the first lines of a process: a full disk will have room again, and a process that was
    started anew must not end of it. A reader that is gone will not come back."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def leave_behind() -> None:
    """Drop what cannot be written at the end of this process. What had to be known has raised
    when it was printed; the interpreter would try once more, and make the exit code 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())


def age(seconds: float | None) -> str:
    """A duration for people: ``-`` if it is not known."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02}m"
    return f"{hours // 24}d{hours % 24}h"


@dataclass(frozen=True, slots=True)
class Output:
    """How to print.

    Attributes:
        as_json: JSON instead of anything else.
        is_terminal: Somebody looks: tables with a heading, cut to the width.
        color: Bold headings and coloured marks.
    """

    as_json: bool = False
    is_terminal: bool = False
    color: bool = False

    @classmethod
    def detect(cls, *, as_json: bool, no_color: bool) -> Output:
        """As stdout and the environment (``NO_COLOR``) want it."""
        is_terminal = sys.stdout.isatty()
        wants_none = no_color or bool(os.environ.get("NO_COLOR"))
        dumb = os.environ.get("TERM") == "dumb"
        return cls(as_json, is_terminal, is_terminal and not (wants_none or dumb))

    def rows(
        self,
        heading: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        data: Sequence[Mapping[str, Any]],
        empty: str = "",
    ) -> None:
        """Many things of a kind.

        Args:
            rows: Cells, one row per thing.
            data: The same for programs, one object per thing.
            empty: Said on stderr when there is none and somebody looks.
        """
        if self.as_json:
            self.json(list(data))
            return
        cells = [[visible(cell) for cell in row] for row in rows]
        if not self.is_terminal:
            for row in cells:
                click.echo("\t".join(row))
            return
        if not cells:
            if empty:
                click.echo(empty, err=True)
            return
        widths = _widths(heading, cells)
        click.echo(self.bold(_line(heading, widths)))
        for row in cells:
            click.echo(_line(row, widths))

    def record(self, fields: Sequence[tuple[str, object]], *, data: Mapping[str, Any]) -> None:
        """One thing: a line per field."""
        if self.as_json:
            self.json(data)
            return
        width = max((len(name) for name, _ in fields), default=0)
        for name, value in fields:
            text = visible(value)
            if self.is_terminal:
                click.echo(f"{self.bold(name.ljust(width))}{GAP}{text}")
            else:
                click.echo(f"{name}\t{text}")

    def done(self, text: str, *, data: Mapping[str, Any]) -> None:
        """What was done."""
        if self.as_json:
            self.json(data)
        else:
            click.echo(visible(text))

    def json(self, value: Any) -> None:
        """``value`` as JSON, in ASCII: nothing in it can reach the terminal unescaped."""
        click.echo(json.dumps(value, indent=2 if self.is_terminal else None, default=str))

    def bold(self, text: str) -> str:
        """``text``, bold if there is colour."""
        return click.style(text, bold=True) if self.color else text

    def colored(self, text: str, color: str) -> str:
        """``text`` in ``color``, if there is colour."""
        return click.style(text, fg=color) if self.color else text


def _widths(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    over = sum(widths) + len(GAP) * (len(widths) - 1) - shutil.get_terminal_size().columns
    while over > 0:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= WIDTH_MIN:
            break
        cut = min(over, widths[widest] - WIDTH_MIN)
        widths[widest] -= cut
        over -= cut
    return widths


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(
        (cell if len(cell) <= width else f"{cell[: width - 3]}...").ljust(width)
        for cell, width in zip(cells, widths, strict=True)
    ).rstrip()
