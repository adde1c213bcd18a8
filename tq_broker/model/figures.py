"""Figures of task queues: how much comes, how much is begun, what waits, and what limits it.

RabbitMQ tells how many tasks wait in a queue, and nothing of what has gone through it, nor of their
priorities and keys; the workers tell what they have begun, and an usher which keys it holds back.
Looks at all that, one after another, add up to the rest:

* *dispatch rate*: what the workers have begun per second, on the average of the last half minute;
* *add rate*: what the workers have begun between the looks of the last half minute, and what the
  backlog has grown by, per second; with no more than one look at the workers, the dispatch rate and
  the growth;
* *oldest age*: tasks leave a queue in the order in which they came, so the one at the head came
  with the first look at which there had been as many as have left by now, and one. That is reckoned
  for each `Way` on which tasks come to their workers, and the oldest of those counts. Priorities
  disturb that order; then it is the age that it would have without.

Rules of this file: a count that a worker has taken with it to its grave makes no negative rates;
what is not known is ``None``, and not 0.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import msgspec

from tq_broker.model.composition import Way
from tq_broker.model.control import Begins, HeldBack, WorkerInfo
from tq_broker.model.limits import Side
from tq_broker.model.parts import EACH_KEY, PartKind
from tq_broker.model.parts import Part as LimitedPart
from tq_broker.model.registrations import serving
from tq_broker.model.settings import LimitState

WINDOW_S = 30.0
"""The looks of so long make the growth of a backlog."""
WORKERS_MAX = 10_000
"""Workers remembered, also those that do not answer just now."""
ARRIVALS_MAX = 2_000
"""Looks remembered for the age of what waits; of more every second one is forgotten."""
KEYS_MAX = 20
"""Keys that are told of, at the most."""


class QueueFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One queue of a task queue.

    Attributes:
        name: RabbitMQ's.
        kind: What it is for, in a word; see `tq_broker.model.composition`.
        target: Whom its tasks are for: a version, capabilities, a host, a worker; may be empty.
        way: The `Way` on which its tasks come to their workers.
        backlog: Tasks that wait in it, with those in sight of an usher.
        consumers: Those that RabbitMQ counts, which also counts frozen ones.
    """

    name: str
    kind: str
    target: str
    way: Way
    backlog: int
    consumers: int


class LimitFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The limit in force.

    Attributes:
        rate: Tasks per second; ``None`` has no bound.
        source: ``setting``: somebody has set it; ``default``: an option of the workers, for all of
            them together; ``workers``: what each of them may begin, added up; ``none``.
        by: Who has set it.
        is_paused: Nothing is begun, whatever the rate.
        is_limiting: Tasks wait although there are free slots: the limit holds them back.
    """

    rate: float | None
    burst: int | None
    concurrency: int | None
    source: str
    by: str
    is_paused: bool
    is_limiting: bool


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a task queue: the tasks of a ``priority``, or those with a ``key``.

    Attributes:
        begun: As in `Figures`; of a key, since it is among the busiest.
        last_waited_s: As in `Figures`.
        backlog: How many wait. RabbitMQ does not tell it of a priority, nor of a key: it is known
            of keys that are held back, as far as their usher sees them, and when nothing waits at
            all; otherwise ``None``.
        oldest_age_s: How long the first of these has waited.
        limit: Of a key, what was set for it or for each key, beside the limits of its task queue
            and types; ``None`` without such, and if nothing is held back.
    """

    priority: int | None
    key: str | None
    dispatch_rate: float
    begun: int
    last_waited_s: float | None = None
    backlog: int | None = None
    oldest_age_s: float | None = None
    limit: LimitFigures | None = None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a task queue now.

    Attributes:
        backlog: Tasks that wait, in all its queues.
        add_rate: Tasks per second that are put on them.
        dispatch_rate: Tasks per second that are begun, whichever way they came.
        oldest_age_s: How long the first task of the backlog has waited, 0.0 if there is none;
            ``None``: it was there before anybody looked, and no worker has begun another lately.
        last_waited_s: How long the task had waited that a worker has begun last.
        begun: Tasks begun by the workers that live, since they started.
        workers: Workers that have answered, with all their slots, and those in use.
        sticky_hits: Workflow tasks sent to a worker because of its cache, whose run was there.
        parts: The same by priority and by key, of the busiest keys and of those of which most is
            held back; busiest first.
        queues: What waits where.
        unserved: Tasks that wait for capabilities or a version that no living worker has.
        settings_fault: What of the settings log could not be read, so that limits and pauses may
            be others; "" if nothing.
    """

    task_queue: str
    side: Side
    backlog: int
    add_rate: float
    dispatch_rate: float
    oldest_age_s: float | None
    last_waited_s: float | None
    begun: int
    workers: int
    slots: int
    slots_used: int
    slots_free: int
    sticky_hits: int
    sticky_misses: int
    limit: LimitFigures
    parts: list[Part]
    unserved: int = 0
    queues: list[QueueFigures] = []
    settings_fault: str = ""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen at one time.

    Attributes:
        at: Monotonic seconds of whoever looked.
        queues: What waits in the queues of the task queue.
        workers: Those that have answered.
        limits: What the settings log says, of the whole
        part_limits: and of its parts.
        held_keys: Keys that a back-off holds.
        settings_fault: As in `Figures`.
    """

    at: float
    queues: Collection[QueueFigures] = ()
    workers: Sequence[WorkerInfo] = ()
    limits: LimitState = LimitState()
    is_paused: bool = False
    part_limits: Sequence[tuple[LimitedPart, LimitState]] = ()
    held_keys: Sequence[str] = ()
    settings_fault: str = ""

    @property
    def backlog(self) -> int:
        """All that waits."""
        return sum(one.backlog for one in self.queues)


