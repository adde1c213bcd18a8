"""Acks: which deliveries of one channel are done with, told in the fewest frames.

Rules of this file:

* pure: tags that are done, in; the frames to write, out;
* a ledger belongs to one *epoch* of one channel: RabbitMQ numbers deliveries anew on each
  channel, and an unknown tag closes it (406), so what is done after the channel was lost goes
  to the old ledger and is never sent;
* the channel of a quorum queue keeps back what comes after `PENDING_MAX` frames that the queue has
  not written yet, and *forgets it when it is closed* (``rabbit_fifo_client``: its soft limit): so
  who closes it soon after so many frames has acknowledged nothing;
* a multiple ack names a tag that is not settled yet, and is written after the rejects below it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tq_broker.queues.frames import BASIC_ACK, BASIC_NACK, BASIC_REJECT, settle_frame

PENDING_MAX = 32
MULTIPLE = 1
REQUEUE = 2


class AckLedger:
    """The deliveries of one channel. Tags are 1, 2, ... without a gap.

    Attributes:
        frames: How many were made.
    """

    __slots__ = ("_above", "_channel", "_floor", "_last", "_settled", "frames")

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._floor = 0  # Every tag up to here is settled,
        self._above: set[int] = set()  # and of those above it, these.
        self._last = 0
        self._settled = 0
        self.frames = 0

    @property
    def held(self) -> int:
        """How many deliveries are not settled."""
        return self._last - self._settled

    def delivered(self, tag: int) -> None:
        """``tag`` was handed to us."""
        self._last = tag

    def rejected(self, rejects: Iterable[tuple[int, bool]]) -> bytes:
        """Frames that give back each ``(tag, requeue)``, to its queue or its dead letters.

        A requeue is a ``nack``: from RabbitMQ 4.3 it does not count to the delivery limit, and
        giving back is no failure. Before that there is no difference.
        """
        frames = []
        for tag, requeue in rejects:
            if self._settle(tag):
                method, bits = (BASIC_NACK, REQUEUE) if requeue else (BASIC_REJECT, 0)
                frames.append(settle_frame(self._channel, method, tag, bits))
        self._raise_floor()
        self.frames += len(frames)
        return b"".join(frames)

    def acked(self, tags: Iterable[int]) -> bytes:
        """Frames that acknowledge ``tags``: one multiple for those that complete a prefix, and
        one each for the others. Tags that are settled already are ignored."""
        fresh = [tag for tag in tags if self._settle(tag)]
        if not fresh:
            return b""
        self._raise_floor()
        prefix = [tag for tag in fresh if tag <= self._floor]
        frames = []
        if prefix:
            bits = MULTIPLE if len(prefix) > 1 else 0
            frames.append(settle_frame(self._channel, BASIC_ACK, max(prefix), bits))
        if len(prefix) < len(fresh):
            frames += [
                settle_frame(self._channel, BASIC_ACK, tag, 0) for tag in fresh if tag > self._floor
            ]
        self.frames += len(frames)
        return b"".join(frames)

    def _settle(self, tag: int) -> bool:
        if tag <= self._floor or tag in self._above or tag > self._last:
            return False
        self._above.add(tag)
        self._settled += 1
        return True

    def _raise_floor(self) -> None:
        above, floor = self._above, self._floor
        while floor + 1 in above:
            floor += 1
            above.discard(floor)
        self._floor = floor
