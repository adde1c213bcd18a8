"""Figures of task queues as programs read them: Prometheus's text, and JSON. Pure.

Rules of this file: a figure that is not known is left out of the text, and null in JSON; names
follow Prometheus (base units, ``_total`` for counters), and are promised to stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from tq_broker.model.figures import Figures, LimitFigures, Part, QueueFigures

PREFIX = "tq_broker_task_queue_"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

METRICS: tuple[tuple[str, str, str, Callable[[Figures], float | None]], ...] = (
    ("backlog", "gauge", "Tasks that wait.", lambda one: one.backlog),
    ("add_rate", "gauge", "Tasks that come per second.", lambda one: one.add_rate),
    ("dispatch_rate", "gauge", "Tasks begun per second.", lambda one: one.dispatch_rate),
    (
        "oldest_age_seconds",
        "gauge",
        "How long the first task of the backlog has waited.",
        lambda one: one.oldest_age_s,
    ),
    (
        "last_wait_seconds",
        "gauge",
        "How long the task had waited that was begun last.",
        lambda one: one.last_waited_s,
    ),
    ("begun", "gauge", "Tasks begun by the workers that live.", lambda one: one.begun),
    ("workers", "gauge", "Workers that have answered.", lambda one: one.workers),
    ("slots", "gauge", "All slots of its workers.", lambda one: one.slots),
    ("slots_used", "gauge", "Slots in use.", lambda one: one.slots_used),
    ("sticky_hits", "gauge", "Sticky tasks whose run was cached.", lambda one: one.sticky_hits),
    (
        "sticky_misses",
        "gauge",
        "Sticky tasks whose run was not cached.",
        lambda one: one.sticky_misses,
    ),
    ("limit_rate", "gauge", "The rate in force, per second.", lambda one: one.limit.rate),
    (
        "limit_concurrency",
        "gauge",
        "The concurrency in force.",
        lambda one: one.limit.concurrency,
    ),
    (
        "unserved",
        "gauge",
        "Tasks that wait for capabilities or a version that no living worker has.",
        lambda one: one.unserved,
    ),
    ("paused", "gauge", "1 if it is paused.", lambda one: one.limit.is_paused),
    (
        "limiting",
        "gauge",
        "1 if a limit holds tasks back: more workers would not help.",
        lambda one: one.limit.is_limiting,
    ),
    (
        "settings_unknown",
        "gauge",
        "1 if some of the settings log could not be read: limits and pauses may be others.",
        lambda one: bool(one.settings_fault),
    ),
)


def _limit(
    value_of: Callable[[LimitFigures], float | None],
) -> Callable[[Part], float | None]:
    return lambda part: None if part.limit is None else value_of(part.limit)


PART_METRICS: tuple[tuple[str, str, Callable[[Part], float | None]], ...] = (
    ("part_dispatch_rate", "The same by priority or key.", lambda one: one.dispatch_rate),
    ("part_backlog", "Tasks that are known to wait.", lambda one: one.backlog),
    ("part_oldest_age_seconds", "The first of those.", lambda one: one.oldest_age_s),
    ("part_last_wait_seconds", "Of the one begun last.", lambda one: one.last_waited_s),
    ("part_limit_rate", "The rate of the key.", _limit(lambda limit: limit.rate)),
    (
        "part_limit_concurrency",
        "The concurrency of the key.",
        _limit(lambda limit: limit.concurrency),
    ),
    ("part_limiting", "1 if it is held back.", _limit(lambda limit: limit.is_limiting)),
)
QUEUE_METRICS: tuple[tuple[str, str, Callable[[QueueFigures], int]], ...] = (
    ("queue_backlog", "Tasks that wait in one of its queues.", lambda one: one.backlog),
    ("queue_consumers", "Consumers of one of its queues.", lambda one: one.consumers),
)


def prometheus(namespace: str, figures: Sequence[Figures]) -> str:
    """All figures in Prometheus's text format."""
    lines: list[str] = []
    for name, kind, help_, value_of in METRICS:
        samples = [
            _sample(name, _labels(namespace, one), value)
            for one in figures
            if (value := value_of(one)) is not None
        ]
        lines += _metric(name, kind, help_, samples)
    for name, help_, part_of in PART_METRICS:
        samples = [
            _sample(name, {**_labels(namespace, one), **_part_labels(part)}, value)
            for one in figures
            for part in one.parts
            if (value := part_of(part)) is not None
        ]
        lines += _metric(name, "gauge", help_, samples)
    for name, help_, queue_of in QUEUE_METRICS:
        totals: Counter[tuple[tuple[str, str], ...]] = Counter()  # there are several lanes
        for one in figures:
            for queue in one.queues:
                labels = {**_labels(namespace, one), **_queue_labels(queue)}
                totals[tuple(labels.items())] += queue_of(queue)
        samples = [_sample(name, dict(of), total) for of, total in totals.items()]
        lines += _metric(name, "gauge", help_, samples)
    return "".join(f"{line}\n" for line in lines)


def _labels(namespace: str, one: Figures) -> dict[str, str]:
    return {"namespace": namespace, "task_queue": one.task_queue, "side": one.side.value}


def _part_labels(part: Part) -> dict[str, str]:
    return {
        **({} if part.priority is None else {"priority": f"{part.priority}"}),
        **({} if part.key is None else {"key": part.key}),
    }


def _queue_labels(queue: QueueFigures) -> dict[str, str]:
    return {"kind": queue.kind, "target": queue.target}


def _metric(name: str, kind: str, help_: str, samples: Iterable[str]) -> list[str]:
    found = list(samples)
    if not found:
        return []
    return [f"# HELP {PREFIX}{name} {help_}", f"# TYPE {PREFIX}{name} {kind}", *found]


def _sample(name: str, labels: dict[str, str], value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{PREFIX}{name}{{{told}}} {float(value):.12g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def as_json(figures: Iterable[Figures]) -> list[dict[str, Any]]:
    """All figures, one object per task queue, with one object per side in it."""
    found: dict[str, dict[str, Any]] = {}
    for one in figures:
        entry = found.setdefault(
            one.task_queue, {"task_queue": one.task_queue, "activity": None, "workflow": None}
        )
        entry[one.side.value] = msgspec.to_builtins(one)
    return list(found.values())
