"""Playback: what a reader of the settings log knows, when the log's beginning may be gone.

RabbitMQ drops the oldest records of a log that grows beyond its bound. So now and then somebody who
knows all settings appends a *snapshot* of them, and who has not read the log from its beginning
takes the next snapshot, and what was appended after the record that it goes up to::

    offsets   0 1 2 ... dropped | f ... upto ... snapshot ...
    state                                └─ snapshot + records after upto

Rules of this file:

* a reader that began at the log's beginning is *whole*, and stays so; it needs no snapshot and
  takes none. Only whole readers write them;
* one that was *cut* applies what it reads to what it has, until a snapshot makes it whole;
* after a lost connection a log is read again from its first record; what was applied is skipped.
  Offsets only grow, but are not contiguous: RabbitMQ's own notes in a stream have some;
* a log that was deleted and began anew takes no settings away: its readers keep what they have and
  apply what is new. One of them writes what they had before the new log as a snapshot
  `BEFORE_ALL`, which every reader of a log takes that has all of its records at hand.
"""

from __future__ import annotations

import enum
from collections import deque
from datetime import datetime, timezone

from tq_broker.common import TIME_MS_MAX
from tq_broker.exceptions import Malformed
from tq_broker.model.settings import (
    BEFORE_ALL,
    Record,
    Settings,
    SettingsSnapshot,
    record_ms,
)
from tq_broker.model.snapshot import State, state_of, unpack

SNAPSHOT_EVERY = 20_000
"""Records after which a snapshot is due; they take about 6 MB of the log's 50."""
SNAPSHOT_EVERY_BYTES = 10_000_000
"""Of records that are longer than usual."""
KEPT_MAX = 10_000
"""Records that are kept for the snapshot that comes after them; it is written within seconds."""
LOST_TOLD_MS = 7 * 24 * 3600 * 1000
"""So long somebody may still want to set again what was lost."""


class Taken(enum.Enum):
    """What became of a record."""

    KNOWN = enum.auto()
    """It was applied before."""
    APPLIED = enum.auto()
    ADOPTED = enum.auto()
    """It was a snapshot: `Playback.settings` is another object now."""


