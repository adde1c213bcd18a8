"""Prefetch windows: how one worker's slots are shared among the queues that it consumes.

RabbitMQ bounds what a consumer holds per consumer, not per worker, so a window (a prefetch) is
given to each queue such that together they are never wider than the slots: a worker never
takes more than it can run. Queues that want more get what others do not use.

Rules of this file:

* the capacity is what the slots leave after those in use that no window accounts for;
* while a slot is free every queue has a window of at least 1: nobody waits beside an idle slot.
  Only where there are more queues than slots, and one has shown a task for which there was no slot,
  has it the first choice of the next, and the others have theirs with the look after: or the tasks
  of one queue could take each slot from those of another;
* as long as the capacity is at least 1 per queue, the windows and what is still in hand from
  closed windows never exceed it together, but for these windows of 1, and for what was taken
  before it shrank;
* with less than that each open window is 1; while no slot is free those that are full are closed,
  and the others when they are: to close an empty one may cost an attempt (see
  `tq_broker.queues.subscriber`), and it can take only one message before it is full;
* else a window only shrinks when another queue wants what it does not use, and by more than a
  little, unless the other has nothing;
* a queue that is paused, or barred because somebody else serves it, has no window: only what is
  still in hand from it counts.
"""

from __future__ import annotations

from dataclasses import dataclass

CONSUMERS_MAX = 8
"""A window that has grown in more steps than this is closed and opened anew, in one piece."""


@dataclass(slots=True)
class Window:
    """One queue's share.

    Attributes:
        size: Messages the broker may let us hold through open consumers.
        in_hand: Held through open consumers.
        draining: Held from consumers that have been closed.
        peak: Most in hand since the last look.
        consumers: Open consumers that the size is spread over.
        served: When it had a slot for a message last, counted in such messages.
        owed: The last message had none.
    """

    size: int = 0
    in_hand: int = 0
    draining: int = 0
    peak: int = 0
    consumers: int = 0
    served: int = 0
    owed: bool = False


