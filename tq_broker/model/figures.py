"""Figures of task queues: how much comes, how much is begun, what waits, and what limits it.

RabbitMQ tells how many tasks wait in a queue, and nothing of what has gone through it; the workers
tell what they have begun. Looks at both, one after another, add up to all the rest:

* *dispatch rate*: what the workers have begun per second, on the average of the last half minute;
* *add rate*: what the workers have begun between the looks of the last half minute, and what the
  backlog has grown by, per second; with no more than one look at the workers, the dispatch rate and
  the growth;
* *oldest age*: tasks leave a queue in the order in which they came, so the one at the head came
  with the first look at which there had been as many as have left by now, and one. Priorities
  disturb that order; then it is the age that it would have without.

Rules of this file: a count that a worker has taken with it to its grave makes no negative rates;
what is not known is ``None``, and not 0; all is plain values, so that there may be further parts of
a task queue (priorities, keys) in the same shape.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from tq_broker.model.control import Begins, WorkerInfo
from tq_broker.model.limits import Side
from tq_broker.model.registrations import serving
from tq_broker.model.settings import LimitState

WINDOW_S = 30.0
"""The looks of so long make the growth of a backlog."""
WORKERS_MAX = 10_000
"""Workers remembered, also those that do not answer just now."""
ARRIVALS_MAX = 2_000
"""Looks remembered for the age of what waits; of more every second one is forgotten."""


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
    """What is begun of a part of a task queue: of a ``priority``, or of a ``key``."""

    priority: int | None
    key: str | None
    dispatch_rate: float
    begun: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a task queue now.

    Attributes:
        backlog: Tasks that wait in the shared queue.
        add_rate: Tasks per second that are put on it.
        dispatch_rate: Tasks per second that are begun, whichever way they came.
        oldest_age_s: How long the task at the head of the backlog has waited, 0.0 if there is none;
            ``None``: it was there before anybody looked, and no worker has begun another lately.
        last_waited_s: How long the task had waited that a worker has begun last.
        begun: Tasks begun by the workers that live, since they started.
        workers: Workers that have answered, with all their slots, and those in use.
        sticky_hits: Workflow tasks sent to a worker because of its cache, whose run was there.
        parts: The same by priority and key, busiest first.
        unserved: Activities that wait for capabilities or a version that no living worker has.
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


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen at one time.

    Attributes:
        at: Monotonic seconds of whoever looked.
        backlog: Ready tasks of the shared queue.
        workers: Those that have answered.
        limits: What the settings log says.
    """

    at: float
    backlog: int
    workers: Sequence[WorkerInfo] = ()
    limits: LimitState = LimitState()
    is_paused: bool = False


class _Seen(NamedTuple):
    """``added``: how many tasks had come since the first look at the workers, whichever way; before
    that ``None``."""

    at: float
    backlog: int
    added: int | None


class Series:
    """Looks at one side of a task queue, one after another. Not thread-safe."""

    def __init__(self, task_queue: str, side: Side) -> None:
        self.task_queue = task_queue
        self.side = side
        self._looks: deque[_Seen] = deque()
        self._begun: dict[str, Begins] | None = None
        self._added = 0
        self._arrivals: list[tuple[float, int]] = []
        """Times, and how many tasks had been added until then; the first one is no arrival."""

    @property
    def has_looked(self) -> bool:
        """Whether anybody has looked before."""
        return bool(self._looks)

    def begin(self, at: float, backlog: int) -> None:
        """The first look of all, with nothing known but the backlog."""
        self._looks.append(_Seen(at, backlog, None))
        self._arrive(at, backlog)

    def look(self, look: Look) -> Figures:
        """What there is, with all that was seen before."""
        mine = [one for one in _begins(look.workers) if self._is_mine(one)]
        whole = [one for one in mine if _is_whole(one)]
        was_waiting = bool(self._looks) and self._looks[-1].backlog > 0
        self._count(look)
        dispatch_rate = sum(one.per_second for one in whole)
        waits = [one.waited_ms for one in whole if one.waited_ms is not None and one.per_second]
        last_waited_s = max(waits) / 1000 if waits else None
        workers = serving(look.workers, self.task_queue, self.side.value)
        slots, used = self._slots(workers)
        is_workflow = self.side is Side.WORKFLOW
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
            parts=_parts(mine),
            unserved=0 if is_workflow else max(map(self._unserved, workers), default=0),
        )

    def _is_mine(self, begins: Begins) -> bool:
        return begins.task_queue == self.task_queue and begins.side is self.side

    def _unserved(self, worker: WorkerInfo) -> int:
        return sum(worker.unserved.get(self.task_queue, {}).values())

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
        shared = total = 0
        for worker in look.workers:
            for one in worker.begins:
                if self._is_mine(one) and _is_whole(one):
                    # What they had begun before the first look came before it as well.
                    before = seen.pop(worker.worker_id, one if is_first else None)
                    shared += max(0, one.shared - (before.shared if before else 0))
                    total += max(0, one.total - (before.total if before else 0))
                    seen[worker.worker_id] = one
        while len(seen) > WORKERS_MAX:
            del seen[next(iter(seen))]
        self._begun = seen
        last = self._looks[-1] if self._looks else None
        growth = look.backlog - (last.backlog if last else 0)
        self._arrive(look.at, max(0, growth + shared))
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

    def _arrive(self, at: float, count: int) -> None:
        self._added += count
        if count or not self._arrivals:
            self._arrivals.append((at, self._added))
        if len(self._arrivals) > ARRIVALS_MAX:
            self._arrivals = self._arrivals[:1] + self._arrivals[2::2]

    def _oldest(self, look: Look, last_waited_s: float | None) -> float | None:
        if not look.backlog:
            self._arrivals = self._arrivals[-1:]
            return 0.0
        head = self._added - look.backlog + 1
        first = self._arrivals[0]
        found = next(one for one in self._arrivals if one[1] >= head)
        if found is not first:
            self._arrivals = self._arrivals[self._arrivals.index(found) - 1 :]
            return round(look.at - found[0], 3)
        if last_waited_s is None:
            return None
        return round(max(last_waited_s, look.at - first[0]), 3)

    # --- what limits it ---------------------------------------------------------------------------

    def _limit(self, look: Look, workers: Sequence[WorkerInfo], *, is_held: bool) -> LimitFigures:
        limits, source = look.limits.limits, look.limits.source
        named, by, rate = "none", "", limits.rate
        if source is not None and not limits.is_unlimited:
            named, by = ("default" if source.is_default else "setting"), source.by
        own = _own_rate(workers) if self.side is Side.ACTIVITY else None
        if own is not None and (rate is None or own < rate):
            rate, named, by = own, "workers", ""
        slots, used = self._slots(workers)
        is_limited = look.is_paused or named != "none"
        return LimitFigures(
            rate=rate,
            burst=limits.burst_size if limits.rate is not None else None,
            concurrency=limits.concurrency,
            source=named,
            by=by,
            is_paused=look.is_paused,
            is_limiting=is_limited and is_held and slots > used,
        )


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


def _parts(begins: Iterable[Begins]) -> list[Part]:
    found: dict[tuple[int | None, str | None], tuple[float, int]] = {}
    for one in begins:
        if not _is_whole(one):
            rate, begun = found.get((one.priority, one.key), (0.0, 0))
            found[one.priority, one.key] = rate + one.per_second, begun + one.total
    parts = [
        Part(priority=priority, key=key, dispatch_rate=round(rate, 3), begun=begun)
        for (priority, key), (rate, begun) in found.items()
    ]
    return sorted(parts, key=lambda part: part.dispatch_rate, reverse=True)
