"""Parts of a task queue that have limits of their own: an activity type, a key, each key.

Rules of this file:

* a task may be under several limits: its task queue's, its type's and its key's. It begins when
  all of them let it;
* what is set for one key stands in place of what is set for each key;
* keys are unbounded in number. Only those that something was set for are written down.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tq_broker.common import check_key
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.limits import UNLIMITED, Limits

PARTS_MAX = 1_000
"""Types and keys of one task queue that something may be set for."""


class PartKind(str, enum.Enum):
    """What a part consists of. The value is the word on the wire."""

    ALL = "all"
    """The whole task queue."""
    TYPE = "type"
    KEY = "key"
    EACH_KEY = "each-key"
    """Each key for itself, that nothing else was set for."""


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """Some of the tasks of a task queue; ``name`` is the type or the key."""

    kind: PartKind = PartKind.ALL
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name}".strip()


ALL = Part()
EACH_KEY = Part(PartKind.EACH_KEY)


def part_of(activity_type: str | None, key: str | None, *, each_key: bool) -> Part:
    """The part that somebody means by these; the whole task queue by none of them.

    Raises:
        InvalidArgument: more than one is given, or one is out of bounds.
    """
    if sum((activity_type is not None, key is not None, each_key)) > 1:
        raise InvalidArgument("give a type, or a key, or each key; not several")
    if activity_type is not None:
        return check_part(Part(PartKind.TYPE, activity_type))
    if key is not None:
        return check_part(Part(PartKind.KEY, key))
    return EACH_KEY if each_key else ALL


def check_part(part: Part) -> Part:
    """Return ``part`` if there can be such a one, else raise `InvalidArgument`."""
    if part.kind in (PartKind.TYPE, PartKind.KEY):
        check_key(part.kind.value, part.name)
    elif part.name:
        raise InvalidArgument(f"{part.kind.value} has no name, but {part.name!r:.80} is given")
    return part


@dataclass(frozen=True, slots=True)
class PartTable:
    """The limits of one activity task queue and of its parts, as they are in force.

    There is one as soon as something was said of a part; then also the limits of the whole are
    kept by it.

    Attributes:
        counted_ms: Since when (epoch ms) those that have a concurrency have one: what ran already
            is counted a moment later.
    """

    limits: Mapping[Part, Limits] = field(default_factory=dict)
    counted_ms: Mapping[Part, int] = field(default_factory=dict)

    def of(self, part: Part) -> Limits:
        """The limits of one part."""
        found = self.limits.get(part)
        if found is None and part.kind is PartKind.KEY:
            found = self.limits.get(EACH_KEY)
        return UNLIMITED if found is None else found

    def parts(self, activity_type: str, key: str) -> tuple[Part, ...]:
        """The parts that a task belongs to; ``key`` may be empty."""
        whole_and_type = (ALL, Part(PartKind.TYPE, activity_type))
        return (*whole_and_type, Part(PartKind.KEY, key)) if key else whole_and_type

    def is_limited(self, activity_type: str, key: str) -> bool:
        """Whether a task is under any limit."""
        return any(not self.of(part).is_unlimited for part in self.parts(activity_type, key))

    def changed(self, part: Part, limits: Limits | None, at_ms: int = 0) -> PartTable:
        """The table with other limits of one part from ``at_ms`` on; ``None`` takes them back."""
        others = {one: was for one, was in self.limits.items() if one != part}
        after = PartTable(others if limits is None else {**others, part: limits})
        counted_ms = {one: ms for one, ms in self.counted_ms.items() if one != part}
        if after.of(part).concurrency is not None:
            was_counted = self.of(part).concurrency is not None
            counted_ms[part] = self.counted_ms.get(part, 0) if was_counted else at_ms
        return PartTable(after.limits, counted_ms)


NO_PARTS = PartTable()