_TOLD_BY_WORKERS = {Way.LIMITED, Way.PRIVATE, Way.DETOUR}


class _Seen(NamedTuple):
    """``added``: how many tasks had come since the first look at the workers, whichever way; before
    that ``None``."""

    at: float
    backlog: int
    added: int | None


class _Arrivals:
    """When the tasks came that wait on one way, as far as looks tell."""

    def __init__(self) -> None:
        self._added = 0
        self._times: list[tuple[float, int]] = []
        """Times, and how many tasks had been added until then; the first one is no arrival."""

    def add(self, at: float, count: int) -> None:
        self._added += count
        if count or not self._times:
            self._times.append((at, self._added))
        if len(self._times) > ARRIVALS_MAX:
            self._times = self._times[:1] + self._times[2::2]

    def oldest(self, at: float, backlog: int, last_waited_s: float | None) -> float | None:
        """How long the first of so many has waited."""
        if not backlog:
            self._times = self._times[-1:]
            return 0.0
        head = self._added - backlog + 1
        first = self._times[0]
        found = next(one for one in self._times if one[1] >= head)
        if found is not first:
            self._times = self._times[self._times.index(found) - 1 :]
            return round(at - found[0], 3)
        if last_waited_s is None:
            return None
        return round(max(last_waited_s, at - first[0]), 3)


