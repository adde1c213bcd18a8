"""Which rule decides about a task, and why: a pure table of traffic rules.

Rules of this file: what is known of many tasks in common (kind, type, task queue) is looked up, and
only the rest is compared task by task; `RuleTable.choose` and `RuleTable.explain` ask the same
tests in the same order, so an explanation is what happens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain

import msgspec

from tq_broker.common import PRIORITY_DEFAULT
from tq_broker.model.rules import TaskKind, TrafficRule

REMEMBERED = 4_096
"""Combinations of kind, type and task queue whose rules are kept at hand."""

_BITS = 64
_MASK = 2**_BITS - 1
_SPREAD = 0x9E3779B97F4A7C15
_PARTS = 2**32
NO_TEXTS: Mapping[str, str] = {}
NO_MEMO: Mapping[str, bytes] = {}


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What rules may ask of a task.

    Attributes:
        id: The activity's id, or the workflow's: the hash of it decides about percentages.
        memo: Payloads of the workflow's memo; what codecs hide matches nothing.
        once: It must not run twice, so nobody may take it back from a target.
        capabilities: What it requires of its worker; those who get it from a rule have them, too.
        fairness_key: The key under which it gets its share; "" if it has none.
    """

    kind: TaskKind
    type: str
    task_queue: str
    id: str
    headers: Mapping[str, str] = NO_TEXTS
    priority: int | None = None
    memo: Mapping[str, bytes] = NO_MEMO
    once: bool = False
    capabilities: tuple[str, ...] = ()
    fairness_key: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule says about a task, in words."""

    rule: TrafficRule
    matches: bool
    why: str


def place_of(id: str) -> int:
    """Where ``id`` stands among all ids: the same number on every machine."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "big")


def _place(facts: Facts) -> int:
    """-1 for a task without an id, which no percentage takes."""
    return place_of(facts.id) if facts.id else -1


class _Line:
    """One rule, made ready."""

    __slots__ = ("_headers", "_memo", "expires_ms", "fallback", "limit", "rule", "salt")

    def __init__(self, rule: TrafficRule) -> None:
        self.rule = rule
        self.expires_ms = rule.expires_ms
        self.fallback = rule.fallback
        # Each rule takes its own sample, not all the same unlucky ids.
        self.salt: int = place_of(rule.id)
        self.limit: int = round(rule.percent / 100 * _PARTS)
        self._headers = tuple(rule.headers.items())
        self._memo = tuple(
            (name, (msgspec.json.encode(text), text.encode())) for name, text in rule.memo.items()
        )

    def covers(self, kind: TaskKind, type_: str, task_queue: str) -> bool:
        rule = self.rule
        return (
            rule.kind in (None, kind)
            and rule.task_queue in ("", task_queue)
            and (rule.type in ("*", type_) or fnmatchcase(type_, rule.type))
        )

    def matches(self, facts: Facts, place: int, now_ms: int) -> bool:
        """Whether the rest of it matches, too."""
        if 0 < self.expires_ms <= now_ms or (facts.once and self.fallback):
            return False
        headers = facts.headers
        for name, value in self._headers:
            if headers.get(name) != value:
                return False
        priority = self.rule.priority
        if priority is not None and priority != (facts.priority or PRIORITY_DEFAULT):
            return False
        if self.rule.fairness_key not in ("", facts.fairness_key):
            return False
        for name, values in self._memo:
            if facts.memo.get(name) not in values:
                return False
        return self.limit == _PARTS or (place >= 0 and self.part(place) < self.limit)

    def part(self, place: int) -> int:
        mixed: int = (place ^ self.salt) * _SPREAD & _MASK
        return mixed >> 32

    def verdict(self, facts: Facts, place: int, now_ms: int) -> Verdict:
        rule = self.rule
        if self.covers(facts.kind, facts.type, facts.task_queue) and self.matches(
            facts, place, now_ms
        ):
            return Verdict(rule, True, f"matches: to {rule.target}")
        return Verdict(rule, False, f"no: {self._objection(facts, place, now_ms)}")

    def _objection(self, facts: Facts, place: int, now_ms: int) -> str:
        """The first test that it fails, in words."""
        rule = self.rule
        if rule.kind is not None and rule.kind is not facts.kind:
            return f"it is for the kind {rule.kind.value}"
        if rule.task_queue not in ("", facts.task_queue):
            return f"it is for task queue {rule.task_queue!r}"
        if not self.covers(facts.kind, facts.type, facts.task_queue):
            return f"it is for types like {rule.type!r}"
        if rule.is_over(now_ms):
            return "its time is over"
        if facts.once and rule.fallback:
            return (
                "the task must not run twice (maximum_attempts=1), and so cannot be taken back from"
                " a target; a rule without fallback would match"
            )
        for name, value in rule.headers.items():
            if (found := facts.headers.get(name)) != value:
                has = "missing" if found is None else repr(found)
                return f"header {name!r} is {has}, not {value!r}"
        if rule.priority not in (None, priority := facts.priority or PRIORITY_DEFAULT):
            return f"the priority is {priority}, not {rule.priority}"
        if rule.fairness_key not in ("", facts.fairness_key):
            has = repr(facts.fairness_key) if facts.fairness_key else "missing"
            return f"the fairness key is {has}, not {rule.fairness_key!r}"
        for name, values in self._memo:
            if name not in facts.memo:
                return f"memo {name!r} is missing"
            if facts.memo[name] not in values:
                return f"memo {name!r} is another, or hidden by codecs"
        if place < 0:
            return f"it takes {rule.percent:g} % of such tasks, by their ids; say an id to know"
        percent = self.part(place) / _PARTS * 100
        return (
            f"the hash of the id is at {percent:.2f} %, and it takes those below {rule.percent:g} %"
        )


