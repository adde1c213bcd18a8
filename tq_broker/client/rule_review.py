"""What is to be said about a traffic rule before it is set: a pure review.

Rules of this file: a finding says what is wrong and what would make it acceptable; what cannot be
known for sure (two globs that may meet) is taken for possible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tq_broker.model.control import WorkerInfo
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.settings import RULES_MAX

_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a rule. ``refuses``: it is not set for that, unless forced."""

    text: str
    refuses: bool = True


def review(
    rule: TrafficRule,
    rules: Iterable[TrafficRule],
    workers: Sequence[WorkerInfo],
    now_ms: int,
) -> list[Finding]:
    """What there is to say about ``rule``, beside ``rules`` that are in force, with ``workers``
    that live."""
    others = [one for one in rules if one.id != rule.id and not one.is_over(now_ms)]
    found = []
    if rule.is_over(now_ms):
        found.append(Finding("its time is over already; give it a later end, or none"))
    if len(others) >= RULES_MAX:
        found.append(Finding(f"there are {len(others)} rules, the most there may be; remove some"))
    found += _target(rule, workers)
    found += _loops(rule, others)
    found += _overlaps(rule, others)
    return found


# --- the target ---------------------------------------------------------------------------------


def _target(rule: TrafficRule, workers: Sequence[WorkerInfo]) -> list[Finding]:
    queue = rule.to_task_queue or rule.task_queue
    kinds = [rule.kind] if rule.kind else list(TaskKind)
    living = [one for one in workers if not one.shutting_down]
    serving = [
        one
        for one in living
        if (not queue or queue in one.task_queues) and any(_types(one, kind) for kind in kinds)
    ]
    there = [
        one
        for one in serving
        if rule.to_host in ("", one.host) and rule.to_version in ("", one.deployment_version)
    ]
    what = " or ".join(kind.value for kind in kinds)
    if not there and rule.to_host:
        hosts = ", ".join(sorted({one.host for one in serving})) or "none"
        return [
            Finding(
                f"no living worker on host {rule.to_host!r} serves {_queue(queue)} ({what});"
                f" hosts that do: {hosts}; start a worker there first"
            )
        ]
    if not there and rule.to_version:
        versions = ", ".join(sorted({one.deployment_version for one in serving} - {""})) or "none"
        return [
            Finding(
                f"no living worker of version {rule.to_version!r} serves {_queue(queue)} ({what});"
                f" versions that do: {versions}; start a worker of it first"
            )
        ]
    if not there:
        return [Finding(f"no living worker serves {_queue(queue)} ({what}); start one there first")]
    if _WILD.isdisjoint(rule.type):
        known = {name for one in there for kind in kinds for name in _types(one, kind)}
        if rule.type not in known:
            names = ", ".join(sorted(known))
            return [
                Finding(
                    f"no worker of {rule.target} has registered {rule.type!r}, only: {names};"
                    " register it there first"
                )
            ]
    return _stranded(rule, living, there) if rule.kind is None and not rule.fallback else []


def _stranded(
    rule: TrafficRule, living: Sequence[WorkerInfo], there: Sequence[WorkerInfo]
) -> list[Finding]:
    """What would wait at the target for ever, because ``there`` only the other kind is served."""
    home = [one for one in living if not rule.task_queue or rule.task_queue in one.task_queues]
    found = []
    for kind, other in (tuple(TaskKind), tuple(reversed(TaskKind))):
        is_matched = any(fnmatchcase(name, rule.type) for one in home for name in _types(one, kind))
        if is_matched and not any(_types(one, kind) for one in there):
            found.append(
                Finding(
                    f"no living worker of {rule.target} has any {kind.value}, and without a"
                    f" fallback those of {_queue(rule.task_queue)} would wait there; let it match"
                    f" the kind {other.value!r} only, start a worker there, or leave the fallback"
                )
            )
    return found


def _queue(task_queue: str) -> str:
    return f"task queue {task_queue!r}" if task_queue else "any task queue"


def _types(worker: WorkerInfo, kind: TaskKind) -> list[str]:
    return worker.activities if kind is TaskKind.ACTIVITY else worker.workflows


# --- loops --------------------------------------------------------------------------------------


def _loops(rule: TrafficRule, others: Sequence[TrafficRule]) -> list[Finding]:
    """Whether tasks would be sent to where rules send them from.

    No task goes in a circle, because one rule decides about it alone; but who reads the rules
    would expect it to come back.
    """
    if not rule.to_task_queue:
        return []
    edges = [one for one in others if one.to_task_queue and _meet_beside_queue(rule, one)]
    path = _path(rule.to_task_queue, rule.task_queue, edges)
    if path is None:
        return []
    ways = ", ".join(f"{one.id!r} to {one.to_task_queue!r}" for one in path)
    return [
        Finding(
            f"it is a loop: it sends tasks to {rule.to_task_queue!r}, from where rules send them"
            f" back: {ways}; remove those first, or match something that they do not"
        )
    ]


