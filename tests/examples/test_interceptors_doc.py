"""The program of ``docs/interceptors.rst``, as it stands there."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

DOC = Path(__file__).parents[2] / "docs" / "interceptors.rst"


def blocks(mark: str) -> list[str]:
    """The indented texts that follow ``mark``."""
    found = re.findall(rf"{re.escape(mark)}\n\n((?:(?:   .*)?\n)+)", DOC.read_text())
    return [textwrap.dedent(block) for block in found]


def test_the_program_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks(".. code-block:: python")
    assert len(code) == 2
    program: dict[str, Any] = {"__name__": "program"}
    exec(compile("".join(code), str(DOC), "exec"), program)
    asyncio.run(asyncio.wait_for(program["main"](), 60))
    (printed,) = blocks("It prints::")
    assert capsys.readouterr().out == printed.rstrip("\n") + "\n"