@dataclass(frozen=True, slots=True)
class Grow:
    """Open a further consumer on ``queue`` with this prefetch."""

    queue: str
    by: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close all consumers of ``queue``; what is in hand stays in hand."""

    queue: str


Change = Grow | Close


class Windows:
    """The windows of all queues of a worker. Not thread-safe; it has one owner."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._windows: dict[str, Window] = {}
        self._paused: set[str] = set()
        self._barred: set[str] = set()
        self._occupied = 0
        self._held = 0
        self._served = 0
        self._is_choosing = False
        """Those that are owed a slot have the first choice now."""

    def __getitem__(self, queue: str) -> Window:
        return self._windows[queue]

    def __contains__(self, queue: str) -> bool:
        return queue in self._windows

    def queues(self) -> tuple[str, ...]:
        """The queues served, in order of arrival."""
        return tuple(self._windows)

    def add(self, queue: str) -> None:
        """Serve ``queue`` from the next `plan` on."""
        self._windows.setdefault(queue, Window())

    def bar(self, queue: str) -> list[Close]:
        """Serve ``queue`` no more, until it is unbarred; what to close is taken as closed."""
        self.add(queue)
        self._barred.add(queue)
        return [self._close(queue)] if self._windows[queue].size else []

    def unbar(self, queue: str) -> None:
        """Serve ``queue`` again."""
        self._barred.discard(queue)

    def pause(self, queue: str, paused: bool) -> list[Close]:
        """Whether ``queue`` is paused from now on; what to close is taken as closed."""
        if not paused:
            self._paused.discard(queue)
            return []
        self._paused.add(queue)
        return [self._close(queue)] if self._windows[queue].size else []

    def taken(self, queue: str, count: int, *, drained: bool) -> None:
        """``count`` messages of ``queue`` have arrived; ``drained``: by a closed consumer."""
        window = self._windows[queue]
        window.owed = self._held >= self.capacity - self._occupied
        if not window.owed:
            self._served = window.served = self._served + 1
        self._held += count
        self._is_choosing = False
        if drained:
            window.draining += count
            return
        window.in_hand += count
        window.peak = max(window.peak, window.in_hand)

    def released(self, queue: str, *, drained: bool) -> None:
        """One message of ``queue`` is no longer in hand; ``drained``: of a closed consumer."""
        window = self._windows[queue]
        self._held -= 1
        if drained:
            window.draining -= 1
        else:
            window.in_hand -= 1

    def used(self) -> int:
        """Slots that windows and draining messages may still need."""
        return sum(window.size + window.draining for window in self._windows.values())

    def plan(self, occupied: int) -> list[Change]:
        """How to change the windows now; the changes are taken as made.

        Args:
            occupied: Slots in use by attempts that no window accounts for (their delivery was
                moved to the lease queue, or acknowledged while their code still runs).
        """
        self._occupied = occupied
        capacity = max(0, self.capacity - occupied)
        windows = self._open()
        if not windows:
            return []
        changes = self._crowded(capacity) if len(windows) > capacity else self._roomy(capacity)
        for window in self._windows.values():
            window.peak = window.in_hand
        return changes

    def _open(self) -> dict[str, Window]:
        """The windows of queues that are neither paused nor barred."""
        if not (self._paused or self._barred):
            return self._windows
        closed = self._paused | self._barred
        return {q: w for q, w in self._windows.items() if q not in closed}

    def _crowded(self, capacity: int) -> list[Change]:
        free = capacity - self._held
        changes: list[Change] = [
            self._close(queue)
            for queue, w in self._open().items()
            if w.size > 1 or (free <= 0 and w.size and w.in_hand)
        ]
        if free > 0:
            changes += [self._grow(queue, 1) for queue in self._next(free)]
        return changes

    def _next(self, free: int) -> list[str]:
        """The queues without a window that get one now, those first that have waited longest."""
        closed = [queue for queue, window in self._open().items() if not window.size]
        closed.sort(key=lambda queue: self._windows[queue].served)
        owed = [] if self._is_choosing else [q for q in closed if self._windows[q].owed][:free]
        self._is_choosing = bool(owed)
        return owed or closed

    def _roomy(self, capacity: int) -> list[Change]:
        hungry = {q for q, w in self._open().items() if w.peak >= w.size}
        if not hungry and self.used() <= capacity:
            return []
        changes = self._take_back(capacity, hungry)
        free = capacity - self.used()
        # Those with nothing come last: what the division leaves over is for the last.
        waiting = sorted(hungry, key=lambda queue: self._windows[queue].size, reverse=True)
        for position, queue in enumerate(waiting):
            share = free // (len(waiting) - position)
            if share > 0:
                changes.append(self._grow(queue, share))
                free -= share
        if self._held < capacity:
            changes += [self._grow(queue, 1) for queue, w in self._open().items() if not w.size]
        return changes

    def _take_back(self, capacity: int, hungry: set[str]) -> list[Change]:
        """Close what is wider than it needs to be, if somebody else wants it."""
        changes: list[Change] = []
        by_spare = sorted(self._open().items(), key=lambda item: item[1].in_hand - item[1].size)
        for queue, window in by_spare:
            peak = window.peak
            if not window.size or not self._is_too_wide(queue, capacity, hungry):
                continue
            changes.append(self._close(queue))
            keep = min(max(1, peak - window.draining), capacity - self.used())
            if queue not in hungry and keep > 0:
                changes.append(self._grow(queue, keep))
        return changes

    def _is_too_wide(self, queue: str, capacity: int, hungry: set[str]) -> bool:
        window, free = self._windows[queue], capacity - self.used()
        if free < 0:
            # Also one that is full: it would be filled again as soon as one of its tasks ends.
            return window.size > (1 if self._held < capacity else 0)
        if queue in hungry and window.consumers > CONSUMERS_MAX:
            return True
        others = hungry - {queue}
        starving = sum(not self._windows[other].size for other in others)
        if free >= max(1, starving) or not others:
            return False
        if queue in hungry:
            fair = capacity // len(self._open())
            return window.size > fair and self._is_any_below(fair, others)
        # Not for a little, lest it goes to and fro; but who needs nothing gives up everything.
        needs = max(1, window.peak)
        return window.size > (2 * needs if window.peak and not starving else needs)

    def _is_any_below(self, fair: int, queues: set[str]) -> bool:
        windows = (self._windows[queue] for queue in queues)
        return any(window.size + window.draining < fair for window in windows)

    def _grow(self, queue: str, by: int) -> Grow:
        window = self._windows[queue]
        window.size += by
        window.consumers += 1
        return Grow(queue, by)

    def _close(self, queue: str) -> Close:
        window = self._windows[queue]
        window.draining += window.in_hand
        window.in_hand = window.size = window.peak = window.consumers = 0
        return Close(queue)