def _path(start: str, goal: str, edges: Sequence[TrafficRule]) -> tuple[TrafficRule, ...] | None:
    """The fewest rules that lead from the task queue ``start`` to ``goal`` ("": to any other);
    ``None`` if none do."""
    ways: dict[str, tuple[TrafficRule, ...]] = {start: ()}
    line = deque([start])
    while line:
        here = line.popleft()
        for edge in edges:
            there = edge.to_task_queue
            if edge.task_queue not in ("", here) or there == here:
                continue
            way = (*ways[here], edge)
            if there == goal or not goal:
                return way
            if there not in ways:  # each is gone on from once: the ways are too many to try
                ways[there] = way
                line.append(there)
    return None


# --- overlaps -----------------------------------------------------------------------------------


def _overlaps(rule: TrafficRule, others: Sequence[TrafficRule]) -> list[Finding]:
    found = []
    for other in others:
        if not (_meet_beside_queue(rule, other) and _same_queue_possible(rule, other)):
            continue
        if (other.order, other.id) < (rule.order, rule.id):
            if _covers(other, rule):
                found.append(
                    Finding(
                        f"rule {other.id!r} (order {other.order}) comes first and takes all that"
                        f" this one matches; give this one an order below {other.order}"
                    )
                )
                continue
            first, second = other.id, rule.id
        else:
            if _covers(rule, other):
                found.append(
                    Finding(
                        f"it takes all that rule {other.id!r} (order {other.order}) matches, which"
                        f" then does nothing; remove that, or give this one an order above"
                        f" {other.order}"
                    )
                )
                continue
            first, second = rule.id, other.id
        found.append(
            Finding(
                f"rules {first!r} and {second!r} can match the same task; {first!r} decides then",
                refuses=False,
            )
        )
    return found


def _same_queue_possible(one: TrafficRule, other: TrafficRule) -> bool:
    return "" in (one.task_queue, other.task_queue) or one.task_queue == other.task_queue


def _meet_beside_queue(one: TrafficRule, other: TrafficRule) -> bool:
    """Whether some task may match both, apart from its task queue."""
    return (
        (None in (one.kind, other.kind) or one.kind is other.kind)
        and (None in (one.priority, other.priority) or one.priority == other.priority)
        and ("" in (one.fairness_key, other.fairness_key) or one.fairness_key == other.fairness_key)
        and _agree(one.headers, other.headers)
        and _agree(one.memo, other.memo)
        and globs_meet(one.type, other.type)
    )


def _agree(one: dict[str, str], other: dict[str, str]) -> bool:
    return all(other.get(name, text) == text for name, text in one.items())


def _covers(one: TrafficRule, other: TrafficRule) -> bool:
    """Whether all that ``other`` matches is matched by ``one``, for as long as ``other`` lives."""
    return (
        one.percent == 100
        and (not one.fallback or other.fallback)  # what must not run twice takes no fallback
        and (not one.expires_ms or 0 < other.expires_ms <= one.expires_ms)
        and one.kind in (None, other.kind)
        and one.task_queue in ("", other.task_queue)
        and one.priority in (None, other.priority)
        and one.fairness_key in ("", other.fairness_key)
        and one.headers.items() <= other.headers.items()
        and one.memo.items() <= other.memo.items()
        and (one.type in ("*", other.type) or _matches(other.type, one.type))
    )


def _matches(text: str, pattern: str) -> bool:
    return _WILD.isdisjoint(text) and fnmatchcase(text, pattern)


def globs_meet(one: str, other: str) -> bool:
    """Whether a type may match both patterns; for ``[...]`` any character counts."""
    if _WILD.isdisjoint(one):
        return fnmatchcase(one, other)
    if _WILD.isdisjoint(other):
        return fnmatchcase(other, one)
    return _meet(_plain(one), _plain(other))


def _plain(pattern: str) -> str:
    """``pattern`` with each ``[...]`` as a ``?``."""
    head, bracket, rest = pattern.partition("[")
    _, closed, tail = rest.partition("]")
    return f"{head}?{_plain(tail)}" if bracket and closed else pattern


def _meet(one: str, other: str) -> bool:
    """By dynamic programming: ``row[j]`` is whether the rests from here and from ``j`` meet."""
    row = [all(char == "*" for char in other[j:]) for j in range(len(other) + 1)]
    for i in range(len(one) - 1, -1, -1):
        below, row = row, [False] * (len(other) + 1)
        for j in range(len(other), -1, -1):
            if one[i] == "*":
                row[j] = below[j] or (j < len(other) and row[j + 1])
            elif j < len(other) and other[j] == "*":
                row[j] = row[j + 1] or below[j]
            elif j < len(other):
                same = "?" in (one[i], other[j]) or one[i] == other[j]
                row[j] = same and below[j + 1]
    return row[0]
