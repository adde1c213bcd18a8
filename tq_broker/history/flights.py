"""Flights: what is being sent for each shard, and what waits for the end of it. Pure.

Rules of this file: a sending is in flight until its end is known; one that is to be sent again
stays so. The deliveries of a group are acknowledged when all that followed from them has arrived,
and given back if a part of it that is not stored is lost with its shard.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from tq_broker.history.transaction import Sending
from tq_broker.queues.broker import Delivery


class Group:
    """Deliveries that wait for ``left`` sendings; without any they are acknowledged at once."""

    __slots__ = ("_deliveries", "_left")

    def __init__(self, deliveries: Sequence[Delivery], left: int) -> None:
        self._deliveries = deliveries
        self._left = left + 1
        self.ended()

    def ended(self) -> None:
        """One of the sendings has arrived, or is stored and will be sent by another."""
        self._left -= 1
        if not self._left:
            for delivery in self._deliveries:
                delivery.ack()
            self._deliveries = ()

    def failed(self) -> None:
        """One of the sendings will never arrive."""
        for delivery in self._deliveries:
            delivery.reject(requeue=True)
        self._deliveries = ()


class Flights:
    """All that is under way. Not thread-safe."""

    def __init__(self) -> None:
        self._flying: dict[int, dict[Sending, Group | None]] = {}
        self._again: deque[tuple[float, Sending]] = deque()
        self._sent: list[tuple[int, int]] = []
        self._sent_since = 0.0

    def begin(self, sending: Sending, group: Group | None) -> None:
        """It is sent now; ``group`` waits for its end."""
        self._flying.setdefault(sending.shard, {})[sending] = group

    def is_flying(self, sending: Sending) -> bool:
        """Whether its end is waited for: not if its shard was lost meanwhile."""
        return sending in self._flying.get(sending.shard, ())

    def end(self, sending: Sending, now: float) -> None:
        """It has arrived, or need not."""
        group = self._flying[sending.shard].pop(sending)
        if sending.seq:
            if not self._sent:
                self._sent_since = now
            self._sent.append((sending.shard, sending.seq))
        if group is not None:
            group.ended()

    def postpone(self, sending: Sending, until: float) -> None:
        """It is to be sent again; times are given in their order."""
        self._again.append((until, sending))

    def unburden(self, sending: Sending) -> None:
        """Its group waits for it no more if it is stored; another would send it again."""
        flying = self._flying[sending.shard]
        group = flying[sending]
        if sending.seq and group is not None:
            flying[sending] = None
            group.ended()

    def take_due(self, now: float) -> list[Sending]:
        """Those that are to be sent again now."""
        found = []
        while self._again and self._again[0][0] <= now:
            found.append(self._again.popleft()[1])
        return found

    @property
    def due_at(self) -> float | None:
        """When something is to be sent again."""
        return self._again[0][0] if self._again else None

    def is_busy(self, shard: int) -> bool:
        """Whether anything of ``shard`` is under way."""
        return bool(self._flying.get(shard))

    def is_any_flying(self) -> bool:
        """Whether anything is under way, and does not wait for its time to be sent again; may be
        asked on any thread."""
        return sum(map(len, list(self._flying.values()))) > len(self._again)

    def known(self, shard: int) -> set[int]:
        """Numbers of outbox rows that are being sent, or have been."""
        known = {sending.seq for sending in self._flying.get(shard, ())}
        return known | {seq for of, seq in self._sent if of == shard}

    # --- outbox rows that are not needed any more ----------------------------------------------

    @property
    def sent_since(self) -> float | None:
        """Since when there are such rows; ``None`` without any."""
        return self._sent_since if self._sent else None

    @property
    def sent_count(self) -> int:
        return len(self._sent)

    def take_sent(self) -> list[tuple[int, int]]:
        """Those rows, as ``(shard, seq)``: somebody is about to remove them."""
        sent, self._sent = self._sent, []
        return sent

    def put_back(self, sent: list[tuple[int, int]]) -> None:
        """They were not removed."""
        self._sent = sent + self._sent

    def lose(self, shards: Collection[int]) -> None:
        """``shards`` are another's now, who sends again what is stored."""
        for shard in shards:
            for sending, group in self._flying.pop(shard, {}).items():
                if group is None:
                    continue
                if sending.seq:
                    group.ended()
                else:
                    group.failed()
        self._again = deque(entry for entry in self._again if entry[1].shard not in shards)
        self._sent = [entry for entry in self._sent if entry[0] not in shards]