class Series:
    """Looks at one side of a task queue, one after another. Not thread-safe."""

    def __init__(self, task_queue: str, side: Side) -> None:
        self.task_queue = task_queue
        self.side = side
        self._looks: deque[_Seen] = deque()
        self._begun: dict[str, Begins] | None = None
        self._backlogs: Counter[Way] = Counter()
        self._arrivals: dict[Way, _Arrivals] = {}

    @property
    def has_looked(self) -> bool:
        """Whether anybody has looked before."""
        return bool(self._looks)

    def begin(self, at: float, queues: Iterable[QueueFigures]) -> None:
        """The first look of all, before any worker has told what only workers know: what waits on
        ways that they see better counts from the next look on."""
        backlogs = _by_way(one for one in queues if one.way not in _TOLD_BY_WORKERS)
        self._looks.append(_Seen(at, backlogs.total(), None))
        self._arrive(at, backlogs, Counter())

    def look(self, look: Look) -> Figures:
        """What there is, with all that was seen before."""
        mine = [one for one in _begins(look.workers) if self._is_mine(one)]
        whole = [one for one in mine if _is_whole(one)]
        was_waiting = bool(self._looks) and self._looks[-1].backlog > 0
        self._count(look)
        dispatch_rate = sum(one.per_second for one in whole)
        last_waited_s = _last_waited(whole)
        workers = serving(look.workers, self.task_queue, self.side.value)
        slots, used = self._slots(workers)
        is_workflow = self.side is Side.WORKFLOW
        is_free = slots > used
        return Figures(
            task_queue=self.task_queue,
            side=self.side,
            backlog=look.backlog,
            add_rate=round(max(0.0, self._add_rate(dispatch_rate)), 3),
            dispatch_rate=round(dispatch_rate, 3),
            oldest_age_s=self._oldest(look, last_waited_s),
            last_waited_s=last_waited_s,
            begun=sum(one.total for one in whole),
            workers=len(workers),
            slots=slots,
            slots_used=used,
            slots_free=max(0, slots - used),
            sticky_hits=sum(one.sticky_hits for one in workers) if is_workflow else 0,
            sticky_misses=sum(one.sticky_misses for one in workers) if is_workflow else 0,
            limit=self._limit(look, workers, is_held=was_waiting and look.backlog > 0),
            parts=_parts(mine, look, self._held_back(look), is_free=is_free),
            unserved=max(map(self._unserved, workers), default=0),
            queues=list(look.queues),
            settings_fault=look.settings_fault,
        )

    def _is_mine(self, begins: Begins) -> bool:
        return begins.task_queue == self.task_queue and begins.side is self.side

    def _unserved(self, worker: WorkerInfo) -> int:
        is_workflow = self.side is Side.WORKFLOW
        found = worker.unserved_workflows if is_workflow else worker.unserved
        return sum(found.get(self.task_queue, {}).values())

    def _held_back(self, look: Look) -> list[HeldBack]:
        if self.side is Side.WORKFLOW:
            return []
        lines = (line for worker in look.workers for line in worker.held_back)
        return [one for one in lines if one.task_queue == self.task_queue]

    def _slots(self, workers: Iterable[WorkerInfo]) -> tuple[int, int]:
        if self.side is Side.WORKFLOW:
            pairs = [(one.workflow_slots, one.workflow_tasks) for one in workers]
        else:
            pairs = [(one.slots, one.running) for one in workers]
        return sum(slots for slots, _ in pairs), sum(used for _, used in pairs)

    # --- what comes and goes ----------------------------------------------------------------------

    def _count(self, look: Look) -> None:
        """Tell from what was begun, and from what waits, how many were added since the last."""
        is_first, seen = self._begun is None, self._begun or {}
        total, ways = 0, Counter[Way]()
        for worker in look.workers:
            for one in worker.begins:
                if self._is_mine(one) and _is_whole(one):
                    # What they had begun before the first look came before it as well.
                    before = seen.pop(worker.worker_id, one if is_first else None)
                    ways += _ways(one) - (_ways(before) if before else Counter())
                    total += max(0, one.total - (before.total if before else 0))
                    seen[worker.worker_id] = one
        while len(seen) > WORKERS_MAX:
            del seen[next(iter(seen))]
        self._begun = seen
        backlogs = _by_way(look.queues)
        if is_first and self._looks:
            hidden = sum(backlogs[way] for way in _TOLD_BY_WORKERS)
            self._looks[-1] = self._looks[-1]._replace(backlog=self._looks[-1].backlog + hidden)
        last = self._looks[-1] if self._looks else None
        growth = look.backlog - (last.backlog if last else 0)
        self._arrive(look.at, backlogs, ways)
        added = 0 if last is None or last.added is None else last.added + max(0, growth + total)
        self._looks.append(_Seen(look.at, look.backlog, added))
        while self._looks[0].at < look.at - WINDOW_S and len(self._looks) > 2:
            self._looks.popleft()

    def _add_rate(self, dispatch_rate: float) -> float:
        last = self._looks[-1]
        first = next(one for one in self._looks if one.added is not None)
        if first is not last and first.added is not None and last.added is not None:
            return (last.added - first.added) / max(1.0, last.at - first.at)
        first = self._looks[0]
        return dispatch_rate + (last.backlog - first.backlog) / max(1.0, last.at - first.at)

    def _arrive(self, at: float, backlogs: Counter[Way], begun: Counter[Way]) -> None:
        for way in Way if self._begun is not None else set(Way) - _TOLD_BY_WORKERS:
            growth = backlogs[way] - self._backlogs[way]
            self._arrivals.setdefault(way, _Arrivals()).add(at, max(0, growth + begun[way]))
        self._backlogs = backlogs

    def _oldest(self, look: Look, last_waited_s: float | None) -> float | None:
        # Only what came the common way tells how long others there may have waited.
        ages = [
            self._arrivals[way].oldest(
                look.at, self._backlogs[way], last_waited_s if way is Way.SHARED else None
            )
            for way in Way
        ]
        known = [age for age in ages if age is not None]
        return max(known) if len(known) == len(ages) else None

    # --- what limits it ---------------------------------------------------------------------------

    def _limit(self, look: Look, workers: Sequence[WorkerInfo], *, is_held: bool) -> LimitFigures:
        limits = look.limits.limits
        named, by = _source(look.limits)
        rate = limits.rate
        own = _own_rate(workers) if self.side is Side.ACTIVITY else None
        if own is not None and (rate is None or own < rate):
            rate, named, by = own, "workers", ""
        slots, used = self._slots(workers)
        # Also limits of some of its tasks do.
        is_limited = look.is_paused or named != "none" or bool(self._held_back(look))
        return LimitFigures(
            rate=rate,
            burst=limits.burst_size if limits.rate is not None else None,
            concurrency=limits.concurrency,
            source=named,
            by=by,
            is_paused=look.is_paused,
            is_limiting=is_limited and is_held and slots > used,
        )