_Entry = tuple[int, int, int, _Line]
"""Its number on the shelf, its salt and limit, and the line."""


class _Shelf:
    """The rules for tasks of one kind, type and task queue; those that ask for headers are looked
    up by one of them."""

    __slots__ = ("_by_header", "_others")

    def __init__(self, lines: Iterable[_Line]) -> None:
        self._others: list[_Entry] = []
        self._by_header: dict[tuple[str, str], list[_Entry]] = {}
        for number, line in enumerate(lines):
            entry = (number, line.salt, line.limit, line)
            header = next(iter(line.rule.headers.items()), None)
            of_its_kind = self._others if header is None else self._by_header.setdefault(header, [])
            of_its_kind.append(entry)

    def __bool__(self) -> bool:
        return bool(self._others or self._by_header)

    def candidates(self, headers: Mapping[str, str]) -> list[_Entry]:
        """Those that a task with ``headers`` may match, in order."""
        if not headers or not self._by_header:
            return self._others
        lists = [found for one in headers.items() if (found := self._by_header.get(one))]
        if not lists:
            return self._others
        # Numbers differ, so lines are not compared.
        return sorted(chain(self._others, *lists))


class RuleTable:
    """The rules in force, in their order. Thread-safe: it changes only what it remembers."""

    def __init__(self, rules: Iterable[TrafficRule] = ()) -> None:
        self.rules = tuple(sorted(rules, key=lambda rule: (rule.order, rule.id)))
        self._lines = tuple(map(_Line, self.rules))
        self._found: dict[tuple[TaskKind, str, str], _Shelf] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def concerns(self, kind: TaskKind, type: str, task_queue: str) -> bool:
        """Whether there is a rule for such tasks at all."""
        return bool(self._lines) and bool(self._covering(kind, type, task_queue))

    def choose(self, facts: Facts, now_ms: int) -> TrafficRule | None:
        """The rule that decides about a task; ``None`` if none does."""
        shelf = self._covering(facts.kind, facts.type, facts.task_queue)
        if not shelf:
            return None
        place = _place(facts)
        for _, salt, limit, line in shelf.candidates(facts.headers):
            # The test that most rules fail, if any, without a call.
            if limit < _PARTS and (place < 0 or ((place ^ salt) * _SPREAD & _MASK) >> 32 >= limit):
                continue
            if line.matches(facts, place, now_ms):
                return line.rule
        return None

    def explain(self, facts: Facts, now_ms: int) -> list[Verdict]:
        """What each rule says, up to the one that decides."""
        place = _place(facts)
        verdicts = []
        for line in self._lines:
            verdicts.append(line.verdict(facts, place, now_ms))
            if verdicts[-1].matches:
                break
        return verdicts

    def _covering(self, kind: TaskKind, type_: str, task_queue: str) -> _Shelf:
        key = (kind, type_, task_queue)
        found = self._found.get(key)
        if found is None:
            found = _Shelf(line for line in self._lines if line.covers(*key))
            if len(self._found) >= REMEMBERED:
                self._found = {}  # types may be made up without end
            self._found[key] = found
        return found


NO_RULES = RuleTable()
