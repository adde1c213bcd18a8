"""The guide to routing is true: its code runs, in order, and its table is that of the router."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tq_broker.client.traffic import TrafficOperations
from tq_broker.model.precedence import OPTIONS

GUIDE = Path(__file__).parent.parent / "docs" / "routing.rst"
BLOCK = re.compile(r"^\.\. code-block:: python\n\n((?:(?:   .*)?\n)+)", re.MULTILINE)
OF_OTHERS = ": ..."
"""Blocks that only sketch something say so."""


def blocks() -> Iterator[tuple[int, str]]:
    """Each block of code with the line that it stands at."""
    text = GUIDE.read_text()
    for found in BLOCK.finditer(text):
        yield text[: found.start(1)].count("\n"), textwrap.dedent(found.group(1))


def test_the_code_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in (TrafficOperations.set, TrafficOperations.rehearse):
        # Here workers answer sooner than an operator would wait for them.
        assert method.__kwdefaults__ is not None
        monkeypatch.setitem(method.__kwdefaults__, "wait_s", 0.1)
    names: dict[str, Any] = {}
    ran = 0
    for line, code in blocks():
        if OF_OTHERS in code:
            continue
        exec(compile("\n" * line + code, str(GUIDE), "exec"), names)
        ran += 1
    names["client"].close()
    assert ran >= 5


def test_the_table_of_options_is_that_of_the_router() -> None:
    rows = {
        match[1]: (match[2], match[3], match[4].split(",")[0].split(" ")[0])
        for match in re.finditer(
            r"^``(\w+)`` +(yes|-) +(yes|-) +(.+)$", GUIDE.read_text(), re.MULTILINE
        )
    }
    assert rows.keys() == OPTIONS.keys()
    for name, option in OPTIONS.items():
        at_activity, at_workflow, inherited = rows[name]
        assert (at_activity == "yes") == option.at_activity_defn, name
        assert (at_workflow == "yes") == option.at_workflow_defn, name
        assert (inherited == "yes") == option.is_inherited, name