def _source(state: LimitState) -> tuple[str, str]:
    """Where limits in force come from, and who has set them."""
    source = state.source
    if source is None or state.limits.is_unlimited:
        return "none", ""
    return ("default" if source.is_default else "setting"), source.by


def _begins(workers: Iterable[WorkerInfo]) -> list[Begins]:
    return [one for worker in workers for one in worker.begins]


def _is_whole(begins: Begins) -> bool:
    return begins.priority is None and begins.key is None


def _own_rate(workers: Sequence[WorkerInfo]) -> float | None:
    """What the workers may begin together by their own limits; ``None`` if one has none."""
    rates = [worker.per_second for worker in workers]
    if not rates or None in rates:
        return None
    return sum(rate for rate in rates if rate is not None)


def _ways(begins: Begins) -> Counter[Way]:
    ways = begins.ways or {Way.SHARED.value: begins.shared}
    return Counter({way: count for way in Way if (count := ways.get(way.value, 0))})


def _by_way(queues: Iterable[QueueFigures]) -> Counter[Way]:
    found = Counter[Way]()
    for one in queues:
        found[one.way] += one.backlog
    return found


def _last_waited(begins: Iterable[Begins]) -> float | None:
    waits = [one.waited_ms for one in begins if one.waited_ms is not None and one.per_second]
    return max(waits) / 1000 if waits else None


# --- parts ----------------------------------------------------------------------------------------


def _parts(
    begins: Iterable[Begins], look: Look, lines: Sequence[HeldBack], *, is_free: bool
) -> list[Part]:
    """Priorities, and the top ones of keys.

    Args:
        lines: What is held back.
        is_free: There are free slots.
    """
    found: dict[tuple[int | None, str | None], list[Begins]] = {}
    for one in begins:
        if not _is_whole(one):
            found.setdefault((one.priority, one.key), []).append(one)
    for line in lines:
        if line.key:
            found.setdefault((None, line.key), [])
    parts = [
        Part(
            priority=priority,
            key=key,
            dispatch_rate=round(sum(one.per_second for one in ones), 3),
            begun=sum(one.total for one in ones),
            last_waited_s=_last_waited(ones),
            backlog=0 if not look.backlog else None,
            oldest_age_s=0.0 if not look.backlog else None,
        )
        for (priority, key), ones in found.items()
    ]
    keys = [_with_limit(one, look, lines, is_free=is_free) for one in parts if one.key is not None]
    keys.sort(key=lambda one: (one.backlog or 0, one.dispatch_rate), reverse=True)
    told = [*(one for one in parts if one.key is None), *keys[:KEYS_MAX]]
    return sorted(told, key=lambda one: one.dispatch_rate, reverse=True)


def _with_limit(part: Part, look: Look, lines: Sequence[HeldBack], *, is_free: bool) -> Part:
    """A key, with what limits it and what that holds back."""
    key = part.key or ""
    states = dict(look.part_limits)
    state = states.get(LimitedPart(PartKind.KEY, key)) or states.get(EACH_KEY) or LimitState()
    is_held = key in look.held_keys
    mine = [one for one in lines if one.key == key]
    named, by = _source(state)
    if named == "none" and not is_held and not mine:
        return part
    ages = [one.oldest_age_s for one in mine if one.oldest_age_s is not None]
    count, limits = sum(one.count for one in mine), state.limits
    limit = LimitFigures(
        rate=limits.rate,
        burst=limits.burst_size if limits.rate is not None else None,
        concurrency=limits.concurrency,
        source=named,
        by=by,
        is_paused=is_held,
        is_limiting=count > 0 and is_free,
    )
    oldest_age_s = (max(ages) if ages else None) if count else 0.0
    return msgspec.structs.replace(part, backlog=count, oldest_age_s=oldest_age_s, limit=limit)
