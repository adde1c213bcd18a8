"""Report: the tables, from samples; as text for people, as RST for the README, as JSON.

Pure: samples in, text out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.catalogue import OURS, TABLES, Flow, Row, Table
from benchmarks.order import Sample


@dataclass(slots=True)
class Outcome:
    """All that became of one row: its samples, or why it has none."""

    row: Row
    samples: list[Sample] = field(default_factory=list)
    failure: str = ""

    def median(self, figure: str) -> float:
        return statistics.median(sample.figures[figure] for sample in self.samples)

    @property
    def figures(self) -> dict[str, float]:
        """The median of each figure."""
        return {figure: self.median(figure) for figure in self.samples[0].figures}


def as_text(outcomes: Sequence[Outcome]) -> str:
    """The tables for a terminal."""
    parts = []
    for name, table, members in _tables(outcomes):
        lines = [[table.title, "", "", ""], *_lines(table, members)]
        parts.append(f"[{name}]\n" + _aligned(lines))
    return "\n\n".join(parts)


def as_rst(outcomes: Sequence[Outcome]) -> str:
    """The tables for the README."""
    parts = []
    for _, table, members in _tables(outcomes):
        head = [".. list-table:: " + table.title, "   :header-rows: 1", ""]
        rows = [["who", _heading(table), "tq_broker is", "settings"], *_lines(table, members)]
        body = [
            f"   {'*' if column == 0 else ' '} - {cell}".rstrip()
            for row in rows
            for column, cell in enumerate(row)
        ]
        parts.append("\n".join([*head, *body, ""]))
    return "\n".join(parts)


def as_json(outcomes: Sequence[Outcome], about: Mapping[str, str]) -> str:
    """Everything, with each single sample."""
    rows = [
        {
            "row": outcome.row.name,
            "settings": outcome.row.settings,
            "failure": outcome.failure,
            "medians": outcome.figures if outcome.samples else {},
            "samples": [dict(sample.figures) for sample in outcome.samples],
        }
        for outcome in outcomes
    ]
    return json.dumps({"about": dict(about), "rows": rows}, indent=2) + "\n"


def _tables(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Table, list[Outcome]]]:
    for name, table in TABLES.items():
        members = [outcome for outcome in outcomes if outcome.row.table == name]
        if members:
            yield name, table, members


def _lines(table: Table, outcomes: Sequence[Outcome]) -> list[list[str]]:
    ours = _default_of_ours(outcomes)
    return [
        [outcome.row.label, _figure(table, outcome), _ratio(table, ours, outcome), _note(outcome)]
        for outcome in outcomes
    ]


def _default_of_ours(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The row of tq_broker with its default settings, which is the first of its rows."""
    ours = [outcome for outcome in outcomes if outcome.row.peer == OURS and outcome.samples]
    return ours[0] if ours else None


def _heading(table: Table) -> str:
    return {Flow.LATENCY: "median, p99", Flow.PHASES: "figures"}.get(table.flow, "per second")


def _figure(table: Table, outcome: Outcome) -> str:
    if not outcome.samples:
        return "-"
    figures = outcome.figures
    if table.flow is Flow.LATENCY:
        return f"{figures['median_ms']:.2f} ms, {figures['p99_ms']:.2f} ms"
    if table.flow is Flow.PHASES:
        return ", ".join(f"{name} {value:,.1f}" for name, value in figures.items())
    return f"{figures[table.unit]:,.0f}"


def _ratio(table: Table, ours: Outcome | None, outcome: Outcome) -> str:
    """How many times better tq_broker is than this row; below 1, it loses."""
    if ours is None or not outcome.samples or outcome.row.peer == OURS:
        return ""
    mine, theirs = ours.median(table.unit), outcome.median(table.unit)
    return f"{mine / theirs if table.larger_is_better else theirs / mine:.2f} x"


def _note(outcome: Outcome) -> str:
    settings = outcome.row.settings
    return f"{settings} (not run: {outcome.failure})" if outcome.failure else settings


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    title, *rows = lines
    widths = [max(len(row[column]) for row in rows) for column in range(len(title))]
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([title[0], *body])