class Playback:
    """One reader's knowledge. Not thread-safe: it has one owner.

    Attributes:
        settings: What the records read so far add up to.
        lost_ms: What was set before this time (epoch ms) is lost for everybody; 0: nothing is.
    """

    def __init__(self) -> None:
        self.settings = Settings()
        self.lost_ms = 0
        self._begins = True
        self._head: tuple[int, str] | None = None
        """Offset and message id of the first record of the last reading."""
        self._last = BEFORE_ALL
        self._at = BEFORE_ALL
        self._last_ms = 0
        self._covered = BEFORE_ALL
        """Up to here there is a snapshot."""
        self._bytes = 0
        """Read since the last snapshot."""
        self._is_cut = False
        self._gap_ms = (0, 0)
        """Between these times there may be records that were not read."""
        self._kept: deque[tuple[int, Record]] = deque()
        self._is_keeping = True
        self._kept_after = BEFORE_ALL
        """All records after this offset are kept."""
        self._inherited: State | None = None
        """The settings before the first record of a log that came in the place of another one."""
        self._is_owed = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing that it could still learn."""
        return not self._is_cut

    @property
    def span(self) -> int:
        """Offsets from where the log begins to the last record of this reading, as RabbitMQ counts
        what is in a stream.

        Each of its segments begins with a note of its own, which nobody is shown; but for the first
        one.
        """
        if self._begins or self._head is None:
            return 0
        first, _ = self._head
        return self._at + 1 - (first - 1 if first else 0)

    @property
    def begins_late(self) -> bool:
        """Whether the reading has begun, and not with the first record that there ever was."""
        return not self._begins and self._head is not None and self._head[0] > 0

    @property
    def is_due(self) -> bool:
        """Whether a snapshot is to be written, and can be by this reader."""
        if self._is_cut or self._head is None:
            return False
        is_long = self._last - self._covered >= SNAPSHOT_EVERY
        is_big = self._bytes >= SNAPSHOT_EVERY_BYTES
        return is_long or is_big or self._is_owed or self._inherited is not None

    @property
    def is_to_begin_again(self) -> bool:
        """Whether the log is to be read again, and nothing has come so far."""
        return self._begins and self._head is not None

    def fault(self, now_ms: int) -> str:
        """What is not known, or is in danger; "" if nothing."""
        since_ms, until_ms = self._gap_ms
        if self._is_cut and since_ms:
            return (
                "records were dropped before they were read, and no snapshot was found: settings"
                f" from {_time(since_ms)} to {_time(until_ms)} are not known"
            )
        if self._is_cut:
            return (
                "its beginning was dropped and no snapshot was found: settings from before"
                f" {_time(until_ms)} are not known"
            )
        if self._inherited is not None:
            return "it was deleted: the settings from before are not in the new one yet"
        if self.lost_ms and now_ms - self.lost_ms < LOST_TOLD_MS:
            return f"settings from before {_time(self.lost_ms)} were lost"
        return ""

    def begin_again(self) -> None:
        """The log is read from its first record again: what comes next is that."""
        self._begins = True

    def take(self, offset: int | None, message_id: str, record: Record | None, size: int) -> Taken:
        """Take the next record of the log into account.

        Args:
            offset: Where it is; ``None``: nobody knows, it is new.
            record: ``None``: it could not be read, and is skipped.
            size: Bytes of its body.

        Raises:
            Malformed: it is a snapshot that is needed and cannot be read; it is skipped.
        """
        if offset is None:
            offset = self._last + 1
        if self._begins:
            self._begin(offset, message_id)
        self._at = offset
        if offset <= self._last:
            return Taken.KNOWN
        self._last = offset
        self._bytes += size
        if record is None:
            return Taken.APPLIED
        self._note_time(record)
        if isinstance(record, SettingsSnapshot):
            return self._consider(record, offset)
        self.settings.apply(record)
        self._keep(offset, record)
        return Taken.APPLIED

    def snapshot(self, now_ms: int) -> tuple[int, State]:
        """The state for a snapshot that is due, and up to where it goes."""
        if self._inherited is not None:
            return BEFORE_ALL, self._inherited
        return self._last, state_of(self.settings, now_ms)

    def emptied(self) -> None:
        """There is nothing in the log, of which more than nothing was read before: it is new."""
        if self.is_to_begin_again:
            self._renew("")

    def give_up(self) -> None:
        """Nobody else knows more: what this reader knows is all that there is from now on."""
        if self._is_cut:
            self.lost_ms = max(self.lost_ms, self._gap_ms[1])
            self._is_owed = True
            self._be_whole()

    # --- the beginning of a reading ---------------------------------------------------------------

    def _begin(self, offset: int, message_id: str) -> None:
        self._begins = False
        head = self._head
        if head is not None and offset == 0 and _is_another(head, message_id):
            self._renew(message_id)
            return
        self._head = offset, message_id
        if offset > self._last + 1:
            self._is_cut = self._is_keeping = True
            self._gap_ms = self._last_ms, 0
            self._kept.clear()
            self._last = self._kept_after = offset - 1

    def _renew(self, message_id: str) -> None:
        """The log is another one than before."""
        self._head = 0, message_id
        if not self._is_cut:
            self._inherited = state_of(self.settings)
        self._kept.clear()
        self._is_keeping = True
        self._last = self._kept_after = self._covered = BEFORE_ALL
        self._bytes = 0

    # --- snapshots --------------------------------------------------------------------------------

    def _consider(self, record: SettingsSnapshot, offset: int) -> Taken:
        if record.upto >= offset:
            raise Malformed(f"a snapshot at {offset} of what comes later, up to {record.upto}")
        is_wanted = self._wants(record)
        if is_wanted:
            self._adopt(record)
        if record.upto == BEFORE_ALL:
            self._inherited = None
        self._is_owed = False
        self._covered = max(self._covered, record.upto)
        self._bytes = 0
        return Taken.ADOPTED if is_wanted else Taken.APPLIED

    def _wants(self, record: SettingsSnapshot) -> bool:
        if self._is_cut:
            return record.upto >= self._kept_after
        return self._is_keeping and record.upto == BEFORE_ALL

    def _adopt(self, record: SettingsSnapshot) -> None:
        before, after = self.settings, unpack(record.state).settings()
        # These are not in it.
        after.cancelled, after.verdicts = before.cancelled, before.verdicts
        for offset, one in self._kept:
            if offset > record.upto:
                after.apply(one)
        self.settings = after
        self.lost_ms = record.lost_ms
        self._be_whole()

    def _be_whole(self) -> None:
        self._is_cut = self._is_keeping = False
        self._kept.clear()

    def _keep(self, offset: int, record: Record) -> None:
        if not self._is_keeping:
            return
        self._kept.append((offset, record))
        if len(self._kept) > KEPT_MAX:
            self._kept_after, _ = self._kept.popleft()
            if not self._is_cut:
                self._be_whole()

    def _note_time(self, record: Record) -> None:
        self._last_ms = record_ms(record)
        if self._is_cut and not self._gap_ms[1]:
            self._gap_ms = self._gap_ms[0], self._last_ms


def _is_another(head: tuple[int, str], message_id: str) -> bool:
    """Whether a log that begins at 0 with ``message_id`` is not the one that began with ``head``.

    A beginning that was gone does not come back. Old programs gave records no ids.
    """
    offset, known_id = head
    return offset > 0 or (known_id != message_id and bool(known_id and message_id))


def _time(ms: int) -> str:
    moment = datetime.fromtimestamp(min(max(0, ms), TIME_MS_MAX) / 1000, timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")
